"""CSV and NDJSON: what is a record, a field and a value, and what is set apart with its place."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.files import FileSource
from engine.sources.files.blocks import blocks
from engine.sources.files.delimited import parse
from engine.spec import CsvSpec
from tests.deliveries import Reader


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
