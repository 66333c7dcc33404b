"""What every source keeps, against each database: order, ties, resuming, bounds, types, names."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import adbc_driver_manager
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError, SpecError
from engine.sources import Position, Seen, Window, open_source
from engine.sources.dialects import quote
from engine.sources.sql import SQLSource
from tests.tables import open_table, rows_of

START = datetime(2020, 1, 1, tzinfo=UTC)
EVER = datetime(2100, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
_MOST_ROWS = 1_000


def at(seconds: float) -> str:
    return (START + timedelta(seconds=seconds)).strftime("%Y-%m-%d %H:%M:%S.%f")


def fill(database: Any, pairs: Sequence[tuple[int, int]], *, table: str = "t") -> None:
    """Make a table of (key, cursor in seconds after START)."""
    database.execute(f'CREATE TABLE {table} (id BIGINT PRIMARY KEY, "at" TIMESTAMP NOT NULL)')
    if pairs:
        database.insert(table, [(key, at(seconds)) for key, seconds in pairs])


def opened(database: Any, table: str = "t", **more: Any) -> SQLSource:
    return open_table(database.uri, table=table, **{"key": "id", "cursor": "at", **more})


def keys(source: SQLSource, *, after: Position | None = None, until: datetime = EVER, limit: int = 10**9) -> list[int]:
    batches = rows_of(source.scan(after=after, until=until, limit_rows=limit, batch_rows=3))
    return [key for batch in batches for key in batch.column("id").to_pylist()]


def by_slices(source: SQLSource, *, limit: int) -> list[int]:
    """Read everything in slices, each from the position that the last one left, through JSON."""
    out: list[int] = []
    after = None
    while part := keys(source, after=after, limit=limit):
        out += part
        assert len(out) <= _MOST_ROWS, "the position does not move"
        assert source.position is not None
        after = Position.from_json(json.loads(json.dumps(source.position.to_json())))
    return out


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_ties_at_the_border_of_a_slice_are_neither_lost_nor_doubled(database: Any, limit: int) -> None:
    pairs = [(7, 5), (1, 5), (3, 5), (2, 1), (9, 5), (8, 9), (4, 5), (5, 9), (6, 0)]
    fill(database, pairs)
    with opened(database) as source:
        assert by_slices(source, limit=limit) == [key for key, _ in sorted(pairs, key=lambda pair: (pair[1], pair[0]))]


def test_any_cursors_and_slices_give_each_row_once_in_order(sqlite_database: Any) -> None:
    sqlite_database.execute('CREATE TABLE t (id BIGINT PRIMARY KEY, "at" TIMESTAMP NOT NULL)')

    @settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(cursors=st.lists(st.integers(0, 4), min_size=1, max_size=25), limit=st.integers(1, 9))
    def check(cursors: list[int], limit: int) -> None:
        sqlite_database.execute("DELETE FROM t")
        sqlite_database.insert("t", [(key, at(seconds)) for key, seconds in enumerate(cursors)])
        with opened(sqlite_database) as source:
            expected = sorted(range(len(cursors)), key=lambda key: (cursors[key], key))
            assert by_slices(source, limit=limit) == expected

    check()


def test_rows_do_not_depend_on_the_size_of_a_batch(database: Any) -> None:
    fill(database, [(key, key // 10) for key in range(100)])
    with opened(database) as source:
        read = [
            pa.Table.from_batches(rows_of(source.scan(after=None, until=EVER, limit_rows=90, batch_rows=rows)))
            for rows in (1, 7, 64, 1_000)
        ]
    assert read[0].num_rows == 90
    assert all(one.combine_chunks() == read[0].combine_chunks() for one in read)


def test_a_new_connection_resumes_from_a_position_and_sees_only_what_came_after(database: Any) -> None:
    fill(database, [(1, 10), (2, 20), (3, 20)])
    with opened(database) as source:
        assert keys(source, limit=2) == [1, 2]
        after = source.position
    database.insert("t", [(4, at(20)), (5, at(30)), (0, at(5))])  # 0 is late: a cursor does not see it
    with opened(database) as source:
        assert keys(source, after=after) == [3, 4, 5]


def test_position_follows_each_batch_and_stays_when_nothing_came(database: Any) -> None:
    fill(database, [(key, key) for key in range(10)])
    with opened(database) as source:
        assert source.position is None
        seen = []
        for batch in rows_of(source.scan(after=None, until=EVER, limit_rows=10, batch_rows=4)):
            assert source.position is not None
            seen.append((source.position.key, batch.column("id")[-1].as_py()))
        assert len(seen) >= 3
        assert all(key == last for key, last in seen)
        last = source.position
        assert keys(source, after=last) == []
        assert source.position == last


def test_until_is_inclusive_to_the_microsecond(database: Any) -> None:
    fill(database, [(1, 10), (2, 20), (3, 30)])
    with opened(database) as source:
        limit = START + timedelta(seconds=20)
        assert keys(source, until=limit) == [1, 2]
        assert keys(source, until=limit - timedelta(microseconds=1)) == [1]
        assert keys(source, until=limit.astimezone(None)) == [1, 2]


def test_a_reader_that_stops_early_can_read_again(database: Any) -> None:
    fill(database, [(key, key) for key in range(5_000)])
    with opened(database) as source:
        stream = rows_of(source.scan(after=None, until=EVER, limit_rows=5_000, batch_rows=10))
        assert next(stream).column("id")[0].as_py() == 0
        assert len(keys(source)) == 5_000


def test_hundred_thousand_rows_come_in_bounded_batches(database: Any) -> None:
    many = "SELECT 0 AS g UNION ALL SELECT g + 1 FROM n WHERE g < 99999"
    database.execute('CREATE TABLE t (id BIGINT PRIMARY KEY, "at" TIMESTAMP NOT NULL, text TEXT)')
    stamp = (
        "datetime('2020-01-01', (g / 7) || ' seconds')"
        if database.kind == "sqlite"
        else "timestamp '2020-01-01' + (g / 7) * interval '1 second'"
    )
    database.execute(
        f"INSERT INTO t WITH RECURSIVE n AS ({many}) SELECT g, {stamp}, 'some text of a row, ' || g FROM n"
    )
    if database.kind == "postgresql":
        database.execute("ANALYZE t")
    with opened(database) as source:
        batches = rows = 0
        most = 0
        for batch in rows_of(source.scan(after=None, until=EVER, limit_rows=10**6, batch_rows=4_096)):
            batches += 1
            rows += batch.num_rows
            most = max(most, batch.num_rows)
            assert pa.total_allocated_bytes() < 64 * 2**20
    assert rows == 100_000
    assert most <= 4_096
    assert batches >= 25


HOSTILE = ['a"b', "c'd", "e f", "select", "g;--", "h%s", "$1", "ü", "?", "x.y", "CamelCase", "\\"]


@pytest.mark.parametrize("name", HOSTILE)
def test_names_are_quoted_whatever_they_hold(database: Any, name: str) -> None:
    table = quote(name.replace(".", "_"))
    database.execute(f"CREATE TABLE {table} ({quote(name)} BIGINT PRIMARY KEY, {quote(name + '2')} TIMESTAMP NOT NULL)")
    database.insert(table, [(1, at(1)), (2, at(2))])
    with open_table(database.uri, table=name.replace(".", "_"), key=name, cursor=name + "2") as source:
        rows = pa.Table.from_batches(rows_of(source.scan(after=None, until=EVER, limit_rows=1, batch_rows=5)))
        assert rows.column(name).to_pylist() == [1]
        again = rows_of(source.scan(after=source.position, until=EVER, limit_rows=5, batch_rows=5))
        assert pa.Table.from_batches(again).column(name).to_pylist() == [2]


def test_a_table_may_be_named_with_its_schema(database: Any) -> None:
    schema = "main" if database.kind == "sqlite" else "shop"
    if database.kind != "sqlite":
        database.execute("CREATE SCHEMA shop")
    fill(database, [(1, 1)], table=f"{schema}.t")
    with opened(database, f"{schema}.t") as source:
        assert keys(source) == [1]
    if database.kind == "postgresql":
        database.execute("DROP SCHEMA shop CASCADE")


def test_a_view_is_read_like_a_table(database: Any) -> None:
    fill(database, [(1, 1), (2, 2)])
    database.execute('CREATE VIEW v AS SELECT id, "at", id * 2 AS double FROM t')
    with opened(database, "v") as source:
        rows = pa.Table.from_batches(rows_of(source.scan(after=None, until=EVER, limit_rows=9, batch_rows=9)))
    assert rows.column("double").to_pylist() == [2, 4]


def test_an_empty_table_gives_no_rows_and_its_schema(database: Any) -> None:
    fill(database, [])
    with opened(database) as source:
        assert source.schema() == pa.schema([("id", pa.int64()), ("at", STAMP)])
        assert keys(source) == []
        assert source.position is None


def test_text_keys_break_ties_and_resume(database: Any) -> None:
    database.execute('CREATE TABLE t (id VARCHAR(20) PRIMARY KEY, "at" TIMESTAMP NOT NULL)')
    names = ["o'brien", 'a"b', "", "zz", "Z", "ä", "10", "9"]
    database.insert("t", [(name, at(1)) for name in names])
    with opened(database) as source:
        assert sorted(by_slices(source, limit=1)) == sorted(names)


def test_rows_without_a_key_are_read_once(database: Any) -> None:
    database.execute('CREATE TABLE t (id BIGINT, "at" TIMESTAMP NOT NULL)')
    pairs = [(1, 1), (None, 1), (2, 2), (None, 2), (3, 2), (4, 3)]
    database.insert("t", [(key, at(seconds)) for key, seconds in pairs])
    with opened(database) as source:
        read = by_slices(source, limit=1)
    assert sorted(read, key=str) == [1, 2, 3, 4, None, None]


def test_only_the_columns_asked_for_are_read_with_key_and_cursor(database: Any) -> None:
    database.execute('CREATE TABLE t (a TEXT, id BIGINT PRIMARY KEY, "at" TIMESTAMP NOT NULL, b TEXT)')
    database.insert("t", [("a", 1, at(1), "b")])
    with opened(database, columns=("b",)) as source:
        batch = next(rows_of(source.scan(after=None, until=EVER, limit_rows=1, batch_rows=1)))
        assert batch.schema == source.schema()
        assert batch.to_pylist() == [{"id": 1, "at": START + timedelta(seconds=1), "b": "b"}]


def test_read_gives_what_schema_promised(database: Any) -> None:
    database.execute(
        'CREATE TABLE t (id BIGINT PRIMARY KEY, "at" TIMESTAMP NOT NULL, d DATE, f DOUBLE PRECISION, r REAL, '
        "i INTEGER, b BOOLEAN, s TEXT, v VARCHAR(9), n NUMERIC(10, 2))"
    )
    true = "true" if database.kind == "postgresql" else "1"
    database.execute(f"INSERT INTO t VALUES (1, '{at(1.5)}', '2020-02-03', 0.25, 0.5, 7, {true}, 'x', 'y', 1.25)")
    database.insert("t", [(2, at(2), *[None] * 8)])
    with opened(database) as source:
        rows = pa.Table.from_batches(rows_of(source.scan(after=None, until=EVER, limit_rows=9, batch_rows=9)))
        assert rows.schema == source.schema()
    first, second = rows.to_pylist()
    day = datetime(2020, 2, 3, tzinfo=UTC)
    values = [1, START + timedelta(seconds=1.5), day, 0.25, 0.5, 7, True, "x", "y", 1.25]
    assert list(first.values()) == values
    assert list(second.values())[2:] == [None] * 8
    assert rows.schema.field("at").type == rows.schema.field("d").type == STAMP
    assert rows.schema.field("b").type == pa.bool_()


def test_a_missing_table_names_the_nearest_whatever_its_case(database: Any) -> None:
    fill(database, [], table="flights")
    with opened(database, "Flihgts") as source, pytest.raises(SourceSchemaError) as caught:
        source.schema()
    assert "'Flihgts'" in caught.value.message
    assert "did you mean 'flights'?" in caught.value.hint


@pytest.mark.parametrize("which", ["key", "cursor", "columns"])
def test_a_missing_column_names_the_nearest(database: Any, which: str) -> None:
    database.execute('CREATE TABLE t (id BIGINT PRIMARY KEY, "at" TIMESTAMP NOT NULL, updated_at TIMESTAMP)')
    asked: Any = ("update_at",) if which == "columns" else "update_at"
    with opened(database, **{which: asked}) as source, pytest.raises(SourceSchemaError) as caught:
        next(rows_of(source.scan(after=None, until=EVER, limit_rows=1, batch_rows=1)))
    assert "'update_at'" in caught.value.message
    assert "did you mean 'updated_at'?" in caught.value.hint


def test_the_source_cannot_be_written_through(database: Any) -> None:
    from engine.sources.opening import open_dialect

    fill(database, [(1, 1)])
    dialect: Any = open_dialect(database.uri)
    with pytest.raises(adbc_driver_manager.Error):
        dialect._connect().rows("DELETE FROM t")
    dialect.close()
    with opened(database) as source:
        assert keys(source) == [1]


@pytest.mark.parametrize("uri", ["mysql://u:hunter22@h/db", "jdbc:mysql://hunter22", ""])
def test_an_unknown_scheme_lists_what_is_allowed_and_shows_no_secret(uri: str) -> None:
    with (
        pytest.raises((SpecError, SourceError)) as caught,
        open_source(SecretStr(uri), key="id", cursor="at") as source,
    ):
        source.next_range(Seen(), Window(until=EVER, limit_rows=1))
    assert caught.value.hint
    assert "hunter22" not in str(caught.value) or uri.startswith("jdbc")  # a path is shown, a URI's secrets are not
