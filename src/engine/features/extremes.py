"""The smallest and the largest value of ranges of rows in a segment, and of windows over several segments.

Rows are cut into blocks of 32. Inside a block each row has a stack in bits: the rows up to it that no later one
undercuts, so that the first of them within a range is the range's smallest (Alstrup et al., "Nearest common
ancestors: a survey and a new distributed algorithm", 2002). Whole blocks lie in a sparse table (Bender and
Farach-Colton, "The LCA problem revisited", 2000). Which rows a window spans is decided in ``window_search.py``.

Null is ignored. NaN in a range makes both its extremes NaN, as it does a sum. Infinities are values like others, and
-0.0 counts as 0.0. Integers are compared exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Which = Literal["min", "max"]
Places = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_BLOCK = 32  # rows: bits of a stack
_SHIFT = 5
_TILE = 1024  # blocks whose stacks are built at once: what is held of them stays in the processor's cache
_INTEGERS = np.iinfo(np.int64)


def build_extremes(
    values: npt.NDArray[Any], *, starts: Places, which: Sequence[Which], present: Flags | None = None
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that ``range_extreme`` reads.

    Parameters
    ----------
    values
        float64 or int64 (rows,), in the segment's order. What does not fit int64 (uint64, wide decimals) may be rounded
        to float64 beforehand: rounding keeps order, so the extreme of rounded values is the rounded extreme.
    starts
        int64 (runs,): the first row of each run of a key, ascending. No range may cross one.
    which
        What will be asked for.
    present
        bool (rows,): which rows have a value; None: all.

    Returns
    -------
    dict
        values (present rows,), as given.
        min.stacks, max.stacks uint32 (present rows,).
        min.blocks, max.blocks (levels x blocks,), of the type of the values; as many levels as the longest run needs.
        present int32 (rows + 1,), only where a row has no value: how many of the first p rows have one, as
        ``measures.py`` counts them.

        8 bytes a row, and for each extreme 4 and at most a quarter of a byte for each level: 16 for one of them and 23
        for both with 2**20 rows in one run, 12 and 16 where runs are short.
    """
    if values.dtype not in (np.dtype(np.float64), np.dtype(np.int64)):
        raise ValueError(f"extremes are of float64 or int64, not {values.dtype}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    if present is not None and not present.all():
        counts = np.zeros(len(values) + 1, dtype=np.int32)
        np.cumsum(present, out=counts[1:])
        arrays["present"] = counts
        values, starts = values[present], counts[starts].astype(np.int64)
    if values.dtype == np.float64:
        with np.errstate(invalid="ignore"):  # a NaN of any payload
            values = np.where(np.isnan(values), np.nan, values + 0.0)
    arrays["values"] = values
    longest = int(np.diff(starts, append=len(values)).max(initial=0))
    # Between the blocks where a range begins and ends; those two are searched by their stacks.
    levels = (max(longest - 2, 0) // _BLOCK).bit_length()
    for name in which:
        arrays[f"{name}.stacks"] = _stacks(values, name)
        arrays[f"{name}.blocks"] = _blocks(values, name, levels=levels)
    return arrays


def range_extreme(
    arrays: Mapping[str, npt.NDArray[Any]], low: Places, high: Places, which: Which
) -> tuple[npt.NDArray[Any], Flags]:
    """Return the smallest or the largest value of each range, and whether there is any.

    Parameters
    ----------
    arrays
        Of ``build_extremes``, which may be mapped: a range in one block reads two places of them, others up to six. Or
        of ``Extreme.store``, for ranges of one row or none.
    low, high
        int64 (ranges,): positions ``low <= p < high``, inside the run of one key; there may be none. Sorted ranges read
        neighbouring places.
    which
        One of those that the arrays were built for.

    Returns
    -------
    tuple
        The extremes (ranges,), of the type of the values, 0 where no row of the range has a value; and bool (ranges,),
        where one has.
    """
    whole, row = arrays.get(f"{which}.whole"), low
    if "present" in arrays:
        counts = arrays["present"]
        low, high = counts[low].astype(np.int64), counts[high].astype(np.int64)
    found = high > low
    if found.all():
        return _extremes(arrays, low, high, which) if whole is None else whole[row], found
    some = _extremes(arrays, low[found], high[found], which) if whole is None else whole[row[found]]
    out = np.zeros(len(low), dtype=some.dtype)
    out[found] = some
    return out, found


class Extreme:
    """The smallest or the largest value of windows; segments are added in any order.

    It is kept as float64. Rounding keeps order, so this is the exact extreme, rounded once, also of integers beyond
    2**53 and of segments whose values are of several types.

    Parameters
    ----------
    rows
        How many windows.
    which
        Which of the two.
    """

    def __init__(self, rows: int, which: Which) -> None:
        self._which: Which = which
        self._values = np.full(rows, _neutral(which))
        self._found = np.zeros(rows, dtype=bool)

    def add(self, at: Places | slice, values: npt.NDArray[Any], found: Flags) -> None:
        """Add what ``range_extreme`` returned for the windows ``at``, none of them twice."""
        ours = values.astype(np.float64, copy=False)
        if not found.all():
            ours = np.where(found, ours, _neutral(self._which))
        self._values[at] = _pick(self._which)(self._values[at], ours)
        self._found[at] |= found

    def take(self, at: Places) -> Extreme:
        """Return the extremes of the windows at these places, each as often as it is named, to add more to."""
        out = Extreme(0, self._which)
        out._values, out._found = self._values[at], self._found[at]
        return out

    def store(self, into: dict[str, npt.NDArray[Any]]) -> None:
        """Add an array for ``range_extreme`` of rows that stand for a window each; ``present`` is the caller's."""
        into[f"{self._which}.whole"] = self._values

    def result(self) -> tuple[Floats, Flags]:
        """Return the extremes, float64 (rows,), 0 where there are none; and bool (rows,), where there are none."""
        return np.where(self._found, self._values, 0.0), ~self._found


def _extremes(arrays: Mapping[str, npt.NDArray[Any]], low: Places, high: Places, which: Which) -> npt.NDArray[Any]:
    values, stacks = arrays["values"], arrays[f"{which}.stacks"]
    pick, last = _pick(which), high - 1
    stack = stacks[np.minimum(last, low | (_BLOCK - 1))] >> (low & (_BLOCK - 1)).astype(np.uint32)
    out: npt.NDArray[Any] = values[low + _lowest_bit(stack)]
    begin, end = low >> _SHIFT, last >> _SHIFT
    across = np.flatnonzero(begin != end)
    if len(across):
        begin, end, last = begin[across] + 1, end[across], last[across]
        best = pick(out[across], values[(last & -_BLOCK) + _lowest_bit(stacks[last])])
        wide = np.flatnonzero(begin < end)
        if len(wide):
            begin, end = begin[wide], end[wide]
            table, blocks = arrays[f"{which}.blocks"], -(-len(values) >> _SHIFT)
            level = np.frexp((end - begin).astype(np.float64))[1].astype(np.int64) - 1
            both = pick(table[level * blocks + begin], table[level * blocks + end - (1 << level)])
            best[wide] = pick(best[wide], both)
        out[across] = best
    return out


def _stacks(values: npt.NDArray[Any], which: Which) -> npt.NDArray[np.uint32]:
    """Return for each row, in bits, the rows of its block up to it that are no worse than all between and it."""
    out = np.empty(len(values), dtype=np.uint32)
    for first in range(0, len(values), _TILE * _BLOCK):
        ranks = _ranks(values[first : first + _TILE * _BLOCK], which)
        tile = np.zeros((-(-len(ranks) >> _SHIFT), _BLOCK), dtype=np.int64)
        tile.ravel()[: len(ranks)] = ranks
        stacks = np.empty(tile.shape, dtype=np.uint32)
        stack = np.zeros(len(tile), dtype=np.uint32)
        for place in range(_BLOCK):
            kept = np.packbits((tile <= tile[:, place, None]).ravel(), bitorder="little").view("<u4")
            stack = (stack & kept) | np.uint32(1 << place)
            stacks[:, place] = stack
        out[first : first + len(ranks)] = stacks.ravel()[: len(ranks)]
    return out


def _ranks(values: npt.NDArray[Any], which: Which) -> Places:
    """Return integers in the order of the values, the sought extreme lowest and NaN below all."""
    if values.dtype == np.int64:
        return values if which == "min" else ~values
    bits = values.view(np.int64)
    ranks = bits ^ ((bits >> 63) & _INTEGERS.max)
    if which == "max":
        ranks = ~ranks
    ranks[np.isnan(values)] = _INTEGERS.min
    return ranks


def _blocks(values: npt.NDArray[Any], which: Which, *, levels: int) -> npt.NDArray[Any]:
    """Return, level by level, the extremes of 1, 2, 4, ... blocks from each block on."""
    out = np.empty((levels, -(-len(values) >> _SHIFT)), dtype=values.dtype)
    if levels:
        out[0] = _pick(which).reduceat(values, np.arange(0, len(values), _BLOCK))
    for level in range(1, levels):
        half = 1 << (level - 1)
        out[level] = out[level - 1]
        out[level, :-half] = _pick(which)(out[level - 1, :-half], out[level - 1, half:])
    return out.ravel()


def _lowest_bit(words: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint8]:
    return np.bitwise_count(~words & (words - np.uint32(1)))


def _pick(which: Which) -> np.ufunc:
    return np.minimum if which == "min" else np.maximum  # both pass NaN on


def _neutral(which: Which) -> float:
    return np.inf if which == "min" else -np.inf
