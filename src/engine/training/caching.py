"""The task that makes the training cache: encoders are fitted in one pass over the rows, those that are kept written in
another.

What the cache's files are is ``learning/cache.py``; the fit on it is ``fitting.py``.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from engine.batching.atomic import write_json
from engine.batching.frames import to_arrow
from engine.errors import LearningError
from engine.features.encoders import EncoderBuilder, FeatureEncoder
from engine.layout import KEY, LABEL, cache_directory
from engine.learning.cache import CacheWriter, TrainingCache
from engine.learning.drift import ReferenceBuilder
from engine.learning.sampling import keep
from engine.learning.split import Split
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import ChildContext
from engine.training.footprints import sampling_rate
from engine.training.rows import training_rows
from engine.units import format_time


@dataclass(frozen=True)
class _Seen:
    """What the first pass over the rows found."""

    encoder: FeatureEncoder
    rows: int
    positives: int
    batches: int


def run(task: Task, scope: Scope) -> TaskResult:
    """Fit the encoders and write the training cache (in the cage)."""
    context = ChildContext.of(scope.context)
    split = Split.from_json(task.inputs["split"])
    seen = _fit_encoder(context, task, scope, split)
    rate = sampling_rate(
        context.spec,
        rows=seen.rows,
        positives=seen.positives,
        available_bytes=int(task.inputs["available_bytes"]),
        row_share=float(task.inputs["row_share"]),
        budget=scope.budget,
    )
    directory = cache_directory(context.workspace, int(task.inputs["n"]))
    cache, reference = _write(context, task, scope, split, seen=seen, rate=rate, directory=directory)
    write_json(directory / "encoder.json", seen.encoder.to_json())
    write_json(directory / "drift.json", reference)
    return TaskResult(
        task=task.name,
        outputs={
            "rows": cache.rows,
            "positives": int(cache.positives),
            "rows_seen": seen.rows,
            "sampling_rate": rate,
            "bytes": cache.bytes_on_disk,
        },
        rows_in=seen.rows,
        rows_out=cache.rows,
        batches=seen.batches,
    )


def _fit_encoder(context: ChildContext, task: Task, scope: Scope, split: Split) -> _Seen:
    features = context.spec.features
    builder = EncoderBuilder(numeric=[*features.numeric, *features.window_names()], categorical=[*features.categorical])
    rows = positives = batches = 0
    for frame in training_rows(context, task, scope, low=split.train_from, high=split.train_until):
        builder.update(to_arrow(frame))
        rows, positives, batches = rows + frame.height, positives + int(frame[LABEL].sum()), batches + 1
        scope.batch_done(frame.height, int(frame.estimated_size()))
        scope.progress(rows, 2 * rows, "rows")
    _require(rows, positives, context.spec, split)
    return _Seen(builder.finish(), rows, positives, batches)


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


def _write(
    context: ChildContext, task: Task, scope: Scope, split: Split, *, seen: _Seen, rate: float, directory: Path
) -> tuple[TrainingCache, Mapping[str, Any]]:
    """Write the encoded rows that are kept; return them, and the distribution of all as drift is measured against."""
    encoder = seen.encoder
    codes = dict(zip(encoder.categorical_indices, encoder.cardinalities, strict=True))
    reference = ReferenceBuilder(encoder.feature_names, categorical=codes)
    if directory.exists():
        shutil.rmtree(directory)  # of an attempt that was killed
    done = 0
    with CacheWriter(directory, features=len(encoder.feature_names)) as writer:
        for frame in training_rows(context, task, scope, low=split.train_from, high=split.train_until):
            scope.governor.wait()
            table = to_arrow(frame)
            matrix = encoder.transform(table)
            labels = frame[LABEL].to_numpy().astype(np.uint8)
            reference.update(matrix)
            kept = keep(table.column(KEY), labels, rate=rate, seed=context.spec.learner.seed)
            writer.append(matrix[kept], labels[kept])
            done += frame.height
            scope.progress(seen.rows + done, 2 * seen.rows, "rows")
        cache = writer.close()
    return cache, reference.finish().to_json()
