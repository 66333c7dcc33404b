"""The labelled rows of a training: a span of prepared, as it was when the training was planned."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

from engine.features.labelled import LabelView, labelled_rows
from engine.layout import label_events_table, prepared_table
from engine.memory.scope import Scope
from engine.refs import Task
from engine.stage import ChildContext
from engine.units import parse_time

if TYPE_CHECKING:
    import polars as pl


def training_rows(
    context: ChildContext, task: Task, scope: Scope, *, low: datetime | None, high: datetime
) -> Iterator[pl.DataFrame]:
    """Yield features and labels of rows with event time in ``[low, high)``.

    What was prepared, and what labels became known, after the task was planned is left out: a resumed training sees
    what the first one saw.
    """
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
        columns=spec.features.names(),
        schema=schema,
        low=low,
        high=high,
        governor=scope.governor,
    )
