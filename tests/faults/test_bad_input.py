"""Bad input and broken surroundings: one clear message, an exit code, no traceback, and committed data intact."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from engine.errors import TableError
from engine.ledger import Ledger
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from tests.world import FEBRUARY, World

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.timeout(240), pytest.mark.xdist_group("prefect")]


def _headrace(world: World, *arguments: str, as_of: str = "2013-02-01T06:00:00Z") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "400"}  # the server's URL is in it: no start-up of a temporary one
    command = [sys.executable, "-m", "headrace", "run", str(world.pipeline), "--as-of", as_of, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=world.directory, check=False)


def _assert_explained(done: subprocess.CompletedProcess[str], *, code: int, says: str) -> None:
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert says in done.stderr
    assert done.stderr.count("error: ") == 1
    assert done.stderr.strip().splitlines()[-1].startswith("  ")  # what to do


@pytest.fixture(autouse=True)
def _server(prefect_server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)


def test_a_missing_database(world: World) -> None:
    world.database.unlink()
    _assert_explained(_headrace(world), code=3, says="there is no database file")


def test_an_empty_table(world: World) -> None:
    with sqlite3.connect(world.database) as connection:
        connection.execute("DELETE FROM flights")
    _assert_explained(_headrace(world), code=3, says="table 'flights' is empty")


def test_a_table_without_positives(world: World) -> None:
    with sqlite3.connect(world.database) as connection:
        connection.execute("UPDATE outcomes SET cancelled = 0")
    _assert_explained(_headrace(world), code=5, says="there is no positive among")
    assert world.workspace.table("raw").rows() > 5_000


def test_a_budget_of_50_mib(world: World) -> None:
    done = _headrace(world, "--memory", "50MiB")
    _assert_explained(done, code=2, says="over the 50 MiB allowed")
    assert "at least" in done.stderr
    assert not world.workspace.table("raw").exists()


def test_a_corrupted_chunk_is_named_and_the_rest_is_intact(world: World, prepared_world: World) -> None:
    for stage in (ExtractStage("raw"), ExtractStage("labels")):
        world.run(stage, FEBRUARY)
    (chunk,) = world.workspace.table("raw").chunks()
    good = chunk.path.read_bytes()
    bad = bytearray(good)
    bad[len(bad) // 2] ^= 0xFF
    chunk.path.write_bytes(bytes(bad))
    with pytest.raises(TableError, match=chunk.path.name) as caught:
        world.run(PrepareStage(), FEBRUARY)
    assert "restore it" in caught.value.hint
    assert world.rows("labels") == prepared_world.rows("labels")
    chunk.path.write_bytes(good)
    world.run(PrepareStage(), FEBRUARY)
    assert world.content() == prepared_world.content()


def test_a_workspace_in_memory_is_refused(world: World) -> None:
    place = Path(f"/dev/shm/headrace-test-{os.getpid()}")
    world.edit(workspace=str(place))
    try:
        _assert_explained(_headrace(world), code=4, says="its files are memory")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def test_a_full_disk_loses_nothing_and_the_run_goes_on_once_there_is_room(world: World, small_disk: Path) -> None:
    world.edit(workspace=str(small_disk / "workspace"))
    world.run(ExtractStage("raw"), FEBRUARY)
    before = world.rows("raw")
    ballast = small_disk / "ballast"
    free = shutil.disk_usage(small_disk).free
    with open(ballast, "wb") as handle:
        handle.write(b"\x01" * max(0, free - 200_000))
    done = _headrace(world)
    _assert_explained(done, code=4, says="is full")
    assert world.rows("raw") == before
    ballast.unlink()
    for stage in (ExtractStage("labels"), PrepareStage()):
        world.run(stage, FEBRUARY)
    assert len(world.prepared()) == len(before)


def test_a_read_only_workspace(world: World, small_disk: Path) -> None:
    world.edit(workspace=str(small_disk / "workspace"))
    world.run(ExtractStage("raw"), FEBRUARY)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    try:
        _assert_explained(_headrace(world), code=4, says="cannot be written")
        assert world.workspace.table("raw").rows() > 5_000
    finally:
        subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)


def test_the_real_command_killed_then_run_again(world: World) -> None:
    """``headrace run`` through Prefect, killed in the middle; the next one completes it."""
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [sys.executable, "-m", "headrace", "run", str(world.pipeline), "--as-of", "2013-03-01T06:00:00Z"]
    with subprocess.Popen(
        command, env=environment, cwd=world.directory, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if "train.cache" in line:
                break
        else:
            raise AssertionError("it ended before it trained")
        os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert Ledger(world.workspace).history() == ()  # it was in the middle of a training
    done = _headrace(world, as_of="2013-03-01T06:00:00Z")
    assert done.returncode == 0, done.stderr
    assert [entry.action for entry in Ledger(world.workspace).history()].count("trained") == 1
    keys = [row["key"] for row in world.prepared()]
    with sqlite3.connect(world.database) as connection:
        flights = connection.execute(
            "SELECT count(*) FROM flights WHERE updated_at <= '2013-03-01 06:00:00'"
        ).fetchone()
    assert len(keys) == len(set(keys)) == flights[0] == world.workspace.table("raw").rows()
