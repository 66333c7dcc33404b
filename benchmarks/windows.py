"""Count and mean of a key's earlier rows over 1 and 7 days, 48 M rows, a quarter of them of one key.

Headrace's prepare stage inside a control group of 1 GiB; Polars and DuckDB without one, and each of them again in such
a group; peers have a time limit. All have two threads, read the same Parquet files and write the row's key with the
four features to Parquet. What each wrote is held against exact sums of windows of the hot key and of others.
``python -m benchmarks.windows [--rows N] [--amounts float|cents] [--only NAMES]``
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
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cards import ALLOWED_BYTES, HOT, LENGTHS, THREADS, generate, spec_of
from benchmarks.results import Contender, write_results
from engine.memory.groups import MemoryGroup, memory_group
from engine.memory.sampler import Sampler
from engine.units import format_bytes, microseconds

if TYPE_CHECKING:
    import numpy.typing as npt

_ROWS = 48_000_000
_LIMIT_SECONDS = 300  # of a peer under the budget
_UNLIMITED_SECONDS = 1_200  # of one without: who has not ended by then is no peer in speed
_SAMPLES = 400
COLUMNS = {"float": "amount", "cents": "cents"}
_TURNING = ("headrace", "polars_unlimited")  # at the border of noise: they take turns, and the median ratio counts


def main() -> None:
    """Write the rows, run the contenders one after another, and write ``benchmarks/results/windows_<amounts>.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=_ROWS)
    parser.add_argument("--amounts", choices=sorted(COLUMNS), default="float")
    parser.add_argument("--rounds", type=int, default=3, help="of headrace and polars_unlimited, by turns")
    parser.add_argument("--only", nargs="+", choices=sorted(CONTENDERS), help="contenders; default: all")
    parser.add_argument("--keep", type=Path, help="a directory of rows that are kept, and used again where they are")
    parser.add_argument("--contender", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.contender:
        name, home, column = given.contender
        print(json.dumps(CONTENDERS[name][0](Path(home), column)))
        return
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
        home = (given.keep or Path(scratch)).absolute()
        generate(home, rows=given.rows)
        names, column = given.only or list(CONTENDERS), COLUMNS[given.amounts]
        turns = [
            {name: run(name, home, rows=given.rows, column=column) for name in _TURNING if name in names}
            for _ in range(given.rounds)
        ]
        found = {name: run(name, home, rows=given.rows, column=column) for name in names if name not in _TURNING}
    print(f"wrote {write_results(f'windows_{given.amounts}', compared(turns, found))}")


def _headrace(home: Path, column: str) -> dict[str, Any]:
    """Run the prepare stage: planned, caged, newest versions in order of time, written, synced, committed."""
    started = time.perf_counter()
    from engine.stage import StageContext, run_stage
    from engine.stages.prepare import PrepareStage

    report = run_stage(PrepareStage(), StageContext.of(spec_of(home, column), directory=home))
    return {
        "seconds": time.perf_counter() - started,
        "slices": report.slices,
        "task_peak_bytes": report.memory.measured_bytes,
        "task_projected_bytes": report.memory.projected_bytes,
    }


def _polars(home: Path, column: str) -> dict[str, Any]:
    """Collect rolling expressions over each card, on Polars' default engine: its streaming one has no windows."""
    started = time.perf_counter()
    import polars as pl

    (home / "peer").mkdir()
    value = pl.col(column)
    frame = pl.scan_parquet(_raw(home)).select("id", "at", "card", column, one=pl.lit(1, pl.UInt32))
    rolling = {}
    for name, length in LENGTHS.items():
        rolling[f"count_{name}"] = pl.col("one").rolling_sum_by("at", length, closed="none").over("card")
        rolling[f"mean_{name}"] = value.rolling_mean_by("at", length, closed="none").over("card")
    frame.select("id", "at", **rolling).collect().write_parquet(
        home / "peer" / "out.parquet", compression="zstd", compression_level=1
    )
    return {"seconds": time.perf_counter() - started}


def _duckdb(home: Path, column: str, *, memory: str = "") -> dict[str, Any]:
    """Copy a query with two range windows by card to Parquet."""
    started = time.perf_counter()
    import duckdb

    (home / "peer").mkdir()
    with duckdb.connect() as connection:
        connection.execute(f"SET threads = {THREADS}")
        connection.execute("SET preserve_insertion_order = false")
        connection.execute(f"SET temp_directory = '{home / 'peer' / 'spilled'}'")
        if memory:
            connection.execute(f"SET memory_limit = '{memory}'")
        files = ", ".join(f"'{path}'" for path in _raw(home))
        parts = []
        for name, length in LENGTHS.items():
            days = length // timedelta(days=1)
            frame = (
                f'(PARTITION BY card ORDER BY "at" RANGE BETWEEN INTERVAL {days * 86_400_000_000 - 1} MICROSECONDS '
                "PRECEDING AND INTERVAL 1 MICROSECONDS PRECEDING)"
            )
            parts += [f"count(*) OVER {frame} AS count_{name}", f"avg({column}) OVER {frame} AS mean_{name}"]
        features, target = ", ".join(parts), home / "peer" / "out.parquet"
        query = f'SELECT id, "at", {features} FROM read_parquet([{files}])'
        connection.execute(f"COPY ({query}) TO '{target}' (FORMAT parquet, COMPRESSION zstd)")
    return {"seconds": time.perf_counter() - started}


def _duckdb_limited(home: Path, column: str) -> dict[str, Any]:
    return _duckdb(home, column, memory="700MB")  # what it counts is not all that it takes


CONTENDERS: dict[str, tuple[Callable[[Path, str], dict[str, Any]], bool]] = {
    "headrace": (_headrace, True),
    "polars_unlimited": (_polars, False),
    "duckdb_unlimited": (_duckdb, False),
    "polars_1gib": (_polars, True),
    "duckdb_1gib": (_duckdb_limited, True),
}
"""What each does, and whether it runs in the control group."""


def _raw(home: Path) -> list[Path]:
    return sorted((home / "workspace" / "tables" / "raw").glob("*.parquet"))


def run(name: str, home: Path, *, rows: int, column: str, keep: bool = False) -> Contender:
    """Run one contender in a fresh process; one that is killed, or takes too long, is a result too.

    With ``keep`` it finds what an earlier run has prepared, and leaves what it prepares.
    """
    if not keep:
        clean(home)
    limited = CONTENDERS[name][1]
    command = [sys.executable, "-m", "benchmarks.windows", "--contender", name, str(home), column]
    environment = {**os.environ, "POLARS_MAX_THREADS": str(THREADS), "OMP_NUM_THREADS": str(THREADS)}
    # Without a limit it has a group, too, of all memory: so both are measured alike.
    with memory_group(ALLOWED_BYTES if limited else 2**40) as group:
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
        outcome, answer = "ok", ""
        with process, Sampler(process.pid, started=started, stop_at_bytes=None) as sampler:
            seconds = None if name == "headrace" else _LIMIT_SECONDS if limited else _UNLIMITED_SECONDS
            try:
                answer, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                outcome = "timeout"
                os.killpg(process.pid, 9)
                process.communicate()
        wall, cpu, kills = time.monotonic() - started, _cpu_seconds() - before, group.kills() if group else 0
    if kills:
        outcome = "killed"
    elif process.returncode and outcome == "ok":
        outcome = "failed"
    figures: dict[str, Any] = {"process_seconds": round(wall, 2), "cpu_seconds": round(cpu, 2)}
    done = 0
    if outcome == "ok":
        said = json.loads(answer.splitlines()[-1])
        wall = said.pop("seconds")
        figures |= said | checked(home, rows=rows, column=column)
        done = rows
    one = Contender(round(wall, 2), sampler.peak.counted_bytes if sampler.peak else 0, outcome, done, figures)
    print(f"{name}: {outcome}, {one.seconds:.1f} s, {format_bytes(one.peak_bytes)}", flush=True)
    if not keep:
        clean(home)
    return one


def checked(home: Path, *, rows: int, column: str) -> dict[str, Any]:
    """Return the largest relative errors of sampled means against exact sums; raise where a count is wrong."""
    import numpy as np
    import polars as pl

    prepared = home / "workspace" / "tables" / "prepared"
    own = prepared.is_dir()
    paths = sorted([*prepared.rglob("*.parquet"), *(home / "peer").glob("*.parquet")])
    names = {"id": "key" if own else "id"}
    for name in LENGTHS:
        for statistic, middle in (("count", ""), ("mean", f"{column}_")):
            names[f"{statistic}_{name}"] = f"events_card_{name}_{middle}{statistic}" if own else f"{statistic}_{name}"
    found = pl.scan_parquet(paths).select(**{new: pl.col(old) for new, old in names.items()})
    total = found.select(pl.len()).collect(engine="streaming").item()
    if total != rows:
        raise SystemExit(f"{total:,} rows were written, expected {rows:,}")
    random = np.random.default_rng(3)
    ids = np.unique(random.integers(rows // 3, rows, _SAMPLES))
    sampled = found.filter(pl.col("id").is_in(ids.tolist())).collect(engine="streaming").sort("id")
    source = pl.scan_parquet(_raw(home))
    wanted = source.filter(pl.col("id").is_in(ids.tolist())).collect(engine="streaming").sort("id")
    mine = source.filter(pl.col("card").is_in(wanted["card"].unique().to_list()))
    cards = {
        card: (part["at"].cast(pl.Int64).to_numpy(), part[column].to_numpy())
        for (card,), part in mine.select("card", "at", column).collect(engine="streaming").sort("at").group_by("card")
    }
    worst = {"hot": 0.0, "others": 0.0}
    for row, answer in zip(wanted.iter_rows(named=True), sampled.iter_rows(named=True), strict=True):
        times, values = cards[row["card"]]
        now = microseconds(row["at"] - datetime(1970, 1, 1, tzinfo=UTC))
        for name, length in LENGTHS.items():
            low = int(np.searchsorted(times, now - microseconds(length), side="right"))
            high = int(np.searchsorted(times, now, side="left"))
            if (answer[f"count_{name}"] or 0) != high - low:
                raise SystemExit(f"row {row['id']}: {answer[f'count_{name}']} rows in {name}, expected {high - low}")
            if low == high:
                continue
            exact = _exact_sum(values[low:high]) / (high - low)
            error = abs(float((Fraction(answer[f"mean_{name}"]) - exact) / exact))
            side = "hot" if row["card"] == HOT else "others"
            worst[side] = max(worst[side], error)
    return {f"worst_error_{side}": error for side, error in worst.items()}


def _exact_sum(values: npt.NDArray[Any]) -> Fraction:
    """Return an exact sum: of integers, or of amounts, which are whole numbers of 2**-60 below 2**33."""
    import numpy as np

    total, unit = Fraction(0), 1
    for _ in range(3 if values.dtype == np.float64 else 1):
        digits = np.floor(values)
        total += Fraction(int(digits.astype(np.int64).sum()), unit)
        values, unit = (values - digits) * 2.0**30, unit << 30
    if values.any():
        raise SystemExit("an amount has digits below 2**-60: the sums to compare with would not be exact")
    return total


def _cpu_seconds() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return ended.ru_utime + ended.ru_stime


def _joined(command: list[str], group: MemoryGroup) -> list[str]:
    return ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs"), *command]


def clean(home: Path) -> None:
    """Take away what a contender wrote, to begin anew from ``raw``."""
    for name in ("tables/prepared", "tables/runs", "plans", "tasks", "segments", "slices", "scratch", "memory"):
        shutil.rmtree(home / "workspace" / name, ignore_errors=True)
    shutil.rmtree(home / "workspace" / "commits" / "prepare", ignore_errors=True)
    shutil.rmtree(home / "peer", ignore_errors=True)


def compared(turns: Sequence[Mapping[str, Contender]], others: Mapping[str, Contender]) -> dict[str, Contender]:
    """Return each contender's run of the median time, headrace's with its time to each peer's that ended."""
    middle: dict[str, Contender] = {}
    for name in turns[0]:
        of_turns = sorted((turn[name] for turn in turns), key=lambda one: one.seconds)
        one = of_turns[len(of_turns) // 2]
        peak = max(turn.peak_bytes for turn in of_turns)
        middle[name] = Contender(one.seconds, peak, one.outcome, one.rows, one.figures)
    found = {**middle, **others}
    own = found.get("headrace")
    if own is None or own.outcome != "ok":
        return found
    ratios = {
        f"seconds_to_{name}": round(own.seconds / peer.seconds, 3)
        for name, peer in others.items()
        if peer.outcome == "ok"
    }
    if "polars_unlimited" in turns[0]:
        pairs = sorted(turn["headrace"].seconds / turn["polars_unlimited"].seconds for turn in turns)
        ratios |= {
            "seconds_to_polars_unlimited": round(statistics.median(pairs), 3),
            "least_seconds_to_polars_unlimited": round(pairs[0], 3),
            "most_seconds_to_polars_unlimited": round(pairs[-1], 3),
        }
    figures = {**own.figures, **ratios}
    return {**found, "headrace": Contender(own.seconds, own.peak_bytes, own.outcome, own.rows, figures)}


if __name__ == "__main__":
    main()
