"""Compact: many small chunks of a table become few of normal size, in the same order, and no reader can tell.

Readers choose chunks by the n in their names, so a merged chunk, which has one n, must not span a place where a reader
stands (``_pins``). When it runs is decided in ``upkeep.py``; old chunks are deleted by ``vacuum.py``, never here.

The rule, for chunks with n from a to b that become one named b:

- ``raw``: a feature set's prepare reads up to its ``raw_n`` until its spans are done. No such n lies in [a, b). What is
  planned later reads up to a later n, and sees all of a to b.
- ``labels``: a feature set takes what lies after its ``labels_n``, so many rows of one commit after the others. No such
  n lies in [a, b), and rows keep their order.
- ``predictions``: monitor measures the weeks that chunks after its ``predictions_n`` touch: that n does not lie in
  [a, b).
- ``quarantine``: extraction compares with chunks before its own n, and two extractions count for themselves: chunks of
  different writers are not merged.
- ``runs``, ``metrics``, ``ledger`` and ``files/…`` are read whole, by what their rows say.
- ``prepared`` and ``label_events`` are never merged: the n of a chunk is how its window segments are found.

A plan of a stage that writes the table and is not committed may name chunks that it replaces: then nothing is merged.
A compaction that was cut off is checked against all of this again before it commits.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from engine import events
from engine.batching import Table, Workspace, read_batches
from engine.batching.chunks import ROW_GROUP_BYTES, most_chunk_rows
from engine.batching.merging import Merge, MergeLimits, find_merges, merged_prefix, spans_a_pin
from engine.batching.streams import uneven_terms
from engine.errors import TableError
from engine.layout import chunk_writer, feature_sets, largest_row_bytes, pending_plan, prepared_app, prepared_table
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.stage import ChildContext, Outcome, Plan, StageContext

DUE = 64
"""A table is compacted by itself when so many chunks would go."""

_WRITERS = {
    "raw": ("extract:raw",),
    "files/raw": ("extract:raw",),
    "labels": ("extract:labels",),
    "files/labels": ("extract:labels",),
    "quarantine": ("extract:raw", "extract:labels"),
    "predictions": ("score",),
    "metrics": ("monitor",),
    "ledger": ("train", "validate", "promote"),
    "runs": (),  # last, since each compaction adds a row to it
}
COMPACTED = tuple(_WRITERS)
"""The tables that are compacted."""

_MOST_CHUNKS = 1_024  # of one commit
_COPIES = 3  # of a batch: as read, with the merged chunk's types, waiting to be written


@dataclass(frozen=True)
class CompactStage:
    """The compaction of one table; with ``least`` 1 of whatever can be merged, but for ``runs``, which grow by it."""

    table: str
    least: int = DUE
    name: str = "compact"

    @property
    def _least(self) -> int:
        """How many chunks have to go: of ``runs`` more than the one that a compaction adds."""
        return max(self.least, 2) if self.table == "runs" else self.least

    def app(self, context: StageContext) -> str:
        """Return an application id of its own: those of the writers stay as they are."""
        del context
        return f"compact:{self.table.replace('/', ':')}"

    def primary(self, context: StageContext) -> Table:
        """Return the table."""
        return context.workspace.table(self.table)

    def is_due(self, context: StageContext) -> bool:
        """Return whether there is anything to do: enough to merge, or a compaction that was cut off."""
        if len(self.primary(context).chunks()) <= self._least:  # nearly always: the table was opened once
            return False
        return pending_plan(context.workspace, self.app(context)) is not None or self.next_plan(context) is not None

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return which chunks become one, for about a thousand of them."""
        chunks = self.primary(context).chunks()
        if len(chunks) <= self._least or _is_written(context.workspace, self.table):
            return None
        pins = _pins(context.workspace, self.table)
        limits, schema = MergeLimits(), self.primary(context).schema()
        if schema is not None:
            limits = dataclasses.replace(limits, most_rows=min(limits.most_rows, most_chunk_rows(schema)))
        found = find_merges(chunks, pins=pins, limits=limits)
        if sum(len(merge.chunks) - 1 for merge in found) < self._least:
            return None
        sizes = itertools.accumulate(len(merge.chunks) for merge in found)
        taken = [merge for merge, size in zip(found, sizes, strict=True) if size <= _MOST_CHUNKS] or found[:1]
        return {"merges": [_described(merge) for merge in taken]}

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the one task that writes the merged chunks, of those that are as they were planned."""
        merges = [] if done else _still_right(context.workspace, self.table, plan.bounds["merges"])
        if not merges:
            return ()
        inputs = {"table": self.table, "n": plan.n, "merges": merges}
        task = Task(self.name, f"{self.table}.{plan.n}", "engine.stages.compact:run", inputs)
        schema = self.primary(context).schema()
        columns = len(schema) if schema is not None else 0
        largest = max((largest_row_bytes(context.workspace, app) for app in _WRITERS[self.table]), default=0)
        return ((task, _project(context, columns=columns, largest_row_bytes=largest)),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Publish the merged chunks in place of the small ones."""
        written = done[0][0].outputs["merges"] if done else []
        merges = _still_right(context.workspace, self.table, written)
        refs = [ChunkRef.from_json(ref) for merge in merges for ref in merge["written"]]
        names = [name for merge in merges for name in merge["chunks"]]
        table = self.primary(context)
        schema = table.schema()
        if schema is None:
            raise LookupError(f"{self.table} has no schema though its chunks were planned")

        def publish() -> None:
            table.commit(app=plan.app, n=plan.n, schema=schema, add=refs, remove=names, data_change=False)

        rows = sum(ref.rows for ref in refs)
        outputs = {"table": self.table, "chunks_before": len(names), "chunks_after": len(refs)}
        return Outcome(outputs=outputs, publish=publish, rows_out=rows)


def _described(merge: Merge) -> dict[str, Any]:
    return {
        "owner": merge.owner,
        "ns": sorted({chunk.n for chunk in merge.chunks}),
        "rows": merge.rows,
        "chunks": [chunk.name for chunk in merge.chunks],
    }


def _is_written(workspace: Workspace, table: str) -> bool:
    """Return whether a stage that writes the table has a plan that it did not commit."""
    return any(pending_plan(workspace, app) is not None for app in _WRITERS[table])


def _pins(workspace: Workspace, table: str) -> set[int]:
    """Return each n at which a reader of the table stands; see the module's rule."""
    if table == "predictions":
        n = workspace.table("metrics").transaction("monitor")
        record = workspace.journal.commit("monitor", n) if n else None
        pending = pending_plan(workspace, "monitor")
        pins = [record["predictions_n"]] if record else []
        return {int(pin) for pin in [*pins, *([pending["bounds"]["before"]["predictions_n"]] if pending else [])]}
    name = {"raw": "raw_n", "labels": "labels_n"}.get(table)
    if name is None:
        return set()
    found: set[int] = set()
    for feature_set in feature_sets(workspace):
        app = prepared_app(feature_set)
        n = prepared_table(workspace, feature_set).transaction(app)
        record = (workspace.journal.commit(app, n) if n else None) or {}
        bounds = (pending_plan(workspace, app) or {}).get("bounds", {})
        stands = [record.get(name), *(bounds.get(key) for key in (name, *_BOUNDS[table]))]
        found |= {int(n) for n in stands if n is not None}
    return found


_BOUNDS = {"raw": (), "labels": ("after_n", "through_n")}  # what a plan of prepare calls them, beside the record's name


def _still_right(workspace: Workspace, table: str, merges: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the planned merges that may be committed now: a crash may lie between, and other stages ran since."""
    if _is_written(workspace, table):
        return []
    live, pins = {chunk.name for chunk in workspace.table(table).chunks()}, _pins(workspace, table)
    return [
        merge
        for merge in merges
        if live.issuperset(merge["chunks"]) and not spans_a_pin(merge["ns"][0], merge["ns"][-1], pins)
    ]


def _project(context: StageContext, *, columns: int, largest_row_bytes: int = 0) -> Projection:
    batch = context.budget.batch_bytes
    terms = {
        "batches in flight": batch * _COPIES,
        "row group being written": 2 * ROW_GROUP_BYTES,
        "page of each column": columns * 2**20 // 4,
        **uneven_terms(largest_row_bytes, batch_bytes=batch, copies=_COPIES),
    }
    return Projection(stage="compact", reserved_bytes=context.learned.reserved_bytes("compact"), terms=terms)


def run(task: Task, scope: Scope) -> TaskResult:
    """Write each merge's rows as one chunk, in their order (in the cage).

    Raises
    ------
    TableError
        A chunk does not hold the rows that the log has of it: nothing is merged.
    """
    context = ChildContext.of(scope.context)
    table = context.workspace.table(task.inputs["table"])
    order = table.schema()
    if order is None:
        raise LookupError(f"{table.name} has no schema though its chunks were planned")
    total = sum(int(merge["rows"]) for merge in task.inputs["merges"])
    begun = scope.resume or {"merges": [], "batches": 0}
    out, batches = list(begun["merges"]), int(begun["batches"])
    rows = sum(int(merge["rows"]) for merge in out)

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    for merge in task.inputs["merges"][len(out) :]:
        paths = [table.path / name for name in merge["chunks"]]
        schema = _schema_of(paths, order=order.names)
        prefix = merged_prefix(int(merge["ns"][-1]), owner=str(merge["owner"]), plan_n=int(task.inputs["n"]))
        wanted = int(merge["rows"])
        with chunk_writer(
            context.spec, table, prefix=prefix, schema=schema, chunk_rows=wanted, on_chunk=on_chunk
        ) as writer:
            for batch in read_batches(
                paths, columns=schema.names, schema=schema, batch_bytes=scope.governor.batch_bytes
            ):
                scope.governor.wait()
                writer.write(batch.cast(schema))
                rows, batches = rows + batch.num_rows, batches + 1
                scope.batch_done(batch.num_rows, batch.nbytes)
                scope.progress(rows, total, "rows")
        if sum(ref.rows for ref in writer.chunks) != wanted:
            raise TableError(
                f"table {table.name}: {len(paths)} chunks from {paths[0].name} to {paths[-1].name} hold "
                f"{sum(ref.rows for ref in writer.chunks):,} rows, and the log says {wanted:,}",
                hint="a chunk was changed from outside: restore it from a backup; nothing was merged",
            )
        out.append({**merge, "written": [to_json(ref) for ref in writer.chunks]})
        scope.checkpoint({"merges": out, "batches": batches})
    return TaskResult(task=task.name, outputs={"merges": out}, rows_in=rows, rows_out=rows, batches=batches)


def _schema_of(paths: Sequence[Path], *, order: Sequence[str]) -> pa.Schema:
    """Return the columns that any of the files has, in the table's order, each as the newest file has it."""
    fields: dict[str, pa.Field] = {}
    for path in paths:
        try:
            fields |= {field.name: field.with_nullable(True) for field in pq.read_schema(path)}
        except (pa.ArrowException, OSError) as error:
            raise TableError(
                f"chunk {path} cannot be read: {str(error).splitlines()[0]}",
                hint="the file is damaged or gone: restore it from a backup; nothing was merged",
            ) from error
    return pa.schema([fields[name] for name in order if name in fields])
