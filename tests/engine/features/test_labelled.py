"""Prepared rows with their labels: the newest that was known, in bounded memory whatever shares a moment."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
import pytest

from engine.batching import Chunk, ChunkWriter
from engine.features import labelled
from engine.features.label_events import STAMP
from engine.features.labelled import LabelView, labelled_rows
from engine.memory.budget import Budget
from engine.memory.governor import Governor

START = datetime(2026, 1, 1, tzinfo=UTC)
KNOWN_BY = START + timedelta(days=20)
ROWS = pa.schema([("key", pa.int64()), ("event_time", STAMP), ("x", pa.float64())])
EVENTS = pa.schema(
    [("key", pa.int64()), ("event_time", STAMP), ("known_at", STAMP), ("labelled_at", STAMP), ("value", pa.bool_())]
)
KEYS = 1_000


def _moment(key: int, moments: int) -> datetime:
    return START + timedelta(days=10) * (key * moments // KEYS) / moments


def _write(directory: Path, rows: Sequence[dict[str, Any]], schema: pa.Schema) -> list[Chunk]:
    with ChunkWriter(
        directory,
        prefix="00000001-rows",
        schema=schema,
        chunk_rows=300,
        row_group_bytes=4_000,
        bounds_of=["event_time"],
    ) as writer:
        for low in range(0, len(rows), 50):
            writer.write(pa.RecordBatch.from_pylist(list(rows[low : low + 50]), schema=schema))
    times = [row["event_time"] for row in rows]
    found = []
    for number, ref in enumerate(writer.chunks):
        mine = times[number * 300 : number * 300 + ref.rows]
        bounds = {"event_time": min(mine)}, {"event_time": max(mine)}
        found.append(Chunk(directory / ref.path, ref.path, 1, ref.rows, ref.bytes, *bounds))
    return found


def _tables(directory: Path, *, moments: int, corrections: int) -> tuple[list[Chunk], list[Chunk], dict[int, Any]]:
    """Return prepared rows, label events, and by key the label that was known in the end, if any."""
    rows, events, last = [], [], dict[int, Any]()
    for key in range(KEYS):
        at = _moment(key, moments)
        rows.append({"key": key, "event_time": at, "x": float(key)})
        for number in range(corrections if key % 11 else 0):
            said = at + timedelta(days=1 + number)
            value = None if (key + number) % 13 == 0 else (key * 7 + number) % 3 == 0
            record = {"key": key, "event_time": at, "known_at": said, "labelled_at": said, "value": value}
            events.append(record)
            if said <= KNOWN_BY:
                last[key] = value
    events.sort(key=lambda record: (record["known_at"], record["key"]))
    (directory / "rows").mkdir()
    (directory / "events").mkdir()
    return _write(directory / "rows", rows, ROWS), _write(directory / "events", events, EVENTS), last


def _labelled(
    rows: Sequence[Chunk], events: Sequence[Chunk], *, absent: Literal["negative", "unknown"] = "unknown"
) -> list[tuple[int, bool]]:
    view = LabelView(events, KNOWN_BY, absent, timedelta(days=15))
    governor = Governor(Budget(2**34, batch_bytes=3_000), reserved_bytes=0)
    frames = labelled_rows(rows, view, columns=["x"], schema=ROWS, low=None, high=None, governor=governor)
    found = [row for frame in frames for row in frame.select("key", "_label").rows()]
    assert all(isinstance(label, bool) for _, label in found)
    return found


@pytest.mark.parametrize("moments", [1, 3, KEYS])
@pytest.mark.parametrize("corrections", [1, 8])
def test_each_row_has_its_newest_label_and_no_more_are_held_than_of_some_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moments: int, corrections: int
) -> None:
    rows, events, last = _tables(tmp_path, moments=moments, corrections=corrections)
    expected = [(key, last[key]) for key in range(KEYS) if last.get(key) is not None]
    assert 500 < len(expected) < KEYS
    assert _labelled(rows, events) == expected
    held: list[int] = []
    newest = labelled.latest_records

    def watched(records: pl.DataFrame) -> pl.DataFrame:
        held.append(records.height)
        return newest(records)

    monkeypatch.setattr(labelled, "latest_records", watched)
    monkeypatch.setattr("engine.features.label_events.latest_records", watched)
    monkeypatch.setattr(labelled, "_ROWS_PER_SPAN", 100)
    monkeypatch.setattr(labelled, "_LEAST_ROWS", 100)
    monkeypatch.setattr(labelled, "_LABEL_BATCH_BYTES", 1_000)
    assert _labelled(rows, events) == expected
    assert len(held) >= 10
    assert max(held) <= 150 + 50  # and one batch


def test_absent_labels_are_negative_once_they_are_due_also_where_many_rows_share_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, events, last = _tables(tmp_path, moments=2, corrections=2)
    monkeypatch.setattr(labelled, "_ROWS_PER_SPAN", 100)
    monkeypatch.setattr(labelled, "_LEAST_ROWS", 100)
    found = dict(_labelled(rows, events, absent="negative"))
    for key in range(KEYS):
        due = _moment(key, 2) + timedelta(days=15) <= KNOWN_BY
        label = last.get(key)
        assert found.get(key) == (label if label is not None else (False if due else None))


def test_features_may_be_called_label_and_value(tmp_path: Path) -> None:
    rows, events, last = _tables(tmp_path, moments=KEYS, corrections=2)
    schema = pa.schema([*ROWS.remove(2), ("label", pa.float64()), ("value", pa.int64())])
    named = [
        {"key": row["key"], "event_time": row["event_time"], "label": row["x"] / 2, "value": row["key"] + 1}
        for chunk in rows
        for row in pl.read_parquet(chunk.path).iter_rows(named=True)
    ]
    (tmp_path / "named").mkdir()
    view = LabelView(events, KNOWN_BY, "unknown", timedelta(days=15))
    frames = labelled_rows(
        _write(tmp_path / "named", named, schema),
        view,
        columns=["label", "value"],
        schema=schema,
        low=None,
        high=None,
        governor=Governor(Budget(2**34, batch_bytes=3_000), reserved_bytes=0),
    )
    found = pl.concat(frames)
    assert found.columns == ["key", "event_time", "label", "value", "_label"]
    assert dict(found.select("key", "_label").iter_rows()) == {k: v for k, v in last.items() if v is not None}
    assert found["label"].to_list() == [key / 2 for key in found["key"]]
    assert found["value"].to_list() == [key + 1 for key in found["key"]]
