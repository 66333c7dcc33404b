"""Any ADBC driver by name: which driver a URI leads to, what its types become, what goes wrong. The contract that every
source keeps is ``test_contract.py``.
"""

from __future__ import annotations

import contextlib
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError, SpecError
from engine.sources.generic import Generic
from engine.sources.opening import open_dialect
from engine.sources.postgresql import PostgreSQL
from engine.sources.sqlite import SQLite
from tests.tables import open_table, rows_of

EVER = datetime(2100, 1, 1, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")


def read(uri: SecretStr, *, cursor: str = "at", **more: Any) -> pa.Table:
    with open_table(uri, table="t", key="id", cursor=cursor, **more) as source:
        return pa.Table.from_batches(
            rows_of(source.scan(after=None, until=EVER, limit_rows=100, batch_rows=10)), schema=source.schema()
        )


def test_sqlite_and_postgresql_are_read_by_their_own_dialects(sqlite_database: Any, postgresql_database: Any) -> None:
    kinds = {"sqlite": SQLite, "postgresql": PostgreSQL}
    for database in (sqlite_database, postgresql_database):
        uri = SecretStr("adbc+" + database.uri.get_secret_value())
        assert isinstance(open_dialect(uri), kinds[database.kind])
        database.execute("CREATE TABLE t (id BIGINT PRIMARY KEY, at TIMESTAMP NOT NULL)")
        database.insert("t", [(1, "2020-01-01 00:00:01.5")])
        assert read(uri).column("id").to_pylist() == [1]


def test_a_driver_may_be_named_by_the_path_of_its_library(tmp_path: Path) -> None:
    import adbc_driver_sqlite

    path = tmp_path / "shop.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER)")
    uri = SecretStr(f"adbc+{adbc_driver_sqlite._driver_path()}:{path}")
    dialect = open_dialect(uri)
    assert isinstance(dialect, Generic)
    assert dialect.tables() == ["t"]
    assert dialect.columns("t", key="id", times=())[0].type == pa.int64()
    dialect.close()


def test_types_become_those_that_a_table_has(duckdb_database: Any) -> None:
    duckdb_database.execute(
        'CREATE TABLE t (id BIGINT, "at" TIMESTAMPTZ, plain TIMESTAMP, day DATE, seconds TIMESTAMP_S, n DECIMAL(9, 0), '
        "price DECIMAL(9, 2), wide DECIMAL(30, 0), small UTINYINT, huge UBIGINT, code UUID, clock TIME, "
        "kind ENUM ('a', 'b'), bytes BLOB, list INTEGER[], flag BOOLEAN, half REAL)"
    )
    duckdb_database.execute(
        "INSERT INTO t VALUES (1, '2020-01-01 12:00:00+02', '2020-01-01 12:00:00', '2020-01-02', "
        "'2020-01-01 00:00:03', 5, 1.25, 123, 255, 18446744073709551615, "
        "'5f8c3f2e-0000-0000-0000-000000000001', '10:20:30', 'b', 'x'::BLOB, [1, 2], true, 0.5)"
    )
    (row,) = read(duckdb_database.uri).to_pylist()
    assert row == {
        "id": 1,
        "at": datetime(2020, 1, 1, 10, tzinfo=UTC),
        "plain": datetime(2020, 1, 1, 12, tzinfo=UTC),
        "day": datetime(2020, 1, 2, tzinfo=UTC),
        "seconds": datetime(2020, 1, 1, 0, 0, 3, tzinfo=UTC),
        "n": 5,
        "price": 1.25,
        "wide": 123.0,
        "small": 255,
        "huge": float(2**64),
        "code": "5f8c3f2e-0000-0000-0000-000000000001",
        "clock": "10:20:30",
        "kind": "b",
        "bytes": b"x",
        "list": "[1, 2]",
        "flag": True,
        "half": 0.5,
    }


def test_a_time_that_is_none_is_rejected_and_the_others_come_through(duckdb_database: Any) -> None:
    duckdb_database.execute('CREATE TABLE t (id BIGINT, "at" TIMESTAMP, seen TIMESTAMP)')
    duckdb_database.execute("INSERT INTO t VALUES (1, '2020-01-01', 'infinity'), (2, '2020-01-02', '2020-01-01')")
    with open_table(duckdb_database.uri, table="t", key="id", cursor="at") as source:
        (batch,) = source.scan(after=None, until=EVER, limit_rows=10, batch_rows=10)
    assert batch.rows.column("id").to_pylist() == [2]
    assert [(one.key, one.column) for one in batch.rejected] == [("1", "seen")]


def test_a_cursor_finer_than_microseconds_is_refused(duckdb_database: Any) -> None:
    duckdb_database.execute('CREATE TABLE t (id BIGINT, "at" TIMESTAMP_NS)')
    with pytest.raises(SourceSchemaError, match="finer than microseconds"):
        read(duckdb_database.uri)


@pytest.mark.parametrize("uri", ["adbc+", "adbc+duckdb", "adbc+:hunter22"])
def test_a_uri_without_a_driver_is_refused(uri: str) -> None:
    with pytest.raises(SpecError) as caught:
        open_dialect(SecretStr(uri))
    assert "hunter22" not in f"{caught.value} {caught.value.hint}"


def test_a_driver_that_is_not_there_is_named_and_the_password_is_not() -> None:
    uri = SecretStr("adbc+nosuchdriver://user:hunter22@host/db")
    with pytest.raises(SourceError, match="nosuchdriver") as caught:
        open_dialect(uri).tables()
    assert "hunter22" not in f"{caught.value} {caught.value.hint} {caught.value.__context__} {caught.value.__cause__}"


def test_a_missing_file_is_an_error_and_makes_no_database(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="duckdb"):
        read(SecretStr(f"adbc+duckdb:///{tmp_path}/none.duckdb"))
    assert not list(tmp_path.iterdir())


def test_a_file_larger_than_the_engines_memory_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute(
            "CREATE TABLE t AS SELECT hash(range) >> 8 AS id, TIMESTAMP '2020-01-01' + "
            'INTERVAL (hash(range + 1) % 1000000) SECOND AS "at", '
            "repeat('x', 100) || range AS text FROM range(1500000)"
        )
    script = f"""
from datetime import UTC, datetime
from pydantic import SecretStr
from engine.memory.measure import measure_self
from tests.tables import open_table
import duckdb, pyarrow
before, peak, rows = measure_self().counted_bytes, 0, 0
with open_table(SecretStr("adbc+duckdb:///{path}"), table="t", key="id", cursor="at") as source:
    for part in source.scan(after=None, until=datetime(2100, 1, 1, tzinfo=UTC), limit_rows=10**7, batch_rows=5000):
        rows += part.rows.num_rows
        peak = max(peak, measure_self().counted_bytes)
print(rows, (peak - before) >> 20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows, mebibytes = map(int, done.stdout.split())
    assert rows == 1_500_000
    assert mebibytes < 200
