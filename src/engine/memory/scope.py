"""What a task's function is given in its child: budget, governor, and a way to say what happens."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from engine import events
from engine.memory.budget import Budget
from engine.memory.governor import Governor


@dataclass(frozen=True)
class Scope:
    """The surroundings of one task."""

    stage: str
    task: str
    context: Mapping[str, Any]  # JSON of the caller; the stage knows what it means
    budget: Budget
    governor: Governor
    emit: events.Hook
    started: float  # time.monotonic()
    keep: Callable[[Mapping[str, Any]], None] = lambda checkpoint: None
    say_place: Callable[[str, int], None] = lambda place, column_bytes: None
    resume: Mapping[str, Any] | None = None  # the last checkpoint of a try that was stopped at its budget

    @property
    def seconds(self) -> float:
        """Seconds since the task began."""
        return round(time.monotonic() - self.started, 3)

    def checkpoint(self, value: Mapping[str, Any]) -> None:
        """Say from where another try of this task could go on: JSON, with the refs of what is written so far."""
        self.keep(value)

    def at(self, place: str, *, column_bytes: int = 0) -> None:
        """Say what is about to be read, for the message of a task that is stopped there.

        Parameters
        ----------
        column_bytes
            Decoded, of the largest column there, where that is known: one value may be most of it.
        """
        self.say_place(place, column_bytes)

    def progress(self, done: float, total: float, what: str) -> None:
        """Say how much is done."""
        self.emit(events.Progress(self.stage, self.task, done, total, what, self.seconds))

    def batch_done(self, rows: int, size_bytes: int) -> None:
        """Say that a batch went through."""
        self.emit(events.BatchDone(self.stage, self.task, rows, size_bytes, self.seconds))
