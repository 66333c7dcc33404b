"""Label records are joined with their rows in parts that fit, and wait for rows that have not come."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine import stage
from engine.errors import MemoryBudgetExceeded
from engine.features import footprints
from engine.memory.projection import Projection
from engine.preparing import label_commits
from engine.refs import StageReport, Task, TaskResult
from engine.stage import StageContext
from engine.stages.compact import CompactStage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from tests.world import FEBRUARY, MARCH, World, copy_world

MIDDLE = datetime(2013, 2, 10, tzinfo=UTC)
HELD = range(100, 700)  # flights that come late


@pytest.fixture
def anew(tmp_path: Path, prepared_world: World) -> World:
    """Return a world that is extracted, with a feature set of which nothing is prepared."""
    world = copy_world(prepared_world, tmp_path / "anew")
    features = world.spec.model_dump(mode="json")["features"]
    world.edit(features={**features, "numeric": ["distance"]})
    return world


def _at_once(monkeypatch: pytest.MonkeyPatch, rows: int) -> None:
    monkeypatch.setattr(footprints, "_MOST_LABELS", rows)
    monkeypatch.setattr(footprints, "_LEAST_LABELS", 1)


def _events(world: World) -> list[dict[str, Any]]:
    rows = world.rows(f"label_events/{world.spec.feature_set}")
    return sorted(rows, key=lambda row: (row["key"], row["labelled_at"]))


def _record(world: World) -> dict[str, Any]:
    app = f"prepare:{world.spec.feature_set}"
    n = world.workspace.table(f"prepared/{world.spec.feature_set}").transaction(app)
    return world.workspace.journal.commit(app, n) or {}


def _joined(world: World) -> list[int]:
    """Return how many label records each slice joined."""
    app, found = f"prepare:{world.spec.feature_set}", []
    for n in range(1, world.workspace.table(f"prepared/{world.spec.feature_set}").transaction(app) + 1):
        report = StageReport.from_json((world.workspace.journal.commit(app, n) or {})["report"])
        if report.outputs["kind"] == "labels":
            found.append(report.rows_in)
    return found


def _copy(world: World, directory: Path) -> World:
    return copy_world(world, directory)


def test_a_commit_is_joined_in_parts_that_fit_and_gives_the_same(
    tmp_path: Path, anew: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _copy(anew, tmp_path / "whole")
    whole.prepare(MARCH)
    _at_once(monkeypatch, 4_000)
    anew.prepare(MARCH)
    commits = [chunk.rows for chunk in anew.workspace.table("labels").chunks()]
    parts = _joined(anew)
    assert max(parts) == 4_000 < max(commits)
    assert sum(parts) == sum(commits) == sum(_joined(whole))
    assert len(parts) > len(commits)
    assert _events(anew) == _events(whole)
    assert anew.prepared() == whole.prepared()
    assert (_record(anew)["labels_n"], _record(anew)["labels_rows"]) == (_record(whole)["labels_n"], 0)


def test_a_commit_that_is_joined_in_part_may_be_merged_with_the_next(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    for clock in (FEBRUARY, MARCH):
        for what in ("raw", "labels"):
            world.run(ExtractStage(what), clock)
    whole = _copy(world, tmp_path / "whole")
    whole.run(PrepareStage(), MARCH)
    _at_once(monkeypatch, 4_000)
    planned = PrepareStage.next_plan

    def once(self: PrepareStage, context: StageContext) -> Any:
        return None if _record(world).get("labels_rows") else planned(self, context)

    monkeypatch.setattr(PrepareStage, "next_plan", once)
    world.run(PrepareStage(), MARCH)
    monkeypatch.setattr(PrepareStage, "next_plan", planned)
    assert _record(world)["labels_rows"] == 4_000
    assert len(world.workspace.table("labels").chunks()) > 1
    world.run(CompactStage("labels", least=1), MARCH)
    assert len(world.workspace.table("labels").chunks()) == 1
    world.run(PrepareStage(), MARCH)
    assert _events(world) == _events(whole)
    assert world.prepared() == whole.prepared()


def test_a_part_that_does_not_fit_is_halved(anew: World, monkeypatch: pytest.MonkeyPatch) -> None:
    run, tried = stage.run_task, []

    def strict(task: Task, context: StageContext, *, projection: Projection) -> TaskResult:
        if ".labels." in task.name:
            tried.append(projection.rows)
            if projection.rows > 6_000:
                raise MemoryBudgetExceeded("too many for a test", details={"measured_bytes": 0})
        return run(task, context, projection=projection)

    monkeypatch.setattr(stage, "run_task", strict)
    anew.prepare(MARCH)
    joined = _joined(anew)
    assert max(tried) > 6_000 >= max(joined)
    assert sum(joined) == anew.workspace.table("labels").rows()


def test_one_record_cannot_be_divided() -> None:
    bounds = {"rows": [3, 4], "of": 9, "waiting": {}}
    plan = stage.Plan(app="prepare:x", n=1, as_of=MARCH, bounds=bounds)
    error = MemoryBudgetExceeded("for a test")
    assert label_commits.smaller(plan, error) is None
    plan = stage.Plan(app="prepare:x", n=1, as_of=MARCH, bounds={**bounds, "rows": [3, 6], "waiting": {"a": [1, 5]}})
    smaller = label_commits.smaller(plan, error)
    assert smaller is not None
    assert (smaller["rows"], smaller["waiting"]) == ([3, 6], {})
    plan = stage.Plan(app="prepare:x", n=1, as_of=MARCH, bounds={**bounds, "rows": [9, 9], "waiting": {"a": [1, 5]}})
    smaller = label_commits.smaller(plan, error)
    assert smaller is not None
    assert (smaller["rows"], smaller["waiting"]) == ([9, 9], {"a": [1, 3]})


def _take_out(world: World, keys: Sequence[int]) -> list[tuple[Any, ...]]:
    """Take flights out of the database, and return them as they come in later, at the middle of the month."""
    with sqlite3.connect(world.database) as connection:
        among = f"BETWEEN {keys[0]} AND {keys[-1]}"
        held = connection.execute(f"SELECT * FROM flights WHERE flight_id {among} ORDER BY flight_id").fetchall()
        connection.execute(f"DELETE FROM flights WHERE flight_id {among}")
    return [(*flight[:-1], "2013-02-02 00:00:00") for flight in held]


def _bring(world: World, flights: Sequence[tuple[Any, ...]]) -> None:
    with sqlite3.connect(world.database) as connection:
        connection.executemany(f"INSERT INTO flights VALUES ({', '.join('?' * len(flights[0]))})", flights)


@pytest.mark.parametrize("old", [False, True])
def test_records_wait_in_files_and_are_looked_for_in_rows_that_came_since(
    tmp_path: Path, world: World, monkeypatch: pytest.MonkeyPatch, old: bool
) -> None:
    straight, whole = (_copy(world, tmp_path / name) for name in ("straight", "whole"))
    straight.prepare(FEBRUARY, MIDDLE)
    held = _take_out(world, HELD)
    _take_out(whole, HELD)
    for one in (world, whole):
        one.prepare(FEBRUARY)
        assert one.run(PrepareStage(), FEBRUARY).slices == 0  # no row has come
        _bring(one, held)
        one.run(ExtractStage("raw"), MIDDLE)
    waiting, rows = _record(world)["pending"], len(held)
    [name] = waiting
    assert (waiting[name]["first"], waiting[name]["rows"], _record(world)["pending_rows"]) == (0, rows, rows)
    n = len(_joined(world))
    if old:  # as 0.1 wrote it down
        app = f"prepare:{world.spec.feature_set}"
        last = world.workspace.table(f"prepared/{world.spec.feature_set}").transaction(app)
        world.workspace.journal.write_commit(app, last, {**_record(world), "pending": [name]})
    whole.run(PrepareStage(), MIDDLE)
    with monkeypatch.context() as patch:
        _at_once(patch, 250)
        world.run(PrepareStage(), MIDDLE)
    parts = _joined(world)[n:]
    assert (sum(parts), max(parts)) == (rows, 250)
    assert (_record(world)["pending"], _record(world)["pending_rows"]) == ({}, 0)
    for one in (world, whole):
        one.prepare(MIDDLE)
    assert _events(world) == _events(whole) == _events(straight)
    assert world.prepared() == whole.prepared()


def test_records_whose_row_comes_later_still_wait_on(world: World) -> None:
    held = _take_out(world, HELD)
    world.prepare(FEBRUARY)
    _bring(world, held[:100])
    world.prepare(MIDDLE)
    [file] = _record(world)["pending"].values()
    assert file["rows"] - file["first"] == len(held) - 100
    raw_n = world.workspace.table("raw").transaction("extract:raw")
    assert file["raw_n"] == raw_n
