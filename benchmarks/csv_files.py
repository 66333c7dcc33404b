"""A large CSV file to committed chunks, beside Polars' own streaming scan to Parquet without a budget.

One run, each contender in a fresh process. ``HEADRACE_BENCH_ROWS`` makes the file smaller; 48,000,000 rows are 5 GB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.results import Contender, write_results
from engine.memory.measure import measure_tree

ROWS = int(os.environ.get("HEADRACE_BENCH_ROWS", "48000000"))
MEMORY = "512MiB"
_BLOCK_ROWS = 500_000
_SAMPLE_SECONDS = 0.02


def main() -> None:
    """Write the file, run both contenders on it, and write ``benchmarks/results/csv_files.json``."""
    if len(sys.argv) > 1:
        print(json.dumps(CONTENDERS[sys.argv[1]](Path(sys.argv[2]), Path(sys.argv[3]))))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
        source = Path(scratch).absolute() / "payments.csv"
        _generate(source)
        print(f"{source.stat().st_size / 2**30:.2f} GiB of CSV, {ROWS:,} rows")
        contenders = {name: _measure(name, source, Path(scratch).absolute() / name) for name in CONTENDERS}
    own, peer = contenders["headrace"], contenders["polars_sink"]
    figures = {**own.figures, "speed_of_polars_sink": peer.seconds / own.seconds}
    contenders["headrace"] = Contender(own.seconds, own.peak_bytes, own.outcome, own.rows, figures)
    print(f"wrote {write_results('csv_files', contenders)}")


def _generate(path: Path) -> None:
    """Write rows of eleven columns: numbers, times, short and repeated text, nulls."""
    import numpy as np
    import polars as pl

    random = np.random.default_rng(7)
    with open(path, "wb") as sink:
        for start in range(0, ROWS, _BLOCK_ROWS):
            size = min(_BLOCK_ROWS, ROWS - start)
            ids = pl.int_range(start, start + size, eager=True)
            stamp = pl.datetime(2024, 1, 1) + pl.duration(seconds=pl.col("id"))
            frame = pl.DataFrame({"id": ids}).with_columns(
                updated_at=stamp,
                placed_at=stamp,
                customer=pl.Series(random.zipf(1.3, size) % 1_000_000),
                merchant=pl.Series(random.integers(0, 65_536, size)),
                amount=pl.Series((random.random(size) * 1_000).round(2)),
                score=pl.Series(random.random(size)),
                balance=pl.when(pl.col("id") % 5 == 0).then(None).otherwise(pl.Series(random.normal(size=size))),
                method=pl.lit("card"),
                town=pl.format("town {}", pl.Series(random.integers(0, 1_200, size))),
                disputed=pl.col("id") % 200 == 0,
            )
            frame.write_csv(sink, include_header=start == 0, datetime_format="%Y-%m-%d %H:%M:%S")


def _headrace(source: Path, directory: Path) -> dict[str, Any]:
    """Run the extract stage into an empty workspace: planned, caged, checked, written, synced, committed."""
    from engine.spec import PipelineSpec
    from engine.stage import StageContext, run_stage
    from engine.stages.extract import ExtractStage

    spec = PipelineSpec.model_validate(
        {
            "pipeline": "payments",
            "workspace": str(directory),
            "source": {"uri": str(source)},
            "event_time": "placed_at",
            "labels": {"key": "_key", "value": "disputed", "labelled_at": "_read_at"},
            "features": {"numeric": ["amount"]},
            "resources": {"memory": MEMORY},
        }
    )
    context = StageContext.of(spec, directory=directory)
    started = time.perf_counter()
    report = run_stage(ExtractStage("raw"), context)
    seconds = time.perf_counter() - started
    rows = context.workspace.table("raw").rows()
    return {"seconds": seconds, "rows": rows, "measured_bytes": report.memory.measured_bytes, "slices": report.slices}


def _polars_sink(source: Path, directory: Path) -> dict[str, Any]:
    """Scan with parsed dates and sink to one Parquet file with zstd, as Headrace writes."""
    import polars as pl

    started = time.perf_counter()
    frame = pl.scan_csv(source, try_parse_dates=True, infer_schema_length=10_000)
    frame.sink_parquet(directory / "payments.parquet", compression="zstd", compression_level=1)
    return {"seconds": time.perf_counter() - started, "rows": ROWS}


CONTENDERS: dict[str, Callable[[Path, Path], dict[str, Any]]] = {"polars_sink": _polars_sink, "headrace": _headrace}


def _measure(name: str, source: Path, directory: Path) -> Contender:
    directory.mkdir()
    command = [sys.executable, "-m", "benchmarks.csv_files", name, str(source), str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        peak = 0
        while process.poll() is None:
            peak = max(peak, measure_tree(process.pid).counted_bytes)
            time.sleep(_SAMPLE_SECONDS)
        assert process.stdout is not None
        answer = process.stdout.read()
    if process.returncode:
        raise SystemExit(f"{name} ended with exit code {process.returncode}")
    said = json.loads(answer)
    seconds, rows = said.pop("seconds"), said.pop("rows")
    if rows != ROWS:
        raise SystemExit(f"{name}: {rows:,} rows, expected {ROWS:,}")
    written = sum(path.stat().st_size for path in directory.rglob("*.parquet"))
    return Contender(round(seconds, 2), peak, "ok", rows, {**said, "written_bytes": written})


if __name__ == "__main__":
    main()
