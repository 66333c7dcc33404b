"""SQLite's loose types: declared ones decide, contradictions are named, nothing is created by reading."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError
from engine.sources.protocol import Rejected
from tests.tables import open_table, rows_of

EVER = datetime(2100, 1, 1, tzinfo=UTC)
AT = "2020-01-01 00:00:00"
EPOCH = 1_577_836_800  # the same in seconds


def table_of(path: Path, declared: str, values: Sequence[Any]) -> SecretStr:
    """Write a table with one column of a declared type and return its URI."""
    connection = sqlite3.connect(path / "x.db")
    connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP, v {declared})")
    connection.executemany("INSERT INTO t VALUES (?, ?, ?)", [(key, AT, value) for key, value in enumerate(values)])
    connection.commit()
    connection.close()
    return SecretStr(f"sqlite:///{path / 'x.db'}")


def read(uri: SecretStr, *, batch_rows: int = 1_000, **more: Any) -> pa.Table:
    with open_table(uri, **{"table": "t", "key": "id", "cursor": "at", **more}) as source:
        batches = list(rows_of(source.scan(after=None, until=EVER, limit_rows=10**6, batch_rows=batch_rows)))
        return pa.Table.from_batches(batches, schema=source.schema())


def split(uri: SecretStr, *, batch_rows: int = 1_000, **more: Any) -> tuple[list[int], list[Rejected]]:
    kept: list[int] = []
    rejected: list[Rejected] = []
    with open_table(uri, **{"table": "t", "key": "id", "cursor": "at", **more}) as source:
        for batch in source.scan(after=None, until=EVER, limit_rows=10**6, batch_rows=batch_rows):
            kept += batch.rows.column("id").to_pylist()
            rejected += batch.rejected
    return kept, rejected


@pytest.mark.parametrize(
    ("declared", "values", "expected"),
    [
        ("TEXT", [None] * 5_000 + ["x"], pa.string()),
        ("REAL", [None] * 5_000 + [1.5], pa.float64()),
        ("REAL", [1, 2, 2.5], pa.float64()),
        ("NUMERIC", [1] * 3_000 + [2.5], pa.float64()),
        ("DECIMAL(10,2)", [1, 2.25, None], pa.float64()),
        ("INTEGER", [2**62, None, -5], pa.int64()),
        ("BOOLEAN", [True, None, False], pa.bool_()),
        ("BLOB", [b"\0\xff", None], pa.binary()),
        ("VARCHAR(3)", ["ü", "", None], pa.string()),
        ("", [None, 3, 4], pa.int64()),
        ("", [1, 2.5], pa.float64()),
        ("", ["a", None], pa.string()),
        ("FLOATING POINT", [1.5, 2], pa.float64()),
    ],
)
@pytest.mark.parametrize("batch_rows", [1, 1_000])
def test_declared_types_decide(
    tmp_path: Path, declared: str, values: list[Any], expected: pa.DataType, batch_rows: int
) -> None:
    column = read(table_of(tmp_path, declared, values), batch_rows=batch_rows).column("v")
    assert column.type == expected
    assert column.to_pylist() == values


@pytest.mark.parametrize(
    ("declared", "wrong"),
    [("INTEGER", "seven"), ("INTEGER", 1.5), ("REAL", "much"), ("BOOLEAN", "yes"), ("BOOLEAN", 2)],
)
@pytest.mark.parametrize("row", [0, 2, 2_500])
@pytest.mark.parametrize("batch_rows", [100, 10_000])
def test_a_contradicting_value_is_rejected_with_its_row_and_the_others_come(
    tmp_path: Path, declared: str, wrong: Any, row: int, batch_rows: int
) -> None:
    values: list[Any] = [None] * 3_000
    values[row] = wrong
    kept, rejected = split(table_of(tmp_path, declared, values), batch_rows=batch_rows)
    assert kept == [id for id in range(3_000) if id != row]
    [one] = rejected
    assert (one.key, one.column, one.value) == (str(row), "v", str(wrong))
    assert one.reason.startswith("column 'v': it holds ")
    assert one.cursor == datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize("batch_rows", [100, 10_000])
def test_what_contradicts_does_not_depend_on_the_size_of_a_batch(tmp_path: Path, batch_rows: int) -> None:
    values = [1] * 1_500 + ["12"]  # a column without a type is what its first values are
    kept, rejected = split(table_of(tmp_path, "", values), batch_rows=batch_rows)
    assert kept == list(range(1_500))
    assert [(one.key, one.reason) for one in rejected] == [("1500", "column 'v': it holds text")]


def test_a_text_larger_than_the_limit_is_rejected_without_being_read(tmp_path: Path) -> None:
    kept, rejected = split(table_of(tmp_path, "TEXT", ["short", "x" * 5_000, None]), max_value_bytes=1_000)
    assert kept == [0, 2]
    assert rejected[0].reason == "column 'v': larger than max_row_bytes: 5000 bytes"
    assert rejected[0].value == "x" * 256


def test_reading_never_makes_a_database(tmp_path: Path) -> None:
    path = tmp_path / "none.db"
    with pytest.raises(SourceError, match=r"there is no database file .*none\.db"):
        read(SecretStr(f"sqlite:///{path}"))
    assert not path.exists()


def test_a_file_that_is_no_database_is_said_to_be_none(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"not a database, but long enough to look at" * 100)
    with pytest.raises(SourceError, match="cannot be") as caught:
        read(SecretStr(f"sqlite:///{tmp_path / 'x.db'}"))
    assert "x.db" in caught.value.message


def test_a_relative_path_counts_from_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table_of(tmp_path, "TEXT", ["a"])
    monkeypatch.chdir(tmp_path)
    assert read(SecretStr("sqlite:///x.db")).num_rows == 1


@pytest.mark.parametrize("name", ["a b%20c.db", "h#y.db", "ü.db"])
def test_a_path_may_hold_characters_that_mean_something_in_a_uri(tmp_path: Path, name: str) -> None:
    table_of(tmp_path, "TEXT", ["a"])
    (tmp_path / "x.db").rename(tmp_path / name)
    assert read(SecretStr(f"sqlite:///{tmp_path / name}")).num_rows == 1


@pytest.mark.parametrize(
    ("declared", "write"),
    [
        ("TIMESTAMP", lambda t: t.strftime("%Y-%m-%d %H:%M:%S")),
        ("DATETIME", lambda t: t.strftime("%Y-%m-%dT%H:%M:%S.%f")),
        ("TEXT", lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ")),
        ("TEXT", lambda t: t.isoformat()),
        ("TEXT", lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f+00:00")),
        ("TEXT", lambda t: (t + timedelta(hours=2)).strftime("%Y-%m-%dT%H:%M:%S+02:00")),
        ("INTEGER", lambda t: int(t.timestamp())),
        ("INTEGER", lambda t: int(t.timestamp()) * 1_000),
        ("TIMESTAMP", lambda t: int(t.timestamp()) * 1_000_000),
        ("INTEGER", lambda t: int(t.timestamp()) * 1_000_000_000),
        ("REAL", lambda t: t.timestamp()),
    ],
)
def test_cursors_in_every_common_notation_are_read_to_until_and_resumed(
    tmp_path: Path, declared: str, write: Any
) -> None:
    start = datetime(2020, 1, 1, 22, tzinfo=UTC)
    times = [start + timedelta(hours=hour) for hour in range(6)]
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, at {declared})")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(key, write(time)) for key, time in enumerate(times)])
    connection.commit()
    connection.close()
    with open_table(SecretStr(f"sqlite:///{tmp_path / 'x.db'}"), table="t", key="id", cursor="at") as source:
        first = pa.Table.from_batches(rows_of(source.scan(after=None, until=times[3], limit_rows=2, batch_rows=9)))
        after = source.position
        rest = pa.Table.from_batches(rows_of(source.scan(after=after, until=times[3], limit_rows=9, batch_rows=9)))
        just_before = times[3] - timedelta(microseconds=1)
        fewer = pa.Table.from_batches(rows_of(source.scan(after=after, until=just_before, limit_rows=9, batch_rows=9)))
    assert after is not None
    assert after.cursor == write(times[1])
    assert first.column("at").to_pylist() == times[:2]
    assert rest.column("at").to_pylist() == times[2:4]
    assert fewer.column("id").to_pylist() == [2]


def test_a_date_is_its_midnight(tmp_path: Path) -> None:
    uri = table_of(tmp_path, "DATE", ["2020-01-01", "2020-01-02", None])
    first, second, third = read(uri).column("v").to_pylist()
    assert (first, second, third) == (datetime(2020, 1, 1, tzinfo=UTC), datetime(2020, 1, 2, tzinfo=UTC), None)
    connection = sqlite3.connect(uri.get_secret_value().removeprefix("sqlite:///"))
    connection.execute("UPDATE t SET v = '2020-01-03' WHERE v IS NULL")
    connection.commit()
    connection.close()
    with open_table(uri, table="t", key="id", cursor="v") as source:
        until = datetime(2020, 1, 2, tzinfo=UTC)
        found = [batch.num_rows for batch in rows_of(source.scan(after=None, until=until, limit_rows=9, batch_rows=9))]
    assert sum(found) == 2


def test_a_column_named_as_time_is_one_whatever_is_declared(tmp_path: Path) -> None:
    rows = read(table_of(tmp_path, "INTEGER", [EPOCH, None]), times=("v",))
    assert rows.column("v").to_pylist() == [datetime(2020, 1, 1, tzinfo=UTC), None]


def test_a_value_that_is_no_time_is_rejected(tmp_path: Path) -> None:
    kept, rejected = split(table_of(tmp_path, "TIMESTAMP", [AT, "yesterday", AT]))
    assert kept == [0, 2]
    assert (rejected[0].reason, rejected[0].value) == ("column 'v': it is no time", "yesterday")


def test_a_cursor_of_numbers_and_text_is_refused_because_some_rows_would_never_come(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP)")
    connection.executemany("INSERT INTO t VALUES (?, ?)", [(1, AT), (2, EPOCH)])
    connection.commit()
    connection.close()
    with pytest.raises(SourceError, match="cursor 'at' holds numbers and text"):
        read(SecretStr(f"sqlite:///{tmp_path / 'x.db'}"))


@pytest.mark.parametrize("values", [["AA", "B6"], [AT, "n/a"], ["", AT]])
def test_a_cursor_that_holds_no_times_is_refused_rather_than_read_as_no_rows(tmp_path: Path, values: list[str]) -> None:
    uri = table_of(tmp_path, "TEXT", values)
    with pytest.raises(SourceError, match="column 'v' holds a value that is no time"):
        read(uri, cursor="v")


def test_generated_columns_are_columns(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute(
        "CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP, double INTEGER AS (id * 2) STORED, "
        "half REAL AS (id / 2.0))"
    )
    connection.execute("INSERT INTO t VALUES (3, ?)", (AT,))
    connection.commit()
    connection.close()
    (row,) = read(SecretStr(f"sqlite:///{tmp_path / 'x.db'}")).select(["double", "half"]).to_pylist()
    assert row == {"double": 6, "half": 1.5}


def test_keys_that_differ_only_in_case_are_two_whatever_their_collation(tmp_path: Path) -> None:
    uri = table_of(tmp_path, "TEXT COLLATE NOCASE", ["b", "A", "a", "B"])
    with open_table(uri, table="t", key="v", cursor="at") as source:
        seen = []
        for _ in range(4):
            for batch in rows_of(source.scan(after=source.position, until=EVER, limit_rows=1, batch_rows=1)):
                seen += batch.column("v").to_pylist()
    assert seen == ["A", "B", "a", "b"]


def test_bytes_cannot_be_a_key(tmp_path: Path) -> None:
    uri = table_of(tmp_path, "BLOB", [b"1"])
    with pytest.raises(SourceSchemaError, match="bytes cannot be a key"):
        read(uri, key="v")


def test_a_range_is_served_by_an_index(tmp_path: Path) -> None:
    uri = table_of(tmp_path, "TEXT", ["a"] * 10)
    connection = sqlite3.connect(tmp_path / "x.db")
    connection.execute("CREATE INDEX i ON t (at, id)")
    plan = connection.execute(
        "EXPLAIN QUERY PLAN SELECT 0 AS id, 'x' AS v, 0 AS r UNION ALL SELECT * FROM (SELECT id, v, 1 FROM t "
        "WHERE at <= ? AND (at, id COLLATE BINARY) > (?, ?) ORDER BY at, id COLLATE BINARY LIMIT ?)",
        (AT, AT, 3, 5),
    ).fetchall()
    connection.close()
    assert any("USING INDEX i" in step[-1] for step in plan)
    assert not any("TEMP B-TREE" in step[-1] for step in plan)
    assert read(uri).num_rows == 10
