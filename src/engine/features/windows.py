"""Windows: statistics of the earlier rows, or labels, of a row's key, from binary searches in segments.

A window spans ``(t - gap - length, t - gap]``; with gap 0 ``(t - length, t)``, so that rows at the same instant do not
see one another unless that is asked for. What windows ask of segments is in ``window_plans.py``, building these in
``segments.py``; precision in ``prefix_sums.py``, smallest and largest values in ``extremes.py``, distinct ones in
``distinct.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.features.keys import SortedKeys, key_table, sort_keys
from engine.features.measures import nearest
from engine.features.open_windows import OpenWindow
from engine.features.segments import Segment, SegmentRef, open_segment, read_times
from engine.features.tiers import Tiers
from engine.features.window_plans import SUMMED, distinct_of, extremes_of, length_of, measure_of
from engine.features.window_search import WindowSearch, plan_search
from engine.spec import WindowSpec
from engine.units import parse_time


class WindowReader:
    """Answers windows from the segments of one key.

    Parameters
    ----------
    segments
        In any order; they hold each row once. How rows are spread over them changes no bit of a result. Those that
        count distinct values follow one another in time, and were built in that order.
    root
        Directory that the refs' paths are relative to.
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
        scratch: Path | None = None,
        tier_keys: int = 2**18,
    ) -> None:
        self._refs = list(segments)
        self._root = root
        self._open: dict[int, Segment] = {}
        self._tiers = None if scratch is None else Tiers(scratch, self._segment, most_keys=tier_keys)
        self._lock = Lock()

    def extend(self, segments: Sequence[SegmentRef]) -> None:
        """Add segments of further rows."""
        with self._lock:
            self._refs += segments

    def before(self, time: int, *, reach: int) -> list[Segment]:
        """Return the segments that end within ``reach`` microseconds before ``time``, or at it, the latest first."""
        with self._lock:
            found = [
                number for number, ref in enumerate(self._refs) if ref.rows and time - reach < ref.time_max <= time
            ]
            found.sort(key=lambda number: (self._refs[number].time_max, self._refs[number].time_min), reverse=True)
            return [self._segment(number) for number in found]

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
            distinct int64: how many different values are present; 0 where there are none.
            since float64: seconds from the last row in the longest window to the row's time; null where there is none.
            NaN in a window makes all of its column NaN; to distinct it is one value. An infinity makes sum and mean
            infinite and std NaN, and is a value like others to min and max. Floats beyond 2**970 count as infinite in
            sums; those beyond 2**485 make std NaN.

        Raises
        ------
        SourceError
            A row has no time.
        SchemaMismatch
            A segment lacks the measure, its extremes or its distinct values, or its keys are of another type.
        TableError
            A segment is missing or damaged.
        """
        return self.open(rows, keys=keys, time=time, window=window, gap=gap).features(1)

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
        near = stamps - length_of(gap)
        batch = sort_keys(rows, keys, stamps) if in_order is None else in_order
        values = _own_values(rows, window) if "ratio" in window.statistics else None
        search = self._search(near, batch, keys=tuple(keys), window=window, gap=gap, own=own) if len(stamps) else None
        return OpenWindow(window, search, batch, stamps, near, values)

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
        spans = {length: length_of(length) for length in sorted(set(window.lengths))}
        ends = near if (near[1:] >= near[:-1]).all() else np.sort(near)
        with self._lock:
            if any(ref.keys != keys for ref in self._refs):
                raise ValueError(f"there are segments of other keys than {keys}")
            plan = plan_search(self._refs, near=ends, spans=spans, closed=closed)
            inside = {length: self._covered(numbers, window) for length, numbers in plan.inside.items()}
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
            sums=bool(SUMMED & set(window.statistics)),
            squares="std" in window.statistics,
            extremes=extremes_of(window.statistics),
            last="since" in window.statistics,
            distinct=distinct_of(window),
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
        column = "_".join([*names, window.column or "", "time"])  # none of theirs
        rows = rows.append_column(column, stamp)
        if "ratio" in window.statistics and window.column is not None and window.column not in names:
            rows = rows.append_column(window.column, pa.array([value]))
        found = self.compute(rows, keys=names, time=column, window=window, gap=gap)
        return {name: values[0].as_py() for name, values in found.items()}

    def _covered(self, numbers: Sequence[int], window: WindowSpec) -> list[Segment]:
        """Return what together holds the rows of these segments."""
        if self._tiers is None:
            return [self._segment(number) for number in numbers]
        return self._tiers.cover(numbers, distinct=distinct_of(window))

    def _segment(self, number: int) -> Segment:
        if number not in self._open:
            self._open[number] = open_segment(self._refs[number], root=self._root)
        return self._open[number]


def _own_values(rows: pa.Table, window: WindowSpec) -> pa.Array:
    """Return the rows' own values of the window's column, float64."""
    column = rows.column(window.column)
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    if pa.types.is_decimal(array.type):
        return pa.array(nearest(array), mask=array.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_boolean(array.type):
        array = array.cast(pa.uint8())
    return array.cast(pa.float64(), safe=False)  # an integer beyond 2**53 is rounded


def _without_key(batch: SortedKeys) -> npt.NDArray[np.bool_]:
    """Return which distinct keys lack a value in one of their columns."""
    out = np.zeros(batch.size, dtype=bool)
    for column in batch.columns:
        out |= column.codes == 0
    return out
