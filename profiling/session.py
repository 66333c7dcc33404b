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
from profiling.capture import flame_graph, keep_capture, launcher
from profiling.recorder import Recorder, read_recording
from profiling.report import render


class ProfilingSession:
    """Records the tasks of a run, which run one after another.

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
        self._captures: list[Path | None] = []  # of each start of a task, in order; a task that is retried has several

    @property
    def page(self) -> Path:
        """The page; there once the session has ended."""
        return self.directory / "memory.html"

    def hook(self, event: events.Event) -> None:
        """Observe one event; a task's capture is put aside when it ends, since its next attempt would overwrite it."""
        self._recorder(event)
        if isinstance(event, events.TaskStarted):
            self._captures.append(None)
        elif isinstance(event, events.TaskEnded):
            number = len(self._captures)
            self._captures[-1] = keep_capture(event.stage, event.task, directory=self.directory, number=number)

    def launcher(self, task: Task) -> tuple[str, ...]:
        """Return the command that runs a task's child under memray."""
        return launcher(task, directory=self.directory)

    def __enter__(self) -> Self:
        """Begin."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Write flame graphs and page, however the run ended."""
        self._recorder.close()
        links: dict[int, str] = {}
        failures: list[str] = []
        for place, capture in enumerate(self._captures):
            if capture is None:
                continue
            try:
                links[place] = flame_graph(capture).name
            except HeadraceError as error:
                failures.append(error.message)
        page = render(read_recording(self.directory), title=self._title, flame_graphs=links, failures=failures)
        self.page.write_text(page, encoding="utf-8")
