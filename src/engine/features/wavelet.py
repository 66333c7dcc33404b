"""How many integers of a range of positions lie below a bound: a wavelet matrix of packed bits.

Claude, Navarro and Ordóñez, "The wavelet matrix: an efficient wavelet tree for large alphabets", 2015. Level by level,
from the highest bit on, integers are parted by that bit, zeros first, else in the order they had; a level keeps the
bits in the order in which it met them. What the integers stand for is in ``distinct.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Places = npt.NDArray[np.int64]

_SHIFT = 6  # 64 bits in a word
_FEW = 0.75  # of the ranges searched: when no more are left, the others are dropped
_ONES = np.uint64(2**64 - 1)


def build_wavelet(values: Places, *, bound: int) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays that ``count_below`` reads: 3/16 of a byte a row for each bit of ``bound``.

    Parameters
    ----------
    values
        int64 (rows,), ``0 <= value <= bound``; at most 2**31 - 1 rows.
    bound
        The largest one that will be asked of.

    Returns
    -------
    dict
        words uint64 (levels x words,): the bits of a level, 64 rows in a word, with room for one more row.
        ones int32 (levels x words,): how many of them before each word, in its level.
        zeros int64 (levels,): how many rows of a level have a 0.
    """
    levels, width = bound.bit_length(), (len(values) >> _SHIFT) + 1
    packed = np.zeros((levels, width * 8), dtype=np.uint8)
    words = packed.view("<u8")
    ones = np.zeros((levels, width), dtype=np.int32)
    zeros = np.zeros(levels, dtype=np.int64)
    left = values.astype(np.uint32) if levels <= 32 else values
    for level in range(levels):
        bits = (left >> (levels - 1 - level)) & 1 != 0
        flags = np.packbits(bits, bitorder="little")
        packed[level, : len(flags)] = flags
        np.cumsum(np.bitwise_count(words[level, :-1]), dtype=np.int32, out=ones[level, 1:])
        zero = left[~bits]
        zeros[level] = len(zero)
        left = np.concatenate([zero, left[bits]])
    return {"words": words.ravel(), "ones": ones.ravel(), "zeros": zeros}


def count_below(arrays: Mapping[str, npt.NDArray[Any]], low: Places, high: Places, bound: Places) -> Places:
    """Return how many values of each range lie below its bound, int64 (ranges,).

    Parameters
    ----------
    arrays
        Of ``build_wavelet``, which may be mapped: four places are read for each level, until a range is decided.
    low, high
        int64 (ranges,): positions ``low <= p < high``; a range may be empty.
    bound
        int64 (ranges,): none above that of the arrays.
    """
    levels = len(arrays["zeros"])
    out = np.zeros(len(low), dtype=np.int64)
    at: Places | slice = slice(None)
    width = len(arrays["words"]) // max(levels, 1)
    for level, zeros in enumerate(arrays["zeros"]):
        bound = bound & ((1 << (levels - level)) - 1)
        undecided = (low < high) & (bound != 0)  # nothing that is left lies below 0
        left = np.count_nonzero(undecided)
        if not left:
            break
        if left < _FEW * len(low):
            at = np.flatnonzero(undecided) if isinstance(at, slice) else at[undecided]
            low, high, bound = low[undecided], high[undecided], bound[undecided]
        words, ones = (arrays[name][level * width : (level + 1) * width] for name in ("words", "ones"))
        low_ones, high_ones = _rank(words, ones, low), _rank(words, ones, high)
        # With a 1 in the bound all values with a 0 are below it, and those with a 1 go on; else those with a 0 do.
        one = (bound >> (levels - 1 - level)) & 1 != 0
        out[at] += np.where(one, (high - high_ones) - (low - low_ones), 0)
        low = np.where(one, zeros + low_ones, low - low_ones)
        high = np.where(one, zeros + high_ones, high - high_ones)
    return out


def _rank(words: npt.NDArray[np.uint64], ones: npt.NDArray[np.int32], places: Places) -> Places:
    """Return how many 1 a level has before each place."""
    word = places >> _SHIFT
    before = ~(_ONES << (places & 63).view(np.uint64))
    out: Places = np.add(ones[word], np.bitwise_count(words[word] & before), dtype=np.int64)
    return out
