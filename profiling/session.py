"""One profiled run: a recorder, memray around each task, and at the end one page with its flame graphs, also of a
failure.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from engine import events
from engine.errors import HeadraceError
from engine.refs import Task
from profiling.capture import capture_path, flame_graph, launcher
from profiling.recorder import Recorder, read_recording
from profiling.report import render


class ProfilingSession:
    """Records the tasks of a run.

    Parameters
    ----------
    directory
        Gets one directory a session, named by the time.
    title
        Of the page: the pipeline's name.
    """

    def __init__(self, directory: Path, *, title: str) -> None:
        self.directory = directory / datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
        self._title = title
        self._recorder = Recorder(self.directory)
        self.failures: list[str] = []  # flame graphs that could not be made, with the reason

    @property
    def page(self) -> Path:
        """The page; there once the session has ended."""
        return self.directory / "memory.html"

    def hook(self, event: events.Event) -> None:
        """Observe one event."""
        self._recorder(event)

    def launcher(self, task: Task) -> tuple[str, ...]:
        """Return the command that runs a task's child under memray."""
        return launcher(task, directory=self.directory)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Write flame graphs and page, however the run ended."""
        self._recorder.close()
        tasks = read_recording(self.directory)
        links: dict[tuple[str, str], str] = {}
        for task in tasks:
            capture = capture_path(task.stage, task.task, directory=self.directory)
            if not capture.exists():
                continue
            try:
                links[task.stage, task.task] = flame_graph(capture).name
            except HeadraceError as error:
                self.failures.append(error.message)
        self.page.write_text(render(tasks, title=self._title, flame_graphs=links), encoding="utf-8")
