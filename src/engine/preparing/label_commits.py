"""Slices of label records: as many of a commit of ``labels`` as the budget lets be joined at once, and those that
waited for rows that have come since. They become ``label_events``, which windows over labels are of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine.batching import Table
from engine.batching.streams import rows_of
from engine.errors import HeadraceError
from engine.features.footprints import LabelBytes, label_rows_per_slice, project_labels
from engine.features.label_slices import waiting_path
from engine.features.spans import overlapping
from engine.layout import EVENT_TIME, KEY, label_events_table, prepared_table
from engine.memory.projection import Projection
from engine.preparing.retyped import Types, labels_are_retyped, of_labels
from engine.preparing.state import State
from engine.preparing.windowed_rows import live
from engine.refs import ChunkRef, Task, TaskResult
from engine.stage import Outcome, Plan, StageContext


def next_bounds(context: StageContext, state: State, raw_n: int, types: Types) -> dict[str, Any] | None:
    """Return the next label records, of new ones those of one commit, then those that wait; None: there are none.

    Records wait in files, each of which was looked for in ``raw`` up to some commit: it is due when there are others.
    """
    labels = context.workspace.table("labels")
    if anew := labels_are_retyped(context, state, types):
        state = State({})
    newest, done, first = labels.transaction("extract:labels"), state.number("labels_n"), state.number("labels_rows")
    files = _waiting(context, state)
    came = max((chunk.n for chunk in context.workspace.table("raw").chunks(newest_n=raw_n)), default=0) if files else 0
    waiting = {name: file for name, file in files.items() if file["raw_n"] < came}
    if newest <= done and not waiting:
        return None
    ahead = [chunk for chunk in labels.chunks() if chunk.n > done]
    through = min((chunk.n for chunk in ahead), default=newest)
    rows = sum(chunk.rows for chunk in ahead if chunk.n == through)
    due = {
        "kind": "labels",
        "after_n": done,
        "through_n": through,
        "rows": [first, rows],
        "of": rows,
        "waiting": {name: [file["first"], file["rows"]] for name, file in waiting.items()},
        "raw_after_n": min((file["raw_n"] for file in waiting.values()), default=raw_n),
        "raw_n": raw_n,
        "anew": anew,
        "label_types": of_labels(context.spec, types),
    }
    return _first(due, label_rows_per_slice(context, LabelBytes.of(context)))


def _first(bounds: Mapping[str, Any], most: int) -> dict[str, Any]:
    """Return a slice with no more than its first ``most`` records."""
    low, high = bounds["rows"]
    taken = min(high - low, most)
    waiting, left = {}, most - taken
    for name, (first, last) in bounds["waiting"].items():
        if left:
            waiting[name] = [first, min(last, first + left)]
            left -= waiting[name][1] - first
    return {**bounds, "rows": [low, low + taken], "waiting": waiting}


def _rows(bounds: Mapping[str, Any]) -> int:
    return sum(last - first for first, last in (bounds["rows"], *bounds["waiting"].values()))


def tasks(
    stage: str, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
) -> Sequence[tuple[Task, Projection]]:
    """Return the one task, which joins the records with the keys of their rows."""
    if done:
        return ()
    given = _bounds(context, plan)
    inputs = {**given, "n": plan.n, "spec": context.spec.feature_set, "imports": ["polars"], "says": ["seen_by"]}
    task = Task(stage, f"{context.spec.feature_set}.labels.{plan.n}", "engine.features.label_slices:run", inputs)
    return ((task, project_labels(context, _rows(given), LabelBytes.of(context))),)


def smaller(context: StageContext, plan: Plan, error: HeadraceError) -> Mapping[str, Any] | None:
    """Return the first half of the slice's records; None where it has a single one. The others are the next slices."""
    del error
    given = _bounds(context, plan)
    rows = _rows(given)
    return _first(given, rows // 2) if rows > 1 else None


def _bounds(context: StageContext, plan: Plan) -> Mapping[str, Any]:
    """Return the bounds of a plan; one of 0.1 took a commit and all that waits."""
    given = plan.bounds
    if "rows" in given:
        return given
    chunks = context.workspace.table("labels").chunks(newest_n=int(given["through_n"]))
    rows = sum(chunk.rows for chunk in chunks if chunk.n > int(given["after_n"]))
    waiting = {name: [0, file["rows"]] for name, file in _files(context, given["pending"]).items()}
    kept = {name: given[name] for name in ("kind", "after_n", "through_n", "raw_n")}
    return {**kept, "rows": [0, rows], "of": rows, "waiting": waiting, "raw_after_n": 0}


def finish(context: StageContext, plan: Plan, results: Sequence[TaskResult], state: State) -> Outcome:
    """Return how far labels are, and how to publish: label events first, then prepared."""
    [result] = results
    given = _bounds(context, plan)
    anew = bool(given.get("anew"))  # what there is was joined with columns of other types, or by other code, and goes
    side = label_events_table(context.workspace, context.spec.feature_set)
    prepared = prepared_table(context.workspace, context.spec.feature_set)
    chunks = [ChunkRef.from_json(value) for value in result.outputs["chunks"]]

    def publish() -> None:
        if chunks or anew:
            there = [chunk.name for chunk in side.chunks()]
            gone = there if anew else []
            schema = pq.read_schema(side.path / chunks[0].path) if chunks else side.schema()
            retyped = len(there) == len(gone) and side.is_retyped_by(schema)
            app = f"{plan.app}:label_events"
            side.commit(app=app, n=plan.n, schema=schema, add=chunks, remove=gone, retyped=retyped)
        prepared.commit(app=plan.app, n=plan.n, schema=_first_schema(context, prepared))

    waiting = _still_waiting({} if anew else _waiting(context, state), given, result.outputs["waiting"])
    of_commit = given["rows"][1]
    whole = of_commit == given["of"]
    record = {
        **state.record,
        "labels_n": given["through_n"] if whole else given["after_n"],
        "labels_rows": 0 if whole else of_commit,
        "pending": waiting,
        "pending_rows": sum(file["rows"] - file["first"] for file in waiting.values()),
        "label_types": given.get("label_types", {}),
        "label_segments": result.outputs["segments"],
        "again": _prepared(prepared, [*state.record.get("again", []), *result.outputs["seen_by"]]),
        "event_segments": {},
    }
    outputs = {"kind": "labels", "labels": result.rows_out, "labels_waiting": record["pending_rows"]}
    return Outcome(outputs=outputs, record=record, publish=publish)


def _prepared(prepared: Table, stretches: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return the spans of which rows in some stretches of event time were prepared."""
    if not stretches:
        return []
    spans = sorted(span for span, _ in live(prepared))
    return sorted(
        {
            (span.low, span.high): [span.low, span.high]
            for low, high in stretches
            for span in overlapping(spans, low, high)
        }.values()
    )


def _waiting(context: StageContext, state: State) -> dict[str, dict[str, int]]:
    """Return the files of records whose row has not come: the first of each that waits, rows, and how far it looked."""
    found = state.record.get("pending", {})
    return found if isinstance(found, dict) else _files(context, found)  # a list of 0.1


def _files(context: StageContext, names: Sequence[str]) -> dict[str, dict[str, int]]:
    paths = [waiting_path(context.workspace, context.spec.feature_set, name) for name in names]
    return {path.name: {"first": 0, "rows": rows_of(path), "raw_n": 0} for path in paths}


def _still_waiting(
    before: Mapping[str, Mapping[str, int]], given: Mapping[str, Any], written: Mapping[str, int]
) -> dict[str, dict[str, int]]:
    """Return the files after a slice, which took some of their records and wrote those that found no row to another."""
    out = {name: dict(file) for name, file in before.items()}
    for name, (_, last) in given["waiting"].items():
        out[name]["first"] = last
    out |= {name: {"first": 0, "rows": rows, "raw_n": given["raw_n"]} for name, rows in written.items()}
    return {name: file for name, file in out.items() if file["first"] < file["rows"]}


def _first_schema(context: StageContext, prepared: Table) -> pa.Schema:
    """Return the table's schema, or, before any row was prepared, one that later commits widen."""
    existing = prepared.schema()
    if existing is not None:
        return existing
    raw = context.workspace.table("raw").schema()
    key = raw.field(context.spec.source.key).type if raw is not None else pa.int64()
    return pa.schema([pa.field(KEY, key), pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC"))])
