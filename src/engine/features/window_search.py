"""The search of a batch's windows in open segments: key by key where a segment lies inside all windows, else row by
row.

Which segments there are, and what a window's answers become, is ``windows.py``; sums are ``measures.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.errors import SchemaMismatch
from engine.features.keys import BatchKeys
from engine.features.measures import MeasureLayout, Ranges, Totals
from engine.features.segments import Segment, SegmentRef

Numbers = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).min
"""The last time of a window that holds no row."""


@dataclass
class Answer:
    """What the windows of one length hold."""

    count: Numbers
    total: Totals | None
    last: Numbers | None

    def take(self, at: Numbers) -> Answer:
        """Return the answers at these places, to add more to."""
        total = None if self.total is None else self.total.take(at)
        return Answer(self.count[at], total, None if self.last is None else self.last[at])


@dataclass(frozen=True)
class _Part:
    """A segment that some windows overlap and that does not lie inside all of them."""

    segment: Segment
    index: Numbers  # by distinct key of the batch: its index in the segment, or -1
    lengths: Mapping[timedelta, bool]  # of those windows, and whether all of that length begin before the segment
    to_end: bool  # all windows end after it


class WindowSearch:
    """Windows of one key that end within an extent of time, searched block by block; blocks may be searched at once.

    Parameters
    ----------
    segments
        That the windows may overlap.
    batch
        The distinct keys that will be asked for.
    spans
        Microseconds by length, the shortest first.
    extent
        The first and last near end of a window.
    closed
        Whether the near end is in the window.
    unseeing
        Which distinct keys see nothing; None: all see.
    measure, squares, last
        What is asked for beside counts: sums of a measure, of its squares, the last times of the longest windows.

    Raises
    ------
    SchemaMismatch
        A segment lacks the measure, or its keys are of another type.
    """

    def __init__(
        self,
        segments: Sequence[Segment],
        batch: BatchKeys,
        *,
        spans: Mapping[timedelta, int],
        extent: tuple[int, int],
        closed: bool,
        unseeing: npt.NDArray[np.bool_] | None,
        measure: str | None,
        squares: bool,
        last: bool,
    ) -> None:
        self._measure, self._closed, self._spans = measure, closed, spans
        layouts = [] if measure is None else [_layout(segment, measure) for segment in segments]
        first, final = extent
        everything = np.arange(len(batch.columns[0].codes), dtype=np.int64)
        index = []
        for segment in segments:
            found = segment.find(batch)
            if unseeing is not None:
                found[unseeing] = -1
            index.append(found)
        total = None if measure is None else Totals(len(everything), layouts=layouts, squares=squares)
        known = Answer(np.zeros_like(everything), total, np.full(len(everything), NEVER) if last else None)
        self._known: dict[timedelta, Answer] = {}
        begins: list[dict[timedelta, bool]] = [{} for _ in segments]
        inside = set[int]()
        for length, span in spans.items():
            known = known.take(everything)
            for number, (segment, found) in enumerate(zip(segments, index, strict=True)):
                ref = segment.ref
                if number in inside or ref.time_max <= first - span:
                    continue
                begins[number][length] = final - span < ref.time_min
                if begins[number][length] and self._is_before(ref, first):
                    del begins[number][length]
                    inside.add(number)  # of longer windows, too
                    at = np.flatnonzero(found >= 0)
                    key = found[at]
                    self._add(known, segment, at, key, segment.starts[key], segment.ends[key])
            self._known[length] = known
        self._parts = [
            _Part(segment, found, lengths, self._is_before(segment.ref, first))
            for segment, found, lengths in zip(segments, index, begins, strict=True)
            if lengths
        ]

    def run(self, keys: Numbers, near: Numbers) -> dict[timedelta, Answer]:
        """Return the answers of a block by length.

        Parameters
        ----------
        keys
            (rows,): places among the batch's distinct keys; sorted, with ``near`` within each, it is fast.
        near
            (rows,): microseconds, the near ends of the windows.
        """
        out = {length: self._known[length].take(keys) for length in self._spans}
        for part in self._parts:
            segment, index = part.segment, part.index[keys]
            at = np.flatnonzero((index >= 0) & (near >= segment.ref.time_min))
            if not len(at):
                continue
            key, end = index[at], near[at]
            high = segment.ends[key]
            if not part.to_end:
                _search(segment, key, end, high, where=end <= segment.ref.time_max, closed=self._closed)
            for length, to_start in part.lengths.items():
                if to_start:
                    self._add(out[length], segment, at, key, segment.starts[key], high)
                    continue
                far = end - self._spans[length]
                reached = np.flatnonzero(far < segment.ref.time_max)
                mine, far = key[reached], far[reached]
                low = segment.starts[mine]
                _search(segment, mine, far, low, where=far >= segment.ref.time_min, closed=True)
                self._add(out[length], segment, at[reached], mine, low, high[reached])
        return out

    def _is_before(self, ref: SegmentRef, time: int) -> bool:
        """Return whether a window that ends at ``time`` ends after all of a segment."""
        return ref.time_max < time or (self._closed and ref.time_max == time)

    def _add(self, into: Answer, segment: Segment, at: Numbers, key: Numbers, low: Numbers, high: Numbers) -> None:
        some = high > low
        if not some.all():
            at, key, low, high = at[some], key[some], low[some], high[some]
        if not len(at):
            return
        places = slice(None) if len(at) == len(into.count) else at
        into.count[places] += high - low
        if self._measure is not None and into.total is not None:
            ranges = Ranges(places, low, high, segment.starts[key])
            into.total.add(segment.layouts[self._measure], segment.arrays[self._measure], ranges)
        if into.last is not None:
            into.last[places] = np.maximum(into.last[places], segment.time_at(high - 1))


def _search(
    segment: Segment, key: Numbers, time: Numbers, into: Numbers, *, where: npt.NDArray[np.bool_], closed: bool
) -> None:
    """Put the first row of each key that is later than its time, or not earlier, into the places ``where``."""
    side: Literal["left", "right"] = "right" if closed else "left"
    if where.all():
        into[:] = segment.position(key, time, side=side)
    elif where.any():
        into[where] = segment.position(key[where], time[where], side=side)


def _layout(segment: Segment, measure: str) -> MeasureLayout:
    if measure not in segment.layouts:
        raise SchemaMismatch(
            f"window segment {segment.ref.path} holds no sums of {measure!r}",
            hint="it was built for other windows: prepare the pipeline anew",
        )
    return segment.layouts[measure]
