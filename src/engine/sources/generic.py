"""Any database with an ADBC driver: ``adbc+duckdb:///shop.duckdb``, ``adbc+flightsql:grpc://host:port``.

Types are those that the driver declares; what SQL is used is what most databases understand. PostgreSQL and SQLite have
dialects of their own, in ``postgresql.py`` and ``sqlite.py``, which this way leads to as well.
"""

from __future__ import annotations

import importlib
import importlib.util
import re
from collections.abc import Collection, Iterator, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from engine.errors import SourceError, SourceSchemaError, SpecError
from engine.sources.adbc import ERRORS, Session
from engine.sources.casting import cast_values, convert
from engine.sources.dialects import APART, STAMP, Column, Dialect, Range, Read, quote
from engine.sources.protocol import LONGEST_VALUE
from engine.sources.scrubbing import scrub

_URI = re.compile(r"^adbc\+([^:]+):(.*)$", re.DOTALL)
_PLAIN = (pa.types.is_signed_integer, pa.types.is_boolean, pa.types.is_float32, pa.types.is_float64)
_WIDER = {pa.uint8(): pa.int16(), pa.uint16(): pa.int32(), pa.uint32(): pa.int64()}
_DIGITS_OF_INT64 = 18
_FIRST_DAY, _LAST_DAY = -62_135_596_800_000_000, 253_402_300_800_000_000  # microseconds: the years that Python has
_DEFAULT_SCHEMAS = ("main", "public", "", None)
# DuckDB runs in this process: its own memory is bounded too, and a file that is only read can be read by others.
_DUCKDB = {"access_mode": "READ_ONLY", "memory_limit": "96MB", "threads": "1"}


def open_generic(uri: SecretStr, dialects: Mapping[str, type[Dialect]]) -> Dialect:
    """Return the database of ``adbc+<driver>:<place>``, not yet connected.

    Parameters
    ----------
    uri
        The driver is a module ``adbc_driver_<driver>`` or a shared library by name or path. ``///x`` is the path x,
        ``//x`` the URI ``<driver>://x``, all else goes to the driver as it is.
    dialects
        Those of drivers that have one of their own.

    Raises
    ------
    SpecError
        It is not of this form.
    """
    match = _URI.match(uri.get_secret_value())
    if match is None:
        raise SpecError("source.uri: no driver follows 'adbc+'", hint="write adbc+<driver>:<place>")
    driver, place = match[1], match[2]
    if driver in dialects:
        return dialects[driver](SecretStr(f"{driver}:{place}"))
    return Generic(uri, driver=driver)


class Generic:
    """A database through the driver of that name."""

    gives_asked_rows = False

    def __init__(self, uri: SecretStr, *, driver: str) -> None:
        self._uri = uri
        self._driver = driver
        self._session: Session | None = None
        self._arrow: dict[str, pa.DataType] = {}  # as the driver has them

    def columns(self, table: str, *, key: str | None, times: Collection[str]) -> list[Column]:
        """Return the columns by the types that the driver declares.

        Decimals are int64 where their digits fit and they have no fraction, text as the key, and else float64; a date
        is its midnight in UTC, and a timestamp without a zone is UTC; what a table has no type for is text.
        """
        del times  # declared types are kept here, so a time is a time
        schema, _, name = table.rpartition(".")
        if not any(found == name and schema in ("", of) for of, found in self._objects()):
            return []
        with self._errors(f"the columns of {table!r} cannot be read"):
            found = self._connect().table_schema(name, schema=schema or None)
        self._arrow = {field.name: field.type for field in found}
        return [
            Column(field.name, str(field.type), _kind(field.type, is_key=field.name == key), nullable=field.nullable)
            for field in found
        ]

    def tables(self) -> list[str]:
        """Return the names of tables and views, with their schema where it is not the default one."""
        return [name if schema in _DEFAULT_SCHEMAS else f"{schema}.{name}" for schema, name in self._objects()]

    def read(self, wanted: Range) -> Iterator[Read]:
        """Yield batches with their cursors and keys as the driver gives them."""
        kind = self._arrow[wanted.cursor.name]
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            raise SourceSchemaError(
                f"table {wanted.table}: the cursor {wanted.cursor.name!r} is finer than microseconds",
                hint="read a view that rounds it down",
            )
        where, values = self._where(wanted)
        names = ", ".join(quote(column.name) for column in wanted.columns)
        cursor, key = quote(wanted.cursor.name), quote(wanted.key.name)
        sql = (
            f"SELECT {names} FROM {wanted.table} WHERE {where} "
            f"ORDER BY {cursor}, {key}{' NULLS LAST' if wanted.key.nullable else ''} LIMIT ?"
        )
        bound = _bound(values, wanted.limit_rows)
        hint = "what was committed stays; run again to go on from there"
        with self._errors(f"reading {wanted.table} failed", hint=hint), self._connect().query(sql, bound) as reader:
            for batch in reader:
                if batch.num_rows:
                    yield _typed(batch, wanted)

    def count(self, wanted: Range) -> int:
        """Return how many rows a range has, at most its limit."""
        where, values = self._where(wanted)
        sql = f"SELECT count(*) FROM (SELECT 1 FROM {wanted.table} WHERE {where} LIMIT ?) AS found"
        bound = _bound(values, wanted.limit_rows)
        with self._errors(f"reading {wanted.table} failed"), self._connect().query(sql, bound) as reader:
            return int(reader.read_all().column(0)[0].as_py())

    def close(self) -> None:
        """Disconnect."""
        if self._session is not None:
            self._session.close()
            self._session = None

    def _where(self, wanted: Range) -> tuple[str, list[pa.Array]]:
        """Return the condition of a range and its values, each of the type of its column, so that an index serves."""
        cursor, key = quote(wanted.cursor.name), quote(wanted.key.name)
        stamp, key_kind = self._arrow[wanted.cursor.name], self._arrow[wanted.key.name]
        where, values = f"{cursor} <= ?", [_moment(wanted.until, stamp)]
        if wanted.since is not None:
            where, values = f"{where} AND {cursor} >= ?", [*values, _moment(wanted.since, stamp)]
        if wanted.after is None:
            return where, values
        at = _moment(datetime.fromisoformat(str(wanted.after.cursor)), stamp)
        if wanted.after.key is None:  # nulls come last
            return f"{where} AND {cursor} > ?", [*values, at]
        beyond = f"{key} > ? OR {key} IS NULL" if wanted.key.nullable else f"{key} > ?"
        where += f" AND ({cursor} > ? OR ({cursor} = ? AND ({beyond})))"
        return where, [*values, at, at, pa.array([wanted.after.key]).cast(key_kind)]

    def _objects(self) -> list[tuple[str | None, str]]:
        with self._errors("the database cannot be read"):
            return self._connect().tables()

    def _connect(self) -> Session:
        if self._session is None:
            match = _URI.match(self._uri.get_secret_value())
            place = _place(self._driver, match[2] if match else "")
            with self._errors(
                f"the database cannot be reached through the ADBC driver {self._driver!r}",
                hint=f"check source.uri, and that the driver is installed (adbc-driver-{self._driver})",
            ):
                self._session = Session(_database(self._driver, place))
        return self._session

    def _errors(self, what: str, *, hint: str = "check source.uri, and the rights of its user") -> _Errors:
        return _Errors(what, hint, self._uri)


class _Errors:
    """Turns what drivers raise into ours, without the secrets of the connection string."""

    def __init__(self, what: str, hint: str, uri: SecretStr) -> None:
        self._what, self._hint, self._uri = what, hint, uri

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: Any) -> None:
        if isinstance(value, (*ERRORS, ImportError)):
            raise SourceError(f"{self._what}: {scrub(str(value), self._uri)}", hint=self._hint) from None


def _bound(values: list[pa.Array], limit_rows: int) -> pa.RecordBatch:
    """Return the values of a condition and its limit as parameters."""
    arrays = [*values, pa.array([limit_rows], pa.int64())]
    return pa.RecordBatch.from_arrays(arrays, names=[str(at) for at in range(len(arrays))])


def _place(driver: str, text: str) -> str:
    if text.startswith("///"):
        return text[3:]
    return f"{driver}:{text}" if text.startswith("//") else text


def _database(driver: str, place: str) -> Any:
    import adbc_driver_manager

    name = f"adbc_driver_{driver}"
    if not driver.isidentifier() or importlib.util.find_spec(name) is None:
        return adbc_driver_manager.AdbcDatabase(driver=driver, uri=place)
    module = importlib.import_module(name)
    if driver == "duckdb":
        return adbc_driver_manager.AdbcDatabase(
            driver=module.driver_path(), entrypoint="duckdb_adbc_init", path=place, **_DUCKDB
        )
    return module.connect(place)


def _kind(kind: pa.DataType, *, is_key: bool) -> pa.DataType:
    """Return the type that a table has for what the driver gives."""
    if any(test(kind) for test in _PLAIN):
        return kind
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        return STAMP
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_decimal(kind):
        if kind.scale == 0 and kind.precision <= _DIGITS_OF_INT64:
            return pa.int64()
        return pa.string() if is_key else pa.float64()
    if pa.types.is_uint64(kind):
        return pa.string() if is_key else pa.float64()
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    return _WIDER.get(kind, pa.string())


def _moment(time: datetime, kind: pa.DataType) -> pa.Array:
    """Return a time as the database has it; without a zone it is UTC."""
    aware = pa.array([time if time.tzinfo else pa.scalar(time).cast(STAMP).as_py()], STAMP)
    if pa.types.is_timestamp(kind) and kind.tz is not None:
        return aware.cast(kind, safe=False)
    return aware.cast(pa.timestamp("us")).cast(kind, safe=False)


def _typed(batch: pa.RecordBatch, wanted: Range) -> Read:
    """Return the rows with the columns' types, and what is wrong with those that hold what these cannot."""
    arrays: list[pa.Array] = []
    wrong: dict[int, str] = {}
    for place, column in enumerate(wanted.columns):
        values = batch.column(place)
        array, bad = convert(values, partial(_converted, kind=column.type), kind=column.type)
        arrays.append(array)
        for at in bad:
            value = str(values.slice(at, 1).cast(pa.string())[0])[:LONGEST_VALUE] if _shows(values) else "?"
            wrong.setdefault(at, APART.join((str(place), f"it is no {column.type}", value)))
    rows = pa.RecordBatch.from_arrays(arrays, schema=pa.schema([(c.name, c.type) for c in wanted.columns]))
    texts = pa.array([wrong.get(at) for at in range(rows.num_rows)], pa.string()) if wrong else None
    return Read(rows, rows.column(wanted.cursor.name), rows.column(wanted.key.name), texts)


def _converted(values: pa.Array, *, kind: pa.DataType) -> pa.Array:
    out = cast_values(values, kind=kind)
    if kind == STAMP and len(out) > out.null_count:
        ends = pc.min_max(out.cast(pa.int64()))
        if ends["min"].as_py() < _FIRST_DAY or ends["max"].as_py() >= _LAST_DAY:
            raise pa.ArrowInvalid("outside the years 1 to 9999")
    return out


def _shows(values: pa.Array) -> bool:
    return bool(pa.types.is_primitive(values.type) or pa.types.is_string(values.type))
