"""How preparing windows grows with rows, and what one more day costs on top of 24: the pipeline of ``windows.py``.

Each run is Headrace's prepare stage in a control group of 1 GiB; the days are the same, the rows lie denser. One more
minute tells how much of a day are starts, which a run has however many rows it prepares.
``python -m benchmarks.windows_growth [--rows N N ...] [--amounts float|cents]``
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from datetime import timedelta
from pathlib import Path

from benchmarks.cards import DAYS, generate
from benchmarks.results import Contender, write_results
from benchmarks.windows import COLUMNS, run

_ROWS = (12_000_000, 24_000_000, 48_000_000, 96_000_000)
_LEAST_BASE = 48_000_000  # one more day comes on top of so many rows, and more


def main() -> None:
    """Run each number of rows once, and the day after that, and write ``benchmarks/results/windows_growth.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=list(_ROWS))
    parser.add_argument("--amounts", choices=sorted(COLUMNS), default="float")
    given = parser.parse_args()
    column, found = COLUMNS[given.amounts], dict[str, Contender]()
    for rows in given.rows:
        with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
            home = Path(scratch).absolute()
            generate(home, rows=rows)
            found[f"{rows // 1_000_000} M"] = run("headrace", home, rows=rows, column=column, keep=True)
            if rows >= _LEAST_BASE:
                done, step = rows, timedelta(days=DAYS) / rows
                for name, more in zip(_more(rows), (rows // DAYS, rows // DAYS // 1_440), strict=True):
                    generate(home, rows=done + more, begin=done, step=step)
                    done += more
                    found[name] = run("headrace", home, rows=done, column=column, keep=True)
    path = write_results("windows_growth", found)
    runs = [(one.rows, one) for name, one in found.items() if not name.startswith("one more")]
    print(f"seconds grow with rows to the power of {_exponent([(rows, one.seconds) for rows, one in runs]):.3f}")
    peaks = [one.figures["task_peak_bytes"] for _, one in runs]
    print(f"the largest peak of a task is {max(peaks) / min(peaks):.3f} of the smallest")
    for rows in given.rows:
        if rows >= _LEAST_BASE:
            whole, day, starts = (found[name].seconds for name in (f"{rows // 1_000_000} M", *_more(rows)))
            print(f"{_more(rows)[0]} costs {day / whole * DAYS:.2f}/{DAYS} of {DAYS} days")
            print(f"and {(day - starts) / (whole - starts) * DAYS:.2f}/{DAYS} without {starts:.2f} s of starts in each")
    print(f"wrote {path}")


def _more(rows: int) -> tuple[str, str]:
    base = f"{rows // 1_000_000} M"
    return f"one more day on {base}", f"one more minute on {base}"


def _exponent(points: list[tuple[int, float]]) -> float:
    """Return the slope of seconds over rows, both as logarithms, by least squares."""
    xs, ys = [math.log(rows) for rows, _ in points], [math.log(seconds) for _, seconds in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True)) / (sum((a - x) ** 2 for a in xs) or math.inf)


if __name__ == "__main__":
    main()
