"""Slices of label records: each commit of ``labels`` becomes ``label_events``, which windows over labels are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.batching import Table
from engine.errors import HeadraceError
from engine.features.footprints import project_labels
from engine.features.label_slices import label_chunks
from engine.layout import EVENT_TIME, KEY, label_events_table, prepared_table
from engine.memory.projection import Projection
from engine.preparing.state import State
from engine.refs import ChunkRef, Task, TaskResult
from engine.stage import Outcome, Plan, StageContext


def next_bounds(context: StageContext, state: State, raw_n: int) -> dict[str, Any] | None:
    """Return the next commit of label records, or those that wait for rows that have come; None: there are none."""
    labels_n = context.workspace.table("labels").transaction("extract:labels")
    done = state.number("labels_n")
    waiting = state.number("pending_rows") > 0 and raw_n > state.number("labels_raw_n")
    if labels_n <= done and not waiting:
        return None
    # One chunk's n at a time, since that bounds the size; where there is none, to the end.
    ahead = [chunk.n for chunk in context.workspace.table("labels").chunks() if chunk.n > done]
    return {
        "kind": "labels",
        "after_n": done,
        "through_n": min(ahead, default=labels_n),
        "pending": list(state.record.get("pending", [])),
        "pending_rows": state.number("pending_rows"),
        "raw_n": raw_n,
    }


def tasks(
    stage: str, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
) -> Sequence[tuple[Task, Projection]]:
    """Return the one task, which joins the records with the keys of their rows."""
    if done:
        return ()
    inputs = {**plan.bounds, "n": plan.n, "spec": context.spec.feature_set, "imports": ["polars"]}
    task = Task(stage, f"{context.spec.feature_set}.labels.{plan.n}", "engine.features.label_slices:run", inputs)
    labels = label_chunks(context.workspace, plan.bounds)
    rows = sum(chunk.rows for chunk in labels) + int(plan.bounds["pending_rows"])
    return ((task, project_labels(context, rows)),)


def smaller(plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
    """Return nothing: labels come by commits."""
    del plan, error
    return None


def finish(context: StageContext, plan: Plan, results: Sequence[TaskResult], state: State) -> Outcome:
    """Return how far labels are, and how to publish: label events first, then prepared."""
    [result] = results
    side = label_events_table(context.workspace, context.spec.feature_set)
    prepared = prepared_table(context.workspace, context.spec.feature_set)
    chunks = [ChunkRef.from_json(value) for value in result.outputs["chunks"]]

    def publish() -> None:
        if chunks:
            schema = pq.read_schema(side.path / chunks[0].path)
            side.commit(app=f"{plan.app}:label_events", n=plan.n, schema=schema, add=chunks)
        prepared.commit(app=plan.app, n=plan.n, schema=_first_schema(context, prepared))

    record = {
        **state.record,
        "labels_n": plan.bounds["through_n"],
        "labels_raw_n": plan.bounds["raw_n"],
        "pending": result.outputs["pending"],
        "pending_rows": result.outputs["pending_rows"],
        "label_segments": result.outputs["segments"],
        "event_segments": {},
    }
    outputs = {"kind": "labels", "labels": result.rows_out, "labels_waiting": result.outputs["pending_rows"]}
    return Outcome(outputs=outputs, record=record, publish=publish)


def _first_schema(context: StageContext, prepared: Table) -> pa.Schema:
    """Return the table's schema, or, before any row was prepared, one that later commits widen."""
    existing = prepared.schema()
    if existing is not None:
        return existing
    raw = context.workspace.table("raw").schema()
    key = raw.field(context.spec.source.key).type if raw is not None else pa.int64()
    return pa.schema([pa.field(KEY, key), pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC"))])
