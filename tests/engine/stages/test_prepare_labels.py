"""Label records are joined with their rows in parts that fit, and wait for rows that have not come."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import events, stage
from engine.batching import Table, read_batches
from engine.errors import MemoryBudgetExceeded
from engine.features import footprints, label_slices
from engine.memory.projection import Projection
from engine.preparing import label_commits
from engine.refs import StageReport, Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages.compact import CompactStage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from tests.shop import Shop, at
from tests.stopped import stop
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


def test_one_record_cannot_be_divided(world: World) -> None:
    context, error = world.context(MARCH), MemoryBudgetExceeded("for a test")

    def smaller(rows: Sequence[int], waiting: dict[str, list[int]]) -> Any:
        bounds = {"rows": rows, "of": 9, "waiting": waiting}
        return label_commits.smaller(context, stage.Plan(app="x", n=1, as_of=MARCH, bounds=bounds), error)

    assert smaller([3, 4], {}) is None
    assert smaller([9, 9], {"a": [4, 5]}) is None
    of_both = smaller([3, 6], {"a": [1, 5]})
    assert (of_both["rows"], of_both["waiting"]) == ([3, 6], {})
    of_waiting = smaller([9, 9], {"a": [1, 5]})
    assert (of_waiting["rows"], of_waiting["waiting"]) == ([9, 9], {"a": [1, 3]})


def test_what_was_joined_is_committed_as_it_is_though_it_would_not_fit_any_more(
    tmp_path: Path, anew: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run ended between the commits of label events and of prepared, and the projection is another one since."""
    whole = _copy(anew, tmp_path / "whole")
    whole.prepare(MARCH)
    commit = Table.commit

    def cut(self: Table, **given: Any) -> Any:
        if self.name.startswith("prepared/"):
            raise OSError("cut here")
        return commit(self, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Table, "commit", cut)
        with pytest.raises(OSError, match="cut here"):
            anew.run(PrepareStage(), FEBRUARY)
    before = _events(anew)
    assert before
    with monkeypatch.context() as patch:
        patch.setattr(footprints, "_LABEL_COPIES", 10_000)
        anew.run(PrepareStage(), FEBRUARY)
    assert _joined(anew)[0] == len(before)
    anew.prepare(MARCH)
    assert _events(anew) == _events(whole)
    assert anew.prepared() == whole.prepared()


def test_a_plan_of_the_first_version_is_gone_on_with(tmp_path: Path, anew: World) -> None:
    whole = _copy(anew, tmp_path / "whole")
    whole.prepare(MARCH)
    bounds = {"kind": "labels", "after_n": 0, "through_n": 1, "pending": [], "pending_rows": 0, "raw_n": 1}
    plan = {"as_of": "2013-02-01T06:00:00Z", "bounds": bounds}
    anew.workspace.journal.write_plan(f"prepare:{anew.spec.feature_set}", 1, plan)
    anew.prepare(MARCH)
    assert _events(anew) == _events(whole)
    assert anew.prepared() == whole.prepared()


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


def test_records_that_wait_are_looked_for_only_in_rows_that_came_since(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = _take_out(world, HELD)
    world.prepare(FEBRUARY)
    before = _record(world)["pending"]
    world.run(ExtractStage("raw"), FEBRUARY + timedelta(hours=1))
    _bring(world, held[:100])
    world.run(ExtractStage("raw"), MIDDLE)
    stop(monkeypatch)  # tasks run in this process from here on
    read: list[str] = []

    def watched(paths: Sequence[Path], **given: Any) -> Any:
        read.extend(path.name for path in paths if path.parent.name == "raw")
        return read_batches(paths, **given)

    monkeypatch.setattr(label_slices, "read_batches", watched)
    world.run(PrepareStage(), MIDDLE)
    chunks = world.workspace.table("raw").chunks()
    [tried] = {file["raw_n"] for file in before.values()}
    came = {chunk.name for chunk in chunks if chunk.n > tried}
    assert read
    assert set(read) <= came < {chunk.name for chunk in chunks}
    [file] = _record(world)["pending"].values()
    assert file["rows"] - file["first"] == len(held) - 100
    assert file["raw_n"] == max(chunk.n for chunk in chunks)


def test_a_few_labels_are_looked_for_in_many_rows_with_long_keys_within_their_projection(tmp_path: Path) -> None:
    """What Polars takes out of a batch keeps its texts: of each batch in which one row had a label, all were held."""
    keys = 600_000
    number = np.arange(keys)
    rows = {
        "id": pa.array(number),
        "at": pa.array(number * 1_000_000).cast(pa.timestamp("us", tz="UTC")),
        "town": pa.array(np.char.add("t" * 200, (number % 50_000).astype(str)).tolist()),
    }
    some = number[:: keys // 200]
    labels = {
        "id": pa.array(some),
        "good": pa.array(some % 2 == 0),
        "known": pa.array(some * 1_000_000 + 1).cast(pa.timestamp("us", tz="UTC")),
    }
    for name, columns in (("rows", rows), ("labels", labels)):
        (tmp_path / name).mkdir()
        pq.write_table(pa.table(columns), tmp_path / name / "1.parquet")
    value = {
        "pipeline": "towns",
        "workspace": str(tmp_path / "workspace"),
        "source": {"uri": str(tmp_path / "rows"), "key": "id", "cursor": "at"},
        "event_time": "at",
        "labels": {"uri": str(tmp_path / "labels"), "key": "id", "value": "good", "labelled_at": "known"},
        "features": {"windows": [{"keys": ["town"], "over": "labels", "lengths": ["1d"], "statistics": ["rate"]}]},
        "resources": {"memory": "256MiB"},
    }
    ended: list[events.TaskEnded] = []
    hook = lambda event: ended.append(event) if isinstance(event, events.TaskEnded) else None  # noqa: E731
    context = StageContext.of(PipelineSpec.model_validate(value), directory=tmp_path, hook=hook)
    for one in (ExtractStage("raw"), ExtractStage("labels"), PrepareStage()):
        run_stage(one, context)
    [joined] = [one for one in ended if ".labels." in one.task]
    assert joined.measured_bytes <= joined.projected_bytes < 140 * 2**20
    assert context.workspace.table(f"label_events/{context.spec.feature_set}").rows() == len(some)


def test_a_label_whose_row_comes_late_is_seen_by_the_rows_that_were_there(tmp_path: Path) -> None:
    windows = [{"over": "labels", "keys": ["amount"], "lengths": ["300m", "10h"], "statistics": ["count"]}]

    def opened(name: str) -> Shop:
        (tmp_path / name).mkdir()
        return Shop(tmp_path / name, features={"windows": windows, "gap": "10m"}).open()

    def prepared(shop: Shop, minute: float) -> dict[int, tuple[int, int]]:
        shop.extract(minute)
        shop.extract(minute, "labels")
        run_stage(PrepareStage(), shop.context(minute))
        rows = shop.rows(f"prepared/{shop.spec.feature_set}")
        return {row["key"]: (row["labels_amount_5h_count"], row["labels_amount_10h_count"]) for row in rows}

    first = [(key, 5, key) for key in (10, 109, 110, 409, 410, 709, 710)]
    late = (5, 5, 720)
    shop = opened("late")
    shop.order(*first)
    shop.sql("INSERT INTO verdicts VALUES (5, 1, '2026-01-01 01:40:00')")
    assert set(prepared(shop, 715).values()) == {(0, 0)}
    shop.order(late)
    found = prepared(shop, 725)
    assert found == {
        5: (0, 0),
        10: (0, 0),
        109: (0, 0),
        110: (1, 1),
        409: (1, 1),
        410: (0, 1),
        709: (0, 1),
        710: (0, 0),
    }
    whole = opened("whole")
    whole.order(*first, late)
    whole.sql("INSERT INTO verdicts VALUES (5, 1, '2026-01-01 01:40:00')")
    assert found == prepared(whole, 725)
    shop.order((800, 5, 800))
    assert prepared(shop, 801) == found | {800: (0, 0)}
    report = run_stage(PrepareStage(), shop.context(802))
    assert not report.slices


def test_records_that_are_extracted_late_are_seen_by_the_rows_whose_windows_hold_them(tmp_path: Path) -> None:
    windows = {"windows": [{"over": "labels", "keys": ["amount"], "lengths": ["30m"], "statistics": ["count", "rate"]}]}

    def shop(name: str) -> Shop:
        (tmp_path / name).mkdir()
        return Shop(tmp_path / name, features=windows, labels={"lag": "1d"}).open()

    def prepare(one: Shop, minute: float) -> StageReport:
        one.extract(minute)
        one.extract(minute, "labels")
        return run_stage(PrepareStage(), one.context(minute))

    def judge(one: Shop, orders: Sequence[int]) -> None:
        values = [(order, order % 20 == 0, f"{at(order + 2):%Y-%m-%d %H:%M:%S}") for order in orders]
        one.sql("INSERT INTO verdicts VALUES (?, ?, ?)", values=values)

    def prepared(one: Shop) -> list[dict[str, Any]]:
        return sorted(one.rows(f"prepared/{one.spec.feature_set}"), key=lambda row: row["key"])

    world, whole = shop("world"), shop("whole")
    late = [100, 110, 120]
    for first in range(10, 210, 50):  # a commit, and so a span, for each
        keys = range(first, first + 50, 10)
        world.order(*((key, key // 10 % 2, key) for key in keys))
        judge(world, [key for key in keys if key not in late])
        prepare(world, first + 45)
    judge(world, late)  # the tool was down
    before = prepared(world)
    again = prepare(world, 260)
    assert [row["key"] for row, old in zip(prepared(world), before, strict=True) if row != old] == [120, 130, 140]
    assert again.rows_out == len(late) + 5, "only the span of 110 to 150 holds such rows"
    assert prepare(world, 270).rows_out == 0
    keys = range(10, 210, 10)
    whole.order(*((key, key // 10 % 2, key) for key in keys))
    judge(whole, keys)
    prepare(whole, 260)
    assert prepared(world) == prepared(whole)


@pytest.mark.parametrize("windows", [False, True])
def test_the_last_moment_that_there_is_can_be_prepared(tmp_path: Path, windows: bool) -> None:
    over = [
        {"over": "events", "keys": ["amount"], "lengths": ["2d"], "statistics": ["count"]},
        {"over": "labels", "keys": ["amount"], "lengths": ["2d"], "statistics": ["count"]},
    ]
    features = {"numeric": ["amount"], "windows": over if windows else []}
    shop = Shop(tmp_path, features=features, labels={"delay": "1d"}).open()
    moments = ["0001-01-01 00:00:00.000000", "2026-01-01 00:00:00.000000", "9999-12-31 23:59:59.999999"]
    rows = [(key, 1, moment, "2026-01-01 00:00:00") for key, moment in enumerate(moments)]
    shop.sql("INSERT INTO orders VALUES (?, ?, ?, ?)", values=rows)
    shop.sql("INSERT INTO verdicts VALUES (?, ?, ?)", values=[(key, 1, "2026-01-01 00:00:00") for key in range(3)])
    shop.extract(10)
    shop.extract(10, "labels")
    run_stage(PrepareStage(), shop.context(10))
    assert sorted(row["key"] for row in shop.rows(f"prepared/{shop.spec.feature_set}")) == [0, 1, 2]


def test_a_key_that_older_rows_lack_is_null_there(tmp_path: Path) -> None:
    window = {"over": "labels", "keys": ["place"], "lengths": ["1d"], "statistics": ["count"]}
    before, after = (Shop(tmp_path, features=features) for features in ({"numeric": ["amount"]}, {"windows": [window]}))
    before.open().order((10, 1, 10), (20, 1, 20))
    before.extract(30)
    before.sql("ALTER TABLE orders ADD COLUMN place TEXT")
    late = [(key, 1, f"{at(key):%Y-%m-%d %H:%M:%S}", f"{at(key):%Y-%m-%d %H:%M:%S}", "a") for key in (40, 50)]
    before.sql("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", values=late)
    verdicts = [(key, 1, f"{at(key + 1):%Y-%m-%d %H:%M:%S}") for key in (10, 20, 40, 50)]
    before.sql("INSERT INTO verdicts VALUES (?, ?, ?)", values=verdicts)
    after.extract(60)
    after.extract(60, "labels")
    run_stage(PrepareStage(), after.context(60))
    rows = after.rows(f"prepared/{after.spec.feature_set}")
    assert {row["key"]: row["labels_place_1d_count"] for row in rows} == {10: 0, 20: 1, 40: 0, 50: 1}
