"""The task of a slice of labels: label records joined with their rows, and segments by when each became known.

Runs in the cage. Which slices there are is planned by ``preparing/``; the join itself is ``label_events.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batching import Chunk, ChunkWriter, Table, Workspace, read_batches
from engine.batching.atomic import sync_files
from engine.batching.streams import BatchBytes
from engine.batching.tables import chunk_prefix
from engine.features.label_events import join_labels
from engine.features.row_slices import require_columns
from engine.features.segment_sets import SEGMENT_ROWS, build_segments
from engine.features.transform import transform_of
from engine.features.window_plans import length_of, segment_plans
from engine.layout import chunk_writer, label_events_table
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext


def run(task: Task, scope: Scope) -> TaskResult:
    """Join some label records with their rows; write events, those that wait, and segments (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    feature_set = spec.feature_set
    raw = workspace.table("raw")
    schema, order = raw.schema(), workspace.table("labels").schema()
    keys = label_window_keys(spec)
    made = spec.features.transform is not None and bool(keys)  # it may make a key, or change what one is
    transform = transform_of(spec, directory=context.directory, types=task.inputs.get("row_types")) if made else None
    batch_bytes = scope.governor.batch_bytes
    new = _table(_new_labels(workspace, task.inputs, batch_bytes=batch_bytes), order)
    waited = _table(_waiting_labels(workspace, feature_set, task.inputs, batch_bytes=batch_bytes), order)
    labels = pa.concat_tables([new, waited])
    # Those that waited have no row among those that they were looked for in.
    sought = [(0, new), (int(task.inputs["raw_after_n"]), waited)]
    chunks = [] if schema is None else _chunks_of(raw, sought, key=spec.source.key, raw_n=int(task.inputs["raw_n"]))
    columns = [spec.source.key, spec.source.cursor, spec.event_time, *keys]
    if schema is not None and transform is None:
        require_columns(keys, schema)
    elif schema is not None:  # in their order, which it may go by
        columns = [name for name in schema.names if name not in spec.after_columns]
    label_batches = _raw_of_labels(chunks, schema=_part_of(schema, columns), scope=scope)
    found, waiting = join_labels(
        labels,
        label_batches,
        key=spec.source.key,
        cursor=spec.source.cursor,
        event_time=spec.event_time,
        window_keys=keys,
        delay=spec.labels.delay,
        transform=None if transform is None else _with_keys(transform, keys),
    )
    side = label_events_table(workspace, feature_set)
    with chunk_writer(spec, side, prefix=chunk_prefix(n, "labels"), schema=found.schema) as written:
        for batch in found.to_batches(max_chunksize=SEGMENT_ROWS):
            written.write(batch)
            scope.batch_done(batch.num_rows, batch.nbytes)
    left = ChunkWriter(waiting_path(workspace, feature_set), prefix=chunk_prefix(n, "labels"), schema=labels.schema)
    with left:
        for batch in waiting.to_batches():
            left.write(batch)
    counted = found.filter(found.column("value").is_valid())
    segments = build_segments(
        counted,
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
            "waiting": {ref.path: ref.rows for ref in left.chunks},
            "segments": [to_json(ref) for ref in segments.refs],
            "seen_by": seen_by(spec, counted.column("known_at")),
        },
        rows_in=labels.num_rows,
        rows_out=found.num_rows,
        batches=len(written.chunks),
    )


def seen_by(spec: PipelineSpec, known: pa.ChunkedArray) -> list[list[int]]:
    """Return the event times of rows whose windows over labels may hold records that became known at some times.

    Half-open stretches in microseconds, in order, that do not meet; none where no window is over labels.
    """
    windows = [window for window in spec.features.windows if window.over == "labels"]
    if not windows or not len(known):
        return []
    gaps = [length_of(spec.features.gap_of(window)) for window in windows]
    first = min(gaps)
    last = max(gap + length_of(max(window.lengths)) for gap, window in zip(gaps, windows, strict=True))
    times = np.unique(known.cast(pa.int64()).to_numpy())
    ends = np.flatnonzero(np.diff(times) > last - first)
    starts, stops = times[np.append(0, ends + 1)], times[np.append(ends, len(times) - 1)]
    return [[int(start) + first, int(stop) + last + 1] for start, stop in zip(starts, stops, strict=True)]


def waiting_path(workspace: Workspace, feature_set: str, name: str = "") -> Path:
    """Return where a file of labels is whose row has not come, or, without a name, all of them."""
    return workspace.root / "pending" / feature_set / name


def _new_labels(workspace: Workspace, given: Mapping[str, Any], *, batch_bytes: BatchBytes) -> Iterator[pa.RecordBatch]:
    first, last = given["rows"]
    for chunk in workspace.table("labels").chunks(newest_n=int(given["through_n"])):
        if chunk.n <= int(given["after_n"]):
            continue
        if first < min(chunk.rows, last):
            yield from _rows_of(chunk.path, first, min(chunk.rows, last), batch_bytes=batch_bytes)
        first, last = max(0, first - chunk.rows), max(0, last - chunk.rows)


def _waiting_labels(
    workspace: Workspace, feature_set: str, given: Mapping[str, Any], *, batch_bytes: BatchBytes
) -> Iterator[pa.RecordBatch]:
    for name, (first, last) in given["waiting"].items():
        yield from _rows_of(waiting_path(workspace, feature_set, name), first, last, batch_bytes=batch_bytes)


def _rows_of(path: Path, first: int, last: int, *, batch_bytes: BatchBytes) -> Iterator[pa.RecordBatch]:
    left = last - first
    for batch in read_batches([path], batch_bytes=batch_bytes, after_rows=first):
        yield batch.slice(0, left)
        left -= batch.num_rows
        if left <= 0:
            return


def _table(batches: Iterator[pa.RecordBatch], schema: pa.Schema) -> pa.Table:
    return pa.Table.from_batches([batch.select(schema.names).cast(schema) for batch in batches], schema=schema)


def _chunks_of(raw: Table, sought: Sequence[tuple[int, pa.Table]], *, key: str, raw_n: int) -> list[Chunk]:
    """Return the chunks that may hold rows of labels, which come with the n that those lie behind."""
    extents = []
    for after_n, labels in sought:
        if labels.num_rows:
            extent = pc.min_max(labels.column("key"))
            extents.append((after_n, extent["min"].as_py(), extent["max"].as_py()))
    return [
        chunk
        for chunk in raw.chunks(newest_n=raw_n)
        if any(
            chunk.n > after_n and chunk.may_hold(key, low, None) and _starts_by(chunk, key, high)
            for after_n, low, high in extents
        )
    ]


def _with_keys(transform: Callable[[pa.Table], pa.Table], keys: Sequence[str]) -> Callable[[pa.Table], pa.Table]:
    """Return the transform, which raises SpecError where its rows lack a key."""

    def made(rows: pa.Table) -> pa.Table:
        out = transform(rows)
        require_columns(keys, out.schema)
        return out

    return made


def _part_of(schema: pa.Schema | None, names: Sequence[str]) -> pa.Schema:
    """Return the fields of some columns, each once, as far as there are such."""
    fields = [] if schema is None else [schema.field(name) for name in dict.fromkeys(names) if name in schema.names]
    return pa.schema(fields)


def _raw_of_labels(chunks: Sequence[Chunk], *, schema: pa.Schema, scope: Scope) -> Iterator[pa.RecordBatch]:
    for batch in read_batches(
        [c.path for c in chunks], columns=schema.names, schema=schema, batch_bytes=scope.governor.batch_bytes
    ):
        scope.governor.wait()
        yield batch


def _starts_by(chunk: Chunk, column: str, high: Any) -> bool:
    smallest = chunk.minimum.get(column)
    return smallest is None or bool(smallest <= high)


def label_window_keys(spec: PipelineSpec) -> list[str]:
    """Return the columns that windows over labels are keyed by."""
    return sorted({key for window in spec.features.windows if window.over == "labels" for key in window.keys})
