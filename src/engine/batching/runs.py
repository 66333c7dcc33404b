"""The ``runs`` table: one row a committed slice, written last and rebuilt from the journal wherever a crash left a
hole.
"""

from __future__ import annotations

import functools
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
    """Return, by stage, the report of each of its apps' last run: its slices, which share a clock, added up.

    Reports are long, so they are read only from the chunks that hold one of these: the others by app, n and clock.
    """
    slices: dict[str, dict[int, tuple[str, Path]]] = {}
    for chunk in workspace.table("runs").chunks():
        for batch in read_batches([chunk.path], columns=["app", "n", "as_of"]):
            for row in batch.to_pylist():
                slices.setdefault(row["app"], {})[row["n"]] = (row["as_of"], chunk.path)
    wanted: dict[Path, set[tuple[str, int]]] = {}
    for app, found in slices.items():
        clock = found[max(found)][0]
        for n, (as_of, path) in found.items():
            if as_of == clock:
                wanted.setdefault(path, set()).add((app, n))
    reports: dict[str, dict[int, StageReport]] = {}
    for path, mine in sorted(wanted.items()):
        for batch in read_batches([path], columns=["app", "n", "report"]):
            rows = batch.filter(pc.is_in(batch.column("n"), value_set=pa.array({n for _, n in mine}, pa.int64())))
            for row in rows.to_pylist():
                if (row["app"], row["n"]) in mine:
                    report = StageReport.from_json(json.loads(row["report"]))
                    reports.setdefault(row["app"], {})[row["n"]] = report
    out: dict[str, tuple[StageReport, ...]] = {}
    for _, by_n in sorted(reports.items()):
        whole = functools.reduce(StageReport.join, (by_n[n] for n in sorted(by_n)))
        out[whole.stage] = (*out.get(whole.stage, ()), whole)
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
