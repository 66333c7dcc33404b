"""Files of every format: each row once, whatever the slices, and whatever lies between."""

from __future__ import annotations

import gzip
import os
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError, SpecError
from engine.sources.files import FileSource
from engine.sources.protocol import Seen, Window
from tests.deliveries import EVER, WRITERS, Reader, csv_of, parquet_of, range_of, rows_between


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("limit_rows", [1, 9, 10**6])
def test_each_row_comes_once_whatever_the_slices(tmp_path: Path, suffix: str, limit_rows: int) -> None:
    rows = rows_between(0, 23)
    (tmp_path / f"a.{suffix}").write_bytes(WRITERS[suffix](rows[:20]))
    (tmp_path / f"b.{suffix}").write_bytes(WRITERS[suffix](rows[20:]))
    reader = Reader(str(tmp_path), limit_rows=limit_rows, batch_bytes=2**16)
    assert reader.run() == 23
    assert sorted(reader.plain(), key=lambda row: row["id"]) == rows
    assert len({row["_key"] for row in reader.rows}) == 23
    assert {row["_key"] for row in reader.rows} == {
        *(f"a.{suffix}#{at}" for at in range(20)),
        *(f"b.{suffix}#{at}" for at in range(3)),
    }
    assert reader.run() == 0
    assert reader.rejected == []


@pytest.mark.parametrize("suffix", ["csv", "ndjson", "parquet", "arrow"])
def test_a_large_file_goes_in_slices_and_in_bounded_batches(tmp_path: Path, suffix: str) -> None:
    rows = rows_between(0, 20_000)
    (tmp_path / f"a.{suffix}").write_bytes(WRITERS[suffix](rows))
    reader = Reader(str(tmp_path / f"*.{suffix}"), limit_rows=6_000, batch_bytes=2**17)
    assert reader.run() == 20_000
    assert 3 <= reader.slices <= 5
    assert [row["id"] for row in reader.rows] == list(range(20_000))
    assert [row["_key"] for row in reader.rows] == [f"a.{suffix}#{at}" for at in range(20_000)]


def test_many_tiny_files_go_in_one_slice(tmp_path: Path) -> None:
    for key in range(300):
        (tmp_path / f"{key:04d}.csv").write_text(f"id,v\n{key},1\n")
    reader = Reader(str(tmp_path))
    assert reader.run() == 300
    assert reader.slices == 1
    (tmp_path / "9999.csv").write_text("id,v\n9999,1\n")
    (tmp_path / "0000.csv").unlink()
    assert reader.run() == 1
    assert reader.counts[-1] == {"new": 1, "gone": 1}


def test_a_row_group_that_decodes_to_much_more_than_it_says_streams(tmp_path: Path) -> None:
    text = "x" * 1_000
    pq.write_table(pa.table({"id": range(100_000), "text": [text] * 100_000}), tmp_path / "a.parquet")
    assert (tmp_path / "a.parquet").stat().st_size < 2**20
    source = FileSource(SecretStr(str(tmp_path)))
    bounds = source.next_range(Seen(), Window(until=EVER, limit_rows=10**6))
    assert bounds is not None
    rows = 0
    for batch in source.read(bounds, schema=source.schema(), batch_bytes=2**20):
        rows += batch.rows.num_rows
        assert batch.rows.nbytes < 4 * 2**20
        assert pa.total_allocated_bytes() < 64 * 2**20
    assert rows == 100_000


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    whole = parquet_of(rows_between(0, 100))
    (tmp_path / "whole.parquet").write_bytes(whole)
    (tmp_path / "cut.parquet").write_bytes(whole[:-50])
    with pytest.raises(SourceError, match=r"cut\.parquet cannot be read") as caught:
        Reader(str(tmp_path)).run()
    assert "move a damaged one" in caught.value.hint
    (tmp_path / "cut.parquet").unlink()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(csv_of(rows_between(0, 1000)))[:-20])
    with pytest.raises(SourceError, match=r"cut\.csv\.gz cannot be read"):
        Reader(str(tmp_path)).run()


def test_a_row_group_that_is_damaged_is_named_with_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(rows_between(0, 3_000)), path, row_group_size=1_000)
    column = pq.read_metadata(path).row_group(2).column(0)
    content = bytearray(path.read_bytes())
    start = column.dictionary_page_offset or column.data_page_offset
    content[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(content)
    with pytest.raises(SourceError, match=r"rows\.parquet cannot be read from row 2,000 on \(row group 2\)"):
        Reader(str(tmp_path)).run()


def test_a_delta_table_is_read_by_version_with_its_partitions(tmp_path: Path) -> None:
    from deltalake import write_deltalake

    def write(first: int, last: int) -> None:
        keys = list(range(first, last))
        data = pa.table({"id": keys, "part": [f"p{key % 2}" for key in keys]})
        write_deltalake(tmp_path / "t", data, partition_by=["part"], mode="append")

    write(0, 6)
    reader = Reader(f"delta:{tmp_path / 't'}")
    assert reader.run() == 6
    write(6, 10)
    (tmp_path / "t" / "orphan.parquet").write_bytes(parquet_of(rows_between(0, 3)))  # of no version
    assert reader.run() == 4
    assert sorted((row["id"], row["part"]) for row in reader.rows) == [(key, f"p{key % 2}") for key in range(10)]
    assert Reader(str(tmp_path / "t")).run() == 10  # found to be one by its log


def test_any_scheme_of_fsspec_and_of_arrow_is_listed(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "a.csv").write_bytes(csv_of(rows_between(0, 3)))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/day/b.csv", csv_of(rows_between(3, 7)))
    try:
        assert Reader("memory://bucket/**/*.csv").run() == 4
    finally:
        memory.rm("/bucket", recursive=True)
    assert Reader(f"file://{tmp_path}/*.csv").run() == 3


@pytest.mark.parametrize("uri", ["nope://host/x.csv", "nope://user:hunter22@host/x.csv"])
def test_an_unknown_scheme_is_refused_and_shows_no_secret(uri: str) -> None:
    with pytest.raises(SpecError, match="there is no source for 'nope'") as caught:
        FileSource(SecretStr(uri))
    assert "hunter22" not in str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is nothing at"):
        Reader(str(tmp_path / "none")).run()
    assert Reader(str(tmp_path)).run() == 0
    with pytest.raises(SourceError, match="there is no file to read"):
        FileSource(SecretStr(str(tmp_path))).schema()
    (tmp_path / "a.csv").write_bytes(csv_of(rows_between(0, 3)))
    with pytest.raises(SourceSchemaError, match="no column 'ids'") as caught:
        Reader(str(tmp_path), key="ids").run()
    assert "did you mean 'id'?" in caught.value.hint
    with pytest.raises(SourceSchemaError, match="the cursor 'name' is string, not a time"):
        Reader(str(tmp_path), key="id", cursor="name").run()


def test_hidden_and_empty_files_and_other_suffixes_are_passed_over(tmp_path: Path) -> None:
    for name in (".hidden.csv", "_part.csv", "notes.txt", "_tmp/a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(csv_of(rows_between(0, 3)))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "a.csv").write_bytes(csv_of(rows_between(3, 5)))
    reader = Reader(str(tmp_path))
    assert reader.run() == 2
    assert reader.counts == [{"new": 1, "skipped": 5}]


def test_names_that_come_twice_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,a\n1,2\n")
    with pytest.raises(SourceSchemaError, match="more than one column 'a'"):
        Reader(str(tmp_path)).run()
    (tmp_path / "a.csv").write_text("a,_file\n1,2\n")
    with pytest.raises(SourceSchemaError, match="has a column '_file'"):
        Reader(str(tmp_path)).run()


def test_fat_rows_of_parquet_come_in_batches_of_few_and_thin_ones_of_many(tmp_path: Path) -> None:
    fat = [os.urandom(100_000).hex() for _ in range(100)]
    texts = [*["thin"] * 20_000, *fat, *["thin"] * 400_000]
    pq.write_table(pa.table({"id": range(len(texts)), "text": texts}), tmp_path / "a.parquet", use_dictionary=["id"])
    source, reader = FileSource(SecretStr(str(tmp_path))), Reader(str(tmp_path))
    sizes = [
        (batch.rows.num_rows, batch.rows.nbytes)
        for batch in source.read(range_of(source, reader), schema=source.schema(), batch_bytes=2**20)
    ]
    assert sum(rows for rows, _ in sizes) == len(texts)
    assert len(sizes) < 1_500
    only_fat = tmp_path / "fat" / "a.parquet"
    only_fat.parent.mkdir()
    pq.write_table(pa.table({"text": fat}), only_fat)
    source = FileSource(SecretStr(str(only_fat)))
    for batch in source.read(range_of(source, reader), schema=source.schema(), batch_bytes=2**20):
        assert batch.rows.nbytes < 2 * 2**20


def test_a_delta_table_has_the_types_and_the_names_of_its_partitions(tmp_path: Path) -> None:
    from deltalake import DeltaTable, write_deltalake

    table = tmp_path / "t"
    days = [date(2026, 1, 1), date(2026, 1, 2), None]
    parts = pa.table({"id": [1, 2, 3], "day": days, "part": ["a b", "c/d:é%", "x"], "n": pa.array([1, None, 3])})
    write_deltalake(table, parts, partition_by=["day", "part", "n"])
    reader = Reader(f"delta:file://{table}")
    reader.run()
    assert sorted((row["id"], row["part"], row["n"]) for row in reader.rows) == [
        (1, "a b", 1),
        (2, "c/d:é%", None),
        (3, "x", 3),
    ]
    assert {row["id"]: row["day"] and row["day"].date() for row in reader.rows} == dict(
        zip([1, 2, 3], days, strict=True)
    )
    for _ in range(2):  # two equal files, and both are meant
        write_deltalake(tmp_path / "u", pa.table({"id": [7]}), mode="append")
    reader = Reader(str(tmp_path / "u"))
    assert reader.run() == 2
    DeltaTable(tmp_path / "u").optimize.compact()
    assert reader.run() == 2
    assert len(reader.replaced) == 2
    assert reader.run() == 0
