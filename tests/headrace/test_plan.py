"""The plan from the command line: figures by stage, and an exit code for scripts."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.world import World


def _plan(world: World, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "plan", str(world.pipeline), *arguments]
    environment = {**os.environ, "COLUMNS": "250"}
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
