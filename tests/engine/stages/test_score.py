"""Which rows are scored: those of a batch that have no prediction among its event times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.batching import ChunkWriter, Table, read_batches
from engine.stages import score
from tests.shop import at

STAMP = pa.timestamp("us", tz="UTC")


def _committed(directory: Path, parts: list[dict[Any, float]]) -> Table:
    """Return a table with a chunk for each mapping of a key to its minute."""
    table = Table(directory, name=directory.name)
    for n, part in enumerate(parts, start=1):
        times = pa.array([at(minute) for minute in part.values()], STAMP)
        batch = pa.record_batch({"key": pa.array(list(part)), "event_time": times})
        with ChunkWriter(table.path, prefix=f"{n:08d}-rows", schema=batch.schema, bounds_of=["event_time"]) as writer:
            writer.write(batch)
        table.commit(app="rows", n=n, schema=batch.schema, add=writer.chunks)
    return table


def _fresh(prepared: Table, predictions: Table, rows: dict[Any, float]) -> list[Any]:
    (chunk,) = prepared.chunks()
    times = pa.array([at(minute) for minute in rows.values()], STAMP)
    batch = pa.record_batch({"key": pa.array(list(rows)), "event_time": times})
    return list(score._unscored(batch, score._scored_within(predictions, chunk)).column("key").to_pylist())


@pytest.mark.parametrize("part_bytes", [1, 100, 10**6])
@pytest.mark.parametrize("made", [lambda key: key, lambda key: f"{key:0300}"], ids=["numbers", "long texts"])
def test_a_row_that_has_a_prediction_is_not_scored_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_bytes: int, made: Any
) -> None:
    monkeypatch.setattr(score, "_PART_BYTES", part_bytes)
    prepared = _committed(tmp_path / "prepared", [{made(key): 10 + key for key in range(50)}])
    predictions = _committed(
        tmp_path / "predictions",
        [
            {made(key): 10 + key for key in range(0, 30, 3)},
            {made(key): 10 + key for key in range(30, 50, 2)} | {made(900): 10_000},
            {made(41): 5},  # before the first row of the batch
            {made(43): 20_000},  # and of a commit behind its last
        ],
    )
    batch = {made(key): 10 + key for key in (49, 0, 1, 30, 41, 43, 3, 31)}
    assert _fresh(prepared, predictions, batch) == [made(key) for key in (49, 1, 41, 43, 31)]


def test_without_predictions_all_rows_are_scored(tmp_path: Path) -> None:
    prepared = _committed(tmp_path / "prepared", [{7: 1.0}])
    assert _fresh(prepared, Table(tmp_path / "predictions", name="predictions"), {7: 1, 8: 1}) == [7, 8]


def test_of_many_files_those_are_read_that_reach_into_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = _committed(tmp_path / "prepared", [{key: float(key) for key in range(100)}])
    hourly = [{key: float(key) for key in range(hour, hour + 10)} for hour in range(0, 90, 10)]
    predictions, opened = _committed(tmp_path / "predictions", hourly), list[Path]()

    def watched(paths: Sequence[Path], **arguments: Any) -> Iterator[pa.RecordBatch]:
        opened.extend(paths)
        return read_batches(paths, **arguments)

    monkeypatch.setattr(score, "read_batches", watched)
    assert _fresh(prepared, predictions, {key: float(key) for key in range(85, 95)}) == [*range(90, 95)]
    assert len(opened) == 1
    opened.clear()
    assert _fresh(prepared, predictions, {39: 39.0, 40: 40.0}) == []
    assert len(opened) == 2
