"""Where the tables that several stages share lie, what their common columns are called, and where models are made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.batching import ChunkWriter, Table, Workspace
from engine.batching.chunks import fixed_width
from engine.batching.streams import held_bytes
from engine.refs import ChunkRef
from engine.spec import FILE, PipelineSpec

KEY, EVENT_TIME, BASELINE = "key", "event_time", "baseline"
"""Columns of ``prepared`` beside the features."""

LABEL = "_label"
"""What labelled rows have beside their own columns."""

_NUMBER_BYTES = 8.0


def prepared_table(workspace: Workspace, feature_set: str) -> Table:
    """Return the prepared table of one feature set; an edited pipeline file has another, and this one stays."""
    return workspace.table(f"prepared/{feature_set}")


def label_events_table(workspace: Workspace, feature_set: str) -> Table:
    """Return the label events of one feature set: a side table of its prepared table."""
    return workspace.table(f"label_events/{feature_set}")


def predictions_table(workspace: Workspace) -> Table:
    """Return the champions' predictions."""
    return workspace.table("predictions")


def cache_directory(workspace: Workspace, n: int) -> Path:
    """Return where the cache of training n is, until its candidate is entered in the ledger."""
    return workspace.root / "caches" / f"{n:08d}"


def bundle_directory(workspace: Workspace, n: int) -> Path:
    """Return where the bundle of training n is."""
    return workspace.bundles / f"{n:08d}"


def prepared_app(feature_set: str) -> str:
    """Return the application id of the prepared table's commits."""
    return f"prepare:{feature_set}"


def feature_sets(workspace: Workspace) -> list[str]:
    """Return all feature sets that prepare ever planned for, those of earlier pipeline files too."""
    return [app.removeprefix("prepare:") for app in workspace.journal.apps() if app.startswith("prepare:")]


def primary_table(workspace: Workspace, app: str) -> Table:
    """Return the table whose transaction says how far an app is.

    Raises
    ------
    LookupError
        No stage has such an app.
    """
    kind, _, rest = app.partition(":")
    if kind == "extract":
        return workspace.table(rest)
    if kind == "prepare":
        return prepared_table(workspace, rest)
    if kind == "compact":
        return workspace.table(rest.replace(":", "/"))
    names = {"score": "predictions", "monitor": "metrics"} | dict.fromkeys(("train", "validate", "promote"), "ledger")
    if app not in names:
        raise LookupError(f"no stage commits as {app!r}")
    return workspace.table(names[app])


def chunk_writer(
    spec: PipelineSpec,
    table: Table,
    *,
    prefix: str,
    schema: pa.Schema,
    chunk_rows: int | None = None,
    on_chunk: Callable[[ChunkRef], None] | None = None,
    written: Sequence[ChunkRef] = (),
) -> ChunkWriter:
    """Return a ``ChunkWriter`` that keeps of each chunk what those who read the table ask of it."""
    return ChunkWriter(
        table.path,
        prefix=prefix,
        schema=schema,
        chunk_rows=chunk_rows,
        on_chunk=on_chunk,
        written=written,
        order=(spec.event_time, spec.source.key) if table.name == "raw" else None,
        bounds_of=bounds_of(spec, table.name),
    )


def bounds_of(spec: PipelineSpec, table: str) -> tuple[str, ...]:
    """Return the columns by whose smallest and largest values plans choose among a table's chunks."""
    named = {
        "raw": (spec.event_time, spec.source.key, spec.source.cursor, FILE),
        "labels": ("labelled_at",),
        "label_events": (EVENT_TIME, "known_at", "labelled_at"),
        "prepared": (EVENT_TIME,),
        "predictions": (EVENT_TIME,),
    }
    return named.get(table.partition("/")[0], ())


def pending_plan(workspace: Workspace, app: str) -> dict[str, Any] | None:
    """Return the plan that an app wrote down and has not committed, or None: it is resumed by the stage's next run."""
    return workspace.journal.plan(app, primary_table(workspace, app).transaction(app) + 1)


def key_bytes(workspace: Workspace) -> float:
    """Return what a key takes in memory on average, by the newest label records; a number's before any."""
    return column_bytes(workspace.table("labels"), [KEY])[KEY]


def column_bytes(table: Table, columns: Sequence[str]) -> dict[str, float]:
    """Return what a value of some columns takes in memory, as the newest chunks have it; of one to come, a number's."""
    schema = table.schema()
    fields = [] if schema is None else [schema.field(name) for name in columns if name in schema.names]
    fixed = all(fixed_width(one.type) is not None for one in fields)
    paths = [] if fixed else [chunk.path for chunk in table.chunks()]
    return dict.fromkeys(columns, _NUMBER_BYTES) | held_bytes(paths, fields)


def largest_row_bytes(workspace: Workspace, app: str) -> int:
    """Return what the largest row takes that an app ever committed to its table; 0 while all of them are small."""
    n = primary_table(workspace, app).transaction(app)
    return int(((workspace.journal.commit(app, n) if n else None) or {}).get("largest_row_bytes", 0))
