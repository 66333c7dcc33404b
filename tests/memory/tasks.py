"""Tasks that tests put into the cage."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from engine.errors import LearningError
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult


def allocate(task: Task, scope: Scope) -> TaskResult:
    held = []
    for step in range(int(task.inputs["mib"]) // 16):
        held.append(b"\x01" * (16 * 2**20))
        scope.progress(16 * (step + 1), task.inputs["mib"], "MiB")
    return TaskResult(task=task.name, outputs={"held": len(held)})


def allocate_in_grandchild(task: Task, scope: Scope) -> TaskResult:
    code = f"import time; held = b'\\x01' * ({task.inputs['mib']} * 2**20); time.sleep(2)"
    done = subprocess.run([sys.executable, "-c", code], check=False)
    if done.returncode:
        time.sleep(5)  # it was killed in our place: let the cage see that
        raise MemoryError
    return TaskResult(task=task.name, outputs={})


def batch_bytes(task: Task, scope: Scope) -> TaskResult:
    if scope.budget.batch_bytes > int(task.inputs["fits"]):
        return allocate(Task(task.stage, task.name, task.function, {"mib": 2048}), scope)
    return TaskResult(task=task.name, outputs={"batch_bytes": scope.budget.batch_bytes}, rows_in=7)


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


def sleep(task: Task, scope: Scope) -> TaskResult:
    scope.progress(0, 1, str(os.getpid()))
    time.sleep(float(task.inputs["seconds"]))
    return TaskResult(task=task.name, outputs={})
