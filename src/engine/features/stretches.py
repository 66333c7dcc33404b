"""Stretches of a span that hold no more rows, or bytes, than are asked for: its rows are counted by event time.

A plan knows rows by hour; where they crowd within one, tasks look closer.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import datetime

import numpy as np
import pyarrow as pa

from engine.batching import Chunk
from engine.batching.streams import read_weighed
from engine.features.row_slices import time_of
from engine.features.spans import Span

_BINS = 65_536
_CROWD = 1 / 1_024  # of all: what is less is not worth another look


def stretches(
    chunks: Sequence[Chunk],
    *,
    columns: Sequence[str],
    time: str,
    span: Span,
    rows: int,
    most_bytes: float = math.inf,
) -> Iterator[Span]:
    """Yield stretches that make up a span, in order, each of about ``rows`` rows and ``most_bytes`` at most.

    Parameters
    ----------
    chunks
        Of ``raw``: each version of a row counts.
    columns
        Whose bytes count.
    time
        The column of event time.

    Notes
    -----
    Rows are counted in 65,536 parts of the span, and again in as many of a part where they crowd. A stretch has more
    where a microsecond has, or a part that is less than a thousandth of the span's rows. The last one may have none.
    """
    width = max(1, -(-(span.high - span.low) // _BINS))
    counts, sizes = _counted([c for c in chunks if c.may_hold(time, *_within(span))], columns, time, span, width)
    all_rows, all_bytes = max(1, int(counts.sum())), max(1.0, float(sizes.sum()))
    start, held, held_bytes = span.low, 0, 0.0
    for index in np.flatnonzero(counts):
        low = span.low + int(index) * width
        high = min(span.high, low + width)
        found, size = int(counts[index]), float(sizes[index])
        if held and (held + found > rows or held_bytes + size > most_bytes):
            yield Span(start, low, held)
            start, held, held_bytes = low, 0, 0.0
        is_full = found > rows or size > most_bytes
        if is_full and width > 1 and found > 1 and max(found / all_rows, size / all_bytes) > _CROWD:
            crowd = Span(low, high)
            closer = stretches(chunks, columns=columns, time=time, span=crowd, rows=rows, most_bytes=most_bytes)
            for part in closer:
                yield Span(start, part.high, part.rows)
                start = part.high
        else:
            held, held_bytes = held + found, held_bytes + size
    if start < span.high:
        yield Span(start, span.high, held)


def _counted(
    chunks: Sequence[Chunk], columns: Sequence[str], time: str, span: Span, width: int
) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.float64]]]:
    """Return rows and their bytes in each of the span's parts, which are ``width`` microseconds wide."""
    counts, sizes = np.zeros(_BINS, dtype=np.int64), np.zeros(_BINS)
    for values, row_bytes in read_weighed([c.path for c in chunks], of=columns, span=(time, *_within(span))):
        times = values.cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_numpy(zero_copy_only=False)
        found = np.bincount((times - span.low) // width, minlength=_BINS)
        counts += found
        sizes += found * row_bytes
    return counts, sizes


def _within(span: Span) -> tuple[datetime | None, datetime | None]:
    return time_of(span.low), time_of(span.high)
