"""A table of an SQL database through ADBC, read by keyset: the same code for every dialect."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa

from engine.errors import SourceSchemaError
from engine.sources.dialects import Column, Dialect, Range, nearest, quote_table
from engine.sources.protocol import Position


class SQLSource:
    """One table; see ``protocol.Source``."""

    def __init__(
        self,
        dialect: Dialect,
        *,
        table: str,
        key: str,
        cursor: str,
        columns: Sequence[str] | None,
        times: Sequence[str],
    ) -> None:
        self._dialect = dialect
        self._table = table
        self._key = key
        self._cursor = cursor
        self._wanted = columns
        self._times = times
        self._found: tuple[Column, ...] = ()
        self._position: Position | None = None

    def __enter__(self) -> Self:
        """Return itself; it connects at first use."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Disconnect."""
        self._dialect.close()

    def schema(self) -> pa.Schema:
        """Return the columns with the types that ``read`` gives."""
        return pa.schema([pa.field(column.name, column.type) for column in self._columns()])

    @property
    def position(self) -> Position | None:
        """Where the last row that ``read`` yielded stands."""
        return self._position

    def read(
        self, *, after: Position | None, until: datetime, limit_rows: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows in order of (cursor, key)."""
        columns = self._columns()
        by_name = {column.name: column for column in columns}
        wanted = Range(
            table=quote_table(self._table),
            columns=columns,
            key=by_name[self._key],
            cursor=by_name[self._cursor],
            after=after,
            until=until if until.tzinfo else until.replace(tzinfo=UTC),
            limit_rows=limit_rows,
            batch_rows=batch_rows,
        )
        self._position = after
        for batch, cursors, keys in self._dialect.read(wanted):
            for start in range(0, batch.num_rows, batch_rows):
                part = batch.slice(start, batch_rows)
                last = start + part.num_rows - 1
                self._position = Position(cursor=_literal(cursors[last].as_py()), key=_literal(keys[last].as_py()))
                yield part

    def _columns(self) -> tuple[Column, ...]:
        if self._found:
            return self._found
        columns = self._dialect.columns(self._table, key=self._key, times=self._times)
        if not columns:
            hint = nearest(self._table, self._dialect.tables(), what="tables")
            raise SourceSchemaError(f"there is no table {self._table!r} in the source", hint=hint)
        names = [column.name for column in columns]
        for name in (self._key, self._cursor, *(self._wanted or ())):
            if name not in names:
                hint = nearest(name, names, what="columns")
                raise SourceSchemaError(f"table {self._table!r} has no column {name!r}", hint=hint)
        for column in columns:
            if column.name == self._cursor and not pa.types.is_timestamp(column.type):
                raise SourceSchemaError(
                    f"table {self._table!r}: the cursor {self._cursor!r} is {column.declared}, not a time",
                    hint="name a column of times, or read a view that makes a time of it",
                )
            if column.name == self._key and pa.types.is_binary(column.type):
                raise SourceSchemaError(
                    f"table {self._table!r}: the key {self._key!r} is {column.declared}: bytes cannot be a key",
                    hint="read a view that gives it as text, for example by hex()",
                )
        kept = {*self._wanted, self._key, self._cursor} if self._wanted is not None else set(names)
        self._found = tuple(column for column in columns if column.name in kept)
        return self._found


def _literal(value: Any) -> Any:
    """Return a cursor or key in a form that JSON carries exactly and the database reads back."""
    return value.isoformat() if isinstance(value, date) else value
