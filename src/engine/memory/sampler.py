"""Samples the measure of a child's process tree in a thread of its own, and stops the child where no group does.

A thread, since the cage's own calls hooks: one that waits for a server must not suspend the budget. What is done with
the samples is in ``cage.py``.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from engine.memory.measure import end_tree, measure_tree

SAMPLE_SECONDS = 0.02
_TIMELINE = 50  # the last samples, that an error carries


@dataclass(frozen=True)
class Sample:
    """The measure at one moment."""

    seconds: float  # since the task began
    counted_bytes: int
    file_bytes: int


class Sampler:
    """Samples every 20 ms between entry and exit, whatever its user is doing meanwhile.

    Parameters
    ----------
    pid
        The child; it leads its process group.
    started
        ``time.monotonic()`` when the task began.
    stop_at_bytes
        Kill the child's process tree at this measure; None where a control group enforces the budget.
    """

    def __init__(self, pid: int, *, started: float, stop_at_bytes: float | None) -> None:
        self._pid = pid
        self._started = started
        self._stop_at = stop_at_bytes
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"headrace-sampler-{pid}", daemon=True)
        self._failure: Exception | None = None
        self.timeline: deque[Sample] = deque(maxlen=_TIMELINE)
        self.last: Sample | None = None
        self.peak: Sample | None = None
        self.stopped = False  # by us, at the budget

    def __enter__(self) -> Self:
        self._look()  # there is always one sample, however soon the child ends
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        if self._failure is None:
            return
        if error is None:
            raise self._failure
        error.add_note(f"and its memory could not be sampled: {self._failure!r}")

    def _run(self) -> None:
        try:
            while not self.stopped and not self._ended.is_set():
                self._look()
                self._ended.wait(SAMPLE_SECONDS)
        except Exception as error:  # raised by ``__exit__``, in the thread that can tell somebody
            self._failure = error
            self._kill()  # nobody would enforce its budget

    def _look(self) -> None:
        measure = measure_tree(self._pid)
        if not measure.counted_bytes:
            return  # it has just ended
        seconds = round(time.monotonic() - self._started, 3)
        sample = Sample(seconds, measure.counted_bytes, measure.file_bytes)
        self.timeline.append(sample)
        self.last = sample
        if self.peak is None or sample.counted_bytes > self.peak.counted_bytes:
            self.peak = sample
        if self._stop_at is not None and sample.counted_bytes >= self._stop_at:
            self.stopped = True
            self._kill()

    def _kill(self) -> None:
        end_tree(self._pid)
