"""The task of a slice of labels: label records joined with their rows, and segments by when each became known.

Runs in the cage. Which slices there are is planned by ``preparing/``; the join itself is ``label_events.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.batching import Chunk, ChunkWriter, Table, Workspace, read_batches
from engine.batching.atomic import sync_files
from engine.batching.tables import chunk_prefix
from engine.features.label_events import join_labels, label_event_schema
from engine.features.segment_sets import SEGMENT_ROWS, build_segments
from engine.features.window_plans import segment_plans
from engine.layout import chunk_writer, label_events_table
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext


def run(task: Task, scope: Scope) -> TaskResult:
    """Join one commit of label records with their rows; write events, those that wait, and segments (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    feature_set = spec.feature_set
    labels = _read_labels(workspace, feature_set, task.inputs, scope)
    keys = label_window_keys(spec)
    raw = workspace.table("raw")
    schema = raw.schema()
    if schema is None or not labels.num_rows:
        label_batches: Iterator[pa.RecordBatch] = iter(())
    else:
        label_batches = _raw_of_labels(raw, labels, spec=spec, keys=keys, raw_n=int(task.inputs["raw_n"]), scope=scope)
    found, waiting = join_labels(
        labels,
        label_batches,
        key=spec.source.key,
        cursor=spec.source.cursor,
        event_time=spec.event_time,
        window_keys=keys,
        delay=spec.labels.delay,
    )
    side = label_events_table(workspace, feature_set)
    if found.num_columns == len(label_event_schema(pa.int64(), [])) and keys and schema is not None:
        found = label_event_schema(labels.schema.field("key").type, [schema.field(key) for key in keys]).empty_table()
    with chunk_writer(spec, side, prefix=chunk_prefix(n, "labels"), schema=found.schema) as written:
        for batch in found.to_batches(max_chunksize=SEGMENT_ROWS):
            written.write(batch)
            scope.batch_done(batch.num_rows, batch.nbytes)
    with ChunkWriter(
        _pending_dir(workspace, feature_set), prefix=chunk_prefix(n, "labels"), schema=labels.schema
    ) as left:
        for batch in waiting.to_batches():
            left.write(batch)
    segments = build_segments(
        found.filter(found.column("value").is_valid()),
        plans=segment_plans(spec.features, over="labels"),
        time="known_at",
        root=workspace.segments,
        prefix=f"{feature_set}/labels-{n:08d}",
    )
    sync_files([workspace.segments / ref.path for ref in segments.refs])
    return TaskResult(
        task=task.name,
        outputs={
            "chunks": [to_json(ref) for ref in written.chunks],
            "pending": [ref.path for ref in left.chunks],
            "pending_rows": waiting.num_rows,
            "segments": [to_json(ref) for ref in segments.refs],
        },
        rows_in=labels.num_rows,
        rows_out=found.num_rows,
        batches=len(written.chunks),
    )


def label_chunks(workspace: Workspace, bounds: Mapping[str, Any]) -> list[Chunk]:
    """Return the chunks of labels that a slice takes."""
    chunks = workspace.table("labels").chunks(newest_n=int(bounds["through_n"]))
    return [chunk for chunk in chunks if chunk.n > int(bounds["after_n"])]


def _pending_dir(workspace: Workspace, feature_set: str) -> Path:
    return workspace.root / "pending" / feature_set


def _read_labels(workspace: Workspace, feature_set: str, bounds: Mapping[str, Any], scope: Scope) -> pa.Table:
    paths = [chunk.path for chunk in label_chunks(workspace, bounds)]
    paths += [_pending_dir(workspace, feature_set) / name for name in bounds["pending"]]
    batches = list(read_batches(paths, batch_bytes=scope.governor.batch_bytes))
    schema = workspace.table("labels").schema()
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)


def _raw_of_labels(
    raw: Table, labels: pa.Table, *, spec: PipelineSpec, keys: Sequence[str], raw_n: int, scope: Scope
) -> Iterator[pa.RecordBatch]:
    extent = pc.min_max(labels.column("key"))
    low, high = extent["min"].as_py(), extent["max"].as_py()
    chunks = [
        chunk
        for chunk in raw.chunks(newest_n=raw_n)
        if chunk.may_hold(spec.source.key, low, None) and _starts_by(chunk, spec.source.key, high)
    ]
    columns = list(dict.fromkeys([spec.source.key, spec.source.cursor, spec.event_time, *keys]))
    for batch in read_batches([c.path for c in chunks], columns=columns, batch_bytes=scope.governor.batch_bytes):
        scope.governor.wait()
        yield batch


def _starts_by(chunk: Chunk, column: str, high: Any) -> bool:
    smallest = chunk.minimum.get(column)
    return smallest is None or bool(smallest <= high)


def label_window_keys(spec: PipelineSpec) -> list[str]:
    """Return the columns that windows over labels are keyed by."""
    return sorted({key for window in spec.features.windows if window.over == "labels" for key in window.keys})
