"""PostgreSQL through ADBC. A query with parameters would come in one piece, so values are bound as session settings,
and the query that reads them has none: it streams as COPY.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from datetime import UTC
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources.adbc import ERRORS, Session
from engine.sources.dialects import APART, STAMP, Column, Range, Read, quote, quote_table
from engine.sources.protocol import LONGEST_VALUE
from engine.sources.scrubbing import scrub

_BATCH_BYTES = 4 * 2**20
_TYPES = {
    "smallint": pa.int16(),
    "integer": pa.int32(),
    "bigint": pa.int64(),
    "real": pa.float32(),
    "double precision": pa.float64(),
    "boolean": pa.bool_(),
    "text": pa.string(),
    "bytea": pa.binary(),
}
_TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
# A cast to these takes the first letter or bit only, unless they are written so.
_UNCUT = {"character": "bpchar", "bit": '"bit"'}
_WRONG = "_headrace_wrong"
_FAR = "infinite, or outside the years 1 to 9999"
_FIRST_MICROSECOND, _LAST_MICROSECOND = -62_135_596_800_000_000, 253_402_300_799_999_999  # since 1970, of those years
_MICROSECONDS_TO_2000 = 946_684_800_000_000
_NO_LIMIT = 2**62
_LONGEST_INLINE_BYTES = 4 * 2**20
"""Of a value that its row holds itself: a page of 8 KiB, compressed to 1/273 at most."""
_LONG = ("text", "character varying", "bytea")
_YEARS = "'0001-01-01'", "'10000-01-01'"
_NUMERIC_AS = {pa.int64(): "bigint", pa.float64(): "double precision", pa.string(): "text"}
_DIGITS_OF_INT64 = 18
# Of a domain its base type. The modifier of a numeric is (precision << 16 | scale) + 4, or -1.
_COLUMNS = """
SELECT a.attname::text, format_type(b.oid, NULL)::text,
       (CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END)::int8, a.attnotnull,
       EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND i.indisprimary AND a.attnum = ANY (i.indkey))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum"""
# Of an ordinary table without heirs: what a view computes and what lies elsewhere has no size that is known here.
_HAS_NO_LONG = """
SELECT coalesce(bool_and(
           c.relkind = 'r' AND NOT c.relhassubclass AND (c.reltoastrelid = 0 OR pg_relation_size(c.reltoastrelid) = 0)
       ), false)
FROM pg_class c WHERE c.oid = to_regclass($1)"""
_TABLES = """
SELECT (CASE WHEN n.nspname = 'public' THEN c.relname ELSE n.nspname || '.' || c.relname END)::text
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')"""


class PostgreSQL:
    """A database, in a read-only session whose time zone is UTC."""

    gives_asked_rows = False

    def __init__(self, uri: SecretStr) -> None:
        self._uri = uri
        self._session: Session | None = None

    def columns(self, table: str, *, key: str | None, times: Collection[str]) -> list[Column]:
        """Return the columns by their declared types.

        numeric is int64 where its digits fit and it has no decimals, text as the key (which has to be exact), and else
        float64; a date is its midnight in UTC; uuid, json, enums, arrays and others are text. A time that is infinite
        or outside the years 1 to 9999 is null, and such a cursor is never read.
        """
        del times  # declared types are kept here, so a time is a time
        found = []
        for name, declared, modifier, not_null, primary in self._rows(_COLUMNS, quote_table(table)):
            kind = _arrow_type(declared, modifier)
            if declared == "numeric" and name == key and kind == pa.float64():
                kind = pa.string()
            found.append(Column(name, declared, kind, nullable=not not_null, primary=primary))
        return found

    def tables(self) -> list[str]:
        """Return the names of tables and views outside the system's schemas."""
        return [name for (name,) in self._rows(_TABLES)]

    def read(self, wanted: Range) -> Iterator[Read]:
        """Yield batches with their cursors and keys."""
        if self._holds_no_long_value(wanted):
            wanted = replace(wanted, max_value_bytes=_NO_LIMIT)
        where, settings = _where(wanted)
        columns = ", ".join(f"{_selected(column, wanted)} AS {quote(column.name)}" for column in wanted.columns)
        wrong = _wrong(wanted)
        sql = (
            f"SELECT {columns}{f', {wrong} AS {_WRONG}' if wrong else ''} FROM {wanted.table} WHERE {where} "
            f"ORDER BY {wanted.table}.{quote(wanted.cursor.name)}, {wanted.table}.{quote(wanted.key.name)} "
            "LIMIT current_setting('headrace.limit')::bigint"
        )
        schema = pa.schema([(column.name, column.type) for column in wanted.columns])
        times = [place for place, column in enumerate(wanted.columns) if _is_read_as_time(column, wanted)]
        try:
            session = self._connect()
            self._set(settings)
            with session.query(sql, **{"adbc.postgresql.batch_size_hint_bytes": str(_BATCH_BYTES)}) as reader:
                for batch in reader:
                    if batch.num_rows:
                        rows = batch.select(schema.names).cast(schema)
                        found = batch.column(_WRONG) if wrong else None
                        for place in times:
                            rows, found = _without_far_times(rows, found, place)
                        yield Read(rows, rows.column(wanted.cursor.name), rows.column(wanted.key.name), found)
        except ERRORS as error:
            raise SourceError(
                f"reading {wanted.table} failed: {scrub(str(error), self._uri)}",
                hint="what was committed stays; run again to go on from there",
            ) from None

    def count(self, wanted: Range) -> int:
        """Return how many rows a range has, at most its limit."""
        where, settings = _where(wanted)
        self._set(settings)
        limit = "current_setting('headrace.limit')::bigint"
        sql = f"SELECT count(*) FROM (SELECT FROM {wanted.table} WHERE {where} LIMIT {limit}) AS found"
        return int(self._rows(sql)[0][0])

    def _set(self, settings: Mapping[str, str]) -> None:
        for name, value in settings.items():
            self._rows("SELECT set_config($1, $2, false)", f"headrace.{name}", value)

    def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _holds_no_long_value(self, wanted: Range) -> bool:
        """Return whether all values of a table are so short that asking the server for each one's size is in vain.

        It asks for the time of a tenth of the read. One that has become long since is caught by the cage.
        """
        return wanted.max_value_bytes >= _LONGEST_INLINE_BYTES and self._rows(_HAS_NO_LONG, wanted.table) == [(True,)]

    def _connect(self) -> Session:
        import adbc_driver_postgresql

        if self._session is None:
            try:
                session = Session(adbc_driver_postgresql.connect(self._uri.get_secret_value()))
                session.rows("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY")
                session.rows("SET TIME ZONE 'UTC'")
            except ERRORS as error:
                raise SourceError(
                    f"the database cannot be reached: {scrub(str(error), self._uri)}",
                    hint="check source.uri (host, port, database, user, password), and that the server is up",
                ) from None
            self._session = session
        return self._session

    def _rows(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        try:
            return self._connect().rows(sql, values)
        except ERRORS as error:
            raise SourceError(
                f"the database cannot be read: {scrub(str(error), self._uri)}",
                hint="does the user of source.uri have the right to read it?",
            ) from None


def _where(wanted: Range) -> tuple[str, dict[str, str]]:
    """Return the condition of a range, and the settings that hold its values."""
    cursor, key = (f"{wanted.table}.{quote(column.name)}" for column in (wanted.cursor, wanted.key))
    # In the column's own type, so that an index serves. A plain timestamp takes the UTC time and drops the zone.
    until, after = (f"current_setting('headrace.{name}')::{wanted.cursor.declared}" for name in ("until", "cursor"))
    settings = {"until": wanted.until.astimezone(UTC).isoformat(), "limit": str(wanted.limit_rows)}
    where = f"{cursor} <= {until} AND {cursor} >= {_YEARS[0]}"
    if wanted.since is not None:
        settings["since"] = wanted.since.astimezone(UTC).isoformat()
        where += f" AND {cursor} >= current_setting('headrace.since')::{wanted.cursor.declared}"
    if wanted.after is None:
        return where, settings
    settings["cursor"] = str(wanted.after.cursor)
    if wanted.after.key is None:  # nulls come last
        return f"{where} AND {cursor} > {after}", settings
    settings["key"] = str(wanted.after.key)
    kind = _UNCUT.get(wanted.key.declared, wanted.key.declared)
    beyond = f"({cursor}, {key}) > ({after}, current_setting('headrace.key')::{kind})"
    if wanted.key.nullable:
        beyond = f"({beyond} OR ({cursor} = {after} AND {key} IS NULL))"
    return f"{where} AND {beyond}", settings


def _arrow_type(declared: str, modifier: int) -> pa.DataType:
    if declared in _TIMES:
        return STAMP
    if declared == "numeric":
        precision, scale = (modifier - 4) >> 16, (modifier - 4) & 0xFFFF
        return pa.int64() if modifier >= 0 and scale == 0 and precision <= _DIGITS_OF_INT64 else pa.float64()
    return _TYPES.get(declared, pa.string())


def _is_read_as_time(column: Column, wanted: Range) -> bool:
    return column.type == STAMP and column.declared != "date" and column not in (wanted.key, wanted.cursor)


def _without_far_times(
    rows: pa.RecordBatch, wrong: pa.Array | None, place: int
) -> tuple[pa.RecordBatch, pa.Array | None]:
    """Return rows without times that Python lacks in one column, and ``Read.wrong`` with them.

    The driver counts from 1970 what the server counts from 2000: of infinity and of the last 30 years it makes times
    long ago.
    """
    values = rows.column(place).cast(pa.int64())
    extremes = pc.min_max(values)
    low, high = extremes["min"].as_py(), extremes["max"].as_py()
    if low is None or (low >= _FIRST_MICROSECOND and high <= _LAST_MICROSECOND):
        return rows, wrong
    far = pc.or_(pc.less(values, _FIRST_MICROSECOND), pc.greater(values, _LAST_MICROSECOND))
    found: list[str | None] = wrong.to_pylist() if wrong is not None else [None] * rows.num_rows
    for at in pc.indices_nonzero(pc.fill_null(far, False)).to_pylist():
        found[at] = found[at] or APART.join((str(place), _FAR, _far_time(values[at].as_py())))
    kept = pc.if_else(far, pa.scalar(None, STAMP), rows.column(place))
    return rows.set_column(place, rows.schema.field(place), kept), pa.array(found, pa.string())


def _far_time(microseconds: int) -> str:
    """Return what the server calls a time of which the driver has made this number."""
    since_2000 = (microseconds - _MICROSECONDS_TO_2000 + 2**63) % 2**64 - 2**63
    if since_2000 in (2**63 - 1, -(2**63)):
        return "infinity" if since_2000 > 0 else "-infinity"
    seconds = (since_2000 + _MICROSECONDS_TO_2000) // 1_000_000
    return str(np.datetime64(seconds, "s")).replace("T", " ")


def _is_no_time(column: Column, wanted: Range) -> str | None:
    """Return the test of a date that is no timestamp: infinity, and years that Python lacks."""
    name = quote(column.name)
    if column.declared != "date" or column in (wanted.key, wanted.cursor):
        return None
    return f"{name} < {_YEARS[0]} OR {name} >= {_YEARS[1]}"


def _is_fat(column: Column, wanted: Range) -> str | None:
    # Of a long value the server knows the size without reading it.
    if wanted.max_value_bytes == _NO_LIMIT or column.declared not in _LONG or column in (wanted.key, wanted.cursor):
        return None
    return f"octet_length({quote(column.name)}) > {wanted.max_value_bytes}"


def _selected(column: Column, wanted: Range) -> str:
    """Return the expression that gives a column in a type that the driver reads as what we promise."""
    name = quote(column.name)
    test = _is_no_time(column, wanted) or _is_fat(column, wanted)
    if test:
        name = f"(CASE WHEN NOT ({test}) THEN {name} END)"
    if column.type == STAMP:  # the base type, of a domain too
        return f"{name}::{'timestamptz' if column.declared == 'timestamp with time zone' else 'timestamp'}"
    if column.declared == "numeric":
        return f"{name}::{_NUMERIC_AS[column.type]}"
    return name if column.declared in _TYPES else f"{name}::text"


def _wrong(wanted: Range) -> str:
    """Return the expression that says what is wrong with a row, as ``Read.wrong`` has it; empty: nothing can be."""
    cases = []
    for place, column in enumerate(wanted.columns):
        name = quote(column.name)
        if test := _is_no_time(column, wanted):
            what = f"'{_FAR}'"
        elif test := _is_fat(column, wanted):
            what = f"'larger than max_row_bytes: ' || octet_length({name}) || ' bytes'"
        else:
            continue
        # Only the beginning, so that a long value is not read to its end.
        begin = f"substring({name} from 1 for {LONGEST_VALUE})" if column.declared in _LONG else f"{name}::text"
        shown = f"encode({begin}, 'escape')" if column.declared == "bytea" else begin
        cases.append(f"WHEN {test} THEN '{place}' || chr(31) || {what} || chr(31) || {shown}")
    return f"CASE {' '.join(cases)} END" if cases else ""
