"""Which spans of event time prepare must write, or write again, after new rows: pure arithmetic over counts by hour.

Times are microseconds since 1970 UTC; a span is half-open, ``[low, high)``.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

HOUR = 3_600_000_000  # microseconds
_APART = 31 * 24 * HOUR  # pieces further apart make no span: one wrong date in the future would be in each later one
_FULLER = 1.1  # times as many rows as a fresh span has: a live span takes so many before it is cut


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
    cut_live: bool = False,
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
    cut_live
        A live span that has come to hold many more rows than a fresh one is written again as several.

    Notes
    -----
    Counts by hour make this an over-estimate: a live span may be written again without need, with the same content.
    A new row counts beside those that a live span holds, though it may be a new version of one.
    """
    live = sorted(live)
    dirty = {span for low, high in again for span in overlapping(live, low, high)}
    fresh: list[Span] = []
    pieces = _pieces(increments)
    for piece in pieces:
        touched = overlapping(live, piece.low, piece.high)
        dirty.update(touched)
        fresh.extend(_uncovered(piece, touched))
        if reach:
            dirty.update(overlapping(live, piece.low, piece.high + reach))
    most = rows_per_span if cut_live else None
    written_again = [part for span in dirty for part in _with(span, pieces, most)]
    return tuple(sorted([*_grouped(fresh, live, rows_per_span), *written_again]))


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


def _with(live: Span, pieces: Sequence[Span], most_rows: int | None) -> list[Span]:
    """Return a live span with the pieces' rows that fall into it, cut where those are more than it may take."""
    inside = [_within(piece, live.low, live.high) for piece in overlapping(pieces, live.low, live.high)]
    rows = live.rows + sum(piece.rows for piece in inside)
    if most_rows is None or rows <= _FULLER * most_rows:
        return [Span(live.low, live.high, rows)]
    return _grouped(_tiles(live, inside), [], most_rows)


def _tiles(live: Span, pieces: Sequence[Span]) -> list[Span]:
    """Return a live span as one stretch for each piece and each gap between two, its rows spread evenly over them."""
    out, at = [], live.low
    for piece in pieces:
        if at < piece.low:
            out.append(_within(live, at, piece.low))
        own = _within(live, piece.low, piece.high)
        out.append(Span(piece.low, piece.high, own.rows + piece.rows))
        at = piece.high
    if at < live.high:
        out.append(_within(live, at, live.high))
    return out


def _within(span: Span, low: int, high: int) -> Span:
    """Return the part of a span in ``[low, high)``, with its share of the rows, rounded up."""
    low, high = max(span.low, low), min(span.high, high)
    return Span(low, high, -(-span.rows * (high - low) // (span.high - span.low)))


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
    """Join near pieces up to ``rows_per_span``, never across a live span; cut a piece that is larger alone."""
    out: list[Span] = []
    for piece in sorted(fresh):
        parts = math.ceil(piece.rows / rows_per_span) if piece.rows > rows_per_span else 1
        step = max(1, math.ceil((piece.high - piece.low) / parts))
        for low in range(piece.low, piece.high, step):
            part = Span(low, min(low + step, piece.high), math.ceil(piece.rows / parts))
            last = out[-1] if out else None
            between = last is not None and any(span.overlaps(last.high, part.low) for span in live)
            apart = last is not None and part.low - last.high > _APART
            if last is None or between or apart or last.rows + part.rows > rows_per_span:
                out.append(part)
            else:
                out[-1] = Span(last.low, part.high, last.rows + part.rows)
    return out
