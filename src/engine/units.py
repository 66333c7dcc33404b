"""Sizes, durations and times as people write them; parsed once, at the edge, to bytes, timedeltas and UTC."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

_SIZE = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([KMGT]i?B|B)?\s*$")
_SIZE_UNITS = {
    "B": 1,
    **{f"{p}B": 1000**i for i, p in enumerate("KMGT", 1)},
    **{f"{p}iB": 1024**i for i, p in enumerate("KMGT", 1)},
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*(us|ms|s|m|h|d|w)")
_DURATION_UNITS = {
    "us": timedelta(microseconds=1),
    "ms": timedelta(milliseconds=1),
    "s": timedelta(seconds=1),
    "m": timedelta(minutes=1),
    "h": timedelta(hours=1),
    "d": timedelta(days=1),
    "w": timedelta(weeks=1),
}


def parse_bytes(text: str | int) -> int:
    """Return a size such as ``512MiB``, ``2GB`` or ``1048576`` in bytes.

    Raises
    ------
    ValueError
        When it is not a size.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.match(str(text))
    if not match:
        raise ValueError(f"{text!r} is not a size; write for example 512MiB, 2GiB or 1048576")
    size = float(match[1]) * _SIZE_UNITS[match[2] or "B"]
    if size >= 2**63:
        raise ValueError(f"{str(text)[:40]!r} is larger than any machine's memory")
    return int(size)


def format_bytes(value: float) -> str:
    """Return a size for people, in binary units: ``512 MiB``, ``1.5 GiB``."""
    for unit, size in (("TiB", 1024**4), ("GiB", 1024**3), ("MiB", 1024**2), ("KiB", 1024)):
        if abs(value) >= size:
            amount = value / size
            return f"{amount:.0f} {unit}" if amount >= 100 or amount == int(amount) else f"{amount:.1f} {unit}"
    return f"{value:.0f} B"


def parse_duration(text: str | timedelta) -> timedelta:
    """Return a duration such as ``3h``, ``7d`` or ``1h30m``.

    Raises
    ------
    ValueError
        When it is not a duration; a bare number has no unit and is refused, except 0.
    """
    if isinstance(text, timedelta):
        return text
    text = str(text).strip()
    if text == "0":
        return timedelta(0)
    found = _DURATION.findall(text)
    if not found or _DURATION.sub("", text).strip():
        raise ValueError(f"{text!r} is not a duration; write for example 30s, 15m, 3h, 7d or 1h30m")
    total = timedelta(0)
    try:
        for amount, unit in found:
            total += float(amount) * _DURATION_UNITS[unit]
    except OverflowError:
        raise ValueError(f"{text[:40]!r} is longer than a duration can be") from None
    return total


def format_duration(value: timedelta) -> str:
    """Return a duration as ``parse_duration`` reads it: ``7d``, ``1d12h``, ``0s``."""
    rest = value
    parts = []
    for unit in ("d", "h", "m", "s", "ms", "us"):
        amount, rest = divmod(rest, _DURATION_UNITS[unit])
        if amount:
            parts.append(f"{amount}{unit}")
    return "".join(parts) or "0s"


def microseconds(value: timedelta) -> int:
    """Return a duration in whole microseconds."""
    return value // timedelta(microseconds=1)


def parse_time(text: str | datetime) -> datetime:
    """Return an ISO 8601 time in UTC; one without a zone is taken as UTC."""
    value = text if isinstance(text, datetime) else datetime.fromisoformat(text)
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def format_time(value: datetime) -> str:
    """Return a time as ISO 8601 in UTC, with microseconds only where there are any."""
    return parse_time(value).isoformat().replace("+00:00", "Z")
