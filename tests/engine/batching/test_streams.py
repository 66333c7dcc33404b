"""Streams: bounded batches, columns and spans, and damage that is named rather than read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.batching import ChunkWriter, read_batches
from engine.batching.streams import held_bytes, read_weighed, rows_for, rows_within, uneven_terms
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
    assert max(batch.nbytes for batch in batches) <= 40_000  # texts differ by a quarter within a row group
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


def _texts(values: list[str]) -> pa.RecordBatch:
    return pa.record_batch({"key": range(len(values)), "at": [START] * len(values), "text": values}, schema=SCHEMA)


def test_texts_that_repeat_are_small_on_disk_and_are_read_by_what_they_take_in_memory(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path, prefix="00000001-rows", schema=SCHEMA, row_group_bytes=10**7) as writer:
        for _ in range(4):
            writer.write(_texts(["y" * 20_000] * 500))
    path = tmp_path / writer.chunks[0].path
    assert path.stat().st_size < 100_000
    sizes = [batch.nbytes for batch in read_batches([path], batch_bytes=10**6)]
    assert max(sizes) <= 10**6
    assert len(sizes) < 60


def test_a_burst_of_long_texts_makes_small_batches_of_its_own_rows_only(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path, prefix="00000001-rows", schema=SCHEMA, row_group_bytes=500_000) as writer:
        for values in (["a"] * 20_000, ["b" * 10_000] * 50, ["c"] * 20_000):
            writer.write(_texts(values))
            writer.write(_texts(["-"] * 20_000))
    batches = list(read_batches([tmp_path / writer.chunks[0].path], batch_bytes=100_000))
    assert max(batch.nbytes for batch in batches) <= 200_000
    assert max(batch.num_rows for batch in batches) > 3_000
    assert [text for batch in batches for text in batch["text"].to_pylist()].count("b" * 10_000) == 50


def test_columns_that_are_not_read_do_not_make_batches_smaller(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path, prefix="00000001-rows", schema=SCHEMA) as writer:
        writer.write(_texts(["y" * 5_000] * 1_000))
    path = tmp_path / writer.chunks[0].path
    assert len(list(read_batches([path], columns=["key"], batch_bytes=10_000))) == 1
    assert len(list(read_batches([path], columns=["key", "text"], batch_bytes=100_000))) > 40


def test_rows_of_a_file_that_says_nothing_of_its_texts_are_read_by_the_bound_of_row_groups(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    pq.write_table(pa.Table.from_batches([_texts(["y" * 20_000] * 400)]), path)
    assert max(batch.nbytes for batch in read_batches([path], batch_bytes=10**6)) <= 10**6


@pytest.mark.parametrize(("limit", "row", "rows"), [(1_000, 13.0, 76), (1_000, 5_000.0, 1), (10**9, 1.0, 131_072)])
def test_rows_of_a_batch(limit: int, row: float, rows: int) -> None:
    assert rows_for(limit, bytes_per_row=row) == rows


def test_uneven_rows_of_one_row_group_come_in_batches_of_bounded_bytes_too(tmp_path: Path) -> None:
    path, texts = tmp_path / "other.parquet", ["a"] * 5_000 + ["b" * 10_007] * 101 + ["c" * 300_007] + ["a"] * 5_000
    pq.write_table(pa.Table.from_batches([_texts(texts)]), path)
    batches = list(read_batches([path], batch_bytes=100_003))
    assert [text for batch in batches for text in batch["text"].to_pylist()] == texts
    assert all(batch.nbytes <= 1.25 * 100_003 or batch.num_rows == 1 for batch in batches)


def test_rows_are_weighed_by_columns_that_are_not_read(tmp_path: Path) -> None:
    with ChunkWriter(tmp_path, prefix="00000001-rows", schema=SCHEMA, row_group_bytes=50_000) as writer:
        writer.write(_texts(["a"] * 20_011))
        writer.write(_texts(["b" * 5_003] * 101))
    span = ("at", None, None)
    found = list(read_weighed([tmp_path / writer.chunks[0].path], of=["text"], span=span))
    assert sum(len(times) for times, _ in found) == 20_112
    assert sum(len(times) for times, row_bytes in found if row_bytes > 5_000) in range(90, 102)
    assert sum(len(times) * row_bytes for times, row_bytes in found) == pytest.approx(
        20_011 * 5 + 101 * 5_007, rel=0.05
    )


def test_what_is_weighed_is_named_when_it_is_damaged(tmp_path: Path) -> None:
    path = _chunks(tmp_path, rows=2_000)[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TableError, match=path.name):
        list(read_weighed([path], of=["text"], span=("at", None, None)))


@pytest.mark.parametrize(
    ("largest", "terms"),
    [(0, {}), (65_536, {}), (70_001, {"large rows": 2**24}), (100_003, {"large rows": 2**24 + 21})],
)
def test_rows_larger_than_a_batch_are_held_as_often_as_one(largest: int, terms: dict[str, int]) -> None:
    assert uneven_terms(largest, batch_bytes=100_000, copies=7) == terms


def test_rows_that_were_read_before_are_passed_over_whatever_the_batches(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=5_000, chunk_rows=2_000)
    span = ("at", START + timedelta(minutes=700), None)
    whole = [row for batch in read_batches(paths, span=span) for row in batch.to_pylist()]
    for after in (0, 1, 997, len(whole) - 1, len(whole), len(whole) + 1):
        rest = list(read_batches(paths, span=span, batch_bytes=2_000, after_rows=after))
        assert [row for batch in rest for row in batch.to_pylist()] == whole[after:]
        assert all(batch.num_rows for batch in rest)


def test_row_groups_before_the_rows_that_are_asked_for_are_not_decoded(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=9_000, chunk_rows=6_000, group_bytes=32_000)
    metadata = pq.read_metadata(paths[0])
    assert metadata.num_row_groups > 2
    first, second = metadata.row_group(0), metadata.row_group(1).column(0)
    content = bytearray(paths[0].read_bytes())
    begin, end = first.column(0).data_page_offset, second.dictionary_page_offset or second.data_page_offset
    content[begin:end] = bytes(end - begin)
    paths[0].write_bytes(content)
    for after in (first.num_rows, first.num_rows + 1, 5_999, 6_000, 8_999, 9_000):
        rest = read_batches(paths, columns=["key"], after_rows=after)
        assert [key for batch in rest for key in batch["key"].to_pylist()] == list(range(after, 9_000))
    with pytest.raises(TableError, match=paths[0].name):
        list(read_batches(paths, after_rows=first.num_rows - 1))


def test_what_values_take_is_said_by_the_newest_chunks_of_which_a_damaged_one_is_named(tmp_path: Path) -> None:
    paths = _chunks(tmp_path, rows=5_000, chunk_rows=2_000)
    found = held_bytes(paths, [*SCHEMA, pa.field("later", pa.string())])
    assert found["key"] == found["at"] == pytest.approx(8, abs=0.2)
    assert 4 < found["text"] < 4 + 4 * 2 + 1
    assert found["later"] == 0
    paths[-1].write_bytes(paths[-1].read_bytes()[:-100])
    with pytest.raises(TableError, match=paths[-1].name):
        held_bytes(paths, list(SCHEMA))
    assert held_bytes(paths, [SCHEMA.field("key")])["key"] == found["key"]  # nothing is read for it


def test_booleans_that_will_be_numbers_come_in_batches_as_large_as_numbers(tmp_path: Path) -> None:
    table = pa.table({f"b{i}": pa.array([True, False] * 5_000) for i in range(8)})
    pq.write_table(table, tmp_path / "bits.parquet")
    rows = {
        least: max(
            batch.num_rows
            for batch in read_batches([tmp_path / "bits.parquet"], batch_bytes=64_000, least_value_bytes=least)
        )
        for least in (0.0, 4.0, 8.0)
    }
    assert rows == {0.0: 10_000, 4.0: 2_000, 8.0: 1_000}


def test_rows_of_a_span_are_counted_by_row_groups_moments_and_all(tmp_path: Path) -> None:
    (chunk,) = _chunks(tmp_path, rows=8_000)  # a row a minute
    groups = pq.read_metadata(chunk).num_row_groups
    assert groups > 2
    for low, high in ((0, 8_000), (1_234, 6_789), (7_000, 9_000)):
        about = rows_within(chunk, ("at", START + timedelta(minutes=low), START + timedelta(minutes=high)))
        assert about == pytest.approx(min(high, 8_000) - low, abs=2)
    moments = pa.table(
        {"at": [START + timedelta(days=row // 500) for row in range(2_000)]}, schema=pa.schema([SCHEMA[1]])
    )
    pq.write_table(moments, tmp_path / "moments.parquet", row_group_size=500)
    assert rows_within(tmp_path / "moments.parquet", ("at", START, START + timedelta(days=2))) == 1_000
    pq.write_table(moments, tmp_path / "two.parquet", row_group_size=1_000)
    assert rows_within(tmp_path / "two.parquet", ("at", START + timedelta(days=3), START + timedelta(days=4))) == 500
