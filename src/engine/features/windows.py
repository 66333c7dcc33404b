"""Windows: statistics of the earlier rows, or labels, of a row's key, from binary searches in segments.

A window spans ``(t - gap - length, t - gap]``; with gap 0 ``(t - length, t)``, so that rows at the same instant do not
see one another unless that is asked for. Building segments is in ``segments.py``; precision in ``prefix_sums.py``,
smallest and largest values in ``extremes.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.features.extremes import Which
from engine.features.keys import SortedKeys, key_table, sort_keys
from engine.features.segments import Segment, SegmentRef, open_segment, read_times
from engine.features.tiers import Tiers
from engine.features.window_search import NEVER, Answer, WindowSearch, plan_search
from engine.spec import FeaturesSpec, WindowSpec
from engine.units import microseconds, parse_time

LABEL_MEASURE = "value"
"""The measured column of label events."""

_SUMMED = {"sum", "mean", "std", "rate", "ratio"}
_EXTREMES: tuple[Which, ...] = ("min", "max")
_LONGEST = 2**61  # microseconds; a longer window is as long as all time
_BLOCK_ROWS = 16_384  # searched at once: what is held of them stays in the processor's cache


@dataclass(frozen=True)
class SegmentPlan:
    """The segments that all windows over one key share."""

    keys: tuple[str, ...]
    measures: tuple[str, ...]
    squares: tuple[str, ...] = ()  # the measures that a standard deviation is asked of
    extremes: Mapping[str, tuple[Which, ...]] = field(
        default_factory=dict
    )  # by measure, where min or max is asked of it


def segment_plans(features: FeaturesSpec, *, over: Literal["events", "labels"]) -> tuple[SegmentPlan, ...]:
    """Return one plan for each key of the windows over events, or over labels, in the file's order."""
    asked: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for window in features.windows:
        if window.over != over:
            continue
        mine = asked.setdefault(window.keys, {})
        name = measure_of(window)
        if name is not None:
            mine.setdefault(name, set()).update(window.statistics)
    return tuple(
        SegmentPlan(
            keys,
            tuple(mine),
            tuple(name for name, statistics in mine.items() if "std" in statistics),
            {name: _extremes_of(statistics) for name, statistics in mine.items() if _extremes_of(statistics)},
        )
        for keys, mine in asked.items()
    )


def measure_of(window: WindowSpec) -> str | None:
    """Return the column that a window measures, or None where it only counts."""
    if not _SUMMED & set(window.statistics) and not _extremes_of(window.statistics):
        return None
    return LABEL_MEASURE if window.over == "labels" else window.column


def _extremes_of(statistics: Collection[str]) -> tuple[Which, ...]:
    return tuple(which for which in _EXTREMES if which in statistics)


def window_bytes_per_row(window: WindowSpec) -> int:
    """Return the anonymous bytes a batch's row takes while one window is searched and the next one opened, at most.

    Its time twice and its place, totals of its key for both windows (each row may have one of its own), the features.
    """
    lengths, statistics = len(window.lengths), len(window.names())
    extremes = 9 * len(_extremes_of(window.statistics))
    return 32 + 2 * lengths * (16 + _level_bytes(window) + extremes) + extremes + 9 * statistics


def window_block_bytes(window: WindowSpec, *, rows: int, threads: int) -> int:
    """Return what the blocks take of a batch of so many rows, that so many threads search at once."""
    lengths = len(window.lengths)
    levels = _level_bytes(window)
    held = 8 + (32 + levels if levels else 0) + 9 * len(_extremes_of(window.statistics))
    return min(rows, threads * _BLOCK_ROWS) * (160 + lengths * held + 24 * 16)


def _level_bytes(window: WindowSpec) -> int:
    """Return what the sums of a window's measure take, where they are asked for, and those of its squares."""
    if not _SUMMED & set(window.statistics):
        return 0
    return 24 * (2 if "std" in window.statistics else 1)


class WindowReader:
    """Answers windows from the segments of one key.

    Parameters
    ----------
    segments
        In any order; they hold each row once. How rows are spread over them changes no bit of a result.
    root
        Directory that the refs' paths are relative to.
    threads
        That search at once, each a block of a batch.
    scratch
        Directory for tiers of segments, which many batches are then searched in; the owner's to remove.
    tier_keys
        How many keys the segments of a tier may have, summed.

    Notes
    -----
    Only segments whose time a batch can reach are opened; they are mapped and stay so. Memory is the batch and its
    results (``window_bytes_per_row``), whatever the length of a window and however hot a key.
    """

    def __init__(
        self,
        segments: Sequence[SegmentRef],
        *,
        root: Path,
        threads: int = 1,
        scratch: Path | None = None,
        tier_keys: int = 2**18,
    ) -> None:
        self._refs = list(segments)
        self._root = root
        self._threads = threads
        self._open: dict[int, Segment] = {}
        self._tiers = None if scratch is None else Tiers(scratch, self._segment, most_keys=tier_keys)
        self._lock = Lock()

    def extend(self, segments: Sequence[SegmentRef]) -> None:
        """Add segments of further rows."""
        with self._lock:
            self._refs += segments

    def compute(
        self,
        rows: pa.Table,
        *,
        keys: Sequence[str],
        time: str,
        window: WindowSpec,
        gap: timedelta,
    ) -> dict[str, pa.Array]:
        """Return a window's features by name, each in the order of ``rows``.

        Parameters
        ----------
        rows
            With the columns ``keys`` and ``time``, and for a ratio the window's column.
        keys, time
            Columns of ``rows``; the keys in the order of the segments' own.
        window, gap
            What to compute.

        Returns
        -------
        dict
            count int64: rows, also those whose measure is null; 0 for an empty window.
            sum float64: rounded once from the exact sum of the present values; 0 where there are none.
            mean, rate float64: of the present values; null where there are none.
            std float64: of the sample (n - 1); null with fewer than two present values.
            ratio float64: the row's own value over the mean; null where either is, and where the mean is 0.
            min, max float64: of the present values, compared exactly and rounded once; null where there are none.
            since float64: seconds from the last row in the longest window to the row's time; null where there is none.
            NaN in a window makes all of its column NaN; an infinity makes sum and mean infinite and std NaN, and is a
            value like others to min and max. Floats beyond 2**970 count as infinite in sums; those beyond 2**485 make
            std NaN.

        Raises
        ------
        SourceError
            A row has no time.
        SchemaMismatch
            A segment lacks the measure or its extremes, or its keys are of another type.
        TableError
            A segment is missing or damaged.
        """
        return self.open(rows, keys=keys, time=time, window=window, gap=gap).features()

    def open(
        self,
        rows: pa.Table,
        *,
        keys: Sequence[str],
        time: str,
        window: WindowSpec,
        gap: timedelta,
        in_order: SortedKeys | None = None,
        own: SegmentRef | None = None,
    ) -> OpenWindow:
        """Return a window of a batch with what is known of it by key: the first part of ``compute``, on one thread.

        Several threads may call it; errors are those of ``compute``.

        Parameters
        ----------
        rows, keys, time, window, gap
            As of ``compute``.
        in_order
            The rows' keys and times as ``sort_keys`` returns them, where they are known.
        own
            The segment, one of the reader's, that was built of these rows in that order, where there is one.
        """
        stamps = read_times(rows.column(time), name=time)
        near = stamps - min(microseconds(gap), _LONGEST)
        batch = sort_keys(rows, keys, stamps) if in_order is None else in_order
        values = _own_values(rows, window) if "ratio" in window.statistics else None
        search = self._search(near, batch, keys=tuple(keys), window=window, gap=gap, own=own) if len(stamps) else None
        return OpenWindow(window, search, batch, stamps, near, values, self._threads)

    def _search(
        self,
        near: npt.NDArray[np.int64],
        batch: SortedKeys,
        *,
        keys: tuple[str, ...],
        window: WindowSpec,
        gap: timedelta,
        own: SegmentRef | None,
    ) -> WindowSearch:
        closed = gap > timedelta(0) or window.same_instant
        spans = {length: min(microseconds(length), _LONGEST) for length in sorted(set(window.lengths))}
        ends = near if (near[1:] >= near[:-1]).all() else np.sort(near)
        with self._lock:
            if any(ref.keys != keys for ref in self._refs):
                raise ValueError(f"there are segments of other keys than {keys}")
            plan = plan_search(self._refs, near=ends, spans=spans, closed=closed)
            inside = {length: self._covered(numbers) for length, numbers in plan.inside.items()}
            parts = {number: self._segment(number) for number in plan.parts}
        return WindowSearch(
            plan,
            inside=inside,
            parts=parts,
            own=None if own is None else next((n for n in parts if self._refs[n].path == own.path), None),
            batch=batch,
            spans=spans,
            closed=closed,
            unseeing=_without_key(batch) if window.null_keys == "exclude" else None,
            measure=measure_of(window),
            sums=bool(_SUMMED & set(window.statistics)),
            squares="std" in window.statistics,
            extremes=_extremes_of(window.statistics),
            last="since" in window.statistics,
        )

    def lookup(
        self, keys: Mapping[str, Any], time: datetime, *, window: WindowSpec, gap: timedelta, value: Any = None
    ) -> dict[str, float | int | None]:
        """Return a window's features of one row, to the bit as ``compute`` does.

        Parameters
        ----------
        keys
            Value by column, in the order of the segments' keys.
        time
            The row's; without a zone it is taken as UTC.
        value
            The row's own in the window's column, for a ratio.
        """
        names = tuple(keys)
        rows = key_table(keys)
        stamp = pa.array([parse_time(time)], pa.timestamp("us", tz="UTC"))
        column = "time" if "time" not in names else "".join(names) + "_time"
        rows = rows.append_column(column, stamp)
        if "ratio" in window.statistics and window.column is not None and window.column not in names:
            rows = rows.append_column(window.column, pa.array([value]))
        found = self.compute(rows, keys=names, time=column, window=window, gap=gap)
        return {name: values[0].as_py() for name, values in found.items()}

    def _covered(self, numbers: Sequence[int]) -> list[Segment]:
        """Return what together holds the rows of these segments."""
        return [self._segment(number) for number in numbers] if self._tiers is None else self._tiers.cover(numbers)

    def _segment(self, number: int) -> Segment:
        if number not in self._open:
            self._open[number] = open_segment(self._refs[number], root=self._root)
        return self._open[number]


@dataclass(frozen=True)
class OpenWindow:
    """A window of a batch, ready to be searched."""

    window: WindowSpec
    search: WindowSearch | None  # None: of no rows
    batch: SortedKeys
    stamps: npt.NDArray[np.int64]  # (rows,)
    near: npt.NDArray[np.int64]  # (rows,): the near ends
    own: pa.Array | None  # (rows,): for a ratio
    threads: int

    def features(self) -> dict[str, pa.Array]:
        """Return the features as ``WindowReader.compute`` does: its second part, on all threads."""
        search, names = self.search, self.window.names()
        out = {name: _Column(len(self.stamps), whole=statistic == "count") for _, statistic, name in names}
        if search is None:
            return {name: column.array() for name, column in out.items()}
        ties = _first_at_instant(self.batch, self.near)

        def one(start: int) -> None:
            at = self.batch.order[start : start + _BLOCK_ROWS].astype(np.int64)
            end = start + len(at)
            first = np.arange(start, end) if ties is None else ties[start:end]
            answers = search.run(self.batch.codes(start, end), self.near[at], first)
            values = None if self.own is None else self.own.take(pa.array(at))
            for length, statistic, name in names:
                out[name].put(at, _result(statistic, answers[length], self.stamps, at, values))

        starts = range(0, len(self.stamps), _BLOCK_ROWS)
        if self.threads > 1 and len(starts) > 1:
            with ThreadPoolExecutor(self.threads, thread_name_prefix="headrace-search") as pool:
                list(pool.map(one, starts))
        else:
            for start in starts:
                one(start)
        return {name: column.array() for name, column in out.items()}


class _Column:
    """A feature, filled block by block, by several threads."""

    def __init__(self, rows: int, *, whole: bool) -> None:
        self._values = np.empty(rows, dtype=np.int64 if whole else np.float64)
        self._missing = np.zeros(rows, dtype=bool)

    def put(self, at: npt.NDArray[np.int64], found: tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]) -> None:
        values, missing = found
        self._values[at] = values
        if missing is not None and missing.any():
            self._missing[at] = missing

    def array(self) -> pa.Array:
        """Return what was put; from its buffers: Arrow's own conversion looks at each value."""
        kind = pa.int64() if self._values.dtype == np.int64 else pa.float64()
        missing = int(np.count_nonzero(self._missing))
        valid = pa.py_buffer(np.packbits(~self._missing, bitorder="little")) if missing else None
        buffers = [valid, pa.py_buffer(self._values)]
        return pa.Array.from_buffers(kind, len(self._values), buffers, null_count=missing)


def _first_at_instant(batch: SortedKeys, near: npt.NDArray[np.int64]) -> npt.NDArray[np.int64] | None:
    """Return, of rows in order of key and time, the place of the first one of each row's key and time.

    None where no two rows share an instant.
    """
    if (near[1:] > near[:-1]).all():
        return None
    codes, times = batch.codes(0, len(near)), near[batch.order]
    places = np.arange(len(near), dtype=np.int64)
    places[1:][(codes[1:] == codes[:-1]) & (times[1:] == times[:-1])] = 0
    return np.maximum.accumulate(places, out=places)


def _result(
    statistic: str, answer: Answer, stamps: npt.NDArray[np.int64], at: npt.NDArray[np.int64], own: pa.Array | None
) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]:
    """Return the values of a statistic, and which of them are null (None: none)."""
    if statistic == "count":
        return answer.count, None
    if statistic == "since":
        if answer.last is None:
            raise ValueError("the last times were not asked for")
        never, own_time = answer.last == NEVER, stamps[at]
        return (own_time - np.where(never, own_time, answer.last)) / 1e6, never
    for which, extreme in answer.extremes.items():
        if which == statistic:
            return extreme.result()
    total = answer.total
    if total is None:
        raise ValueError(f"{statistic} needs a measure")
    present = total.present(answer.count)
    if statistic == "sum":
        return total.sum(), None
    if statistic == "std":
        return total.std(answer.count), present < 2
    mean = total.mean(answer.count)
    if statistic != "ratio":
        return mean, present < 1
    if own is None:
        raise ValueError("a ratio needs the rows' own values")
    defined = (present > 0) & (mean != 0.0) & own.is_valid().to_numpy(zero_copy_only=False)
    values = own.fill_null(0.0).to_numpy(zero_copy_only=False)
    with np.errstate(invalid="ignore", over="ignore"):  # infinity over infinity is NaN, as elsewhere
        return np.divide(values, mean, out=np.zeros(len(mean)), where=defined), ~defined


def _own_values(rows: pa.Table, window: WindowSpec) -> pa.Array:
    """Return the rows' own values of the window's column, float64."""
    column = rows.column(window.column)
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return array.cast(pa.float64(), safe=False)  # an integer beyond 2**53 is rounded


def _without_key(batch: SortedKeys) -> npt.NDArray[np.bool_]:
    """Return which distinct keys lack a value in one of their columns."""
    out = np.zeros(batch.size, dtype=bool)
    for column in batch.columns:
        out |= column.codes == 0
    return out
