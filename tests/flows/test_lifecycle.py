"""Flows on a real server: what they run, what they leave to read, and how they fail."""

from __future__ import annotations

from typing import Any

import pytest

from engine import events
from engine.errors import SourceError
from engine.ledger import Ledger
from tests.world import FEBRUARY, MARCH, World

pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.usefixtures("prefect_server"),
    pytest.mark.xdist_group("prefect"),
]


def _client() -> Any:
    from prefect.client.orchestration import get_client

    return get_client(sync_client=True)


def _artifacts(key: str) -> list[Any]:
    from prefect.client.schemas.filters import ArtifactFilter, ArtifactFilterKey

    with _client() as client:
        found: list[Any] = client.read_artifacts(artifact_filter=ArtifactFilter(key=ArtifactFilterKey(any_=[key])))
    return found


def test_the_loop_promotes_leaves_artifacts_and_persists_nothing(world: World) -> None:
    from flows.lifecycle import continuous_training, rollback
    from flows.parameters import LoopParameters, RollbackParameters
    from flows.session import observing

    seen: list[events.Event] = []
    with observing(seen.append):
        first = continuous_training(LoopParameters(pipeline=str(world.pipeline), as_of=FEBRUARY))
    assert (first["champion"], first["decision"]["retrain"]) == (1, True)
    assert {"extract", "prepare", "monitor", "train", "validate", "promote"} <= set(first["stages"])
    assert any(isinstance(event, events.TaskEnded) and event.stage == "train.fit" for event in seen)

    kept = continuous_training(
        LoopParameters(pipeline=str(world.pipeline), as_of=MARCH, retrain="never", memory="600MiB")
    )
    assert (kept["champion"], kept["decision"]["retrain"]) == (1, False)
    assert kept["stages"]["score"]["memory"]["allowed_bytes"] == 600 * 2**20
    again = continuous_training(LoopParameters(pipeline=str(world.pipeline), as_of=MARCH, retrain="always"))
    assert again["champion"] == 2
    back = rollback(RollbackParameters(pipeline=str(world.pipeline), reason="a test"))
    assert back["champion"] == 1
    assert [entry.action for entry in Ledger(world.workspace).history()].count("rolled back") == 1

    memory = str(_artifacts("memory-by-stage")[0].data)
    assert "measured" in memory
    assert "512 MiB" in str([artifact.data for artifact in _artifacts("memory-by-stage")])
    comparison = _artifacts("champion-against-challenger")
    assert "average_precision" in str(comparison[0].data)
    assert "Gate **passed**" in str([artifact.description for artifact in comparison])
    with _client() as client:
        runs = client.read_task_runs(limit=200)
    named = [run for run in runs if run.name.startswith("train.fit fit.")]
    assert named
    assert all(run.state is not None and run.state.is_completed() for run in named)
    stored = [getattr(run.state.data, "storage_key", None) for run in named if run.state is not None]
    assert set(stored) == {None}  # refs go back in memory; nothing is written for Prefect


def test_an_error_of_ours_fails_the_run_with_its_message(world: World) -> None:
    from prefect.client.schemas.sorting import FlowRunSort

    from flows.lifecycle import extract
    from flows.parameters import ExtractParameters

    world.database.unlink()
    with pytest.raises(SourceError, match="there is no database file"):
        extract(ExtractParameters(pipeline=str(world.pipeline)))
    with _client() as client:
        (run,) = client.read_flow_runs(limit=1, sort=FlowRunSort.START_TIME_DESC)
    assert run.state is not None
    assert run.state.is_failed()
    assert "there is no database file" in str(run.state.message)


def test_parameters_are_a_form_with_descriptions_and_a_choice() -> None:
    from prefect.utilities.callables import parameter_schema

    from flows.lifecycle import continuous_training

    schema = parameter_schema(continuous_training.fn).model_dump()
    form = schema["definitions"]["LoopParameters"]["properties"]
    assert form["retrain"]["enum"] == ["auto", "always", "never"]
    assert all(field["description"] for field in form.values())
    assert set(form) == {"pipeline", "as_of", "memory", "profile", "retrain"}


def test_long_work_shows_its_progress() -> None:
    from prefect import flow

    from flows.artifacts import ProgressArtifact

    @flow
    def work() -> None:
        show = ProgressArtifact()
        show._last -= 10  # as if it had not shown anything for a while
        show(events.Progress("train.fit", "fit.1", 1, 10, "trees", 0.1))  # too early to be long
        show(events.Progress("train.fit", "fit.1", 3, 10, "trees", 6.0))
        show._last -= 10
        show(events.Progress("train.fit", "fit.1", 7, 10, "trees", 9.0))
        show(events.TaskEnded("train.fit", "fit.1", "ok", 1, 12.0))

    work()
    (artifact,) = _artifacts("progress")
    assert "train.fit: 10 trees" in str(artifact.description)
    assert float(artifact.data) == 100.0


def test_a_profiled_run_links_its_page(world: World) -> None:
    from flows.lifecycle import extract
    from flows.parameters import ExtractParameters

    extract(ExtractParameters(pipeline=str(world.pipeline), as_of=FEBRUARY, profile=True))
    (page,) = (world.workspace.root / "profiles").glob("*/memory.html")
    assert "extract raw.1" in page.read_text()
    assert page.as_uri() in str(_artifacts("memory-profile")[0].data)
