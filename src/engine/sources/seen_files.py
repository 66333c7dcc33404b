"""Which files have been read, as a side table of ``raw`` or ``labels``: a row for each time that one was looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from engine.batching import ChunkWriter, Table, Workspace, read_batches
from engine.batching.tables import chunk_prefix
from engine.refs import ChunkRef
from engine.sources.protocol import SeenFile

SCHEMA = pa.schema(
    [
        pa.field("n", pa.int64()),  # of the commit that read it
        pa.field("name", pa.string()),
        pa.field("size", pa.int64()),
        pa.field("modified", pa.int64()),
        pa.field("digest", pa.string()),
        pa.field("rows", pa.int64()),
        pa.field("read_at", pa.int64()),
        pa.field("offset", pa.int64()),
        pa.field("same_as", pa.string()),
    ]
)


def files_table(workspace: Workspace, what: str) -> Table:
    """Return the side table of ``raw`` or ``labels``."""
    return workspace.table(f"files/{what}")


def seen_files(workspace: Workspace, what: str, *, through_n: int) -> Mapping[str, SeenFile]:
    """Return each file as the commits up to ``through_n`` last saw it, by name."""
    found: dict[str, tuple[int, SeenFile]] = {}
    chunks = files_table(workspace, what).chunks(newest_n=through_n)
    for batch in read_batches([chunk.path for chunk in chunks]):
        for row in batch.to_pylist():
            n = row.pop("n")
            if n <= through_n and n >= found.get(row["name"], (0, None))[0]:
                found[row["name"]] = (n, SeenFile.from_json(row))
    return {name: file for name, (_, file) in found.items()}


def write_files(workspace: Workspace, what: str, *, n: int, files: Sequence[Mapping[str, object]]) -> list[ChunkRef]:
    """Write the files of one commit as a chunk; it belongs to the table when it is committed."""
    batch = pa.RecordBatch.from_pylist([{"n": n, **file} for file in files], schema=SCHEMA)
    table = files_table(workspace, what)
    with ChunkWriter(table.path, prefix=chunk_prefix(n, what), schema=SCHEMA) as writer:
        writer.write(batch)
    return writer.chunks
