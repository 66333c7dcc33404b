"""Ten thousand commits of tiny chunks into ``raw``: milliseconds to open the table, list its chunks and commit.

By thousand, with compaction as flows run it and without.

``python -m benchmarks.commits [--commits N] [--only NAME]``
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa

from benchmarks.results import Contender, write_results
from engine.batching.tables import chunk_prefix
from engine.layout import chunk_writer
from engine.memory.measure import measure_self
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages.compact import CompactStage

_ROWS = 10
_RUN = 16  # commits of one flow run, which looks once whether compaction is due
_START = datetime(2026, 1, 1, tzinfo=UTC)
_TIME = pa.timestamp("us", tz="UTC")
_SCHEMA = pa.schema([("id", pa.int64()), ("amount", pa.float64()), ("placed_at", _TIME), ("updated_at", _TIME)])
_APP = "extract:raw"


def main() -> None:
    """Run both contenders, print medians by thousand, and write ``benchmarks/results/commits.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=10_000)
    parser.add_argument("--only", choices=("compaction", "no_compaction"))
    given = parser.parse_args()
    contenders: dict[str, Contender] = {}
    for name in ("compaction", "no_compaction"):
        if given.only in (None, name):
            with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
                contenders[name] = _measure(Path(scratch), commits=given.commits, compact=name == "compaction")
    print(f"wrote {write_results('commits' if given.only is None else f'commits-{given.only}', contenders)}")


def _measure(directory: Path, *, commits: int, compact: bool) -> Contender:
    context = StageContext.of(_spec(directory), directory=directory)
    context.workspace.prepare()
    raw, stage = context.workspace.table("raw"), CompactStage("raw")
    started = time.monotonic()
    seconds: dict[str, list[float]] = {"open": [], "list": [], "commit": [], "compaction": []}
    by_thousand: list[dict[str, Any]] = []
    for n in range(1, commits + 1):
        with chunk_writer(context.spec, raw, prefix=chunk_prefix(n, "raw"), schema=_SCHEMA) as writer:
            writer.write(_rows(n))
        context.workspace.journal.write_commit(_APP, n, {"position": {"cursor": n}, "rows": _ROWS})
        times = [time.perf_counter()]
        committed = raw.transaction(_APP)
        times.append(time.perf_counter())
        live = len(raw.chunks())
        times.append(time.perf_counter())
        raw.commit(app=_APP, n=n, schema=_SCHEMA, add=writer.chunks)
        times.append(time.perf_counter())
        if committed != n - 1:
            raise AssertionError(f"the watermark is {committed}, expected {n - 1}")
        for name, low, high in zip(("open", "list", "commit"), times, times[1:], strict=False):
            seconds[name].append(high - low)
        if compact and n % _RUN == 0 and stage.is_due(context):
            run_stage(stage, context)
            seconds["compaction"].append(time.perf_counter() - times[-1])
        if n % 1_000 == 0 or n == commits:
            by_thousand.append(_summary(seconds, through=n, live=live))
            seconds = {name: [] for name in seconds}
    rows = raw.rows()
    if rows != commits * _ROWS:
        raise AssertionError(f"raw has {rows:,} rows, expected {commits * _ROWS:,}")
    last = {name: value for name, value in by_thousand[-1].items() if name.endswith("_ms")}
    return Contender(
        seconds=round(time.monotonic() - started, 1),
        peak_bytes=measure_self().counted_bytes,
        outcome="ok",
        rows=rows,
        figures={**last, "by_thousand": by_thousand},
    )


def _summary(seconds: dict[str, list[float]], *, through: int, live: int) -> dict[str, Any]:
    medians = {f"{name}_ms": round(1_000 * statistics.median(took), 1) for name, took in seconds.items() if took}
    slow = round(1_000 * statistics.quantiles(seconds["commit"], n=20)[-1], 1)
    found = {"through": through, "live_chunks": live, **medians, "commit_p95_ms": slow}
    found["compactions"] = len(seconds["compaction"])
    print(", ".join(f"{name} {value:,}" for name, value in found.items()), flush=True)
    return found


def _rows(n: int) -> pa.RecordBatch:
    times = [_START + timedelta(minutes=n, seconds=i) for i in range(_ROWS)]
    ids = list(range(_ROWS * n, _ROWS * n + _ROWS))
    return pa.record_batch([pa.array(ids), pa.array(ids, pa.float64()), times, times], schema=_SCHEMA)


def _spec(directory: Path) -> PipelineSpec:
    uri = f"sqlite:///{directory / 'unused.db'}"
    return PipelineSpec.model_validate(
        {
            "pipeline": "commits",
            "workspace": str(directory / "workspace"),
            "source": {"uri": uri, "table": "orders", "key": "id", "cursor": "updated_at"},
            "event_time": "placed_at",
            "labels": {"uri": uri, "table": "verdicts", "key": "id", "value": "fraud", "labelled_at": "decided_at"},
            "features": {"numeric": ["amount"]},
            "resources": {"memory": "512MiB"},
        }
    )


if __name__ == "__main__":
    main()
