"""Row-wise prepare of 48 M rows of 19 columns, beside Polars' own streaming scan-to-Parquet of the same expressions.

Each contender in a fresh process inside a control group of 1 GiB with two threads, on the same Parquet files, one after
another; both write the same rows, which is checked. ``python -m benchmarks.wide_prepare [--rows N] [--rounds N]``
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from benchmarks import raw_rows
from benchmarks.results import Contender, write_results
from engine.memory.groups import MemoryGroup, memory_group
from engine.memory.sampler import Sampler
from engine.spec import PipelineSpec
from engine.units import format_bytes

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

ALLOWED_BYTES = 2**30
THREADS = 2
_ROWS = 48_000_000
_COMMIT_ROWS = 4_000_000
_BLOCK_ROWS = 250_000  # of the generator: how the rows are cut changes no row
_START = datetime(2025, 1, 1, tzinfo=UTC)
_STEP = timedelta(microseconds=650_000)
_POSITIVES = 0.0044
_TOWNS, _CUSTOMERS, _MERCHANTS = 1_200, 1_000_000, 65_536
_METHODS = ("card", "transfer", "cash", "voucher")
_NUMERIC = ("items", "amount", "fee", "balance_change", "score", "distance", "risk", "online", "returning")
_CATEGORICAL = ("customer", "merchant", "category", "method", "town", "device")
_MADE = ("amount_log", "fee_share", "hour", "weekday")


def main() -> None:
    """Write the rows, run both contenders in turn, and write ``benchmarks/results/wide_prepare.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=_ROWS)
    parser.add_argument("--rounds", type=int, default=1, help="each contender so often, in turn; medians are reported")
    parser.add_argument("--keep", type=Path, help="a directory of rows that are kept, and used again where they are")
    parser.add_argument("--contender", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        print(json.dumps(CONTENDERS[given.contender[0]](Path(given.contender[1]))))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
        home = (given.keep or Path(scratch)).absolute()
        generate(home, rows=given.rows)
        path = write_results("wide_prepare", run(home, rows=given.rows, rounds=given.rounds))
    print(f"wrote {path}")


def add_features(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows with four columns more: the transform of one contender, the expressions of the other."""
    import polars as pl

    return rows.with_columns(
        amount_log=(pl.col("amount") + 1.0).log(),
        fee_share=pl.col("fee") / (pl.col("amount") + pl.col("fee")),
        hour=pl.col("placed_at").dt.hour(),
        weekday=pl.col("placed_at").dt.weekday(),
    )


def spec_of(home: Path) -> PipelineSpec:
    """Return the pipeline over the rows under ``home``: no windows, a row-wise transform."""
    return PipelineSpec.model_validate(
        {
            "pipeline": "payments",
            "workspace": str(home / "workspace"),
            "source": {"uri": "postgresql://nowhere", "table": "payments", "key": "id", "cursor": "updated_at"},
            "event_time": "placed_at",
            "columns": {"disputed": {"known": "after"}},
            "labels": {"table": "disputes", "key": "id", "value": "lost", "labelled_at": "closed_at"},
            "features": {
                "transform": "benchmarks.wide_prepare:add_features",
                "numeric": [*_NUMERIC, *_MADE],
                "categorical": list(_CATEGORICAL),
            },
            "resources": {"memory": ALLOWED_BYTES, "threads": THREADS},
        }
    )


def generate(home: Path, *, rows: int) -> None:
    """Commit ``rows`` rows to ``raw``, as extraction leaves them; nothing is done where they are already."""
    raw_rows.generate(spec_of(home), home, _block, rows=rows, commit_rows=_COMMIT_ROWS, block_rows=_BLOCK_ROWS)


def _block(start: int, rows: int) -> pa.RecordBatch:
    """Return rows ``start`` and following: ids in order of time, Zipf keys, short texts, nulls, rare positives."""
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng([7, start])
    ids = np.arange(start, start + rows)
    step = int(_STEP / timedelta(microseconds=1))
    times = pa.array(int(_START.timestamp()) * 1_000_000 + ids * step, pa.timestamp("us", tz="UTC"))
    amount = np.round(random.lognormal(3.0, 1.2, rows), 2)
    towns = pa.DictionaryArray.from_arrays(
        pa.array(random.integers(0, _TOWNS, rows), pa.int32(), mask=random.random(rows) < 1 / 7),
        pa.array([f"town {number}" for number in range(_TOWNS)]),
    )
    methods = pa.DictionaryArray.from_arrays(pa.array(random.integers(0, 4, rows), pa.int32()), pa.array(_METHODS))
    columns = {
        "id": pa.array(ids),
        "placed_at": times,
        "updated_at": times,
        "customer": pa.array((random.zipf(1.2, rows) % _CUSTOMERS).astype(np.int32)),
        "merchant": pa.array((random.zipf(1.5, rows) % _MERCHANTS).astype(np.int32)),
        "category": pa.array(random.integers(0, 97, rows, dtype=np.int16)),
        "device": pa.array(random.integers(0, 40, rows, dtype=np.int16)),
        "items": pa.array(random.integers(1, 30, rows, dtype=np.int32)),
        "amount": pa.array(amount),
        "fee": pa.array(np.round(amount * random.random(rows) * 0.1, 2)),
        "balance_change": pa.array(random.normal(size=rows), mask=random.random(rows) < 0.2),
        "score": pa.array(random.random(rows)),
        "distance": pa.array(random.random(rows, dtype=np.float32)),
        "risk": pa.array(random.random(rows, dtype=np.float32)),
        "online": pa.array(random.random(rows) < 0.3),
        "returning": pa.array(random.random(rows) < 0.5, mask=random.random(rows) < 0.25),
        "method": methods.cast(pa.string()),
        "town": towns.cast(pa.string()),
        "disputed": pa.array(random.random(rows) < _POSITIVES),
    }
    return pa.record_batch(columns)


def run(home: Path, *, rows: int, rounds: int = 1) -> dict[str, Contender]:
    """Run each contender ``rounds`` times, in turn, and return the medians; their rows must be the same."""
    found: dict[str, list[Contender]] = {name: [] for name in CONTENDERS}
    contents: dict[str, Any] = {}
    for _ in range(rounds):
        for name in CONTENDERS:
            _clean(home)
            one = _measure(name, home, rows=rows)
            found[name].append(one)
            if name not in contents:
                contents[name] = _content(home)
            print(f"{name}: {one.seconds:.1f} s, {format_bytes(one.peak_bytes)}", flush=True)
    _clean(home)
    if any(content != contents["headrace"] for content in contents.values()):
        raise SystemExit(f"the contenders wrote different rows: {contents}")
    return _compared({name: _median(several) for name, several in found.items()})


def _headrace(home: Path) -> dict[str, Any]:
    """Run the prepare stage: planned, caged, in order of event time, written, synced, committed."""
    started = time.perf_counter()
    from engine.stage import StageContext, run_stage
    from engine.stages.prepare import PrepareStage

    context = StageContext.of(spec_of(home), directory=Path(__file__).parent)
    report = run_stage(PrepareStage(), context)
    return {
        "seconds": time.perf_counter() - started,
        "rows": report.rows_out,
        "slices": report.slices,
        "task_peak_bytes": report.memory.measured_bytes,
        "task_projected_bytes": report.memory.projected_bytes,
    }


def _polars_sink(home: Path, *, codec: Literal["zstd", "lz4"] = "zstd") -> dict[str, Any]:
    """Scan, add the same columns, keep the same, and sink to one file, by default with Polars' own codec."""
    started = time.perf_counter()
    import polars as pl

    (home / "polars").mkdir()
    frame = add_features(pl.scan_parquet(sorted((home / "workspace" / "tables" / "raw").glob("*.parquet"))))
    names = {"key": "id", "event_time": "placed_at"} | {name: name for name in (*_NUMERIC, *_MADE, *_CATEGORICAL)}
    frame = frame.select(pl.col(old).alias(new) for new, old in names.items())
    level = 1 if codec == "zstd" else None
    frame.sink_parquet(home / "polars" / "prepared.parquet", compression=codec, compression_level=level)
    seconds = time.perf_counter() - started
    return {
        "seconds": seconds,
        "rows": pl.scan_parquet(home / "polars" / "*.parquet").select(pl.len()).collect().item(),
    }


CONTENDERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "polars_sink": _polars_sink,
    "polars_sink_lz4": partial(_polars_sink, codec="lz4"),
    "headrace": _headrace,
}


def _measure(name: str, home: Path, *, rows: int) -> Contender:
    command = [sys.executable, "-m", "benchmarks.wide_prepare", "--contender", name, str(home)]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    with memory_group(ALLOWED_BYTES) as group:
        if group is None:
            print("no control group can be made here: the budget of this run is NOT enforced", flush=True)
        started, before = time.monotonic(), _cpu_seconds()
        process = subprocess.Popen(
            command if group is None else _joined(command, group),
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        with process, Sampler(process.pid, started=started, stop_at_bytes=None) as sampler:
            assert process.stdout is not None
            answer = process.stdout.read()
            process.wait()
        cpu = _cpu_seconds() - before
        wall, kills, most = time.monotonic() - started, group.kills() if group else 0, _most_bytes(group)
    if process.returncode or kills:
        raise SystemExit(f"{name} ended with exit code {process.returncode}, {kills} kills for want of memory")
    said = json.loads(answer)
    seconds, got = said.pop("seconds"), said.pop("rows")
    said["cpu_seconds"] = round(cpu, 2)
    if got != rows:
        raise SystemExit(f"{name}: {got:,} rows, expected {rows:,}")
    peak = sampler.peak.counted_bytes if sampler.peak else 0
    where = home / "polars" if name.startswith("polars") else home / "workspace" / "tables" / "prepared"
    written = sum(path.stat().st_size for path in where.rglob("*.parquet"))
    figures = {"process_seconds": round(wall, 2), "group_peak_bytes": most, "written_bytes": written, **said}
    return Contender(round(seconds, 2), peak, "ok", rows, figures)


def _joined(command: list[str], group: MemoryGroup) -> list[str]:
    return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs"), *command]


def _cpu_seconds() -> float:
    """Return what processes that have ended took: on a busy machine it says more than the clock."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _most_bytes(group: MemoryGroup | None) -> int:
    """Return the kernel's own peak of the group: with the pages of files, which it takes back before it kills."""
    if group is None:
        return 0
    path = group.path / ("memory.max_usage_in_bytes" if group.kind == "cgroup-v1" else "memory.peak")
    return int(path.read_text()) if path.exists() else 0


def _content(home: Path) -> dict[str, Any]:
    """Return sums of hashes by column, which do not depend on the order of rows, of what the contender wrote."""
    import polars as pl

    paths = sorted(
        [*(home / "polars").glob("*.parquet"), *(home / "workspace" / "tables" / "prepared").rglob("*.parquet")]
    )
    frame = pl.scan_parquet(paths)
    hashed = frame.select(pl.len().alias("rows"), *((pl.col(c).hash(1) // 2**32).sum() for c in frame.collect_schema()))
    return hashed.collect(engine="streaming").to_dicts()[0]


def _clean(home: Path) -> None:
    """Take away what a contender wrote, to begin anew from ``raw``."""
    for name in ("tables/prepared", "tables/runs", "plans", "tasks", "slices", "scratch"):
        shutil.rmtree(home / "workspace" / name, ignore_errors=True)
    shutil.rmtree(home / "workspace" / "commits" / "prepare", ignore_errors=True)
    shutil.rmtree(home / "polars", ignore_errors=True)


def _median(several: list[Contender]) -> Contender:
    ordered = sorted(several, key=lambda one: one.seconds)
    middle = ordered[(len(ordered) - 1) // 2]
    seconds = statistics.median(one.seconds for one in several)
    cpu = round(statistics.median(one.figures["cpu_seconds"] for one in several), 2)
    figures = {**middle.figures, "cpu_seconds": cpu, "all_seconds": [one.seconds for one in several]}
    return Contender(round(seconds, 2), max(one.peak_bytes for one in several), "ok", middle.rows, figures)


def _compared(contenders: dict[str, Contender]) -> dict[str, Contender]:
    own = contenders["headrace"]
    figures = dict(own.figures)
    for name, peer in contenders.items():
        if name != "headrace":
            figures[f"seconds_to_{name}"] = round(own.seconds / peer.seconds, 3)
            figures[f"cpu_to_{name}"] = round(own.figures["cpu_seconds"] / peer.figures["cpu_seconds"], 3)
            figures[f"peak_to_{name}"] = round(own.peak_bytes / peer.peak_bytes, 3)
    return contenders | {"headrace": Contender(own.seconds, own.peak_bytes, own.outcome, own.rows, figures)}


if __name__ == "__main__":
    main()
