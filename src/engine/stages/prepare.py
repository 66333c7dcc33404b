"""Prepare: label records become ``label_events``, new rows become ``prepared`` rows with their windows.

Two kinds of slices, labels first. A slice of rows is a span of event time: gathered (newest versions, in order of event
time), its events built into segments, then searched. The window arithmetic is in ``features/``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine import events
from engine.batching import Chunk, ChunkWriter, Table, Workspace, read_batches
from engine.batching.chunks import ROW_GROUP_BYTES
from engine.batching.frames import to_arrow
from engine.batching.streams import rows_for
from engine.batching.tables import chunk_prefix
from engine.features.label_events import join_labels, label_event_schema
from engine.features.segments import SegmentRef, build_segment
from engine.features.spans import Increment, Span, plan_spans
from engine.features.transform import load_transform
from engine.features.windows import SegmentPlan, WindowReader, segment_plans
from engine.layout import BASELINE, EVENT_TIME, KEY, label_events_table, prepared_app, prepared_table
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext, Outcome, Plan, StageContext
from engine.units import microseconds

_GATHER_COPIES = 5  # the span as read, as Polars holds it, sorted, without old versions, and as Arrow
_SEARCH_COPIES = 6  # a batch, its transform, its composite keys, bounds and results
_LABEL_COPIES = 5
_SPAN_SHARE = 0.6  # of what is free, for one span while it is gathered
_MOST_SPAN_ROWS = 500_000
_SEGMENT_ROWS = 250_000
_LABEL_BYTES = 64  # a label record in memory, before its window keys


@dataclass(frozen=True)
class PrepareStage:
    """The prepare stage of the context's pipeline."""

    name: str = "prepare"

    def app(self, context: StageContext) -> str:
        """Return the application id, which names the feature set."""
        return prepared_app(context.spec.feature_set)

    def primary(self, context: StageContext) -> Table:
        """Return the feature set's prepared table."""
        return prepared_table(context.workspace, context.spec.feature_set)

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the next slice: new label records, else the next span of event time that new rows touch."""
        state = _State.of(context)
        raw_n = context.workspace.table("raw").transaction("extract:raw")
        if not raw_n:
            return None
        return _next_labels(context, state, raw_n) or _next_span(context, state, raw_n)

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the task that joins labels; or the one that gathers a span, then the one that searches it."""
        if plan.bounds["kind"] == "labels":
            return () if done else (_label_task(self.name, context, plan),)
        if not done:
            return (_gather_task(self.name, context, plan),)
        return () if len(done) == 2 else (_search_task(self.name, context, plan, done[0][0]),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record how far labels and rows are; publish label events first, then prepared."""
        state = _State.of(context)
        result = done[-1][0]
        if plan.bounds["kind"] == "labels":
            return _finish_labels(self, context, plan, result, state)
        gathered = done[0][0]
        prepared = self.primary(context)
        replaced = [chunk.name for chunk in prepared.chunks() if chunk.n in plan.bounds["replaces"]]
        chunks = [ChunkRef.from_json(value) for value in result.outputs["chunks"]]
        slice_file = context.workspace.root / gathered.outputs["slice"]

        def publish() -> None:
            schema = pq.read_schema(prepared.path / chunks[0].path) if chunks else _prepared_schema(prepared)
            prepared.commit(app=plan.app, n=plan.n, schema=schema, add=chunks, remove=replaced)
            slice_file.unlink(missing_ok=True)

        todo = plan.bounds["todo"]
        record = {
            **state.record,
            "todo": todo,
            "raw_n": plan.bounds["raw_n"],
            "event_segments": gathered.outputs["segments"],
            "label_segments": [],
        }
        outputs = {"rows": result.rows_out, "kind": "rows", "span": plan.bounds["span"], "spans_left": len(todo)}
        return Outcome(outputs=outputs, record=record, publish=publish)


def _prepared_schema(prepared: Table) -> pa.Schema:
    schema = prepared.schema()
    return schema if schema is not None else pa.schema([pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC"))])


@dataclass(frozen=True)
class _State:
    """How far the feature set is, from the record of its last commit."""

    record: Mapping[str, Any]

    @classmethod
    def of(cls, context: StageContext) -> _State:
        app = prepared_app(context.spec.feature_set)
        n = prepared_table(context.workspace, context.spec.feature_set).transaction(app)
        record = (context.workspace.journal.commit(app, n) if n else None) or {}
        kept = ("labels_n", "labels_raw_n", "pending", "pending_rows", "raw_n", "todo")
        return cls({key: record[key] for key in kept if key in record})

    def number(self, name: str) -> int:
        return int(self.record.get(name, 0))


# --- labels ---------------------------------------------------------------------------------------------------------


def _next_labels(context: StageContext, state: _State, raw_n: int) -> dict[str, Any] | None:
    labels_n = context.workspace.table("labels").transaction("extract:labels")
    done = state.number("labels_n")
    waiting = state.number("pending_rows") > 0 and raw_n > state.number("labels_raw_n")
    if labels_n <= done and not waiting:
        return None
    return {
        "kind": "labels",
        "after_n": done,
        "through_n": min(labels_n, done + 1),  # one commit of labels at a time: its size is bounded
        "pending": list(state.record.get("pending", [])),
        "pending_rows": state.number("pending_rows"),
        "raw_n": raw_n,
    }


def _label_task(stage: str, context: StageContext, plan: Plan) -> tuple[Task, Projection]:
    inputs = {**plan.bounds, "n": plan.n, "spec": context.spec.feature_set, "imports": ["polars"]}
    task = Task(stage, f"{context.spec.feature_set}.labels.{plan.n}", "engine.stages.prepare:run_labels", inputs)
    labels = _label_chunks(context.workspace, plan.bounds)
    rows = sum(chunk.rows for chunk in labels) + int(plan.bounds["pending_rows"])
    keys = _label_window_keys(context.spec)
    row_bytes = _LABEL_BYTES + 32 * len(keys)
    terms = {
        "label records": rows * row_bytes * _LABEL_COPIES,
        "batches in flight": 3 * context.budget.batch_bytes,
        "window segments in hand": rows * 48,
        "row group being written": 2 * ROW_GROUP_BYTES,
    }
    return task, Projection(stage=stage, reserved_bytes=context.reserved.load(stage), terms=terms)


def run_labels(task: Task, scope: Scope) -> TaskResult:
    """Join one commit of label records with their rows; write events, those that wait, and segments (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    feature_set = spec.feature_set
    labels = _read_labels(workspace, feature_set, task.inputs, scope)
    keys = _label_window_keys(spec)
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
    events_dir = label_events_table(workspace, feature_set).path
    if found.num_columns == len(label_event_schema(pa.int64(), [])) and keys and schema is not None:
        found = label_event_schema(labels.schema.field("key").type, [schema.field(key) for key in keys]).empty_table()
    with ChunkWriter(events_dir, prefix=chunk_prefix(n, "labels"), schema=found.schema) as written:
        for batch in found.to_batches(max_chunksize=_SEGMENT_ROWS):
            written.write(batch)
            scope.batch_done(batch.num_rows, batch.nbytes)
    with ChunkWriter(
        _pending_dir(workspace, feature_set), prefix=chunk_prefix(n, "labels"), schema=labels.schema
    ) as left:
        for batch in waiting.to_batches():
            left.write(batch)
    segments = _build_segments(
        found.filter(found.column("value").is_valid()),
        plans=segment_plans(spec.features, over="labels"),
        time="known_at",
        root=workspace.segments,
        prefix=f"{feature_set}/labels-{n:08d}",
    )
    return TaskResult(
        task=task.name,
        outputs={
            "chunks": [to_json(ref) for ref in written.chunks],
            "pending": [ref.path for ref in left.chunks],
            "pending_rows": waiting.num_rows,
            "segments": segments,
        },
        rows_in=labels.num_rows,
        rows_out=found.num_rows,
        batches=len(written.chunks),
    )


def _finish_labels(
    stage: PrepareStage, context: StageContext, plan: Plan, result: TaskResult, state: _State
) -> Outcome:
    side = label_events_table(context.workspace, context.spec.feature_set)
    prepared = stage.primary(context)
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
        "event_segments": [],
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


def _label_chunks(workspace: Workspace, bounds: Mapping[str, Any]) -> list[Chunk]:
    chunks = workspace.table("labels").chunks(newest_n=int(bounds["through_n"]))
    return [chunk for chunk in chunks if chunk.n > int(bounds["after_n"])]


def _pending_dir(workspace: Workspace, feature_set: str) -> Path:
    return workspace.root / "pending" / feature_set


def _read_labels(workspace: Workspace, feature_set: str, bounds: Mapping[str, Any], scope: Scope) -> pa.Table:
    paths = [chunk.path for chunk in _label_chunks(workspace, bounds)]
    paths += [_pending_dir(workspace, feature_set) / name for name in bounds["pending"]]
    batches = list(read_batches(paths, batch_bytes=scope.governor.batch_bytes))
    schema = workspace.table("labels").schema()
    return pa.Table.from_batches(batches, schema=batches[0].schema if batches else schema)


def _raw_of_labels(
    raw: Table, labels: pa.Table, *, spec: PipelineSpec, keys: Sequence[str], raw_n: int, scope: Scope
) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc

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


def _label_window_keys(spec: PipelineSpec) -> list[str]:
    return sorted({key for window in spec.features.windows if window.over == "labels" for key in window.keys})


# --- rows -----------------------------------------------------------------------------------------------------------


def _next_span(context: StageContext, state: _State, raw_n: int) -> dict[str, Any] | None:
    prepared = prepared_table(context.workspace, context.spec.feature_set)
    live = _live_spans(prepared)
    todo, target = list(state.record.get("todo", [])), state.number("raw_n")
    if not todo:
        if raw_n <= target:
            return None
        increments, row_bytes = _increments(context, after_n=target, through_n=raw_n)
        spans = plan_spans(
            increments,
            live=[span for span, _ in live],
            rows_per_span=_rows_per_span(context, row_bytes),
            reach=_reach(context.spec),
        )
        todo = [[span.low, span.high, span.rows] for span in spans]
        target = raw_n
        if not todo:
            return None
    low, high, rows = todo[0]
    return {
        "kind": "rows",
        "span": [low, high],
        "rows": rows,
        "raw_n": target,
        "replaces": [n for span, n in live if span.overlaps(low, high)],
        "todo": todo[1:],
    }


def _live_spans(prepared: Table) -> list[tuple[Span, int]]:
    extents: dict[int, list[int]] = {}
    for chunk in prepared.chunks():
        low, high = (_micros(side[EVENT_TIME]) for side in (chunk.minimum, chunk.maximum))
        known = extents.setdefault(chunk.n, [low, high + 1, 0])
        extents[chunk.n] = [min(known[0], low), max(known[1], high + 1), known[2] + chunk.rows]
    return [(Span(*extent), n) for n, extent in extents.items()]


def _increments(context: StageContext, *, after_n: int, through_n: int) -> tuple[list[Increment], float]:
    increments, rows, size = [], 0, 0
    for n in range(after_n + 1, through_n + 1):
        record = context.workspace.journal.commit("extract:raw", n)
        if not record or not record["hours"]:
            continue
        hours = {int(hour): int(count) for hour, count in record["hours"].items()}
        increments.append(Increment(hours, int(record["event_minimum"]), int(record["event_maximum"])))
        rows, size = rows + int(record["rows"]), size + int(record["memory_bytes"])
    return increments, size / rows if rows else 64.0


def _rows_per_span(context: StageContext, row_bytes: float) -> int:
    free = context.budget.allowed_bytes - context.reserved.load("prepare")
    return max(1, min(_MOST_SPAN_ROWS, int(free * _SPAN_SHARE / (row_bytes * _GATHER_COPIES))))


def _reach(spec: PipelineSpec) -> int:
    """Return how long after its event time a row changes windows over events, in microseconds."""
    longest = [
        spec.features.gap_of(window) + max(window.lengths)
        for window in spec.features.windows
        if window.over == "events"
    ]
    return microseconds(max(longest)) if longest else 0


def _gather_task(stage: str, context: StageContext, plan: Plan) -> tuple[Task, Projection]:
    inputs = {**plan.bounds, "n": plan.n, "spec": context.spec.feature_set, "imports": ["polars"]}
    task = Task(stage, f"{context.spec.feature_set}.gather.{plan.n}", "engine.stages.prepare:run_gather", inputs)
    _, row_bytes = _increments(context, after_n=0, through_n=int(plan.bounds["raw_n"]))
    terms = {
        "span while it is sorted": int(plan.bounds["rows"] * row_bytes * _GATHER_COPIES),
        "batches in flight": 2 * context.budget.batch_bytes,
    }
    return task, Projection(stage=stage, reserved_bytes=context.reserved.load(stage), terms=terms)


def run_gather(task: Task, scope: Scope) -> TaskResult:
    """Write one span's newest rows in order of event time, and the segments of its events (in the cage)."""
    import polars as pl

    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    low, high = (_time(value) for value in task.inputs["span"])
    chunks = [
        chunk
        for chunk in workspace.table("raw").chunks(newest_n=int(task.inputs["raw_n"]))
        if chunk.may_hold(spec.event_time, low, high)
    ]
    schema = workspace.table("raw").schema()
    if schema is None:
        raise LookupError("raw has no schema though a span of it was planned")
    columns = [name for name in schema.names if name not in spec.after_columns]
    schema = pa.schema([schema.field(name) for name in columns])
    batches = []
    for batch in read_batches(
        [chunk.path for chunk in chunks],
        columns=columns,
        schema=schema,
        batch_bytes=scope.governor.batch_bytes,
        span=(spec.event_time, low, high),
    ):
        scope.batch_done(batch.num_rows, batch.nbytes)
        batches.append(batch)
    table = pa.Table.from_batches(batches, schema=schema)
    rows_in, count = table.num_rows, len(batches)
    frame = pl.DataFrame(table)
    del table, batches
    key, cursor = spec.source.key, spec.source.cursor
    frame = frame.sort(key, cursor).unique(subset=key, keep="last", maintain_order=True).sort(spec.event_time, key)
    gathered = to_arrow(frame, schema)
    del frame
    path = workspace.root / "slices" / spec.feature_set / f"{n:08d}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(gathered, max_chunksize=16_384)
    segments = _build_segments(
        gathered,
        plans=segment_plans(spec.features, over="events"),
        time=spec.event_time,
        root=workspace.segments,
        prefix=f"{spec.feature_set}/events-{n:08d}",
    )
    return TaskResult(
        task=task.name,
        outputs={"slice": str(path.relative_to(workspace.root)), "segments": segments},
        rows_in=rows_in,
        rows_out=0,
        batches=count,
    )


def _search_task(stage: str, context: StageContext, plan: Plan, gathered: TaskResult) -> tuple[Task, Projection]:
    inputs = {
        **plan.bounds,
        "n": plan.n,
        "spec": context.spec.feature_set,
        "code": context.spec_hash(),
        "slice": gathered.outputs["slice"],
        "imports": ["polars"],
        "segments": _segments_in_reach(context, plan, gathered.outputs["segments"]),
    }
    task = Task(stage, f"{context.spec.feature_set}.search.{plan.n}", "engine.stages.prepare:run_search", inputs)
    features = len(context.spec.features.names())
    terms = {
        "batches in flight": context.budget.batch_bytes * _SEARCH_COPIES,
        "window results": _search_rows(context.spec, context.budget.batch_bytes) * features * 8 * 3,
        "row group being written": 2 * ROW_GROUP_BYTES,
        "page of each column": (features + 3) * 2**18,
        "transform": 16 * 2**20,
    }
    return task, Projection(stage=stage, reserved_bytes=context.reserved.load(stage), terms=terms)


def _search_rows(spec: PipelineSpec, batch_bytes: int) -> int:
    return rows_for(batch_bytes, bytes_per_row=8.0 * (len(spec.features.names()) + 8))


def run_search(task: Task, scope: Scope) -> TaskResult:
    """Transform a span's rows, look up their windows, and write them as prepared chunks (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    transform = load_transform(spec.features.transform, directory=context.directory)
    readers = _readers(spec, task.inputs["segments"], root=workspace.segments)
    writer: ChunkWriter | None = None
    prepared = prepared_table(workspace, spec.feature_set)

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    rows_in = batches = 0
    with pa.memory_map(str(workspace.root / task.inputs["slice"]), "rb") as source, pa.ipc.open_file(source) as reader:
        total = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        for group in _grouped(reader, rows=_search_rows(spec, scope.governor.batch_bytes())):
            scope.governor.wait()
            out = _features(transform(group), spec, readers)
            if writer is None:
                prefix = chunk_prefix(n, "rows")
                writer = ChunkWriter(prepared.path, prefix=prefix, schema=out.schema, on_chunk=on_chunk)
                writer.__enter__()
            for batch in out.to_batches():
                writer.write(batch)
            rows_in, batches = rows_in + group.num_rows, batches + 1
            scope.batch_done(group.num_rows, group.nbytes)
            scope.progress(rows_in, total, "rows")
    if writer is not None:
        writer.__exit__(None, None, None)
    chunks = [] if writer is None else writer.chunks
    return TaskResult(
        task=task.name,
        outputs={"chunks": [to_json(ref) for ref in chunks]},
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in chunks),
        batches=batches,
    )


def _grouped(reader: pa.ipc.RecordBatchFileReader, *, rows: int) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    for index in range(reader.num_record_batches):
        batch = reader.get_batch(index)
        if held and sum(b.num_rows for b in held) + batch.num_rows > rows:
            yield pa.Table.from_batches(held)
            held = []
        held.append(batch)
    if held:
        yield pa.Table.from_batches(held)


def _readers(
    spec: PipelineSpec, segments: Mapping[str, Sequence[Mapping[str, Any]]], *, root: Path
) -> dict[tuple[str, tuple[str, ...]], WindowReader]:
    """Return one reader for the windows over labels, or events, with the same keys."""
    readers: dict[tuple[str, tuple[str, ...]], WindowReader] = {}
    for window in spec.features.windows:
        refs = [SegmentRef.from_json(value) for value in segments[window.over]]
        mine = [ref for ref in refs if ref.keys == window.keys]
        readers.setdefault((window.over, window.keys), WindowReader(mine, root=root))
    return readers


def _features(
    rows: pa.Table, spec: PipelineSpec, readers: Mapping[tuple[str, tuple[str, ...]], WindowReader]
) -> pa.Table:
    """Return the prepared rows of a batch: key, event_time, baseline, numeric, categorical, windows."""
    columns = {KEY: rows.column(spec.source.key), EVENT_TIME: rows.column(spec.event_time)}
    if spec.baseline is not None:
        columns[BASELINE] = rows.column(spec.baseline).cast(pa.float64())
    for name in (*spec.features.numeric, *spec.features.categorical):
        columns[name] = rows.column(name)
    for window in spec.features.windows:
        reader, gap = readers[window.over, window.keys], spec.features.gap_of(window)
        columns |= reader.compute(rows, keys=window.keys, time=spec.event_time, window=window, gap=gap)
    return pa.table(columns)


def _segments_in_reach(context: StageContext, plan: Plan, own: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Return, over events and labels, the segments that windows of the plan's span may overlap."""
    feature_set, workspace = context.spec.feature_set, context.workspace
    low, high = plan.bounds["span"]
    windows = context.spec.features.windows
    reach = max((microseconds(context.spec.features.gap_of(w) + max(w.lengths)) for w in windows), default=0)
    start, end = _time(low - reach), _time(high)
    prepared = prepared_table(workspace, feature_set)
    labels = label_events_table(workspace, feature_set)
    event_ns = {c.n for c in prepared.chunks() if c.may_hold(EVENT_TIME, start, end)} - set(plan.bounds["replaces"])
    label_chunks = labels.chunks(newest_n=prepared.transaction(plan.app))
    label_ns = {c.n for c in label_chunks if c.may_hold("known_at", start, end)}
    journal = workspace.journal
    return {
        "events": [
            *own,
            *(ref for n in sorted(event_ns) for ref in (journal.commit(plan.app, n) or {})["event_segments"]),
        ],
        "labels": [ref for n in sorted(label_ns) for ref in (journal.commit(plan.app, n) or {})["label_segments"]],
    }


def _build_segments(
    rows: pa.Table, *, plans: Sequence[SegmentPlan], time: str, root: Path, prefix: str
) -> list[dict[str, Any]]:
    refs = []
    for index, plan in enumerate(plans):
        columns = list(dict.fromkeys([*plan.keys, time, *plan.measures]))
        for part, start in enumerate(range(0, rows.num_rows, _SEGMENT_ROWS)):
            piece = rows.select(columns).slice(start, _SEGMENT_ROWS)
            path = root / f"{prefix}-{index}-{part}.arrow"
            ref = build_segment(
                piece,
                keys=plan.keys,
                time=time,
                measures=plan.measures,
                squares=plan.squares,
                path=path,
                root=root,
            )
            refs.append(to_json(ref))
    return refs


def _time(value: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)


def _micros(value: datetime) -> int:
    return microseconds(value.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC))
