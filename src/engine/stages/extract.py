"""Extract: new rows of the source into ``raw``, new label records into ``labels``, what does not fit into
``quarantine``.

Incremental by (cursor, key); the position belongs to the commit that holds the rows. How a database is read is in
``sources/``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine import events
from engine.batching import ChunkWriter, Table
from engine.batching.chunks import ROW_GROUP_BYTES
from engine.batching.streams import rows_for
from engine.batching.tables import chunk_prefix
from engine.errors import SourceError
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.sources import Position, Source
from engine.sources.check import open_labels, open_rows
from engine.spec import PipelineSpec
from engine.stage import ChildContext, Outcome, Plan, StageContext
from engine.units import format_bytes, format_time, parse_time

SLICE_ROWS = {"raw": 1_000_000, "labels": 250_000}
"""Rows of one commit: a first load of a year goes in commits of bounded size. Prepare holds a slice of labels at
once."""

HISTOGRAM_SECONDS = 3_600
"""Width of the buckets that tell prepare which spans of event time a commit touches."""

_COPIES = 3  # the driver's batch, the checked one, the one that waits to be written

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("row", pa.string()),  # JSON, cut at 4 KiB
        pa.field("as_of", pa.string()),
    ]
)
_LONGEST_QUARANTINED = 4096


@dataclass(frozen=True)
class ExtractStage:
    """One of the two extractions of a pipeline: its rows or its label records."""

    what: Literal["raw", "labels"]
    name: str = "extract"

    def app(self, context: StageContext) -> str:
        """Return the application id of the table's commits."""
        del context
        return f"extract:{self.what}"

    def primary(self, context: StageContext) -> Table:
        """Return the table that the rows go to."""
        return context.workspace.table(self.what)

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the next range of the cursor: from the last committed position to the run's clock."""
        after = position(context, self.what)
        with open_for(context.spec, self.what) as source:
            batches = source.read(after=after, until=context.as_of, limit_rows=1, batch_rows=1)
            if not any(batch.num_rows for batch in batches):
                if after is None:
                    _explain_nothing(context, source, self.what)
                return None
        return {
            "after": None if after is None else after.to_json(),
            "until": format_time(context.as_of),
            "limit_rows": SLICE_ROWS[self.what],
        }

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the one task that reads the range."""
        if done:
            return ()
        inputs = {**plan.bounds, "what": self.what, "n": plan.n, "spec": context.spec_hash()}
        task = Task(self.name, f"{self.what}.{plan.n}", "engine.stages.extract:run", inputs)
        with open_for(context.spec, self.what) as source:
            columns = len(source.schema())
        reserved = context.reserved.load(self.name)
        return ((task, _project(reserved, context.budget.batch_bytes, columns)),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record the new position; publish quarantine first, then the table."""
        outputs = done[0][0].outputs
        table, quarantine = self.primary(context), context.workspace.table("quarantine")
        chunks = _refs(outputs["chunks"])
        schema = pq.read_schema(table.path / chunks[0].path) if chunks else _table_schema(context.spec, self.what)
        app = self.app(context)

        def publish() -> None:
            quarantine.commit(
                app=f"{app}:quarantine", n=plan.n, schema=QUARANTINE_SCHEMA, add=_refs(outputs["quarantine"])
            )
            table.commit(app=app, n=plan.n, schema=schema, add=chunks)

        return Outcome(
            outputs={"rows": done[0][0].rows_out, "position": outputs["position"], "table": self.what},
            record={
                "position": outputs["position"],
                "rows": done[0][0].rows_out,
                "memory_bytes": sum(ref.memory_bytes for ref in chunks),
                "hours": outputs["hours"],
                "event_minimum": outputs["event_minimum"],
                "event_maximum": outputs["event_maximum"],
            },
            publish=publish,
        )


def position(context: StageContext, what: str) -> Position | None:
    """Return the last committed position of ``raw`` or ``labels``, or None before the first commit."""
    n = context.workspace.table(what).transaction(f"extract:{what}")
    record = context.workspace.journal.commit(f"extract:{what}", n) if n else None
    return Position.from_json(record["position"]) if record and record["position"] else None


def open_for(spec: PipelineSpec, what: str) -> Source:
    """Return the source of a pipeline's rows or labels."""
    return open_rows(spec) if what == "raw" else open_labels(spec)


def run(task: Task, scope: Scope) -> TaskResult:
    """Read one range of the source and write it as chunks (in the cage)."""
    context = ChildContext.of(scope.context)
    what, n = task.inputs["what"], int(task.inputs["n"])
    after = task.inputs["after"]
    checker = _Checker(context.spec, what=what, n=n, as_of=task.inputs["until"])
    tables = {name: context.workspace.table(name) for name in (what, "quarantine")}

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    with open_for(context.spec, what) as source:
        schema = _table_schema(context.spec, what, source=source)
        good = ChunkWriter(tables[what].path, prefix=chunk_prefix(n, what), schema=schema, on_chunk=on_chunk)
        bad = ChunkWriter(tables["quarantine"].path, prefix=chunk_prefix(n, what), schema=QUARANTINE_SCHEMA)
        with good, bad:
            stream = source.read(
                after=None if after is None else Position.from_json(after),
                until=parse_time(task.inputs["until"]),
                limit_rows=int(task.inputs["limit_rows"]),
                batch_rows=rows_for(scope.budget.batch_bytes, bytes_per_row=_bytes_per_row(source.schema())),
            )
            rows_in = batches = 0
            for batch in stream:
                scope.governor.wait()
                rows_in += batch.num_rows
                batches += 1
                kept, quarantined = checker.check(batch, schema)
                good.write(kept)
                bad.write(quarantined)
                scope.batch_done(batch.num_rows, batch.nbytes)
                scope.progress(rows_in, rows_in, "rows")
            last = source.position
    return TaskResult(
        task=task.name,
        outputs={
            "chunks": [to_json(ref) for ref in good.chunks],
            "quarantine": [to_json(ref) for ref in bad.chunks],
            "position": None if last is None else last.to_json(),
            **checker.event_times(),
        },
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in good.chunks),
        rows_quarantined=sum(ref.rows for ref in bad.chunks),
        batches=batches,
    )


class _Checker:
    """Splits batches into what the table takes and what goes to quarantine, and counts event times by hour."""

    def __init__(self, spec: PipelineSpec, *, what: str, n: int, as_of: str) -> None:
        self._spec = spec
        self._what = what
        self._n = n
        self._as_of = as_of
        self._hours: Counter[int] = Counter()
        self._minimum: int | None = None
        self._maximum: int | None = None

    def check(self, batch: pa.RecordBatch, schema: pa.Schema) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        source, labels = self._spec.source, self._spec.labels
        if self._what == "raw":
            required = {source.key: "key", source.cursor: "cursor", self._spec.event_time: "event time"}
        else:
            required = {labels.key: "key", labels.labelled_at: "labelled_at"}
        reasons: list[tuple[pa.Array, str]] = [
            (pc.is_null(batch.column(name)), f"{meaning} {name} is null") for name, meaning in required.items()
        ]
        if batch.nbytes > source.max_row_bytes:
            fat = pc.greater(_row_bytes(batch), source.max_row_bytes)
            reasons.append((fat, f"row is larger than max_row_bytes ({format_bytes(source.max_row_bytes)})"))
        if self._what == "labels":
            batch, wrong = _as_labels(batch, self._spec)
            reasons = [(mask, text) for mask, text in reasons] + [(wrong, "label is neither 0 nor 1")]
        bad = reasons[0][0]
        for mask, _ in reasons[1:]:
            bad = pc.or_(bad, mask)
        if self._what == "raw":
            batch = batch.cast(schema) if batch.schema != schema else batch
        rejected = self._rejected(batch, reasons) if pc.any(bad).as_py() else []
        kept = batch.filter(pc.invert(bad)) if rejected else batch
        if self._what == "raw":
            self._count(kept.column(self._spec.event_time))
        return kept, pa.RecordBatch.from_pylist(rejected, schema=QUARANTINE_SCHEMA)

    def event_times(self) -> dict[str, Any]:
        return {
            "hours": {str(hour): count for hour, count in sorted(self._hours.items())},
            "event_minimum": self._minimum,
            "event_maximum": self._maximum,
        }

    def _count(self, times: pa.Array) -> None:
        if not len(times):
            return
        microseconds = times.cast(pa.int64())
        for pair in pc.value_counts(pc.divide(microseconds, HISTOGRAM_SECONDS * 1_000_000)).to_pylist():
            self._hours[pair["values"]] += pair["counts"]
        low, high = (pc.min_max(microseconds)[side].as_py() for side in ("min", "max"))
        self._minimum = low if self._minimum is None else min(self._minimum, low)
        self._maximum = high if self._maximum is None else max(self._maximum, high)

    def _rejected(self, batch: pa.RecordBatch, reasons: list[tuple[pa.Array, str]]) -> list[dict[str, Any]]:
        out = []
        key = self._spec.source.key if self._what == "raw" else "key"
        taken: set[int] = set()
        for mask, text in reasons:
            for index in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
                if index in taken:
                    continue
                taken.add(index)
                row = batch.slice(index, 1)
                out.append(
                    {
                        "table": self._what,
                        "n": self._n,
                        "key": str(row.column(key)[0].as_py()),
                        "reason": text,
                        "row": _short(row),
                        "as_of": self._as_of,
                    }
                )
        return out


def _short(row: pa.RecordBatch) -> str:
    values = {}
    for name, column in zip(row.schema.names, row.columns, strict=True):
        value = column[0].as_py()
        values[name] = value[:256] if isinstance(value, str | bytes) else value
    return json.dumps(values, default=str)[:_LONGEST_QUARANTINED]


def _as_labels(batch: pa.RecordBatch, spec: PipelineSpec) -> tuple[pa.RecordBatch, pa.Array]:
    """Return (key, value as boolean, labelled_at) and where the value is neither; a null value withdraws a label."""
    labels = spec.labels
    value = batch.column(labels.value)
    if pa.types.is_boolean(value.type):
        wrong = pa.array([False] * batch.num_rows)
        flags = value
    else:
        number = value.cast(pa.float64(), safe=False)
        wrong = pc.fill_null(pc.invert(pc.or_(pc.equal(number, 0.0), pc.equal(number, 1.0))), False)
        flags = pc.equal(number, 1.0)
    columns = [batch.column(labels.key), flags, batch.column(labels.labelled_at)]
    return pa.RecordBatch.from_arrays(columns, names=["key", "value", "labelled_at"]), wrong


def _row_bytes(batch: pa.RecordBatch) -> pa.Array:
    total = pa.array([8 * batch.num_columns] * batch.num_rows, type=pa.int64())
    for column in batch.columns:
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_string(column.type):
            total = pc.add(total, pc.fill_null(pc.binary_length(column).cast(pa.int64()), 0))
    return total


def _table_schema(spec: PipelineSpec, what: str, *, source: Source | None = None) -> pa.Schema:
    if source is None:
        with open_for(spec, what) as opened:
            return _table_schema(spec, what, source=opened)
    schema = source.schema()
    if what == "raw":
        return schema
    key = schema.field(spec.labels.key).type
    stamp = pa.timestamp("us", tz="UTC")
    return pa.schema([pa.field("key", key), pa.field("value", pa.bool_()), pa.field("labelled_at", stamp)])


def _bytes_per_row(schema: pa.Schema) -> float:
    """Return a first guess: eight bytes a number, 64 a string with its offset."""
    total = 0
    for field in schema:
        total += 8 if pa.types.is_primitive(field.type) else 64
    return float(total)


def _project(reserved_bytes: int, batch_bytes: int, columns: int) -> Projection:
    return Projection(
        stage="extract",
        reserved_bytes=reserved_bytes,
        terms={
            "batches in flight": batch_bytes * _COPIES,
            "row group being written": 2 * ROW_GROUP_BYTES,
            "page of each column": columns * 2**20 // 4,
            "driver and query buffers": 24 * 2**20,
        },
    )


def _refs(values: Sequence[Mapping[str, Any]]) -> list[ChunkRef]:
    return [ChunkRef.from_json(value) for value in values]


def _explain_nothing(context: StageContext, source: Source, what: str) -> None:
    """Raise when the very first extraction finds no row: an empty table is never what was meant."""
    table = context.spec.source.table if what == "raw" else context.spec.labels.table
    later = source.read(after=None, until=context.as_of + timedelta(days=36_500), limit_rows=1, batch_rows=1)
    if any(batch.num_rows for batch in later):
        message = f"table {table!r} has no row up to {format_time(context.as_of)}"
        raise SourceError(message, hint="its first row is later: give a later --as-of")
    if what == "raw":
        raise SourceError(f"table {table!r} is empty", hint="is this the right table, and has it been filled?")
