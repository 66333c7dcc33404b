"""What a segment keeps of a column whose distinct values windows count, and how that lies in its file.

The arrays are those of ``distinct.py``, the pairs of key and value those of ``pair_times.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.features.distinct import build_distinct, build_firsts
from engine.features.keys import KeyDictionary, sort_keys
from engine.features.pair_times import PairTimes, merged_times, pair_times

VALUES = "values."
"""How the names of arrays begin that are not of numbers."""

_PREFIX = "distinct."
_OF_PAIRS = ("pairs", "before", "last")


@dataclass(frozen=True)
class Before:
    """What was before a new segment."""

    reach: int  # microseconds, the longest window that will be asked for
    earlier: Sequence[PairTimes]  # as of ``pair_times``


@dataclass(frozen=True)
class DistinctColumn:
    """One column of a segment, or of a tier."""

    pairs: PairTimes
    arrays: Mapping[str, npt.NDArray[Any]]  # by name; of a tier only those of ``build_firsts``


def build_column(
    rows: pa.Table,
    name: str,
    *,
    keys: Sequence[str],
    times: npt.NDArray[np.int64],
    order: npt.NDArray[np.int32],
    size: int,
    before: Before,
) -> DistinctColumn:
    """Return a column of a new segment.

    Parameters
    ----------
    rows
        With the columns ``keys`` and ``name``, in any order.
    times
        int64 (rows,): microseconds.
    order
        (rows,): how the segment has them, by ``sort_keys`` over ``keys``.
    size
        Of the dictionary of its keys.

    Raises
    ------
    SpecError
        The column is of a type that cannot be compared exactly.
    SchemaMismatch
        It is of another type in an earlier segment.
    """
    by_pair = sort_keys(rows, [*keys, name], times)
    pairs = pair_times(by_pair, times, earlier=before.earlier, reach=before.reach)
    arrays = build_distinct(by_pair, order=order, pairs=pairs)
    return DistinctColumn(pairs, arrays | build_firsts(pairs, keys=size))


def merged_column(parts: Sequence[DistinctColumn], *, size: int) -> DistinctColumn:
    """Return the column of a tier of segments, whose dictionary of keys has this size."""
    pairs = merged_times([part.pairs for part in parts])
    return DistinctColumn(pairs, build_firsts(pairs, keys=size))


def stored(columns: Mapping[str, DistinctColumn]) -> tuple[dict[str, str], dict[str, pa.Array]]:
    """Return what ``read_columns`` needs: the kind of each column's values, and arrays by name."""
    arrays: dict[str, pa.Array] = {}
    for name, column in columns.items():
        arrays[f"{VALUES}{name}"] = column.pairs.pairs.values[-1]
        of_pairs = (column.pairs.pairs.pairs[-1], column.pairs.before, column.pairs.last)
        for part, values in {**dict(zip(_OF_PAIRS, of_pairs, strict=True)), **column.arrays}.items():
            arrays[f"{_PREFIX}{name}.{part}"] = pa.array(values)
    return {name: column.pairs.pairs.kinds[-1] for name, column in columns.items()}, arrays


def read_columns(
    kinds: Mapping[str, str],
    *,
    keys: KeyDictionary,
    values: Mapping[str, pa.Array],
    numbers: Mapping[str, npt.NDArray[Any]],
) -> dict[str, DistinctColumn]:
    """Return the columns that were stored beside a dictionary of keys; of ``values`` and ``numbers`` others may be."""
    out = {}
    for name, kind in kinds.items():
        prefix = f"{_PREFIX}{name}."
        arrays = {part.removeprefix(prefix): array for part, array in numbers.items() if part.startswith(prefix)}
        pairs, before, last = (arrays.pop(part) for part in _OF_PAIRS)
        dictionary = KeyDictionary(
            (*keys.names, name),
            (*keys.kinds, kind),
            (*keys.values, values[f"{VALUES}{name}"]),
            (*keys.pairs, pairs),
        )
        out[name] = DistinctColumn(PairTimes(dictionary, before, last), arrays)
    return out
