"""Files that arrive one by one, some twice, some renamed, one changed: whether ``raw`` is right after each.

Takes a directory of Parquet files of one schema without a key of their own, for instance one a day, and extracts after
each arrival. ``python -m benchmarks.arrivals DIRECTORY --event-time COLUMN --label COLUMN [--files N]``
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.results import Contender, write_results
from engine.batching import read_batches
from engine.spec import FILE, FILE_KEY, READ_AT, PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage

if TYPE_CHECKING:
    import polars as pl

_AGAIN, _RENAMED = 7, 50  # each so-many-th arrival
_TAKEN_OUT_ROWS = 3  # of the file that changes

Content = tuple[int, int]
"""Rows, and the sum of their hashes: it depends neither on their order nor on files."""


def main() -> None:
    """Let the files arrive; exit 1 at the first arrival after which ``raw`` is not what the files hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--event-time", required=True)
    parser.add_argument("--label", required=True, help="any column: labels are not read")
    parser.add_argument("--files", type=int, default=10**6)
    given = parser.parse_args()
    files = sorted(given.directory.glob("*.parquet"))[: given.files]
    if not files:
        sys.exit(f"no *.parquet in {given.directory}")
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        spec = _spec(home, event_time=given.event_time, label=given.label)
        seconds: list[float] = []
        peak = number = 0
        expected: Content = (0, 0)
        for number, (what, expected) in enumerate(arrivals(files, home / "in"), 1):
            started = time.monotonic()
            report = run_stage(ExtractStage("raw"), StageContext.of(spec, directory=home))
            seconds.append(time.monotonic() - started)
            peak = max(peak, report.memory.measured_bytes)
            found = raw_content(spec)
            if found != expected:
                sys.exit(f"after arrival {number} ({what}): {found[0]:,} rows, expected {expected[0]:,}, or others")
            if what != "new" or number % 25 == 0:
                print(f"arrival {number} ({what}): {found[0]:,} rows, right; {seconds[-1]:.1f} s", flush=True)
    figures = {"arrivals": number, "files": len(files), "median_seconds": statistics.median(seconds)}
    write_results("arrivals", {"headrace": Contender(sum(seconds), peak, "ok", expected[0], figures)})


def arrivals(files: list[Path], directory: Path) -> Iterator[tuple[str, Content]]:
    """Put one file after another into a directory; yield what happened and what a table of all of them holds."""
    import polars as pl

    directory.mkdir()
    rows = total = 0

    def counted(frame: pl.DataFrame, sign: int = 1) -> Content:
        nonlocal rows, total
        height, value = content(frame)
        rows, total = rows + sign * height, (total + sign * value) % 2**64
        return rows, total

    for number, file in enumerate(files):
        shutil.copyfile(file, directory / file.name)
        yield "new", counted(pl.read_parquet(file))
        if number % _AGAIN == _AGAIN // 2:
            shutil.copyfile(file, directory / f"again-{file.name}")
            yield "the same under another name", (rows, total)
        if number % _RENAMED == _RENAMED // 2:
            (directory / file.name).rename(directory / f"old-{file.name}")
            yield "renamed", (rows, total)
        if number == len(files) // 2:
            changed = directory / files[0].name
            before = pl.read_parquet(changed)
            counted(before, -1)
            after = before.slice(_TAKEN_OUT_ROWS)
            after.write_parquet(changed)
            yield "changed", counted(after)


def content(frame: pl.DataFrame) -> Content:
    """Return what a frame holds."""
    import polars as pl

    if not frame.height:
        return 0, 0
    names = sorted(frame.columns)
    plain = frame.select(
        pl.col(name).dt.epoch("us") if frame[name].dtype.is_temporal() else pl.col(name) for name in names
    )
    return frame.height, int(plain.hash_rows(seed=0).cast(pl.Int128).sum()) % 2**64


def raw_content(spec: PipelineSpec) -> Content:
    """Return what ``raw`` holds of the files' own columns."""
    import polars as pl

    raw = StageContext.of(spec, directory=Path(spec.workspace)).workspace.table("raw")
    schema = raw.schema()
    if schema is None:
        return 0, 0
    names = [name for name in schema.names if name not in (FILE, FILE_KEY, READ_AT)]
    rows = total = 0
    for batch in read_batches([chunk.path for chunk in raw.chunks()], columns=names, schema=schema):
        height, value = content(pl.DataFrame(batch))
        rows, total = rows + height, (total + value) % 2**64
    return rows, total


def _spec(home: Path, *, event_time: str, label: str) -> PipelineSpec:
    return PipelineSpec.model_validate(
        {
            "pipeline": "arrivals",
            "workspace": str(home / "workspace"),
            "source": {"uri": str(home / "in" / "*.parquet")},
            "event_time": event_time,
            "labels": {"key": FILE_KEY, "value": label, "labelled_at": READ_AT},
            "features": {"numeric": [label]},
            "resources": {"memory": "512MiB"},
        }
    )


if __name__ == "__main__":
    main()
