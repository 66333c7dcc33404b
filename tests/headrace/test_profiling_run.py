"""``headrace profile``: each stage runs again on a copy, under memray; workspace and registry stay as they are."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from engine.errors import HeadraceError, PlanRefused, SpecError, WorkspaceLocked
from engine.refs import StageReport
from headrace.profiling_run import profile_stage
from profiling.leaks import leaks
from profiling.recorder import read_recording
from tests.profiling.pages import Page
from tests.world import FEBRUARY, MARCH, World, copy_world

pytestmark = pytest.mark.xdist_group("loop")


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, march: tuple[World, dict[str, StageReport]]) -> World:
    """A world with a champion that has scored, and been watched for, a month."""
    return copy_world(march[0], tmp_path_factory.mktemp("lived") / "world")


def _files(world: World) -> dict[str, tuple[int, str]]:
    """Return the time of change and the content of every file of the workspace that is not a profile's."""
    root = world.workspace.root
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.relative_to(root).parts[0] not in ("profiles", "lock")
    }


_SLOW = [
    pytest.param(stage, marks=pytest.mark.slow) for stage in ("extract", "prepare", "validate", "score", "monitor")
]


@pytest.mark.parametrize("stage", ["train", *_SLOW])
def test_a_stage_works_under_memray_and_changes_neither_workspace_nor_registry(stage, lived, tmp_path, monkeypatch):
    registry = tmp_path / "elsewhere.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{registry}")
    before = _files(lived)

    figures = profile_stage(lived.pipeline, stage=stage, as_of=MARCH)

    assert _files(lived) == before
    assert not registry.exists()
    assert figures["rows in"] > 0
    tasks = read_recording(Path(figures["page"]).parent)
    assert {task.stage.split(".")[0] for task in tasks} == {stage}
    assert {task.outcome for task in tasks} == {"ok"}
    assert all(task.reserved_bytes < task.peak[1] <= task.allowed_bytes for task in tasks)
    page = Page(Path(figures["page"]).read_text())
    assert page.tags.count("svg") == len(tasks)
    assert len(set(page.links)) == len(tasks)
    captures = [Path(name) for name in figures["captures"].split(", ")]
    assert len(captures) == len(tasks)
    assert leaks(captures[0], most=1)[0].bytes > 0
    json.dumps(figures)


def test_the_budget_is_that_of_the_command_line_and_a_refused_plan_still_says_where_the_page_is(lived):
    before = _files(lived)
    with pytest.raises(PlanRefused) as caught:
        profile_stage(lived.pipeline, stage="train", as_of=MARCH, memory="1MiB")
    assert _files(lived) == before
    assert caught.value.details["allowed_bytes"] == 2**20
    page = Path(caught.value.details["page"])
    assert str(page) in caught.value.hint
    assert "No task ran." in Page(page.read_text()).text


def test_a_stage_with_nothing_to_do_is_an_error_that_says_what_to_do_first(world):
    with pytest.raises(HeadraceError, match="score has nothing to do") as caught:
        profile_stage(world.pipeline, stage="score", as_of=FEBRUARY)
    assert "headrace run" in caught.value.hint


def test_a_stage_that_there_is_not_is_refused_with_those_that_there_are(world):
    with pytest.raises(SpecError, match="no stage 'promote'") as caught:
        profile_stage(world.pipeline, stage="promote")
    assert "extract, prepare, train, validate, score, monitor" in caught.value.hint


def test_a_profile_does_not_run_beside_another_run(lived):
    with lived.workspace.lock(), pytest.raises(WorkspaceLocked):
        profile_stage(lived.pipeline, stage="monitor", as_of=MARCH)
