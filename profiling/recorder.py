"""Records a run's events as one JSON line each, so that a run that is killed leaves what it saw. Reading them is here
too.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from engine import events

FILE = "events.ndjson"


@dataclass
class TaskRecording:
    """What was seen of one task; times are seconds since the recording began."""

    stage: str
    task: str
    began: float
    allowed_bytes: int
    enforced_by: str
    samples: list[tuple[float, int]] = field(default_factory=list)  # measured bytes
    batches: list[tuple[float, int, int]] = field(default_factory=list)  # rows, bytes
    chunks: list[tuple[float, str, int]] = field(default_factory=list)  # path, rows
    pressures: list[tuple[float, str]] = field(default_factory=list)  # level
    notes: list[str] = field(default_factory=list)
    outcome: str = "running"
    ended: float | None = None
    reserved_bytes: int = 0
    projected_bytes: int = 0
    measured_bytes: int = 0

    @property
    def peak(self) -> tuple[float, int]:
        """When the measure was highest, and how high."""
        best = max(self.samples, key=lambda sample: sample[1], default=(self.began, 0))
        return (best[0], max(best[1], self.measured_bytes))

    @property
    def seconds(self) -> float:
        """How long it ran, as far as was seen."""
        last = self.ended if self.ended is not None else max((when for when, _ in self.samples), default=self.began)
        return last - self.began


class Recorder:
    """A hook that appends every event to ``events.ndjson``.

    Parameters
    ----------
    directory
        Made when missing.
    """

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / FILE
        self._began = time.monotonic()
        self._file = open(self.path, "a", buffering=1, encoding="utf-8")  # noqa: SIM115 - it lives as long as the hook

    def __call__(self, event: events.Event) -> None:
        """Write one event with the time since the recording began."""
        line = {"at": round(time.monotonic() - self._began, 4), **events.to_json(event)}
        self._file.write(json.dumps(line) + "\n")

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def read_recording(path: Path) -> tuple[TaskRecording, ...]:
    """Return the tasks of a recording, in the order in which they began; a last line that was cut off is left out.

    Parameters
    ----------
    path
        The file, or the directory that holds it.

    Raises
    ------
    FileNotFoundError
        There is none.
    """
    file = path / FILE if path.is_dir() else path
    tasks: list[TaskRecording] = []
    for text in file.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            break  # the run was killed while it wrote this line
        at = float(value.pop("at"))
        _add(tasks, at, events.from_json(value))
    return tuple(tasks)


def _add(tasks: list[TaskRecording], at: float, event: events.Event) -> None:
    if isinstance(event, events.TaskStarted):
        tasks.append(TaskRecording(event.stage, event.task, at, event.allowed_bytes, event.enforced_by))
        return
    mine = _current(tasks, event.stage, event.task)
    if mine is None:
        return
    if isinstance(event, events.MemorySample):
        mine.samples.append((at, event.measured_bytes))
    elif isinstance(event, events.BatchDone):
        mine.batches.append((at, event.rows, event.bytes))
    elif isinstance(event, events.ChunkWritten):
        mine.chunks.append((at, event.path, event.rows))
    elif isinstance(event, events.Pressure):
        mine.pressures.append((at, event.level))
    elif isinstance(event, events.Note):
        mine.notes.append(event.message)
    elif isinstance(event, events.TaskEnded):
        mine.ended, mine.outcome, mine.measured_bytes = at, event.outcome, event.measured_bytes
        mine.reserved_bytes, mine.projected_bytes = event.reserved_bytes, event.projected_bytes


def _current(tasks: Sequence[TaskRecording], stage: str, task: str) -> TaskRecording | None:
    return next((one for one in reversed(tasks) if (one.stage, one.task) == (stage, task)), None)
