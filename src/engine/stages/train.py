"""Train: a candidate from prepared rows and the labels known at the cut-off, within the budget.

First a compact cache is made (encoders fitted, negatives sampled), then a fresh child fits, calibrates and chooses the
threshold: both in ``training/``, planned here. Whether the candidate is any good is for ``validate.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.batching import Table
from engine.errors import HeadraceError, LearningError, MemoryBudgetExceeded
from engine.layout import EVENT_TIME, bundle_directory, cache_directory, prepared_app, prepared_table
from engine.learning.cache import cache_bytes
from engine.learning.learners import LIBRARIES
from engine.learning.retrain import learner_hash
from engine.learning.split import Split
from engine.ledger import Entry, Ledger, last_trained, positive_share
from engine.memory.disk import require_room
from engine.memory.projection import Projection
from engine.preparing.state import State
from engine.refs import Task, TaskResult, content_hash
from engine.registry import ModelRegistry
from engine.stage import Forecast, Outcome, Plan, StageContext
from engine.training.due import cutoff
from engine.training.footprints import (
    fit_bytes,
    fit_share,
    most_labelled,
    most_rows_kept,
    project_cache,
    project_fit,
    sampling_rate,
    span_rows,
)
from engine.units import format_time
from engine.usercode import TRANSFORM

_CACHE = "the training cache"


@dataclass(frozen=True)
class TrainStage:
    """One training of the context's pipeline, for the reasons given; without a request it only resumes."""

    reasons: tuple[str, ...] = ()
    name: str = "train"

    def app(self, context: StageContext) -> str:
        """Return the application id of the ledger's lines about training."""
        del context
        return "train"

    def primary(self, context: StageContext) -> Table:
        """Return the ledger: a candidate exists once it is entered there."""
        return context.workspace.table("ledger")

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the training at the run's clock, unless the last one had the same inputs."""
        if not self.reasons:
            return None
        spec, workspace = context.spec, context.workspace
        prepared = prepared_table(workspace, spec.feature_set)
        inputs = {
            "split": Split.of(spec, cutoff(context)).to_json(),
            "feature_set": spec.feature_set,
            "prepared_n": prepared.transaction(prepared_app(spec.feature_set)),
            "learner": spec.learner.model_dump(mode="json"),
            "memory": context.budget.allowed_bytes if spec.learner.sampling_rate is None else 0,
        }
        last = workspace.journal.commit(self.app(context), self.primary(context).transaction(self.app(context)) or -1)
        if last is not None and last["inputs"] == content_hash(inputs):
            return None
        if not prepared.rows():
            raise LearningError("there are no prepared rows to train on", hint="run: headrace run")
        code = State.of(context).record.get("row_types", {}).get(TRANSFORM)  # that the rows were prepared by
        return {**inputs, "inputs": content_hash(inputs), "reasons": list(self.reasons), "transform_code": code}

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the task that makes the cache, then the one that fits."""
        if len(done) == 2:
            return ()
        inputs: dict[str, Any] = {**plan.bounds, "n": plan.n, "imports": ["polars"]}
        if not done:
            split = Split.from_json(plan.bounds["split"])
            needed = _most_cache_bytes(context, split)
            require_room(context.workspace.scratch, needed, context.budget.disk_bytes, what=_CACHE)
            inputs |= {"available_bytes": fit_bytes(context), "row_share": fit_share(context)}
            task = Task(f"{self.name}.cache", f"cache.{plan.n}", "engine.training.caching:run", inputs)
            return ((task, project_cache(context)),)
        cached = done[0][0]
        inputs["imports"] = ["polars", *LIBRARIES[context.spec.learner.kind]]
        inputs |= {"sampling_rate": cached.outputs["sampling_rate"], "cached": cached.outputs["rows"]}
        task = Task(f"{self.name}.fit", f"fit.{plan.n}", "engine.training.fitting:run", inputs)
        calibration = _calibration_rows(context, Split.from_json(plan.bounds["split"]))
        return ((task, project_fit(context, int(cached.outputs["rows"]), calibration_rows=calibration)),)

    def smaller(self, context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
        """Return the same training where the budget chooses the sampling rate: from what the fit took, it is lower."""
        chosen = context.spec.learner.sampling_rate is None and isinstance(error, MemoryBudgetExceeded)
        return dict(plan.bounds) if chosen and fit_share(context) > 1.0 else None

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Register the candidate with its bundle, then enter it in the ledger."""
        facts = done[1][0].outputs
        bundle = bundle_directory(context.workspace, plan.n)
        details = {
            **facts,
            "bundle": str(bundle.relative_to(context.workspace.root)),
            "feature_set": plan.bounds["feature_set"],
            "trained_until": plan.bounds["split"]["cutoff"],
            "split": plan.bounds["split"],
            "learner": context.spec.learner.kind,
            "raw_rows": context.workspace.table("raw").rows(),
            "label_rows": context.workspace.table("labels").rows(),
            "learner_hash": learner_hash(context.spec),
            "transform_code": plan.bounds.get("transform_code"),
        }

        def publish() -> None:
            registry = ModelRegistry(context.workspace.root, name=context.spec.pipeline)
            version = registry.register(
                bundle,
                key=f"{context.spec.pipeline}/{plan.n}",
                metrics={name: float(facts[name]) for name in ("rows", "positives", "sampling_rate")},
                parameters={"learner": context.spec.learner.kind, "feature_set": plan.bounds["feature_set"]},
                tags={"trained_until": plan.bounds["split"]["cutoff"]},
            )
            entry = Entry(
                app=plan.app,
                n=plan.n,
                as_of=format_time(plan.as_of),
                action="trained",
                version=version,
                reasons=tuple(plan.bounds["reasons"]),
                details=details,
            )
            Ledger(context.workspace).enter(entry)
            shutil.rmtree(cache_directory(context.workspace, plan.n), ignore_errors=True)  # else vacuum removes it

        return Outcome(
            outputs={name: facts[name] for name in ("rows", "positives", "sampling_rate", "threshold")},
            record={"inputs": plan.bounds["inputs"]},
            publish=publish,
        )


def _most_cache_bytes(context: StageContext, split: Split) -> int:
    """Return what the cache of a training takes at most: how many rows are sampled only labels tell."""
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    rows = sum(chunk.rows for chunk in chunks if chunk.may_hold(EVENT_TIME, split.train_from, split.train_until))
    return cache_bytes(most_rows_kept(context, rows), features=len(context.spec.features.names()))


def _calibration_rows(context: StageContext, split: Split) -> int:
    """Return about how many rows there are at most to calibrate on."""
    rows = span_rows(context.workspace, context.spec.feature_set, split.calibrate_from, split.validate_from)
    return most_labelled(context, rows)


def forecast(context: StageContext) -> list[Forecast]:
    """Return what making the training cache and fitting take, with the sampling rate that the budget buys."""
    split = Split.of(context.spec, cutoff(context))
    rows = span_rows(context.workspace, context.spec.feature_set, split.train_from, split.train_until)
    calibration = _calibration_rows(context, split)
    last = last_trained(Ledger(context.workspace).history())
    share = positive_share(last.details) if last is not None else 0.0
    rate = sampling_rate(
        context.spec,
        rows=rows,
        positives=int(rows * share),
        available_bytes=fit_bytes(context),
        row_share=fit_share(context),
        budget=context.budget,
    )
    kept = int(rows * (share + (1.0 - share) * rate))
    return [
        Forecast(project_cache(context), rows, disk_bytes=_most_cache_bytes(context, split), on_disk=_CACHE),
        Forecast(project_fit(context, kept, calibration_rows=calibration), kept, sampling_rate=rate),
    ]
