"""Files as a source: Parquet, CSV, NDJSON, Arrow IPC, and Delta tables, on disk or in an object store."""

from engine.sources.files.source import FileSource

__all__ = ["FileSource"]
