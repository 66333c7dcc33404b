"""Files of every format: each row once, whatever the slices, however they arrive, and whatever lies between."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError, SpecError
from engine.sources.contracts import first_contract
from engine.sources.files import FileSource
from engine.sources.files.blocks import blocks
from engine.sources.files.delimited import parse
from engine.sources.protocol import Batch, Rejected, Seen, SeenFile, Window
from engine.spec import CsvSpec

EVER = datetime(9000, 1, 1, tzinfo=UTC)
Row = dict[str, Any]


def _rows(first: int, last: int) -> list[Row]:
    return [
        {
            "id": key,
            "amount": key / 4,
            "name": None if key % 3 == 0 else f'n "{key}",\nä',
            "ok": key % 2 == 0,
            "at": datetime(2026, 1, 1, 0, key % 60, tzinfo=UTC),
        }
        for key in range(first, last)
    ]


def _text(row: Row) -> Row:
    return row | {"at": row["at"].strftime("%Y-%m-%d %H:%M:%S"), "ok": str(row["ok"]).lower()}


def _csv(rows: Sequence[Row]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "amount", "name", "ok", "at"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_text(row) for row in rows)
    return out.getvalue().encode()


def _ndjson(rows: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(row | {"at": row["at"].isoformat()}).encode() + b"\n" for row in rows)


def _table(rows: Sequence[Row]) -> pa.Table:
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [("id", pa.int64()), ("amount", pa.float64()), ("name", pa.string()), ("ok", pa.bool_()), ("at", stamp)]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(rows), sink, row_group_size=7)
    return sink.getvalue()


def _arrow(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, _table(rows).schema) as writer:
        writer.write_table(_table(rows), max_chunksize=5)
    return sink.getvalue()


def _arrow_stream(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, _table(rows).schema) as writer:
        writer.write_table(_table(rows), max_chunksize=5)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "csv": _csv,
    "csv.gz": lambda rows: gzip.compress(_csv(rows)),
    "csv.zst": lambda rows: pa.compress(_csv(rows), codec="zstd", asbytes=True),
    "ndjson": _ndjson,
    "jsonl.gz": lambda rows: gzip.compress(_ndjson(rows)),
    "parquet": _parquet,
    "arrow": _arrow,
    "ipc": _arrow_stream,
}


class Reader:
    """Reads a source slice by slice, as the extract stage does, and keeps what it has seen."""

    def __init__(self, uri: str, *, limit_rows: int = 10**6, batch_bytes: int = 2**20, **more: Any) -> None:
        self.uri, self.limit_rows, self.batch_bytes, self.more = uri, limit_rows, batch_bytes, more
        self.files: dict[str, SeenFile] = {}
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        self.replaced: list[str] = []
        self.counts: list[dict[str, int]] = []
        self.slices = 0

    def run(self) -> int:
        """Read until there is nothing left; return how many rows came."""
        before = len(self.rows)
        for _ in range(200):
            source = FileSource(SecretStr(self.uri), **self.more)
            bounds = source.next_range(Seen(files=lambda: self.files), Window(until=EVER, limit_rows=self.limit_rows))
            if bounds is None:
                return len(self.rows) - before
            bounds = json.loads(json.dumps(bounds))
            contract = first_contract(source.schemas(bounds), key=source._key, cursor=source._cursor)
            for batch in source.read(bounds, schema=contract.stored, batch_bytes=self.batch_bytes):
                self._keep(batch)
            ending = source.ending()
            self.files |= {file.name: SeenFile.from_json(file.to_json()) for file in ending.files}
            self.replaced += bounds["replaces"]
            self.counts.append(dict(ending.counts))
            self.slices += 1
        raise AssertionError("it never ends")

    def _keep(self, batch: Batch) -> None:
        self.rows += batch.rows.to_pylist()
        self.rejected += batch.rejected

    def plain(self) -> list[Row]:
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in self.rows]


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("limit_rows", [1, 9, 10**6])
def test_each_row_comes_once_whatever_the_slices(tmp_path: Path, suffix: str, limit_rows: int) -> None:
    rows = _rows(0, 23)
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
    rows = _rows(0, 20_000)
    (tmp_path / f"a.{suffix}").write_bytes(WRITERS[suffix](rows))
    reader = Reader(str(tmp_path / f"*.{suffix}"), limit_rows=6_000, batch_bytes=2**17)
    assert reader.run() == 20_000
    assert 3 <= reader.slices <= 5
    assert [row["id"] for row in reader.rows] == list(range(20_000))
    assert [row["_key"] for row in reader.rows] == [f"a.{suffix}#{at}" for at in range(20_000)]


def test_the_same_content_under_any_name_is_noted_and_not_read(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(_csv(_rows(0, 5)))
    reader = Reader(str(tmp_path))
    assert reader.run() == 5
    (tmp_path / "b.csv").write_bytes(_csv(_rows(0, 5)))
    (tmp_path / "c.csv").write_bytes(_csv(_rows(5, 10)))
    (tmp_path / "d.csv").write_bytes(_csv(_rows(5, 10)))
    os.utime(tmp_path / "a.csv", ns=(1, 10**18))  # touched
    assert reader.run() == 5
    assert reader.counts[-1] == {"new": 1, "same_content": 3}
    assert reader.files["b.csv"].same_as == "a.csv"
    assert reader.run() == 0


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_a_file_that_grew_is_read_from_its_old_end(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"a.{suffix}", WRITERS[suffix](_rows(0, 9))
    cut = WRITERS[suffix](_rows(0, 4))
    path.write_bytes(cut)
    reader = Reader(str(tmp_path))
    assert reader.run() == 4
    path.write_bytes(whole)
    assert reader.run() == 5
    assert reader.counts[-1] == {"grown": 1}
    assert reader.plain() == _rows(0, 9)
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
    path.write_bytes(WRITERS[suffix](_rows(0, 9)))
    os.utime(path, ns=(0, 2 * 10**18))
    reader = Reader(str(tmp_path))
    reader.run()
    path.write_bytes(WRITERS[suffix](_rows(3, 9)))
    os.utime(path, ns=(0, 10**18))  # its date is older than that of what it replaces
    assert reader.run() == 6
    assert reader.replaced == [path.name]
    assert reader.rows[-1]["_read_at"] > reader.rows[0]["_read_at"]


def test_a_file_that_changed_between_two_slices_begins_again(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(_csv(_rows(0, 20_000)))
    reader = Reader(str(tmp_path), limit_rows=5_000, batch_bytes=2**17)
    source = FileSource(SecretStr(str(tmp_path)))
    bounds = source.next_range(Seen(), Window(until=EVER, limit_rows=5_000))
    assert bounds is not None
    schema = first_contract(source.schemas(bounds), key="_key", cursor="_read_at").stored
    assert sum(b.rows.num_rows for b in source.read(bounds, schema=schema, batch_bytes=2**17)) < 20_000
    reader.files = {file.name: file for file in source.ending().files}
    assert reader.files["a.csv"].offset is not None
    path.write_bytes(_csv(_rows(7, 10)))
    assert reader.run() == 3
    assert reader.replaced == ["a.csv"]


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


def test_values_that_are_none_of_their_type_are_set_apart_with_their_place(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(
        "id,amount,at\n1,1.5,2026-01-01\n2,much,2026-01-01\n3,2.5,soon\n4,1,2,3\n5\n6,,\n,7,2026-01-02T03:04:05+02:00\n"
    )
    named = {"id": "integer", "amount": "float", "at": "time"}
    reader = Reader(str(tmp_path), named=named)
    assert reader.run() == 3
    assert [row["id"] for row in reader.rows] == [1, 6, None]
    assert reader.rows[2]["at"] == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    found = sorted((one.place or "", one.reason, one.value) for one in reader.rejected)
    assert found == [
        ("a.csv#1", "column 'amount': it is no double", "much"),
        ("a.csv#2", "column 'at': it is no timestamp[us, tz=UTC]", "soon"),
        ("a.csv#3", "4 fields where 3 are due", "4,1,2,3"),
        ("a.csv#4", "1 fields where 3 are due", "5"),
    ]


def test_bytes_that_are_no_text_and_lines_that_are_no_json_are_set_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfid,name\r\n1,one\r\n2,\xff\xfe\r\n3,three\r\n")
    (tmp_path / "b.ndjson").write_bytes(
        b'{"id": 4, "name": "four"}\nnot json\n{"id": "x", "name": {"a": 1}}\n{"id": 5}\n'
    )
    reader = Reader(str(tmp_path), named={"id": "integer", "name": "text"})
    reader.run()
    assert [(row["id"], row["name"]) for row in reader.rows] == [(1, "one"), (3, "three"), (4, "four"), (5, None)]
    assert sorted(one.reason for one in reader.rejected) == [
        "column 'id': it is no int64",
        "it is no JSON object",
        "it is no UTF-8",
    ]


def test_types_are_guessed_at_first_and_kept_from_then_on(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("n,f,b,t,zip,s\n1,1.5,true,2026-01-01,01234,x\n-2,3,false,2026-01-02,99999,\n")
    kinds = {field.name: str(field.type) for field in FileSource(SecretStr(str(tmp_path))).schema()}
    assert [kinds[name] for name in ("n", "f", "b", "t", "zip", "s")] == [
        "int64",
        "double",
        "bool",
        "timestamp[us, tz=UTC]",
        "string",
        "string",
    ]
    kept = pa.schema([("n", pa.string())])
    assert FileSource(SecretStr(str(tmp_path)), types=kept).schema().field("n").type == pa.string()


def test_other_delimiters_headers_and_nulls(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("1\tNA\t'a\tb'\n2\t-\tc\n")
    options = CsvSpec(delimiter="\t", quote="'", header=False, nulls=("NA", "-"))
    reader = Reader(str(tmp_path), csv=options)
    reader.run()
    assert [[row["column_1"], row["column_2"], row["column_3"]] for row in reader.rows] == [
        [1, None, "a\tb"],
        [2, None, "c"],
    ]


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
    whole = _parquet(_rows(0, 100))
    (tmp_path / "whole.parquet").write_bytes(whole)
    (tmp_path / "cut.parquet").write_bytes(whole[:-50])
    with pytest.raises(SourceError, match=r"cut\.parquet cannot be read") as caught:
        Reader(str(tmp_path)).run()
    assert "move a damaged one" in caught.value.hint
    (tmp_path / "cut.parquet").unlink()
    (tmp_path / "cut.csv.gz").write_bytes(gzip.compress(_csv(_rows(0, 1000)))[:-20])
    with pytest.raises(SourceError, match=r"cut\.csv\.gz cannot be read"):
        Reader(str(tmp_path)).run()


def test_a_row_group_that_is_damaged_is_named_with_its_first_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(_rows(0, 3_000)), path, row_group_size=1_000)
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
    (tmp_path / "t" / "orphan.parquet").write_bytes(_parquet(_rows(0, 3)))  # of no version
    assert reader.run() == 4
    assert sorted((row["id"], row["part"]) for row in reader.rows) == [(key, f"p{key % 2}") for key in range(10)]
    assert Reader(str(tmp_path / "t")).run() == 10  # found to be one by its log


def test_any_scheme_of_fsspec_and_of_arrow_is_listed(tmp_path: Path) -> None:
    import fsspec

    (tmp_path / "a.csv").write_bytes(_csv(_rows(0, 3)))
    memory = fsspec.filesystem("memory")
    memory.pipe("/bucket/day/b.csv", _csv(_rows(3, 7)))
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
    (tmp_path / "a.csv").write_bytes(_csv(_rows(0, 3)))
    with pytest.raises(SourceSchemaError, match="no column 'ids'") as caught:
        Reader(str(tmp_path), key="ids").run()
    assert "did you mean 'id'?" in caught.value.hint
    with pytest.raises(SourceSchemaError, match="the cursor 'name' is string, not a time"):
        Reader(str(tmp_path), key="id", cursor="name").run()


def test_hidden_and_empty_files_and_other_suffixes_are_passed_over(tmp_path: Path) -> None:
    for name in (".hidden.csv", "_part.csv", "notes.txt", "_tmp/a.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(_csv(_rows(0, 3)))
    (tmp_path / "empty.csv").touch()
    (tmp_path / "a.csv").write_bytes(_csv(_rows(3, 5)))
    reader = Reader(str(tmp_path))
    assert reader.run() == 2
    assert reader.counts == [{"new": 1, "skipped": 5}]


def _bounds(source: FileSource, reader: Reader, limit_rows: int = 10**6) -> Any:
    bounds = source.next_range(Seen(files=lambda: reader.files), Window(until=EVER, limit_rows=limit_rows))
    return json.loads(json.dumps(bounds))


def _read(source: FileSource, bounds: Any, reader: Reader) -> list[Row]:
    """Read a range of which the plan was made before, and record it."""
    schema = first_contract(source.schemas(bounds), key="_key", cursor="_read_at").stored
    rows = [row for batch in source.read(bounds, schema=schema, batch_bytes=2**20) for row in batch.rows.to_pylist()]
    reader.files |= {file.name: file for file in source.ending().files}
    return rows


@pytest.mark.parametrize("suffix", ["csv", "ndjson"])
def test_lines_that_come_while_a_file_is_read_come_once_and_with_the_next_slice(tmp_path: Path, suffix: str) -> None:
    path, whole = tmp_path / f"a.{suffix}", WRITERS[suffix](_rows(0, 9))
    path.write_bytes(WRITERS[suffix](_rows(0, 4)))
    reader, source = Reader(str(tmp_path)), FileSource(SecretStr(str(tmp_path)))
    bounds = _bounds(source, reader)
    path.write_bytes(whole)
    assert [row["id"] for row in _read(source, bounds, reader)] == [0, 1, 2, 3]
    assert [row["id"] for row in _read(FileSource(SecretStr(str(tmp_path))), bounds, reader)] == [0, 1, 2, 3]
    reader.run()
    assert [row["id"] for row in reader.rows] == [4, 5, 6, 7, 8]
    assert reader.counts == [{"grown": 1}]


@pytest.mark.parametrize("suffix", ["csv", "csv.gz", "parquet", "arrow"])
def test_a_file_that_is_replaced_while_its_plan_waits_is_read_again(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(WRITERS[suffix](_rows(0, 4)))
    reader, source = Reader(str(tmp_path)), FileSource(SecretStr(str(tmp_path)))
    bounds = _bounds(source, reader)
    path.write_bytes(WRITERS[suffix](_rows(4, 10)))
    os.utime(path, ns=(0, 2 * 10**18))
    _read(source, bounds, reader)
    reader.run()
    assert reader.replaced == [path.name]
    assert [row["id"] for row in reader.rows] == list(range(4, 10))


def test_a_file_that_is_gone_when_its_plan_is_run_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and no more")
    (tmp_path / "whole.parquet").write_bytes(_parquet(_rows(0, 3)))
    reader, source = Reader(str(tmp_path)), FileSource(SecretStr(str(tmp_path)))
    bounds = _bounds(source, reader)
    with pytest.raises(SourceError, match=r"damaged\.parquet cannot be read"):
        source.schemas(bounds)
    (tmp_path / "damaged.parquet").unlink()
    assert len(_read(source, bounds, reader)) == 3
    assert source.ending().counts == {"gone": 1, "new": 1}
    assert reader.run() == 0


def test_a_log_that_is_rotated_keeps_the_rows_of_its_old_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_bytes(_csv(_rows(0, 3)))
    reader = Reader(str(tmp_path))
    reader.run()
    (tmp_path / "log.csv").rename(tmp_path / "log-1.csv")
    (tmp_path / "log.csv").write_bytes(_csv(_rows(3, 9)))
    reader.run()
    left = {row["_key"]: row["id"] for row in reader.rows if row["_file"] not in reader.replaced or row["id"] >= 3}
    assert reader.replaced == ["log.csv"]
    assert sorted(left.values()) == list(range(9))


def test_a_file_of_equal_content_is_known_by_what_slices_have_read(tmp_path: Path) -> None:
    whole = _csv(_rows(0, 20_000))
    (tmp_path / "a.csv").write_bytes(whole)
    reader = Reader(str(tmp_path), limit_rows=6_000, batch_bytes=2**17)
    reader.run()
    assert reader.slices > 2
    (tmp_path / "b.csv").write_bytes(whole)
    assert reader.run() == 0
    assert reader.files["b.csv"].same_as == "a.csv"
    (tmp_path / "a.csv").write_bytes(whole + _csv(_rows(20_000, 20_004)).split(b"\n", 1)[1])
    assert reader.run() == 4
    assert reader.counts[-1] == {"grown": 1}


@pytest.mark.parametrize(
    ("block", "rows", "unreadable"),
    [
        (b'1,2,3\n"a,b",c\n4,5,\n', [("1", "2", "3"), ("4", "5", None)], [(1, "2 fields where 3 are due")]),
        (b"1,2,3\n\n4,5,6\n", [("1", "2", "3"), ("4", "5", "6")], []),
        (b'1,2,"a\n\nb"\n4,,\n', [("1", "2", "a\n\nb"), ("4", None, None)], []),
        (b"1,2\r\n3,4,5\r\n", [("3", "4", "5")], [(0, "2 fields where 3 are due")]),
        (b'1,2,"' + b"x" * 200_000 + b'"\n3\n', [("1", "2", "x" * 200_000)], [(1, "1 fields where 3 are due")]),
        (b'1,5" pipe,x\n2,a,b\n3,6" pipe,\n', [("1", '5" pipe', "x"), ("2", "a", "b"), ("3", '6" pipe', None)], []),
    ],
)
def test_a_record_has_all_its_fields_or_is_set_apart(
    block: bytes, rows: list[tuple[str | None, ...]], unreadable: list[tuple[int, str]]
) -> None:
    texts = parse(block, ["a", "b", "c"], CsvSpec())
    assert texts.frame.rows() == rows
    assert [(one.row, one.reason) for one in texts.unreadable] == unreadable


def test_an_empty_line_is_no_record_in_a_file_of_one_column_either(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('id\n1\n\n""\n3\n')
    reader = Reader(str(tmp_path))
    reader.run()
    assert [(row["_key"], row["id"]) for row in reader.rows] == [("a.csv#0", 1), ("a.csv#1", None), ("a.csv#2", 3)]


@pytest.mark.parametrize("size", [8, 40, 1_000])
def test_a_quote_within_a_field_is_a_character(size: int) -> None:
    whole = b'1,5" pipe\n2,x\n3,"a\n""b"""\n4,y\n'
    found = blocks(pa.BufferReader(whole), name="x", start=0, block_bytes=size, quote=b'"')
    rows = [row for block, _ in found for row in parse(block, ["a", "b"], CsvSpec()).frame.rows()]
    assert rows == [("1", '5" pipe'), ("2", "x"), ("3", 'a\n"b"'), ("4", "y")]


def test_a_quote_that_is_never_closed_ends_in_an_error_before_it_fills_the_memory(tmp_path: Path) -> None:
    with open(tmp_path / "a.csv", "wb") as sink:
        sink.write(b'id,name\n1,"never closed\n')
        for _ in range(50):
            sink.write(b"2,x\n" * 2**18)
    with pytest.raises(SourceError, match="the record at byte 8 does not end within 32 MiB"):
        Reader(str(tmp_path), types=pa.schema([("id", pa.int64()), ("name", pa.string())])).run()


def test_lines_of_json_that_are_no_text_are_set_apart(tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b'{"a": "x"}\n{"a": "\xff\xfe"}\n{"a": "y"}\n')
    reader = Reader(str(tmp_path))
    reader.run()
    assert [row["a"] for row in reader.rows] == ["x", "y"]
    assert [(one.place, one.reason) for one in reader.rejected] == [("a.ndjson#1", "it is no JSON object")]


def test_times_outside_the_years_that_a_time_has_are_set_apart(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("t\n2026-01-01\n0000-01-01\n9999-12-31\n")
    reader = Reader(str(tmp_path), named={"t": "time"})
    reader.run()
    assert [row["t"].year for row in reader.rows] == [2026, 9999]
    assert [one.value for one in reader.rejected] == ["0000-01-01"]


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
        for batch in source.read(_bounds(source, reader), schema=source.schema(), batch_bytes=2**20)
    ]
    assert sum(rows for rows, _ in sizes) == len(texts)
    assert len(sizes) < 1_500
    only_fat = tmp_path / "fat" / "a.parquet"
    only_fat.parent.mkdir()
    pq.write_table(pa.table({"text": fat}), only_fat)
    source = FileSource(SecretStr(str(only_fat)))
    for batch in source.read(_bounds(source, reader), schema=source.schema(), batch_bytes=2**20):
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


FIELD = st.text(st.sampled_from(list('ab",\n\r é')), max_size=6)


@settings(max_examples=150, deadline=None)
@given(records=st.lists(st.lists(FIELD, min_size=3, max_size=3), min_size=1, max_size=12), size=st.integers(1, 40))
def test_blocks_and_fields_are_those_of_python_s_csv_module(records: list[list[str]], size: int) -> None:
    out = io.StringIO(newline="")
    csv.writer(out, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(records)
    whole = out.getvalue().encode()
    got: list[tuple[str | None, ...]] = []
    ends = []
    stream = pa.BufferReader(whole)
    for block, end in blocks(stream, name="x", start=0, block_bytes=size, quote=b'"'):
        ends.append(end)
        texts = parse(block, ["a", "b", "c"], CsvSpec())
        assert not texts.unreadable
        got += texts.frame.rows()
    assert ends[-1] == len(whole)
    assert got == [tuple(field or None for field in record) for record in records]
    assert isinstance(texts.frame, pl.DataFrame)


LOOSE = st.text(st.sampled_from(list('ab",\n ')), max_size=4)


@settings(max_examples=300, deadline=None)
@given(records=st.lists(st.tuples(LOOSE, LOOSE, st.booleans()), min_size=1, max_size=8), size=st.integers(1, 60))
def test_quotes_within_fields_that_are_not_quoted_are_as_in_python_s_csv_module(
    records: list[tuple[str, str, bool]], size: int
) -> None:
    lines = []
    for first, second, quoted in records:
        if quoted:
            lines.append("x,{},{}".format(*(f'"{part.replace(chr(34), chr(34) * 2)}"' for part in (first, second))))
        else:
            bare = ("x" + part.replace(",", "").replace("\n", "") for part in (first, second))
            lines.append("x,{},{}".format(*bare))
    whole = "".join(f"{line}\n" for line in lines)
    wanted = [tuple(field or None for field in record) for record in csv.reader(io.StringIO(whole, newline=""))]
    got = []
    for block, _ in blocks(pa.BufferReader(whole.encode()), name="x", start=0, block_bytes=size, quote=b'"'):
        texts = parse(block, ["a", "b", "c"], CsvSpec())
        assert not texts.unreadable
        got += texts.frame.rows()
    assert got == wanted
