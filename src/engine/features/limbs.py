"""Exact sums of whole numbers, and of floats as whole multiples of a power of two, in limbs of 32 bits.

Limb i counts ``2**(32 * i)``. Each is summed as int64 by itself: nothing is rounded, so running sums are subtracted
without loss. Floats that range too widely for a few limbs are summed by ``prefix_sums.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.features.prefix_sums import Expansion, Floats, fast_two_sum, nearest, two_sum

Numbers = npt.NDArray[np.int64]

BITS = 32
LIMB = 0xFFFFFFFF
SAFE = 2**62
"""Sums up to here fit a limb's int64."""

_MOST_LIMBS = 4  # of floats: 128 bits, 32 bytes a row where the levels of prefix_sums.py take 24 and ten times the time
_SAMPLE_ROWS = 4_096
_SPILL = 11
_MANTISSA = 2**53 - 1
_FEW_WHOLE = 2**42
_FAST_BITS = 960  # powers of two that a float64 holds, and their inverses


def split_floats(values: Floats) -> tuple[int, list[Numbers]] | None:
    """Return floats as limbs, each with the sign of its value, and the place of the lowest one.

    None where they do not fit: where the largest is too many times the smallest digit of any of them.

    Parameters
    ----------
    values
        float64 (rows,), finite.
    """
    sizes = np.abs(values)
    largest = float(sizes.max(initial=0.0))
    if not largest:
        return 0, [np.zeros(len(values), dtype=np.int64)]
    top = (math.frexp(largest)[1] - 1) // BITS
    smallest = float(sizes.min(where=sizes > 0.0, initial=largest))
    if smallest < math.ldexp(1.0, BITS * (top - _MOST_LIMBS + 1)):
        return None
    lowest = _lowest(values[:: max(1, len(values) // _SAMPLE_ROWS)], top, begin=top)
    if lowest is not None:
        lowest = _lowest(values, top, begin=lowest)
    if lowest is None:
        return None
    limbs, rest = [], scaled(values, -BITS * top)
    for _ in range(top - lowest):
        digit = np.trunc(rest)
        limbs.append(digit.astype(np.int64))
        rest -= digit
        rest *= 2.0**BITS
    return lowest, [rest.astype(np.int64), *reversed(limbs)]


def _lowest(values: Floats, top: int, *, begin: int) -> int | None:
    """Return the highest place from ``begin`` down of whose unit all values are multiples."""
    for place in range(begin, top - _MOST_LIMBS, -1):
        units = scaled(values, -BITS * place)
        if (units == np.trunc(units)).all():
            return place
    return None


def split_whole(low: npt.NDArray[np.uint64], high: Numbers, *, rows: int) -> tuple[list[Numbers], int]:
    """Return 128-bit integers in as few limbs (the last one signed) as the sum of so many rows needs, and the largest.

    Parameters
    ----------
    low, high
        Their two halves.
    """
    signed = low.view(np.int64)
    if not rows:
        return [signed], 0
    if (high == signed >> 63).all():
        largest = max(-int(signed.min()), int(signed.max()))
        if largest * rows < SAFE:
            return [signed], largest
        return [signed & LIMB, signed >> BITS], largest
    largest = (max(-int(high.min()), int(high.max())) + 1) << 64
    halves = (low & np.uint64(LIMB), low >> np.uint64(BITS))
    return [*(half.astype(np.int64) for half in halves), high & LIMB, high >> BITS], largest


def split_squares(limbs: Sequence[Numbers], *, largest: int, rows: int) -> list[Numbers]:
    """Return the squares of whole numbers, given as limbs, as limbs that so many rows may be summed of."""
    if largest < 2**31:
        square = limbs[0] * limbs[0]
        return [square] if largest**2 * rows < SAFE else [square & LIMB, square >> BITS]
    whole: Any = sum(limb.astype(object) << (BITS * place) for place, limb in enumerate(limbs))
    squares, count = whole * whole, 1 + (2 * largest.bit_length()) // BITS
    out = [((squares >> (BITS * place)) & LIMB).astype(np.int64) for place in range(count - 1)]
    return [*out, (squares >> (BITS * (count - 1))).astype(np.int64)]


def scaled(values: Floats, bits: int) -> Floats:
    """Return ``values * 2**bits``."""
    return values * 2.0**bits if abs(bits) < _FAST_BITS else np.ldexp(values, bits)


def running(values: Numbers) -> Numbers:
    """Return the sum of the first p rows at place p, int64 (rows + 1,)."""
    sums = np.zeros(len(values) + 1, dtype=np.int64)
    np.cumsum(values, out=sums[1:])
    return sums


def running_limbs(limbs: Sequence[Numbers]) -> list[npt.NDArray[Any]]:
    """Return the running sums of numbers in limbs: uint32 (rows + 1,) each and the last one int64, which may be signed.

    What a limb holds beyond 32 bits is carried to the next one, so that all but the last are half as large in a file.
    """
    out: list[npt.NDArray[Any]] = []
    carried = None
    for limb in limbs:
        sums = running(limb)
        if carried is not None:
            sums += carried
        if len(out) == len(limbs) - 1:
            out.append(sums)
        else:
            out.append(sums.astype(np.uint32))  # modulo 2**32, also of negative ones
            carried = np.right_shift(sums, BITS, out=sums)
    return out


def _rounded_once(whole: Numbers, fraction: Numbers) -> Floats:
    """Return ``whole + fraction / 2**64`` rounded to the nearest float64, half to even.

    Parameters
    ----------
    whole
        Smaller than ``_FEW_WHOLE`` in size.
    fraction
        The 64 bits of an unsigned number; they are used up.
    """
    # The error of the first sum is a multiple of 2**-53 and at most 2**-11, the spill less than 2**-53 and a multiple
    # of 2**-64: they add up without an error, so that only the last sum is rounded.
    large, small = whole.astype(np.float64), ((fraction >> _SPILL) & _MANTISSA).astype(np.float64)
    small *= 2.0**-53
    total = large + small
    np.subtract(total, large, out=large)
    small -= large
    fraction &= 2**_SPILL - 1
    out: Floats = fraction.astype(np.float64)
    out *= 2.0**-64
    out += small
    out += total
    return out


class LimbSums:
    """A vector of sums.

    Parameters
    ----------
    rows
        How many.
    lowest, limbs
        The place of the lowest limb, and how many there are. No limb may pass ``SAFE`` at the end; on the way to it
        one may wrap around.
    """

    __slots__ = ("limbs", "lowest")

    def __init__(self, rows: int, *, lowest: int, limbs: int) -> None:
        self.lowest = lowest
        self.limbs = [np.zeros(rows, dtype=np.int64) for _ in range(limbs)]

    def take(self, at: Numbers) -> LimbSums:
        """Return the sums at these places."""
        out = LimbSums(0, lowest=self.lowest, limbs=0)
        out.limbs = [limb.take(at) for limb in self.limbs]
        return out

    def parts(self) -> tuple[Floats, Floats, Floats]:
        """Return the sums as three float64 that do not overlap, the largest first."""
        out = Expansion(len(self.limbs[0]))
        for place, limb in enumerate(self.limbs, self.lowest):
            out.add_whole(limb, shift=BITS * place)
        return out.parts()

    def rounded(self) -> Floats:
        """Return the sums rounded to the nearest float64, half to even."""
        if len(self.limbs) == 1:
            return scaled(self.limbs[0].astype(np.float64), BITS * self.lowest)
        if len(self.limbs) == 3 and abs(BITS * self.lowest) < _FAST_BITS - 128:
            whole, fraction = self._whole_and_fraction()
            if max(int(whole.max(initial=0)), -int(whole.min(initial=0))) < _FEW_WHOLE:
                out = _rounded_once(whole, fraction)
                out *= 2.0 ** (BITS * (self.lowest + 2))
                return out
        pieces = self._pieces()
        first, second = fast_two_sum(pieces[0], pieces[1])
        if len(pieces) == 2:
            return first
        second, third = two_sum(second, pieces[2])
        first, second = fast_two_sum(first, second)
        for piece in pieces[3:]:
            second, rest = two_sum(second, piece)
            third = third + rest
            first, second = fast_two_sum(first, second)
        return nearest(first, second, third)

    def _whole_and_fraction(self) -> tuple[Numbers, Numbers]:
        """Return three limbs as the last one with what is carried to it, and 64 bits below it."""
        low, middle, top = self.limbs
        carried = low >> BITS
        carried += middle
        whole = carried >> BITS
        whole += top
        carried <<= BITS
        carried |= low & LIMB
        return whole, carried

    def _pieces(self) -> list[Floats]:
        """Return float64 that add up to the sums exactly, the largest first: none overlap; only that one is signed."""
        digits, top = [], self.limbs[0]
        for limb in self.limbs[1:]:
            digits.append(top & LIMB)
            top = limb + (top >> BITS)
        place = self.lowest + len(digits)
        if max(int(top.max(initial=0)), -int(top.min(initial=0))) >= 2**53:
            digits.append(top & LIMB)
            top, place = top >> BITS, place + 1
        pieces = [scaled(top.astype(np.float64), BITS * place)]
        while digits:
            place -= 1
            digit = digits.pop()
            if not digits:
                pieces.append(scaled(digit.astype(np.float64), BITS * place))
                break
            # Two at a time, as 53 and 11 bits.
            place -= 1
            digit = (digit << BITS) | digits.pop()
            pieces.append(scaled((digit >> _SPILL & _MANTISSA).astype(np.float64), BITS * place + _SPILL))
            pieces.append(scaled((digit & (2**_SPILL - 1)).astype(np.float64), BITS * place))
        return pieces
