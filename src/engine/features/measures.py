"""A measured column as a segment keeps it: running sums, and what is counted beside them.

Integers, booleans and decimals are summed in limbs (``limbs.py``), and so are floats that fit a few; other floats, and
their squares, take three levels (``prefix_sums.py``). NaN and infinity are counted beside the sums. Smallest and
largest values are ``extremes.py``. What windows make of them is ``totals.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SpecError
from engine.features.column_sums import LEVELS, SumLayout, store_limbs
from engine.features.extremes import Which, build_extremes
from engine.features.limbs import (
    BITS,
    split_floats,
    split_squares,
    split_whole,
)
from engine.features.prefix_sums import (
    LARGEST,
    LARGEST_SQUARED,
    Floats,
    Places,
    running_squares,
    running_sums,
)

Order = npt.NDArray[np.int32]

SPECIAL = ("nan", "plus", "minus", "outside")
_WHOLE = 2**53  # whole numbers up to here are float64
_EXACT_POWER = 22  # of ten, the largest that is a float64


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
        store_limbs(limbs, "sum", into)
        sums = SumLayout(len(limbs), lowest, len(finite) << BITS)
    else:
        for level, values in zip(LEVELS, running_sums(finite, starts), strict=True):
            into[f"sum.{level}"] = values
        sums = SumLayout(0)
    if not squares:
        return tuple(special), sums, None
    small = np.where(np.abs(finite) < LARGEST_SQUARED, finite, 0.0)
    for level, values in zip(LEVELS, running_squares(small, starts), strict=True):
        into[f"squares.{level}"] = values
    return tuple(special), sums, SumLayout(0)


def _build_whole(
    array: pa.Array, *, order: Order, squares: bool, into: dict[str, npt.NDArray[Any]]
) -> tuple[SumLayout, SumLayout | None]:
    rows = len(array)
    low, high = _unscaled(array)
    limbs, largest = split_whole(low[order], high[order], rows=rows)
    store_limbs(limbs, "sum", into)
    sums = SumLayout(len(limbs), 0, largest * rows if len(limbs) == 1 else rows << BITS)
    if not squares:
        return sums, None
    parts = split_squares(limbs, largest=largest, rows=rows)
    store_limbs(parts, "squares", into)
    return sums, SumLayout(len(parts), 0, largest**2 * rows if len(parts) == 1 else rows << BITS)


def _unscaled(array: pa.Array) -> tuple[npt.NDArray[np.uint64], Places]:
    """Return a whole column's values as 128-bit integers in two halves; null is 0."""
    if pa.types.is_decimal(array.type):
        wide = array.cast(pa.decimal128(38, array.type.scale))
        halves = np.frombuffer(wide.buffers()[1], dtype=np.uint64)[2 * wide.offset : 2 * (wide.offset + len(wide))]
        halves = halves.reshape(-1, 2).copy()
        if wide.null_count:  # Arrow's own fill_null makes another type of a negative scale
            halves[wide.is_null().to_numpy(zero_copy_only=False)] = 0
        return halves[:, 0].copy(), halves[:, 1].copy().view(np.int64)
    if pa.types.is_uint64(array.type):
        low = pc.fill_null(array, 0).to_numpy(zero_copy_only=False)
        return low, np.zeros(len(low), dtype=np.int64)
    signed = pc.fill_null(array.cast(pa.int64()), 0).to_numpy(zero_copy_only=False)
    return signed.view(np.uint64), signed >> 63


def _comparable(array: pa.Array) -> npt.NDArray[Any]:
    """Return values as int64 where that holds them, else as the nearest float64; null is 0."""
    of = array.type
    if pa.types.is_decimal(of):
        return nearest(array)
    whole = pa.types.is_boolean(of) or pa.types.is_null(of) or (pa.types.is_integer(of) and not pa.types.is_uint64(of))
    wide = array.cast(pa.int64() if whole else pa.float64(), safe=False)
    values: npt.NDArray[Any] = pc.fill_null(wide, 0).to_numpy(zero_copy_only=False)
    return values


def nearest(array: pa.Array) -> Floats:
    """Return decimals as the nearest float64; Arrow's own cast misses that for a third of them. Null is 0."""
    scale, (low, high) = array.type.scale, _unscaled(array)
    whole = low.view(np.int64)
    exact = (high == whole >> 63) & (np.abs(whole) <= _WHOLE)
    if 0 <= scale <= _EXACT_POWER and exact.all():  # a division of two that are exact is rounded once
        divided: Floats = whole / 10.0**scale
        return divided
    values: Floats = pc.fill_null(array.cast(pa.string()).cast(pa.float64()), 0.0).to_numpy(zero_copy_only=False)
    return values
