"""Which spans of event time prepare must write, or write again, after new rows: pure arithmetic over counts by hour.

Times are microseconds since 1970 UTC; a span is half-open, ``[low, high)``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HOUR = 3_600_000_000  # microseconds


@dataclass(frozen=True)
class Increment:
    """What one extraction added: rows by hour of event time, and the exact extent."""

    hours: Mapping[int, int]  # hours since 1970 -> rows
    minimum: int
    maximum: int


@dataclass(frozen=True, order=True)
class Span:
    """A stretch of event time that is prepared, and written, as one."""

    low: int
    high: int
    rows: int = 0  # expected

    def overlaps(self, low: int, high: int) -> bool:
        """Return whether the span shares a moment with ``[low, high)``."""
        return self.low < high and low < self.high


def overlapping(spans: Sequence[Span], low: int, high: int) -> Sequence[Span]:
    """Return those that share a moment with ``[low, high)``, of spans in order of time that do not overlap."""
    first = bisect.bisect_right(spans, low, key=lambda span: span.high)
    last = bisect.bisect_left(spans, high, key=lambda span: span.low)
    return spans[first:last]


def plan_spans(
    increments: Sequence[Increment],
    *,
    live: Sequence[Span],
    rows_per_span: int,
    reach: int = 0,
    again: Sequence[tuple[int, int]] = (),
) -> tuple[Span, ...]:
    """Return the spans to write, in time order: fresh ones, and live ones that the new rows touch.

    Parameters
    ----------
    increments
        The new rows.
    live
        The spans that are prepared now; they do not overlap.
    rows_per_span
        How many rows a fresh span holds at most, as far as counts by hour can tell.
    reach
        How long after its own event time a row still changes the windows of others (gap + longest window), or 0.
    again
        Stretches of event time whose live spans are to be written again whatever rows are new.

    Notes
    -----
    Counts by hour make this an over-estimate: a live span may be written again without need, with the same content.
    """
    live = sorted(live)
    dirty = {span for low, high in again for span in overlapping(live, low, high)}
    fresh: list[Span] = []
    for piece in _pieces(increments):
        touched = overlapping(live, piece.low, piece.high)
        dirty.update(touched)
        fresh.extend(_uncovered(piece, touched))
        if reach:
            dirty.update(overlapping(live, piece.low, piece.high + reach))
    return tuple(sorted([*_grouped(fresh, live, rows_per_span), *dirty]))


def _pieces(increments: Iterable[Increment]) -> list[Span]:
    """Return one piece an hour, cut to the increments' exact extent; rows of all increments added up."""
    rows: dict[int, int] = {}
    low: dict[int, int] = {}
    high: dict[int, int] = {}
    for increment in increments:
        for hour, count in increment.hours.items():
            start, end = max(hour * HOUR, increment.minimum), min((hour + 1) * HOUR, increment.maximum + 1)
            rows[hour] = rows.get(hour, 0) + count
            low[hour] = min(low.get(hour, start), start)
            high[hour] = max(high.get(hour, end), end)
    return [Span(low[hour], high[hour], rows[hour]) for hour in sorted(rows)]


def _uncovered(piece: Span, touched: Sequence[Span]) -> list[Span]:
    out = []
    at = piece.low
    for span in touched:
        if at < span.low:
            out.append(Span(at, span.low, piece.rows))
        at = max(at, span.high)
    if at < piece.high:
        out.append(Span(at, piece.high, piece.rows))
    return out


def _grouped(fresh: Sequence[Span], live: Sequence[Span], rows_per_span: int) -> list[Span]:
    """Join neighbouring pieces up to ``rows_per_span``, never across a live span; cut a piece that is larger alone."""
    out: list[Span] = []
    for piece in sorted(fresh):
        parts = math.ceil(piece.rows / rows_per_span) if piece.rows > rows_per_span else 1
        step = max(1, math.ceil((piece.high - piece.low) / parts))
        for low in range(piece.low, piece.high, step):
            part = Span(low, min(low + step, piece.high), math.ceil(piece.rows / parts))
            last = out[-1] if out else None
            between = last is not None and any(span.overlaps(last.high, part.low) for span in live)
            if last is None or between or last.rows + part.rows > rows_per_span:
                out.append(part)
            else:
                out[-1] = Span(last.low, part.high, last.rows + part.rows)
    return out
