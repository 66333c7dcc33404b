"""Tasks that are stopped at their budget where a test wants it: they run in this process, in the cage's place."""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping
from typing import Any

import pytest

from engine import stage
from engine.errors import MemoryBudgetExceeded
from engine.memory.budget import ATTEMPTS, Budget
from engine.memory.governor import Governor
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult
from engine.stage import StageContext


class _Stopped(Exception):
    pass


class Stops:
    """Runs tasks as the cage does, and ends the running one each time that so many checkpoints were made in all."""

    def __init__(self, *after: int) -> None:
        self._after = list(after)
        self.checkpoints = 0
        self.tries = 0

    def run_task(self, task: Task, context: StageContext, *, projection: Projection) -> TaskResult:
        """Take the place of ``engine.stage.run_task``."""
        module, name = task.function.split(":")
        function = getattr(importlib.import_module(module), name)
        checkpoint: Mapping[str, Any] | None = None

        def keep(value: Mapping[str, Any]) -> None:
            nonlocal checkpoint
            checkpoint = json.loads(json.dumps(value))
            self.checkpoints += 1
            if self._after and self.checkpoints == self._after[0]:
                self._after.pop(0)
                raise _Stopped

        for _ in range(1 if projection.row_term else ATTEMPTS):
            budget = Budget(2**34, batch_bytes=64 * 1024)  # this process is larger than a child
            scope = Scope(
                task.stage,
                task.name,
                context.for_child(),
                budget,
                Governor(budget, reserved_bytes=0),
                lambda _: None,
                time.monotonic(),
                keep,
                resume=checkpoint,
            )
            self.tries += 1
            try:
                result: TaskResult = function(task, scope)
            except _Stopped:
                continue
            return result
        details = {"stage": task.stage, "task": task.name, "checkpoint": checkpoint}
        raise MemoryBudgetExceeded("stopped by a test", details=details)


def stop(monkeypatch: pytest.MonkeyPatch, *after: int) -> Stops:
    """Let tasks run in this process from here on, and be stopped after these checkpoints."""
    stops = Stops(*after)
    monkeypatch.setattr(stage, "run_task", stops.run_task)
    return stops
