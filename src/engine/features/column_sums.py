"""Running sums of a column in a segment, and the sums of windows over several segments: in limbs, or in levels.

Which of them a column takes is decided where it is built, in ``measures.py``; what is done with the sums is in
``totals.py``, the arithmetic in ``limbs.py`` and ``prefix_sums.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.features.limbs import BITS, LIMB, SAFE, LimbSums, running_limbs
from engine.features.prefix_sums import Expansion, Floats, Places, two_product

Arrays = Mapping[str, npt.NDArray[Any]]

LEVELS = ("first", "second", "third")


@dataclass(frozen=True)
class SumLayout:
    """How running sums lie in a segment."""

    limbs: int  # 0: three levels of floats
    lowest: int = 0  # place of the lowest limb
    bound: int = 0  # no limb's running sum passes it


class LimbTotals:
    """Sums whose limbs fit int64 whatever the windows, all of one scale."""

    def __init__(self, sums: LimbSums, bound: int) -> None:
        self._sums, self._bound = sums, bound

    def take(self, at: Places) -> LimbTotals:
        """Return the sums of the windows at these places, each as often as it is named."""
        return LimbTotals(self._sums.take(at), self._bound)

    def store(self, name: str, into: dict[str, npt.NDArray[Any]]) -> SumLayout:
        """Add arrays of these sums as a segment keeps them, each a run of its own, and return how they lie."""
        store_limbs(self._sums.limbs, name, into)
        return SumLayout(len(self._sums.limbs), self._sums.lowest, self._bound)

    def before(
        self, layout: SumLayout, arrays: Arrays, rows: Places, starts: Places, *, name: str, power: int
    ) -> list[tuple[int, npt.NDArray[Any]]]:
        """Return what comes before ``rows`` of a segment: limbs with their places. All are of one scale."""
        del starts, power  # power is 0: why it is exact
        first = layout.lowest - self._sums.lowest
        return [(first + limb, arrays[f"{name}.{limb}"].take(rows)) for limb in range(layout.limbs)]

    def add(self, part: Sequence[tuple[int, npt.NDArray[Any]]], at: Places | slice, less: bool) -> None:
        """Add what ``before`` returned to the windows ``at``, or take it away."""
        for place, values in part:
            add_at(self._sums.limbs[place], values, at, less)

    def rounded(self) -> Floats:
        """Return the sums, rounded once."""
        return self._sums.rounded()

    def parts(self) -> tuple[Floats, Floats, Floats]:
        """Return the sums as three float64 that do not overlap, the largest first."""
        return self._sums.parts()


class LevelTotals:
    """Sums of floats that range too widely for limbs, of limbs that could overflow, of several scales, or of all."""

    def __init__(self, sums: Expansion) -> None:
        self._sums = sums

    def take(self, at: Places) -> LevelTotals:
        """Return the sums of the windows at these places, each as often as it is named."""
        return LevelTotals(self._sums.take(at))

    def store(self, name: str, into: dict[str, npt.NDArray[Any]]) -> SumLayout:
        """Add arrays of these sums as a segment keeps them, each a run of its own, and return how they lie."""
        for level, values in zip(LEVELS, self._sums.parts(), strict=True):
            into[f"{name}.{level}"] = values
        return SumLayout(0)

    def before(
        self, layout: SumLayout, arrays: Arrays, rows: Places, starts: Places, *, name: str, power: int
    ) -> list[Floats]:
        """Return what comes before ``rows`` in the runs that begin at ``starts``, times ``10**power``, as floats."""
        if layout.limbs:
            out = []
            for limb in range(layout.limbs):
                sums = arrays[f"{name}.{limb}"][rows].astype(np.int64)
                out += _scaled(sums, shift=BITS * (layout.lowest + limb), power=power)
            return out
        inside = rows > starts
        last = np.where(inside, rows - 1, 0)
        return [np.where(inside, arrays[f"{name}.{level}"][last], 0.0) for level in LEVELS] if len(rows) else []

    def add(self, part: Sequence[Floats], at: Places | slice, less: bool) -> None:
        """Add what ``before`` returned to the windows ``at``, or take it away."""
        for values in part:
            self._sums.add(-values if less else values, at)

    def rounded(self) -> Floats:
        """Return the sums, rounded once."""
        return self._sums.rounded()

    def parts(self) -> tuple[Floats, Floats, Floats]:
        """Return the sums as three float64 that do not overlap, the largest first."""
        return self._sums.parts()


def window_sums(rows: int, layouts: Sequence[SumLayout], *, exact: bool) -> LimbTotals | LevelTotals:
    """Return so many sums, all 0, to which segments of these layouts can be added.

    ``exact`` says whether all are of one scale.
    """
    if not layouts:
        return LimbTotals(LimbSums(rows, lowest=0, limbs=1), 0)
    bound = sum(layout.bound for layout in layouts)
    if not exact or any(not layout.limbs for layout in layouts) or bound >= SAFE:
        return LevelTotals(Expansion(rows))
    lowest = min(layout.lowest for layout in layouts)
    limbs = max(layout.lowest + layout.limbs for layout in layouts) - lowest
    return LimbTotals(LimbSums(rows, lowest=lowest, limbs=limbs), bound)


def store_limbs(limbs: Sequence[Places], prefix: str, into: dict[str, npt.NDArray[Any]]) -> None:
    """Add the running sums of numbers in limbs, by place."""
    for place, sums in enumerate(running_limbs(limbs)):
        into[f"{prefix}.{place}"] = sums


def add_at(into: npt.NDArray[Any], values: npt.NDArray[Any], at: Places | slice, less: bool) -> None:
    """Add values at places, none of them twice, or take them away."""
    if less:
        into[at] -= values
    else:
        into[at] += values


def _scaled(values: Places, *, shift: int, power: int) -> list[Floats]:
    """Return floats that add up to ``values * 2**shift * 10**power``: exact up to 10**22, else to about 1e-31."""
    out: list[Floats] = []
    factor = np.asarray(10.0 ** abs(power))
    for part, bits in ((values >> BITS, BITS + shift), (values & LIMB, shift)):
        number = np.ldexp(part.astype(np.float64), bits)
        if not power:
            out.append(number)
        elif power > 0:
            out += two_product(number, factor)
        else:
            quotient = number / factor
            product, error = two_product(quotient, factor)
            out += (quotient, ((number - product) - error) / factor)
    return out
