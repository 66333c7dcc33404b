"""How chunks are encoded. What they hold and when they are part of a table is ``test_tables.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.batching import ChunkWriter, chunks
from engine.batching.chunks import CHUNK_ROWS, LARGE_ROW_BYTES, ROW_GROUP_BYTES, fixed_row_bytes, most_chunk_rows
from engine.batching.streams import said_largest_row


def test_dictionaries_are_built_only_for_text_that_repeats(tmp_path: Path) -> None:
    rows = pa.record_batch({"order": [f"order {i}" for i in range(4_000)], "method": ["card", "cash"] * 2_000})
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema) as writer:
        writer.write(rows)
    group = pq.read_metadata(tmp_path / writer.chunks[0].path).row_group(0)
    assert [group.column(at).has_dictionary_page for at in (0, 1)] == [False, True]
    assert pq.read_table(tmp_path / writer.chunks[0].path).to_batches() == [rows]


def test_whole_numbers_and_times_are_packed_differences_whatever_they_are(tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 5_000)
    kinds = (pa.int8(), pa.uint16(), pa.int32(), pa.int64(), pa.uint64(), pa.date32(), pa.timestamp("us", "UTC"))
    arrays = [pa.array(numbers).cast(pa.int64()).cast(kind, safe=False) for kind in kinds if kind != pa.date32()]
    arrays.insert(5, pa.array(numbers >> 44).cast(pa.int32()).cast(pa.date32()))
    holed = [
        pa.array(np.ma.masked_array(numbers, numbers % 3 == 0)),
        pa.array(numbers / 7.0),
        pa.nulls(5_000, pa.int64()),
    ]
    rows = pa.record_batch([*arrays, *holed], names=[*map(str, kinds), "holed", "double", "null"])
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema) as writer:
        writer.write(rows)
    path = tmp_path / writer.chunks[0].path
    group = pq.read_metadata(path).row_group(0)
    packed = [field.name for at, field in enumerate(rows.schema) if "DELTA" in str(group.column(at).encodings)]
    assert packed == [field.name for field in rows.schema if field.name != "double"]
    assert pq.read_table(path).to_batches() == [rows]


def test_the_footer_of_a_chunk_is_bounded_however_wide_its_rows_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunks, "_MOST_PARTS", 500)
    rows = pa.record_batch({f"c{i}": np.arange(20_000) * 0.5 + i for i in range(200)})
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema) as writer:
        for start in range(0, rows.num_rows, 500):
            writer.write(rows.slice(start, 500))
    assert len(writer.chunks) > 1
    for ref in writer.chunks:
        found = pq.read_metadata(tmp_path / ref.path)
        assert found.num_row_groups * found.num_columns <= 3 * 200  # two whole row groups, and a last one
    assert sum(ref.rows for ref in writer.chunks) == rows.num_rows


def test_a_chunk_has_a_million_rows_where_columns_are_few() -> None:
    double, group = pa.float64(), pa.struct([(f"f{i}", pa.float64()) for i in range(2_000)])
    assert most_chunk_rows(pa.schema([(f"c{i}", double) for i in range(20)])) == CHUNK_ROWS
    wide = most_chunk_rows(pa.schema([(f"c{i}", double) for i in range(2_000)]))
    assert 9 < wide * 2_000 * 8.125 / ROW_GROUP_BYTES <= 10
    assert most_chunk_rows(pa.schema([("all", group)])) < CHUNK_ROWS
    assert most_chunk_rows(pa.schema([(f"c{i}", double) for i in range(100_000)])) * 812_500 <= ROW_GROUP_BYTES


def test_floats_are_compressed_only_where_that_saves_anything(tmp_path: Path) -> None:
    noise = np.random.default_rng(1).normal(size=5_000)
    columns = {"noise": noise, "steps": np.round(noise), "number": np.arange(5_000)}
    rows = pa.record_batch({name: pa.array(values) for name, values in columns.items()})
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema) as writer:
        writer.write(rows)
    group = pq.read_metadata(tmp_path / writer.chunks[0].path).row_group(0)
    assert [group.column(at).compression for at in range(3)] == ["UNCOMPRESSED", "ZSTD", "ZSTD"]
    assert pq.read_table(tmp_path / writer.chunks[0].path).to_batches() == [rows]


def test_a_batch_of_uneven_rows_is_cut_into_row_groups_of_bounded_bytes(tmp_path: Path) -> None:
    texts = ["t" * 50] * 9_000 + ["b" * 10_007] * 101 + ["t" * 50] * 9_000
    rows = pa.record_batch({"text": texts})
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema, row_group_bytes=100_003) as writer:
        writer.write(rows)
    path = tmp_path / writer.chunks[0].path
    with pq.ParquetFile(path) as file:
        groups = [file.read_row_group(at) for at in range(file.num_row_groups)]
    assert max(group.nbytes for group in groups) < 2.5 * 100_003
    assert len(groups) > 10
    assert [text for group in groups for text in group.column("text").to_pylist()] == texts


@pytest.mark.parametrize(("longest", "said"), [(LARGE_ROW_BYTES // 2, 0), (100_003, 100_003 + 8 + 7 * 8)])
def test_a_chunk_says_what_its_largest_row_takes_unless_all_are_small(tmp_path: Path, longest: int, said: int) -> None:
    columns = {"id": [1, 2, 3], "text": ["a", "b" * longest, None], "items": [[1] * 7, [], None]}
    rows = pa.record_batch(columns)
    with ChunkWriter(tmp_path, prefix="1-raw", schema=rows.schema) as writer:
        writer.write(rows)
        writer.end_chunk()
        writer.write(rows.slice(0, 1))
    assert [ref.largest_row_bytes for ref in writer.chunks] == [said, 0]
    assert [said_largest_row(tmp_path / ref.path) for ref in writer.chunks] == [said, 0]


def test_a_row_has_a_size_where_all_its_columns_do() -> None:
    assert fixed_row_bytes(pa.schema([("a", pa.int64()), ("b", pa.float32())])) == (65 + 33) / 8
    assert fixed_row_bytes(pa.schema([("a", pa.int64()), ("b", pa.bool_())]), least_value_bytes=7) == 14
    assert fixed_row_bytes(pa.schema([("a", pa.int64()), ("b", pa.string())])) is None
