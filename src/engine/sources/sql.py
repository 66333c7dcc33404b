"""A table of an SQL database through ADBC, read by keyset: the same code for every dialect."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from datetime import datetime
from types import TracebackType
from typing import Self

import pyarrow as pa

from engine.errors import SourceSchemaError
from engine.sources.dialects import Column, Dialect, Range, quote_table
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
        self._found: list[Column] = []
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
            after=None if after is None else (after.cursor, after.key),
            until=until,
            limit_rows=limit_rows,
            batch_rows=batch_rows,
        )
        self._position = after
        for batch, cursor, key in self._dialect.read(wanted):
            for start in range(0, batch.num_rows, batch_rows):
                part = batch.slice(start, batch_rows)
                if start + batch_rows >= batch.num_rows:
                    self._position = Position(cursor=cursor, key=key)
                yield part

    def _columns(self) -> list[Column]:
        if self._found:
            return self._found
        columns = self._dialect.columns(self._table, times=self._times)
        if not columns:
            tables = self._dialect.tables()
            raise SourceSchemaError(
                f"there is no table {self._table!r} in the source", hint=_nearest(self._table, tables, what="tables")
            )
        names = [column.name for column in columns]
        for name in (*(self._wanted or ()), self._key, self._cursor):
            if name not in names:
                raise SourceSchemaError(
                    f"table {self._table!r} has no column {name!r}", hint=_nearest(name, names, what="columns")
                )
        kept = set(self._wanted) if self._wanted is not None else set(names)
        self._found = [column for column in columns if column.name in kept]
        return self._found


def _nearest(name: str, known: Sequence[str], *, what: str) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    shown = ", ".join(sorted(known)[:40]) or "none"
    return f"{meant}{what}: {shown}"
