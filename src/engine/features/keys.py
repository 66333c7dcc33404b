"""Keys of any type and several columns as small integers, without hashing: two are the same only if they are equal.

A segment holds the distinct values of each key column and the combinations that occur; a batch is looked up in them.
Null is a value like another. What is done with the integers is in ``segments.py``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SchemaMismatch, SpecError

Codes = npt.NDArray[np.int64]

_WIDEST = 2**62
_FEW = 32  # times fewer wanted values than known ones: searched one by one
_EXACT = Context(prec=80)  # digits, more than any decimal of Arrow has
_DENSE = 4  # numbers in between, for each that is looked for


@dataclass(frozen=True)
class KeyColumn:
    """One key column: the distinct values in a canonical form, and which of them each row has."""

    name: str
    kind: str  # values of two kinds are never compared
    values: pa.Array  # distinct, no null: int64, large_string or large_binary
    codes: Codes  # (rows,): 0 is null, then 1 + the place in `values`


@dataclass(frozen=True)
class SortedKeys:
    """The distinct keys of some rows in order, null first, and the rows sorted by (key, time), earlier ones first."""

    columns: tuple[KeyColumn, ...]  # their rows are the distinct keys
    order: npt.NDArray[np.int32]  # (rows,)
    starts: Codes  # (distinct keys + 1,): where each one's rows begin in that order

    @property
    def size(self) -> int:
        """How many distinct keys there are."""
        return len(self.starts) - 1

    def codes(self, begin: int, end: int) -> Codes:
        """Return the place among the distinct keys of each row from ``begin`` to ``end`` in order, int64."""
        low = int(np.searchsorted(self.starts, begin, side="right")) - 1
        high = int(np.searchsorted(self.starts, end, side="left"))
        edges = self.starts[low : high + 1].clip(begin, end)
        sizes = edges[1:] - edges[:-1]
        return np.repeat(np.arange(low, high, dtype=np.int64), sizes)


@dataclass(frozen=True)
class KeyDictionary:
    """The keys of a segment: sorted values by column, and sorted pairs (combination so far, next code)."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    values: tuple[pa.Array, ...]  # by column
    pairs: tuple[Codes, ...]  # one fewer than the columns

    @property
    def size(self) -> int:
        """How many indices there are; with one column, index 0 is null whether it occurs or not."""
        return len(self.pairs[-1]) if self.pairs else len(self.values[0]) + 1

    def columns(self) -> tuple[KeyColumn, ...]:
        """Return the keys by their indices, column by column."""
        codes = [np.arange(self.size, dtype=np.int64)]
        for pairs, values in zip(reversed(self.pairs), reversed(self.values), strict=False):
            before, last = np.divmod(pairs[codes[0]], len(values) + 1)
            codes[:1] = [before, last]
        return tuple(KeyColumn(*column) for column in zip(self.names, self.kinds, self.values, codes, strict=True))

    def find(self, columns: Sequence[KeyColumn]) -> Codes:
        """Return the index of each distinct key, int64, -1 for one that the segment lacks.

        Raises
        ------
        SchemaMismatch
            A column has values of another kind than the segment's.
        """
        found: Codes | None = None
        for place, column in enumerate(columns):
            kind, values = self.kinds[place], self.values[place]
            if column.kind != kind and "null" not in (column.kind, kind):
                raise SchemaMismatch(
                    f"key {column.name!r} holds {column.kind} values, and {kind} values when its windows were built",
                    hint="the column changed its type: prepare the pipeline anew, in another workspace",
                )
            codes = _places(column, values)[column.codes]
            if found is None:
                found = codes
            else:
                known = self.pairs[place - 1]
                wanted = np.where((found < 0) | (codes < 0), -1, found * (len(values) + 1) + codes)
                spot = np.minimum(np.searchsorted(known, wanted), max(len(known) - 1, 0))
                found = np.where(known[spot] == wanted, spot, -1) if len(known) else np.full(len(wanted), -1)
        if found is None:
            raise ValueError("a key has at least one column")
        return found


def read_key_columns(rows: pa.Table, names: Sequence[str]) -> tuple[KeyColumn, ...]:
    """Return the key columns of a table.

    Raises
    ------
    SpecError
        A column is nested or cannot be compared exactly.
    """
    if not names:
        raise ValueError("a key has at least one column")
    return tuple(_read(rows.column(name), name) for name in names)


def sort_keys(rows: pa.Table, names: Sequence[str], times: Codes) -> SortedKeys:
    """Return the distinct keys of some rows, and the rows sorted by key and time.

    Parameters
    ----------
    rows, names
        See ``read_key_columns``.
    times
        int64 (rows,); where they ascend already, nothing is done for it.
    """
    if not names:
        raise ValueError("a key has at least one column")
    by_time = None if (times[1:] >= times[:-1]).all() else np.argsort(times, kind="stable")
    if len(names) == 1:
        name, array = names[0], _whole(rows.column(names[0]))
        kind, array = _canonical(array, name)
        if array.type == pa.int64() and kind != "null":
            low, high = (int(value or 0) for value in pc.min_max(array).as_py().values())
            if (high - low + 2) << len(array).bit_length() < _WIDEST:
                codes = pc.fill_null(array, low).to_numpy(zero_copy_only=False) - low + 1
                if array.null_count:
                    codes[array.is_null().to_numpy(zero_copy_only=False)] = 0
                order, starts, distinct = _sorted(codes, by_time)
                first = int(len(distinct) > 0 and distinct[0] == 0)
                values = pa.array(distinct[first:] - 1 + low)
                return SortedKeys(
                    (KeyColumn(name, kind, values, np.arange(1 - first, len(values) + 1)),), order, starts
                )
    columns = tuple(_in_order(column) for column in read_key_columns(rows, names))
    combined = columns[0].codes
    for column in columns[1:]:
        # Dense again after each column: the product of several could pass int64.
        dense = np.unique(combined, return_inverse=True)[1] if combined.size else combined
        combined = dense * (len(column.values) + 1) + column.codes
    if combined.size and int(combined.max()) << len(combined).bit_length() >= _WIDEST:
        combined = np.unique(combined, return_inverse=True)[1]
    order, starts, _ = _sorted(combined, by_time)
    at = order[starts[:-1]]
    return SortedKeys(tuple(KeyColumn(c.name, c.kind, c.values, c.codes[at]) for c in columns), order, starts)


def _sorted(codes: Codes, by_time: Codes | None) -> tuple[npt.NDArray[np.int32], Codes, Codes]:
    """Return rows sorted by (code, time, row), where each code's begin, and the distinct codes.

    A code and a row in one number, sorted as a number: ten times as fast as an indirect stable sort.
    """
    bits = len(codes).bit_length()
    packed = (codes if by_time is None else codes[by_time]) << bits
    packed |= np.arange(len(codes))
    packed.sort()
    order = (packed & ((1 << bits) - 1)).astype(np.int32)
    packed >>= bits
    begins = np.append(np.flatnonzero(packed[1:] != packed[:-1]) + 1, len(packed))
    starts = np.append(0, begins) if len(packed) else np.zeros(1, dtype=np.int64)
    distinct = packed[starts[:-1]]
    return (order if by_time is None else by_time[order].astype(np.int32)), starts, distinct


def build_dictionary(columns: Sequence[KeyColumn]) -> tuple[KeyDictionary, Codes]:
    """Return the dictionary of distinct keys that are in order, and the index of each, int64, ascending."""
    values, pairs = [], []
    index: Codes | None = None
    for column in columns:
        values.append(column.values)
        if index is None:
            index = column.codes
        else:
            known, index = np.unique(index * (len(column.values) + 1) + column.codes, return_inverse=True)
            pairs.append(known.astype(np.int64))
    if index is None:
        raise ValueError("a key has at least one column")
    names, kinds = tuple(c.name for c in columns), tuple(c.kind for c in columns)
    return KeyDictionary(names, kinds, tuple(values), tuple(pairs)), index.astype(np.int64)


def merged_columns(dictionaries: Sequence[KeyDictionary]) -> tuple[KeyColumn, ...]:
    """Return the distinct keys of several dictionaries of the same columns, in order.

    Raises
    ------
    SchemaMismatch
        A column's values are of several kinds.
    """
    parts = [dictionary.columns() for dictionary in dictionaries]
    columns, combined = [], np.zeros(sum(dictionary.size for dictionary in dictionaries), dtype=np.int64)
    for same in zip(*parts, strict=True):
        kinds = {column.kind for column in same} - {"null"} or {"null"}
        if len(kinds) > 1:
            raise SchemaMismatch(
                f"key {same[0].name!r} holds values of several kinds: {', '.join(sorted(kinds))}",
                hint="the column changed its type: prepare the pipeline anew, in another workspace",
            )
        held = [column.values for column in same if len(column.values)] or [same[0].values]
        if held[0].type == pa.int64():
            values = pa.array(distinct_numbers(np.concatenate([array.to_numpy() for array in held])))
        else:
            values = pc.unique(pa.concat_arrays(held))
            values = values.take(pc.sort_indices(values))
        if len(parts[0]) == 1:
            return (KeyColumn(same[0].name, kinds.pop(), values, np.arange(len(values) + 1)),)
        codes = np.concatenate([_places(column, values)[column.codes] for column in same])
        columns.append(KeyColumn(same[0].name, kinds.pop(), values, codes))
        combined = np.unique(combined, return_inverse=True)[1] * (len(values) + 1) + codes
    _, at = np.unique(combined, return_index=True)
    return tuple(KeyColumn(c.name, c.kind, c.values, c.codes[at]) for c in columns)


def distinct_numbers(numbers: Codes) -> Codes:
    """Return distinct numbers, sorted; ``np.unique`` of 2.4 fills a hash table, which takes fifty times as long."""
    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def key_table(values: Mapping[str, Any]) -> pa.Table:
    """Return one key, given as Python values by column, as a table of one row."""
    return pa.table({name: pa.array([value]) for name, value in values.items()})


def _in_order(column: KeyColumn) -> KeyColumn:
    """Return the column with its values sorted."""
    order = pc.sort_indices(column.values).to_numpy()
    rank = np.empty(len(order) + 1, dtype=np.int64)
    rank[0] = 0
    rank[order.astype(np.int64) + 1] = np.arange(1, len(order) + 1)
    return KeyColumn(column.name, column.kind, column.values.take(pa.array(order)), rank[column.codes])


def _places(column: KeyColumn, known: pa.Array) -> Codes:
    """Return, for code 0 and each value of the column, its code among the known values, or -1."""
    out = np.full(len(column.values) + 1, -1, dtype=np.int64)
    out[0] = 0
    if not len(known) or not len(column.values):
        return out
    if known.type == pa.int64() and column.values.type == pa.int64():
        _find_numbers(column.values.to_numpy(), known.to_numpy(), out=out[1:])
    elif len(column.values) * _FEW < len(known):  # a hash table of all known values would cost more
        for place, value in enumerate(column.values.to_pylist(), 1):
            spot = bisect_left(range(len(known)), value, key=lambda i: known[i].as_py())
            if spot < len(known) and known[spot].as_py() == value:
                out[place] = spot + 1
    else:
        found = pc.index_in(column.values, value_set=known).fill_null(-1).to_numpy(zero_copy_only=False)
        out[1:] = np.where(found < 0, -1, found.astype(np.int64) + 1)
    return out


def _find_numbers(wanted: Codes, known: Codes, *, out: Codes) -> None:
    """Set ``out`` to the code of each number among the known ones, which are sorted, or to -1."""
    first, spread = int(known[0]), int(known[-1]) - int(known[0]) + 1
    if spread > _DENSE * len(wanted):
        spots = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        out[:] = np.where(known[spots] == wanted, spots + 1, -1)
        return
    # A table of all numbers in between takes a fifth of the time. What wraps around int64 is outside of it, too.
    table = np.full(spread, -1, dtype=np.int32)
    table[known - first] = np.arange(1, len(known) + 1, dtype=np.int32)
    at = wanted - first
    inside = (at >= 0) & (at < spread)
    if inside.all():
        out[:] = table[at]
    else:
        out[inside] = table[at[inside]]
        out[~inside] = -1


def _read(column: pa.ChunkedArray, name: str) -> KeyColumn:
    kind, array = _canonical(_whole(column), name)
    if kind == "null":
        return KeyColumn(name, kind, pa.array([], pa.int64()), np.zeros(len(array), dtype=np.int64))
    encoded = array.dictionary_encode()
    codes = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64) + 1
    values = encoded.dictionary
    if pa.types.is_decimal(values.type):
        # 1.5 and 1.50 are one key: scales may differ between segments.
        texts = [format(Decimal(v).normalize(_EXACT), "f") if v else "0" for v in values.to_pylist()]
        values = pa.array(texts, pa.large_string())
    elif pa.types.is_string(values.type):
        values = values.cast(pa.large_string())
    elif pa.types.is_binary(values.type):
        values = values.cast(pa.large_binary())
    return KeyColumn(name, kind, values, codes)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece, its values themselves."""
    if column.num_chunks == 1:
        array = column.chunk(0)
    else:
        array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    return array.cast(array.type.value_type) if pa.types.is_dictionary(array.type) else array


def _canonical(array: pa.Array, name: str) -> tuple[str, pa.Array]:
    """Return the kind of a key column and its values in the form that is compared."""
    of, kind = array.type, ""
    if pa.types.is_null(of):
        kind = "null"
    elif pa.types.is_boolean(of) or pa.types.is_integer(of):
        kind, array = "integer", array.cast(pa.int64())
    elif pa.types.is_floating(of):
        kind, array = "float", _float_bits(array)
    elif pa.types.is_decimal(of):
        kind = "decimal"
    elif pa.types.is_string(of) or pa.types.is_large_string(of) or pa.types.is_string_view(of):
        kind, array = "text", array.cast(pa.large_string())
    elif pa.types.is_binary(of) or pa.types.is_large_binary(of) or pa.types.is_fixed_size_binary(of):
        kind, array = "binary", array.cast(pa.large_binary())
    elif pa.types.is_timestamp(of):
        unit = "ns" if of.unit == "ns" else "us"
        kind, array = f"time[{unit}]", array.cast(pa.timestamp(unit, tz=of.tz)).cast(pa.int64())
    elif pa.types.is_date(of):
        kind, array = "date", array.cast(pa.date32()).cast(pa.int32()).cast(pa.int64())
    elif pa.types.is_time32(of) or pa.types.is_time64(of) or pa.types.is_duration(of):
        narrow = pa.int32() if pa.types.is_time32(of) else pa.int64()
        kind, array = str(of), array.cast(narrow).cast(pa.int64())
    if not kind:
        raise SpecError(
            f"features.windows: key {name!r} is of type {of}, which cannot be a key",
            hint="a key is a number, text, boolean, date, time or binary column",
        )
    return kind, array


def _float_bits(array: pa.Array) -> pa.Array:
    values = array.cast(pa.float64()).to_numpy(zero_copy_only=False).copy()
    missing = array.is_null().to_numpy(zero_copy_only=False)
    values[values == 0.0] = 0.0  # -0.0 and 0.0 are one key, and so are all NaN
    values[np.isnan(values)] = np.nan
    return pa.array(values.view(np.int64), mask=missing)
