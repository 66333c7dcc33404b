"""Exact sums of float64 as unevaluated sums of three, and running sums that can be subtracted without loss.

Nothing here knows of keys, times or files: columns are turned into running sums in ``measures.py``. The error terms are
Knuth's TwoSum and Dekker's TwoProduct (Ogita, Rump and Oishi, "Accurate sum and dot product", 2005).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.int64]

LARGEST = 2.0**970
"""Values from here on count as infinite: sums of 2**31 of anything smaller stay within float64."""
LARGEST_SQUARED = 2.0**485
"""The same for squares; squares of values below 2**-485 lose digits to underflow."""

_SHORT_ROWS = 32  # runs up to this are summed side by side, longer ones one by one
_SPLITTER = 2.0**27 + 1.0


def two_sum(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Return the rounded sum and its error: together exactly ``left + right``, barring overflow."""
    total = left + right
    other = total - left
    return total, (left - (total - other)) + (right - other)


def fast_two_sum(large: Floats, small: Floats) -> tuple[Floats, Floats]:
    """Return what ``two_sum`` does, where ``large`` is 0 or at least as large as ``small``."""
    total = large + small
    return total, small - (total - large)


def two_product(left: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Return the rounded product and its error: together exactly ``left * right``, barring over- and underflow."""
    product = left * right
    left_high, left_low = _split(left)
    right_high, right_low = _split(right)
    error = ((left_high * right_high - product) + left_high * right_low + left_low * right_high) + left_low * right_low
    return product, error


def running_sums(values: Floats, starts: Places) -> tuple[Floats, Floats, Floats]:
    """Return three levels of running sums that start anew at each of ``starts``.

    Parameters
    ----------
    values
        float64 (rows,), finite and below ``LARGEST``.
    starts
        int64 (runs,): the first row of each run, ascending, the first of them 0.

    Returns
    -------
    tuple
        float64 (rows,) each: the plain running sums, those of their rounding errors, those of the errors' own. They
        add up to the exact running sums, up to 2**-159 of the largest one of the same run for each row.
    """
    first = _cumulated(values, starts)
    errors = _errors(first, values, starts)
    second = _cumulated(errors, starts)
    return first, second, _cumulated(_errors(second, errors, starts), starts)


def running_squares(values: Floats, starts: Places) -> tuple[Floats, Floats, Floats]:
    """Return three levels of running sums of the exact squares; see ``running_sums``.

    As the squares are exact, no pivot is needed: the variance comes out the same wherever the rows are cut.
    """
    squares, low = two_product(values, values)
    first = _cumulated(squares, starts)
    errors, rest = two_sum(_errors(first, squares, starts), low)
    second = _cumulated(errors, starts)
    return first, second, _cumulated(_errors(second, errors, starts) + rest, starts)


class Expansion:
    """A vector of sums, each kept as three float64; what is added is lost only below 2**-159 of the largest part."""

    __slots__ = ("first", "second", "third")

    def __init__(self, rows: int) -> None:
        self.first, self.second, self.third = np.zeros(rows), np.zeros(rows), np.zeros(rows)

    def add(self, values: Floats, at: Places | slice = slice(None)) -> None:
        """Add ``values`` to the sums at the places ``at``, none of them twice."""
        self.first[at], rest = two_sum(self.first[at], values)
        self.second[at], rest = two_sum(self.second[at], rest)
        self.third[at] += rest

    def add_whole(self, values: Places, at: Places | slice = slice(None), *, shift: int = 0) -> None:
        """Add the integers ``values * 2**shift`` exactly."""
        self.add(np.ldexp((values >> 32).astype(np.float64), 32 + shift), at)
        self.add(np.ldexp((values & 0xFFFFFFFF).astype(np.float64), shift), at)

    def take(self, at: Places) -> Expansion:
        """Return the sums at these places."""
        out = Expansion(0)
        out.first, out.second, out.third = self.first[at], self.second[at], self.third[at]
        return out

    def parts(self) -> tuple[Floats, Floats, Floats]:
        """Return the sums as three float64 that do not overlap, the largest first."""
        first, second, third = self.first, self.second, self.third
        for _ in range(2):  # a sum that cancelled leaves its value in the later parts: once is not enough
            second, third = two_sum(second, third)
            first, second = two_sum(first, second)
        second, third = two_sum(second, third)
        return first, second, third

    def rounded(self) -> Floats:
        """Return the sums rounded to the nearest float64, half to even, as ``math.fsum`` does."""
        return nearest(*self.parts())


def nearest(first: Floats, second: Floats, third: Floats) -> Floats:
    """Return the float64 nearest to a sum of three that do not overlap; of ``third`` only the sign counts."""
    # `first` was rounded knowing `second` only; where that was a tie, `third` decides.
    twice = second * 2.0
    moved = first + twice
    tie = (moved - first == twice) & (second * np.sign(third) > 0)
    return np.where(tie, moved, first)


def sum_squared_deviations(
    counts: Places, sums: tuple[Floats, Floats, Floats], squares: tuple[Floats, Floats, Floats]
) -> Floats:
    """Return ``n * sum(x**2) - sum(x)**2`` = ``n**2`` times the population variance, at least 0, rounded once.

    Parameters
    ----------
    counts
        int64 (rows,), below 2**53.
    sums, squares
        Parts as ``Expansion.parts`` returns them.
    """
    out = Expansion(len(counts))
    number = counts.astype(np.float64)
    for part in squares:
        for term in two_product(number, part):
            out.add(term)
    first, second, third = sums
    for left, right in ((first, first), (first, 2.0 * second), (second, second), (first, 2.0 * third)):
        for term in two_product(left, right):
            out.add(-term)
    out.add(-2.0 * second * third)
    return np.maximum(out.rounded(), 0.0)


def _split(values: Floats) -> tuple[Floats, Floats]:
    scaled = _SPLITTER * values
    high = scaled - (scaled - values)
    return high, values - high


def _errors(sums: Floats, values: Floats, starts: Places) -> Floats:
    """Return what each step of ``_cumulated`` lost."""
    before = np.empty_like(sums)
    before[1:] = sums[:-1]
    before[starts] = 0.0
    return two_sum(before, values)[1]


def _cumulated(values: Floats, starts: Places) -> Floats:
    """Return plain running sums, added strictly one after another, anew from each start.

    A run of its own for each key keeps a key of 1e300 from taking the digits of its neighbours.
    """
    out = values.copy()
    sizes = np.diff(np.append(starts, len(values)))
    for start, size in zip(starts[sizes > _SHORT_ROWS], sizes[sizes > _SHORT_ROWS], strict=True):
        np.cumsum(values[start : start + size], out=out[start : start + size])
    short = sizes <= _SHORT_ROWS
    begin, size = starts[short], sizes[short]
    for step in range(1, _SHORT_ROWS):
        longer = size > step
        begin, size = begin[longer], size[longer]
        if not len(begin):
            break
        out[begin + step] += out[begin + step - 1]
    return out
