"""Columns of text brought to types, and types guessed from text. What cannot be converted is null, and named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from engine.sources.casting import convert
from engine.sources.protocol import STAMP
from engine.sources.sqlite_times import parsed_times

if TYPE_CHECKING:
    import polars as pl

_TRUE, _FALSE = ("true", "t", "yes", "y", "1"), ("false", "f", "no", "n", "0")
_TOO_LONG_A_NUMBER = 18  # digits from which a column of numbers may not fit, and stays text
NAMED: Mapping[str, pa.DataType] = {
    "integer": pa.int64(),
    "float": pa.float64(),
    "boolean": pa.bool_(),
    "time": STAMP,
    "text": pa.string(),
}
"""Types as the pipeline file names them."""


def typed(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    """Return text as values of a type, and the places of what is none of it.

    Polars converts numbers, since it does so at once and leaves null what it cannot; times and the rest go through
    ``casting.convert``.
    """
    if pa.types.is_string(kind):
        return values, []
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return _numbers(values, kind)
    if pa.types.is_boolean(kind):
        return convert(values, _booleans, kind=kind)
    if kind == STAMP:
        return convert(values, _times, kind=kind)
    return convert(values, lambda part: part.cast(kind), kind=kind)


def typed_frame(frame: pl.DataFrame, own: pa.Schema) -> tuple[pa.RecordBatch, dict[int, str]]:
    """Return a block's columns as the schema's types, and by row the column that holds what is none of its type.

    Polars converts all columns at once. A column that comes out with more nulls than it had is converted again by
    ``typed``, which says where, and knows more notations.
    """
    import polars as pl

    fields = [field for field in own if field.name in frame.columns]
    wanted = {field.name: expression for field in fields if (expression := _expression(frame, field)) is not None}
    before = frame.null_count()
    out = frame.with_columns(**wanted)
    after = out.null_count()
    arrays, wrong = [], dict[int, str]()
    for field in fields:
        name = field.name
        lost = name in wanted and (after[name][0] != before[name][0] or not _is_in_years(out[name]))
        source = frame if lost else out
        array = source[name].to_arrow(compat_level=pl.CompatLevel.oldest())
        if source[name].dtype == pl.String:
            array, bad = typed(array.cast(pa.string()), field.type)
            for at in bad:
                wrong.setdefault(at, name)
        arrays.append(array if array.type == field.type else array.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields)), wrong


def _expression(frame: pl.DataFrame, field: pa.Field) -> pl.Expr | None:
    """Return how Polars converts a column of text; None where it is left to ``typed``, or is no text."""
    import polars as pl

    if frame.schema[field.name] != pl.String:
        return None
    if pa.types.is_integer(field.type):
        return pl.col(field.name).cast(_polars(field.type), strict=False)
    if pa.types.is_floating(field.type):
        return pl.col(field.name).cast(pl.Float64, strict=False)
    if pa.types.is_boolean(field.type):
        column = pl.col(field.name)
        return pl.when(column == "true").then(True).when(column == "false").then(False)
    if field.type == STAMP:
        first = next(iter(frame[field.name].drop_nulls().head(1)), "")
        written = _FORMATS.get(
            (len(first[:10]), first[10:11], "." in first, len(first) > _SECONDS_END and "." not in first)
        )
        if written is not None:
            text = pl.col(field.name).str
            return text.to_datetime(written, time_unit="us", strict=False, exact=True).dt.replace_time_zone("UTC")
    return None


_SECONDS_END = 19  # characters of a date and a time to the second
_FORMATS = {
    (10, "", False, False): "%Y-%m-%d",
    (10, " ", False, False): "%Y-%m-%d %H:%M:%S",
    (10, "T", False, False): "%Y-%m-%dT%H:%M:%S",
    (10, " ", True, False): "%Y-%m-%d %H:%M:%S%.f",
    (10, "T", True, False): "%Y-%m-%dT%H:%M:%S%.f",
}
"""By what the first value looks like: length of the date, what follows it, a fraction, a zone (none of these has)."""


def guessed(values: pa.Array) -> pa.DataType:
    """Return the narrowest type that all values have: integer, float, boolean, time, else text."""
    present = values.drop_null()
    if not len(present):
        return pa.string()
    # 007 is no number: it would come back as 7.
    padded = pc.any(pc.match_substring_regex(present, r"^[+-]?0\d")).as_py()
    long = pc.greater(pc.utf8_length(present), _TOO_LONG_A_NUMBER)
    for kind in (pa.int64(), pa.float64(), pa.bool_(), STAMP):
        is_number = kind in (pa.int64(), pa.float64())
        if is_number and (padded or (kind == pa.int64() and pc.any(long).as_py())):
            continue
        if kind == pa.bool_() and not pc.all(pc.is_in(pc.utf8_lower(present), pa.array(["true", "false"]))).as_py():
            continue
        if _all_are(present, kind):
            return kind
    return pa.string()


def _all_are(values: pa.Array, kind: pa.DataType) -> bool:
    """Return whether every value is one of a type; stops at the first that is none."""
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):
        return not _numbers(values, kind)[1]
    try:
        (_booleans if pa.types.is_boolean(kind) else _times)(values)
    except pa.ArrowInvalid:
        return False
    return True


def _numbers(values: pa.Array, kind: pa.DataType) -> tuple[pa.Array, list[int]]:
    import polars as pl

    text = pl.Series(values)
    wanted = _polars(kind) if pa.types.is_integer(kind) else pl.Float64
    out = text.str.strip_chars().cast(wanted, strict=False)
    bad = [] if out.null_count() == text.null_count() else (out.is_null() & text.is_not_null()).arg_true().to_list()
    array = out.to_arrow(compat_level=pl.CompatLevel.oldest())
    return array.cast(kind), bad


def _booleans(values: pa.Array) -> pa.Array:
    lower = pc.utf8_lower(pc.utf8_trim_whitespace(values))
    yes, no = (pc.is_in(lower, pa.array(words)) for words in (_TRUE, _FALSE))
    if not pc.all(pc.or_(pc.or_(yes, no), pc.is_null(lower))).as_py():
        raise pa.ArrowInvalid("it is neither true nor false")
    return pc.if_else(pc.is_null(lower), pa.scalar(None, pa.bool_()), yes)


def _times(values: pa.Array) -> pa.Array:
    out = parsed_times(values)
    extent = pc.min_max(out.cast(pa.int64()))
    if extent["min"].as_py() is not None and not (extent["min"].as_py() >= _FIRST and extent["max"].as_py() < _END):
        raise pa.ArrowInvalid("outside the years 1 to 9999")
    return out


def _polars(kind: pa.DataType) -> pl.DataType:
    import polars as pl

    return pl.Series(pa.array([], kind)).dtype


def _is_in_years(values: pl.Series) -> bool:
    """Return whether all times are within the years that a time of ours has; true of what is no time."""
    if not values.dtype.is_temporal() or values.null_count() == len(values):
        return True
    whole = values.to_physical()
    return bool(whole.min() >= _FIRST and whole.max() < _END)  # type: ignore[operator]


_FIRST, _END = -62_135_596_800_000_000, 253_402_300_800_000_000
"""Microseconds since 1970 of the years 1 and 10,000."""
