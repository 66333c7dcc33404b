"""SQLite through ADBC. Its types are loose, so the declared ones decide, and a first row of their kinds tells the
driver.

How times are written in it is in ``sqlite_times.py``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote as percent

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.adbc import ERRORS, Session
from engine.sources.casting import convert
from engine.sources.dialects import APART, STAMP, Column, Range, Read, quote, quote_table
from engine.sources.protocol import LONGEST_VALUE, Position
from engine.sources.scrubbing import scrub
from engine.sources.sqlite_times import as_time, parsed_times, written_like

_TIMES = ("timestamp", "datetime", "date")
_ROW, _WRONG, _TABLE = "_headrace_row", "_headrace_wrong", "_headrace_table"
_LONG = ("text", "blob")
_FIRST_VALUES = {"integer": "0", "real": "0.5", "text": "'x'", "blob": "x'00'"}
# What may be stored in a column that is read as this. Numbers in a column of text are read as text.
_ALLOWED = {
    "integer": "'integer'",
    "real": "'real', 'integer'",
    "text": "'text', 'integer', 'real'",
    "blob": "'blob', 'text'",
}
_ARROW = {"integer": pa.int64(), "real": pa.float64(), "text": pa.string(), "blob": pa.binary()}
_SAMPLE_ROWS = 1_000
_BUSY_MILLISECONDS = 10_000


class SQLite:
    """A database file, opened read-only."""

    gives_asked_rows = True

    def __init__(self, uri: SecretStr) -> None:
        self._uri = uri
        path = uri.get_secret_value().split("://", 1)[1].partition("?")[0]
        self._path = Path(path.removeprefix("/") or ".")  # sqlite:///relative, sqlite:////absolute
        self._session: Session | None = None
        self._read = 0  # rows of the running statement

    def columns(self, table: str, *, key: str | None, times: Collection[str]) -> list[Column]:
        """Return the columns by their declared types; those in ``times`` are times whatever is declared."""
        del key
        schema, _, name = table.rpartition(".")
        rows = self._rows(
            # hidden: 0 for a column, 2 and 3 for a generated one; table_info would leave those out.
            'SELECT name, lower(type), "notnull", pk FROM pragma_table_xinfo(?, ?) WHERE hidden <> 1',
            (name, schema or None),
        )
        found = []
        for column, declared, not_null, primary in rows:
            is_time = column in times or declared.startswith(_TIMES)
            stored = _storage(declared)
            if is_time or not declared:
                stored = self._stored(table, column, default="text" if is_time else stored)
            kind = STAMP if is_time else pa.bool_() if "bool" in declared else _ARROW[stored]
            found.append(Column(column, declared or "untyped", kind, stored, not (not_null or primary), bool(primary)))
        return found

    def tables(self) -> list[str]:
        """Return the names of tables and views."""
        rows = self._rows("SELECT name FROM sqlite_master WHERE type IN ('table', 'view')", ())
        return [name for (name,) in rows if not name.startswith("sqlite_")]

    def read(self, wanted: Range) -> Iterator[Read]:
        """Yield batches with their cursors and keys as they are stored.

        The driver stops at a value that is not of its column's kind. From there on the rows are asked for with a look
        at the kind of each value, which takes half as long again.
        """
        last: Read | None = None
        try:
            for last in self._batches(wanted, guarded=False):
                yield last
            return
        except ERRORS as error:
            if not self._contradicts(wanted):
                raise self._failed(error, wanted) from None
        if last is not None:
            at = Position(last.cursors[-1].as_py(), last.keys[-1].as_py())
            wanted = replace(wanted, after=at, limit_rows=wanted.limit_rows - self._read)
        try:
            yield from self._batches(wanted, guarded=True)
        except ERRORS as error:
            raise self._failed(error, wanted) from None

    def count(self, wanted: Range) -> int:
        """Return how many rows a range has, at most its limit."""
        where, values = self._where(wanted)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {wanted.table} WHERE {where} LIMIT ?)"
        return int(self._rows(sql, (*values, wanted.limit_rows))[0][0])

    def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _batches(self, wanted: Range, *, guarded: bool) -> Iterator[Read]:
        names = ", ".join(_selected(column, wanted, guarded=guarded) for column in wanted.columns)
        where, values = self._where(wanted)
        first = ", ".join(f"{_FIRST_VALUES[column.stored]} AS {quote(column.name)}" for column in wanted.columns)
        cursor, key = quote(wanted.cursor.name), quote(wanted.key.name)
        # The driver takes a column's type from its first rows: this row has one of each, and is dropped.
        sql = (
            f"SELECT {first}, 'x' AS {_WRONG}, 0 AS {_ROW} UNION ALL SELECT * FROM (SELECT {names}, "
            f"{_wrong(wanted, guarded=guarded)}, 1 FROM {wanted.table} AS {_TABLE} "
            f"WHERE {where} ORDER BY {_TABLE}.{cursor}, {_TABLE}.{key} COLLATE BINARY LIMIT ?)"
        )
        self._read = 0
        bound = (*values, wanted.limit_rows)
        with self._connect().query(sql, bound, **{"adbc.sqlite.query.batch_rows": str(wanted.batch_rows)}) as reader:
            for batch in reader:
                rows = batch.filter(pc.equal(batch.column(_ROW), 1)) if batch.num_rows else batch
                if rows.num_rows:
                    out = _typed(rows, wanted)
                    self._read += rows.num_rows
                    yield out

    def _where(self, wanted: Range) -> tuple[str, list[Any]]:
        cursor, key = quote(wanted.cursor.name), quote(wanted.key.name)
        # Two queries, because an index serves one of min and max at a time.
        ends = self._rows(
            f"SELECT (SELECT min({cursor}) FROM {wanted.table}), (SELECT max({cursor}) FROM {wanted.table})", ()
        )
        oldest, newest = ends[0]
        if isinstance(oldest, str) != isinstance(newest, str):  # numbers come before text, so no order of time is left
            raise SourceError(
                f"table {wanted.table}: the cursor {wanted.cursor.name!r} holds numbers and text: "
                f"{oldest!r}, {newest!r}",
                hint="write all of its times in the same way, or read a view that does",
            )
        # What is no time would compare as text all the same, and a table of such would seem to have no new rows.
        as_time(pa.array([value for value in ends[0] if value is not None]), column=wanted.cursor.name)
        where, values = f"{cursor} <= ?", [written_like(newest, wanted.until)]
        if wanted.since is not None:
            # Rounded down where it is written coarser: a row more is no harm, one less would be.
            where, values = f"{where} AND {cursor} >= ?", [*values, written_like(newest, wanted.since)]
        if wanted.after is None:
            return where, values
        if wanted.after.key is None:  # nulls come first
            where += f" AND {cursor} >= ? AND ({cursor} > ? OR {key} IS NOT NULL)"
            return where, [*values, wanted.after.cursor, wanted.after.cursor]
        # BINARY, because in the column's own collation keys that differ in case may be one.
        beyond = f"({cursor}, {key} COLLATE BINARY) > (?, ?)"
        return f"{where} AND {beyond}", [*values, wanted.after.cursor, wanted.after.key]

    def _stored(self, table: str, column: str, *, default: str) -> str:
        """Return how the first values of a column are stored, whose declared type does not tell."""
        name = quote(column)
        kinds = self._rows(
            f"SELECT DISTINCT typeof(v) FROM (SELECT {name} AS v FROM {quote_table(table)} LIMIT {_SAMPLE_ROWS}) "
            "WHERE v IS NOT NULL",
            (),
        )
        found = {kind for (kind,) in kinds}
        if found == {"integer", "real"}:
            return "real"
        return found.pop() if len(found) == 1 else default

    def _contradicts(self, wanted: Range) -> bool:
        """Return whether a row of the range holds a value that is not of its column's kind."""
        where, values = self._where(wanted)
        wrong = " OR ".join(f"({_is_wrong(column)})" for column in wanted.columns)
        return bool(self._rows(f"SELECT 1 FROM {wanted.table} WHERE ({wrong}) AND {where} LIMIT 1", tuple(values)))

    def _failed(self, error: Exception, wanted: Range) -> SourceError:
        hint = "what was committed stays; run again to go on from there"
        return SourceError(f"reading {wanted.table} failed: {scrub(str(error), self._uri)}", hint=hint)

    def _connect(self) -> Session:
        import adbc_driver_sqlite

        if self._session is None:
            if not self._path.is_file():
                raise SourceError(
                    f"there is no database file {self._path}",
                    hint="check source.uri; a relative path is taken from the directory that the command runs in",
                )
            try:
                # Read-only, so that a wrong name never makes an empty database.
                session = Session(adbc_driver_sqlite.connect(f"file:{percent(str(self._path))}?mode=ro"))
                session.rows(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
            except ERRORS as error:
                raise SourceError(f"{self._path} cannot be opened: {scrub(str(error), self._uri)}") from None
            self._session = session
        return self._session

    def _rows(self, sql: str, values: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        try:
            return self._connect().rows(sql, values)
        except ERRORS as error:
            hint = "is it a SQLite database, and not being written by something that locks it?"
            raise SourceError(f"{self._path} cannot be read: {scrub(str(error), self._uri)}", hint=hint) from None


def _storage(declared: str) -> str:
    """Return how a column of this declared type is stored (https://sqlite.org/datatype3.html, section 3.1)."""
    if ("int" in declared and "point" not in declared) or "bool" in declared:
        return "integer"
    if any(word in declared for word in ("char", "clob", "text", "json", "uuid")):
        return "text"
    if "blob" in declared or "binary" in declared:
        return "blob"
    return "real" if declared else "text"


def _is_wrong(column: Column) -> str:
    name = quote(column.name)
    wrong = f"typeof({name}) NOT IN ('null', {_ALLOWED[column.stored]})"
    return f"{wrong} OR {name} NOT IN (0, 1)" if pa.types.is_boolean(column.type) else wrong


def _is_fat(column: Column, wanted: Range) -> str | None:
    return f"octet_length({quote(column.name)}) > {wanted.max_value_bytes}" if column.stored in _LONG else None


def _selected(column: Column, wanted: Range, *, guarded: bool) -> str:
    name = quote(column.name)
    if column in (wanted.key, wanted.cursor):
        return name
    tests = [test for test in (_is_wrong(column) if guarded else None, _is_fat(column, wanted)) if test]
    return f"CASE WHEN NOT ({' OR '.join(tests)}) THEN {name} END AS {name}" if tests else name


def _wrong(wanted: Range, *, guarded: bool) -> str:
    """Return the expression that says what is wrong with a row, in the form of ``Read.wrong``."""
    cases = []
    for place, column in enumerate(wanted.columns):
        name = quote(column.name)
        fat = _is_fat(column, wanted)
        if fat:
            cases.append(
                f"WHEN {fat} THEN '{place}' || char(31) || 'larger than max_row_bytes: ' || octet_length({name}) || "
                f"' bytes' || char(31) || substr(CAST({name} AS TEXT), 1, {LONGEST_VALUE})"
            )
        if guarded:
            cases.append(
                f"WHEN {_is_wrong(column)} THEN '{place}' || char(31) || 'it holds ' || typeof({name}) || char(31) || "
                f"substr(CAST({name} AS TEXT), 1, {LONGEST_VALUE})"
            )
    return f"CASE {' '.join(cases)} END" if cases else "NULL"


def _typed(rows: pa.RecordBatch, wanted: Range) -> Read:
    """Return the rows with the columns' types, and what is wrong with those that have a time which is none.

    The driver widens a type within its first batch and stops later on: either is a contradiction, whatever the size of
    a batch.
    """
    arrays: list[pa.Array] = []
    wrong = rows.column(_WRONG)
    for place, column in enumerate(wanted.columns):
        values = rows.column(column.name)
        if column.stored in ("integer", "real") and values.type != _ARROW[column.stored]:
            raise pa.ArrowInvalid(f"column {column.name!r} holds {values.type}")
        if column == wanted.cursor:
            arrays.append(as_time(values, column=column.name))
        elif column.type == STAMP:
            times, bad = convert(values, parsed_times, kind=STAMP)
            arrays.append(times)
            wrong = _with_times(wrong, place, values, bad) if bad else wrong
        elif pa.types.is_boolean(column.type) and pc.any(pc.greater(pc.abs(values), 1)).as_py():
            raise pa.ArrowInvalid(f"column {column.name!r} holds numbers that are neither 0 nor 1")
        else:
            arrays.append(values.cast(column.type))
    schema = pa.schema([(c.name, c.type) for c in wanted.columns])
    batch = pa.RecordBatch.from_arrays(arrays, schema=schema)
    return Read(batch, rows.column(wanted.cursor.name), rows.column(wanted.key.name), wrong)


def _with_times(wrong: pa.Array, place: int, values: pa.Array, bad: list[int]) -> pa.Array:
    known = wrong.to_pylist()
    for at in bad:
        known[at] = known[at] or APART.join((str(place), "it is no time", str(values[at].as_py())[:LONGEST_VALUE]))
    return pa.array(known, pa.string())
