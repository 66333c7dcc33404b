"""The contract of a stage (plan, run, commit) and the one loop that drives every stage.

What each stage does is in ``stages/``; how a task is caged is ``memory/cage.py``. A Prefect flow passes its own
``execute``
and changes nothing else.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from engine import events
from engine.batching import Table, Workspace
from engine.batching.runs import record_runs
from engine.errors import HeadraceError, MemoryBudgetExceeded, PlanRefused
from engine.late_pandas import import_pandas_late
from engine.memory.budget import ATTEMPTS, Budget
from engine.memory.cage import run_caged
from engine.memory.host import auto_budget_bytes
from engine.memory.learned import Learned
from engine.memory.projection import Projection
from engine.refs import StageReport, Task, TaskResult, content_hash, to_json
from engine.spec import PipelineSpec
from engine.units import format_time, parse_time

_TIMES_DIVIDED = 5  # of one slice
_BEYOND = 1.25  # what is stopped at a budget would have taken more: how much more, nobody has seen


@dataclass(frozen=True)
class StageContext:
    """Everything a stage may know, in the parent."""

    spec: PipelineSpec
    workspace: Workspace
    as_of: datetime  # the run's clock: what is known later does not exist
    directory: Path  # of the pipeline file, where its transform is looked for
    budget: Budget
    hook: events.Hook = events.ignore
    # the prefix of a task's command line, for profiling; empty for plain Python
    launcher: Callable[[Task], Sequence[str]] = lambda task: ()

    @classmethod
    def of(
        cls,
        spec: PipelineSpec,
        *,
        directory: Path,
        as_of: datetime | None = None,
        hook: events.Hook = events.ignore,
        launcher: Callable[[Task], Sequence[str]] = lambda task: (),
    ) -> StageContext:
        """Return the context of one run of a pipeline; the clock is the wall's unless given."""
        resources = spec.resources
        allowed = auto_budget_bytes() if resources.memory == "auto" else resources.memory
        return cls(
            spec=spec,
            workspace=Workspace(spec.workspace, tables_stay_open=True),
            as_of=parse_time(as_of) if as_of is not None else datetime.now(UTC),
            directory=directory.absolute(),
            budget=Budget(allowed_bytes=allowed, threads=resources.threads, disk_bytes=resources.disk),
            hook=hook,
            launcher=launcher,
        )

    @property
    def learned(self) -> Learned:
        """What runs in this workspace have measured so far."""
        return Learned(self.workspace.root / "memory")

    def with_batches_that_fit(self, projections: Sequence[Projection]) -> StageContext:
        """Return the context with smaller batches, where only those are too large for its budget; else itself."""
        budgets = [projection.fitting(self.budget) for projection in projections]
        least = min(budgets, key=lambda budget: budget.batch_bytes, default=self.budget)
        return self if least is self.budget else dataclasses.replace(self, budget=least)

    def for_child(self) -> dict[str, Any]:
        """Return what a caged task gets to know, as JSON; it crosses a pipe and is written nowhere."""
        return {
            "spec": self.spec.model_dump(mode="json"),
            "workspace": str(self.workspace.root),
            "directory": str(self.directory),
            "as_of": format_time(self.as_of),
        }

    def spec_hash(self) -> str:
        """Return the hash of what decides a task's result: the pipeline file without resources and triggers."""
        return content_hash(self.spec.model_dump(mode="json", exclude={"resources", "triggers", "gate"}))


@dataclass(frozen=True)
class ChildContext:
    """The same, in the caged child."""

    spec: PipelineSpec
    workspace: Workspace
    directory: Path
    as_of: datetime

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> ChildContext:
        """Return the context that ``StageContext.for_child`` described."""
        return cls(
            spec=PipelineSpec.model_validate(value["spec"]),
            workspace=Workspace(value["workspace"]),
            directory=Path(value["directory"]),
            as_of=parse_time(value["as_of"]),
        )


@dataclass(frozen=True)
class Plan:
    """One slice of work, written down before it runs."""

    app: str
    n: int
    as_of: datetime
    bounds: Mapping[str, Any]  # JSON-able; decides the slice


@dataclass(frozen=True)
class Outcome:
    """What a stage says of a slice that it is about to commit."""

    outputs: Mapping[str, Any] = field(default_factory=dict)  # for the report
    record: Mapping[str, Any] = field(default_factory=dict)  # for the next plan: cursors, positions
    rows_out: int | None = None  # where a later phase takes out what an earlier one wrote; default: the tasks' sum
    rows_quarantined: int | None = None
    publish: Callable[[], None] = lambda: None  # commits side tables first, the primary table last, all with n


@dataclass(frozen=True)
class Forecast:
    """What one kind of task of a stage is expected to take, said without running anything."""

    projection: Projection
    rows: int  # that its largest task holds or streams
    disk_bytes: int = 0  # beside the tables
    on_disk: str = ""  # what that is of
    sampling_rate: float | None = None  # of negatives, where training is meant


class Stage(Protocol):
    """One step of the lifecycle."""

    @property
    def name(self) -> str:
        """The step, as reports and the command line call it."""
        ...

    def app(self, context: StageContext) -> str:
        """Return the application id of the primary table's commits."""
        ...

    def primary(self, context: StageContext) -> Table:
        """Return the table whose transaction says which n is committed."""
        ...

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the bounds of the next slice, from metadata only, or None when there is nothing to do."""
        ...

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the tasks after the phases ``done``, each with its projection; none when the slice has run."""
        ...

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Return what to record and how to publish the slice; changes nothing itself."""
        ...


@runtime_checkable
class Divisible(Protocol):
    """A stage whose slices hold rows at once, and can be made smaller when they turn out not to fit."""

    def smaller(self, context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
        """Return the bounds of a smaller slice in the place of one that did not fit, or None where there is none.

        What was written before a stop, its task's last ``checkpoint`` says, among the details of the error.
        """
        ...


Execute = Callable[[Sequence[Callable[[], TaskResult]], Sequence[Task]], Sequence[TaskResult]]
"""Runs the tasks of one phase, in any order or at once, and returns their results in the order given."""


def in_a_loop(calls: Sequence[Callable[[], TaskResult]], tasks: Sequence[Task]) -> Sequence[TaskResult]:
    """Run the tasks of a phase one after another in this process's children."""
    del tasks
    return [call() for call in calls]


def run_stage(stage: Stage, context: StageContext, *, execute: Execute = in_a_loop) -> StageReport:
    """Run a stage slice by slice until it has nothing left to do.

    A slice that was planned and not committed (the process was killed) is resumed with its own bounds and clock, and
    its finished tasks are not run again. After a commit the slice is never run again.

    Returns
    -------
    StageReport
        The sum of the slices; ``slices`` is 0 when there was nothing to do.

    Raises
    ------
    HeadraceError
        Any of our tree; what was committed before is intact and the next run resumes.
    """
    import_pandas_late()
    context.workspace.prepare()
    app = stage.app(context)
    total = StageReport(stage=stage.name, n=_committed(stage, context), as_of=format_time(context.as_of))
    record_runs(context.workspace, app=app, committed=total.n)
    while True:
        n = _committed(stage, context) + 1
        plan = _plan(stage, context, app=app, n=n)
        if plan is None:
            return total
        report = _run_divided(stage, context, plan, execute=execute)
        total = total.join(report)


def _committed(stage: Stage, context: StageContext) -> int:
    return stage.primary(context).transaction(stage.app(context))


def _plan(stage: Stage, context: StageContext, *, app: str, n: int) -> Plan | None:
    journal = context.workspace.journal
    written = journal.plan(app, n)
    if written is None:
        bounds = stage.next_plan(context)
        if bounds is None:
            return None
        written = journal.write_plan(app, n, {"as_of": format_time(context.as_of), "bounds": dict(bounds)})
    return Plan(app=app, n=n, as_of=parse_time(written["as_of"]), bounds=written["bounds"])


def _run_divided(stage: Stage, context: StageContext, plan: Plan, *, execute: Execute) -> StageReport:
    """Run a slice; where its rows turn out not to fit, run a smaller one in its place."""
    for left in range(_TIMES_DIVIDED, -1, -1):
        try:
            return _run_slice(stage, context, plan, execute=execute)
        except (MemoryBudgetExceeded, PlanRefused) as error:
            bounds = stage.smaller(context, plan, error) if left and isinstance(stage, Divisible) else None
            error.details.pop("checkpoint", None)  # file names: of use to nobody else
            if bounds is None:
                raise
            written = {"as_of": format_time(plan.as_of), "bounds": dict(bounds)}
            context.workspace.journal.replace_plan(plan.app, plan.n, written)
            plan = dataclasses.replace(plan, bounds=bounds)
            text = f"{error.message}; again with a smaller slice"
            context.hook(events.Note(stage.name, str(error.details.get("task", stage.name)), text))
    raise AssertionError("the last try raises")


def _run_slice(stage: Stage, context: StageContext, plan: Plan, *, execute: Execute) -> StageReport:
    started = time.monotonic()
    context = dataclasses.replace(context, as_of=plan.as_of)
    done: list[Sequence[TaskResult]] = []
    keys: list[str] = []
    while planned := stage.phase(context, plan, done):
        fitting = context.with_batches_that_fit([projection for _, projection in planned])
        planned = planned if fitting is context else stage.phase(fitting, plan, done)
        for task, projection in planned:
            if context.workspace.journal.task(task.key) is None:  # what has run is not run again, whatever it took
                projection.check(fitting.budget)
        tasks = [task for task, _ in planned]
        keys += [task.key for task in tasks]
        done.append(execute([_call(fitting, task, projection) for task, projection in planned], tasks))
    outcome = stage.finish(context, plan, done)
    results = [result for phase in done for result in phase]
    report = StageReport(
        stage=stage.name,
        n=plan.n,
        as_of=format_time(plan.as_of),
        slices=1,
        inputs=dict(plan.bounds),
        outputs=dict(outcome.outputs),
        rows_in=sum(result.rows_in for result in results),
        rows_out=_either(outcome.rows_out, sum(result.rows_out for result in results)),
        rows_quarantined=_either(outcome.rows_quarantined, sum(result.rows_quarantined for result in results)),
        batches=sum(result.batches for result in results),
        attempts=sum(result.attempts for result in results),
        seconds=round(time.monotonic() - started, 3),
        finished_at=format_time(datetime.now(UTC)),
    )
    for result in results:
        report = dataclasses.replace(report, memory=report.memory.join(result.memory))
    context.workspace.journal.write_commit(plan.app, plan.n, {**outcome.record, "report": to_json(report)})
    outcome.publish()
    record_runs(context.workspace, app=plan.app, committed=plan.n)
    for key in keys:
        context.workspace.journal.forget_task(key)
    return report


def _either(said: int | None, counted: int) -> int:
    return counted if said is None else said


def run_task(task: Task, context: StageContext, *, projection: Projection) -> TaskResult:
    """Run one task in its cage, under the context's budget.

    Raises
    ------
    HeadraceError
        See ``memory.cage.run_caged``.
    """
    return run_caged(
        task,
        context=context.for_child(),
        budget=context.budget,
        projected_bytes=projection.projected_bytes,
        hook=context.hook,
        launcher=context.launcher(task),
        attempts=1 if projection.row_term else ATTEMPTS,  # smaller batches do not help what holds rows
    )


def _call(context: StageContext, task: Task, projection: Projection) -> Callable[[], TaskResult]:
    def call() -> TaskResult:
        journal = context.workspace.journal
        known = journal.task(task.key)
        if known is not None:
            return TaskResult.from_json(known)
        profiled = bool(context.launcher(task))  # the profiler's own memory is no task's: nothing is learned of it
        try:
            result = run_task(task, context, projection=projection)
        except MemoryBudgetExceeded as error:
            if not profiled:
                _learn(context, projection, int(_BEYOND * int(error.details.get("measured_bytes", 0))))
            raise
        if not profiled:
            context.learned.save_reserved(task.stage, result.memory.reserved_bytes)
            _learn(context, projection, result.memory.measured_bytes)
        journal.write_task(task.key, to_json(result))
        return result

    return call


def _learn(context: StageContext, projection: Projection, measured_bytes: int) -> None:
    """Keep what a row took, for the next projections of this kind of task over this table."""
    row_bytes = projection.observed_row_bytes(measured_bytes)
    if row_bytes and projection.base_row_bytes:
        base = projection.base_row_bytes
        context.learned.save_row_bytes(projection.stage, projection.table, row_bytes, base=base)
