"""A tier: what several segments hold of each key, as a segment of one row a key, for windows that they lie inside of.

A batch then meets few of them instead of many segments. Where a window ends inside a segment, its rows are needed: they
are in ``segments.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

import numpy as np

from engine.features.distinct_columns import DistinctColumn, merged_column
from engine.features.extremes import Extreme, Which, range_extreme
from engine.features.keys import build_dictionary, merged_columns
from engine.features.segments import Clock, Segment, SegmentRef, open_segment, write_segment
from engine.features.totals import Totals

FAN_IN = 4
TIER_KEY_BYTES = 240
"""What making a tier takes in memory, at most, for each key of the segments that it is made of."""

TIER_PAIR_BYTES = 160
"""What each column whose distinct values are counted adds to that, at most, for each of its pairs of key and value."""

_ASKED = 2  # times before a tier is worth making


class Tiers:
    """Covers consecutive segments with tiers, made when they are asked for again; they are files of the owner's.

    Parameters
    ----------
    root
        Directory for the files.
    opened
        Returns the segment of a number; segments are numbered once and for all.
    most_keys
        Of the segments that a tier is made of, summed; and how many pairs of a key and a value that are counted. A
        tier of more pairs does without that column.
    """

    def __init__(self, root: Path, opened: Callable[[int], Segment], *, most_keys: int) -> None:
        self._most_keys = most_keys
        self._root = root
        self._opened = opened
        self._asked: Counter[tuple[int, int]] = Counter()
        self._made: dict[tuple[int, int], Segment | None] = {}

    def cover(self, numbers: Collection[int], *, distinct: str | None = None) -> list[Segment]:
        """Return segments and tiers that together hold what these segments do; all with the column ``distinct``."""
        left, out = set(numbers), []
        size = FAN_IN
        while size * FAN_IN <= len(left):
            size *= FAN_IN
        while size >= FAN_IN:
            for first in sorted({number - number % size for number in left}):
                group = range(first, first + size)
                tier = self._tier(first, size) if left.issuperset(group) else None
                if tier is not None and (distinct is None or distinct in tier.distinct):
                    out.append(tier)
                    left.difference_update(group)
            size //= FAN_IN
        return out + [self._opened(number) for number in sorted(left)]

    def _tier(self, first: int, size: int) -> Segment | None:
        """Return the tier of these segments, None where it is not worth making yet, or has too many keys."""
        if size == 1:
            return self._opened(first)
        name = (first, size)
        if name not in self._made:
            self._asked[name] += 1
            if self._asked[name] < _ASKED:
                return None
            step = size // FAN_IN
            parts = [self._tier(at, step) for at in range(first, first + size, step)]
            few = [part for part in parts if part is not None]
            if len(few) < len(parts) and any((at, step) not in self._made for at in range(first, first + size, step)):
                return None
            fits = len(few) == len(parts) and sum(part.keys.size for part in few) <= self._most_keys
            path = self._root / f"{few[0].ref.path.rsplit('/', 1)[-1]}-{first}-{size}.tier" if fits else None
            self._made[name] = None if path is None else self._build(few, path)
        return self._made[name]

    def _build(self, parts: Sequence[Segment], path: Path) -> Segment:
        return open_segment(build_tier(parts, path=path, most_pairs=self._most_keys), root=self._root)


def build_tier(segments: Sequence[Segment], *, path: Path, most_pairs: int) -> SegmentRef:
    """Write a tier of segments of the same keys and measures, and return its ref, relative to its directory."""
    columns = merged_columns([segment.keys for segment in segments])
    dictionary, _ = build_dictionary(columns)
    size = dictionary.size
    counts, last = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    measures = [name for name in segments[0].layouts if all(name in segment.layouts for segment in segments)]
    totals = {
        name: Totals(
            size,
            layouts=[segment.layouts[name] for segment in segments],
            squares=all(segment.layouts[name].has_squares for segment in segments),
        )
        for name in measures
    }
    extremes = {
        name: {which: Extreme(size, which) for which in _kept([segment.layouts[name].extremes for segment in segments])}
        for name in measures
    }
    low = min(segment.ref.time_min for segment in segments)
    for segment in segments:
        runs = segment.runs(segment.keys.find(columns))
        end, start = segment.counted(runs.end), segment.counted(runs.start)
        counts += end - start
        for name, total in totals.items():
            layout, arrays = segment.layouts[name], segment.arrays[name]
            total.add(total.before(layout, arrays, runs.end, runs.start, counted=end))
            total.add(total.before(layout, arrays, runs.start, runs.start, counted=start), less=True)
            for which, extreme in extremes[name].items():
                extreme.add(slice(None), *range_extreme(arrays, runs.start, runs.end, which))
        some = np.flatnonzero(runs.end > runs.start)
        last[some] = np.maximum(last[some], segment.time_at(runs.end[some] - 1) - low)
    bounds = np.arange(size + 1)
    if not counts[0]:  # a dictionary of one column has a place for null, also where no row lacks a key
        bounds[0] = 1
    return write_segment(
        path,
        path.parent,
        dictionary=dictionary,
        clock=Clock(low, int(last.max(initial=0)) + 1, None),
        places=last,
        bounds=bounds,
        counts=np.append(0, np.cumsum(counts)),
        measures={name: total.as_measure(extremes[name]) for name, total in totals.items()},
        extent=(low, max(segment.ref.time_max for segment in segments)),
        distinct=_merged_columns(segments, size=size, most_pairs=most_pairs),
    )


def _merged_columns(segments: Sequence[Segment], *, size: int, most_pairs: int) -> dict[str, DistinctColumn]:
    """Return the columns that all segments count and whose pairs are not too many."""
    out = {}
    for name in segments[0].distinct:
        parts = [segment.distinct[name] for segment in segments if name in segment.distinct]
        if len(parts) == len(segments) and sum(part.pairs.pairs.size for part in parts) <= most_pairs:
            out[name] = merged_column(parts, size=size)
    return out


def _kept(extremes: Sequence[tuple[Which, ...]]) -> list[Which]:
    """Return which extremes all segments keep."""
    return [which for which in extremes[0] if all(which in others for others in extremes)]
