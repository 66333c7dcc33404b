"""A table of an SQL database through ADBC, read by keyset: the same code for every dialect."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from datetime import UTC, date, datetime
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from engine.batching.streams import BatchBytes, bound
from engine.errors import SourceSchemaError
from engine.sources.ahead import read_ahead
from engine.sources.casting import cast_rows, reject
from engine.sources.dialects import APART, Column, Dialect, Range, nearest, quote_table
from engine.sources.growth import Growth
from engine.sources.protocol import Batch, Ending, Extent, Position, Rejected, Seen, Standing, Window
from engine.units import format_time, parse_time

_EVER = datetime(9999, 1, 1, tzinfo=UTC)
_MOST_ROWS = 131_072
_DRIVER_VALUE_BYTES = 8  # SQLite has one width for all numbers, and for booleans; two columns say what is wrong
_TEXT_BYTES = 64  # a first guess of a text and its offset
_LOOK_ROWS, _LOOK_BYTES, _LOOK_BATCH = 1_024, 4 * 2**20, 8  # of which the bytes of a row are taken, in no cage
_COUNTED_ROWS = 2**18  # a range of more is read through batches of full size anyway


class SQLSource:
    """One table; see ``protocol.Source``. Ranges are read strictly after a position, in order of (cursor, key)."""

    def __init__(
        self,
        dialect: Dialect,
        *,
        table: str,
        key: str,
        cursor: str,
        columns: Sequence[str] | None,
        times: Sequence[str],
        max_value_bytes: int,
    ) -> None:
        self._dialect = dialect
        self._max_value_bytes = max_value_bytes
        self._table = table
        self._key = key
        self._cursor = cursor
        self._wanted = columns
        self._times = times
        self._found: tuple[Column, ...] = ()
        self._position: Position | None = None
        self._more = False
        self._rows = 0  # of the running read

    def __enter__(self) -> Self:
        """Return itself; it connects at first use."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Disconnect."""
        self._dialect.close()

    def schema(self) -> pa.Schema:
        """Return the columns with the types that ``head`` gives."""
        return pa.schema([pa.field(column.name, column.type) for column in self._columns()])

    @property
    def position(self) -> Position | None:
        """Where the last row that was read stands."""
        return self._position

    def head(self, *, limit_rows: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the oldest rows."""
        for part in self.scan(after=None, until=_EVER, limit_rows=limit_rows, batch_rows=batch_rows):
            yield part.rows

    def next_range(self, seen: Seen, window: Window) -> Mapping[str, Any] | None:
        """Return the range after what was seen, or None when it holds no row."""
        bounds = {
            "after": seen.position,
            "since": None if window.since is None else format_time(window.since),
            "until": format_time(window.until),
            "limit_rows": window.limit_rows,
        }
        probe = self.scan(**_arguments(bounds | {"limit_rows": 1}), batch_rows=1)
        return bounds if any(part.rows.num_rows or part.rejected for part in probe) else None

    def schemas(self, bounds: Mapping[str, Any]) -> Sequence[tuple[str, pa.Schema]]:
        """Return the table's declared schema, whatever the range."""
        del bounds
        return [(self._table, self.schema())]

    def extent(self, bounds: Mapping[str, Any], *, batch_bytes: int) -> Extent:
        """Return what a range holds: its rows are counted up to a quarter of a million, the first of them looked at."""
        arguments = _arguments(bounds)
        limit = min(_COUNTED_ROWS, arguments["limit_rows"])
        counted = self._dialect.count(self._range(**arguments | {"limit_rows": limit}, batch_rows=1))
        rows = size = 0
        look = min(_LOOK_ROWS, arguments["limit_rows"])
        for part in self.scan(**arguments | {"limit_rows": look}, batch_rows=_LOOK_BATCH):
            rows, size = rows + part.rows.num_rows, size + part.rows.nbytes
            if size > _LOOK_BYTES:
                break
        return Extent(
            rows=counted if counted < _COUNTED_ROWS else None,
            row_bytes=size / max(1, rows),
            batch_rows=self._batch_rows(batch_bytes) if self._dialect.gives_asked_rows else None,
            driver_row_bytes=_DRIVER_VALUE_BYTES * (len(self.schema()) + 2) if self._dialect.gives_asked_rows else 0.0,
        )

    def _batch_rows(self, batch_bytes: int) -> int:
        """Return how many rows the driver is asked for at once."""
        row_bytes = sum(8 if pa.types.is_primitive(field.type) else _TEXT_BYTES for field in self.schema())
        return max(1, min(_MOST_ROWS, batch_bytes // row_bytes))

    def read(self, bounds: Mapping[str, Any], *, schema: pa.Schema, batch_bytes: BatchBytes) -> Iterator[Batch]:
        """Yield the rows of a range in order of (cursor, key)."""
        own, batch_rows = self.schema(), self._batch_rows(bound(batch_bytes))
        marks = pa.schema([own.field(self._cursor), own.field(self._key)])
        self._rows, last = 0, pa.RecordBatch.from_pylist([], schema=marks)
        growth = Growth(batch_bytes)
        for part in self.scan(**_arguments(bounds), batch_rows=batch_rows, batch_bytes=growth.source_bytes):
            self._rows += part.rows.num_rows + len(part.rejected)
            once, twice, last = self._without_twins(part.rows, last)
            cast, wrong = cast_rows(once, schema, key=self._key, cursor=self._cursor)
            growth.saw(part.rows.nbytes, cast.nbytes)
            yield Batch(cast, (*part.rejected, *twice, *wrong))
        self._more = self._rows >= int(bounds["limit_rows"])

    def mark(self) -> Mapping[str, Any]:
        """Return the position of the last row, and how many came."""
        return {"after": None if self._position is None else self._position.to_json(), "rows": self._rows}

    def place(self) -> Standing:
        """Return the position of the last row."""
        at = self._position
        where = "from its first row on" if at is None else f"behind cursor {at.cursor}, key {at.key}"
        return Standing(f"table {self._table!r} {where}")

    def rest(self, bounds: Mapping[str, Any], mark: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the range after the mark's row."""
        return {**bounds, "after": mark["after"], "limit_rows": int(bounds["limit_rows"]) - int(mark["rows"])}

    def ending(self) -> Ending:
        """Return the position of the last row."""
        position = None if self._position is None else self._position.to_json()
        return Ending(position=position, more=self._more)

    def scan(
        self,
        *,
        after: Position | None,
        until: datetime,
        limit_rows: int,
        batch_rows: int,
        since: datetime | None = None,
        batch_bytes: BatchBytes | None = None,
    ) -> Iterator[Batch]:
        """Yield rows strictly after ``after`` with a cursor from ``since`` to ``until``, both inclusive.

        Rows are the same, in the same order, whatever ``batch_rows`` is. A row whose cursor is null has no place in the
        order and is never read. With ``batch_bytes`` that bounds a batch instead of ``batch_rows``, as far as its rows
        are of one size, and a thread waits for the next one while this one is looked at.
        """
        wanted = self._range(after=after, until=until, limit_rows=limit_rows, batch_rows=batch_rows, since=since)
        self._position = after
        with ExitStack() as stack:
            parts = self._dialect.read(wanted)
            if batch_bytes:
                parts = stack.enter_context(closing(read_ahead(parts, waiting=1)))
            for part in parts:
                start = 0
                while start < part.rows.num_rows:
                    step = batch_rows
                    if batch_bytes:
                        step = max(1, part.rows.num_rows * bound(batch_bytes) // max(1, part.rows.nbytes))
                    rows = part.rows.slice(start, step)
                    last = start + rows.num_rows - 1
                    self._position = _position(part.cursors[last], part.keys[last])
                    wrong = None if part.wrong is None else part.wrong.slice(start, rows.num_rows)
                    yield self._split(rows, wrong)
                    start += step

    def _range(
        self, *, after: Position | None, until: datetime, limit_rows: int, batch_rows: int, since: datetime | None
    ) -> Range:
        columns = self._columns()
        by_name = {column.name: column for column in columns}
        return Range(
            table=quote_table(self._table),
            columns=columns,
            key=by_name[self._key],
            cursor=by_name[self._cursor],
            after=after,
            since=since,
            until=until if until.tzinfo else until.replace(tzinfo=UTC),
            max_value_bytes=self._max_value_bytes,
            limit_rows=limit_rows,
            batch_rows=batch_rows,
        )

    def _without_twins(
        self, rows: pa.RecordBatch, before: pa.RecordBatch
    ) -> tuple[pa.RecordBatch, list[Rejected], pa.RecordBatch]:
        """Return the rows without those whose key and cursor are those of the row before, these, and the last row.

        Where a key does not identify a row, the second one has no place of its own in the order: reading on after the
        first would skip it in silence.
        """
        marks = rows.select([self._cursor, self._key])
        if not marks.num_rows:
            return rows, [], before
        # One row shorter at the start of a read, where no row came before the first one.
        shifted = pa.Table.from_batches([before, marks.slice(0, marks.num_rows - 1)])
        pairs = [pc.equal(marks.column(name), _whole(shifted, name, marks)) for name in marks.schema.names]
        same = pc.fill_null(pc.and_(*pairs), False)
        last = marks.slice(marks.num_rows - 1)
        if not pc.any(same).as_py():
            return rows, [], last
        reason = "a row with this key and cursor came before it: the key does not identify a row"
        twins = [
            reject(rows, at, None, reason, key=self._key, cursor=self._cursor)
            for at in pc.indices_nonzero(same).to_pylist()
        ]
        return rows.filter(pc.invert(same)), twins, last

    def _split(self, rows: pa.RecordBatch, wrong: pa.Array | None) -> Batch:
        if wrong is None or wrong.null_count == len(wrong):
            return Batch(rows)
        rejected = []
        for at in pc.indices_nonzero(wrong.is_valid()).to_pylist():
            place, what, value = wrong[at].as_py().split(APART, 2)
            column = rows.schema.names[int(place)]
            rejected.append(reject(rows, at, column, what, key=self._key, cursor=self._cursor, value=value))
        return Batch(rows.filter(wrong.is_null()), rejected)

    def _columns(self) -> tuple[Column, ...]:
        if self._found:
            return self._found
        if not self._table:
            names = ", ".join(sorted(self._dialect.tables())) or "none"
            raise SourceSchemaError("source.table is missing", hint=f"tables: {names}")
        columns = self._dialect.columns(self._table, key=self._key, times=self._times)
        if not columns:
            hint = nearest(self._table, self._dialect.tables(), what="tables")
            raise SourceSchemaError(f"there is no table {self._table!r} in the source", hint=hint)
        found = [column.name for column in columns]
        for name in (self._key, self._cursor, *(self._wanted or ())):
            if name not in found:
                hint = nearest(name, found, what="columns")
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
        kept = {*self._wanted, self._key, self._cursor} if self._wanted is not None else set(found)
        self._found = tuple(column for column in columns if column.name in kept)
        return self._found


def _whole(shifted: pa.Table, name: str, marks: pa.RecordBatch) -> pa.Array:
    """Return a column as long as ``marks``: where no row came before the first one, that one is null."""
    values = shifted.column(name).combine_chunks()
    missing = marks.num_rows - len(values)
    return pa.concat_arrays([pa.nulls(missing, values.type), values]) if missing else values


def _arguments(bounds: Mapping[str, Any]) -> dict[str, Any]:
    after, since = bounds["after"], bounds["since"]
    return {
        "after": None if after is None else Position.from_json(after),
        "since": None if since is None else parse_time(since),
        "until": parse_time(bounds["until"]),
        "limit_rows": int(bounds["limit_rows"]),
    }


def _position(cursor: pa.Scalar, key: pa.Scalar) -> Position:
    return Position(cursor=_literal(cursor.as_py()), key=_literal(key.as_py()))


def _literal(value: Any) -> Any:
    """Return a cursor or key in a form that JSON carries exactly and the database reads back."""
    return value.isoformat() if isinstance(value, date) else value
