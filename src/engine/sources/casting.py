"""Values brought to a schema's types, and the rows apart that cannot be: nothing is lost in silence, nothing raises."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.sources.protocol import LONGEST_VALUE, STAMP, Rejected

Conversion = Callable[[pa.Array], pa.Array]
_LISTS = ((pa.types.is_list, pa.list_), (pa.types.is_large_list, pa.large_list))


def cast_rows(
    rows: pa.RecordBatch, schema: pa.Schema, *, key: str, cursor: str
) -> tuple[pa.RecordBatch, tuple[Rejected, ...]]:
    """Return the rows with ``schema``, and those left out that hold a value which is none of its types.

    A column that the rows lack is null; one that the schema lacks is left out.
    """
    if rows.schema.equals(schema):
        return rows, ()
    arrays, wrong = [], dict[int, tuple[str, str]]()
    for field in schema:
        index = rows.schema.get_field_index(field.name)
        if index < 0:
            arrays.append(pa.nulls(rows.num_rows, field.type))
            continue
        values = rows.column(index)
        if values.type == field.type:
            arrays.append(values)
            continue
        array, bad = convert(values, partial(cast_values, kind=field.type), kind=field.type)
        arrays.append(array)
        for at in bad:
            wrong.setdefault(at, (field.name, f"it is no {field.type}"))
    out = pa.RecordBatch.from_arrays(arrays, schema=schema)
    if not wrong:
        return out, ()
    rejected = tuple(reject(rows, at, wrong[at][0], wrong[at][1], key=key, cursor=cursor) for at in sorted(wrong))
    keep = pa.array([at not in wrong for at in range(rows.num_rows)])
    return out.filter(keep), rejected


def convert(values: pa.Array, conversion: Conversion, *, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Return the converted values, null where one cannot be, and the places of those.

    Parameters
    ----------
    conversion
        Raises ``pa.ArrowInvalid`` or ``pa.ArrowNotImplementedError`` when any value of its array cannot be converted.
        Called for halves, then quarters, of what fails: few bad values among many cost little.
    kind
        Of the converted values.
    """
    parts, bad = [], []
    for start, part in _parts(values, conversion, 0):
        if part is None:
            bad.append(start)
            part = pa.nulls(1, kind)
        parts.append(part)
    return (parts[0] if len(parts) == 1 else pa.concat_arrays(parts)) if parts else pa.nulls(0, kind), bad


def reject(
    rows: pa.RecordBatch, at: int, column: str | None, reason: str, *, key: str, cursor: str, value: Any = None
) -> Rejected:
    """Return one row as rejected, with what finds it again."""
    one = rows.slice(at, 1)
    row = as_json(one)
    when = python_values(one.column(cursor))[0] if cursor in one.schema.names else None
    found = python_values(one.column(column))[0] if value is None and column in one.schema.names else value
    return Rejected(
        reason=f"column {column!r}: {reason}" if column else reason,
        column=column,
        value=None if found is None else str(found)[:LONGEST_VALUE],
        key=str(python_values(one.column(key))[0]) if key in one.schema.names else None,
        cursor=when if isinstance(when, datetime) else None,
        row=row,
    )


def as_json(row: pa.RecordBatch) -> Mapping[str, Any]:
    """Return one row as JSON-able values, long ones cut."""
    out = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        value = python_values(column)[0]
        short = value[:LONGEST_VALUE] if isinstance(value, str | bytes) else value
        out[name] = short if isinstance(short, str | int | float | bool) or short is None else str(short)
    return out


def _parts(values: pa.Array, conversion: Conversion, start: int) -> Iterator[tuple[int, pa.Array | None]]:
    try:
        yield start, conversion(values)
        return
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        if len(values) <= 1:
            yield start, None
            return
    half = len(values) // 2
    yield from _parts(values.slice(0, half), conversion, start)
    yield from _parts(values.slice(half), conversion, start + half)


def cast_values(values: pa.Array, *, kind: pa.DataType) -> pa.Array:
    """Return values of a type that a table has; a time without a zone is UTC. Raises as ``convert`` asks."""
    if values.type == kind:
        return values
    if pa.types.is_timestamp(kind) and pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        values = in_microseconds(values)
    if kind == STAMP and pa.types.is_timestamp(values.type) and values.type.tz is None:
        return pc.assume_timezone(values.cast(pa.timestamp("us"), safe=False), "UTC")
    if kind == STAMP and pa.types.is_date(values.type):
        return pc.assume_timezone(values.cast(pa.timestamp("us")), "UTC")
    if kind == STAMP and pa.types.is_timestamp(values.type):
        return values.cast(kind, safe=False)
    if pa.types.is_floating(kind) and pa.types.is_integer(values.type):
        return values.cast(kind, safe=False)  # as every engine does: nearest
    if pa.types.is_string(kind) and (pa.types.is_nested(values.type) or pa.types.is_time(values.type)):
        return pa.array([None if value is None else str(value) for value in python_values(values)], pa.string())
    return values.cast(kind)


def in_microseconds(times: pa.Array) -> pa.Array:
    """Return times of nanoseconds in microseconds, rounded down: a cast would round those before 1970 up."""
    return rounded_down(times.cast(pa.int64()), 1_000).cast(pa.timestamp("us", tz=times.type.tz))


def rounded_down(numbers: pa.Array, divisor: int) -> pa.Array:
    """Return integers divided, rounded down; null stays null."""
    whole = pc.fill_null(numbers, 0).to_numpy(zero_copy_only=False) // divisor
    return pa.array(whole, mask=numbers.is_null().to_numpy(zero_copy_only=False))


def python_values(values: pa.Array) -> list[Any]:
    """Return values as Python has them; times are cut to microseconds, as our tables have them."""
    if pa.types.is_timestamp(values.type) and values.type.unit == "ns":
        values = in_microseconds(values)
    kind = _in_microseconds(values.type)
    found: list[Any] = (values if kind == values.type else values.cast(kind, safe=False)).to_pylist()
    return found


def _in_microseconds(kind: pa.DataType) -> pa.DataType:
    """Return a type with microseconds in the place of nanoseconds, however deep they lie."""
    if pa.types.is_dictionary(kind):
        return _in_microseconds(kind.value_type)
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_in_microseconds(field.type)) for field in kind])
    for is_list, of in _LISTS:
        if is_list(kind):
            return of(kind.value_field.with_type(_in_microseconds(kind.value_type)))
    if pa.types.is_map(kind):
        return pa.map_(_in_microseconds(kind.key_type), _in_microseconds(kind.item_type))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        return pa.timestamp("us", kind.tz)
    if pa.types.is_time64(kind) and kind.unit == "ns":
        return pa.time64("us")
    return pa.duration("us") if kind == pa.duration("ns") else kind
