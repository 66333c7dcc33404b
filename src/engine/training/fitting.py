"""The task that makes a candidate of the training cache: fitted, calibrated, with a threshold, written as a bundle.

The cache is made by ``caching.py``; what each learner does is in ``learning/learners/``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from engine import events
from engine.batching.atomic import require_json
from engine.batching.frames import to_arrow
from engine.bundle import Bundle, sections_of
from engine.errors import LearningError
from engine.features.encoders import FeatureEncoder
from engine.layout import LABEL, bundle_directory, cache_directory
from engine.learning.cache import TrainingCache
from engine.learning.calibration import Calibration, fit_calibration
from engine.learning.drift import Reference
from engine.learning.learners import Model, learner
from engine.learning.retrain import learner_hash
from engine.learning.sampling import correct_prior
from engine.learning.split import Split
from engine.learning.threshold import OperatingPoint, choose_threshold
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import ChildContext
from engine.training.rows import training_rows
from engine.units import format_time

_Predict = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


def run(task: Task, scope: Scope) -> TaskResult:
    """Fit the learner on the cache, calibrate, choose the threshold, and write the bundle (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, n = context.spec, int(task.inputs["n"])
    split = Split.from_json(task.inputs["split"])
    directory = cache_directory(context.workspace, n)
    cache = TrainingCache(directory)
    encoder = FeatureEncoder.from_json(require_json(directory / "encoder.json"))
    rate = float(task.inputs["sampling_rate"])
    model = _fit(spec, cache, encoder, scope)

    def predict(matrix: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
        return correct_prior(model.predict(matrix, threads=scope.budget.threads), rate=rate)

    scores, labels = _calibration_rows(context, task, scope, split, predict, encoder)
    calibration, point = _calibrated(spec, split, scores, labels)
    facts = {
        "rows": cache.rows,
        "positives": int(cache.positives),
        "sampling_rate": rate,
        "threshold": point.threshold,
        "operating_point": point.to_json(),
        "calibration": calibration.to_json(),
    }
    made = {"split": split.to_json(), "prepared_n": task.inputs["prepared_n"], "learner_hash": learner_hash(spec)}
    bundle = Bundle(
        features=spec.features.names(),
        feature_set=spec.feature_set,
        encoder=encoder,
        reference=Reference.from_json(require_json(directory / "drift.json")),
        learner=spec.learner.kind,
        sampling_rate=rate,
        calibration=calibration,
        threshold=point.threshold,
        trained_until=split.cutoff,
        facts={**facts, **made},
        sections=sections_of(spec),
        model=model,
    )
    bundle.save(bundle_directory(context.workspace, n))
    scope.emit(events.Note(scope.stage, scope.task, f"{cache.rows:,} rows, sampling rate {rate:.3g}"))
    return TaskResult(task=task.name, outputs=facts, rows_in=cache.rows, rows_out=len(scores), batches=1)


def _fit(spec: PipelineSpec, cache: TrainingCache, encoder: FeatureEncoder, scope: Scope) -> Model:
    return learner(spec.learner.kind).fit(
        cache,
        categorical=encoder.categorical_indices,
        cardinalities=encoder.cardinalities,
        numeric_stats=encoder.numeric_stats,
        parameters=spec.learner.parameters,
        seed=spec.learner.seed,
        threads=scope.budget.threads,
        progress=scope.progress,
    )


def _calibration_rows(
    context: ChildContext,
    task: Task,
    scope: Scope,
    split: Split,
    predict: _Predict,
    encoder: FeatureEncoder,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    """Return the corrected, uncalibrated scores and labels between training and validation: 9 bytes a row."""
    scores, labels = [np.empty(0)], [np.empty(0, dtype=np.uint8)]
    for frame in training_rows(context, task, scope, low=split.calibrate_from, high=split.validate_from):
        scores.append(predict(encoder.transform(to_arrow(frame))))
        labels.append(frame[LABEL].to_numpy().astype(np.uint8))
    return np.concatenate(scores), np.concatenate(labels)


def _calibrated(
    spec: PipelineSpec, split: Split, scores: npt.NDArray[np.float64], labels: npt.NDArray[np.uint8]
) -> tuple[Calibration, OperatingPoint]:
    """Return the calibration, and the operating point on the scores that it makes."""
    calibration = fit_calibration(scores, labels)
    calibrated = calibration.apply(scores)
    if not len(calibrated):
        raise LearningError(
            f"no labelled row between {format_time(split.calibrate_from)} and {format_time(split.validate_from)}",
            hint="make split.calibration longer, or check that labels arrive",
        )
    return calibration, choose_threshold(spec.operating_point, scores=calibrated, labels=labels)
