"""What happens while a stage runs, as plain values; hooks observe them.

An event crosses from the caged child to its parent as one JSON line. Nothing here does I/O.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskStarted:
    """A task's child process has begun."""

    stage: str
    task: str
    allowed_bytes: int
    enforced_by: str  # "cgroup-v1", "cgroup-v2" or "polling"
    seconds: float = 0.0  # since the task began, as in every event


@dataclass(frozen=True)
class BatchDone:
    """One batch went through an operator."""

    stage: str
    task: str
    rows: int
    bytes: int  # of the batch in memory
    seconds: float = 0.0


@dataclass(frozen=True)
class ChunkWritten:
    """One chunk was closed; it is not yet part of a table."""

    stage: str
    task: str
    path: str
    rows: int
    bytes: int  # on disk
    seconds: float = 0.0


@dataclass(frozen=True)
class Progress:
    """How much of a task is done, where that is known."""

    stage: str
    task: str
    done: float
    total: float
    what: str  # the unit: rows, trees, slices
    seconds: float = 0.0


@dataclass(frozen=True)
class MemorySample:
    """The measure of DESIGN section 5 (anonymous + shared + swap of the process tree) at one moment."""

    stage: str
    task: str
    measured_bytes: int
    file_bytes: int = 0  # mapped file pages: shown, never counted
    seconds: float = 0.0


@dataclass(frozen=True)
class Pressure:
    """The governor changed what it does."""

    stage: str
    task: str
    level: str  # "none", "target", "shrink", "pause", "terminate"
    measured_bytes: int
    seconds: float = 0.0


@dataclass(frozen=True)
class TaskEnded:
    """The child is gone; ``outcome`` is ok, killed or failed."""

    stage: str
    task: str
    outcome: str
    measured_bytes: int
    seconds: float = 0.0
    reserved_bytes: int = 0
    projected_bytes: int = 0


@dataclass(frozen=True)
class Note:
    """A line for a person."""

    stage: str
    task: str
    message: str
    seconds: float = 0.0


Event = TaskStarted | BatchDone | ChunkWritten | Progress | MemorySample | Pressure | TaskEnded | Note

Hook = Callable[[Event], None]
"""An observer. It must be quick, and what it raises ends the run that it observes."""

_KINDS: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (TaskStarted, BatchDone, ChunkWritten, Progress, MemorySample, Pressure, TaskEnded, Note)
}


def to_json(event: Event) -> dict[str, Any]:
    """Return the event as a JSON-able mapping with its kind under ``event``."""
    return {"event": type(event).__name__, **dataclasses.asdict(event)}


def from_json(value: Mapping[str, Any]) -> Event:
    """Return the event that ``to_json`` described."""
    fields = dict(value)
    event: Event = _KINDS[fields.pop("event")](**fields)
    return event


def ignore(event: Event) -> None:
    """Observe nothing: the default hook."""
    del event


def fan_out(*hooks: Hook) -> Hook:
    """Return one hook that calls each of ``hooks`` in order."""

    def call(event: Event) -> None:
        for hook in hooks:
            hook(event)

    return call
