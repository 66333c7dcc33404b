"""Files that grow, change, come twice, rotate or go, between two slices and while one is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.contracts import first_contract
from engine.sources.files import FileSource
from engine.sources.protocol import Seen, Window
from tests.deliveries import EVER, WRITERS, Reader, csv_of, parquet_of, range_of, read_range, rows_between


def test_the_same_content_under_any_name_is_noted_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv_of(rows_between(0, 5)))
    reader = Reader(str(tmp_path))
    assert reader.run() == 5
    (tmp_path / "b.csv").write_bytes(csv_of(rows_between(0, 5)))
    (tmp_path / "c.csv").write_bytes(csv_of(rows_between(5, 10)))
    (tmp_path / "d.csv").write_bytes(csv_of(rows_between(5, 10)))
    os.utime(tmp_path / "a.csv", ns=(1, 10**18))  # touched
    assert reader.run() == 5
    assert reader.counts[-1] == {"new": 1, "same_content": 3}
    assert reader.files["b.csv"].same_as == "a.csv"
    assert reader.run() == 0


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_a_file_that_grew_is_read_from_its_old_end(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"a.{suffix}", WRITERS[suffix](rows_between(0, 9))
    cut = WRITERS[suffix](rows_between(0, 4))
    path.write_bytes(cut)
    reader = Reader(str(tmp_path))
    assert reader.run() == 4
    path.write_bytes(whole)
    assert reader.run() == 5
    assert reader.counts[-1] == {"grown": 1}
    assert reader.plain() == rows_between(0, 9)
    assert [row["_key"] for row in reader.rows] == [f"a.{suffix}#{at}" for at in range(9)]
    assert reader.replaced == []


def test_a_file_whose_last_line_was_cut_off_is_read_anew_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,name\n1,one\n2,tw")
    reader = Reader(str(tmp_path))
    assert reader.run() == 2
    path.write_text("id,name\n1,one\n2,two\n")
    assert reader.run() == 2
    assert reader.replaced == ["a.csv"]
    assert reader.counts[-1] == {"changed": 1}
    assert [row["name"] for row in reader.rows[2:]] == ["one", "two"]
    assert all(new["_read_at"] > old["_read_at"] for old, new in zip(reader.rows[:2], reader.rows[2:], strict=True))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "csv.gz"])
def test_a_file_that_changed_is_read_anew_and_replaces_its_rows(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(WRITERS[suffix](rows_between(0, 9)))
    os.utime(path, ns=(0, 2 * 10**18))
    reader = Reader(str(tmp_path))
    reader.run()
    path.write_bytes(WRITERS[suffix](rows_between(3, 9)))
    os.utime(path, ns=(0, 10**18))  # its date is older than that of what it replaces
    assert reader.run() == 6
    assert reader.replaced == [path.name]
    assert reader.rows[-1]["_read_at"] > reader.rows[0]["_read_at"]


def test_a_file_that_changed_between_two_slices_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(csv_of(rows_between(0, 20_000)))
    reader = Reader(str(tmp_path), limit_rows=5_000, batch_bytes=2**17)
    source = FileSource(SecretStr(str(tmp_path)))
    bounds = source.next_range(Seen(), Window(until=EVER, limit_rows=5_000))
    assert bounds is not None
    schema = first_contract(source.schemas(bounds), key="_key", cursor="_read_at").stored
    assert sum(b.rows.num_rows for b in source.read(bounds, schema=schema, batch_bytes=2**17)) < 20_000
    reader.files = {file.name: file for file in source.ending().files}
    assert reader.files["a.csv"].offset is not None
    path.write_bytes(csv_of(rows_between(7, 10)))
    assert reader.run() == 3
    assert reader.replaced == ["a.csv"]


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_lines_that_come_while_a_file_is_read_come_once_and_with_the_next_slice(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"a.{suffix}", WRITERS[suffix](rows_between(0, 9))
    path.write_bytes(WRITERS[suffix](rows_between(0, 4)))
    reader, source = Reader(str(tmp_path)), FileSource(SecretStr(str(tmp_path)))
    bounds = range_of(source, reader)
    path.write_bytes(whole)
    assert [row["id"] for row in read_range(source, bounds, reader)] == [0, 1, 2, 3]
    assert [row["id"] for row in read_range(FileSource(SecretStr(str(tmp_path))), bounds, reader)] == [0, 1, 2, 3]
    reader.run()
    assert [row["id"] for row in reader.rows] == [4, 5, 6, 7, 8]
    assert reader.counts == [{"grown": 1}]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet", "arrow"])
def test_a_file_that_is_replaced_while_its_plan_waits_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(WRITERS[suffix](rows_between(0, 4)))
    reader, source = Reader(str(tmp_path)), FileSource(SecretStr(str(tmp_path)))
    bounds = range_of(source, reader)
    path.write_bytes(WRITERS[suffix](rows_between(4, 10)))
    os.utime(path, ns=(0, 2 * 10**18))
    read_range(source, bounds, reader)
    reader.run()
    assert reader.replaced == [path.name]
    assert [row["id"] for row in reader.rows] == list(range(4, 10))


def test_a_file_that_is_gone_when_its_plan_is_run_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "whole.parquet").write_bytes(parquet_of(rows_between(0, 3)))
    reader, source = Reader(str(tmp_path)), FileSource(SecretStr(str(tmp_path)))
    bounds = range_of(source, reader)
    with pytest.raises(SourceError, match=r"damaged\.parquet cannot be read"):
        source.schemas(bounds)
    (tmp_path / "damaged.parquet").unlink()
    assert len(read_range(source, bounds, reader)) == 3
    assert source.ending().counts == {"gone": 1, "new": 1}
    assert reader.run() == 0


def test_a_log_that_is_rotated_keeps_the_rows_of_its_old_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(csv_of(rows_between(0, 3)))
    reader = Reader(str(tmp_path))
    reader.run()
    (tmp_path / "log.csv").rename(tmp_path / "log-1.csv")
    (tmp_path / "log.csv").write_bytes(csv_of(rows_between(3, 9)))
    reader.run()
    left = {row["_key"]: row["id"] for row in reader.rows if row["_file"] not in reader.replaced or row["id"] >= 3}
    assert reader.replaced == ["log.csv"]
    assert sorted(left.values()) == list(range(9))


def test_a_file_of_equal_content_is_known_by_what_slices_have_read(tmp_path: Path) -> None:
    whole = csv_of(rows_between(0, 20_000))
    (tmp_path / "a.csv").write_bytes(whole)
    reader = Reader(str(tmp_path), limit_rows=6_000, batch_bytes=2**17)
    reader.run()
    assert reader.slices > 2
    (tmp_path / "b.csv").write_bytes(whole)
    assert reader.run() == 0
    assert reader.files["b.csv"].same_as == "a.csv"
    (tmp_path / "a.csv").write_bytes(whole + csv_of(rows_between(20_000, 20_004)).split(b"\n", 1)[1])
    assert reader.run() == 4
    assert reader.counts[-1] == {"grown": 1}
