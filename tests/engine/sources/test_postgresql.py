"""What only PostgreSQL has: its types, its keys, its errors, its memory."""

from __future__ import annotations

import json
import traceback
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError
from engine.sources import Position
from tests.tables import open_table, rows_of

EVER = datetime(2100, 1, 1, tzinfo=UTC)
NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)


def read(database: Any, *, key: str = "id", cursor: str = "at", after: Position | None = None) -> pa.Table:
    with open_table(database.uri, table="t", key=key, cursor=cursor) as source:
        batches = list(rows_of(source.scan(after=after, until=EVER, limit_rows=100, batch_rows=10)))
        return pa.Table.from_batches(batches, schema=source.schema())


def test_types_are_read_as_documented(postgresql_database: Any) -> None:
    execute = postgresql_database.execute
    execute("CREATE TYPE mood AS ENUM ('sad', 'happy')")
    execute("CREATE DOMAIN price AS numeric(8, 2)")
    execute(
        "CREATE TABLE t (id int8 PRIMARY KEY, at timestamptz, plain timestamp, d date, small int2, i int4, f float4, "
        "g float8, b bool, whole numeric(12, 0), n numeric, p price, u uuid, j jsonb, m mood, a int[], c char(5), "
        "x bytea)"
    )
    execute(
        "INSERT INTO t VALUES (1, '2020-01-01 13:00+01', '2020-01-01 12:00', '2020-01-01', 1, 2, 0.5, 0.25, true, "
        "123456789012, 1.5, 9.75, '6f9619ff-8b86-d011-b42d-00c04fc964ff', '{\"a\": 1}', 'happy', '{1,2}', 'ab', "
        "'\\x00ff')"
    )
    execute("INSERT INTO t (id, at) VALUES (2, '2020-01-01 12:00+00')")
    rows = read(postgresql_database)
    first, second = rows.to_pylist()
    assert first == {
        "id": 1, "at": NOON, "plain": NOON, "d": datetime(2020, 1, 1, tzinfo=UTC), "small": 1, "i": 2, "f": 0.5,
        "g": 0.25, "b": True, "whole": 123456789012, "n": 1.5, "p": 9.75, "u": "6f9619ff-8b86-d011-b42d-00c04fc964ff",
        "j": '{"a": 1}', "m": "happy", "a": "{1,2}", "c": "ab", "x": b"\0\xff",
    }  # fmt: skip
    assert set(second.values()) == {2, NOON, None}
    assert rows.schema.field("whole").type == pa.int64()
    assert rows.schema.field("n").type == rows.schema.field("p").type == pa.float64()


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("uuid", ["00000000-0000-0000-0000-000000000001", "00000000-0000-0000-0000-000000000002"]),
        ("numeric", ["9", "12345678901234567890123456789", "12345678901234567890123456790"]),
        ("char(4)", ["aaaa", "aaab"]),
        ("text", ["a", "b"]),
        ("smallint", ["1", "2"]),
        ("bit(4)", ["0001", "0010", "1111"]),
    ],
)
def test_keys_of_any_type_resume_exactly(postgresql_database: Any, kind: str, keys: list[str]) -> None:
    postgresql_database.execute(f"CREATE TABLE t (id {kind} PRIMARY KEY, at timestamptz)")
    postgresql_database.insert("t", [(key, "2020-01-01 12:00:00.000001+00") for key in keys])
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at") as source:
        seen = []
        for _ in range(len(keys) + 1):
            for batch in rows_of(source.scan(after=source.position, until=EVER, limit_rows=1, batch_rows=1)):
                seen += [str(key) for key in batch.column("id").to_pylist()]
            assert source.position == Position.from_json(json.loads(json.dumps(source.position.to_json())))
    assert seen == keys


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz", "date"])
def test_an_infinite_time_is_rejected_and_such_a_cursor_is_never_read(postgresql_database: Any, kind: str) -> None:
    postgresql_database.execute(f"CREATE TABLE t (id int PRIMARY KEY, at {kind}, valid_to {kind})")
    rows = [(1, "-infinity", None), (2, "2020-01-01", "infinity"), (3, "2020-01-02", "-infinity")]
    rows += [(4, "2020-01-03", "12000-01-01"), (5, "2020-01-04", "2020-01-01"), (6, "infinity", None)]
    postgresql_database.insert("t", rows)
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at") as source:
        batches = list(source.scan(after=None, until=EVER, limit_rows=100, batch_rows=10))
        assert source.position is not None
        assert source.position.key == 5
    kept = pa.Table.from_batches(batch.rows for batch in batches)
    assert kept.column("id").to_pylist() == [5]
    assert kept.column("valid_to").to_pylist()[0].date() == NOON.date()
    rejected = [one for batch in batches for one in batch.rejected]
    assert [(one.key, one.column) for one in rejected] == [("2", "valid_to"), ("3", "valid_to"), ("4", "valid_to")]
    assert rejected[0].value == "infinity"
    assert "outside the years 1 to 9999" in rejected[0].reason


@pytest.mark.parametrize(
    "text",
    ["294276-12-31 23:59:59+00", "294247-01-01 00:00:00+00", "0001-01-01 00:00:00+00 BC", "10000-01-01 00:00+00"],
)
def test_a_far_time_is_shown_as_the_server_has_it(postgresql_database: Any, text: str) -> None:
    """The driver counts from 1970 and not 2000: the last 30 years come as times long ago."""
    postgresql_database.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, far timestamptz)")
    postgresql_database.insert("t", [(1, "2020-01-01", text), (2, "2020-01-01", "9999-12-31 23:59:59.999999+00")])
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at") as source:
        [batch] = source.scan(after=None, until=EVER, limit_rows=100, batch_rows=10)
    assert batch.rows.column("id").to_pylist() == [2]
    [one] = batch.rejected
    year, shown = text.split("-")[0], str(one.value)
    assert shown.lstrip("-").startswith("0000-" if text.endswith("BC") else f"{year}-"), shown


@pytest.mark.parametrize("of", ["table", "view", "heir"])
def test_a_long_value_is_found_wherever_it_lies(postgresql_database: Any, of: str) -> None:
    """Where no value can be long the server is not asked; that must never be assumed of one that is."""
    mib = 2**20
    postgresql_database.execute("CREATE TABLE s (id int PRIMARY KEY, at timestamptz, v text)")
    long = f"INSERT INTO %s VALUES (1, '2020-01-01', repeat(md5('1'), {6 * mib // 32})), (2, '2020-01-01', 'short')"
    if of == "heir":
        postgresql_database.execute("CREATE TABLE h () INHERITS (s)")
        postgresql_database.execute(long % "h")
    else:
        postgresql_database.execute(long % "s")
    postgresql_database.execute("CREATE VIEW w AS SELECT * FROM s")
    table = "w" if of == "view" else "s"
    with open_table(postgresql_database.uri, table=table, key="id", cursor="at", max_value_bytes=5 * mib) as source:
        [batch] = source.scan(after=None, until=EVER, limit_rows=100, batch_rows=10)
    assert batch.rows.column("id").to_pylist() == [2]
    assert batch.rejected[0].reason == f"column 'v': larger than max_row_bytes: {6 * mib} bytes"


@pytest.mark.parametrize("kind", ["text", "varchar", "bytea"])
def test_a_value_larger_than_the_limit_never_leaves_the_server(postgresql_database: Any, kind: str) -> None:
    postgresql_database.execute(f"CREATE TABLE t (id int PRIMARY KEY, at timestamptz, v {kind})")
    postgresql_database.execute(
        f"INSERT INTO t SELECT g, timestamptz '2020-01-01 00:00+00', repeat('x', g * 900)::{kind} "
        "FROM generate_series(1, 2) g"
    )
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at", max_value_bytes=1_000) as source:
        [batch] = source.scan(after=None, until=EVER, limit_rows=100, batch_rows=10)
    assert batch.rows.column("id").to_pylist() == [1]
    assert batch.rejected[0].reason == "column 'v': larger than max_row_bytes: 1800 bytes"
    assert batch.rejected[0].value == "x" * 256


@pytest.mark.parametrize("kind", ["timestamp", "timestamptz", "date"])
def test_cursors_of_each_time_type_respect_until(postgresql_database: Any, kind: str) -> None:
    postgresql_database.execute("SET TIME ZONE 'America/New_York'")
    postgresql_database.execute(f"CREATE TABLE t (id int PRIMARY KEY, at {kind})")
    suffix = " 00:00+00" if kind == "timestamptz" else ""
    postgresql_database.insert("t", [(day, f"2020-01-0{day}{suffix}") for day in (1, 2, 3)])
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at") as source:
        until = datetime(2020, 1, 2, tzinfo=UTC)
        batches = rows_of(source.scan(after=None, until=until, limit_rows=9, batch_rows=9))
        assert pa.Table.from_batches(batches).column("at").to_pylist() == [datetime(2020, 1, 1, tzinfo=UTC), until]


def test_a_cursor_that_is_no_time_is_refused(postgresql_database: Any) -> None:
    postgresql_database.execute("CREATE TABLE t (id int PRIMARY KEY, at bigint)")
    with pytest.raises(SourceSchemaError, match="cursor 'at' is bigint, not a time"):
        read(postgresql_database)


def test_a_range_is_served_by_an_index(postgresql_database: Any) -> None:
    """The condition as it is sent, explained by the server."""
    import adbc_driver_postgresql.dbapi

    from engine.sources.dialects import Range
    from engine.sources.postgresql import PostgreSQL, _where

    postgresql_database.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamp NOT NULL)")
    postgresql_database.execute(
        "INSERT INTO t SELECT g, timestamp '2020-01-01' + g * interval '1 s' FROM generate_series(1, 50000) g"
    )
    postgresql_database.execute("CREATE INDEX i ON t (at, id)")
    postgresql_database.execute("ANALYZE t")
    dialect = PostgreSQL(postgresql_database.uri)
    columns = tuple(dialect.columns("t", key="id", times=()))
    dialect.close()
    wanted = Range(
        table='"t"',
        columns=columns,
        key=columns[0],
        cursor=columns[1],
        after=Position("2020-01-01T02:00:00+00:00", 7_200),
        since=EVER - timedelta(days=40_000),
        until=EVER,
        max_value_bytes=10**6,
        limit_rows=10,
        batch_rows=10,
    )
    where, settings = _where(wanted)
    uri = postgresql_database.uri.get_secret_value()
    with adbc_driver_postgresql.dbapi.connect(uri, autocommit=True) as connection, connection.cursor() as statement:
        for name, value in settings.items():
            statement.execute("SELECT set_config($1, $2, false)", (f"headrace.{name}", value))
            statement.fetchall()
        statement.adbc_statement.set_options(**{"adbc.postgresql.use_copy": "false"})
        statement.execute(
            f'EXPLAIN SELECT * FROM "t" WHERE {where} ORDER BY "t"."at", "t"."id" '
            "LIMIT current_setting('headrace.limit')::bigint"
        )
        plan = " ".join(step for (step,) in statement.fetchall())
    assert "Index" in plan
    assert "using i on t" in plan
    assert "Sort" not in plan


def test_values_are_bound_and_never_part_of_the_query(postgresql_database: Any) -> None:
    postgresql_database.execute("CREATE TABLE t (id text PRIMARY KEY, at timestamptz)")
    hostile = "x'); DROP TABLE t; --"
    postgresql_database.insert("t", [(hostile, "2020-01-01 12:00+00"), ("y", "2020-01-01 12:00+00")])
    rows = read(postgresql_database, after=Position(NOON.isoformat(), hostile))
    assert rows.column("id").to_pylist() == ["y"]
    assert read(postgresql_database).num_rows == 2


def test_a_cut_connection_leaves_the_position_at_the_last_row_that_came(postgresql_database: Any) -> None:
    postgresql_database.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, v text)")
    postgresql_database.execute(
        "INSERT INTO t SELECT g, timestamptz '2020-01-01 00:00+00' + g / 7 * interval '1 s', repeat('x', 400) "
        "FROM generate_series(1, 60000) g"
    )
    postgresql_database.execute("ANALYZE t")
    others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
    seen: list[int] = []
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at") as source:
        batches = rows_of(source.scan(after=None, until=EVER, limit_rows=10**6, batch_rows=500))
        seen += next(batches).column("id").to_pylist()
        postgresql_database.execute(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE {others}")
        with pytest.raises(SourceError, match='reading "t" failed') as caught:
            seen.extend(key for batch in batches for key in batch.column("id").to_pylist())
        after = source.position
    assert "run again" in caught.value.hint
    assert 500 <= len(seen) < 60_000
    assert after is not None
    assert after.key == seen[-1]
    with open_table(postgresql_database.uri, table="t", key="id", cursor="at") as source:
        for batch in rows_of(source.scan(after=after, until=EVER, limit_rows=10**6, batch_rows=5_000)):
            seen += batch.column("id").to_pylist()
    assert seen == list(range(1, 60_001))


def test_an_error_in_the_middle_of_reading_says_what_survives(postgresql_database: Any) -> None:
    postgresql_database.execute("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, v int)")
    postgresql_database.execute("INSERT INTO t VALUES (1, '2020-01-01 12:00+00', 1)")
    with pytest.raises(SourceError, match='reading "t" failed'):
        read(postgresql_database, after=Position("not a time", 1))


@pytest.mark.parametrize(
    "uri",
    [
        "postgresql://reader:Tr0ub4dor@127.0.0.1:1/shop",
        "postgresql://reader:Tr0ub4dor@nowhere.invalid/shop",
        "postgresql://reader:Tr0ub4dor@127.0.0.1:notaport/shop",
        "postgresql://reader:Tr0u@b4dor/x@127.0.0.1:1/shop",
        "postgresql://reader:Tr0u[b4dor@127.0.0.1:1/shop",
        "postgresql://127.0.0.1:1/shop?user=reader&password=Tr0ub4dor",
        "postgresql://127.0.0.1:1/shop?passwort=Tr0ub4dor&password=Tr0ub4dor",
    ],
)
def test_a_password_is_in_no_message_of_a_server_that_cannot_be_reached(uri: str) -> None:
    source = open_table(SecretStr(uri), table="t", key="id", cursor="at")
    with source, pytest.raises(SourceError, match="cannot be reached") as caught:
        source.schema()
    error = caught.value
    shown = str(error) + repr(error) + "".join(traceback.format_exception(error)) + json.dumps(error.to_json())
    shown += repr(source) + repr(vars(source))
    assert not [piece for piece in ("Tr0u", "b4dor") if piece in shown]
    assert error.hint


def test_a_wrong_password_is_refused_without_showing_it(postgresql_database: Any, postgresql_server: str) -> None:
    """A role with a password, on a server that asks for one."""
    import adbc_driver_postgresql.dbapi

    with adbc_driver_postgresql.dbapi.connect(postgresql_server, autocommit=True) as server, server.cursor() as work:
        work.execute("SELECT current_setting('hba_file')")
        (path,) = work.fetchone() or ("",)
        work.execute("CREATE ROLE reader LOGIN PASSWORD 'right'")
        try:
            with open(path, "r+") as file:
                before = file.read()
                file.seek(0)
                file.write("local all reader scram-sha-256\n" + before)
            work.execute("SELECT pg_reload_conf()")
            uri = postgresql_database.uri.get_secret_value().replace("postgres:@", "reader:WrongSecret@")
            source = open_table(SecretStr(uri), table="t", key="id", cursor="at")
            with source, pytest.raises(SourceError, match="password authentication failed") as caught:
                source.schema()
            assert "WrongSecret" not in "".join(traceback.format_exception(caught.value))
        finally:
            with open(path, "w") as file:
                file.write(before)
            work.execute("SELECT pg_reload_conf()")
            work.execute("DROP ROLE reader")
