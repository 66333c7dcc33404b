"""memray around a caged task: the prefix of its command line, and the flame graph of what was captured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine.errors import HeadraceError
from engine.refs import Task


def launcher(task: Task, *, directory: Path) -> tuple[str, ...]:
    """Return the command that runs a child under memray; the cage appends the module. A kill leaves what was captured.

    Notes
    -----
    memray's own memory counts in the measure: the budget holds for the task and its profiler together.
    """
    directory.mkdir(parents=True, exist_ok=True)
    capture = capture_path(task.stage, task.name, directory=directory)
    return (sys.executable, "-m", "memray", "run", "--quiet", "--force", "--output", str(capture))


def capture_path(stage: str, task: str, *, directory: Path) -> Path:
    """Return where the capture of a task lies."""
    safe = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in f"{stage}-{task}")
    return directory / f"{safe}.bin"


def keep_capture(stage: str, task: str, *, directory: Path, number: int) -> Path | None:
    """Give the capture of a task that has ended a name of its own, and return it; None where there is none.

    Parameters
    ----------
    stage, task
        As the task's events name them.
    directory
        Of the launcher.
    number
        Counts the tasks, attempts included.
    """
    capture = capture_path(stage, task, directory=directory)
    if not capture.exists():
        return None
    return capture.rename(capture.with_name(f"{number:03d}-{capture.name}"))


def flame_graph(capture: Path) -> Path:
    """Write memray's flame graph beside a capture, also one that a kill cut off, and return its path.

    Raises
    ------
    HeadraceError
        memray cannot read the capture.
    """
    page = capture.with_suffix(".html")
    command = [sys.executable, "-m", "memray", "flamegraph", "--force", "--output", str(page), str(capture)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        raise HeadraceError(f"memray cannot read {capture}: {last}", hint="was the task killed before it began?")
    return page
