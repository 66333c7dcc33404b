"""The plan of a whole pipeline: what it says before a run, and what the run then measures."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from pathlib import Path

import pytest

from engine.batching import Workspace
from engine.batching.runs import last_reports
from engine.errors import PlanRefused
from engine.features.footprints import LabelBytes, label_rows_per_slice, project_labels
from engine.memory.budget import Budget
from engine.planning import plan, require_fit
from engine.refs import StageReport
from engine.sources import known_rows
from engine.stage import run_stage
from engine.stages import extract
from engine.stages.extract import ExtractStage
from engine.stages.train import TrainStage
from tests.shop import Shop
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
    context = dataclasses.replace(world.context(FEBRUARY), budget=Budget(150 * MIB, disk_bytes=20 * 2**30))
    found = plan(context)
    assert not found["fits"]
    over = [stage for stage in found["stages"] if not stage["fits"]]
    assert over
    enough = dataclasses.replace(context, budget=Budget(found["smallest_budget_bytes"], disk_bytes=20 * 2**30))
    assert plan(enough)["fits"]
    assert plan(enough)["smallest_budget_bytes"] is None
    for stage in over:
        assert stage["error"]["error"] == "PlanRefused"
        assert stage["error"]["hint"]


def test_a_plan_refuses_the_disk_as_the_run_does(tmp_path: Path, prepared_world: World) -> None:
    world = copy_world(prepared_world, tmp_path / "world")
    context = dataclasses.replace(world.context(FEBRUARY), budget=Budget(512 * MIB, disk_bytes=1024))
    found = plan(context)
    [refused] = [stage for stage in found["stages"] if not stage["fits"]]
    assert (refused["stage"], refused["disk_bytes"] > 1024) == ("train.cache", True)
    assert not found["fits"]
    with pytest.raises(PlanRefused) as planned:
        require_fit(context, stages=("extract", "train"))
    with pytest.raises(PlanRefused) as run:
        run_stage(TrainStage(("a test",)), context)
    assert planned.value.message == run.value.message == refused["error"]["message"]
    require_fit(context, stages=("extract", "prepare", "score", "monitor"))


def test_what_joins_would_spill_is_refused_before_they_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path, source={"lag": "10m"}).open()
    shop.order((1, 1, 1), (2, 2, 5))
    shop.extract(30)
    shop.order((3, 3, 6))
    monkeypatch.setattr(known_rows, "_JOIN_BASE_BYTES", 2**40)  # as if the rows were many more
    context = dataclasses.replace(shop.context(50), budget=Budget(512 * MIB, disk_bytes=100))
    [refused] = [stage for stage in plan(context)["stages"] if stage["stage"] == "extract.settle"]
    assert (refused["disk_bytes"], refused["fits"]) == (2 * 64, False)
    with pytest.raises(PlanRefused, match="what joins spill of a slice needs"):
        require_fit(context, stages=("extract",))
    with pytest.raises(PlanRefused, match="what joins spill of a slice needs"):
        run_stage(ExtractStage("raw"), context)
    assert shop.versions() == [(1, 1), (2, 2)]
    assert run_stage(ExtractStage("raw"), shop.context(50)).rows_out == 1


def test_a_refusal_names_what_would_do_for_all_stages(world: World) -> None:
    context = dataclasses.replace(world.context(FEBRUARY), budget=Budget(100 * MIB, disk_bytes=2**40))
    with pytest.raises(PlanRefused) as caught:
        require_fit(context, stages=("prepare", "train", "validate"))
    assert caught.value.details["stage"] == "prepare.labels"
    enough = plan(context)["smallest_budget_bytes"]
    assert f"--memory {enough // MIB}MiB" in caught.value.hint


def test_batches_are_smaller_where_only_they_are_too_large(world: World) -> None:
    whole = plan(dataclasses.replace(world.context(FEBRUARY), budget=Budget(512 * MIB, disk_bytes=2**40)))
    by_name = {stage["stage"]: stage for stage in whole["stages"]}
    tight = by_name["validate"]["projected_bytes"] - 8 * MIB
    budget = Budget(tight, batch_bytes=8 * MIB, disk_bytes=2**40)
    found = plan(dataclasses.replace(world.context(FEBRUARY), budget=budget))
    [judged] = [stage for stage in found["stages"] if stage["stage"] == "validate"]
    assert judged["fits"]
    assert 64 * 1024 <= judged["batch_bytes"] < 8 * MIB
    assert tight - MIB < judged["projected_bytes"] <= tight


def test_slices_of_labels_are_as_large_as_prepare_can_hold(world: World) -> None:
    most = []
    for key in (8.0, 300.0):
        for allowed in (112 * MIB, 160 * MIB, 256 * MIB, 512 * MIB):
            context = dataclasses.replace(world.context(FEBRUARY), budget=Budget(allowed, disk_bytes=2**40))
            held = LabelBytes(key=key, window_keys=4 * 8.0, rows=None)
            most.append(label_rows_per_slice(context, held))
            assert project_labels(context, most[-1], held).projected_bytes <= allowed
    assert 1_000 < most[0] < most[3] == 250_000
    assert 1_000 < most[4] < most[7] < 250_000


def test_the_last_run_is_all_of_its_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extract, "SLICE_ROWS", 20)
    shop = Shop(tmp_path).open()
    shop.order(*[(key, key, key / 10) for key in range(50)])
    shop.extract(10)
    [report] = last_reports(shop.workspace)["extract"]
    assert (report.slices, report.rows_in) == (3, 50)


def test_the_page_on_memory_explains_every_term(tmp_path: Path, world: World) -> None:
    page = (Path(__file__).parents[2] / "docs" / "memory.md").read_text()
    table = page[page.index("## Terms") : page.index("Bytes of a row start")]
    named = [line.partition(" | ")[0][1:].strip() for line in table.splitlines()]
    # Names stand in one cell with commas between them; one that has a comma itself, with semicolons.
    explained = {part.strip() for cell in named for part in [cell, *cell.split(","), *cell.split(";")]}
    contexts = [world.context(FEBRUARY), Shop(tmp_path, source={"lag": "1h"}).open().context(10)]
    features = {"numeric": ["distance"], "categorical": ["carrier"]}
    world.edit(features=features, learner={"kind": "sgd"}, baseline=None)
    contexts.append(world.context(FEBRUARY))
    terms = {term for context in contexts for stage in plan(context)["stages"] for term in stage["terms"]}
    assert len(terms) > 20
    assert terms <= explained, terms - explained


def test_rows_are_sorted_in_pieces_that_fit_and_no_plan_refuses_what_they_would_take(tmp_path: Path) -> None:
    context = Shop(tmp_path).open().context(10)
    for allowed in (128, 192, 320, 512, 1024):
        budget = Budget(allowed * MIB, disk_bytes=2**40)
        sized = dataclasses.replace(context, budget=budget)
        [sort] = [one for one in plan(sized)["stages"] if one["stage"] == "prepare.sort"]
        assert sort["fits"], sort["error"]
        assert sort["rows"] > 10_000


def test_a_training_is_planned_for_the_rows_of_its_span(march: tuple[World, dict[str, StageReport]]) -> None:
    world = march[0]
    history = world.spec.split.model_copy(update={"history": timedelta(days=30)})
    whole, part = (
        next(one for one in plan(context)["stages"] if one["stage"] == "train.fit")["rows"]
        for context in (
            world.context(MARCH),
            dataclasses.replace(world.context(MARCH), spec=world.spec.model_copy(update={"split": history})),
        )
    )
    assert 0 < part < whole < world.workspace.table("raw").rows()


def test_labels_that_are_there_are_planned_in_parts_that_fit(prepared_world: World) -> None:
    """A feature set that is new, under a smaller budget than they were extracted with, reads them from the first on."""
    world = prepared_world
    features = world.spec.features.model_copy(update={"numeric": ("distance",)})
    context = dataclasses.replace(
        world.context(FEBRUARY),
        spec=world.spec.model_copy(update={"features": features}),
        budget=Budget(108 * MIB, disk_bytes=2**40),
    )
    [labels] = [one for one in plan(context)["stages"] if one["stage"] == "prepare.labels"]
    assert 1_000 <= labels["rows"] < world.workspace.table("labels").rows()
    assert labels["fits"], labels["error"]
