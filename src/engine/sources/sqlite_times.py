"""Times in SQLite, which has no type for them: ISO 8601 text, or numbers since 1970. Pure functions."""

from __future__ import annotations

import contextlib
import re
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SourceError
from engine.sources.casting import rounded_down
from engine.sources.dialects import STAMP

_OFFSET = r"(Z|[+-]\d\d:?\d\d)$"
_LONGEST_DATE = 10
# Numbers from here on count a smaller unit: 10**11 seconds is the year 5138.
_UNITS = ((10**17, 10**9), (10**14, 10**6), (10**11, 10**3), (0, 1))  # (least absolute value, units in a second)
_MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def written_like(sample: str | int | float | None, time: datetime) -> str | int | float:
    """Return ``time`` written as ``sample`` is, so that the database's own comparison with such values is right.

    Parameters
    ----------
    sample
        Any value of the column; None when there is none.
    time
        With a zone.

    Returns
    -------
    str | int | float
        A time of a finer resolution is rounded down.
    """
    if isinstance(sample, int | float):
        microseconds = (time - _EPOCH) // _MICROSECOND
        units = _units(sample)
        return microseconds / 1e6 * units if isinstance(sample, float) else microseconds * units // 1_000_000
    text = sample or ""
    offset = re.search(_OFFSET, text)
    zone = _zone(offset[0]) if offset else UTC
    separator = "T" if "T" in text else " "
    local = time.astimezone(zone)
    # Without a suffix, a shorter value sorts before the same one with a fraction, so the fraction is always right.
    fraction = f".{local.microsecond:06d}" if "." in text or not offset else ""
    return local.strftime(f"%Y-%m-%d{separator}%H:%M:%S") + fraction + (offset[0] if offset else "")


def as_time(values: pa.Array, *, column: str) -> pa.Array:
    """Return text or numbers as timestamp[us, UTC]; text without a zone is UTC, finer parts are cut off.

    Raises
    ------
    SourceError
        A value is no time; ``column`` says where.
    """
    try:
        return parsed_times(values)
    except pa.ArrowInvalid as error:
        raise SourceError(
            f"column {column!r} holds a value that is no time: {str(error).splitlines()[0]}",
            hint="times are ISO 8601 text, in UTC where no zone is given, or numbers since 1970 "
            "(seconds, milliseconds, microseconds or nanoseconds)",
        ) from None


def parsed_times(values: pa.Array) -> pa.Array:
    """Return the same, raising ``pa.ArrowInvalid`` when a value is no time."""
    if pa.types.is_integer(values.type):
        return _whole(values)
    if pa.types.is_floating(values.type):
        return _fractional(values)
    return _text(values.cast(pa.string()))


def _text(text: pa.Array) -> pa.Array:
    with contextlib.suppress(pa.ArrowInvalid):  # a zone is refused here, and seen to below
        return pc.assume_timezone(text.cast(pa.timestamp("us")), "UTC")
    zoned = pc.match_substring_regex(text, _OFFSET)
    is_date = pc.less_equal(pc.utf8_length(text), _LONGEST_DATE)
    suffix = pc.if_else(zoned, "", pc.if_else(is_date, "T00:00:00Z", "Z"))
    return pc.binary_join_element_wise(text, suffix, "").cast(STAMP)


def _whole(numbers: pa.Array) -> pa.Array:
    size = pc.abs(numbers)
    out = pa.nulls(len(numbers), pa.int64())
    for least, units in reversed(_UNITS):
        scaled = pc.multiply(numbers, 10**6 // units) if units <= 10**6 else rounded_down(numbers, units // 10**6)
        out = pc.if_else(pc.greater_equal(size, least), scaled, out)
    return out.cast(STAMP)


def _fractional(numbers: pa.Array) -> pa.Array:
    if pc.any(pc.invert(pc.is_finite(numbers))).as_py():
        raise pa.ArrowInvalid("it is not finite")
    size = pc.abs(numbers)
    out = pa.nulls(len(numbers), pa.float64())
    for least, units in reversed(_UNITS):
        out = pc.if_else(pc.greater_equal(size, float(least)), pc.multiply(numbers, 1e6 / units), out)
    return pc.round(out).cast(pa.int64()).cast(STAMP)


def _units(sample: float) -> int:
    return next(units for least, units in _UNITS if abs(sample) >= least)


def _zone(offset: str) -> timezone:
    if offset == "Z":
        return UTC
    hours, minutes = int(offset[1:3]), int(offset[-2:])
    return timezone((-1 if offset[0] == "-" else 1) * timedelta(hours=hours, minutes=minutes))
