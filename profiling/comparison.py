"""Two recordings side by side: peak and seconds by task."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from profiling.recorder import TaskRecording


@dataclass(frozen=True)
class Compared:
    """One kind of task in both recordings; None where one lacks it."""

    name: str  # the stage and what the task does, without its numbers
    peak_bytes: tuple[int | None, int | None]
    seconds: tuple[float | None, float | None]


def compare(before: Sequence[TaskRecording], after: Sequence[TaskRecording]) -> tuple[Compared, ...]:
    """Return the tasks of both, by what they do: several of one kind count with their highest peak and their sum of
    seconds.
    """
    one, two = _by_kind(before), _by_kind(after)
    return tuple(
        Compared(
            name,
            (one[name][0] if name in one else None, two[name][0] if name in two else None),
            (one[name][1] if name in one else None, two[name][1] if name in two else None),
        )
        for name in dict.fromkeys([*one, *two])
    )


def _by_kind(tasks: Sequence[TaskRecording]) -> dict[str, tuple[int, float]]:
    found: dict[str, tuple[int, float]] = {}
    for task in tasks:
        words = [word for word in task.task.split(".") if not word.isdigit() and not _is_hash(word)]
        name = " ".join([task.stage, *words])
        peak, seconds = found.get(name, (0, 0.0))
        found[name] = (max(peak, task.peak[1]), seconds + task.seconds)
    return found


def _is_hash(word: str) -> bool:
    return len(word) == 16 and all(letter in "0123456789abcdef" for letter in word)
