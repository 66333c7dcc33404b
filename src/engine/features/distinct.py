"""The number of distinct values in a window, exact, summed over segments.

Each row knows the previous row of its key and value: by its place where that is in the same segment, else by its time.
A window that begins after ``far`` counts its rows whose previous row is not later than that. Null is no value; NaN is
one, and 0.0 and -0.0 are one, as in keys. Times are carried from segment to segment in ``pair_times.py``; how rows of a
range are counted is in ``wavelet.py``; which rows a window spans is decided in ``windows.py``.
"""

# Why the sum over segments is right: put all rows of a key in one order, by segment and then by place, in which time
# never falls. Of a value's rows in a window, the first alone has its previous row outside, so at or before `far`; each
# other has it inside, so later than `far`, be it at its own instant. Each value counts once, wherever rows are cut.

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.features.keys import SortedKeys, distinct_numbers
from engine.features.pair_times import PairTimes
from engine.features.wavelet import build_wavelet, count_below

Places = npt.NDArray[np.int64]


def build_distinct(
    rows: SortedKeys, *, order: npt.NDArray[np.integer[Any]], pairs: PairTimes
) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that ``count_distinct`` reads.

    Parameters
    ----------
    rows
        The segment's, at most 2**31 - 1, by ``sort_keys`` over the key's columns and the value.
    order
        (rows,): how the segment has them, by ``sort_keys`` over the key's columns.
    pairs
        Of ``pair_times``.

    Returns
    -------
    dict
        earlier int64: the distinct times of previous rows in earlier segments, sorted.
        words, ones, zeros: of ``build_wavelet``, over the previous rows.

        3/16 of a byte a row for each bit of the number of rows and one more, 3.9 for a million; and 8 for each of
        ``earlier``, of which there are at most as many as pairs.
    """
    count, begins = len(order), rows.starts[:-1]
    without = rows.columns[-1].codes == 0
    earlier = distinct_numbers(pairs.before[~without])
    place = np.empty(count, dtype=np.int64)
    place[order] = np.arange(count)
    here = place[rows.order]
    # A previous row of the segment has the highest bit, others lack it: windows that begin before are decided by that.
    first = 1 << count.bit_length()
    previous = np.empty(count, dtype=np.int64)
    previous[here[1:]] = here[:-1] + first
    previous[here[begins]] = np.searchsorted(earlier, pairs.before) + (first - len(earlier))
    previous[here[np.repeat(without, np.diff(rows.starts))]] = first + count  # later than any window's begin
    return {"earlier": earlier} | build_wavelet(previous, bound=2 * first - 1)


def count_distinct(
    arrays: Mapping[str, npt.NDArray[Any]], low: Places, high: Places, far: Places, *, time_min: int
) -> Places:
    """Return the segment's part of the number of distinct values of each window, int64 (windows,).

    Parameters
    ----------
    arrays
        Of ``build_distinct``; they may be mapped.
    low, high
        int64 (windows,): positions ``low <= p < high`` of the window's rows in the segment, of one key; there may be
        none. Sorted windows read neighbouring places.
    far
        int64 (windows,): microseconds; where each window begins, without that instant.
    time_min
        The segment's first time.
    """
    earlier = arrays["earlier"]
    first = 1 << (len(arrays["zeros"]) - 1)
    bound = low + first
    outside = np.flatnonzero(far < time_min)
    bound[outside] = np.searchsorted(earlier, far[outside], side="right") + (first - len(earlier))
    return count_below(arrays, low, high, bound)


def build_firsts(pairs: PairTimes, *, keys: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that ``count_firsts`` reads: of a tier, which windows hold whole.

    Parameters
    ----------
    pairs
        Of ``merged_times`` over the tier's segments, or of one.
    keys
        The size of the dictionary of their keys.

    Returns
    -------
    dict
        earlier int64: the distinct times of previous rows, sorted.
        firsts int64: sorted, for each pair with a value its key and the place of its previous time among ``earlier``.
        bounds int64 (keys + 1,): where each key's begin.
    """
    key, value = pairs.key_and_value()
    some = value != 0
    earlier = distinct_numbers(pairs.before[some])
    stride = len(earlier) + 1
    firsts = key[some] * stride + np.searchsorted(earlier, pairs.before[some])
    firsts.sort()
    return {"earlier": earlier, "firsts": firsts, "bounds": np.searchsorted(firsts, np.arange(keys + 1) * stride)}


def count_firsts(arrays: Mapping[str, npt.NDArray[Any]], key: Places, far: Places) -> Places:
    """Return what ``count_distinct`` would of windows that begin before the tier and end after it, int64 (windows,).

    Parameters
    ----------
    arrays
        Of ``build_firsts``; they may be mapped.
    key
        int64 (windows,): index among the tier's keys, -1 for one that it lacks. Sorted ones read neighbouring places.
    far
        int64 (windows,): microseconds; where each window begins, without that instant.
    """
    earlier = arrays["earlier"]
    known = np.maximum(key, 0)
    wanted = known * (len(earlier) + 1) + np.searchsorted(earlier, far, side="right")
    return np.where(key < 0, 0, np.searchsorted(arrays["firsts"], wanted) - arrays["bounds"][known])
