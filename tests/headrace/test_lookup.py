"""``headrace lookup``: one row's features from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from engine.refs import StageReport
from tests.world import World, copy_world

pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("loop")]

ROOT = Path(__file__).parents[2]
ROW = {
    "scheduled_departure": "2013-01-20T10:00:00-05:00",
    "carrier": "DL",
    "origin": "LGA",
    "destination": "ATL",
    "distance": 762,
}


def _lookup(world: World, *arguments: str, code: int = 0, stdin: str = "") -> str:
    command = [sys.executable, "-m", "headrace", "lookup", str(world.pipeline), *arguments]
    done = subprocess.run(command, input=stdin, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    return done.stdout if code == 0 else done.stderr


def _json(world: World, *arguments: str, stdin: str = "") -> list[dict[str, Any]]:
    return [json.loads(line) for line in _lookup(world, *arguments, "--json", stdin=stdin).splitlines()]


def test_a_row_by_its_key_is_what_is_prepared(february: tuple[World, dict[str, StageReport]]) -> None:
    world = february[0]
    row = next(row for row in world.prepared() if row["key"] == 4_000)
    (found,) = _json(world, "--key", "4000")
    assert found["features"] == {name: row[name] for name in world.spec.features.names()}
    assert found["champion"]["version"] == 1
    assert found["champion"]["alert"] is (found["champion"]["score"] >= found["champion"]["threshold"])
    assert found["prepared_through"]["rows"] >= row["event_time"].strftime("%Y-%m-%d")


def test_rows_of_standard_input_are_answered_line_by_line(february: tuple[World, dict[str, StageReport]]) -> None:
    world = february[0]
    lines = "\n".join(json.dumps(ROW | {"carrier": carrier}) for carrier in ("DL", "AA", None))
    found = _json(world, "-", stdin=f"{lines}\n\n")
    assert [one["features"]["carrier"] for one in found] == ["DL", "AA", None]
    assert found[0] == _json(world, json.dumps(ROW))[0]
    assert found[0]["features"]["hour"] == 10
    rates = [one["features"]["labels_carrier_7d_count"] for one in found]
    assert rates[0] != rates[1] != rates[2] == 0


def test_people_see_a_table_and_the_verdict(february: tuple[World, dict[str, StageReport]]) -> None:
    said = _lookup(february[0], json.dumps(ROW))
    assert "labels_origin_destination_7d_rate" in said
    assert "champion v1: score 0." in said
    assert "prepared: rows through 2013-0" in said


def test_without_a_champion_there_are_features_and_no_score(prepared_world: World) -> None:
    (found,) = _json(prepared_world, json.dumps(ROW))
    assert found["champion"] is None
    assert found["features"]["distance"] == 762


def test_an_edited_file_is_answered_as_its_champion_sees_rows(
    february: tuple[World, dict[str, StageReport]], tmp_path: Path
) -> None:
    world = copy_world(february[0], tmp_path / "world")
    before = _json(world, json.dumps(ROW))
    world.edit(features={"numeric": ["distance"]})
    assert _json(world, json.dumps(ROW)) == before


def test_what_is_wrong_with_a_row_is_one_message(prepared_world: World) -> None:
    world = prepared_world
    assert "the row is no JSON" in _lookup(world, "{origin", code=2)
    assert "a list" in _lookup(world, "[1]", code=2)
    assert "the row lacks origin" in _lookup(world, json.dumps({k: v for k, v in ROW.items() if k != "origin"}), code=2)
    assert "there is no row with flight_id 99999999" in _lookup(world, "--key", "99999999", code=2)
    lines = f"{json.dumps(ROW)}\n{json.dumps(ROW | {'distance': 'far'})}\n"
    assert "line 2: distance is 'far', and of type double" in _lookup(world, "-", stdin=lines, code=2)
    assert "give a row, or --key" in _lookup(world, code=2)
    assert "give a row, or --key" in _lookup(world, "{}", "--key", "1", code=2)


def test_before_anything_is_prepared_it_says_what_to_do(world: World) -> None:
    assert "headrace run prepares them" in _lookup(world, json.dumps(ROW), code=1)
    assert not Path(world.spec.workspace).exists()
