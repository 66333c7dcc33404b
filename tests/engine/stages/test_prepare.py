"""Prepare on real flights: each window equals a brute force over the source, and nothing later than its row shows in
it."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from tests.world import FEBRUARY, MARCH, World

GAP = timedelta(hours=2)
MIDDLE = datetime(2013, 2, 10, tzinfo=UTC)


def _source(world: World) -> tuple[dict[int, dict[str, Any]], list[tuple[int, bool, datetime]]]:
    """Return flights by key and label records, straight from the database."""
    with sqlite3.connect(world.database) as connection:
        connection.row_factory = sqlite3.Row
        flights = {row["flight_id"]: dict(row) for row in connection.execute("SELECT * FROM flights")}
        labels = [
            (key, bool(value), _utc(at))
            for key, value, at in connection.execute("SELECT flight_id, cancelled, labelled_at FROM outcomes")
        ]
    for flight in flights.values():
        flight["at"] = _utc(flight["scheduled_departure"])
    return flights, labels


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def _expected(world: World, keys: Sequence[int]) -> dict[int, dict[str, Any]]:
    """Return the window features of some flights by looking at every label record of the source."""
    flights, labels = _source(world)
    records = [(flights[key], value, max(flights[key]["at"], at)) for key, value, at in labels]
    out: dict[int, dict[str, Any]] = {}
    for key in keys:
        mine, end = flights[key], flights[key]["at"] - GAP
        features: dict[str, Any] = {}
        for window in world.spec.features.windows:
            same = [r for r in records if all(r[0][column] == mine[column] for column in window.keys) and r[2] <= end]
            for length, statistic, name in window.names():
                values = [value for _, value, known in same if known > end - length]
                count = len(values)
                features[name] = count if statistic == "count" else sum(values) / count if count else None
        out[key] = features
    return out


@pytest.mark.timeout(240)
def test_windows_of_real_flights_equal_a_brute_force_over_the_source(world: World) -> None:
    world.prepare(FEBRUARY, MIDDLE, MARCH)  # in three steps, as in production
    prepared = {row["key"]: row for row in world.prepared()}
    flights, _ = _source(world)
    assert set(prepared) == set(flights)
    keys = random.Random(7).sample(sorted(flights), 150)
    names = world.spec.features.window_names()
    for key, features in _expected(world, keys).items():
        assert {name: prepared[key][name] for name in names} == features


@pytest.mark.timeout(240)
@pytest.mark.parametrize("gap", ["0s", "2h"])
def test_extremes_of_earlier_flights_equal_a_brute_force_over_the_source(world: World, gap: str) -> None:
    window = {"over": "events", "keys": ["carrier"], "lengths": ["6h", "9d"], "column": "distance", "gap": gap}
    world.edit(features={"numeric": ["distance"], "windows": [window | {"statistics": ["min", "max", "mean"]}]})
    world.prepare(FEBRUARY, MIDDLE, MARCH)
    flights, _ = _source(world)
    prepared = {row["key"]: row for row in world.prepared()}
    assert set(prepared) == set(flights)
    closed, behind = gap != "0s", timedelta(hours=2 if gap != "0s" else 0)
    for key in random.Random(3).sample(sorted(flights), 100):
        mine, end = flights[key], flights[key]["at"] - behind
        for length, statistic, name in world.spec.features.windows[0].names():
            values = [
                flight["distance"]
                for flight in flights.values()
                if flight["carrier"] == mine["carrier"]
                and end - length < flight["at"]
                and (flight["at"] <= end if closed else flight["at"] < end)
            ]
            of = {"min": min, "max": max, "mean": lambda some: sum(some) / len(some)}[statistic]
            assert prepared[key][name] == (of(values) if values else None)


@pytest.mark.timeout(240)
def test_no_feature_changes_when_everything_that_was_not_yet_known_does(world: World) -> None:
    world.prepare(MARCH)
    before = {row["key"]: row for row in world.prepared()}
    early = {key for key, row in before.items() if row["event_time"] - GAP < MIDDLE}
    with sqlite3.connect(world.database) as connection:
        # Turn every outcome that became known from the middle on, and drop the flights after it.
        text = MIDDLE.strftime("%Y-%m-%d %H:%M:%S")
        known = "max(labelled_at, (SELECT scheduled_departure FROM flights f WHERE f.flight_id = outcomes.flight_id))"
        turned = connection.execute(
            f"UPDATE outcomes SET cancelled = 1 - cancelled WHERE {known} >= ?", (text,)
        ).rowcount
        connection.execute("DELETE FROM flights WHERE updated_at >= ?", (text,))
    assert turned > 1_000
    world.edit(workspace=str(world.directory / "other"))
    world.prepare(MARCH)
    after = {row["key"]: row for row in world.prepared()}
    assert early
    assert set(after) == early
    assert {key: before[key] for key in early} == after


def test_after_columns_and_the_tail_number_are_in_no_feature(world: World) -> None:
    world.edit(columns={"tail_number": {"known": "after"}})
    world.prepare(FEBRUARY)
    (row, *_) = world.prepared()
    assert "tail_number" not in row
    assert set(row) == {"key", "event_time", *world.spec.features.names()}


def test_a_label_waits_for_its_row_and_is_counted(world: World) -> None:
    with sqlite3.connect(world.database) as connection:
        held = connection.execute("SELECT * FROM flights WHERE flight_id = 100").fetchone()
        connection.execute("DELETE FROM flights WHERE flight_id = 100")
    for stage in (ExtractStage("raw"), ExtractStage("labels")):
        world.run(stage, FEBRUARY)
    waiting = world.run(PrepareStage(), FEBRUARY)
    labels = f"label_events/{world.spec.feature_set}"
    assert 100 not in {row["key"] for row in world.rows(labels)}
    record = world.workspace.journal.commit(f"prepare:{world.spec.feature_set}", waiting.n)
    assert record is not None
    assert record["pending_rows"] == 1
    with sqlite3.connect(world.database) as connection:
        late = list(held)
        late[-1] = "2013-02-02 00:00:00"  # it is written at last
        connection.execute(f"INSERT INTO flights VALUES ({', '.join('?' * len(late))})", late)
    world.prepare(MIDDLE)
    found = [row for row in world.rows(labels) if row["key"] == 100]
    assert len(found) == 1


def test_a_late_row_and_an_update_rewrite_their_span_and_leave_each_key_once(world: World) -> None:
    world.prepare(FEBRUARY)
    with sqlite3.connect(world.database) as connection:
        late = list(connection.execute("SELECT * FROM flights WHERE flight_id = 500").fetchone())
        late[0], late[-1] = 10_000_001, "2013-02-02 00:00:00"
        connection.execute(f"INSERT INTO flights VALUES ({', '.join('?' * len(late))})", late)
        connection.execute(
            "UPDATE flights SET distance = 12345, updated_at = '2013-02-02 00:00:01' WHERE flight_id = 501"
        )
    world.prepare(MIDDLE)
    rows = world.prepared()
    counts = Counter(row["key"] for row in rows)
    assert max(counts.values()) == 1
    by_key = {row["key"]: row for row in rows}
    assert by_key[501]["distance"] == 12345
    assert by_key[10_000_001]["event_time"] == by_key[500]["event_time"]
    names = world.spec.features.window_names()
    assert [by_key[10_000_001][name] for name in names] == [by_key[500][name] for name in names]


def test_a_second_run_prepares_nothing(world: World) -> None:
    world.prepare(FEBRUARY)
    version = world.workspace.table(f"prepared/{world.spec.feature_set}").ref().version
    report = world.run(PrepareStage(), FEBRUARY)
    assert report.slices == 0
    assert world.workspace.table(f"prepared/{world.spec.feature_set}").ref().version == version
