"""What becomes of a feature set when columns that it is made of have another type, since extraction rewrote ``raw``, or
when the code of its transform was changed: all rows are prepared anew, in one commit, as a full computation would.

Each commit records the types, and the code, that its rows and its label records were made by.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from engine.batching.tables import plain_type
from engine.layout import EVENT_TIME, label_events_table, prepared_table
from engine.preparing.state import State
from engine.spec import PipelineSpec
from engine.stage import Outcome, Plan, StageContext
from engine.usercode import TRANSFORM, transform_code

Types = Mapping[str, str]
"""By column of ``raw``; ``TRANSFORM`` has the hash of the transform's code, where that is known."""


def types_to_record(context: StageContext, state: State) -> Types:
    """Return the types now, with the recorded code where this process does not know the code: it counts as the same."""
    known = state.record.get("row_types", {}).get(TRANSFORM)
    return {**({TRANSFORM: known} if known else {}), **types_now(context)}


def types_now(context: StageContext) -> Types:
    """Return the types of the columns that rows are made of: of all that a transform may look at, with its code."""
    spec, schema = context.spec, context.workspace.table("raw").schema()
    if schema is None:
        return {}
    reference = spec.features.transform
    wanted = _used(spec) if reference is None else {*schema.names} - {*spec.after_columns}
    types = {field.name: str(plain_type(field.type)) for field in schema if field.name in wanted}
    code = transform_code(reference, directory=context.directory)
    return {**types, TRANSFORM: code} if code else types


def of_labels(spec: PipelineSpec, types: Types) -> Types:
    """Return those of the columns that label records take from their rows: its key, and keys of windows, or all that a
    transform may make these of.
    """
    keys = {key for window in spec.features.windows if window.over == "labels" for key in window.keys}
    if keys and spec.features.transform is not None:
        return types
    return {name: kind for name, kind in types.items() if name in {spec.source.key, *keys}}


def rows_are_retyped(context: StageContext, state: State, now: Types) -> bool:
    """Return whether rows were prepared of columns that have another type now, or by another code."""
    then, features = state.record.get("row_types"), context.spec.features
    if features.windows and TRANSFORM in now and TRANSFORM not in (then or {}):
        return True  # windows were of rows that no transform had seen
    if then is None and context.spec.features.transform is None:  # of 0.1: as far as the table itself tells
        schema = prepared_table(context.workspace, context.spec.feature_set).schema()
        columns = {*features.numeric, *features.categorical}
        then = {field.name: str(plain_type(field.type)) for field in schema or () if field.name in columns}
    return _differ(then, now)


def labels_are_retyped(context: StageContext, state: State, now: Types) -> bool:
    """Return whether label records were joined with columns that have another type now, or by another code."""
    then, side = state.record.get("label_types"), label_events_table(context.workspace, context.spec.feature_set)
    if TRANSFORM in of_labels(context.spec, now) and TRANSFORM not in (then or {}):
        return bool(side.chunks())  # they were joined with rows that no transform had seen
    if then is None:  # of 0.1
        keys = of_labels(context.spec, now).keys() - {context.spec.source.key}
        then = {field.name: str(plain_type(field.type)) for field in side.schema() or () if field.name in keys}
    return _differ(then, now) and bool(side.chunks())


def is_stale(context: StageContext, plan: Plan) -> bool:
    """Return whether a slice was planned, and not committed, before a column got another type, or the code changed."""
    then = plan.bounds.get("row_types")
    return then is not None and _differ(then, types_now(context))


def without_effect(context: StageContext, plan: Plan, state: State) -> Outcome:
    """Return how to end a stale slice: its number is committed without rows, and the next plan begins anew."""
    prepared = prepared_table(context.workspace, context.spec.feature_set)

    def publish() -> None:
        schema = prepared.schema()
        if schema is None:
            schema = pa.schema([pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC"))])
        prepared.commit(app=plan.app, n=plan.n, schema=schema)

    record = {**state.record, "event_segments": {}, "label_segments": []}
    return Outcome(outputs={"kind": "stale", "rows": 0}, record=record, rows_out=0, publish=publish)


def _used(spec: PipelineSpec) -> set[str]:
    features = spec.features
    windows = [name for window in features.windows for name in (*window.keys, window.column) if name is not None]
    baseline = [] if spec.baseline is None else [spec.baseline]
    return {spec.source.key, spec.event_time, *features.numeric, *features.categorical, *baseline, *windows}


def _differ(then: Mapping[str, Any] | None, now: Types) -> bool:
    return any(now.get(name, kind) != kind for name, kind in (then or {}).items())
