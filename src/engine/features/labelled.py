"""Prepared rows with the label that was known at a cut-off, in order of event time, in bounded memory.

Used by training, validation and monitoring; which rows they take is theirs to say.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa

from engine.batching import Chunk, read_batches
from engine.batching.chunks import ROW_GROUP_BYTES
from engine.batching.frames import taken
from engine.batching.streams import Within, held_bytes, most_batch_bytes, uneven_terms
from engine.features.label_events import latest_labels, latest_records
from engine.layout import LABEL
from engine.memory.governor import Governor

if TYPE_CHECKING:
    import polars as pl

MODEL_VALUE_BYTES = 4.0
"""What a value counts at least, of batches that models are given: encoders and learners make a number of a boolean."""

_ROWS_PER_SPAN, _LEAST_ROWS = 100_000, 1_000  # fewer where keys are long
_EVERY_ROW = 2**62
_COPIES = 6  # of a batch: as read, joined, with its label, filtered, as the learner wants it
_LABEL_BYTES, _KEY_COPIES = 336, 8  # of a span's label while the newest is found: sorted, then made unique
_SPAN_BYTES = _ROWS_PER_SPAN * (_LABEL_BYTES + 8 * _KEY_COPIES)
_LABEL_BATCH_BYTES = 2**20
_UNRETURNED_BYTES = 16 * 2**20  # freed by Polars and not given back yet


@dataclass(frozen=True)
class LabelView:
    """Which labels count: the last record of each key that was known by ``known_by``."""

    chunks: Sequence[Chunk]  # of label_events
    known_by: datetime
    absent: Literal["negative", "unknown"]
    delay: timedelta


def labelled_terms(
    batch_bytes: int,
    *,
    rows: int | None = None,
    row_bytes: float | None = None,
    key_bytes: float = 8.0,
    largest_row_bytes: int = 0,
) -> dict[str, int]:
    """Return what ``labelled_rows`` holds with batches of this size, in bytes by the name of a projection's term.

    Parameters
    ----------
    rows, row_bytes
        Of the table that is read, at most, and of the columns that are; None: not known.
    key_bytes
        Of a key, on average. Of many rows the labels are looked up for fewer at once where it is large.
    largest_row_bytes
        Of the table that is read; 0 where its rows are small.
    """
    label = _label_bytes(key_bytes)
    labels = _SPAN_BYTES if rows is None else min(int(rows * label), max(_SPAN_BYTES, int(_LEAST_ROWS * label)))
    return {
        "batches in flight": most_batch_bytes(batch_bytes, rows=rows, row_bytes=row_bytes) * _COPIES,
        "labels of one span": labels,
        "row group being read": ROW_GROUP_BYTES,
        "freed, not yet given back": _UNRETURNED_BYTES,
        **uneven_terms(largest_row_bytes, batch_bytes=batch_bytes, copies=_COPIES),
    }


def labelled_rows(
    chunks: Sequence[Chunk],
    labels: LabelView,
    *,
    columns: Sequence[str],
    schema: pa.Schema,
    low: datetime | None,
    high: datetime | None,
    governor: Governor,
) -> Iterator[pl.DataFrame]:
    """Yield rows with event time in ``[low, high)`` that have a label, with it as the boolean column ``_label``.

    Parameters
    ----------
    chunks
        Of a table with the columns ``key`` and ``event_time`` (prepared or predictions).
    columns
        To read beside those two.
    schema
        Of the table, for columns that older chunks lack.
    governor
        Says how large a batch may be, and is told what has passed.

    Notes
    -----
    Spans of event time of about 100,000 rows, fewer where keys are long, are taken one after another, so that memory
    holds the newest labels of one span and one batch. Where a span has many more, as of one moment, labels are looked
    up for so many of its rows at a time. The rows and their order do not depend on that, nor on how the table is cut
    into chunks.
    """
    import polars as pl

    names = list(dict.fromkeys(["key", "event_time", *columns]))
    part = pa.schema([schema.field(name) for name in names])
    key = schema.field("key").with_name("key")
    label_bytes = _label_bytes(held_bytes([chunk.path for chunk in labels.chunks], [key])["key"])
    most = max(_LEAST_ROWS, min(_ROWS_PER_SPAN, int(_SPAN_BYTES / label_bytes)))
    for start, end in spans_of(chunks, low=low, high=high, rows=most):
        mine = _in_time_order([chunk for chunk in chunks if chunk.may_hold("event_time", start, end)])
        paths, span = [chunk.path for chunk in mine], ("event_time", start, end)
        known = _labels_of_rows(labels, paths, span=span, key=key, most=most)
        of_rows, left = pl.DataFrame(), 0
        for batch in read_batches(
            paths,
            columns=names,
            schema=part,
            batch_bytes=governor.batch_bytes,
            span=span,
            least_value_bytes=MODEL_VALUE_BYTES,
        ):
            rows = pl.DataFrame(batch)
            while rows.height:
                if not left:
                    of_rows, left = next(known)
                found = _with_label(rows.head(left), of_rows, labels)
                rows, left = rows.slice(left), max(0, left - rows.height)
                if found.height:
                    yield found
            governor.passed(batch.nbytes)
        governor.passed(int(of_rows.height * label_bytes))


def _label_bytes(key_bytes: float) -> float:
    return _LABEL_BYTES + _KEY_COPIES * key_bytes


def _with_label(rows: pl.DataFrame, known: pl.DataFrame, labels: LabelView) -> pl.DataFrame:
    """Return the rows that have a label, with it."""
    import polars as pl

    label = pl.col(LABEL)
    rows = rows.join(known.rename({"value": LABEL}), on="key", how="left", maintain_order="left")
    if labels.absent == "negative":
        due = pl.col("event_time") + labels.delay <= labels.known_by
        rows = rows.with_columns(pl.when(label.is_null() & due).then(statement=False).otherwise(label).alias(LABEL))
    return rows.filter(label.is_not_null())


def spans_of(
    chunks: Sequence[Chunk], *, low: datetime | None, high: datetime | None, rows: int
) -> list[tuple[datetime, datetime]]:
    """Return spans of event time that cover the chunks' rows in ``[low, high)``, of about ``rows`` rows each."""
    mine = [chunk for chunk in chunks if chunk.rows and chunk.may_hold("event_time", low, high)]
    if not mine:
        return []
    start = min(chunk.minimum["event_time"] for chunk in mine)
    end = max(chunk.maximum["event_time"] for chunk in mine) + timedelta(microseconds=1)
    start, end = max(start, low) if low else start, min(end, high) if high else end
    parts = max(1, -(-sum(chunk.rows for chunk in mine) // rows))
    step = max((end - start) / parts, timedelta(seconds=1))
    out = []
    while start < end:
        out.append((start, min(start + step, end)))
        start += step
    return out


def _labels_of_rows(
    labels: LabelView, paths: Sequence[Path], *, span: Within, key: pa.Field, most: int
) -> Iterator[tuple[pl.DataFrame, int]]:
    """Yield the labels of a span (key, value), each with of how many of its next rows they are: all, or a part."""
    import polars as pl

    whole = _labels_in(labels, span=span, key=key, most=most)
    if whole is not None:
        yield whole, _EVERY_ROW
        return
    held: list[pl.DataFrame] = []
    rows = 0
    for batch in read_batches(paths, columns=["key"], span=span):
        keys = pl.DataFrame(batch)
        while keys.height:
            held.append(keys.head(most - rows))
            keys, rows = keys.slice(most - rows), rows + held[-1].height
            if rows == most:
                yield _labels_for(labels, pl.concat(held), span=span, key=key, most=most), rows
                held, rows = [], 0
    if held:
        yield _labels_for(labels, pl.concat(held), span=span, key=key, most=most), rows


def _labels_for(labels: LabelView, keys: pl.DataFrame, *, span: Within, key: pa.Field, most: int) -> pl.DataFrame:
    found = _labels_in(labels, span=span, key=key, most=most, of=keys.unique())
    if found is None:
        raise AssertionError("the newest labels of some keys are no more than the keys")
    return found


def _labels_in(
    labels: LabelView, *, span: Within, key: pa.Field, most: int, of: pl.DataFrame | None = None
) -> pl.DataFrame | None:
    """Return the labels of a span, or of some keys in it; None where they are of more than ``most`` keys.

    Half as many records more are held, before only the newest of each key are.
    """
    import polars as pl

    _, low, high = span
    mine = [chunk for chunk in labels.chunks if chunk.may_hold("event_time", low, high)]
    held: list[pl.DataFrame] = []
    rows = 0
    for batch in read_batches(
        [chunk.path for chunk in mine],
        columns=["key", "event_time", "known_at", "labelled_at", "value"],
        batch_bytes=_LABEL_BATCH_BYTES,
        span=span,
    ):
        part = pl.DataFrame(batch).filter(pl.col("known_at") <= labels.known_by).drop("event_time")
        if of is not None:
            part = part.join(of, on="key", how="semi")
        held, rows = [*held, taken(part, of=batch.num_rows)], rows + part.height
        if rows > most * 3 // 2:
            newest = latest_records(pl.concat(held))
            if of is None and newest.height > most:
                return None
            held, rows = [newest], newest.height
    if not held:
        return pl.DataFrame(pa.schema([key, pa.field("value", pa.bool_())]).empty_table())
    return latest_labels(pl.concat(held))


def _in_time_order(chunks: Sequence[Chunk]) -> list[Chunk]:
    return sorted(chunks, key=lambda chunk: (chunk.minimum["event_time"], chunk.name))
