"""Tasks that tests put into the cage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path, PurePosixPath

from engine.errors import LearningError
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult

_HELD = "[b'\\x01' * 2**24 for _ in range({steps})]"  # in steps: a host may refuse what is asked of it at once


def allocate(task: Task, scope: Scope) -> TaskResult:
    held = []
    for step in range(int(task.inputs["mib"]) // 16):
        held.append(b"\x01" * (16 * 2**20))
        scope.progress(16 * (step + 1), task.inputs["mib"], "MiB")
    return TaskResult(task=task.name, outputs={"held": len(held)})


def allocate_in_grandchild(task: Task, scope: Scope) -> TaskResult:
    code = f"import time; held = {_HELD.format(steps=task.inputs['mib'] // 16)}; time.sleep(2)"
    subprocess.run([sys.executable, "-c", code], check=False)
    time.sleep(60)  # if it is killed, so is this
    return TaskResult(task=task.name, outputs={})


def environment(task: Task, scope: Scope) -> TaskResult:
    return TaskResult(task=task.name, outputs={name: os.environ.get(name) for name in task.inputs["names"]})


def allocate_in_orphan(task: Task, scope: Scope) -> TaskResult:
    """Hold memory in a process of another session whose own parent has gone."""
    says, held = task.inputs["says"], _HELD.format(steps=task.inputs["mib"] // 16)
    code = f"import os, time; print(os.getpid(), file=open({says!r}, 'w')); held = {held}; time.sleep(60)"
    command = [sys.executable, "-c", code]
    between = f"import subprocess; subprocess.Popen({command!r}, start_new_session=True)"
    subprocess.run([sys.executable, "-c", between], check=True)
    time.sleep(float(task.inputs["seconds"]))
    return TaskResult(task=task.name, outputs={})


def batch_bytes(task: Task, scope: Scope) -> TaskResult:
    if scope.budget.batch_bytes > int(task.inputs["fits"]):
        return allocate(Task(task.stage, task.name, task.function, {"mib": 2048}), scope)
    return TaskResult(task=task.name, outputs={"batch_bytes": scope.budget.batch_bytes}, rows_in=7)


def hold_batches(task: Task, scope: Scope) -> TaskResult:
    """Hold a batch of as many rows as the budget allows, each of so many MiB though it is said to be of one."""
    rows = min(int(task.inputs["rows"]), scope.budget.batch_bytes // (scope.budget.allowed_bytes // 64 // 64))
    scope.batch_done(rows // 2, rows // 2 * 2**17)
    held = []
    for _ in range(rows // 2 * int(task.inputs["row_mib"])):
        held.append(b"\x01" * 2**20)
    time.sleep(0.1)  # long enough to be seen
    for _ in range(rows // 2 * int(task.inputs["row_mib"])):
        held.append(b"\x01" * 2**20)
    return TaskResult(task=task.name, outputs={"rows": rows})


def checkpointed(task: Task, scope: Scope) -> TaskResult:
    done = list(scope.resume["done"]) if scope.resume is not None else []
    began_at = len(done)
    for step in range(began_at, int(task.inputs["steps"])):
        if step == int(task.inputs["fails_at"]) and scope.resume is None:
            return allocate(Task(task.stage, task.name, task.function, {"mib": 2048}), scope)
        done.append(step)
        scope.checkpoint({"done": done})
    return TaskResult(task=task.name, outputs={"done": done, "began_at": began_at})


def raise_ours(task: Task, scope: Scope) -> TaskResult:
    raise LearningError("no positives", hint="label some", details={"rows": 3})


def raise_other(task: Task, scope: Scope) -> TaskResult:
    raise ZeroDivisionError("by nought")


def die(task: Task, scope: Scope) -> TaskResult:
    os.kill(os.getpid(), signal.SIGSEGV)
    return TaskResult(task=task.name, outputs={})


def fill_disk(task: Task, scope: Scope) -> TaskResult:
    with open("/dev/full", "wb") as sink:
        sink.write(b"x" * 2**20)
    return TaskResult(task=task.name, outputs={})


def die_of_a_signal_without_a_name(task: Task, scope: Scope) -> TaskResult:
    os.kill(os.getpid(), signal.SIGRTMIN + 6)
    return TaskResult(task=task.name, outputs={})


def leave_the_pipe_to_another(task: Task, scope: Scope) -> TaskResult:
    if os.fork() == 0:
        time.sleep(30)
        os._exit(0)
    os._exit(3)


def start_a_session(task: Task, scope: Scope) -> TaskResult:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
    process.returncode = 0  # it is left behind on purpose: no warning
    return TaskResult(task=task.name, outputs={"pid": process.pid})


def count_in_numpy(task: Task, scope: Scope) -> TaskResult:
    import numpy as np

    scope.batch_done(np.int64(3), np.int64(5))  # type: ignore[arg-type]
    outputs = {"share": np.float32(0.5), "rows": np.int64(7)}
    return TaskResult(task=task.name, outputs=outputs, rows_in=np.int32(11))  # type: ignore[arg-type]


def sleep(task: Task, scope: Scope) -> TaskResult:
    scope.progress(0, 1, str(os.getpid()))
    time.sleep(float(task.inputs["seconds"]))
    return TaskResult(task=task.name, outputs={})


def pandas_through_arrow(task: Task, scope: Scope) -> TaskResult:
    """Say whether Arrow brought pandas along, and that both work together where a pipeline's own code imports it."""
    import polars as pl
    import pyarrow as pa

    pa.scalar(1)
    pl.DataFrame({"a": [1.0]}).to_arrow()
    alone = "pandas" in sys.modules
    import pandas as pd

    times = pa.array(pd.Series(pd.to_datetime(["2026-01-01", None]).tz_localize("UTC")))
    return TaskResult(task=task.name, outputs={"imported": alone, "nulls": times.null_count})


def read_file(task: Task, scope: Scope) -> TaskResult:
    """Fill the group with page cache, and wait for whoever ends this process: the kernel's first choice."""
    with open(str(task.inputs["path"]), "rb") as file:
        while file.read(2**20):
            pass
    Path("/proc/self/oom_score_adj").write_text("1000")
    events = Path("/sys/fs/cgroup", *_own_group().parts[1:], "memory.events").read_text().split()
    scope.progress(0, 1, str(os.getpid()))
    time.sleep(float(task.inputs.get("seconds", 0)))
    return TaskResult(task=task.name, outputs=dict(zip(events[::2], map(int, events[1::2]), strict=True)))


def _own_group() -> PurePosixPath:
    return PurePosixPath(Path("/proc/self/cgroup").read_text().strip().removeprefix("0::"))
