"""Label records joined with the rows that they are of: when each became known, and the keys that windows need.

The join streams ``raw`` past a bounded slice of labels; nothing here decides which slice (``preparing/``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

import pyarrow as pa

from engine.batching.frames import taken, to_arrow

if TYPE_CHECKING:
    import polars as pl

_HELD = 1.25  # times the keys that have labels: beyond so many rows older versions are let go
STAMP = pa.timestamp("us", tz="UTC")


def label_event_schema(key: pa.DataType, window_keys: Sequence[pa.Field]) -> pa.Schema:
    """Return the schema of ``label_events``: key, event_time, known_at, labelled_at, value, then the windows' keys.

    ``value`` is null where a record withdraws a label.
    """
    return pa.schema(
        [
            pa.field("key", key),
            pa.field("event_time", STAMP),
            pa.field("known_at", STAMP),
            pa.field("labelled_at", STAMP),
            pa.field("value", pa.bool_()),
            *window_keys,
        ]
    )


def join_labels(
    labels: pa.Table,
    raw: Iterable[pa.RecordBatch],
    *,
    key: str,
    cursor: str,
    event_time: str,
    window_keys: Sequence[str],
    delay: timedelta,
    transform: Callable[[pa.Table], pa.Table] | None = None,
) -> tuple[pa.Table, pa.Table]:
    """Return the label events, in order of known_at, and the labels whose row has not come yet.

    Parameters
    ----------
    labels
        key, value, labelled_at; held in memory.
    raw
        Batches with the columns ``key``, ``cursor``, ``event_time`` and ``window_keys``; streamed once. The newest
        version by cursor counts.
    delay
        A record is known at ``max(event_time + delay, labelled_at)``.
    transform
        Makes ``window_keys``, of rows that have labels.
    """
    import polars as pl

    wanted = pl.DataFrame(labels)
    keys = wanted.select("key").unique()
    found: list[pl.DataFrame] = []
    held = 0
    for batch in raw:
        given = pl.DataFrame(batch)
        if transform is not None:
            labelled = given.join(keys, left_on=key, right_on="key", how="semi")
            if not labelled.height:
                continue
            given = pl.DataFrame(transform(to_arrow(labelled, batch.schema)))
        rows = given.select(
            pl.col(key).alias("key"),
            pl.col(cursor).alias("_cursor"),
            pl.col(event_time).alias("event_time"),
            *(pl.col(name).alias(f"w_{name}") for name in window_keys),
        )
        matched = rows.join(keys, on="key", how="semi")
        if matched.height:
            found.append(taken(matched, of=batch.num_rows))
            held += matched.height
            if held > _HELD * keys.height:
                found = [_newest(found)]
                held = found[0].height
    if not found:
        empty = label_event_schema(labels.schema.field("key").type, []).empty_table()
        return empty, labels
    newest = _newest(found).drop("_cursor")
    joined = wanted.join(newest, on="key", how="inner")
    events = joined.select(
        "key",
        "event_time",
        pl.max_horizontal(pl.col("event_time") + delay, pl.col("labelled_at")).alias("known_at"),
        "labelled_at",
        "value",
        *(pl.col(f"w_{name}").alias(name) for name in window_keys),
    ).sort("known_at", "key", "labelled_at")
    waiting = wanted.join(newest, on="key", how="anti")
    key_type = labels.schema.field("key").type
    return to_arrow(events, label_event_schema(key_type, _fields(newest, window_keys))), to_arrow(
        waiting, labels.schema
    )


def latest_labels(events: pl.DataFrame) -> pl.DataFrame:
    """Return one row a key with the value of its last record (key, value); withdrawn labels are left out.

    Parameters
    ----------
    events
        key, known_at, labelled_at, value, already cut to what is known.
    """
    import polars as pl

    return latest_records(events).filter(pl.col("value").is_not_null()).select("key", "value")


def latest_records(events: pl.DataFrame) -> pl.DataFrame:
    """Return the last record of each key, withdrawn labels too: of several parts of the records, that of the whole."""
    return events.sort("labelled_at", "known_at", "value").unique(subset="key", keep="last", maintain_order=True)


def _newest(found: Sequence[pl.DataFrame]) -> pl.DataFrame:
    import polars as pl

    return pl.concat(found).sort("_cursor").unique(subset="key", keep="last", maintain_order=True)


def _fields(rows: pl.DataFrame, window_keys: Sequence[str]) -> list[pa.Field]:
    types = to_arrow(rows.head(0)).schema
    return [pa.field(name, types.field(f"w_{name}").type) for name in window_keys]
