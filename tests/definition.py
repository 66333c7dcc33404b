"""What windows are by their definition, in plain Python over rows as mappings, with exact sums."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from typing import Any

from engine.spec import WindowSpec

Row = Mapping[str, Any]
"""With its time ``at``, its keys and its measures by their columns' names."""


def _key(row: Row, names: Sequence[str]) -> tuple[Any, ...]:
    """Return a row's key such that equal keys are equal values."""
    return tuple(_same(row[name]) for name in names)


def _same(value: Any) -> Any:
    if isinstance(value, float):
        return "nan" if value != value else value + 0.0
    return value


def known(rows: Sequence[Row], labels: Sequence[Row], delay: timedelta) -> list[Row]:
    """Return the label records whose row is there and that withdraw nothing, each at when it became known."""
    of = {row["id"]: row for row in rows}
    return [
        {
            **of[record["key"]],
            "at": max(of[record["key"]]["at"] + delay, record["labelled_at"]),
            "value": record["value"],
        }
        for record in labels
        if record["key"] in of and record["value"] is not None
    ]


def inside(window: WindowSpec, gap: timedelta, length: timedelta, row: Row, others: Sequence[Row]) -> list[Row]:
    """Return those of other rows, or label records, that a row's window holds: the definition."""
    near, key = row["at"] - gap, _key(row, window.keys)
    if window.null_keys == "exclude" and None in key:
        return []
    closed = bool(gap) or window.same_instant
    return [
        other
        for other in others
        if near - length < other["at"]
        and (other["at"] < near or (closed and other["at"] == near))
        and _key(other, window.keys) == key
    ]


def statistic(name: str, row: Row, inside: Sequence[Row], column: str) -> Any:
    """Return a statistic of what a row's window holds."""
    if name == "count":
        return len(inside)
    if name == "since":
        return (row["at"] - max(other["at"] for other in inside)).total_seconds() if inside else None
    values = [other[column] for other in inside if other[column] is not None]
    if name == "distinct":
        return len({_same(value) for value in values})
    if name == "sum":
        return _total(values)
    if len(values) < (2 if name == "std" else 1):
        return None
    if name in ("min", "max"):
        return math.nan if any(value != value for value in values) else float((min if name == "min" else max)(values))
    if name == "std":
        return _deviation(values)
    mean = _total(values) / len(values)
    if name != "ratio":
        return mean
    return None if row[column] is None or mean == 0 else float(row[column]) / mean


def _total(values: Sequence[Any]) -> float:
    odd = [value for value in values if not math.isfinite(value)]
    return sum(odd) if odd else float(sum(map(Fraction, values)))


def _deviation(values: Sequence[Any]) -> float:
    if not all(map(math.isfinite, values)):
        return math.nan
    mean = sum(map(Fraction, values)) / len(values)
    return math.sqrt(sum((Fraction(value) - mean) ** 2 for value in values) / (len(values) - 1))
