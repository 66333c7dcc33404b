"""Runs a task in a fresh child process that cannot pass its budget, and tells apart how it ended.

The group that enforces it is ``groups.py``, what samples it ``sampler.py``, what the child does ``child.py``. A child
that is stopped at its budget is tried again with smaller batches, from its last checkpoint where it made one; nothing
that it did is lost, since only whole files have their final names.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

from engine import events
from engine.errors import HeadraceError, MemoryBudgetExceeded, TaskCrashed, from_json
from engine.memory.budget import ATTEMPTS, Budget
from engine.memory.governor import TARGET, TERMINATE
from engine.memory.groups import MemoryGroup, memory_group
from engine.memory.measure import end_tree
from engine.memory.sampler import SAMPLE_SECONDS, Sampler
from engine.refs import MemoryFigures, Task, TaskResult, to_json
from engine.units import format_bytes

_COPIES_OF_A_VALUE = 3.5  # its page, what it is decoded into while that doubles, and the column it becomes
_MOST_SUGGESTED = 4  # times the budget: a large column is mostly one of many rows
_SAMPLE_EVENT_SECONDS = 0.2
_STDERR_LINES = 30


def run_caged(
    task: Task,
    *,
    context: Mapping[str, Any],
    budget: Budget,
    projected_bytes: int = 0,
    hook: events.Hook = events.ignore,
    launcher: Sequence[str] = (),
    attempts: int = ATTEMPTS,
) -> TaskResult:
    """Run a task in a child of its own and return what it returned, with the four figures filled in.

    Parameters
    ----------
    task
        Its function is called as ``function(task, scope)`` and returns a TaskResult.
    context
        JSON for ``scope.context``; it crosses a pipe and is written nowhere.
    budget
        Enforced by a control group where one can be made (exact), else by sampling every 20 ms and killing at 0.95 of
        allowed (best effort); ``HEADRACE_CAGE=polling`` asks for the second.
    projected_bytes
        Of the plan, for the report.
    hook
        Observes the child's events; what it raises ends the child.
    launcher
        Prefix of the command line instead of this interpreter; for profiling.
    attempts
        How often a task that is stopped at its budget is begun: with batches of as many rows as would fit by the bytes
        that a row was seen to take, a half, a 16th and a 256th of the first ones at most, and one row at last.

    Raises
    ------
    MemoryBudgetExceeded
        Each attempt was stopped at the budget.
    TaskCrashed
        The child ended by a signal or by an error that is not ours.
    HeadraceError
        Any of our tree that the task raised.

    Notes
    -----
    However this ends, no process and no control group is left; a child whose parent is killed dies with it. Processes
    that a task starts itself (none of ours does) are not killed with their grandparent.
    """
    first, resume = budget, None
    for attempt in range(1, attempts + 1):
        child = _Child(task, context, budget, projected_bytes, hook, launcher, resume)
        try:
            return dataclasses.replace(child.run(), attempts=attempt)
        except MemoryBudgetExceeded as error:
            if attempt == attempts:
                error.details["attempts"] = attempt
                raise
            resume = child.checkpoint
            budget = first.for_attempt(attempt + 1, fitting_bytes=child.fitting_batch_bytes())
            since = "its last written chunk" if resume is not None else "its start"
            text = f"stopped at its budget; again from {since} with batches of {format_bytes(budget.batch_bytes)}"
            hook(events.Note(task.stage, task.name, text))
    raise ValueError(f"attempts is {attempts}; it is at least 1")


class _Child:
    """One attempt."""

    def __init__(
        self,
        task: Task,
        context: Mapping[str, Any],
        budget: Budget,
        projected_bytes: int,
        hook: events.Hook,
        launcher: Sequence[str],
        resume: Mapping[str, Any] | None,
    ) -> None:
        self._task = task
        self._payload = {
            "task": to_json(task),
            "context": dict(context),
            "budget": budget.to_json(),
            "resume": resume,
        }
        self.checkpoint = resume
        self._budget = budget
        self._projected = projected_bytes
        self._hook = hook
        self._launcher = list(launcher) or [sys.executable]
        self._started = time.monotonic()
        self._peak = 0
        self._reserved = 0
        self._timeline: list[list[float]] = []  # pairs of seconds and bytes
        self._told_seconds = -1.0
        self._told_bytes = 0
        self._answer: dict[str, Any] | None = None
        self._buffer = b""
        self._place = ""  # what it was about to read
        self._column_bytes = 0  # of the largest column there
        self._batch_rows = 0  # of the largest batch that went through
        self._batch_bytes = 0
        self._filled = False  # its group, which the kernel therefore stopped
        self._killed_from_outside = False  # by the kernel, though the group had room

    def fitting_batch_bytes(self) -> int | None:
        """Return the batch that would stay below *target* by the bytes that each of its rows was seen to take."""
        if not self._batch_rows or not self._reserved:
            return None
        held = self._budget.allowed_bytes if self._filled else self._peak  # a kill may come between two samples
        row_bytes = (held - self._reserved) / self._batch_rows
        room = TARGET * (self._budget.allowed_bytes - self._reserved)
        return int(room / row_bytes * self._batch_bytes / self._batch_rows) if row_bytes > 0 and room > 0 else 1

    def run(self) -> TaskResult:
        with memory_group(self._budget.allowed_bytes) as group, tempfile.TemporaryFile() as output:
            enforced_by = group.kind if group else "polling"
            stage, name = self._task.stage, self._task.name
            self._hook(events.TaskStarted(stage, name, self._budget.allowed_bytes, enforced_by))
            outcome = "failed"
            with self._process(group, output) as process:
                with Sampler(process.pid, started=self._started, stop_at_bytes=self._stop_at(group)) as sampler:
                    self._send(process)  # the task begins with this, so no moment of it goes unseen
                    self._watch(process, sampler, group)
                self._peak = max(self._peak, sampler.peak.counted_bytes if sampler.peak else 0)
                self._timeline = [[sample.seconds, sample.counted_bytes] for sample in sampler.timeline]
                code = process.wait()
                if group is not None and group.kills() > 0:
                    self._filled = group.was_full()
                    self._killed_from_outside = not self._filled
                killed = sampler.stopped or self._filled
            try:
                result = self._conclude(code, killed=killed, enforced_by=enforced_by, output=output)
                outcome = "ok"
            except MemoryBudgetExceeded:
                outcome = "killed"
                raise
            finally:
                figures = (self._peak, self._seconds(), self._reserved, self._projected)
                self._hook(events.TaskEnded(stage, name, outcome, *figures))
            return result

    def _stop_at(self, group: MemoryGroup | None) -> float | None:
        """Return the measure at which the sampler stops the child, None where the kernel holds all of it."""
        if group is None:
            return TERMINATE * self._budget.allowed_bytes
        return None if group.bounds_swap else self._budget.allowed_bytes + 1  # what swap takes it beyond that

    @contextlib.contextmanager
    def _process(self, group: MemoryGroup | None, output: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
        command = [*self._launcher, "-m", "engine.memory.child"]
        if group is not None:
            # The shell joins the group before it becomes the child, so that every page is charged to it.
            command = ["/bin/sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group.path / "cgroup.procs"), *command]
        reading, writing = os.pipe()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=_environment(self._budget, events_fd=writing),
                pass_fds=(writing,),
                start_new_session=True,
            )
        except BaseException:  # no process, so that nobody would close it
            os.close(reading)
            raise
        finally:
            os.close(writing)
        self._reading = reading
        try:
            yield process
        finally:
            if process.poll() is None:
                end_tree(process.pid)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            os.close(reading)

    def _send(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError), process.stdin as pipe:  # it has died: its exit code says how
                pipe.write(json.dumps(self._payload, default=str).encode())

    def _watch(self, process: subprocess.Popen[bytes], sampler: Sampler, group: MemoryGroup | None) -> None:
        """Pass events on until the child has ended; its pipe may outlive it, in the hands of a process it started.

        Where the kernel killed one of its processes alone, as version 1 does, the others are ended, too.
        """
        os.set_blocking(self._reading, False)
        with selectors.DefaultSelector() as selector:
            selector.register(self._reading, selectors.EVENT_READ)
            while process.poll() is None:
                if selector.select(SAMPLE_SECONDS) and not self._read():
                    selector.unregister(self._reading)  # it has closed its end; from here on this only waits
                self._tell(sampler)
                if group is not None and group.kills():
                    end_tree(process.pid)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        with contextlib.suppress(BlockingIOError):  # empty, and still held by another
            while self._read():
                continue
        self._tell(sampler)

    def _tell(self, sampler: Sampler) -> None:
        """Pass a sample on: each new peak, and one every fifth of a second."""
        last, peak = sampler.last, sampler.peak
        if last is None or peak is None:
            return
        self._peak = max(self._peak, peak.counted_bytes)
        higher = peak.counted_bytes > self._told_bytes
        sample = peak if higher else last
        if higher or sample.seconds - self._told_seconds >= _SAMPLE_EVENT_SECONDS:
            self._told_seconds = sample.seconds
            self._told_bytes = max(self._told_bytes, sample.counted_bytes)
            stage, name = self._task.stage, self._task.name
            self._hook(events.MemorySample(stage, name, sample.counted_bytes, sample.file_bytes, sample.seconds))

    def _read(self) -> bool:
        """Take what the pipe has; return whether it is still open."""
        data = os.read(self._reading, 1 << 16)
        self._buffer += data
        *lines, self._buffer = self._buffer.split(b"\n")
        for line in lines:
            value = json.loads(line)
            if "event" in value:
                event = events.from_json(value)
                if isinstance(event, events.BatchDone) and event.bytes >= self._batch_bytes:
                    self._batch_rows, self._batch_bytes = event.rows, event.bytes
                self._hook(event)
            elif "checkpoint" in value:
                self.checkpoint = value["checkpoint"]
            elif "place" in value:
                self._place, self._column_bytes = value["place"], int(value["column_bytes"])
            elif "reserved" in value:
                self._reserved = int(value["reserved"])
            else:
                self._answer = value
        return bool(data)

    def _conclude(self, code: int, *, killed: bool, enforced_by: str, output: IO[bytes]) -> TaskResult:
        answer = self._answer
        if answer is not None and "result" in answer:
            result = TaskResult.from_json(answer["result"])
            peak = max(self._peak, int(answer["measured"]))
            allowed = self._budget.allowed_bytes
            memory = MemoryFigures(allowed, self._reserved, self._projected, peak, enforced_by)
            self._peak = peak
            return dataclasses.replace(result, seconds=round(self._seconds(), 3), memory=memory)
        if killed or (answer is not None and answer.get("out_of_memory")):
            raise self._exceeded(enforced_by)
        if answer is not None and "ours" in answer:
            raise from_json(answer["ours"])
        output.seek(0)
        tail = output.read().decode(errors="replace").splitlines()[-_STDERR_LINES:]
        raise self._crashed(code, answer, tail)

    def _exceeded(self, enforced_by: str) -> HeadraceError:
        allowed, task = self._budget.allowed_bytes, self._task
        where = f" while it read {self._place}" if self._place else ""
        # What it would have taken nobody has seen: a half more, or what the plan had thought, rounded up; more where
        # the file says that one value may be so large.
        least, most = max(self._projected, self._peak, allowed) * 3 // 2, _MOST_SUGGESTED * allowed
        one_value = self._reserved + int(_COPIES_OF_A_VALUE * self._column_bytes)
        needed = -(-max(least, min(one_value, most)) // 2**20) * 2**20
        return MemoryBudgetExceeded(
            f"{task.stage} {task.name} was stopped at its memory budget{where}: measured {format_bytes(self._peak)} "
            f"of {format_bytes(allowed)} allowed (enforced by {enforced_by})",
            hint=f"it takes more than that: try --memory {needed // 2**20}MiB (resources.memory); what was committed "
            "stays and the next run goes on",
            details={
                "stage": task.stage,
                "task": task.name,
                "allowed_bytes": allowed,
                "measured_bytes": self._peak,
                "suggested_budget_bytes": needed,
                "place": self._place,
                "enforced_by": enforced_by,
                "timeline": self._timeline,
                "checkpoint": self.checkpoint,
            },
        )

    def _crashed(self, code: int, answer: Mapping[str, Any] | None, tail: list[str]) -> HeadraceError:
        task = self._task
        hint = "this is a fault of the program or of its surroundings; --json shows where. Run again to go on"
        if answer is not None:
            what = f"{answer['type']}: {answer['text']}"
            tail = list(answer["traceback"])
        elif self._killed_from_outside:
            what = "killed by the kernel for want of memory outside of this task's budget"
            hint = "leave the host, or the group that all of this runs in, more room; run again to go on"
        elif code < 0:
            what = f"ended by {_signal_name(-code)}"
        else:
            what = f"exit code {code}"
        return TaskCrashed(
            f"{task.stage} {task.name} crashed: {what}",
            hint=hint,
            details={"stage": task.stage, "task": task.name, "exit_code": code, "output": tail},
        )

    def _seconds(self) -> float:
        return round(time.monotonic() - self._started, 3)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # most real-time signals have none
        return f"signal {number}"


def _environment(budget: Budget, *, events_fd: int) -> dict[str, str]:
    """Return the child's environment: allocators and threads have to be set before it starts."""
    threads = str(budget.threads)
    path = [entry for entry in sys.path if entry] + [os.environ.get("PYTHONPATH", "")]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(entry for entry in dict.fromkeys(path) if entry),
        "HEADRACE_EVENTS_FD": str(events_fd),
        "HEADRACE_PARENT": str(os.getpid()),
        "ARROW_DEFAULT_MEMORY_POOL": "system",  # glibc gives back what malloc_trim asks for, and memray sees it
        "MALLOC_ARENA_MAX": "2",
        "MALLOC_TRIM_THRESHOLD_": "1048576",
        "MALLOC_MMAP_THRESHOLD_": "1048576",
        "_RJEM_MALLOC_CONF": "dirty_decay_ms:500,muzzy_decay_ms:500,narenas:2",
        "POLARS_MAX_THREADS": threads,
        "TOKIO_WORKER_THREADS": threads,  # those of Delta's library: one for each processor otherwise
        "OMP_NUM_THREADS": threads,
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin take the processor from those they wait for on a busy host
        "OPENBLAS_NUM_THREADS": "1",  # nothing here multiplies matrices, and its threads spin while they wait
        "PYTHONHASHSEED": "0",
        "PYDANTIC_DISABLE_PLUGINS": "__all__",  # to look for them takes each child 20 ms
    }
