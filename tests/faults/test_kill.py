"""Killed at any moment, run again: every table is what an undisturbed run leaves, and nothing else is left behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from tests.world import World, make_world

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(600), pytest.mark.xdist_group("kill")]

POINTS = (
    "record:extract:raw",
    "record:extract:labels",
    "record:train",
    "record:validate",
    "record:promote",
    "record:monitor",
    "record:score",
    "event:ChunkWritten:1",
    "event:TaskEnded:3",
    "event:TaskEnded:5",
    "event:Progress:25",
)


def _start(directory: Path, crash: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.faults.driver", str(directory), crash]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _finish(directory: Path) -> None:
    with _start(directory) as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == 0
    assert out.endswith("done\n")


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, flights_database: Path) -> tuple[dict[str, list[str]], float]:
    """What every table holds after a run that nothing disturbed, and how long it took."""
    world = make_world(tmp_path_factory.mktemp("undisturbed"), flights_database)
    began = time.monotonic()
    _finish(world.directory)
    return world.content(), time.monotonic() - began


def _check(world: World, expected: dict[str, list[str]]) -> None:
    found = world.content()
    for table, rows in expected.items():
        assert found[table] == rows, f"{table}: {len(found[table])} rows, expected {len(rows)}"
    runs = Counter((row["app"], row["n"]) for row in world.rows("runs"))
    assert max(runs.values()) == 1
    for app, n in runs:
        assert all((app, earlier) in runs for earlier in range(1, n))
    left = (world.directory / "workspace").rglob(".*.tmp")
    assert not [path for path in left if ".arrow." in path.name or ".parquet." in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_chosen_point(point: str, world: World, undisturbed: tuple[dict[str, list[str]], float]) -> None:
    with _start(world.directory, point) as process:
        process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL
    _finish(world.directory)
    _check(world, undisturbed[0])


@pytest.mark.parametrize(
    ("kills", "seed"), [(1, None), *(pytest.param(5, seed, marks=pytest.mark.slow) for seed in range(20))]
)
def test_killed_at_random_moments(
    kills: int, seed: int | None, world: World, undisturbed: tuple[dict[str, list[str]], float]
) -> None:
    """The moments are drawn from as long as a run takes: an undisturbed one, or the last that ended before its kill."""
    expected, seconds = undisturbed
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    rng = random.Random(seed)
    print(f"seed {seed}")
    killed = 0
    while killed < kills:
        began = time.monotonic()
        with _start(world.directory) as process:
            try:
                process.wait(timeout=rng.uniform(min(1.0, seconds / 2), 0.8 * seconds))
                assert process.returncode == 0, f"seed {seed}: it failed, and was not killed"
                seconds = time.monotonic() - began
            except subprocess.TimeoutExpired:
                children = psutil.Process(process.pid).children(recursive=True)
                os.kill(process.pid, signal.SIGKILL)  # the parent alone: its children have to notice
                process.wait()
                _, alive = psutil.wait_procs(children, timeout=10)
                assert not alive, f"seed {seed}: {alive} outlived their parent"
                killed += 1
    _finish(world.directory)
    _check(world, expected)
