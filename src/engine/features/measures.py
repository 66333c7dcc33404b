"""A measured column as running sums in a segment, and the totals of windows over several segments.

Integers, booleans and decimals are summed in limbs (``limbs.py``), and so are floats that fit a few; other floats, and
their squares, take three levels (``prefix_sums.py``). NaN and infinity are counted beside the sums. Smallest and
largest values are ``extremes.py``. Which rows a window spans is decided in ``window_search.py``.
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
from engine.features.extremes import Extreme, Which, build_extremes
from engine.features.limbs import (
    BITS,
    LIMB,
    SAFE,
    LimbSums,
    running,
    running_limbs,
    split_floats,
    split_squares,
    split_whole,
)
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
Order = npt.NDArray[np.int32]

_SPECIAL = ("nan", "plus", "minus", "outside")
_LEVELS = ("first", "second", "third")
_WHOLE = 2**53  # whole numbers up to here are float64
_EXACT_POWER = 22  # of ten, the largest that is a float64


@dataclass(frozen=True)
class SumLayout:
    """How running sums lie in a segment."""

    limbs: int  # 0: three levels of floats
    lowest: int = 0  # place of the lowest limb
    bound: int = 0  # no limb's running sum passes it


@dataclass(frozen=True)
class MeasureLayout:
    """How one measure lies in a segment."""

    real: bool  # floats
    boolean: bool  # its own square
    scale: int  # decimal digits: whole numbers are 10**scale times the values
    nulls: bool  # whether present values are counted
    special: tuple[str, ...]  # which of NaN, the infinities and what is too large to square are counted
    sums: SumLayout
    squares: SumLayout | None  # None: not kept
    extremes: tuple[Which, ...] = ()  # which of min and max are kept

    @property
    def has_squares(self) -> bool:
        """Whether a standard deviation can be asked of it."""
        return self.boolean or self.squares is not None

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> MeasureLayout:
        """Return the layout that ``dataclasses.asdict`` described."""
        squares = value["squares"]
        sums = {"sums": SumLayout(**value["sums"]), "squares": None if squares is None else SumLayout(**squares)}
        names = {"special": tuple(value["special"]), "extremes": tuple(value.get("extremes", ()))}
        return cls(**{**value, **sums, **names})


def build_measure(
    column: pa.ChunkedArray,
    *,
    name: str,
    order: Order,
    starts: Places,
    squares: bool,
    extremes: tuple[Which, ...] = (),
) -> tuple[MeasureLayout, dict[str, npt.NDArray[Any]]]:
    """Return the layout of a measure and its arrays by name.

    Parameters
    ----------
    column
        Boolean, integer, float or decimal, (rows,), in any order.
    order, starts
        How rows are sorted, and where each key's run begins after that.
    squares
        Whether a standard deviation will be asked for.
    extremes
        Which of min and max will be.

    Raises
    ------
    SpecError
        The column is of another type.
    """
    array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    of = array.type
    arrays: dict[str, npt.NDArray[Any]] = {}
    present = array.is_valid().to_numpy(zero_copy_only=False)[order] if array.null_count else None
    if present is not None:
        arrays["present"] = _counts(present)
    if pa.types.is_floating(of):
        special, sums, squared = _build_floats(
            array, order=order, starts=starts, squares=squares, present=present, into=arrays
        )
        layout = MeasureLayout(True, False, 0, present is not None, special, sums, squared, extremes)
    elif pa.types.is_boolean(of) or pa.types.is_integer(of) or pa.types.is_decimal(of) or pa.types.is_null(of):
        boolean, scale = pa.types.is_boolean(of), of.scale if pa.types.is_decimal(of) else 0
        sums, squared = _build_whole(array, order=order, squares=squares and not boolean, into=arrays)
        layout = MeasureLayout(False, boolean, scale, present is not None, (), sums, squared, extremes)
    else:
        raise SpecError(
            f"features.windows: column {name!r} is of type {of}, which cannot be measured",
            hint="sum, mean, std, rate, min and max need a number or a boolean; count and since need no column",
        )
    if extremes:
        arrays |= build_extremes(_comparable(array)[order], starts=starts, which=extremes, present=present)
    return layout, arrays


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
        names = [name for name in _SPECIAL if any(name in layout.special for layout in layouts)]
        self._special = {name: np.zeros(rows, dtype=np.int64) for name in names}
        self._real = any(layout.real for layout in layouts)
        self._boolean = all(layout.boolean for layout in layouts)
        self._scale = 0 if self._real else max((layout.scale for layout in layouts), default=0)
        same = all(layout.scale == self._scale for layout in layouts)
        self._sums = _sums(rows, [layout.sums for layout in layouts], exact=same)
        self._squares: _Limbs | _Levels | None = None
        if squares:
            self._squares = _sums(rows, [squares_of(layout) for layout in layouts], exact=same)

    @property
    def needs_starts(self) -> bool:
        """Whether ``before`` looks at where runs begin."""
        return isinstance(self._sums, _Levels) or isinstance(self._squares, _Levels)

    def before(self, layout: MeasureLayout, arrays: Arrays, rows: Places, starts: Places, *, counted: Places) -> Before:
        """Return what comes before ``rows`` of a segment, ``counted`` of them, in the runs that begin at ``starts``."""
        power = self._scale - layout.scale
        squares: Sequence[Any] = ()
        if self._squares is not None:
            name = "sum" if layout.boolean else "squares"
            squares = self._squares.before(squares_of(layout), arrays, rows, starts, name=name, power=2 * power)
        return Before(
            None if self._present is None else arrays["present"][rows] if layout.nulls else counted,
            {name: arrays[name][rows] for name in layout.special if name in self._special},
            self._sums.before(layout.sums, arrays, rows, starts, name="sum", power=power),
            squares,
        )

    def add(self, part: Before, *, at: Places | slice = slice(None), less: bool = False) -> None:
        """Add what ends a window, or with ``less`` take away what begins it, at the places ``at``."""
        if self._present is not None and part.present is not None:
            _add(self._present, part.present, at, less)
        for name, counted in part.special.items():
            _add(self._special[name], counted, at, less)
        self._sums.add(part.sums, at, less)
        if self._squares is not None:
            self._squares.add(part.squares, at, less)

    def take(self, at: Places) -> Totals:
        """Return the totals of the windows at these places, each as often as it is named, to add more to."""
        out = copy.copy(self)
        out._present = None if self._present is None else self._present[at]
        out._special = {name: counted[at] for name, counted in self._special.items()}
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


class _Limbs:
    """Sums whose limbs fit int64 whatever the windows, all of one scale."""

    def __init__(self, sums: LimbSums, bound: int) -> None:
        self._sums, self._bound = sums, bound

    def take(self, at: Places) -> _Limbs:
        return _Limbs(self._sums.take(at), self._bound)

    def store(self, name: str, into: dict[str, npt.NDArray[Any]]) -> SumLayout:
        _store(self._sums.limbs, name, into)
        return SumLayout(len(self._sums.limbs), self._sums.lowest, self._bound)

    def before(
        self, layout: SumLayout, arrays: Arrays, rows: Places, starts: Places, *, name: str, power: int
    ) -> list[tuple[int, npt.NDArray[Any]]]:
        del starts, power  # power is 0: why it is exact
        first = layout.lowest - self._sums.lowest
        return [(first + limb, arrays[f"{name}.{limb}"][rows]) for limb in range(layout.limbs)]

    def add(self, part: Sequence[tuple[int, npt.NDArray[Any]]], at: Places | slice, less: bool) -> None:
        for place, values in part:
            _add(self._sums.limbs[place], values, at, less)

    def rounded(self) -> Floats:
        return self._sums.rounded()

    def parts(self) -> tuple[Floats, Floats, Floats]:
        return self._sums.parts()


class _Levels:
    """Sums of floats that range too widely for limbs, of limbs that could overflow, of several scales, or of all."""

    def __init__(self, sums: Expansion) -> None:
        self._sums = sums

    def take(self, at: Places) -> _Levels:
        return _Levels(self._sums.take(at))

    def store(self, name: str, into: dict[str, npt.NDArray[Any]]) -> SumLayout:
        for level, values in zip(_LEVELS, self._sums.parts(), strict=True):
            into[f"{name}.{level}"] = values
        return SumLayout(0)

    def before(
        self, layout: SumLayout, arrays: Arrays, rows: Places, starts: Places, *, name: str, power: int
    ) -> list[Floats]:
        if layout.limbs:
            out = []
            for limb in range(layout.limbs):
                sums = arrays[f"{name}.{limb}"][rows].astype(np.int64)
                out += _scaled(sums, shift=BITS * (layout.lowest + limb), power=power)
            return out
        inside = rows > starts
        last = np.where(inside, rows - 1, 0)
        return [np.where(inside, arrays[f"{name}.{level}"][last], 0.0) for level in _LEVELS] if len(rows) else []

    def add(self, part: Sequence[Floats], at: Places | slice, less: bool) -> None:
        for values in part:
            self._sums.add(-values if less else values, at)

    def rounded(self) -> Floats:
        return self._sums.rounded()

    def parts(self) -> tuple[Floats, Floats, Floats]:
        return self._sums.parts()


def squares_of(layout: MeasureLayout) -> SumLayout:
    """Return how squares lie in a segment; of booleans as their sums."""
    squares = layout.sums if layout.boolean else layout.squares
    if squares is None:
        raise ValueError("a standard deviation was asked of a segment that keeps no squares")
    return squares


def _sums(rows: int, layouts: Sequence[SumLayout], *, exact: bool) -> _Limbs | _Levels:
    if not layouts:
        return _Limbs(LimbSums(rows, lowest=0, limbs=1), 0)
    bound = sum(layout.bound for layout in layouts)
    if not exact or any(not layout.limbs for layout in layouts) or bound >= SAFE:
        return _Levels(Expansion(rows))
    lowest = min(layout.lowest for layout in layouts)
    limbs = max(layout.lowest + layout.limbs for layout in layouts) - lowest
    return _Limbs(LimbSums(rows, lowest=lowest, limbs=limbs), bound)


def _add(into: npt.NDArray[Any], values: npt.NDArray[Any], at: Places | slice, less: bool) -> None:
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


def _counts(flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Return how many of the first p rows are flagged, int32 (rows + 1,)."""
    out = np.zeros(len(flags) + 1, dtype=np.int32)
    np.cumsum(flags, out=out[1:])
    return out


def _build_floats(
    array: pa.Array,
    *,
    order: Order,
    starts: Places,
    squares: bool,
    present: npt.NDArray[np.bool_] | None,
    into: dict[str, npt.NDArray[Any]],
) -> tuple[tuple[str, ...], SumLayout, SumLayout | None]:
    if present is not None:
        array = pc.fill_null(array, 0.0)
    finite = array.cast(pa.float64()).to_numpy(zero_copy_only=False)[order]
    special: list[str] = []
    usual = LARGEST_SQUARED if squares else LARGEST
    if not np.abs(finite).max(initial=0.0) < usual:
        flags = {"nan": np.isnan(finite), "plus": finite >= LARGEST, "minus": finite <= -LARGEST}
        if squares:
            flags["outside"] = np.abs(finite) >= LARGEST_SQUARED
        for name, flagged in flags.items():
            if flagged.any():
                special.append(name)
                into[name] = _counts(flagged)
        finite = np.where(flags["nan"] | flags["plus"] | flags["minus"], 0.0, finite)
    split = split_floats(finite)
    if split is not None:
        lowest, limbs = split
        _store(limbs, "sum", into)
        sums = SumLayout(len(limbs), lowest, len(finite) << BITS)
    else:
        for level, values in zip(_LEVELS, running_sums(finite, starts), strict=True):
            into[f"sum.{level}"] = values
        sums = SumLayout(0)
    if not squares:
        return tuple(special), sums, None
    small = np.where(np.abs(finite) < LARGEST_SQUARED, finite, 0.0)
    for level, values in zip(_LEVELS, running_squares(small, starts), strict=True):
        into[f"squares.{level}"] = values
    return tuple(special), sums, SumLayout(0)


def _build_whole(
    array: pa.Array, *, order: Order, squares: bool, into: dict[str, npt.NDArray[Any]]
) -> tuple[SumLayout, SumLayout | None]:
    rows = len(array)
    low, high = _unscaled(array)
    limbs, largest = split_whole(low[order], high[order], rows=rows)
    _store(limbs, "sum", into)
    sums = SumLayout(len(limbs), 0, largest * rows if len(limbs) == 1 else rows << BITS)
    if not squares:
        return sums, None
    parts = split_squares(limbs, largest=largest, rows=rows)
    _store(parts, "squares", into)
    return sums, SumLayout(len(parts), 0, largest**2 * rows if len(parts) == 1 else rows << BITS)


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


def _comparable(array: pa.Array) -> npt.NDArray[Any]:
    """Return values as int64 where that holds them, else as the nearest float64; null is 0."""
    of = array.type
    if pa.types.is_decimal(of):
        return _nearest(array)
    whole = pa.types.is_boolean(of) or pa.types.is_null(of) or (pa.types.is_integer(of) and not pa.types.is_uint64(of))
    wide = array.cast(pa.int64() if whole else pa.float64(), safe=False)
    values: npt.NDArray[Any] = pc.fill_null(wide, 0).to_numpy(zero_copy_only=False)
    return values


def _nearest(array: pa.Array) -> Floats:
    """Return decimals as the nearest float64; Arrow's own cast misses that for a third of them. Null is 0."""
    scale, (low, high) = array.type.scale, _unscaled(array)
    whole = low.view(np.int64)
    exact = (high == whole >> 63) & (np.abs(whole) <= _WHOLE)
    if 0 <= scale <= _EXACT_POWER and exact.all():  # a division of two that are exact is rounded once
        divided: Floats = whole / 10.0**scale
        return divided
    values: Floats = pc.fill_null(array.cast(pa.string()).cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return values


def _store(limbs: Sequence[Places], prefix: str, into: dict[str, npt.NDArray[Any]]) -> None:
    for place, sums in enumerate(running_limbs(limbs)):
        into[f"{prefix}.{place}"] = sums
