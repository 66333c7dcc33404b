"""Slices of rows without windows: spans of event time that are streamed, and sorted where they do not lie in order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from engine.batching import Table
from engine.errors import HeadraceError
from engine.features.footprints import project_sort, project_stream, raw_row_bytes, rows_per_span
from engine.features.spans import Span
from engine.layout import EVENT_TIME
from engine.memory.projection import Projection
from engine.preparing.state import Begun, Live, State, finish_rows, micros, replaced
from engine.refs import Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import Outcome, Plan, StageContext

SPAN_ROWS = 2_000_000
"""One chunk, and what a late row has written anew."""

COMMIT_SPANS = 32

CUTS_LIVE = False
"""The task that sorts a span again cuts it itself, by the rows that it finds."""


def span_rows(context: StageContext, row_bytes: float) -> int:
    """Return how many rows a span has at most."""
    del context, row_bytes  # a span is streamed, not held
    return SPAN_ROWS


def reach(spec: PipelineSpec) -> int:
    """Return how long after its event time a row changes others, in microseconds."""
    del spec
    return 0


def live(prepared: Table) -> Live:
    """Return the stretches of time that can be written anew alone: chunks, joined where they share a moment."""
    out: list[tuple[Span, list[str]]] = []
    found = [
        (Span(micros(c.minimum[EVENT_TIME]), micros(c.maximum[EVENT_TIME]) + 1, c.rows), c.name)
        for c in prepared.chunks()
    ]
    for span, name in sorted(found):
        if out and span.low < out[-1][0].high:
            last, names = out[-1]
            out[-1] = (Span(last.low, max(last.high, span.high), last.rows + span.rows), [*names, name])
        else:
            out.append((span, [name]))
    return out


def bounds(
    context: StageContext, todo: Sequence[Sequence[int]], *, raw_n: int, live: Live, anew: bool = False
) -> dict[str, Any]:
    """Return the bounds of the first spans that are to do, all of them fresh, or all prepared before.

    Of all rows where they are prepared ``anew``.
    """
    again = [anew or bool(replaced(live, low, high)) for low, high, _ in todo]
    count = next((i for i, one in enumerate(again) if one != again[0]), len(todo))
    spans = [list(span) for span in todo[: len(todo) if anew else min(count, COMMIT_SPANS)]]
    row_bytes = raw_row_bytes(context, through_n=raw_n)
    stream = project_stream(context, sum(rows for _, _, rows in spans), row_bytes)
    return {
        "kind": "stream",
        "span": [spans[0][0], spans[-1][1]],
        "spans": spans,
        "raw_n": raw_n,
        "replaced": sorted({name for low, high, _ in spans for name in replaced(live, low, high)}),
        # A span that is prepared again has late rows or new versions.
        "in_order": not again[0] and stream.projected_bytes <= context.budget.allowed_bytes,
        "piece_rows": rows_per_span(context, row_bytes),
        "row_bytes": row_bytes,
        "todo": [list(span) for span in todo[len(spans) :]],
    }


def tasks(
    stage: str, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
) -> Sequence[tuple[Task, Projection]]:
    """Return the task that streams spans in order, then the one that sorts what is left."""
    feature_set, bounds = context.spec.feature_set, plan.bounds
    inputs = {
        **{name: bounds[name] for name in ("spans", "raw_n", "row_bytes")},
        "n": plan.n,
        "spec": feature_set,
        "code": context.spec_hash(),
        "row_types": bounds.get("row_types", {}),
        "imports": ["polars"],
    }
    if bounds["in_order"] and not done:
        task = Task(stage, f"{feature_set}.stream.{plan.n}", "engine.features.row_streams:run_stream", inputs)
        rows = sum(rows for _, _, rows in bounds["spans"])
        return ((task, project_stream(context, rows, float(bounds["row_bytes"]))),)
    left = done[0][0].outputs["left"] if bounds["in_order"] else bounds["spans"]
    left = bounds.get("left", left)
    if not left or len(done) == (2 if bounds["in_order"] else 1):
        return ()
    inputs |= {"spans": left, "piece_rows": bounds["piece_rows"], "first": Begun.of(bounds).first}
    task = Task(stage, f"{feature_set}.sort.{plan.n}", "engine.features.row_streams:run_sort", inputs)
    row_bytes = raw_row_bytes(context, through_n=int(bounds["raw_n"]))
    return ((task, project_sort(context, int(bounds["piece_rows"]), row_bytes)),)


def smaller(context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
    """Return the slice sorted instead of streamed, then in pieces half as large; what was written aside."""
    del context
    bounds, written = dict(plan.bounds), error.details.get("checkpoint")
    if written:
        bounds |= {"left": written["left"], "begun": Begun.of(bounds).followed_by(written)}
    if bounds["in_order"] and not _is_of_sort(error):
        return {**bounds, "in_order": False}
    return {**bounds, "piece_rows": max(1, int(bounds["piece_rows"]) // 2)}


def _is_of_sort(error: HeadraceError) -> bool:
    """Return whether it was the task that sorts which did not fit: a refusal has its stage, a stop its task's name."""
    name = error.details.get("task") or f"{error.details['stage']}."
    return str(name).split(".")[-2] == "sort"


def finish(context: StageContext, plan: Plan, results: Sequence[TaskResult], state: State) -> Outcome:
    """Return what to record, and how to publish the rows."""
    return finish_rows(context, plan, results, state, event_segments={})
