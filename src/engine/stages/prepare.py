"""Prepare: label records become ``label_events``, new rows become ``prepared`` rows with their windows.

Label records come first. A slice of rows is spans of event time: each gathered (newest versions, in order of event
time), its events built into segments, then searched. The window arithmetic is in ``features/``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.batching import Table
from engine.batching.tables import chunk_n
from engine.errors import HeadraceError
from engine.features.footprints import (
    UNKNOWN_ROW_BYTES,
    project_labels,
    project_sort,
    project_stream,
    project_windows,
    raw_row_bytes,
    rows_per_span,
    windowed_rows_per_span,
)
from engine.features.label_slices import label_chunks
from engine.features.row_slices import time_of
from engine.features.segment_sets import SEGMENT_ROWS
from engine.features.spans import Increment, Span, plan_spans
from engine.layout import EVENT_TIME, KEY, label_events_table, prepared_app, prepared_table
from engine.memory.projection import Projection
from engine.refs import ChunkRef, Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import Forecast, Outcome, Plan, StageContext
from engine.units import microseconds

_STREAMED_SPAN_ROWS = 2_000_000  # one chunk, and what a late row has written anew
_STREAMED_SPANS = 32
_WINDOWED_SPANS = 64  # of one commit, while none is written again
_MOST_LABELS = 250_000  # of one commit


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
        """Return the task of the slice: label records joined, spans with windows, or rows streamed, then sorted."""
        if plan.bounds["kind"] == "labels":
            return () if done else (_label_task(self.name, context, plan),)
        if plan.bounds["kind"] == "stream":
            return _stream_tasks(self.name, context, plan, done)
        return () if done else (_window_task(self.name, context, plan),)

    def smaller(self, context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
        """Return the slice with spans half as long; labels come by commits."""
        del context, error
        if plan.bounds["kind"] == "labels":
            return None
        if plan.bounds["kind"] == "stream":
            if plan.bounds["in_order"]:
                return {**plan.bounds, "in_order": False}
            return {**plan.bounds, "piece_rows": max(1, int(plan.bounds["piece_rows"]) // 2)}
        spans = [half for span in plan.bounds["spans"] for half in _halves(*span)]
        return None if len(spans) == len(plan.bounds["spans"]) else {**plan.bounds, "spans": spans}

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record how far labels and rows are; publish label events first, then prepared."""
        state = _State.of(context)
        result = done[-1][0]
        if plan.bounds["kind"] == "labels":
            return _finish_labels(self, context, plan, result, state)
        if plan.bounds["kind"] == "stream":
            return _finish_stream(self, plan, [result for phase in done for result in phase], context, state)
        return _finish_rows(self, plan, result, state, context)


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
        kept = ("labels_n", "labels_raw_n", "pending", "pending_rows", "raw_n", "todo", "largest_row_bytes")
        return cls({key: record[key] for key in kept if key in record})

    def number(self, name: str) -> int:
        return int(self.record.get(name, 0))

    def with_largest_row(self, chunks: Sequence[ChunkRef]) -> dict[str, Any]:
        """Return the record with what the largest row takes that was ever prepared."""
        largest = max([self.number("largest_row_bytes"), *(chunk.largest_row_bytes for chunk in chunks)])
        return {**self.record, "largest_row_bytes": largest}


# --- labels ---------------------------------------------------------------------------------------------------------


def _next_labels(context: StageContext, state: _State, raw_n: int) -> dict[str, Any] | None:
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


def _label_task(stage: str, context: StageContext, plan: Plan) -> tuple[Task, Projection]:
    inputs = {**plan.bounds, "n": plan.n, "spec": context.spec.feature_set, "imports": ["polars"]}
    task = Task(stage, f"{context.spec.feature_set}.labels.{plan.n}", "engine.features.label_slices:run", inputs)
    labels = label_chunks(context.workspace, plan.bounds)
    rows = sum(chunk.rows for chunk in labels) + int(plan.bounds["pending_rows"])
    return task, project_labels(context, rows)


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


# --- rows -----------------------------------------------------------------------------------------------------------


def _next_span(context: StageContext, state: _State, raw_n: int) -> dict[str, Any] | None:
    prepared = prepared_table(context.workspace, context.spec.feature_set)
    streams = not context.spec.features.windows
    live = _live_chunks(prepared) if streams else _live_spans(prepared)
    todo, target = list(state.record.get("todo", [])), state.number("raw_n")
    if not todo:
        if raw_n <= target:
            return None
        increments, row_bytes = _increments(context, after_n=target, through_n=raw_n)
        most = _STREAMED_SPAN_ROWS if streams else windowed_rows_per_span(context, row_bytes)
        known = [span for span, _ in live]
        spans = plan_spans(increments, live=known, rows_per_span=most, reach=_reach(context.spec))
        todo = [[span.low, span.high, span.rows] for span in spans]
        target = raw_n
        if not todo:
            return None
    if streams:
        return _stream_bounds(context, todo, raw_n=target, live=live)
    return _rows_bounds(todo, raw_n=target, live=live)


def _replaced(live: Sequence[tuple[Span, list[str]]], low: int, high: int) -> list[str]:
    """Return the chunks that hold rows of a span."""
    return [name for span, names in live if span.overlaps(low, high) for name in names]


def _increments(context: StageContext, *, after_n: int, through_n: int) -> tuple[list[Increment], float]:
    increments, rows, size = [], 0, 0
    for n in range(after_n + 1, through_n + 1):
        record = context.workspace.journal.commit("extract:raw", n)
        if not record or not record["hours"]:
            continue
        hours = {int(hour): int(count) for hour, count in record["hours"].items()}
        increments.append(Increment(hours, int(record["event_minimum"]), int(record["event_maximum"])))
        rows, size = rows + int(record["rows"]), size + int(record["memory_bytes"])
    return increments, size / rows if rows else UNKNOWN_ROW_BYTES


# --- rows without windows -------------------------------------------------------------------------------------------


def _live_chunks(prepared: Table) -> list[tuple[Span, list[str]]]:
    """Return the stretches of time that can be written anew alone: chunks, joined where they share a moment."""
    out: list[tuple[Span, list[str]]] = []
    found = [
        (Span(_micros(c.minimum[EVENT_TIME]), _micros(c.maximum[EVENT_TIME]) + 1, c.rows), c.name)
        for c in prepared.chunks()
    ]
    for span, name in sorted(found):
        if out and span.low < out[-1][0].high:
            last, names = out[-1]
            out[-1] = (Span(last.low, max(last.high, span.high), last.rows + span.rows), [*names, name])
        else:
            out.append((span, [name]))
    return out


def _stream_bounds(
    context: StageContext, todo: Sequence[Sequence[int]], *, raw_n: int, live: Sequence[tuple[Span, list[str]]]
) -> dict[str, Any]:
    """Return the bounds of the first spans that are to do, all of them fresh, or all prepared before."""
    again = [bool(_replaced(live, low, high)) for low, high, _ in todo]
    count = next((i for i, one in enumerate(again) if one != again[0]), len(todo))
    spans = [list(span) for span in todo[: min(count, _STREAMED_SPANS)]]
    row_bytes = raw_row_bytes(context, through_n=raw_n)
    stream = project_stream(context, sum(rows for _, _, rows in spans), row_bytes)
    return {
        "kind": "stream",
        "span": [spans[0][0], spans[-1][1]],
        "spans": spans,
        "raw_n": raw_n,
        "replaced": sorted({name for low, high, _ in spans for name in _replaced(live, low, high)}),
        # A span that is prepared again has late rows or new versions.
        "in_order": not again[0] and stream.projected_bytes <= context.budget.allowed_bytes,
        "piece_rows": rows_per_span(context, row_bytes),
        "row_bytes": row_bytes,
        "todo": [list(span) for span in todo[len(spans) :]],
    }


def _stream_tasks(
    stage: str, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
) -> Sequence[tuple[Task, Projection]]:
    feature_set, bounds = context.spec.feature_set, plan.bounds
    inputs = {
        **bounds,
        "n": plan.n,
        "spec": feature_set,
        "code": context.spec_hash(),
        "imports": ["polars"],
    }
    if bounds["in_order"] and not done:
        task = Task(stage, f"{feature_set}.stream.{plan.n}", "engine.features.row_streams:run_stream", inputs)
        rows = sum(rows for _, _, rows in bounds["spans"])
        return ((task, project_stream(context, rows, float(bounds["row_bytes"]))),)
    left = done[0][0].outputs["left"] if bounds["in_order"] else bounds["spans"]
    if not left or len(done) == (2 if bounds["in_order"] else 1):
        return ()
    task = Task(
        stage, f"{feature_set}.sort.{plan.n}", "engine.features.row_streams:run_sort", {**inputs, "spans": left}
    )
    row_bytes = raw_row_bytes(context, through_n=int(bounds["raw_n"]))
    return ((task, project_sort(context, int(bounds["piece_rows"]), row_bytes)),)


def _finish_stream(
    stage: PrepareStage, plan: Plan, results: Sequence[TaskResult], context: StageContext, state: _State
) -> Outcome:
    prepared = stage.primary(context)
    chunks = [ChunkRef.from_json(value) for result in results for value in result.outputs["chunks"]]

    def publish() -> None:
        schema = pq.read_schema(prepared.path / chunks[0].path) if chunks else _prepared_schema(prepared)
        prepared.commit(app=plan.app, n=plan.n, schema=schema, add=chunks, remove=plan.bounds["replaced"])

    todo, rows = plan.bounds["todo"], sum(chunk.rows for chunk in chunks)
    record = {
        **state.with_largest_row(chunks),
        "todo": todo,
        "raw_n": plan.bounds["raw_n"],
        "event_segments": {},
        "label_segments": [],
    }
    outputs = {"rows": rows, "kind": "rows", "span": plan.bounds["span"], "spans_left": len(todo)}
    return Outcome(outputs=outputs, record=record, publish=publish)


# --- rows with windows ----------------------------------------------------------------------------------------------


def _reach(spec: PipelineSpec) -> int:
    """Return how long after its event time a row changes windows over events, in microseconds."""
    longest = [
        spec.features.gap_of(window) + max(window.lengths)
        for window in spec.features.windows
        if window.over == "events"
    ]
    return microseconds(max(longest)) if longest else 0


def _live_spans(prepared: Table) -> list[tuple[Span, list[str]]]:
    """Return the spans that are prepared now, with their chunks, which are replaced together."""
    extents: dict[str, tuple[Span, list[str]]] = {}
    for chunk in prepared.chunks():
        low, high = (_micros(side[EVENT_TIME]) for side in (chunk.minimum, chunk.maximum))
        span, names = extents.setdefault(_span_name(chunk.name), (Span(low, high + 1), []))
        span = Span(min(span.low, low), max(span.high, high + 1), span.rows + chunk.rows)
        extents[_span_name(chunk.name)] = (span, [*names, chunk.name])
    return list(extents.values())


def _span_name(chunk: str) -> str:
    """Return what the names of a span's chunks have in common, from one of them."""
    return chunk.rsplit("-", 1)[0]


def _rows_bounds(
    todo: Sequence[Sequence[int]], *, raw_n: int, live: Sequence[tuple[Span, list[str]]]
) -> dict[str, Any]:
    """Return the bounds of the first spans that are to do: some fresh ones, or all at once where any is written again.

    So late rows, and all rows whose windows they change, are one commit.
    """
    again = any(_replaced(live, low, high) for low, high, _ in todo)
    spans = [list(span) for span in (todo if again else todo[:_WINDOWED_SPANS])]
    return {
        "kind": "rows",
        "span": [spans[0][0], spans[-1][1]],
        "spans": spans,
        "raw_n": raw_n,
        "replaced": sorted({name for low, high, _ in spans for name in _replaced(live, low, high)}),
        "todo": [list(span) for span in todo[len(spans) :]],
    }


def _halves(low: int, high: int, rows: int) -> list[list[int]]:
    """Return a span in two, or whole where it is one moment."""
    middle = (low + high) // 2
    half = -(-rows // 2)
    return [[low, high, rows]] if middle == low else [[low, middle, half], [middle, high, half]]


def _window_task(stage: str, context: StageContext, plan: Plan) -> tuple[Task, Projection]:
    feature_set, bounds = context.spec.feature_set, plan.bounds
    reached = _segments_in_reach(context, plan)
    inputs = {
        **bounds,
        "n": plan.n,
        "spec": feature_set,
        "code": context.spec_hash(),
        "imports": ["polars"],
        "segments": reached,
    }
    task = Task(stage, f"{feature_set}.windows.{plan.n}", "engine.features.window_slices:run", inputs)
    row_bytes = raw_row_bytes(context, through_n=int(bounds["raw_n"]))
    most, spans = max(rows for _, _, rows in bounds["spans"]), len(bounds["spans"])
    segments = _most_segments(context.spec, reached, built=spans * -(-most // SEGMENT_ROWS))
    return task, project_windows(context, most, row_bytes, spans=spans, segments=segments)


def _most_segments(spec: PipelineSpec, reached: Mapping[str, Sequence[Mapping[str, Any]]], *, built: int) -> int:
    """Return how many segments of one kind and key windows may reach, with those that the slice itself builds."""
    counted = Counter((over, tuple(ref["keys"])) for over, refs in reached.items() for ref in refs)
    asked = {(window.over, window.keys) for window in spec.features.windows}
    return max((counted[over, keys] + (built if over == "events" else 0) for over, keys in asked), default=0)


def _finish_rows(stage: PrepareStage, plan: Plan, result: TaskResult, state: _State, context: StageContext) -> Outcome:
    prepared = stage.primary(context)
    chunks = [ChunkRef.from_json(value) for value in result.outputs["chunks"]]

    def publish() -> None:
        schema = pq.read_schema(prepared.path / chunks[0].path) if chunks else _prepared_schema(prepared)
        prepared.commit(app=plan.app, n=plan.n, schema=schema, add=chunks, remove=plan.bounds["replaced"])

    todo = plan.bounds["todo"]
    record = {
        **state.with_largest_row(chunks),
        "todo": todo,
        "raw_n": plan.bounds["raw_n"],
        "event_segments": result.outputs["segments"],
        "label_segments": [],
    }
    outputs = {"rows": result.rows_out, "kind": "rows", "span": plan.bounds["span"], "spans_left": len(todo)}
    return Outcome(outputs=outputs, record=record, publish=publish)


def forecast(context: StageContext) -> list[Forecast]:
    """Return what joining a commit of labels takes, then spans with their windows; without windows, streaming rows, or
    sorting those that do not lie in order.
    """
    raw = context.workspace.table("raw")
    known = raw.rows()
    row_bytes = raw_row_bytes(context, through_n=raw.transaction("extract:raw"))
    windows = context.spec.features.windows
    most = (windowed_rows_per_span if windows else rows_per_span)(context, row_bytes)
    rows = min(most, known) if known else most
    label_records = context.workspace.table("labels").rows()
    label_rows = min(_MOST_LABELS, label_records) if label_records else _MOST_LABELS
    labels = Forecast(project_labels(context, label_rows), label_rows)
    if windows:
        spans = 1 if known and known <= most else 2
        return [labels, Forecast(project_windows(context, rows, row_bytes, spans=spans), rows)]
    streamed = min(known or _STREAMED_SPAN_ROWS, _STREAMED_SPANS * _STREAMED_SPAN_ROWS)
    stream = project_stream(context, streamed, row_bytes)
    sort = Forecast(project_sort(context, rows, row_bytes), rows)
    # Where streaming does not fit, all rows are sorted.
    return [
        labels,
        *([Forecast(stream, streamed)] if stream.projected_bytes <= context.budget.allowed_bytes else []),
        sort,
    ]


def _segments_in_reach(context: StageContext, plan: Plan) -> dict[str, list[Any]]:
    """Return, over events and labels, the segments that windows of the plan's spans may overlap; not its own."""
    feature_set, workspace = context.spec.feature_set, context.workspace
    low, high = plan.bounds["span"]
    windows = context.spec.features.windows
    reach = max((microseconds(context.spec.features.gap_of(w) + max(w.lengths)) for w in windows), default=0)
    prepared = prepared_table(workspace, feature_set)
    labels = label_events_table(workspace, feature_set)
    replaced = set(plan.bounds["replaced"])
    live = [
        _span_name(names[0])
        for span, names in _live_spans(prepared)
        if span.overlaps(low - reach, high) and not replaced.issuperset(names)
    ]
    label_chunks = labels.chunks(newest_n=prepared.transaction(plan.app))
    label_ns = {c.n for c in label_chunks if c.may_hold("known_at", time_of(low - reach), time_of(high))}
    journal = workspace.journal
    records = {n: journal.commit(plan.app, n) or {} for n in {chunk_n(name) for name in live} | label_ns}
    return {
        "events": [ref for name in sorted(live) for ref in _segments_of(records[chunk_n(name)], name)],
        "labels": [ref for n in sorted(label_ns) for ref in records[n]["label_segments"]],
    }


def _segments_of(record: Mapping[str, Any], span_name: str) -> list[Any]:
    """Return the segments of a span's events."""
    found = record["event_segments"]
    return list(found if isinstance(found, list) else found[span_name])  # a list of 0.1: a commit was one span


def _micros(value: datetime) -> int:
    return microseconds(value.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC))
