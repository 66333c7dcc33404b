"""Streams: bounded batches, columns and spans, and damage that is named rather than read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from engine.batching import ChunkWriter, read_batches, rebatch
from engine.batching.streams import rows_for
from engine.errors import TableError

START = datetime(2013, 1, 1, tzinfo=UTC)
SCHEMA = pa.schema([("key", pa.int64()), ("at", pa.timestamp("us", tz="UTC")), ("text", pa.string())])


def _chunks(directory: Path, *, rows: int, chunk_rows: int = 10_000, group_bytes: int = 64_000) -> list[Path]:
    with ChunkWriter(
        directory, prefix="00000001-rows", schema=SCHEMA, chunk_rows=chunk_rows, row_group_bytes=group_bytes
    ) as writer:
        for low in range(0, rows, 1_000):
            keys = list(range(low, min(low + 1_000, rows)))
            at = [START + timedelta(minutes=key) for key in keys]
            text = [f"{key:x}" * (key % 5) for key in keys]
            writer.write(pa.record_batch({"key": keys, "at": at, "text": text}, schema=SCHEMA))
    return [directory / chunk.path for chunk in writer.chunks]


def test_every_row_once_in_order_and_no_batch_over_its_bytes(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=25_500)
    assert len(paths) == 3
    batches = list(read_batches(paths, batch_bytes=32_000))
    assert [key for batch in batches for key in batch["key"].to_pylist()] == list(range(25_500))
    assert max(batch.nbytes for batch in batches) <= 64_000  # a footer tells encoded bytes, so twice is possible
    assert len(batches) > 10


def test_the_bound_may_move_between_files(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=20_000)
    limits = iter([200_000, 8_000])
    sizes = [batch.num_rows for batch in read_batches(paths, batch_bytes=lambda: next(limits))]
    assert max(sizes[-3:]) < sizes[0]
    assert sum(sizes) == 20_000


def test_a_span_is_half_open(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=5_000)
    low, high = START + timedelta(minutes=1_234), START + timedelta(minutes=1_240)
    found = [b["key"].to_pylist() for b in read_batches(paths, columns=["key"], span=("at", low, high))]
    assert [key for part in found for key in part] == list(range(1_234, 1_240))


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=2_000)
    paths[0].write_bytes(paths[0].read_bytes()[:-100])
    with pytest.raises(TableError, match=paths[0].name):
        list(read_batches(paths))


def test_a_flipped_bit_is_found_by_its_checksum(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=2_000)
    content = bytearray(paths[0].read_bytes())
    content[len(content) // 3] ^= 0x40
    paths[0].write_bytes(bytes(content))
    with pytest.raises(TableError, match="cannot be read"):
        list(read_batches(paths))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(TableError, match=r"gone\.parquet"):
        list(read_batches([tmp_path / "gone.parquet"]))


def test_a_failed_block_leaves_no_unfinished_file(tmp_path: Path) -> None:
    batch = pa.record_batch({"key": [1], "at": [START], "text": ["x"]}, schema=SCHEMA)

    def write_and_fail() -> None:
        with ChunkWriter(tmp_path, prefix="00000001-rows", schema=SCHEMA, row_group_bytes=1) as writer:
            writer.write(batch)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_and_fail()
    assert list(tmp_path.iterdir()) == []


def test_rebatch_makes_borders_independent_of_the_reader(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=5_050)
    for limit in (9_000, 70_000):
        sizes = [batch.num_rows for batch in rebatch(read_batches(paths, batch_bytes=limit), rows=700)]
        assert sizes == [700] * 7 + [150]


@pytest.mark.parametrize(("limit", "row", "rows"), [(1_000, 13.0, 76), (1_000, 5_000.0, 1), (10**9, 1.0, 131_072)])
def test_rows_of_a_batch(limit: int, row: float, rows: int) -> None:
    assert rows_for(limit, bytes_per_row=row) == rows
