"""Backs off before the cage has to act: batches stop growing, then shrink, then prefetch waits. In the child."""

from __future__ import annotations

import ctypes
import gc
import sys
import time
from collections.abc import Callable

from engine.memory.budget import LEAST_BATCH, Budget
from engine.memory.measure import measure_self

TARGET, SHRINK, PAUSE, TERMINATE = 0.60, 0.70, 0.80, 0.95
"""Thresholds, as fractions of allowed less reserved; terminate, the parent's, is one of allowed."""

_LEVELS = ("none", "target", "shrink", "pause")
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGEST_MMAP_THRESHOLD = 32 * 2**20  # it takes
_WAIT_SECONDS = 2.0
_STILL_SECONDS = 0.25
_LOOK_EVERY_SECONDS = 0.05
_RELEASE_EVERY_BYTES, _LEAST_RELEASE_BYTES = 64 * 2**20, 8 * 2**20  # of batches that have passed
_MOST_FREED_BYTES = 16 * 2**20


class PressureState:
    """The level of pressure with hysteresis: each level is left only below the threshold under its own. Pure.

    Parameters
    ----------
    reserved_bytes, allowed_bytes
        The thresholds lie between them.
    """

    def __init__(self, *, reserved_bytes: int, allowed_bytes: int) -> None:
        self.room_bytes = max(1, allowed_bytes - reserved_bytes)
        self.untidy_bytes = reserved_bytes + self.room_bytes // 3
        self.half_bytes = reserved_bytes + self.room_bytes // 2
        self._bounds = [int(reserved_bytes + self.room_bytes * share) for share in (TARGET, SHRINK, PAUSE)]
        self.level = 0

    @property
    def target_bytes(self) -> int:
        """The lowest threshold."""
        return self._bounds[0]

    def update(self, measured_bytes: int) -> int:
        """Return the level, 0 (none) to 3 (pause), at this measure."""
        reached = sum(measured_bytes >= bound for bound in self._bounds)
        if reached > self.level:
            self.level = reached
        while self.level and measured_bytes < self._bounds[max(0, self.level - 2)]:
            self.level -= 1
            if self.level == 1 and measured_bytes >= self._bounds[0]:
                break
        return self.level


class Governor:
    """What a stage asks before each batch: how large it may be, and whether to go on.

    Parameters
    ----------
    budget
        Allowed bytes, and the batch to begin with.
    reserved_bytes
        Of this process, measured after its imports.
    on_pressure
        Told of each new level with the measure.
    """

    def __init__(
        self, budget: Budget, *, reserved_bytes: int, on_pressure: Callable[[str, int], None] = lambda level, size: None
    ) -> None:
        self._state = PressureState(reserved_bytes=reserved_bytes, allowed_bytes=budget.allowed_bytes)
        self._most = self._batch = budget.batch_bytes
        self._on_pressure = on_pressure
        self._looked = 0.0
        self._measured = 0
        self._new = False  # a look that no batch has followed yet
        self._stuck = 0  # what the last wait could not get below
        self._passed = 0  # bytes of batches since memory was given back
        self._held = reserved_bytes  # after that

    def batch_bytes(self) -> int:
        """Return the upper bound of the next batch: halved after a look above shrink, doubled after a calm one.

        Once a look, not once a call: small batches come faster than looks, and a few of them would otherwise take the
        bound to its least, or back to its most, on the word of one measure.
        """
        level = self._look()
        if not self._new:
            return self._batch
        self._new = False
        if level >= 2:
            self._batch = max(min(LEAST_BATCH, self._most), self._batch // 2)
        elif level == 0:
            self._batch = min(self._most, self._batch * 2)
        return self._batch

    def wait(self) -> None:
        """Return at once, or, in pause, once the measure is below *target*, or no longer falls.

        What one thread waits for, nothing else may free: after a quarter of a second without a new low, or two seconds
        in all, it goes on, and the cage is what holds the budget. What did not fall then is not waited for before each
        batch that follows: only once the measure has grown by another sixteenth of the room is it worth another wait.
        """
        if self._look() < 3:
            self._stuck = 0
            return
        if self._measured < self._stuck + self._state.room_bytes // 16:
            return
        started = fell = time.monotonic()
        lowest = self._measured
        while self._measured >= self._state.target_bytes:
            release_pools()
            time.sleep(_LOOK_EVERY_SECONDS)
            self._look(force=True)
            now = time.monotonic()
            if self._measured < lowest:
                lowest, fell = self._measured, now
            if now - fell > _STILL_SECONDS or now - started > _WAIT_SECONDS:
                self._stuck = lowest
                return

    def passed(self, size_bytes: int) -> None:
        """Count a batch that is done with; give unused memory back once in 64 MiB, or as 16 MiB more are held.

        What was freed in pieces the C library keeps: 30 to 50 MiB after some million rows, and the longer a task, the
        nearer it comes to that. Each time takes 2 ms and as much again to fill the pages anew, so that after every
        16 MiB, whatever is held, extraction from PostgreSQL is slower by a fortieth.
        """
        self._passed += size_bytes
        if self._passed < _LEAST_RELEASE_BYTES:
            return
        grown = measure_self().counted_bytes - self._held
        if grown >= _MOST_FREED_BYTES or self._passed >= _RELEASE_EVERY_BYTES:
            self._passed = 0
            release_pools()
            self._held = measure_self().counted_bytes

    def step_done(self) -> None:
        """Give unused memory back where a third of the room is held, after a step that has freed what it took.

        What one step leaves in pieces is else beside what the next one takes, and more of it after each. Where there is
        room, it stays: to have the same pages cleared again took a fifth of 10 s.
        """
        if measure_self().counted_bytes >= self._state.untidy_bytes:
            release_pools()

    def part_done(self) -> None:
        """Give unused memory back where half of the room is held, within a step, after a part that freed something.

        Parts of several steps run at once. What is given back between steps alone leaves the largest of a hundred steps
        a tenth above what the first ones take.
        """
        if measure_self().counted_bytes >= self._state.half_bytes:
            release_pools()

    def _look(self, *, force: bool = False) -> int:
        now = time.monotonic()
        if not force and now - self._looked < _LOOK_EVERY_SECONDS:
            return self._state.level
        self._looked = now
        self._new = True
        measured = self._measured = measure_self().counted_bytes
        before = self._state.level
        level = self._state.update(measured)
        if level != before:
            self._on_pressure(_LEVELS[level], measured)
            if level >= 2:
                release_pools()
        return level


def keep_freed(most_bytes: int) -> None:
    """Let the C library keep freed memory up to so much, and use it again, instead of asking the system each time.

    A task whose arrays come and go by the megabyte otherwise spends a third of its time on pages that the kernel
    clears for it: measured, 15 of 47 CPU seconds.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_TRIM_THRESHOLD, most_bytes)
        libc.mallopt(_MMAP_THRESHOLD, min(most_bytes, _LARGEST_MMAP_THRESHOLD))
    except (OSError, AttributeError):
        return  # not glibc: its allocator has no such call


def release_pools() -> None:
    """Give unused memory of Python, Arrow and the C library back to the system."""
    gc.collect()
    if arrow := sys.modules.get("pyarrow"):  # to import it here would take memory where there is none
        arrow.default_memory_pool().release_unused()
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    except (OSError, AttributeError):
        return  # not glibc: its allocator has no such call
