"""A training that was cut off between its tasks, and what of it is on the disk when it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from engine.refs import Task, TaskResult
from engine.stage import run_stage
from engine.stages.train import TrainStage
from tests.world import FEBRUARY, World, copy_world

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("loop")]


class _CutOff(Exception):
    pass


def _cut_off_before_the_fit(world: World) -> Path:
    """Plan a training, make its cache, and stop; return the record of the task that made it."""

    def execute(calls: Sequence[Callable[[], TaskResult]], tasks: Sequence[Task]) -> Sequence[TaskResult]:
        if tasks[0].stage == "train.fit":
            raise _CutOff
        return [call() for call in calls]

    with pytest.raises(_CutOff):
        run_stage(TrainStage(reasons=("a test",)), world.context(FEBRUARY), execute=execute)
    (record,) = world.workspace.journal.tasks()
    return record


@pytest.mark.parametrize("moved", [False, True])
def test_tasks_are_made_anew_from_the_plan(prepared_world: World, tmp_path: Path, moved: bool) -> None:
    """A record is known by its function's name too: after a move the task runs once more, and nothing breaks."""
    world = copy_world(prepared_world, tmp_path / "world")
    record = _cut_off_before_the_fit(world)
    if moved:  # as a version left it whose function had another name
        record = record.rename(record.with_stem("0123456789abcdef"))
    cache = world.workspace.root / "caches" / "00000001" / "encoder.json"
    made, found = cache.stat().st_mtime_ns, []

    def execute(calls: Sequence[Callable[[], TaskResult]], tasks: Sequence[Task]) -> Sequence[TaskResult]:
        results = [call() for call in calls]
        found.append(cache.stat().st_mtime_ns)
        return results

    report = run_stage(TrainStage(), world.context(FEBRUARY), execute=execute)
    assert (report.slices, report.n) == (1, 1)
    assert len(found) == 2
    assert (found[0] != made) == moved
    assert world.workspace.journal.tasks() == ([record] if moved else [])  # which vacuum deletes
