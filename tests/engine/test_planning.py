"""The plan of a whole pipeline: what it says before a run, and what the run then measures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from engine.batching import Workspace
from engine.memory.budget import Budget
from engine.planning import plan
from engine.refs import StageReport
from tests.world import FEBRUARY, MARCH, World, copy_world

MIB = 2**20


def test_a_plan_before_anything_ran_names_every_stage_and_writes_nothing(world: World) -> None:
    found = plan(world.context(FEBRUARY))
    assert [stage["stage"] for stage in found["stages"]] == [
        "extract",
        "prepare.labels",
        "prepare.windows",
        "train.cache",
        "train.fit",
        "validate",
        "score",
        "monitor",
    ]
    assert found["fits"]
    assert not Workspace(world.spec.workspace).root.exists()
    for stage in found["stages"]:
        assert stage["projected_bytes"] == stage["reserved_bytes"] + sum(stage["terms"].values())
        assert (stage["measured_bytes"], stage["seconds"]) == (None, None)


def test_a_plan_holds_what_the_run_after_it_measures(
    february: tuple[World, dict[str, StageReport]], march: tuple[World, dict[str, StageReport]]
) -> None:
    before = plan(february[0].context(MARCH))
    projected: dict[str, int] = {}
    for stage in before["stages"]:
        name = stage["stage"].partition(".")[0]
        projected[name] = max(projected.get(name, 0), stage["projected_bytes"])
    measured = {name: report.memory.measured_bytes for name, report in march[1].items() if report.memory.measured_bytes}
    assert set(measured) >= {"score", "monitor", "train", "validate"}
    for name, size in measured.items():
        assert size <= projected[name], name
    after = plan(march[0].context(MARCH))
    assert all(stage["seconds"] is not None for stage in after["stages"])


def test_a_plan_over_the_budget_says_what_would_do(tmp_path: Path, prepared_world: World) -> None:
    world = copy_world(prepared_world, tmp_path / "world")
    context = dataclasses.replace(world.context(FEBRUARY), budget=Budget(150 * MIB))
    found = plan(context)
    assert not found["fits"]
    over = [stage for stage in found["stages"] if not stage["fits"]]
    assert over
    enough = dataclasses.replace(context, budget=Budget(found["smallest_budget_bytes"] + 32 * MIB))
    assert plan(enough)["fits"]
    for stage in over:
        assert stage["error"]["error"] == "PlanRefused"
        assert stage["error"]["hint"]
