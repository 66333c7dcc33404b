"""The ``runs`` table: one row a committed slice, written last and rebuilt from the journal wherever a crash left a
hole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.batching.chunks import ChunkWriter
from engine.batching.streams import read_batches
from engine.batching.tables import chunk_prefix
from engine.batching.workspace import Workspace
from engine.refs import StageReport, to_json

_SCHEMA = pa.schema(
    [
        pa.field("stage", pa.string()),
        pa.field("app", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("as_of", pa.string()),
        pa.field("finished_at", pa.string()),
        pa.field("rows_in", pa.int64()),
        pa.field("rows_out", pa.int64()),
        pa.field("seconds", pa.float64()),
        pa.field("allowed_bytes", pa.int64()),
        pa.field("reserved_bytes", pa.int64()),
        pa.field("projected_bytes", pa.int64()),
        pa.field("measured_bytes", pa.int64()),
        pa.field("report", pa.string()),  # the whole StageReport as JSON
    ]
)


def record_runs(workspace: Workspace, *, app: str, committed: int) -> None:
    """Append the reports of all slices of ``app`` up to ``committed`` that the table lacks."""
    table = workspace.table("runs")
    mine = f"runs:{app}"
    for n in range(table.transaction(mine) + 1, committed + 1):
        record = workspace.journal.commit(app, n)
        rows = [] if record is None else [_row(app, StageReport.from_json(record["report"]))]
        batch = pa.RecordBatch.from_pylist(rows, schema=_SCHEMA)
        with ChunkWriter(table.path, prefix=chunk_prefix(n, app.replace(":", "_")), schema=_SCHEMA) as writer:
            writer.write(batch)
        table.commit(app=mine, n=n, schema=_SCHEMA, add=writer.chunks)


def last_reports(workspace: Workspace) -> dict[str, tuple[StageReport, ...]]:
    """Return, by stage, the newest report of each of its apps.

    Reports are long, so they are read only from the chunks that hold a newest one: the others by app and n alone.
    """
    newest: dict[str, tuple[int, Path]] = {}
    for chunk in workspace.table("runs").chunks():
        for batch in read_batches([chunk.path], columns=["app", "n"]):
            found = pa.Table.from_batches([batch]).group_by("app").aggregate([("n", "max")])
            for row in found.to_pylist():
                if row["n_max"] >= newest.get(row["app"], (0, None))[0]:
                    newest[row["app"]] = (row["n_max"], chunk.path)
    texts: dict[str, str] = {}
    for path in sorted({path for _, path in newest.values()}):
        wanted = {app: n for app, (n, place) in newest.items() if place == path}
        for batch in read_batches([path], columns=["app", "n", "report"]):
            rows = batch.filter(pc.is_in(batch.column("n"), value_set=pa.array(wanted.values(), pa.int64())))
            texts |= {row["app"]: row["report"] for row in rows.to_pylist() if wanted.get(row["app"]) == row["n"]}
    out: dict[str, tuple[StageReport, ...]] = {}
    for app in sorted(texts):
        report = StageReport.from_json(json.loads(texts[app]))
        out[report.stage] = (*out.get(report.stage, ()), report)
    return out


def _row(app: str, report: StageReport) -> dict[str, Any]:
    memory = report.memory
    return {
        "stage": report.stage,
        "app": app,
        "n": report.n,
        "as_of": report.as_of,
        "finished_at": report.finished_at,
        "rows_in": report.rows_in,
        "rows_out": report.rows_out,
        "seconds": report.seconds,
        "allowed_bytes": memory.allowed_bytes,
        "reserved_bytes": memory.reserved_bytes,
        "projected_bytes": memory.projected_bytes,
        "measured_bytes": memory.measured_bytes,
        "report": json.dumps(to_json(report), sort_keys=True, default=str),
    }
