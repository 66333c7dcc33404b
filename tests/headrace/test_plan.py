"""The plan from the command line: figures by stage, and an exit code for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from engine.memory.disk import filesystem
from tests.world import World


def _plan(world: World, *arguments: str, columns: str = "250") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "plan", str(world.pipeline), *arguments]
    environment = {**os.environ, "COLUMNS": columns}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=world.directory, check=False)


def test_a_plan_prints_figures_and_exits_with_2_when_it_does_not_fit(world: World) -> None:
    done = _plan(world)
    assert done.returncode == 0, done.stderr
    for word in ("allowed", "reserved", "projected", "measured", "train.fit", "512 MiB"):
        assert word in done.stdout
    done = _plan(world, "--memory", "120MiB", "--json")
    assert done.returncode == 2
    found = json.loads(done.stdout)
    assert not found["fits"]
    assert found["smallest_budget_bytes"] > 120 * 2**20
    done = _plan(world, "--memory", "120MiB")
    assert done.returncode == 2
    assert "the worst term is" in done.stderr
    assert "the smallest budget that would do is" in done.stderr
    assert not world.workspace.root.exists()


def test_a_budget_may_be_what_the_host_has(world: World) -> None:
    done = _plan(world, "--memory", "auto", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["allowed_bytes"] > 0


@pytest.mark.parametrize(
    ("memory", "said"),
    [
        ("plenty", "'plenty' is not a size; write for example 512MiB"),
        ("12", "12 bytes hold no interpreter; write a unit"),
        ("0", "it should be greater than 0"),
        ("999999999TiB", "larger than any machine's memory"),
        ("900TiB", "more than the"),
    ],
)
def test_a_budget_that_is_none_is_an_error_and_no_traceback(world: World, memory: str, said: str) -> None:
    done = _plan(world, "--memory", memory)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_a_plan_fits_80_columns(world: World) -> None:
    done = _plan(world, columns="80")
    assert done.returncode == 0
    assert max(map(len, done.stdout.splitlines()[1:])) <= 80
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout


def test_a_workspace_in_memory_is_refused_by_the_plan_too(world: World) -> None:
    if filesystem(Path("/dev/shm")) != "tmpfs":
        pytest.skip("/dev/shm is no tmpfs here: memory in disguise was NOT planned")
    world.edit(workspace="/dev/shm/headrace-test")
    done = _plan(world)
    assert done.returncode == 4
    assert "its files are memory" in done.stderr
    assert not Path("/dev/shm/headrace-test").exists()


def test_a_run_refuses_what_the_plan_refuses_before_it_reads_a_row(world: World) -> None:
    command = [sys.executable, "-m", "headrace", "run", str(world.pipeline), "--memory", "120MiB"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=world.directory, check=False)
    assert done.returncode == 2, done.stderr
    smallest = json.loads(_plan(world, "--memory", "120MiB", "--json").stdout)["smallest_budget_bytes"] // 2**20
    assert f"set resources.memory to at least {smallest}MiB" in done.stderr
    assert not world.workspace.table("raw").exists()
