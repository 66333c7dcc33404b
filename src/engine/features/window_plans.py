"""What windows ask of segments, and what they take in memory: pure arithmetic over the pipeline file.

How segments are searched is in ``windows.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

from engine.features.extremes import Which
from engine.spec import FeaturesSpec, WindowSpec
from engine.units import microseconds

LABEL_MEASURE = "value"
"""The measured column of label events."""

SUMMED = frozenset({"sum", "mean", "std", "rate", "ratio"})
"""Statistics that are had from sums of the measure."""

BLOCK_ROWS = 32_768
"""Searched at once: what is held of them stays in the processor's cache."""

_EXTREMES: tuple[Which, ...] = ("min", "max")
_COUNTING_BYTES = 128  # of a row, while its distinct values are counted in one segment
_LONGEST = 2**61  # microseconds; a longer window is as long as all time


@dataclass(frozen=True)
class SegmentPlan:
    """The segments that all windows over one key share."""

    keys: tuple[str, ...]
    measures: tuple[str, ...]
    squares: tuple[str, ...] = ()  # the measures that a standard deviation is asked of
    extremes: Mapping[str, tuple[Which, ...]] = field(
        default_factory=dict
    )  # by measure, where min or max is asked of it
    distinct: Mapping[str, int] = field(
        default_factory=dict
    )  # by column whose distinct values are counted: the longest of their windows, in microseconds


def segment_plans(features: FeaturesSpec, *, over: Literal["events", "labels"]) -> tuple[SegmentPlan, ...]:
    """Return one plan for each key of the windows over events, or over labels, in the file's order."""
    asked: dict[tuple[str, ...], dict[str, set[str]]] = {}
    counted: dict[tuple[str, ...], dict[str, int]] = {}
    for window in features.windows:
        if window.over != over:
            continue
        mine = asked.setdefault(window.keys, {})
        name = measure_of(window)
        if name is not None:
            mine.setdefault(name, set()).update(window.statistics)
        column, longest = distinct_of(window), max(map(length_of, window.lengths))
        if column is not None:
            reaches = counted.setdefault(window.keys, {})
            reaches[column] = max(longest, reaches.get(column, 0))
    return tuple(
        SegmentPlan(
            keys,
            tuple(mine),
            tuple(name for name, statistics in mine.items() if "std" in statistics),
            {name: extremes_of(statistics) for name, statistics in mine.items() if extremes_of(statistics)},
            counted.get(keys, {}),
        )
        for keys, mine in asked.items()
    )


def measure_of(window: WindowSpec) -> str | None:
    """Return the column that a window measures, or None where it only counts."""
    if not SUMMED & set(window.statistics) and not extremes_of(window.statistics):
        return None
    return LABEL_MEASURE if window.over == "labels" else window.column


def distinct_of(window: WindowSpec) -> str | None:
    """Return the column whose distinct values a window counts, or None where it counts none."""
    return window.column if "distinct" in window.statistics else None


def length_of(length: timedelta) -> int:
    """Return a window's length in microseconds, or of one that is longer, that of all time."""
    return min(microseconds(length), _LONGEST)


def extremes_of(statistics: Collection[str]) -> tuple[Which, ...]:
    """Return which of min and max are among statistics."""
    return tuple(which for which in _EXTREMES if which in statistics)


def window_bytes_per_row(window: WindowSpec) -> int:
    """Return the anonymous bytes a batch's row takes while one window is searched and the next one opened, at most.

    Its time twice and its place, totals of its key for both windows (each row may have one of its own), the features.
    """
    lengths, statistics = len(window.lengths), len(window.names())
    extremes = 9 * len(extremes_of(window.statistics))
    distinct = 0 if distinct_of(window) is None else 8 * lengths
    return 32 + distinct + 2 * lengths * (16 + _level_bytes(window) + extremes) + extremes + 9 * statistics


def search_threads(threads: int) -> int:
    """Return how many of the threads search a span while the next one is read and the one before is written.

    A thread more than processors makes all of them slower.
    """
    return max(1, threads - 1)


def window_block_bytes(window: WindowSpec, *, rows: int, threads: int) -> int:
    """Return what the blocks take of a batch of so many rows, that so many threads search at once."""
    lengths = len(window.lengths)
    levels = _level_bytes(window)
    held = 8 + (32 + levels if levels else 0) + 9 * len(extremes_of(window.statistics))
    counting = 0 if distinct_of(window) is None else _COUNTING_BYTES
    return min(rows, threads * BLOCK_ROWS) * (160 + lengths * held + 24 * 16 + counting)


def _level_bytes(window: WindowSpec) -> int:
    """Return what the sums of a window's measure take, where they are asked for, and those of its squares."""
    if not SUMMED & set(window.statistics):
        return 0
    return 24 * (2 if "std" in window.statistics else 1)
