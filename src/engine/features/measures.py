"""A measured column as running sums in a segment, and the totals of windows over several segments.

Integers, booleans and decimals are summed as int64, split into 32-bit limbs where they could overflow: exact. Floats
take three levels (``prefix_sums.py``). NaN and infinity are counted beside the sums. Which rows a window spans is
decided in ``windows.py``.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SpecError
from engine.features.prefix_sums import (
    LARGEST,
    LARGEST_SQUARED,
    Expansion,
    Floats,
    Places,
    running_squares,
    running_sums,
    sum_squared_deviations,
    two_product,
)

Arrays = Mapping[str, npt.NDArray[Any]]

_LIMB = 0xFFFFFFFF
_SAFE = 2**62  # sums up to here need no limbs
_SPECIAL = ("nan", "plus", "minus", "outside")
_LEVELS = ("first", "second", "third")


@dataclass(frozen=True)
class MeasureLayout:
    """How one measure lies in a segment."""

    whole: bool  # integers scaled by 10**scale, not floats
    boolean: bool  # its own square
    scale: int  # decimal digits
    limbs: int  # of a whole measure's sum
    bound: int  # no sum of a whole measure in the segment passes it, unscaled
    squares: int  # limbs of a whole measure's squares, 1 for floats; 0 where they were not kept
    squares_bound: int


@dataclass(frozen=True)
class Ranges:
    """Windows' rows in one segment: positions ``low <= p < high``, not empty, inside runs that begin at ``start``."""

    at: Places | slice  # which windows; a slice for all of them
    low: Places
    high: Places
    start: Places


def build_measure(
    column: pa.ChunkedArray, *, name: str, order: Places, starts: Places, squares: bool
) -> tuple[MeasureLayout, dict[str, npt.NDArray[Any]]]:
    """Return the layout of a measure and its arrays by name.

    Parameters
    ----------
    column
        Boolean, integer, float or decimal, (rows,), in any order.
    order, starts
        int64: how rows are sorted, and where each key's run begins after that.
    squares
        Whether a standard deviation will be asked for.

    Raises
    ------
    SpecError
        The column is of another type.
    """
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    of = array.type
    present = array.is_valid().to_numpy(zero_copy_only=False)[order]
    arrays: dict[str, npt.NDArray[Any]] = {}
    if not present.all():
        arrays["present"] = _counts(present)
    if pa.types.is_floating(of):
        layout = _build_floats(array, order=order, starts=starts, squares=squares, present=present, into=arrays)
    elif pa.types.is_boolean(of) or pa.types.is_integer(of) or pa.types.is_decimal(of) or pa.types.is_null(of):
        layout = _build_whole(array, order=order, squares=squares, into=arrays)
    else:
        raise SpecError(
            f"features.windows: column {name!r} is of type {of}, which cannot be measured",
            hint="sum, mean, std and rate need a number or a boolean; count and since need no column",
        )
    return layout, arrays


class Totals:
    """Sum, count of present values and, if asked, squares of windows; segments are added in any order.

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
        self._present = np.zeros(rows, dtype=np.int64)
        self._special: dict[str, Places] = {}
        floats = any(not layout.whole for layout in layouts)
        self._scale = 0 if floats else max((layout.scale for layout in layouts), default=0)
        plain = all(x.whole and x.limbs == 1 and x.scale == self._scale for x in layouts)
        self._sum = _sums(rows, plain=plain and sum(x.bound for x in layouts) < _SAFE)
        self._squares: _PlainSums | _WideSums | None = None
        if squares:
            plain &= all(x.boolean or x.squares == 1 for x in layouts)
            self._squares = _sums(rows, plain=plain and sum(x.squares_bound for x in layouts) < _SAFE)

    def add(self, layout: MeasureLayout, arrays: Arrays, ranges: Ranges) -> None:
        """Add one segment's part of the windows in ``ranges``."""
        at, low, high = ranges.at, ranges.low, ranges.high
        present = arrays.get("present")
        self._present[at] += high - low if present is None else present[high].astype(np.int64) - present[low]
        for special in _SPECIAL:
            if special in arrays:
                count = self._special.setdefault(special, np.zeros(len(self._present), dtype=np.int64))
                count[at] += arrays[special][high].astype(np.int64) - arrays[special][low]
        self._sum.add(layout, arrays, ranges, name="sum", limbs=layout.limbs, power=self._scale - layout.scale)
        if self._squares is not None:
            name, limbs = ("sum", layout.limbs) if layout.boolean else ("squares", layout.squares)
            if not limbs:
                raise ValueError("a standard deviation was asked of a segment that keeps no squares")
            power = 2 * (self._scale - layout.scale)
            self._squares.add(layout, arrays, ranges, name=name, limbs=limbs, power=power)

    def take(self, at: Places) -> Totals:
        """Return the totals of the windows at these places, each as often as it is named, to add more to."""
        out = copy.copy(self)
        out._present = self._present[at]
        out._special = {name: counted[at] for name, counted in self._special.items()}
        out._sum = self._sum.take(at)
        out._squares = None if self._squares is None else self._squares.take(at)
        return out

    def sum(self) -> Floats:
        """Return the sums, rounded once (a decimal's twice); 0 for an empty window.

        A window with a NaN, or with both infinities, has NaN; one with an infinity has that.
        """
        return self._with_special(self._sum.rounded() / 10.0**self._scale)

    def mean(self) -> Floats:
        """Return the means of the present values; 0 where there are none, which ``defined(1)`` tells apart."""
        count = np.where(self._present > 0, self._present, 1)
        divisor = count.astype(np.float64) * 10.0**self._scale
        return self._with_special(self._sum.rounded() / divisor)

    def std(self) -> Floats:
        """Return the sample standard deviations (n - 1), NaN with fewer than two values or any NaN or infinity."""
        if self._squares is None:
            raise ValueError("these totals keep no squares")
        count = np.where(self._present > 1, self._present, 2)
        spread = sum_squared_deviations(count, self._sum.parts(), self._squares.parts())
        out: Floats = np.sqrt(spread / (count.astype(np.float64) * (count - 1))) / 10.0**self._scale
        for counted in self._special.values():
            out[counted > 0] = np.nan
        return out

    def defined(self, least: int) -> npt.NDArray[np.bool_]:
        """Return where at least so many values are present."""
        return self._present >= least

    def _with_special(self, out: Floats) -> Floats:
        none = np.zeros(len(out), dtype=np.int64)
        nan, plus, minus = (self._special.get(name, none) > 0 for name in ("nan", "plus", "minus"))
        out[plus] = np.inf
        out[minus] = -np.inf
        out[nan | (plus & minus)] = np.nan
        return out


class _PlainSums:
    """Sums that fit int64 whatever the windows, all of one scale."""

    def __init__(self, rows: int) -> None:
        self._sums = np.zeros(rows, dtype=np.int64)

    def take(self, at: Places) -> _PlainSums:
        out = _PlainSums(0)
        out._sums = self._sums[at]
        return out

    def add(self, layout: MeasureLayout, arrays: Arrays, ranges: Ranges, *, name: str, limbs: int, power: int) -> None:
        del layout, limbs, power  # one limb, power 0: why it is plain
        sums = arrays[f"{name}.0"]
        self._sums[ranges.at] += sums[ranges.high] - sums[ranges.low]

    def rounded(self) -> Floats:
        return self._sums.astype(np.float64)

    def parts(self) -> tuple[Floats, Floats, Floats]:
        out = Expansion(len(self._sums))
        out.add_whole(self._sums)
        return out.parts()


class _WideSums:
    """Sums of floats, of integers that could overflow int64, or of both."""

    def __init__(self, rows: int) -> None:
        self._sums = Expansion(rows)

    def take(self, at: Places) -> _WideSums:
        out = _WideSums(0)
        out._sums = self._sums.take(at)
        return out

    def add(self, layout: MeasureLayout, arrays: Arrays, ranges: Ranges, *, name: str, limbs: int, power: int) -> None:
        at, low, high = ranges.at, ranges.low, ranges.high
        if layout.whole:
            for limb in range(limbs):
                sums = arrays[f"{name}.{limb}"]
                _add_scaled(self._sums, sums[high] - sums[low], at, shift=32 * limb, power=power)
            return
        inside = low > ranges.start
        some = inside.any()
        before = np.where(inside, low - 1, 0) if some else low
        for level in _LEVELS:
            sums = arrays[f"{name}.{level}"]
            self._sums.add(sums[high - 1], at)
            if some:
                self._sums.add(np.where(inside, -sums[before], 0.0), at)

    def rounded(self) -> Floats:
        return self._sums.rounded()

    def parts(self) -> tuple[Floats, Floats, Floats]:
        return self._sums.parts()


def _sums(rows: int, *, plain: bool) -> _PlainSums | _WideSums:
    return _PlainSums(rows) if plain else _WideSums(rows)


def _add_scaled(into: Expansion, values: Places, at: Places | slice, *, shift: int, power: int) -> None:
    """Add ``values * 2**shift * 10**power``: exact up to 10**22, else to about 1e-31."""
    if not power:
        into.add_whole(values, at, shift=shift)
        return
    factor = np.asarray(10.0 ** abs(power))
    for part, bits in ((values >> 32, 32 + shift), (values & _LIMB, shift)):
        number = np.ldexp(part.astype(np.float64), bits)
        if power > 0:
            terms = two_product(number, factor)
        else:
            quotient = number / factor
            product, error = two_product(quotient, factor)
            terms = (quotient, ((number - product) - error) / factor)
        for term in terms:
            into.add(term, at)


def _counts(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return how many of the first p rows are flagged, int32 (rows + 1,)."""
    out = np.zeros(len(flags) + 1, dtype=np.int32)
    np.cumsum(flags, out=out[1:])
    return out


def _build_floats(
    array: pa.Array,
    *,
    order: Places,
    starts: Places,
    squares: bool,
    present: npt.NDArray[np.bool_],
    into: dict[str, npt.NDArray[Any]],
) -> MeasureLayout:
    values = pc.fill_null(array.cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)[order]
    flags = {"nan": np.isnan(values), "plus": values >= LARGEST, "minus": values <= -LARGEST}
    if squares:
        flags["outside"] = np.abs(values) >= LARGEST_SQUARED
    for name, flagged in flags.items():
        if flagged.any():
            into[name] = _counts(flagged & present)
    finite = np.where(flags["nan"] | flags["plus"] | flags["minus"], 0.0, values)
    for level, sums in zip(_LEVELS, running_sums(finite, starts), strict=True):
        into[f"sum.{level}"] = sums
    if squares:
        small = np.where(np.abs(finite) < LARGEST_SQUARED, finite, 0.0)
        for level, sums in zip(_LEVELS, running_squares(small, starts), strict=True):
            into[f"squares.{level}"] = sums
    return MeasureLayout(False, False, 0, 1, 0, int(squares), 0)


def _build_whole(array: pa.Array, *, order: Places, squares: bool, into: dict[str, npt.NDArray[Any]]) -> MeasureLayout:
    rows, boolean = len(array), pa.types.is_boolean(array.type)
    scale = array.type.scale if pa.types.is_decimal(array.type) else 0
    low, high = _unscaled(array)
    limbs, largest = _limbs(low[order], high[order], rows=rows)
    _store(limbs, "sum", into)
    count, bound = 0, largest**2 * rows
    if squares and not boolean:
        if largest < 2**31:
            small = low[order].view(np.int64)
            square = small * small
            parts = [square] if bound < _SAFE else [square & _LIMB, square >> 32]
        else:
            whole: Any = sum(limb.astype(object) << (32 * place) for place, limb in enumerate(limbs))
            parts = _wide_limbs(whole * whole, 1 + (2 * largest.bit_length()) // 32)
        _store(parts, "squares", into)
        count = len(parts)
    return MeasureLayout(True, boolean, scale, len(limbs), largest * rows, count, bound)


def _unscaled(array: pa.Array) -> tuple[npt.NDArray[np.uint64], Places]:
    """Return a whole column's values as 128-bit integers in two halves; null is 0."""
    if pa.types.is_decimal(array.type):
        wide = pc.fill_null(array.cast(pa.decimal128(38, array.type.scale)), 0)
        halves = np.frombuffer(wide.buffers()[1], dtype=np.uint64)[2 * wide.offset : 2 * (wide.offset + len(wide))]
        return halves[0::2].copy(), halves[1::2].copy().view(np.int64)
    if pa.types.is_uint64(array.type):
        low = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        return low, np.zeros(len(low), dtype=np.int64)
    signed = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return signed.view(np.uint64), signed >> 63


def _limbs(low: npt.NDArray[np.uint64], high: Places, *, rows: int) -> tuple[list[Places], int]:
    """Return the integers in as few 32-bit limbs (the last one signed) as their sum needs, and the largest of them."""
    signed = low.view(np.int64)
    if not rows:
        return [signed], 0
    if (high == signed >> 63).all():
        largest = max(-int(signed.min()), int(signed.max()))
        if largest * rows < _SAFE:
            return [signed], largest
        return [signed & _LIMB, signed >> 32], largest
    largest = (max(-int(high.min()), int(high.max())) + 1) << 64
    halves = (low & np.uint64(_LIMB), low >> np.uint64(32))
    return [*(half.astype(np.int64) for half in halves), high & _LIMB, high >> 32], largest


def _wide_limbs(values: npt.NDArray[Any], count: int) -> list[Places]:
    out = [((values >> (32 * place)) & _LIMB).astype(np.int64) for place in range(count - 1)]
    return [*out, (values >> (32 * (count - 1))).astype(np.int64)]


def _store(limbs: Sequence[Places], prefix: str, into: dict[str, npt.NDArray[Any]]) -> None:
    for place, limb in enumerate(limbs):
        sums = np.zeros(len(limb) + 1, dtype=np.int64)
        np.cumsum(limb, out=sums[1:])
        into[f"{prefix}.{place}"] = sums
