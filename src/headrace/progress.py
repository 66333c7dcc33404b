"""Progress of caged tasks on a terminal: one live line where it is one, a line a task where it is not."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.status import Status

from engine import events
from engine.units import format_bytes


class TerminalProgress:
    """A hook that shows what runs now, how far it is, and the memory it takes of its budget.

    Parameters
    ----------
    enabled
        False shows nothing.
    prefix
        Begins the live line, such as the month of a replay.
    """

    def __init__(self, *, enabled: bool = True, prefix: str = "") -> None:
        self._console = Console(stderr=True)
        self._live = enabled and sys.stderr.isatty()
        self._lines = enabled and not self._live
        self._status: Status | None = None
        self._allowed = self._measured = 0
        self._progress = ""
        self.prefix = prefix

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._live:
            self._status = self._console.status("starting")
            self._status.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Clear the live line."""
        if self._status is not None:
            self._status.stop()

    def __call__(self, event: events.Event) -> None:
        """Observe one event."""
        if isinstance(event, events.TaskStarted):
            self._allowed, self._measured, self._progress = event.allowed_bytes, 0, ""
        elif isinstance(event, events.MemorySample):
            self._measured = event.measured_bytes
        elif isinstance(event, events.Progress):
            total = f" of {event.total:,.0f}" if event.total > event.done else ""
            self._progress = f"{event.done:,.0f}{total} {event.what}, "
        elif isinstance(event, events.Note) and (self._live or self._lines):
            self._console.print(f"{self.prefix}{event.message}", highlight=False, soft_wrap=True)
        elif isinstance(event, events.TaskEnded) and self._lines:
            memory = f"{format_bytes(event.measured_bytes)} of {format_bytes(self._allowed)}"
            line = f"{self.prefix}{event.stage} {event.task}: {event.outcome}, {event.seconds:.1f} s, {memory}"
            self._console.print(line, highlight=False)
        if self._status is not None and isinstance(event, events.TaskStarted | events.MemorySample | events.Progress):
            memory = f"{format_bytes(self._measured)} of {format_bytes(self._allowed)}"
            self._status.update(f"{self.prefix}{event.stage} {event.task}: {self._progress}{memory}")
