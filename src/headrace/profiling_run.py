"""``headrace profile``: runs a stage again on a copy of the workspace, under memray in its cage, and says where the
page is.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from engine.batching import Table, Workspace
from engine.errors import HeadraceError, SpecError
from engine.ledger import Entry, Ledger, last_trained
from engine.memory.projection import Projection
from engine.refs import StageReport, Task, TaskResult
from engine.stage import Outcome, Plan, Stage, StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.monitor import MonitorStage
from engine.stages.prepare import PrepareStage
from engine.stages.score import ScoreStage
from engine.stages.train import TrainStage
from engine.stages.validate import ValidateStage
from engine.units import format_bytes, format_time
from headrace.calling import held_memory, read_pipeline
from profiling.session import ProfilingSession

_TAKEN_BACK: dict[str, tuple[str, ...]] = {
    "extract": ("tables/raw", "tables/labels", "plans/extract", "commits/extract"),
    "prepare": ("tables/prepared", "tables/label_events", "plans/prepare", "commits/prepare", "segments", "pending"),
    "train": ("commits/train",),  # a training with the inputs of the last one is due when there is no last one
    "validate": ("plans/validate", "commits/validate"),
    "score": ("tables/predictions", "plans/score", "commits/score"),
    "monitor": ("tables/metrics", "plans/monitor", "commits/monitor"),
}
# Not the registry: see _Unregistered. Not tasks and caches: they are what makes a stage finish without working.
_COPIED = ("tables", "plans", "commits", "segments", "pending", "bundles", "memory")


class _Unregistered:
    """A stage whose one slice is entered in the copy's ledger and nowhere else.

    A model registry is outside the copy, on another machine perhaps, and hears nothing of a profile.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._ran = False
        self.name = stage.name

    def app(self, context: StageContext) -> str:
        return self._stage.app(context)

    def primary(self, context: StageContext) -> Table:
        return self._stage.primary(context)

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        return None if self._ran else self._stage.next_plan(context)

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        return self._stage.phase(context, plan, done)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        self._ran = True
        entry = Entry(app=plan.app, n=plan.n, as_of=format_time(plan.as_of), action="kept", version=0)

        def publish() -> None:
            Ledger(context.workspace).enter(entry)

        return dataclasses.replace(self._stage.finish(context, plan, done), publish=publish)


def _stages(name: str) -> tuple[Stage, ...]:
    stages: dict[str, tuple[Stage, ...]] = {
        "extract": (ExtractStage("raw"), ExtractStage("labels")),
        "prepare": (PrepareStage(),),
        "train": (_Unregistered(TrainStage(reasons=("profiled",))),),
        "validate": (_Unregistered(ValidateStage()),),
        "score": (ScoreStage(),),
        "monitor": (MonitorStage(),),
    }
    return stages[name]


def profile_stage(
    pipeline: Path, *, stage: str, as_of: datetime | None = None, memory: str | None = None
) -> dict[str, Any]:
    """Run a stage under memray and return where its page is, with the four figures.

    The stage runs on a copy of the workspace, made of hard links, in which what it committed is taken back: it does
    real work on real tables and changes none of them, nor the model registry. The copy is removed at the end.

    Raises
    ------
    SpecError
        There is no such stage.
    HeadraceError
        The stage has nothing to do; or what the stage raised, with the place of the page in its hint.
    """
    if stage not in _TAKEN_BACK:
        raise SpecError(f"--stage: there is no stage {stage!r} to profile", hint=f"allowed: {', '.join(_TAKEN_BACK)}")
    spec = read_pipeline(pipeline)
    if memory is not None:
        spec = spec.with_memory(memory)
    workspace = Workspace(spec.workspace)
    allowed = StageContext.of(spec, directory=pipeline.parent).budget.allowed_bytes
    with workspace.lock(), held_memory(allowed):
        copy = workspace.scratch / f"profile-{os.getpid()}"
        session = ProfilingSession(workspace.root / "profiles", title=f"{spec.pipeline}, {stage}")
        try:
            _link(workspace.root, copy)
            _take_back(copy, stage)
            context = StageContext.of(
                spec.model_copy(update={"workspace": str(copy)}),
                directory=pipeline.parent,
                as_of=as_of,
                hook=session.hook,
                launcher=session.launcher,
            )
            with session:
                reports = [run_stage(one, context) for one in _stages(stage)]
        except HeadraceError as error:
            if session.page.exists():
                error.details["page"] = str(session.page)
                error.hint = "; ".join(
                    part for part in (error.hint, f"the profile up to there: {session.page}") if part
                )
            raise
        finally:
            shutil.rmtree(copy, ignore_errors=True)
    report = reports[0]
    for later in reports[1:]:
        report = report.join(later)
    if not report.slices:
        hint = f"first: headrace run {pipeline}; score and monitor need rows that came after the first champion"
        raise HeadraceError(f"{stage} has nothing to do", hint=hint)
    return _summary(report, session)


def _summary(report: StageReport, session: ProfilingSession) -> dict[str, Any]:
    figures = dataclasses.asdict(report.memory)
    shown = {name.removesuffix("_bytes"): format_bytes(figures[name]) for name in figures if name.endswith("_bytes")}
    flames = sorted(str(path) for path in session.directory.glob("*.html") if path != session.page)
    return {
        "page": str(session.page),
        "flame graphs": ", ".join(flames),
        "captures": ", ".join(sorted(str(path) for path in session.directory.glob("*.bin"))),
        **shown,
        "enforced by": report.memory.enforced_by,
        "seconds": report.seconds,
        "rows in": report.rows_in,
    }


def _link(root: Path, copy: Path) -> None:
    """Make a copy of what stages read; immutable files are linked, not copied."""
    for name in _COPIED:
        if (root / name).exists():
            shutil.copytree(root / name, copy / name, copy_function=os.link)
    copy.mkdir(parents=True, exist_ok=True)


def _take_back(copy: Path, stage: str) -> None:
    """Remove from the copy what the stage did, so that it has everything, or the last candidate, to do again."""
    for name in _TAKEN_BACK[stage]:
        if (copy / name).exists():  # what stays would make the stage say that it has nothing to do
            shutil.rmtree(copy / name)
    if stage != "validate":
        return
    ledger = Ledger(Workspace(copy))
    history = ledger.history()
    candidate = last_trained(history)
    judged = candidate.version if candidate is not None else 0
    kept = [entry for entry in history if entry.action == "trained" or entry.version != judged]
    if history:
        shutil.rmtree(copy / "tables" / "ledger")
    for entry in sorted(kept, key=lambda entry: (entry.app, entry.n)):
        ledger.enter(entry)
