"""Prepare: label records become ``label_events``, new rows become ``prepared`` rows with their windows.

Label records come first. A slice of rows is spans of event time: those that late rows touch are prepared again. What
each kind of slice is, is in ``preparing/``; what its tasks do in ``features/``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from engine.batching import Table
from engine.errors import HeadraceError
from engine.features.footprints import (
    UNKNOWN_ROW_BYTES,
    LabelBytes,
    label_rows_per_slice,
    project_labels,
    project_sort,
    project_stream,
    project_windows,
    raw_row_bytes,
    rows_per_span,
    windowed_rows_per_span,
)
from engine.features.spans import Increment, plan_spans
from engine.layout import prepared_app, prepared_table
from engine.memory.projection import Projection
from engine.preparing import label_commits, streamed_rows, windowed_rows
from engine.preparing.retyped import Types, is_stale, rows_are_retyped, types_to_record, without_effect
from engine.preparing.state import Live, State
from engine.refs import Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import Forecast, Outcome, Plan, StageContext


class _Kind(Protocol):
    """One kind of slice."""

    def tasks(
        self, stage: str, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]: ...

    def smaller(self, context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None: ...

    def finish(self, context: StageContext, plan: Plan, results: Sequence[TaskResult], state: State) -> Outcome: ...


class _RowsKind(_Kind, Protocol):
    """A kind of slice of rows."""

    CUTS_LIVE: bool

    def live(self, prepared: Table) -> Live: ...

    def span_rows(self, context: StageContext, row_bytes: float) -> int: ...

    def reach(self, spec: PipelineSpec) -> int: ...

    def bounds(
        self, context: StageContext, todo: Sequence[Sequence[int]], *, raw_n: int, live: Live, anew: bool = False
    ) -> dict[str, Any]: ...


_KINDS: Mapping[str, _Kind] = {"labels": label_commits, "stream": streamed_rows, "rows": windowed_rows}
"""By what the bounds of a plan call them."""


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
        """Return the next slice: new label records, else the next spans of event time that new rows touch."""
        state = State.of(context)
        raw_n = context.workspace.table("raw").transaction("extract:raw")
        if not raw_n:
            return None
        types = types_to_record(context, state)
        bounds = label_commits.next_bounds(context, state, raw_n, types) or _next_spans(context, state, raw_n, types)
        return None if bounds is None else {**bounds, "row_types": types}

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the task of the slice: label records joined, spans with windows, or rows streamed, then sorted."""
        if not done and is_stale(context, plan):
            return ()
        return _KINDS[plan.bounds["kind"]].tasks(self.name, context, plan, done)

    def smaller(self, context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
        """Return the slice in smaller parts, those aside that were written; None where it has none."""
        return _KINDS[plan.bounds["kind"]].smaller(context, plan, error)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record how far labels and rows are; publish label events first, then prepared."""
        if not done and is_stale(context, plan):
            return without_effect(context, plan, State.of(context))
        results = [result for phase in done for result in phase]
        return _KINDS[plan.bounds["kind"]].finish(context, plan, results, State.of(context))


def _next_spans(context: StageContext, state: State, raw_n: int, types: Types) -> dict[str, Any] | None:
    prepared = prepared_table(context.workspace, context.spec.feature_set)
    rows: _RowsKind = windowed_rows if context.spec.features.windows else streamed_rows
    live = rows.live(prepared)
    todo, target = list(state.record.get("todo", [])), state.number("raw_n")
    anew = bool(live) and rows_are_retyped(context, state, types)
    if anew:
        todo, target = [], 0
    again = state.record.get("again", [])
    begins = not todo
    if begins:
        if raw_n <= target and not again:
            return None
        increments, row_bytes = _increments(context, after_n=target, through_n=raw_n)
        spans = plan_spans(
            increments,
            live=[] if anew else [span for span, _ in live],
            rows_per_span=rows.span_rows(context, row_bytes),
            reach=rows.reach(context.spec),
            again=[(low, high) for low, high in again],
            cut_live=rows.CUTS_LIVE,
        )
        todo = [[span.low, span.high, span.rows] for span in spans]
        target = raw_n
        if not todo:
            return None
    bounds = rows.bounds(context, todo, raw_n=target, live=live, anew=anew)
    return {**bounds, "again": again} if begins else bounds


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


def forecast(context: StageContext) -> list[Forecast]:
    """Return what joining a slice of labels takes, then spans with their windows; without windows, streaming rows, or
    sorting those that do not lie in order.
    """
    raw = context.workspace.table("raw")
    known = raw.rows()
    row_bytes = raw_row_bytes(context, through_n=raw.transaction("extract:raw"))
    windows = context.spec.features.windows
    most = (windowed_rows_per_span if windows else rows_per_span)(context, row_bytes)
    rows = min(most, known) if known else most
    held, records = LabelBytes.of(context), context.workspace.table("labels").rows()
    label_rows = label_rows_per_slice(context, held)
    label_rows = min(label_rows, records) if records else label_rows
    labels = Forecast(project_labels(context, label_rows, held), label_rows)
    if windows:
        spans = 1 if known and known <= most else 2
        return [labels, Forecast(project_windows(context, rows, row_bytes, spans=spans), rows)]
    streamed = min(known or streamed_rows.SPAN_ROWS, streamed_rows.COMMIT_SPANS * streamed_rows.SPAN_ROWS)
    stream = project_stream(context, streamed, row_bytes)
    sort = Forecast(project_sort(context, rows, row_bytes), rows)
    # Where streaming does not fit, all rows are sorted.
    return [
        labels,
        *([Forecast(stream, streamed)] if stream.projected_bytes <= context.budget.allowed_bytes else []),
        sort,
    ]
