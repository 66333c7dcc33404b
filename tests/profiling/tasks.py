"""Tasks that tests profile."""

from __future__ import annotations

import time

from engine.memory.scope import Scope
from engine.refs import Task, TaskResult

MIB = 2**20
_KEPT: list[bytearray] = []


def allocate(task: Task, scope: Scope) -> TaskResult:
    held = []
    for step in range(int(task.inputs["mib"]) // 16):
        held.append(bytearray(b"\x01") * (16 * MIB))
        scope.progress(16 * (step + 1), task.inputs["mib"], "MiB")
    time.sleep(0.3)  # long enough for the cage to look
    return TaskResult(task=task.name, outputs={"held": len(held)})


def keep(task: Task, scope: Scope) -> TaskResult:
    _KEPT.append(bytearray(b"\x01") * (int(task.inputs["mib"]) * MIB))
    return TaskResult(task=task.name, outputs={})
