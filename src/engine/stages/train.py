"""Train: a candidate from prepared rows and the labels known at the cut-off, within the budget.

First a compact cache is made (encoders fitted, negatives sampled), then a fresh child fits, calibrates and chooses the
threshold. Whether the candidate is any good is for ``validate.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engine import events
from engine.batching import Table, Workspace
from engine.batching.atomic import require_json, write_json
from engine.batching.frames import to_arrow
from engine.bundle import Bundle, sections_of
from engine.errors import HeadraceError, LearningError, MemoryBudgetExceeded
from engine.features.encoders import EncoderBuilder, FeatureEncoder
from engine.features.labelled import LabelView, labelled_rows
from engine.layout import KEY, label_events_table, prepared_app, prepared_table
from engine.learning.cache import CacheWriter, TrainingCache, cache_bytes
from engine.learning.calibration import fit_calibration
from engine.learning.drift import Reference, ReferenceBuilder
from engine.learning.learners import LIBRARIES, learner
from engine.learning.retrain import learner_hash
from engine.learning.sampling import correct_prior, keep
from engine.learning.split import Split
from engine.learning.threshold import choose_threshold
from engine.ledger import Entry, Ledger, last_trained, positive_share
from engine.memory.disk import require_room
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult, content_hash
from engine.registry import ModelRegistry
from engine.spec import PipelineSpec
from engine.stage import ChildContext, Forecast, Outcome, Plan, StageContext
from engine.training.due import cutoff
from engine.training.footprints import fit_bytes, fit_share, project_cache, project_fit, sampling_rate
from engine.units import format_time, parse_time

if TYPE_CHECKING:
    import polars as pl


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
        return {**inputs, "inputs": content_hash(inputs), "reasons": list(self.reasons)}

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the task that makes the cache, then the one that fits."""
        if len(done) == 2:
            return ()
        inputs: dict[str, Any] = {**plan.bounds, "n": plan.n, "imports": ["polars"]}
        if not done:
            rows = prepared_table(context.workspace, context.spec.feature_set).rows()
            require_room(
                context.workspace.scratch,
                needed_bytes=cache_bytes(rows, features=len(context.spec.features.names())),
                allowed_bytes=context.budget.disk_bytes,
                what=f"the training cache of at most {rows:,} rows",
            )
            inputs |= {"available_bytes": fit_bytes(context), "row_share": fit_share(context)}
            task = Task(f"{self.name}.cache", f"cache.{plan.n}", "engine.stages.train:run_cache", inputs)
            return ((task, project_cache(context)),)
        cached = done[0][0]
        inputs["imports"] = ["polars", *LIBRARIES[context.spec.learner.kind]]
        inputs |= {"sampling_rate": cached.outputs["sampling_rate"], "cached": cached.outputs["rows"]}
        task = Task(f"{self.name}.fit", f"fit.{plan.n}", "engine.stages.train:run_fit", inputs)
        return ((task, project_fit(context, int(cached.outputs["rows"]))),)

    def smaller(self, context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
        """Return the same training where the budget chooses the sampling rate: from what the fit took, it is lower."""
        chosen = context.spec.learner.sampling_rate is None and isinstance(error, MemoryBudgetExceeded)
        return dict(plan.bounds) if chosen and fit_share(context) > 1.0 else None

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Register the candidate with its bundle, then enter it in the ledger."""
        facts = done[1][0].outputs
        bundle = _bundle_dir(context.workspace, plan.n)
        details = {
            **facts,
            "bundle": str(bundle.relative_to(context.workspace.root)),
            "feature_set": plan.bounds["feature_set"],
            "trained_until": plan.bounds["split"]["cutoff"],
            "split": plan.bounds["split"],
            "learner": context.spec.learner.kind,
            "labels_n": context.workspace.table("labels").transaction("extract:labels"),
            "raw_rows": context.workspace.table("raw").rows(),
            "label_rows": context.workspace.table("labels").rows(),
            "learner_hash": learner_hash(context.spec),
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
            shutil.rmtree(_cache_dir(context.workspace, plan.n), ignore_errors=True)

        return Outcome(
            outputs={name: facts[name] for name in ("rows", "positives", "sampling_rate", "threshold")},
            record={"inputs": plan.bounds["inputs"]},
            publish=publish,
        )


def forecast(context: StageContext) -> list[Forecast]:
    """Return what making the training cache and fitting take, with the sampling rate that the budget buys."""
    prepared = prepared_table(context.workspace, context.spec.feature_set)
    rows, features = prepared.rows(), len(context.spec.features.names())
    last = last_trained(Ledger(context.workspace).history())
    share = positive_share(last.details) if last is not None else 0.0
    rate = sampling_rate(
        context.spec,
        rows=rows,
        positives=int(rows * share),
        features=features,
        available_bytes=fit_bytes(context),
        row_share=fit_share(context),
        budget=context.budget,
    )
    kept = int(rows * (share + (1.0 - share) * rate))
    return [
        Forecast(project_cache(context), rows, disk_bytes=cache_bytes(kept, features=features)),
        Forecast(project_fit(context, kept), kept, sampling_rate=rate),
    ]


def _bundle_dir(workspace: Workspace, n: int) -> Path:
    return workspace.bundles / f"{n:08d}"


def _cache_dir(workspace: Workspace, n: int) -> Path:
    return workspace.root / "caches" / f"{n:08d}"


# --- the cache ------------------------------------------------------------------------------------------------------


def run_cache(task: Task, scope: Scope) -> TaskResult:
    """Fit the encoders and write the training cache (in the cage)."""
    context = ChildContext.of(scope.context)
    spec = context.spec
    split = Split.from_json(task.inputs["split"])
    numeric, categorical = model_columns(spec)
    builder = EncoderBuilder(numeric=numeric, categorical=categorical)
    rows = positives = batches = 0
    for frame in _span(context, task, scope, split.train_from, split.train_until):
        builder.update(to_arrow(frame))
        rows, positives, batches = rows + frame.height, positives + int(frame["label"].sum()), batches + 1
        scope.batch_done(frame.height, int(frame.estimated_size()))
        scope.progress(rows, 2 * rows, "rows")
    _require(rows, positives, spec, split)
    encoder = builder.finish()
    features = len(encoder.feature_names)
    rate = sampling_rate(
        spec,
        rows=rows,
        positives=positives,
        features=features,
        available_bytes=int(task.inputs["available_bytes"]),
        row_share=float(task.inputs["row_share"]),
        budget=scope.budget,
    )
    codes = dict(zip(encoder.categorical_indices, encoder.cardinalities, strict=True))
    reference = ReferenceBuilder(encoder.feature_names, categorical=codes)
    directory = _cache_dir(context.workspace, int(task.inputs["n"]))
    shutil.rmtree(directory, ignore_errors=True)
    seen = 0
    with CacheWriter(directory, features=features) as writer:
        for frame in _span(context, task, scope, split.train_from, split.train_until):
            scope.governor.wait()
            table = to_arrow(frame)
            matrix = encoder.transform(table)
            labels = frame["label"].to_numpy().astype(np.uint8)
            reference.update(matrix)
            kept = keep(table.column(KEY), labels, rate=rate, seed=spec.learner.seed)
            writer.append(matrix[kept], labels[kept])
            seen += frame.height
            scope.progress(rows + seen, 2 * rows, "rows")
        cache = writer.close()
    write_json(directory / "encoder.json", encoder.to_json())
    write_json(directory / "drift.json", reference.finish().to_json())
    return TaskResult(
        task=task.name,
        outputs={
            "rows": cache.rows,
            "positives": int(cache.positives),
            "rows_seen": rows,
            "sampling_rate": rate,
            "bytes": cache.bytes_on_disk,
        },
        rows_in=rows,
        rows_out=cache.rows,
        batches=batches,
    )


def _require(rows: int, positives: int, spec: PipelineSpec, split: Split) -> None:
    span = f"with an event time before {format_time(split.train_until)}"
    if not rows:
        raise LearningError(
            f"no row {span} has a label",
            hint="check labels (table, key, absent) and split: validation, calibration and gap come off the end",
        )
    if not positives or positives == rows:
        which = "positive" if not positives else "negative"
        raise LearningError(
            f"there is no {which} among {rows:,} labelled rows {span}: nothing can be learned",
            hint=f"check labels.value ({spec.labels.value!r}) and labels.absent ({spec.labels.absent!r})",
        )


# --- the fit --------------------------------------------------------------------------------------------------------


def run_fit(task: Task, scope: Scope) -> TaskResult:
    """Fit the learner on the cache, calibrate, choose the threshold, and write the bundle (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, n = context.spec, int(task.inputs["n"])
    split = Split.from_json(task.inputs["split"])
    directory = _cache_dir(context.workspace, n)
    cache = TrainingCache(directory)
    encoder = FeatureEncoder.from_json(require_json(directory / "encoder.json"))
    rate = float(task.inputs["sampling_rate"])
    model = learner(spec.learner.kind).fit(
        cache,
        categorical=encoder.categorical_indices,
        cardinalities=encoder.cardinalities,
        numeric_stats=encoder.numeric_stats,
        parameters=spec.learner.parameters,
        seed=spec.learner.seed,
        threads=scope.budget.threads,
        progress=scope.progress,
    )

    def predict(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return correct_prior(model.predict(matrix, threads=scope.budget.threads), rate=rate)

    scores, labels = _calibration_rows(context, task, scope, split, predict, encoder)
    calibration = fit_calibration(scores, labels)
    calibrated = calibration.apply(scores)
    if not len(calibrated):
        raise LearningError(
            f"no labelled row between {format_time(split.calibrate_from)} and {format_time(split.validate_from)}",
            hint="make split.calibration longer, or check that labels arrive",
        )
    point = choose_threshold(spec.operating_point, scores=calibrated, labels=labels)
    facts = {
        "rows": cache.rows,
        "positives": int(cache.positives),
        "sampling_rate": rate,
        "threshold": point.threshold,
        "operating_point": point.to_json(),
        "calibration": calibration.to_json(),
    }
    bundle = Bundle(
        features=feature_columns(spec),
        feature_set=spec.feature_set,
        encoder=encoder,
        reference=Reference.from_json(require_json(directory / "drift.json")),
        learner=spec.learner.kind,
        sampling_rate=rate,
        calibration=calibration,
        threshold=point.threshold,
        trained_until=split.cutoff,
        facts={
            **facts,
            "split": split.to_json(),
            "prepared_n": task.inputs["prepared_n"],
            "learner_hash": learner_hash(spec),
        },
        sections=sections_of(spec),
        model=model,
    )
    bundle.save(_bundle_dir(context.workspace, n))
    scope.emit(events.Note(scope.stage, scope.task, f"{cache.rows:,} rows, sampling rate {rate:.3g}"))
    return TaskResult(task=task.name, outputs=facts, rows_in=cache.rows, rows_out=len(scores), batches=1)


def _calibration_rows(
    context: ChildContext,
    task: Task,
    scope: Scope,
    split: Split,
    predict: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]],
    encoder: FeatureEncoder,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Return the corrected, uncalibrated scores and labels between training and validation: 9 bytes a row."""
    scores, labels = [np.empty(0)], [np.empty(0, dtype=np.uint8)]
    for frame in _span(context, task, scope, split.calibrate_from, split.validate_from):
        scores.append(predict(encoder.transform(to_arrow(frame))))
        labels.append(frame["label"].to_numpy().astype(np.uint8))
    return np.concatenate(scores), np.concatenate(labels)


# --- rows -----------------------------------------------------------------------------------------------------------


def feature_columns(spec: PipelineSpec) -> tuple[str, ...]:
    """Return the columns of prepared that a model of this pipeline reads."""
    return spec.features.names()


def model_columns(spec: PipelineSpec) -> tuple[list[str], list[str]]:
    """Return the numeric (windows included) and the categorical columns."""
    return [*spec.features.numeric, *spec.features.window_names()], list(spec.features.categorical)


def _span(
    context: ChildContext, task: Task, scope: Scope, low: datetime | None, high: datetime
) -> Iterator[pl.DataFrame]:
    """Yield labelled prepared rows of a span of event time, as they were when the training was planned."""
    spec, workspace = context.spec, context.workspace
    prepared = prepared_table(workspace, spec.feature_set)
    n = int(task.inputs["prepared_n"])
    schema = prepared.schema()
    if schema is None:
        return
    labels = LabelView(
        chunks=label_events_table(workspace, spec.feature_set).chunks(newest_n=n),
        known_by=parse_time(task.inputs["split"]["cutoff"]),
        absent=spec.labels.absent,
        delay=spec.labels.delay,
    )
    yield from labelled_rows(
        prepared.chunks(newest_n=n),
        labels,
        columns=feature_columns(spec),
        schema=schema,
        low=low,
        high=high,
        batch_bytes=scope.governor.batch_bytes,
    )
