"""The command line: what it says, in which form, and with which exit code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from engine.refs import StageReport
from tests.world import World

pytestmark = pytest.mark.xdist_group("loop")

ROOT = Path(__file__).parents[2]


def _headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


def test_help_lists_every_command() -> None:
    done = _headrace("--help")
    assert done.returncode == 0
    for command in (
        "run",
        "extract",
        "score",
        "status",
        "history",
        "rollback",
        "check",
        "init",
        "demo",
        "up",
        "profile",
    ):
        assert f" {command} " in done.stdout


def test_status_and_history_before_anything_ran(world: World) -> None:
    text = _headrace("status", str(world.pipeline))
    assert text.returncode == 0
    assert "no champion yet" in text.stdout
    found = json.loads(_headrace("status", str(world.pipeline), "--json").stdout)
    assert found["champion"] is None
    assert found["tables"]["raw"] == {"rows": 0, "version": -1, "watermark": None}
    assert json.loads(_headrace("history", str(world.pipeline), "--json").stdout) == []


def test_status_and_history_of_a_champion(february: tuple[World, dict[str, StageReport]]) -> None:
    world = february[0]
    assert "champion v1" in _headrace("status", str(world.pipeline)).stdout
    entries = json.loads(_headrace("history", str(world.pipeline), "--json").stdout)
    assert [entry["action"] for entry in entries] == ["trained", "passed", "promoted"]
    assert all(entry["reasons"] for entry in entries)


def test_a_wrong_pipeline_file_is_one_message_with_its_line(world: World) -> None:
    text = world.pipeline.read_text().replace("event_time:", "event_tme:")
    world.pipeline.write_text(text)
    done = _headrace("check", str(world.pipeline))
    assert done.returncode == 2
    assert "event_tme" in done.stderr
    assert "event_time" in done.stderr  # the nearest valid name
    assert "flights.yaml:" in done.stderr
    assert "Traceback" not in done.stderr
    as_json = _headrace("check", str(world.pipeline), "--json")
    assert (as_json.returncode, json.loads(as_json.stdout)["error"]) == (2, "SpecError")


def test_check_reaches_the_source_and_finds_a_misspelt_column(world: World) -> None:
    assert _headrace("check", str(world.pipeline)).returncode == 0
    features = world.spec.features.model_dump(mode="json")
    world.edit(features={**features, "categorical": ["carrier", "origin", "destinaton"]})
    done = _headrace("check", str(world.pipeline), "--json")
    assert done.returncode == 2
    wrong = [finding for finding in json.loads(done.stdout) if finding["severity"] == "error"]
    assert "destinaton" in str(wrong)
    assert "destination" in str(wrong)


def test_a_missing_file_names_those_that_are_there(world: World) -> None:
    done = _headrace("run", str(world.directory / "fligths.yaml"))
    assert done.returncode == 2
    assert "flights.yaml" in done.stderr
    assert "Traceback" not in done.stderr


def test_init_drafts_a_file_that_check_reads(world: World, tmp_path: Path) -> None:
    draft = tmp_path / "draft.yaml"
    done = _headrace("init", f"sqlite:///{world.database}::flights", "-o", str(draft))
    assert done.returncode == 0, done.stderr
    assert "table: flights" in draft.read_text()
    checked = _headrace("check", str(draft), "--json")
    assert checked.returncode == 0, checked.stderr
    again = _headrace("init", f"sqlite:///{world.database}::flights", "-o", str(draft))
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_a_wrong_option_is_a_usage_error() -> None:
    done = _headrace("run", "--nonsense")
    assert done.returncode == 2
    assert "nonsense" in done.stderr
    assert "Traceback" not in done.stderr
