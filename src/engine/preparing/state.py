"""How far a feature set is prepared, and what the kinds of slices have in common: which chunks a span replaces, and how
prepared rows are published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.features.spans import Span
from engine.layout import EVENT_TIME, prepared_app, prepared_table
from engine.refs import ChunkRef, TaskResult
from engine.stage import Outcome, Plan, StageContext
from engine.units import microseconds

_KEPT = (
    *("labels_n", "labels_rows", "pending", "pending_rows", "label_types"),
    *("raw_n", "todo", "again", "largest_row_bytes", "row_types"),
)

Live = Sequence[tuple[Span, list[str]]]
"""Stretches of event time that are prepared now, each with its chunks, which are replaced together."""


@dataclass(frozen=True)
class State:
    """How far the feature set is, from the record of its last commit."""

    record: Mapping[str, Any]

    @classmethod
    def of(cls, context: StageContext) -> State:
        """Return the state of the context's feature set."""
        app = prepared_app(context.spec.feature_set)
        n = prepared_table(context.workspace, context.spec.feature_set).transaction(app)
        record = (context.workspace.journal.commit(app, n) if n else None) or {}
        known = {key: record[key] for key in _KEPT if key in record}
        again = known.get("again", [])
        if again and not isinstance(again[0], list):  # of before: one stretch
            known["again"] = [again]
        return cls(known)

    def number(self, name: str) -> int:
        """Return a number of the record, 0 where it has none."""
        return int(self.record.get(name, 0))

    def with_largest_row(self, chunks: Sequence[ChunkRef]) -> dict[str, Any]:
        """Return the record with what the largest row takes that was ever prepared."""
        largest = max([self.number("largest_row_bytes"), *(chunk.largest_row_bytes for chunk in chunks)])
        return {**self.record, "largest_row_bytes": largest}


@dataclass(frozen=True)
class Begun:
    """What tries of a slice had written that were stopped at the budget: the next one, of smaller parts, does the rest.

    Tasks say it in their checkpoints, of their own part, with ``left``: the spans that are not written.
    """

    first: int = 0  # number of the next span: file names have it
    chunks: Sequence[Mapping[str, Any]] = ()  # as JSON
    segments: Mapping[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)  # as JSON, by their span's name

    @classmethod
    def of(cls, bounds: Mapping[str, Any]) -> Begun:
        """Return what the bounds of a plan say of it."""
        return cls(**bounds["begun"]) if "begun" in bounds else cls()

    def followed_by(self, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
        """Return it with what one more try had written, as ``of`` takes it."""
        return {
            "first": checkpoint["first"],
            "chunks": [*self.chunks, *checkpoint["chunks"]],
            "segments": {**self.segments, **checkpoint.get("segments", {})},
        }


def replaced(live: Live, low: int, high: int) -> list[str]:
    """Return the chunks that hold rows of a span."""
    return [name for span, names in live if span.overlaps(low, high) for name in names]


def finish_rows(
    context: StageContext,
    plan: Plan,
    results: Sequence[TaskResult],
    state: State,
    *,
    event_segments: Mapping[str, Any],
) -> Outcome:
    """Return what to record of prepared rows, and how to publish them in the place of those that they replace."""
    begun = Begun.of(plan.bounds)
    values = [*begun.chunks, *(value for result in results for value in result.outputs["chunks"])]
    chunks = [ChunkRef.from_json(value) for value in values]
    todo = plan.bounds["todo"]
    record = {
        **state.with_largest_row(chunks),
        "todo": todo,
        "again": [] if "again" in plan.bounds else state.record.get("again", []),
        "raw_n": plan.bounds["raw_n"],
        "row_types": plan.bounds.get("row_types", {}),
        "event_segments": {**begun.segments, **event_segments},
        "label_segments": [],
    }
    rows = sum(chunk.rows for chunk in chunks)
    outputs = {"rows": rows, "kind": "rows", "span": plan.bounds["span"], "spans_left": len(todo)}
    return Outcome(outputs=outputs, record=record, publish=_publishing(context, plan, chunks), rows_out=rows)


def _publishing(context: StageContext, plan: Plan, chunks: Sequence[ChunkRef]) -> Callable[[], None]:
    prepared = prepared_table(context.workspace, context.spec.feature_set)

    def publish() -> None:
        schema = pq.read_schema(prepared.path / chunks[0].path) if chunks else prepared.schema()
        if schema is None:
            schema = pa.schema([pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC"))])
        gone = plan.bounds["replaced"]
        whole = {chunk.name for chunk in prepared.chunks()} <= {*gone}  # so the table may have other types from now on
        retyped = whole and prepared.is_retyped_by(schema)
        prepared.commit(app=plan.app, n=plan.n, schema=schema, add=chunks, remove=gone, retyped=retyped)

    return publish


def micros(value: datetime) -> int:
    """Return a time in microseconds since 1970 UTC."""
    return microseconds(value.astimezone(UTC) - datetime(1970, 1, 1, tzinfo=UTC))
