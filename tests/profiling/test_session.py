"""Real tasks in their cage under memray: what is recorded, captured, and on the page, also when one is killed."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from engine.errors import MemoryBudgetExceeded
from engine.memory.budget import Budget
from engine.memory.cage import run_caged
from engine.refs import Task, TaskResult
from profiling.leaks import leaks
from profiling.recorder import read_recording
from profiling.session import ProfilingSession
from tests.profiling.pages import Page
from tests.profiling.tasks import MIB


def _run(session: ProfilingSession, function: str, *, mib: int, allowed: int, attempts: int = 1) -> TaskResult:
    task = Task("test", f"{function}.1", f"tests.profiling.tasks:{function}", {"mib": mib})
    return run_caged(
        task,
        context={},
        budget=Budget(allowed),
        projected_bytes=77 * MIB,
        hook=session.hook,
        launcher=session.launcher(task),
        attempts=attempts,
    )


@pytest.fixture
def session(tmp_path: Path) -> ProfilingSession:
    return ProfilingSession(tmp_path, title="a pipeline")


def test_a_task_under_memray_answers_and_its_page_has_figures_timeline_and_flame_graph(session):
    with session:
        result = _run(session, "allocate", mib=64, allowed=512 * MIB)

    assert result.outputs == {"held": 4}
    assert result.memory.measured_bytes > result.memory.reserved_bytes + 64 * MIB
    (task,) = read_recording(session.directory)
    assert (task.outcome, task.allowed_bytes, task.projected_bytes) == ("ok", 512 * MIB, 77 * MIB)
    assert task.reserved_bytes == result.memory.reserved_bytes
    assert task.peak[1] == result.memory.measured_bytes

    page = Page(session.page.read_text())
    (link,) = set(page.links)
    flame = (session.directory / link).read_text()
    assert "flamegraph" in flame
    assert "allocate" in flame
    assert page.tags.count("svg") == 1
    assert page.tags.count("polyline") == 1
    for figure in ("512 MiB", "77 MiB", "memray's own memory"):
        assert figure in page.text


def test_each_attempt_of_a_killed_task_keeps_its_own_capture_and_flame_graph(session):
    with pytest.raises(MemoryBudgetExceeded), session:
        _run(session, "allocate", mib=4096, allowed=160 * MIB, attempts=2)

    tasks = read_recording(session.directory)
    assert [task.outcome for task in tasks] == ["killed", "killed"]
    assert all(0 < task.peak[1] <= 160 * MIB for task in tasks)
    page = Page(session.page.read_text())
    links = list(dict.fromkeys(page.links))
    assert len(links) == 2
    assert all("allocate" in (session.directory / link).read_text() for link in links)
    assert "A task was stopped at its budget." in page.text
    assert "again from its start with batches of" in page.text


def test_a_capture_names_the_place_that_never_gave_its_memory_back(session):
    with session:
        _run(session, "keep", mib=48, allowed=512 * MIB)

    (capture,) = session.directory.glob("*.bin")
    (largest, *rest) = leaks(capture, most=3)
    assert "keep at " in largest.where
    assert "tasks.py:" in largest.where
    assert largest.bytes >= 48 * MIB
    assert len(rest) == 2
    assert rest[0].bytes >= rest[1].bytes


def test_the_page_is_written_when_the_run_fails_before_any_task(session):
    with pytest.raises(ZeroDivisionError), session:
        _ = 1 // 0
    assert "No task ran." in Page(session.page.read_text()).text


def test_a_capture_that_memray_cannot_read_is_said_on_the_page_and_the_others_are_there(session):
    with session:
        _run(session, "allocate", mib=16, allowed=512 * MIB)
        _run(session, "keep", mib=16, allowed=512 * MIB)
        first, _ = sorted(session.directory.glob("*.bin"))
        first.write_bytes(b"not a capture")

    page = Page(session.page.read_text())
    assert f"No flame graph: memray cannot read {first}" in page.text
    assert list(dict.fromkeys(page.links)) == ["002-test-keep_1.html"]


def test_a_run_that_is_killed_leaves_a_recording_that_can_be_read(tmp_path):
    code = """
        import os, signal, sys
        from pathlib import Path
        from engine import events
        from profiling.recorder import Recorder

        record = Recorder(Path(sys.argv[1]))
        record(events.TaskStarted("train", "fit.1", 1000, "polling"))
        for size in range(1, 101):
            record(events.MemorySample("train", "fit.1", size))
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code), str(tmp_path)], check=False)
    assert done.returncode == -9
    with open(tmp_path / "events.ndjson", "a") as file:
        file.write('{"at": 1.0, "event": "MemorySa')  # the line in which it was cut off

    (task,) = read_recording(tmp_path)
    assert task.outcome == "running"
    assert [size for _, size in task.samples] == list(range(1, 101))
    assert task.seconds == task.samples[-1][0] - task.began
