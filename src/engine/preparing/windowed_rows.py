"""Slices of rows with windows: spans of event time that are gathered, built into segments and searched, in one task.

Late rows, and all rows whose windows they change, are one slice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from engine.batching import Chunk, Table
from engine.batching.tables import chunk_n
from engine.errors import HeadraceError
from engine.features.footprints import project_windows, raw_row_bytes, windowed_rows_per_span
from engine.features.row_slices import time_of
from engine.features.segment_sets import SEGMENT_ROWS
from engine.features.spans import Span
from engine.layout import EVENT_TIME, label_events_table, prepared_app, prepared_table
from engine.memory.projection import Projection
from engine.preparing.state import Begun, Live, State, finish_rows, micros, replaced
from engine.refs import Task, TaskResult
from engine.spec import PipelineSpec
from engine.stage import Outcome, Plan, StageContext
from engine.units import microseconds

COMMIT_SPANS = 64
"""Of one commit, while none is written again."""

CUTS_LIVE = True
"""Whether a span that is prepared and has come to hold too many rows is planned as several: its task holds it."""


def span_rows(context: StageContext, row_bytes: float) -> int:
    """Return how many rows a span has at most: what the budget lets a task hold."""
    return windowed_rows_per_span(context, row_bytes)


def reach(spec: PipelineSpec) -> int:
    """Return how long after its event time a row changes windows over events, in microseconds."""
    longest = [
        spec.features.gap_of(window) + max(window.lengths)
        for window in spec.features.windows
        if window.over == "events"
    ]
    return microseconds(max(longest)) if longest else 0


def live(prepared: Table) -> Live:
    """Return the spans that are prepared now, with their chunks, which are replaced together."""
    extents: dict[str, tuple[Span, list[str]]] = {}
    for chunk in prepared.chunks():
        low, high = (micros(side[EVENT_TIME]) for side in (chunk.minimum, chunk.maximum))
        span, names = extents.setdefault(_span_name(chunk.name), (Span(low, high + 1), []))
        span = Span(min(span.low, low), max(span.high, high + 1), span.rows + chunk.rows)
        extents[_span_name(chunk.name)] = (span, [*names, chunk.name])
    return list(extents.values())


def _span_name(chunk: str) -> str:
    """Return what the names of a span's chunks have in common, from one of them."""
    return chunk.rsplit("-", 1)[0]


def bounds(
    context: StageContext, todo: Sequence[Sequence[int]], *, raw_n: int, live: Live, anew: bool = False
) -> dict[str, Any]:
    """Return the bounds of the first spans that are to do: some fresh ones, or all at once where any is written again.

    So late rows, and all rows whose windows they change, are one commit; so are all rows ``anew``.
    """
    del context
    again = anew or any(replaced(live, low, high) for low, high, _ in todo)
    spans = [list(span) for span in (todo if again else todo[:COMMIT_SPANS])]
    return {
        "kind": "rows",
        "span": [spans[0][0], spans[-1][1]],
        "spans": spans,
        "raw_n": raw_n,
        "replaced": sorted({name for low, high, _ in spans for name in replaced(live, low, high)}),
        "todo": [list(span) for span in todo[len(spans) :]],
    }


def tasks(
    stage: str, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
) -> Sequence[tuple[Task, Projection]]:
    """Return the one task, which gathers, builds and searches the spans."""
    if done:
        return ()
    feature_set, given = context.spec.feature_set, plan.bounds
    reached = _segments_in_reach(context, plan)
    inputs = {
        **{name: value for name, value in given.items() if name != "begun"},
        "first": Begun.of(given).first,
        "n": plan.n,
        "spec": feature_set,
        "code": context.spec_hash(),
        "imports": ["polars"],
        "segments": reached,
    }
    task = Task(stage, f"{feature_set}.windows.{plan.n}", "engine.features.window_slices:run", inputs)
    row_bytes = raw_row_bytes(context, through_n=int(given["raw_n"]))
    most, spans = max(rows for _, _, rows in given["spans"]), len(given["spans"])
    segments = _most_segments(context.spec, reached, built=spans * -(-most // SEGMENT_ROWS))
    return ((task, project_windows(context, most, row_bytes, spans=spans, segments=segments)),)


def smaller(context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
    """Return the slice with spans half as long, of those that were not written; None where each is one moment."""
    del context
    written = error.details.get("checkpoint")
    left = written["left"] if written else plan.bounds["spans"]
    spans = [half for span in left for half in _halves(*span)]
    if len(spans) == len(left):
        return None
    begun = {"begun": Begun.of(plan.bounds).followed_by(written)} if written else {}
    return {**plan.bounds, "spans": spans, **begun}


def _halves(low: int, high: int, rows: int) -> list[list[int]]:
    """Return a span in two, or whole where it is one moment."""
    middle = (low + high) // 2
    half = -(-rows // 2)
    return [[low, high, rows]] if middle == low else [[low, middle, half], [middle, high, half]]


def finish(context: StageContext, plan: Plan, results: Sequence[TaskResult], state: State) -> Outcome:
    """Return what to record, with the segments of each span, and how to publish the rows."""
    [result] = results
    return finish_rows(context, plan, results, state, event_segments=result.outputs["segments"])


def _most_segments(spec: PipelineSpec, reached: Mapping[str, Sequence[Mapping[str, Any]]], *, built: int) -> int:
    """Return how many segments of one kind and key windows may reach, with those that the slice itself builds."""
    counted = Counter((over, tuple(ref["keys"])) for over, refs in reached.items() for ref in refs)
    asked = {(window.over, window.keys) for window in spec.features.windows}
    return max((counted[over, keys] + (built if over == "events" else 0) for over, keys in asked), default=0)


@dataclass(frozen=True)
class LiveSegments:
    """What is prepared of a feature set at one time, and where the segments of it are: windows are searched in them."""

    context: StageContext
    spans: Live
    labels: Sequence[Chunk]  # of label events

    @classmethod
    def of(cls, context: StageContext) -> LiveSegments:
        """Return what is prepared now of the context's feature set."""
        feature_set, workspace = context.spec.feature_set, context.workspace
        prepared = prepared_table(workspace, feature_set)
        newest = prepared.transaction(prepared_app(feature_set))
        return cls(context, live(prepared), label_events_table(workspace, feature_set).chunks(newest_n=newest))

    @property
    def back(self) -> int:
        """How long before a row's time its windows begin at most, in microseconds."""
        features = self.context.spec.features
        return max((microseconds(features.gap_of(w) + max(w.lengths)) for w in features.windows), default=0)

    def in_reach(self, low: int, high: int | None, *, replaced: Collection[str] = ()) -> dict[str, list[Any]]:
        """Return, over events and labels, the segments that windows of rows in ``[low, high)`` may overlap, as JSON.

        Microseconds since 1970; a high of None is unbounded. Left out are spans of which all chunks are replaced.
        """
        low, gone = low - self.back, set(replaced)
        spans = [
            _span_name(names[0])
            for span, names in self.spans
            if span.high > low and (high is None or span.low < high) and not gone.issuperset(names)
        ]
        known = time_of(low), None if high is None else time_of(high)
        label_ns = {chunk.n for chunk in self.labels if chunk.may_hold("known_at", *known)}
        app, journal = prepared_app(self.context.spec.feature_set), self.context.workspace.journal
        records = {n: journal.commit(app, n) or {} for n in {chunk_n(name) for name in spans} | label_ns}
        return {
            "events": [ref for name in sorted(spans) for ref in _segments_of(records[chunk_n(name)], name)],
            "labels": [ref for n in sorted(label_ns) for ref in records[n]["label_segments"]],
        }


def _segments_in_reach(context: StageContext, plan: Plan) -> dict[str, list[Any]]:
    """Return, over events and labels, the segments that windows of the plan's spans may overlap; not its own."""
    low, high = plan.bounds["span"]
    reached = LiveSegments.of(context).in_reach(low, high, replaced=plan.bounds["replaced"])
    begun = Begun.of(plan.bounds).segments
    return {**reached, "events": [*reached["events"], *(ref for name in sorted(begun) for ref in begun[name])]}


def _segments_of(record: Mapping[str, Any], span_name: str) -> list[Any]:
    """Return the segments of a span's events."""
    found = record["event_segments"]
    return list(found if isinstance(found, list) else found[span_name])  # a list of 0.1: a commit was one span
