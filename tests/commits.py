"""Many commits, quickly: what extract leaves of a slice (chunk, record, transaction) without a source."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa

from engine.batching import ChunkWriter, Workspace
from engine.batching.runs import record_runs
from engine.batching.tables import chunk_prefix
from engine.refs import StageReport, to_json

SCHEMA = pa.schema(
    [
        ("id", pa.int64()),
        ("amount", pa.int64()),
        *((name, pa.timestamp("us", "UTC")) for name in ("placed_at", "updated_at")),
    ]
)
START = datetime(2026, 1, 1, tzinfo=UTC)


def commit_slice(
    workspace: Workspace, n: int, *, rows: int = 3, what: str = "raw", runs: bool = False, note: str | None = None
) -> None:
    """Commit slice n of ``raw``, or of another table with the schema of ``raw``: ids 10 n, 10 n + 1, …

    With ``note`` it has a column of that name more.
    """
    table, app = workspace.table(what), f"extract:{what}"
    times = [START + timedelta(minutes=n, seconds=i) for i in range(rows)]
    ids = [10 * n + i for i in range(rows)]
    batch = pa.record_batch([pa.array(ids), pa.array(ids), pa.array(times), pa.array(times)], schema=SCHEMA)
    if note is not None:
        batch = batch.append_column("note", pa.array([note] * rows))
    workspace.journal.write_plan(app, n, {"as_of": START.isoformat(), "bounds": {}})
    bounds = ("placed_at", "id", "updated_at")
    with ChunkWriter(table.path, prefix=chunk_prefix(n, what), schema=batch.schema, bounds_of=bounds) as writer:
        writer.write(batch)
    clock = START.isoformat()
    report = StageReport(stage="extract", n=n, as_of=clock, slices=1, rows_in=rows, rows_out=rows, seconds=0.1)
    record = {"position": {"cursor": n}, "watermark": n, "rows": rows, "memory_bytes": batch.nbytes}
    workspace.journal.write_commit(app, n, {**record, "report": to_json(report)})
    table.commit(app=app, n=n, schema=batch.schema, add=writer.chunks)
    if runs:
        record_runs(workspace, app=app, committed=n)
