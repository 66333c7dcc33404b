"""PostgreSQL through ADBC. A query with parameters would come in one piece, so values are bound as session settings,
and the query that reads them has none: it streams as COPY.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.dialects import STAMP, Column, Range, quote, quote_table, scrubbed

_BATCH_BYTES = 4 * 2**20
_NUMBERS = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "bytea": pa.binary(),
}


class PostgreSQL:
    """A database, in a read-only transaction whose time zone is UTC."""

    def __init__(self, uri: SecretStr) -> None:
        self._uri = uri
        self._connection: Any = None

    def columns(self, table: str, *, times: Sequence[str]) -> list[Column]:
        """Return the columns by their declared types. numeric is read as float64; uuid, json, enums and others as text."""
        del times  # declared types are kept here, so a time is a time
        sql = (
            "SELECT a.attname::text, format_type(a.atttypid, NULL)::text FROM pg_attribute a "
            "WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"
        )
        return [Column(name, declared, _arrow_type(declared)) for name, declared in self._rows(sql, quote_table(table))]

    def tables(self) -> list[str]:
        """Return the names of tables and views outside the system's schemas."""
        sql = (
            "SELECT CASE WHEN schemaname = 'public' THEN tablename ELSE schemaname || '.' || tablename END FROM ("
            "SELECT schemaname::text, tablename::text FROM pg_tables UNION ALL "
            "SELECT schemaname::text, viewname::text FROM pg_views) t "
            "WHERE schemaname NOT IN ('pg_catalog', 'information_schema')"
        )
        return [name for (name,) in self._rows(sql)]

    def read(self, wanted: Range) -> Iterator[tuple[pa.RecordBatch, Any, Any]]:
        """Yield batches with the literals of the last row's cursor and key."""
        cursor, key = quote(wanted.cursor.name), quote(wanted.key.name)
        # In the column's own type, so that an index serves. A plain timestamp takes the UTC time and drops the zone.
        kind = wanted.cursor.declared
        where = [f"{cursor} <= current_setting('headrace.until')::{kind}"]
        settings = {"until": wanted.until.astimezone(UTC).isoformat(), "limit": str(wanted.limit_rows)}
        if wanted.after is not None:
            settings |= {"cursor": str(wanted.after[0]), "key": str(wanted.after[1])}
            where.append(
                f"({cursor}, {key}) > (current_setting('headrace.cursor')::{kind}, "
                f"current_setting('headrace.key')::{wanted.key.declared})"
            )
        columns = ", ".join(f"{_selected(column)} AS {quote(column.name)}" for column in wanted.columns)
        sql = (
            f"SELECT {columns} FROM {wanted.table} WHERE {' AND '.join(where)} "
            f"ORDER BY {cursor}, {key} LIMIT current_setting('headrace.limit')::bigint"
        )
        schema = pa.schema([pa.field(column.name, column.type) for column in wanted.columns])
        try:
            with self._connect().cursor() as statement:
                for name, value in settings.items():
                    statement.execute("SELECT set_config($1, $2, false)", (f"headrace.{name}", value))
                    statement.fetchall()
                option = {"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)}
                statement.adbc_statement.set_options(**option)
                statement.execute(sql)
                for batch in statement.fetch_record_batch():
                    if batch.num_rows:
                        rows = batch.cast(schema)
                        last = rows.num_rows - 1
                        stamp = rows.column(wanted.cursor.name)[last].as_py()
                        yield rows, None if stamp is None else stamp.isoformat(), _plain(rows, wanted.key.name, last)
        except (OSError, pa.ArrowException, self._errors()) as error:
            raise SourceError(
                f"reading {wanted.table} failed: {self.scrub(error)}",
                hint="what was committed stays; run again to go on from there",
            ) from None

    def scrub(self, error: Exception) -> str:
        """Return a driver's message on one line, without the connection string or its password."""
        return scrubbed(error, self._uri)

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Any:
        import adbc_driver_postgresql.dbapi

        if self._connection is None:
            try:
                self._connection = adbc_driver_postgresql.dbapi.connect(self._uri.get_secret_value())
                with self._connection.cursor() as statement:
                    statement.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
                    statement.execute("SET TIME ZONE 'UTC'")
                self._connection.commit()
            except self._errors() as error:
                raise SourceError(
                    f"the database cannot be reached: {self.scrub(error)}",
                    hint="check source.uri (host, port, database, user) and that the server accepts connections",
                ) from None
        return self._connection

    def _errors(self) -> type[Exception]:
        import adbc_driver_manager

        kind: type[Exception] = adbc_driver_manager.Error
        return kind

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            with self._connect().cursor() as statement:
                statement.execute(sql, values or None)
                return list(statement.fetchall())
        except self._errors() as error:
            raise SourceError(f"the database cannot be read: {self.scrub(error)}") from None


def _arrow_type(declared: str) -> pa.DataType:
    if declared.startswith("timestamp") or declared == "date":
        return STAMP
    if declared.startswith("numeric"):
        return pa.float64()
    return _NUMBERS.get(declared, pa.string())


def _selected(column: Column) -> str:
    """Return the expression that gives a column in a type that the driver reads as what we promise."""
    name = quote(column.name)
    if column.declared == "timestamp with time zone":
        return name
    if column.type == STAMP:
        return f"({name}::timestamp AT TIME ZONE 'UTC')"
    if column.declared.startswith("numeric"):
        return f"{name}::double precision"
    return name if column.declared in _NUMBERS else f"{name}::text"


def _plain(rows: pa.RecordBatch, column: str, at: int) -> str | int | None:
    value = rows.column(column)[at].as_py()
    return value if isinstance(value, int) or value is None else str(value)
