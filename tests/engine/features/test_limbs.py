"""Sums in limbs against fractions: what is split adds up to the value, and a sum is rounded as one fraction is."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.features.limbs import BITS, LimbSums, running_limbs, split_floats


def _exact(limbs: list[np.ndarray], lowest: int, at: int) -> Fraction:
    places = enumerate(limbs, lowest)
    return sum((Fraction(int(limb[at])) * Fraction(2) ** (BITS * place) for place, limb in places), Fraction(0))


AMOUNTS = st.integers(-(10**9), 10**9).map(lambda cents: cents / 100)
FLOATS = st.floats(-1e18, 1e18, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-9)


@given(st.lists(st.one_of(AMOUNTS, FLOATS), min_size=1, max_size=60), st.data())
def test_sums_of_ranges_are_those_of_fractions_rounded_once(values: list[float], data: st.DataObject) -> None:
    split = split_floats(np.array(values))
    if split is None:
        sizes = [abs(value) for value in values if value]
        assert max(sizes) / min(sizes) > 2.0**40  # what fits four limbs is never refused
        return
    lowest, limbs = split
    assert [_exact(limbs, lowest, at) for at in range(len(values))] == [Fraction(value) for value in values]
    low = data.draw(st.integers(0, len(values)))
    high = data.draw(st.integers(low, len(values)))
    sums = LimbSums(1, lowest=lowest, limbs=len(limbs))
    for limb, before in zip(sums.limbs, running_limbs(limbs), strict=True):
        limb += before[high]
        limb -= before[low]
    assert sums.rounded()[0] == float(sum(map(Fraction, values[low:high]), Fraction(0)))


@given(st.lists(st.integers(-(2**62), 2**62), min_size=1, max_size=6), st.integers(-20, 20))
def test_any_limbs_are_rounded_to_the_nearest_float(digits: list[int], lowest: int) -> None:
    sums = LimbSums(1, lowest=lowest, limbs=len(digits))
    for limb, digit in zip(sums.limbs, digits, strict=True):
        limb += digit
    exact = _exact(sums.limbs, lowest, 0)
    assert sums.rounded()[0] == float(exact)
    assert sum(map(Fraction, (float(part[0]) for part in sums.parts()))) == pytest.approx(exact, rel=2**-100)


@given(st.integers(0, 42), st.integers(-3, 3), st.integers(0, 53), st.integers(-2, 2), st.integers(-1, 1))
def test_three_limbs_are_rounded_to_the_nearest_float(bits: int, odd: int, half: int, far: int, sign: int) -> None:
    """Near the middle of two floats of any size; what lies 64 bits below the point decides."""
    sums = LimbSums(1, lowest=-2, limbs=3)
    sums.limbs[2] += sign * 2**bits + odd
    sums.limbs[1] += 2**half >> 21
    sums.limbs[0] += far + ((2**half << 11) & 0xFFFFFFFF)
    assert sums.rounded()[0] == float(_exact(sums.limbs, -2, 0))


@given(st.lists(st.integers(-(2**31), 2**31), min_size=3, max_size=3), st.integers(-29, 20))
def test_any_three_small_limbs_are_rounded_to_the_nearest_float(digits: list[int], lowest: int) -> None:
    sums = LimbSums(1, lowest=lowest, limbs=3)
    for limb, digit in zip(sums.limbs, digits, strict=True):
        limb += digit
    assert sums.rounded()[0] == float(_exact(sums.limbs, lowest, 0))


@given(st.integers(-3, 3), st.integers(-1, 1), st.integers(-1, 1))
def test_ties_go_to_the_even_float(odd: int, half: int, rest: int) -> None:
    """2**53 + odd is a tie where odd is; what lies far below decides it."""
    sums = LimbSums(1, lowest=-2, limbs=4)
    sums.limbs[3] += 2 ** (53 - BITS)
    sums.limbs[2] += odd
    sums.limbs[1] += half * 2 ** (BITS - 1)
    sums.limbs[0] += rest
    assert sums.rounded()[0] == float(_exact(sums.limbs, -2, 0))


def test_values_that_range_too_widely_are_refused() -> None:
    assert split_floats(np.array([1e300, 1e-300])) is None
    assert split_floats(np.array([5e-324, 2.0**-1000, 0.0])) is not None
    split = split_floats(np.array([1e12, 1e-3]))
    assert split is not None
    assert len(split[1]) == 4
    assert math.fsum([1e12, 1e-3]) == float(_exact(split[1], split[0], 0) + _exact(split[1], split[0], 1))
