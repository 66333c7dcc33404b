"""The loop on a small company: models compared with what was there before, and nothing done twice."""

from __future__ import annotations

import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.bundle import Bundle, spec_for
from engine.errors import LearningError, PlanRefused, RegistryError
from engine.ledger import Ledger, last_trained, trained
from engine.refs import StageReport
from engine.registry import ModelRegistry
from engine.stages.extract import ExtractStage
from engine.stages.monitor import MonitorStage, last_record, realised
from engine.stages.prepare import PrepareStage
from engine.stages.promote import PromoteStage, previous_champion
from engine.stages.score import ScoreStage
from engine.stages.train import TrainStage
from engine.stages.validate import ValidateStage
from engine.status import status
from engine.training.due import decide
from engine.units import parse_time
from tests.world import FEBRUARY, MARCH, World, copy_world

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("loop")]


Ran = tuple[World, dict[str, StageReport]]


def test_the_first_loop_makes_a_champion_within_what_was_projected(february: Ran) -> None:
    _, reports = february
    assert reports["score"].slices == 0  # there was no champion
    assert reports["promote"].outputs["action"] == "promoted"
    for report in reports.values():
        figures = report.memory
        if figures.allowed_bytes:  # promote touches no rows
            assert 0 < figures.measured_bytes <= figures.projected_bytes <= figures.allowed_bytes, report.stage


def test_a_month_is_scored_once_and_measured_honestly(march: Ran) -> None:
    world, reports = march
    predictions = world.rows("predictions")
    keys = [row["key"] for row in predictions]
    assert len(keys) == len(set(keys)) == reports["score"].rows_out
    assert {row["model_version"] for row in predictions} == {1}  # the one in use before the month
    facts = trained(Ledger(world.workspace).history(), 1)
    assert facts is not None
    assert min(row["event_time"] for row in predictions) >= parse_time(facts.details["trained_until"])

    period = reports["monitor"].outputs["period"]
    found = realised(world.context(MARCH), low=FEBRUARY, high=MARCH)
    assert found is not None
    assert found.average_precision == pytest.approx(period["average_precision"])
    assert found.average_precision == pytest.approx(_by_hand(world, predictions))
    assert 0 < period["positives"] < period["rows"] <= len(keys)


def test_logs_have_the_bounds_by_which_plans_choose_chunks(march: Ran) -> None:
    world, _ = march
    feature_set = world.spec.feature_set
    for table, expected in (
        ("raw", {"flight_id", "scheduled_departure", "updated_at"}),
        ("labels", {"labelled_at"}),
        (f"prepared/{feature_set}", {"event_time"}),
        (f"label_events/{feature_set}", {"event_time", "known_at", "labelled_at"}),
        ("predictions", {"event_time"}),
        ("metrics", set()),
    ):
        chunks = world.workspace.table(table).chunks()
        assert chunks
        assert all(chunk.minimum.keys() == chunk.maximum.keys() == expected for chunk in chunks), table


def test_a_second_run_adds_nothing_anywhere(march: Ran, tmp_path: Path) -> None:
    world = copy_world(march[0], tmp_path / "world")
    before = world.content()
    assert all(report.slices == 0 for report in world.loop(MARCH, retrain=False).values())
    assert world.content() == before


def _by_hand(world: World, predictions: list[dict[str, Any]]) -> float:
    """Return the average precision of predictions whose outcome the database knows by March."""
    from sklearn.metrics import average_precision_score

    with sqlite3.connect(world.database) as connection:
        outcomes = {
            key: value
            for key, value, at in connection.execute("SELECT flight_id, cancelled, labelled_at FROM outcomes")
            if datetime.fromisoformat(at).replace(tzinfo=UTC) <= MARCH
        }
    rows = [row for row in predictions if FEBRUARY <= row["event_time"] < MARCH and row["key"] in outcomes]
    return float(average_precision_score([outcomes[row["key"]] for row in rows], [row["score"] for row in rows]))


def test_status_has_what_programs_ask_for(february: Ran, prepared_world: World) -> None:
    assert status(prepared_world.spec)["champion"] is None
    world = february[0]
    found = json.loads(json.dumps(status(world.spec)))
    metrics = found["champion"]["metrics"]
    assert found["champion"]["version"] == 1
    assert {"average_precision", "precision", "recall", "f1", "operating_point"} <= set(metrics)
    assert {"rows", "version", "watermark"} == set(found["tables"]["raw"])
    assert found["tables"]["raw"]["watermark"].startswith("2013-02-01")
    for name in ("extract", "prepare", "train", "validate", "monitor"):
        figures = found["stages"][name]
        assert 0 < figures["reserved_bytes"] < figures["measured_bytes"] <= figures["allowed_bytes"]
        assert figures["seconds"] > 0


@pytest.mark.slow
def test_the_second_learner_goes_through_the_same_loop(prepared_world: World, tmp_path: Path) -> None:
    world = copy_world(prepared_world, tmp_path / "world")
    world.edit(learner={"kind": "sgd"})
    reports = world.loop(FEBRUARY)
    assert reports["promote"].outputs["action"] == "promoted"
    assert world.loop(MARCH)["score"].rows_out > 0


def test_a_baseline_is_champion_number_zero(world: World) -> None:
    with sqlite3.connect(world.database) as connection:
        connection.execute("ALTER TABLE flights ADD COLUMN rule REAL")
        connection.execute(  # a rule that knows the outcome: no candidate may beat it
            "UPDATE flights SET rule = (SELECT cancelled FROM outcomes o WHERE o.flight_id = flights.flight_id)"
        )
    world.edit(gate={"floors": {}, "tolerance": 0.02}, baseline="rule")
    outputs = world.loop(FEBRUARY)["validate"].outputs
    assert outputs["champion"]["average_precision"] == pytest.approx(1.0)
    assert not outputs["passed"]
    assert Ledger(world.workspace).champion() is None


def test_rollback_returns_to_the_earlier_champion_and_says_why(february: Ran, march: Ran, tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no earlier champion"):
        previous_champion(february[0].context(FEBRUARY))
    world = copy_world(march[0], tmp_path / "world")
    ledger = Ledger(world.workspace)
    champion = ledger.champion()
    assert champion is not None
    assert champion.version == 2
    with pytest.raises(RegistryError, match="version 7 never was champion"):
        world.run(PromoteStage(rollback_to=7), MARCH)
    world.run(PromoteStage(rollback_to=previous_champion(world.context(MARCH)), reason="too many alerts"), MARCH)
    champion = ledger.champion()
    assert champion is not None
    assert (champion.version, champion.action, champion.reasons) == (1, "rolled back", ("too many alerts",))
    assert ModelRegistry(world.workspace.root, name="flights").alias("champion") == 1


@pytest.mark.slow
def test_an_edited_file_does_not_orphan_the_champion(february: Ran, tmp_path: Path) -> None:
    world = copy_world(february[0], tmp_path / "world")
    old = world.spec.feature_set
    features = world.spec.features.model_dump(mode="json")
    labels = world.spec.labels.model_dump(mode="json", exclude={"uri"})
    world.edit(features={**features, "windows": features["windows"][:1]}, labels={**labels, "delay": "5h"})
    assert world.spec.feature_set != old
    for stage in (ExtractStage("raw"), ExtractStage("labels"), PrepareStage()):
        world.run(stage, MARCH)
    decision = decide(world.context(MARCH), drift={})
    assert any("features changed" in reason for reason in decision.reasons)
    facts = last_trained(Ledger(world.workspace).history())
    assert facts is not None
    bundle = Bundle.load(world.workspace.root / facts.details["bundle"])
    context = world.context(MARCH)
    champion_spec = spec_for(bundle, context.spec)
    assert champion_spec.feature_set == old
    import dataclasses

    from engine.stage import run_stage

    run_stage(PrepareStage(), dataclasses.replace(context, spec=champion_spec))
    assert world.run(ScoreStage(), MARCH).rows_out > 0  # by the champion, from its own prepared rows
    for stage in (MonitorStage(), TrainStage(reasons=("a test",)), ValidateStage(), PromoteStage()):
        report = world.run(stage, MARCH)
    assert report.outputs["action"] == "promoted"
    row = world.prepared()[0]
    again = bundle.score(pa.Table.from_pylist([{**dict.fromkeys(bundle.features), **_plain(row)}] * 2))
    assert np.isfinite(again).all()


def _plain(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if isinstance(value, int | float | str)}


def test_a_table_without_positives_and_one_without_rows_are_explained(world: World) -> None:
    with sqlite3.connect(world.database) as connection:
        connection.execute("UPDATE outcomes SET cancelled = 0")
    for stage in (ExtractStage("raw"), ExtractStage("labels"), PrepareStage()):
        world.run(stage, FEBRUARY)
    with pytest.raises(LearningError, match="there is no positive among"):
        world.run(TrainStage(reasons=("a test",)), FEBRUARY)
    assert Ledger(world.workspace).history() == ()


def test_a_budget_that_nothing_fits_is_refused_before_a_row_is_read(world: World) -> None:
    world.edit(resources={"memory": "50MiB"})
    with pytest.raises(PlanRefused) as caught:
        world.run(ExtractStage("raw"), FEBRUARY)
    assert caught.value.details["smallest_budget_bytes"] > 50 * 2**20
    assert not world.workspace.table("raw").exists()


def test_sampled_negatives_leave_the_probabilities_right(prepared_world: World, tmp_path: Path) -> None:
    world = copy_world(prepared_world, tmp_path / "world")
    learner = world.spec.learner.model_dump(mode="json")
    world.edit(learner={**learner, "sampling_rate": 0.2})
    reports = world.loop(FEBRUARY)
    outputs = reports["train"].outputs
    assert outputs["sampling_rate"] == 0.2
    assert outputs["rows"] < 3_000
    assert reports["validate"].outputs["candidate"]["calibration_error"] < 0.05
    assert (last_record(world.context(FEBRUARY)) or {})["champion"] == 0


def test_absent_labels_are_negatives_once_their_delay_has_passed(world: World) -> None:
    with sqlite3.connect(world.database) as connection:
        connection.execute("DELETE FROM outcomes WHERE cancelled = 0")  # experts mark only positives
    labels = world.spec.labels.model_dump(mode="json", exclude={"uri"})
    world.edit(labels={**labels, "absent": "negative", "delay": "1d"})
    outputs = world.loop(MARCH - timedelta(days=5))["train"].outputs
    assert outputs["rows"] > 10 * outputs["positives"] > 0
