"""Compaction killed at any step, and between all steps of the loop: every table holds what it would without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from engine.batching import Workspace, read_batches
from engine.stage import run_stage
from engine.stages.compact import CompactStage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from engine.upkeep import compact_tables
from tests.commits import commit_slice
from tests.shop import Shop
from tests.world import World, copy_world

ROOT = Path(__file__).parents[2]
PATH = os.pathsep.join(entry for entry in sys.path if entry)
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("kill")]
KILLED = """
import os, signal, sys
from pathlib import Path
from engine.batching.journal import Journal
from engine.batching.tables import Table
from engine.stage import run_stage
from engine.stages.compact import CompactStage
from tests.shop import Shop

def dying(function, *, first):
    def call(self, *given, **named):
        if not first:
            function(self, *given, **named)
        os.kill(os.getpid(), signal.SIGKILL)
        return function(self, *given, **named)
    return call

place, name = (Table, "commit") if "commit" in sys.argv[2] else (Journal, sys.argv[2].split(":")[1])
setattr(place, name, dying(getattr(place, name), first=sys.argv[2].startswith("before")))
shop = Shop(Path(sys.argv[1]))
run_stage(CompactStage("raw", least=2), shop.context(0))
"""


@pytest.mark.parametrize(
    "point",
    [
        pytest.param("after:write_plan", marks=pytest.mark.slow),
        pytest.param("before:write_task", marks=pytest.mark.slow),
        pytest.param("after:write_task", marks=pytest.mark.slow),
        "before:commit",
        "after:commit",
    ],
)
def test_killed_at_each_step_nothing_is_lost_or_doubled(tmp_path: Path, point: str) -> None:
    shop = Shop(tmp_path)
    for n in range(1, 6):
        commit_slice(shop.workspace, n)
    before = _ids(shop.workspace)
    command = [sys.executable, "-c", KILLED, str(shop.directory), point]
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": PATH}, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert _ids(shop.workspace) == before
    commit_slice(shop.workspace, 6)  # the next run extracts first
    compact_tables(shop.context(0), least=2)
    assert _ids(shop.workspace) == [*before, 60, 61, 62]
    assert [chunk.n for chunk in shop.workspace.table("raw").chunks()] == [5, 6]


def _ids(workspace: Workspace) -> list[int]:
    paths = [chunk.path for chunk in workspace.table("raw").chunks()]
    return [value for batch in read_batches(paths, columns=["id"]) for value in batch["id"].to_pylist()]


@pytest.mark.slow
def test_compaction_between_all_steps_gives_the_same_tables(tmp_path: Path, prepared_world: World) -> None:
    clocks = [datetime(2013, 2, day, 6, tzinfo=UTC) for day in (3, 5, 7)]
    plain = copy_world(prepared_world, tmp_path / "plain")
    compacted = copy_world(prepared_world, tmp_path / "compacted")
    plain.prepare(*clocks)
    merged = 0
    for clock in clocks:
        for stage in (ExtractStage("raw"), ExtractStage("labels"), PrepareStage()):
            compacted.run(stage, clock)
            for table in ("raw", "labels"):
                merged += run_stage(CompactStage(table, least=1), compacted.context(clock)).slices
    assert merged >= 4
    assert len(compacted.workspace.table("raw").chunks()) == len(compacted.workspace.table("labels").chunks()) == 1
    assert compacted.content() == plain.content()
    compacted.edit(features={**compacted.spec.features.model_dump(mode="json"), "numeric": ["distance"]})
    plain.edit(features={**plain.spec.features.model_dump(mode="json"), "numeric": ["distance"]})
    for world in (plain, compacted):  # another feature set reads all of both tables anew
        world.run(PrepareStage(), clocks[-1])
    assert compacted.content() == plain.content()
