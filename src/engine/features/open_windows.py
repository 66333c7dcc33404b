"""A window of a batch as it is searched, block by block on several threads, and its features as Arrow arrays.

Opening one is in ``windows.py``, the search in ``window_search.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.features.keys import SortedKeys
from engine.features.window_plans import BLOCK_ROWS
from engine.features.window_search import NEVER, Answer, WindowSearch
from engine.spec import WindowSpec

_WHOLE = ("count", "distinct")  # whole numbers, never null


@dataclass(frozen=True)
class OpenWindow:
    """A window of a batch, ready to be searched."""

    window: WindowSpec
    search: WindowSearch | None  # None: of no rows
    batch: SortedKeys
    stamps: npt.NDArray[np.int64]  # (rows,)
    near: npt.NDArray[np.int64]  # (rows,): the near ends
    own: pa.Array | None  # (rows,): for a ratio

    def features(self, threads: int) -> dict[str, pa.Array]:
        """Return the features as ``WindowReader.compute`` does: its second part, on so many threads."""
        search, names = self.search, self.window.names()
        out = {name: _Column(len(self.stamps), whole=statistic in _WHOLE) for _, statistic, name in names}
        if search is None:
            return {name: column.array() for name, column in out.items()}
        ties = _first_at_instant(self.batch, self.near)

        inside: dict[timedelta, npt.NDArray[np.int64]] = {}

        def one(start: int) -> None:
            at = self.batch.order[start : start + BLOCK_ROWS].astype(np.int64)
            end = start + len(at)
            first = np.arange(start, end) if ties is None else ties[start:end]
            distinct = {length: counted[start:end] for length, counted in inside.items()}
            answers = search.run(self.batch.codes(start, end), self.near.take(at), first, inside=distinct)
            values = None if self.own is None else self.own.take(pa.array(at))
            for length, statistic, name in names:
                out[name].put(at, _result(statistic, answers[length], self.stamps, at, values))

        with self._blocks(threads) as each:
            if search.inside_distinct is not None:
                inside |= search.inside_distinct.counts(self.near, each=each, rows=BLOCK_ROWS)
            each(one)
        return {name: column.array() for name, column in out.items()}

    @contextmanager
    def _blocks(self, threads: int) -> Iterator[Callable[[Callable[[int], None]], None]]:
        """Yield what calls a function with the first row of each block, on so many threads."""
        starts = range(0, len(self.stamps), BLOCK_ROWS)
        threads = min(threads, len(starts))
        with (
            ThreadPoolExecutor(threads, thread_name_prefix="headrace-search") if threads > 1 else nullcontext() as pool
        ):

            def each(one: Callable[[int], None]) -> None:
                for _ in map(one, starts) if pool is None else pool.map(one, starts):
                    pass  # and raise what was raised

            yield each


class _Column:
    """A feature, filled block by block, by several threads."""

    def __init__(self, rows: int, *, whole: bool) -> None:
        self._values = np.empty(rows, dtype=np.int64 if whole else np.float64)
        self._missing = np.zeros(rows, dtype=bool)

    def put(self, at: npt.NDArray[np.int64], found: tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]) -> None:
        values, missing = found
        self._values[at] = values
        if missing is not None and missing.any():
            self._missing[at[missing]] = True

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
    if statistic == "distinct":
        if answer.distinct is None:
            raise ValueError("distinct values were not asked for")
        return answer.distinct, None
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
