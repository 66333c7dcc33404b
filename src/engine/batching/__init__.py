"""Tables of immutable chunks: writing them, committing them exactly once, streaming them in bounded batches."""

from engine.batching.chunks import ChunkWriter
from engine.batching.journal import Journal
from engine.batching.streams import read_batches
from engine.batching.tables import Chunk, Table
from engine.batching.workspace import Workspace

__all__ = ["Chunk", "ChunkWriter", "Journal", "Table", "Workspace", "read_batches"]
