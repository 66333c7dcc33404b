"""The distinct values that a batch's windows hold of segments that lie inside all of them.

Unlike sums, these depend on where each window begins: a value counts that was not there between that and the segment.
So each row is looked up, not each key alone. Other segments are searched in ``window_search.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import SchemaMismatch
from engine.features.distinct import count_firsts
from engine.features.distinct_columns import DistinctColumn
from engine.features.keys import SortedKeys
from engine.features.segments import Segment

Numbers = npt.NDArray[np.int64]


class InsideDistinct:
    """Counts distinct values, block by block; of one segment after another, so that memory is the rows' and no more.

    Parameters
    ----------
    column
        Whose values are counted.
    inside
        By length, the shortest first: what lies inside all windows from this length on, segments or tiers.
    spans
        Microseconds by length.
    batch
        The keys that will be asked for.
    found_in
        Returns the index of each of these keys in a segment, -1 where it lacks it or they see nothing.

    Raises
    ------
    SchemaMismatch
        A segment does not count the column.
    """

    def __init__(
        self,
        column: str,
        *,
        inside: Mapping[timedelta, Sequence[Segment]],
        spans: Mapping[timedelta, int],
        batch: SortedKeys,
        found_in: Callable[[Segment], Numbers],
    ) -> None:
        self._spans, self._batch, self._found_in = spans, batch, found_in
        self._parts = [
            (number, segment, distinct_column(segment, column))
            for number, length in enumerate(spans)
            for segment in inside[length]
        ]

    def counts(
        self, near: Numbers, *, each: Callable[[Callable[[int], Any]], Any], rows: int
    ) -> dict[timedelta, Numbers]:
        """Return counts by length, int64 (rows,), in the batch's order.

        Parameters
        ----------
        near
            (rows,): microseconds, the near ends of the windows, as the batch was given.
        each
            Calls a function with the first row of each block, several at once.
        rows
            Of a block.
        """
        out = {length: np.zeros(len(near), dtype=np.int64) for length in self._spans}
        spans = list(self._spans.items())
        for number, segment, column in self._parts:
            index = self._found_in(segment)

            def one(start: int, index: Numbers = index, column: DistinctColumn = column, number: int = number) -> None:
                ends = near[self._batch.order[start : start + rows]]
                key = index[self._batch.codes(start, start + len(ends))]
                for length, span in spans[number:]:
                    out[length][start : start + len(ends)] += count_firsts(column.arrays, key, ends - span)

            if (index >= 0).any():
                each(one)
        return out


def distinct_column(segment: Segment, column: str) -> DistinctColumn:
    """Return what a segment keeps of a column whose distinct values are counted.

    Raises
    ------
    SchemaMismatch
        It keeps nothing of it.
    """
    found = segment.distinct.get(column)
    if found is None:
        raise SchemaMismatch(
            f"window segment {segment.ref.path} does not count distinct values of {column!r}",
            hint="it was built for other windows: prepare the pipeline anew",
        )
    return found
