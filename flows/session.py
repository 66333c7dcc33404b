"""One flow run's hold on a pipeline: its file, its lock, its budget; each engine task becomes a Prefect task run.

Tasks take and return refs and persist nothing.
"""

from __future__ import annotations

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE

from engine import events
from engine.bundle import Bundle, spec_for
from engine.ledger import Ledger, trained
from engine.planning import require_fit
from engine.refs import StageReport, Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.specfile import load_spec
from engine.stage import Stage, StageContext, run_stage
from engine.stages.prepare import PrepareStage
from engine.units import format_bytes
from engine.upkeep import compact_tables
from flows.artifacts import ProgressArtifact
from flows.parameters import RunParameters
from flows.secrets import secret
from flows.tickets import memory_ticket

_LOCK_WAIT_SECONDS = 600.0  # a scheduled run that meets another one waits for it rather than fails

_observer: contextvars.ContextVar[events.Hook] = contextvars.ContextVar("observer", default=events.ignore)


@contextlib.contextmanager
def observing(hook: events.Hook) -> Iterator[None]:
    """Let ``hook`` see the events of flows that are called in this process; it is no parameter, since it is no data."""
    token = _observer.set(hook)
    try:
        yield
    finally:
        _observer.reset(token)


@task(cache_policy=NO_CACHE, persist_result=False, retries=0)
def engine_task(stage: str, name: str, call: Callable[[], TaskResult]) -> dict[str, Any]:
    """Run one engine task in its cage; what passes is the result's refs and counts."""
    result = call()
    get_run_logger().info(
        "%s %s: %s rows in, %s out, %.1f s, measured %s of %s",
        stage,
        name,
        f"{result.rows_in:,}",
        f"{result.rows_out:,}",
        result.seconds,
        format_bytes(result.memory.measured_bytes),
        format_bytes(result.memory.allowed_bytes),
    )
    return to_json(result)


def as_task_runs(calls: Sequence[Callable[[], TaskResult]], tasks: Sequence[Task]) -> list[TaskResult]:
    """Run each engine task as a Prefect task run, one after another: the budget is one task's."""
    out = []
    for call, unit in zip(calls, tasks, strict=True):
        named = engine_task.with_options(task_run_name=f"{unit.stage} {unit.name}")
        out.append(TaskResult.from_json(named(unit.stage, unit.name, call)))
    return out


@dataclasses.dataclass(frozen=True)
class Session:
    """An open pipeline; its stages write, so it holds the lock."""

    context: StageContext
    reports: dict[str, StageReport]

    def require_fit(self, *stages: str) -> None:
        """Raise before anything runs where the tasks of these stages do not fit the budget or the disk."""
        require_fit(self.context, stages=stages)

    def run(self, stage: Stage, *, spec: PipelineSpec | None = None) -> StageReport:
        """Run a stage to its end and keep its report; two runs of one stage add up."""
        context = self.context if spec is None else dataclasses.replace(self.context, spec=spec)
        report = run_stage(stage, context, execute=as_task_runs)
        before = self.reports.get(stage.name)
        self.reports[stage.name] = report if before is None else before.join(report)
        return report

    def prepare(self) -> None:
        """Prepare for the pipeline file and, where its features have changed, for the champion too."""
        self.run(PrepareStage())
        champion = Ledger(self.context.workspace).champion()
        facts = trained(Ledger(self.context.workspace).history(), champion.version) if champion else None
        if facts is not None and facts.details["feature_set"] != self.context.spec.feature_set:
            bundle = Bundle.load(self.context.workspace.root / facts.details["bundle"], model=False)
            self.run(PrepareStage(), spec=spec_for(bundle, self.context.spec))


@contextlib.contextmanager
def open_session(parameters: RunParameters) -> Iterator[Session]:
    """Open the pipeline of a flow run: file read and checked, workspace writable, lock and memory held.

    When its stages have ended without an error, tables that have come to many small chunks are compacted; the
    table ``runs`` says so, the flow's report does not.
    """
    path = Path(parameters.pipeline)
    spec = load_spec(path, secrets=secret)
    if parameters.memory is not None:
        spec = spec.with_memory(parameters.memory)
    progress = ProgressArtifact()
    context = StageContext.of(
        spec,
        directory=path.parent,
        as_of=parameters.as_of,
        hook=events.fan_out(_observer.get(), progress),
    )

    def waiting(message: str) -> None:
        get_run_logger().warning("waiting: %s", message)
        context.hook(events.Note("", "", f"waiting: {message}"))

    lock = context.workspace.lock(wait_seconds=_LOCK_WAIT_SECONDS, waiting=waiting)
    with lock, memory_ticket(context.budget.allowed_bytes, waiting=waiting), contextlib.ExitStack() as stack:
        if parameters.profile:
            from flows.recording import recorded

            context = stack.enter_context(recorded(context))
        yield Session(context=context, reports={})
        compact_tables(context, execute=as_task_runs)
