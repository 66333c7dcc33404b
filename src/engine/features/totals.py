"""The totals of windows over several segments: sums, counts of present values, squares, NaN and infinities.

What a segment keeps of a measure is ``measures.py``; which rows a window spans is decided in ``window_search.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.features.column_sums import Arrays, LevelTotals, LimbTotals, SumLayout, add_at, window_sums
from engine.features.extremes import Extreme, Which
from engine.features.limbs import running
from engine.features.measures import SPECIAL, MeasureLayout
from engine.features.prefix_sums import Floats, Places, sum_squared_deviations


@dataclass(frozen=True)
class Before:
    """What of a measure comes before some rows of a segment, as far as windows of their keys are concerned."""

    present: Places | None
    special: Mapping[str, npt.NDArray[Any]]
    sums: Sequence[Any]
    squares: Sequence[Any]


class Totals:
    """Sum, count of present values and, if asked, squares of windows over segments of some layouts.

    A window is what comes before its end less what comes before its begin: each is added by itself, in any order.

    Parameters
    ----------
    rows
        How many windows.
    layouts
        Of all segments that will be added.
    squares
        Whether ``std`` will be asked for.
    """

    def __init__(self, rows: int, *, layouts: Sequence[MeasureLayout], squares: bool) -> None:
        nulls = any(layout.nulls for layout in layouts)
        self._present = np.zeros(rows, dtype=np.int64) if nulls else None
        names = [name for name in SPECIAL if any(name in layout.special for layout in layouts)]
        self._special = {name: np.zeros(rows, dtype=np.int64) for name in names}
        self._real = any(layout.real for layout in layouts)
        self._boolean = all(layout.boolean for layout in layouts)
        self._scale = 0 if self._real else max((layout.scale for layout in layouts), default=0)
        same = all(layout.scale == self._scale for layout in layouts)
        self._sums = window_sums(rows, [layout.sums for layout in layouts], exact=same)
        self._squares: LimbTotals | LevelTotals | None = None
        if squares:
            self._squares = window_sums(rows, [_squares_of(layout) for layout in layouts], exact=same)

    @property
    def needs_starts(self) -> bool:
        """Whether ``before`` looks at where runs begin."""
        return isinstance(self._sums, LevelTotals) or isinstance(self._squares, LevelTotals)

    def before(self, layout: MeasureLayout, arrays: Arrays, rows: Places, starts: Places, *, counted: Places) -> Before:
        """Return what comes before ``rows`` of a segment, ``counted`` of them, in the runs that begin at ``starts``."""
        power = self._scale - layout.scale
        squares: Sequence[Any] = ()
        if self._squares is not None:
            name = "sum" if layout.boolean else "squares"
            squares = self._squares.before(_squares_of(layout), arrays, rows, starts, name=name, power=2 * power)
        return Before(
            None if self._present is None else arrays["present"].take(rows) if layout.nulls else counted,
            {name: arrays[name].take(rows) for name in layout.special if name in self._special},
            self._sums.before(layout.sums, arrays, rows, starts, name="sum", power=power),
            squares,
        )

    def add(self, part: Before, *, at: Places | slice = slice(None), less: bool = False) -> None:
        """Add what ends a window, or with ``less`` take away what begins it, at the places ``at``."""
        if self._present is not None and part.present is not None:
            add_at(self._present, part.present, at, less)
        for name, counted in part.special.items():
            add_at(self._special[name], counted, at, less)
        self._sums.add(part.sums, at, less)
        if self._squares is not None:
            self._squares.add(part.squares, at, less)

    def take(self, at: Places) -> Totals:
        """Return the totals of the windows at these places, each as often as it is named, to add more to."""
        out = copy.copy(self)
        out._present = None if self._present is None else self._present.take(at)
        out._special = {name: counted.take(at) for name, counted in self._special.items()}
        out._sums = self._sums.take(at)
        out._squares = None if self._squares is None else self._squares.take(at)
        return out

    def as_measure(
        self, extremes: Mapping[Which, Extreme] | None = None
    ) -> tuple[MeasureLayout, dict[str, npt.NDArray[Any]]]:
        """Return these totals, and extremes, as a measure of rows that have them as values, each a run of its own."""
        arrays = {name: running(counted) for name, counted in self._special.items()}
        if self._present is not None:
            arrays["present"] = running(self._present)
        sums = self._sums.store("sum", arrays)
        squares = None if self._squares is None or self._boolean else self._squares.store("squares", arrays)
        special, kept = tuple(self._special), extremes or {}
        for extreme in kept.values():
            extreme.store(arrays)
        layout = MeasureLayout(
            self._real, self._boolean, self._scale, self._present is not None, special, sums, squares, tuple(kept)
        )
        return layout, arrays

    def present(self, rows: Places) -> Places:
        """Return how many values are present, given how many rows there are."""
        return rows if self._present is None else self._present

    def sum(self) -> Floats:
        """Return the sums, rounded once (a decimal's twice); 0 for an empty window.

        A window with a NaN, or with both infinities, has NaN; one with an infinity has that.
        """
        out = self._sums.rounded()
        return self._with_special(out / 10.0**self._scale if self._scale else out)

    def mean(self, rows: Places) -> Floats:
        """Return the means of the present values of so many rows; 0 where there are none."""
        count = np.maximum(self.present(rows), 1).astype(np.float64)
        out = self._sums.rounded()
        if self._scale:
            count *= 10.0**self._scale
        out /= count
        return self._with_special(out)

    def std(self, rows: Places) -> Floats:
        """Return the sample standard deviations (n - 1), NaN with fewer than two values or any NaN or infinity."""
        if self._squares is None:
            raise ValueError("these totals keep no squares")
        count = np.maximum(self.present(rows), 2)
        spread = sum_squared_deviations(count, self._sums.parts(), self._squares.parts())
        out: Floats = np.sqrt(spread / (count.astype(np.float64) * (count - 1))) / 10.0**self._scale
        for counted in self._special.values():
            out[counted > 0] = np.nan
        return out

    def _with_special(self, out: Floats) -> Floats:
        if not self._special:
            return out
        none = np.zeros(len(out), dtype=np.int64)
        nan, plus, minus = (self._special.get(name, none) > 0 for name in ("nan", "plus", "minus"))
        out[plus] = np.inf
        out[minus] = -np.inf
        out[nan | (plus & minus)] = np.nan
        return out


def _squares_of(layout: MeasureLayout) -> SumLayout:
    """Return how squares lie in a segment; of booleans as their sums."""
    squares = layout.sums if layout.boolean else layout.squares
    if squares is None:
        raise ValueError("a standard deviation was asked of a segment that keeps no squares")
    return squares
