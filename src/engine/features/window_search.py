"""The search of a batch's windows in open segments: key by key where a segment lies inside all of them, else row by
row.

Which segments there are, and what a window's answers become, is ``windows.py``; sums are ``measures.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from engine.errors import SchemaMismatch
from engine.features.keys import SortedKeys
from engine.features.measures import MeasureLayout, Totals
from engine.features.segments import Runs, Segment, SegmentRef

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
class _Reach:
    """How the windows of one length lie over a segment that is not inside all of them."""

    begins: bool  # all begin before its first row
    few: bool  # most do not overlap it: the others are looked for


@dataclass(frozen=True)
class _Part:
    """A segment that some windows overlap and that does not lie inside all of them."""

    segment: Segment
    runs: Runs  # by distinct key of the batch
    ends: bool  # all windows end after its last row
    reach: Mapping[timedelta, _Reach]


class WindowSearch:
    """Windows of one key, searched block by block; blocks may be searched at once.

    Of a segment, a window holds what comes before its end less what comes before its begin. Where an end, or a begin,
    is the same for all rows of a key, it is looked up once a key; else each row is searched for.

    Parameters
    ----------
    segments
        That the windows may overlap.
    batch
        The keys that will be asked for.
    near
        (rows,): microseconds, the near ends of the windows, in ascending order.
    spans
        Microseconds by length, the shortest first.
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
        batch: SortedKeys,
        *,
        near: Numbers,
        spans: Mapping[timedelta, int],
        closed: bool,
        unseeing: npt.NDArray[np.bool_] | None,
        measure: str | None,
        squares: bool,
        last: bool,
    ) -> None:
        self._measure, self._closed, self._spans = measure, closed, spans
        self._longest = max(spans) if last else None
        layouts = [] if measure is None else [_layout(segment, measure) for segment in segments]
        everything = np.arange(batch.size, dtype=np.int64)
        found = []
        for segment in segments:
            index = segment.keys.find(batch.columns)
            if unseeing is not None:
                index[unseeing] = -1
            found.append(segment.runs(index))
        total = None if measure is None else Totals(batch.size, layouts=layouts, squares=squares)
        inside = Answer(np.zeros_like(everything), total, np.full(batch.size, NEVER) if last else None)
        reach: list[dict[timedelta, _Reach]] = [{} for _ in segments]
        done = set[int]()
        self._known: dict[timedelta, Answer] = {}
        for length, span in spans.items():
            for number, (segment, runs) in enumerate(zip(segments, found, strict=True)):
                if number in done:  # inside of longer windows, too
                    continue
                how = self._reach(segment.ref, near, span)
                if how is None:
                    continue
                if how.begins and self._all_end_after(segment.ref, near):
                    done.add(number)
                    self._add(inside, segment, runs.end, runs.start)
                    self._add(inside, segment, runs.start, runs.start, less=True)
                    self._see_last(inside, segment, runs.start, runs.end)
                else:
                    reach[number][length] = how
            known = inside.take(everything)
            for number, (segment, runs) in enumerate(zip(segments, found, strict=True)):
                how = reach[number].get(length)
                if how is None or how.few:
                    continue
                if self._all_end_after(segment.ref, near):
                    self._add(known, segment, runs.end, runs.start)
                if how.begins:
                    self._add(known, segment, runs.start, runs.start, less=True)
            self._known[length] = known
        self._parts = [
            _Part(segment, runs, self._all_end_after(segment.ref, near), lengths)
            for segment, runs, lengths in zip(segments, found, reach, strict=True)
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
            self._search(part, keys, near, out)
        return out

    def _search(self, part: _Part, keys: Numbers, near: Numbers, out: Mapping[timedelta, Answer]) -> None:
        """Add what the windows of a block hold of one segment, beside what is known by key."""
        segment, runs = part.segment, part.runs
        place, starts = runs.place[keys], runs.start[keys]
        many = [length for length, how in part.reach.items() if not how.few]
        high = runs.end[keys] if part.ends else segment.position(place, near, after=self._closed) if many else place
        if many and not part.ends:
            self._add_to([out[length] for length in many], segment, high, starts)
        for length, how in part.reach.items():
            if how.few:
                self._search_few(part, length, keys, near, out[length])
                continue
            low = starts
            if not how.begins:
                low = segment.position(place, near - self._spans[length], after=True)
                self._add_to([out[length]], segment, low, starts, less=True)
            if length == self._longest:
                self._see_last(out[length], segment, low, high)

    def _search_few(self, part: _Part, length: timedelta, keys: Numbers, near: Numbers, into: Answer) -> None:
        """Add what those windows hold that overlap a segment: nothing of it is known by key."""
        segment, span = part.segment, self._spans[length]
        begun = near >= segment.ref.time_min if self._closed else near > segment.ref.time_min
        at = np.flatnonzero(begun & (near - span < segment.ref.time_max))
        if not len(at):
            return
        key, end = keys[at], near[at]
        place, starts = part.runs.place[key], part.runs.start[key]
        low, high = starts, part.runs.end[key]
        if not part.reach[length].begins:
            low = segment.position(place, end - span, after=True)
        if not part.ends:
            high = segment.position(place, end, after=self._closed)
        some = high > low
        if not some.all():
            at, low, high, starts = at[some], low[some], high[some], starts[some]
        self._add(into, segment, high, starts, at=at)
        self._add(into, segment, low, starts, at=at, less=True)
        if length == self._longest:
            self._see_last(into, segment, low, high, at=at)

    def _reach(self, ref: SegmentRef, near: Numbers, span: int) -> _Reach | None:
        """Return how windows that end at ``near``, in ascending order, lie over a segment; None: none overlaps it."""
        first = int(np.searchsorted(near, ref.time_min, side="left" if self._closed else "right"))
        live = int(np.searchsorted(near, ref.time_max + span, side="left")) - first
        if live <= 0:
            return None
        return _Reach(begins=int(near[-1]) - span < ref.time_min, few=2 * live < len(near))

    def _all_end_after(self, ref: SegmentRef, near: Numbers) -> bool:
        first = int(near[0])
        return ref.time_max < first or (self._closed and ref.time_max == first)

    def _add(
        self,
        into: Answer,
        segment: Segment,
        rows: Numbers,
        starts: Numbers,
        *,
        at: Numbers | slice = slice(None),
        less: bool = False,
    ) -> None:
        """Add what comes before ``rows`` of a segment, in runs that begin at ``starts``, or take it away."""
        self._add_to([into], segment, rows, starts, at=at, less=less)

    def _add_to(
        self,
        answers: Sequence[Answer],
        segment: Segment,
        rows: Numbers,
        starts: Numbers,
        *,
        at: Numbers | slice = slice(None),
        less: bool = False,
    ) -> None:
        before = None
        for into in answers:
            if less:
                into.count[at] -= rows
            else:
                into.count[at] += rows
            if self._measure is None or into.total is None:
                continue
            if before is None:
                before = into.total.before(
                    segment.layouts[self._measure], segment.arrays[self._measure], rows, starts
                )
            into.total.add(before, at=at, less=less)

    def _see_last(
        self, into: Answer, segment: Segment, low: Numbers, high: Numbers, *, at: Numbers | None = None
    ) -> None:
        if into.last is None:
            return
        some = np.flatnonzero(high > low)
        where = some if at is None else at[some]
        into.last[where] = np.maximum(into.last[where], segment.time_at(high[some] - 1))


def _layout(segment: Segment, measure: str) -> MeasureLayout:
    if measure not in segment.layouts:
        raise SchemaMismatch(
            f"window segment {segment.ref.path} holds no sums of {measure!r}",
            hint="it was built for other windows: prepare the pipeline anew",
        )
    return segment.layouts[measure]
