"""The search of a batch's windows in open segments: key by key where a segment lies inside all of them, else row by
row.

Which segments there are, and what a window's answers become, is ``windows.py``; sums are ``totals.py``, smallest and
largest values ``extremes.py``, distinct values ``distinct.py``, and ``distinct_search.py`` in segments inside windows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import numpy.typing as npt

from engine.errors import SchemaMismatch
from engine.features.distinct import count_distinct
from engine.features.distinct_search import InsideDistinct, distinct_column
from engine.features.extremes import Extreme, Which, range_extreme
from engine.features.keys import SortedKeys
from engine.features.measures import MeasureLayout
from engine.features.segments import Runs, Segment, SegmentRef
from engine.features.totals import Totals

Numbers = npt.NDArray[np.int64]

NEVER = np.iinfo(np.int64).min
"""The last time of a window that holds no row."""


@dataclass
class Answer:
    """What the windows of one length hold."""

    count: Numbers
    total: Totals | None
    last: Numbers | None
    extremes: Mapping[Which, Extreme]
    distinct: Numbers | None = None  # of rows only: nothing of it is known by key

    def take(self, at: Numbers) -> Answer:
        """Return the answers at these places, to add more to."""
        total = None if self.total is None else self.total.take(at)
        last = None if self.last is None else self.last.take(at)
        return Answer(
            self.count.take(at), total, last, {which: found.take(at) for which, found in self.extremes.items()}
        )


@dataclass(frozen=True)
class Reach:
    """How the windows of one length lie over a segment that is not inside all of them."""

    begins: bool  # all begin before its first row
    few: bool  # most do not overlap it: the others are looked for


@dataclass(frozen=True)
class SearchPlan:
    """Which segments, by number, windows overlap, and how."""

    inside: Mapping[timedelta, tuple[int, ...]]  # of all windows from this length on, not of shorter ones
    parts: Mapping[int, Mapping[timedelta, Reach]]
    ends: frozenset[int]  # of the parts: before the end of all windows


def plan_search(
    refs: Sequence[SegmentRef], *, near: Numbers, spans: Mapping[timedelta, int], closed: bool
) -> SearchPlan:
    """Return how windows lie over segments.

    Parameters
    ----------
    near
        (rows,), at least one: microseconds, the near ends of the windows, in ascending order.
    spans
        Microseconds by length, the shortest first.
    closed
        Whether the near end is in the window.
    """
    first, final, rows = int(near[0]), int(near[-1]), len(near)
    inside: dict[timedelta, list[int]] = {length: [] for length in spans}
    parts: dict[int, dict[timedelta, Reach]] = {}
    ends = set[int]()
    for number, ref in enumerate(refs):
        if not ref.rows or ref.time_min > final or (ref.time_min == final and not closed):
            continue
        if ref.time_max < first or (closed and ref.time_max == first):
            ends.add(number)
        for length, span in spans.items():
            if ref.time_max <= first - span:
                continue
            begins = final - span < ref.time_min
            if begins and number in ends:
                inside[length].append(number)  # and of longer windows
                break
            begun = int(np.searchsorted(near, ref.time_min, side="left" if closed else "right"))
            live = int(np.searchsorted(near, ref.time_max + span, side="left")) - begun
            if live > 0:
                parts.setdefault(number, {})[length] = Reach(begins, few=2 * live < rows)
    return SearchPlan(
        {length: tuple(numbers) for length, numbers in inside.items()}, parts, frozenset(ends & parts.keys())
    )


@dataclass(frozen=True)
class _Part:
    """A segment that some windows overlap and that does not lie inside all of them."""

    segment: Segment
    runs: Runs  # by distinct key of the batch
    ends: bool
    own: bool  # it holds the batch's rows, in their order
    reach: Mapping[timedelta, Reach]

    @property
    def searched(self) -> bool:
        """Whether any row has to be searched for."""
        return not (self.ends or self.own) or any(how.few or not how.begins for how in self.reach.values())


class WindowSearch:
    """Windows of one key, searched block by block; blocks may be searched at once.

    Of a segment, a window holds what comes before its end less what comes before its begin. Where an end, or a begin,
    is the same for all rows of a key, it is looked up once a key; else each row is searched for. What cannot be
    subtracted, last times and extremes, is looked up once a key where both are, else of each row's begin and end.

    Parameters
    ----------
    plan
        How the windows lie over the segments.
    inside
        By length, what holds the rows of the segments that the plan has inside: these, or tiers.
    parts
        The plan's parts, by number.
    own
        The part, if there is one, that was built of the batch: without a search, it is known where its rows lie.
    batch
        The keys that will be asked for.
    spans, closed
        As of ``plan_search``.
    unseeing
        Which distinct keys see nothing; None: all see.
    measure
        Whose sums or extremes are asked for, None: of none.
    sums, squares, extremes, last
        What is asked for beside counts: sums of the measure, of its squares, its extremes, the last times of the
        longest windows.
    distinct
        The column whose distinct values are asked for, None: of none.

    Raises
    ------
    SchemaMismatch
        A segment lacks the measure, its extremes or its distinct values, or its keys are of another type.
    """

    def __init__(
        self,
        plan: SearchPlan,
        *,
        inside: Mapping[timedelta, Sequence[Segment]],
        parts: Mapping[int, Segment],
        own: int | None,
        batch: SortedKeys,
        spans: Mapping[timedelta, int],
        closed: bool,
        unseeing: npt.NDArray[np.bool_] | None,
        measure: str | None,
        sums: bool,
        squares: bool,
        extremes: Sequence[Which],
        last: bool,
        distinct: str | None,
    ) -> None:
        self._measure, self._closed, self._spans, self._distinct = measure, closed, spans, distinct
        self._longest = max(spans) if last else None
        everything = np.arange(batch.size, dtype=np.int64)
        total = None
        if measure is not None:
            segments = [*parts.values(), *(segment for found in inside.values() for segment in found)]
            layouts = [_layout(segment, measure, extremes) for segment in segments]
            total = Totals(batch.size, layouts=layouts, squares=squares) if sums else None

        self._needs_starts = (
            last or bool(extremes) or distinct is not None or (total is not None and total.needs_starts)
        )

        def found_in(segment: Segment) -> Numbers:
            index = segment.keys.find(batch.columns)
            if unseeing is not None:
                index[unseeing] = -1
            return index

        self.inside_distinct: InsideDistinct | None = None
        if distinct is not None:
            for segment in parts.values():
                distinct_column(segment, distinct)
            self.inside_distinct = InsideDistinct(distinct, inside=inside, spans=spans, batch=batch, found_in=found_in)
        self._parts = [
            _Part(
                segment,
                segment.runs(found_in(segment)),
                number in plan.ends,
                number == own and not closed and unseeing is None,
                plan.parts[number],
            )
            for number, segment in parts.items()
        ]
        so_far = Answer(
            np.zeros_like(everything),
            total,
            np.full(batch.size, NEVER) if last else None,
            {which: Extreme(batch.size, which) for which in extremes},
        )
        self._known: dict[timedelta, Answer] = {}
        for length in spans:
            for segment in inside[length]:
                index = found_in(segment)
                at = np.flatnonzero(index >= 0)
                key = index[at]
                start, end = segment.bounds[key], segment.bounds[key + 1]
                self._add([so_far], segment, end, start, at=at)
                self._add([so_far], segment, start, start, at=at, less=True)
                self._see_last(so_far, segment, start, end, at=at)
                self._see_extremes(so_far, segment, start, end, at=at)
            known = so_far.take(everything)
            for part in self._parts:
                how = part.reach.get(length)
                if how is None or how.few:
                    continue
                if part.ends:
                    self._add([known], part.segment, part.runs.end, part.runs.start)
                if how.begins:
                    self._add([known], part.segment, part.runs.start, part.runs.start, less=True)
            self._known[length] = known

    def run(
        self, keys: Numbers, near: Numbers, first: Numbers, *, inside: Mapping[timedelta, Numbers]
    ) -> dict[timedelta, Answer]:
        """Return the answers of a block by length.

        Parameters
        ----------
        keys
            (rows,): places among the batch's distinct keys; sorted, with ``near`` within each, it is fast.
        near
            (rows,): microseconds, the near ends of the windows.
        first
            (rows,): of the batch in order, the place of the first row of each row's key and time.
        inside
            What ``inside_distinct`` counts of these rows by length, to add more to; empty where it is None.
        """
        out = {length: self._known[length].take(keys) for length in self._spans}
        for length, counts in inside.items():
            out[length].distinct = counts
        for part in self._parts:
            self._search(part, keys, near, first, out)
        return out

    def _search(
        self, part: _Part, keys: Numbers, near: Numbers, first: Numbers, out: Mapping[timedelta, Answer]
    ) -> None:
        """Add what the windows of a block hold of one segment, beside what is known by key."""
        segment, runs = part.segment, part.runs
        place = runs.place.take(keys) if part.searched else keys
        starts = runs.start.take(keys) if self._needs_starts else keys  # else nobody looks at them
        many = [length for length, how in part.reach.items() if not how.few]
        high = place
        if part.ends:
            high = runs.end.take(keys)
        elif many:
            high = first if part.own else segment.position(place, near, after=self._closed)
        if many and not part.ends:
            self._add([out[length] for length in many], segment, high, starts)
        for length, how in part.reach.items():
            if how.few:
                self._search_few(part, length, keys, near, out[length])
                continue
            low = starts
            if not how.begins:
                low = segment.position(place, near - self._spans[length], after=True)
                self._add([out[length]], segment, low, starts, less=True)
            if length == self._longest:
                self._see_last(out[length], segment, low, high)
            self._see_extremes(out[length], segment, low, high)
            self._see_distinct(out[length], segment, low, high, near - self._spans[length])

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
            at, low, high, starts, end = at[some], low[some], high[some], starts[some], end[some]
        self._add([into], segment, high, starts, at=at)
        self._add([into], segment, low, starts, at=at, less=True)
        if length == self._longest:
            self._see_last(into, segment, low, high, at=at)
        self._see_extremes(into, segment, low, high, at=at)
        self._see_distinct(into, segment, low, high, end - span, at=at)

    def _add(
        self,
        answers: Sequence[Answer],
        segment: Segment,
        rows: Numbers,
        starts: Numbers,
        *,
        at: Numbers | slice = slice(None),
        less: bool = False,
    ) -> None:
        """Add what comes before ``rows`` of a segment, in runs that begin at ``starts``, or take it away."""
        counted, before = segment.counted(rows), None
        for into in answers:
            if less:
                into.count[at] -= counted
            else:
                into.count[at] += counted
            if self._measure is None or into.total is None:
                continue
            if before is None:
                layout, arrays = segment.layouts[self._measure], segment.arrays[self._measure]
                before = into.total.before(layout, arrays, rows, starts, counted=counted)
            into.total.add(before, at=at, less=less)

    def _see_last(
        self, into: Answer, segment: Segment, low: Numbers, high: Numbers, *, at: Numbers | None = None
    ) -> None:
        if into.last is None:
            return
        some = np.flatnonzero(high > low)
        where = some if at is None else at[some]
        into.last[where] = np.maximum(into.last[where], segment.time_at(high[some] - 1))

    def _see_extremes(
        self, into: Answer, segment: Segment, low: Numbers, high: Numbers, *, at: Numbers | slice = slice(None)
    ) -> None:
        if self._measure is None:
            return
        for which, extreme in into.extremes.items():
            extreme.add(at, *range_extreme(segment.arrays[self._measure], low, high, which))

    def _see_distinct(
        self,
        into: Answer,
        segment: Segment,
        low: Numbers,
        high: Numbers,
        far: Numbers,
        *,
        at: Numbers | slice = slice(None),
    ) -> None:
        if self._distinct is None or into.distinct is None:
            return
        arrays = segment.distinct[self._distinct].arrays
        into.distinct[at] += count_distinct(arrays, low, high, far, time_min=segment.ref.time_min)


def _layout(segment: Segment, measure: str, extremes: Sequence[Which]) -> MeasureLayout:
    layout = segment.layouts.get(measure)
    lacks = ["sums"] if layout is None else [which for which in extremes if which not in layout.extremes]
    if layout is None or lacks:
        raise SchemaMismatch(
            f"window segment {segment.ref.path} holds no {' and no '.join(lacks)} of {measure!r}",
            hint="it was built for other windows: prepare the pipeline anew",
        )
    return layout
