"""SQLite through ADBC. Its types are loose, so the declared ones decide, and a first row of their kinds tells the driver."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.dialects import STAMP, Column, Range, quote, scrubbed

_TIMES = ("timestamp", "datetime", "date")
_MILLISECONDS_FROM = 10**11  # an epoch number from here on counts milliseconds: in seconds it is the year 5138


class SQLite:
    """A database file, opened read-only."""

    def __init__(self, uri: SecretStr) -> None:
        self._uri = uri
        self._path = Path(uri.get_secret_value().split("://", 1)[1].partition("?")[0].removeprefix("/") or ".")
        if uri.get_secret_value().startswith("sqlite:////"):
            self._path = Path("/", self._path)
        self._connection: Any = None

    def columns(self, table: str, *, times: Sequence[str]) -> list[Column]:
        """Return the columns by their declared types; those in ``times`` are times whatever is declared."""
        rows = self._rows("SELECT name, lower(type) FROM pragma_table_info(?)", (table.split(".")[-1],))
        return [Column(name, declared, _arrow_type(declared, is_time=name in times)) for name, declared in rows]

    def tables(self) -> list[str]:
        """Return the names of tables and views."""
        rows = self._rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')", ())
        return [name for (name,) in rows if not name.startswith("sqlite_")]

    def read(self, wanted: Range) -> Iterator[tuple[pa.RecordBatch, Any, Any]]:
        """Yield batches with the literals of the last row's cursor and key."""
        names = ", ".join(quote(column.name) for column in wanted.columns)
        cursor, key = quote(wanted.cursor.name), quote(wanted.key.name)
        where, values = [f"{cursor} <= ?"], [self._literal(wanted)]
        if wanted.after is not None:
            where.append(f"({cursor}, {key}) > (?, ?)")
            values += list(wanted.after)
        first = ", ".join(f"{_SAMPLE[_storage(column.declared)]} AS {quote(column.name)}" for column in wanted.columns)
        # The driver takes each column's type from its first row: this one has them all, and is dropped.
        sql = (
            f"SELECT {first}, 0 AS _row UNION ALL SELECT * FROM (SELECT {names}, 1 FROM {wanted.table} "
            f"WHERE {' AND '.join(where)} ORDER BY {cursor}, {key} LIMIT ?)"
        )
        try:
            with self._connect().cursor() as statement:
                statement.adbc_statement.set_options(**{"adbc.sqlite.query.batch_rows": str(wanted.batch_rows)})
                statement.execute(sql, (*values, wanted.limit_rows))
                for batch in statement.fetch_record_batch():
                    rows = batch.filter(pc.equal(batch.column("_row"), 1)) if batch.num_rows else batch
                    if rows.num_rows:
                        yield self._convert(rows, wanted)
        except (OSError, pa.ArrowException, self._errors()) as error:
            raise SourceError(
                f"reading {wanted.table} failed: {self.scrub(error)}",
                hint="a value that contradicts its column's declared type stops SQLite's driver; correct it in the source",
            ) from None

    def scrub(self, error: Exception) -> str:
        """Return a driver's message on one line."""
        return scrubbed(error, self._uri)

    def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _connect(self) -> Any:
        import adbc_driver_sqlite.dbapi

        if self._connection is None:
            if not self._path.is_file():
                raise SourceError(
                    f"there is no database file {self._path}",
                    hint="check source.uri; a relative path is taken from the directory that the command runs in",
                )
            name = f"file:{percent(str(self._path))}?mode=ro"
            try:
                self._connection = adbc_driver_sqlite.dbapi.connect(name)
            except self._errors() as error:
                raise SourceError(f"{self._path} cannot be opened: {self.scrub(error)}") from None
        return self._connection

    def _errors(self) -> type[Exception]:
        import adbc_driver_manager

        kind: type[Exception] = adbc_driver_manager.Error
        return kind

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            with self._connect().cursor() as statement:
                statement.execute(sql, values or None)
                return list(statement.fetchall())
        except self._errors() as error:
            hint = "is it a SQLite database, and not being written by something that locks it?"
            raise SourceError(f"{self._path} cannot be read: {self.scrub(error)}", hint=hint) from None

    def _literal(self, wanted: Range) -> str | int:
        """Return ``until`` written as the cursor's values are."""
        cursor = quote(wanted.cursor.name)
        rows = self._rows(f"SELECT max({cursor}) FROM {wanted.table}", ())
        sample = rows[0][0] if rows else None
        until = wanted.until.astimezone(UTC)
        if isinstance(sample, int | float):
            seconds = until.timestamp()
            return int(seconds * 1000) if sample >= _MILLISECONDS_FROM else int(seconds)
        text = str(sample or "")
        separator = "T" if "T" in text else " "
        written = until.strftime(f"%Y-%m-%d{separator}%H:%M:%S")
        if until.microsecond or "." in text:
            written += f".{until.microsecond:06d}"
        return written + ("Z" if text.endswith("Z") else "+00:00" if text.endswith("+00:00") else "")

    def _convert(self, rows: pa.RecordBatch, wanted: Range) -> tuple[pa.RecordBatch, Any, Any]:
        last = rows.num_rows - 1
        cursor, key = (rows.column(c.name)[last].as_py() for c in (wanted.cursor, wanted.key))
        arrays = [_typed(rows.column(column.name), column) for column in wanted.columns]
        return pa.RecordBatch.from_arrays(arrays, names=[c.name for c in wanted.columns]), cursor, key


_SAMPLE = {"integer": "0", "real": "0.5", "text": "'x'", "blob": "x'00'"}


def _storage(declared: str) -> str:
    """Return how a column of this declared type is stored, by SQLite's rules of affinity (times are text here)."""
    if "int" in declared or "bool" in declared:
        return "integer"
    if any(word in declared for word in ("char", "clob", "text", *_TIMES)):
        return "text"
    if "blob" in declared:
        return "blob"
    return "real" if declared else "text"


def _arrow_type(declared: str, *, is_time: bool) -> pa.DataType:
    if is_time or any(declared.startswith(word) for word in _TIMES):
        return STAMP
    if "bool" in declared:
        return pa.bool_()
    return {"integer": pa.int64(), "real": pa.float64(), "text": pa.string(), "blob": pa.binary()}[_storage(declared)]


def _typed(values: pa.Array, column: Column) -> pa.Array:
    if column.type != STAMP:
        return values.cast(column.type)
    try:
        return _as_time(values)
    except pa.ArrowInvalid as error:
        detail = str(error).splitlines()[0]
        raise SourceError(
            f"column {column.name!r} holds a value that is no time: {detail}",
            hint="times are ISO 8601 text in UTC, or seconds or milliseconds since 1970",
        ) from None


def _as_time(values: pa.Array) -> pa.Array:
    if pa.types.is_integer(values.type) or pa.types.is_floating(values.type):
        number = values.cast(pa.float64())
        scale = pc.if_else(pc.greater_equal(number, float(_MILLISECONDS_FROM)), 1_000.0, 1_000_000.0)
        return pc.multiply(number, scale).cast(pa.int64(), safe=False).cast(STAMP)
    text = pc.replace_substring_regex(values.cast(pa.string()), pattern=r"(Z|\+00:00)$", replacement="")
    return pc.assume_timezone(text.cast(pa.timestamp("us")), "UTC")


