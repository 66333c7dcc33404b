"""Score: the champion's probability for every new prepared row, into ``predictions``, once a row.

A row that has a prediction keeps it, also when its span is prepared again or another model is promoted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine import events
from engine.batching import Chunk, Table, Workspace, read_batches
from engine.batching.chunks import ROW_GROUP_BYTES
from engine.batching.streams import uneven_terms
from engine.batching.tables import chunk_prefix
from engine.bundle import Bundle, expected_bytes, loaded_bytes
from engine.features.labelled import MODEL_VALUE_BYTES
from engine.layout import (
    EVENT_TIME,
    KEY,
    chunk_writer,
    largest_row_bytes,
    predictions_table,
    prepared_app,
    prepared_table,
)
from engine.learning.learners import LIBRARIES
from engine.ledger import Ledger, trained
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.stage import ChildContext, Forecast, Outcome, Plan, StageContext
from engine.units import format_time, parse_time

_SLICE_ROWS = 1_000_000
_MICROSECOND = timedelta(microseconds=1)
_PART_BYTES = ROW_GROUP_BYTES // 4  # of predictions: not those of a batch, which may be small and many
_UNRETURNED_BYTES = 12 * 2**20  # after some million rows all other terms were used up
_COPIES = 6  # of a batch: as read, without what has a prediction, as the learner wants it, its scores


def predictions_schema(key: pa.DataType) -> pa.Schema:
    """Return the schema of ``predictions``."""
    return pa.schema(
        [
            pa.field(KEY, key),
            pa.field(EVENT_TIME, pa.timestamp("us", tz="UTC")),
            pa.field("model_version", pa.int64()),
            pa.field("score", pa.float64()),  # calibrated probability
            pa.field("alert", pa.bool_()),  # score at or above the decision threshold
            pa.field("scored_at", pa.timestamp("us", tz="UTC")),
        ]
    )


@dataclass(frozen=True)
class ScoreStage:
    """The score stage of the context's pipeline."""

    name: str = "score"

    def app(self, context: StageContext) -> str:
        """Return the application id of the predictions' commits."""
        del context
        return "score"

    def primary(self, context: StageContext) -> Table:
        """Return the predictions."""
        return predictions_table(context.workspace)

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the next prepared chunks that hold rows without a prediction; None without a champion."""
        history = Ledger(context.workspace).history()
        champion = Ledger(context.workspace).champion()
        facts = None if champion is None else trained(history, champion.version)
        if champion is None or facts is None:
            return None
        feature_set = facts.details["feature_set"]
        done = self._done(context)
        since = parse_time(done["since"]) if done else parse_time(facts.details["trained_until"])
        new = _new_chunks(
            context.workspace, feature_set, int(done["prepared"].get(feature_set, 0)) if done else 0, since
        )
        if not new:
            return None
        taken: list[Chunk] = []
        for chunk in new:
            if taken and (chunk.n != taken[-1].n and sum(c.rows for c in taken) + chunk.rows > _SLICE_ROWS):
                break
            taken.append(chunk)
        return {
            "version": champion.version,
            "bundle": facts.details["bundle"],
            "feature_set": feature_set,
            "learner": facts.details["learner"],
            "chunks": [chunk.name for chunk in taken],
            "rows": sum(chunk.rows for chunk in taken),
            "through_n": taken[-1].n,
            "since": format_time(since),
        }

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the one task that scores the chunks."""
        if done:
            return ()
        libraries = ["polars", *LIBRARIES[plan.bounds["learner"]]]
        inputs = {**plan.bounds, "n": plan.n, "as_of": format_time(plan.as_of), "imports": libraries}
        task = Task(self.name, f"score.{plan.n}", "engine.stages.score:run", inputs)
        model_bytes = loaded_bytes(context.workspace.root / plan.bounds["bundle"])
        return ((task, _project(context, model_bytes=model_bytes)),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record how far each feature set is scored; publish the predictions."""
        result = done[0][0]
        before = self._done(context)
        prepared = {**(before["prepared"] if before else {}), plan.bounds["feature_set"]: plan.bounds["through_n"]}
        chunks = [ChunkRef.from_json(value) for value in result.outputs["chunks"]]
        key = context.workspace.table("raw").schema()
        if key is None:
            raise LookupError("raw has no schema though prepared rows were scored")
        schema = predictions_schema(key.field(context.spec.source.key).type)

        def publish() -> None:
            self.primary(context).commit(app=plan.app, n=plan.n, schema=schema, add=chunks)

        return Outcome(
            outputs={"rows": result.rows_out, "version": plan.bounds["version"], "alerts": result.outputs["alerts"]},
            record={"prepared": prepared, "since": plan.bounds["since"]},
            publish=publish,
        )

    def _done(self, context: StageContext) -> dict[str, Any] | None:
        n = self.primary(context).transaction(self.app(context))
        return context.workspace.journal.commit(self.app(context), n) if n else None


def forecast(context: StageContext) -> list[Forecast]:
    """Return what scoring a slice of new rows takes."""
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    rows = max((chunk.rows for chunk in chunks), default=_SLICE_ROWS)
    return [Forecast(_project(context, model_bytes=expected_bytes(context.workspace)), rows)]


def _project(context: StageContext, *, model_bytes: int) -> Projection:
    """Return what scoring takes; looking for rows that have a prediction comes before a batch is copied."""
    features, batch = len(context.spec.features.names()), context.budget.batch_bytes
    largest = largest_row_bytes(context.workspace, prepared_app(context.spec.feature_set))
    terms = {
        "batches in flight": batch * _COPIES,
        "keys already scored": ROW_GROUP_BYTES,
        "model": model_bytes,
        "row group being written": 2 * ROW_GROUP_BYTES,
        "page of each column": (features + 3) * 2**17,
        "freed, not yet given back": _UNRETURNED_BYTES,
        **uneven_terms(largest, batch_bytes=batch, copies=_COPIES),
    }
    return Projection(stage="score", reserved_bytes=context.learned.reserved_bytes("score"), terms=terms)


def _new_chunks(workspace: Workspace, feature_set: str, after_n: int, since: datetime) -> list[Chunk]:
    table = prepared_table(workspace, feature_set)
    chunks = table.chunks(newest_n=table.transaction(prepared_app(feature_set)))
    return [chunk for chunk in chunks if chunk.n > after_n and chunk.may_hold(EVENT_TIME, since, None)]


def run(task: Task, scope: Scope) -> TaskResult:
    """Score the rows of some prepared chunks that have no prediction yet (in the cage)."""
    context = ChildContext.of(scope.context)
    workspace = context.workspace
    bundle = Bundle.load(workspace.root / task.inputs["bundle"])
    prepared = prepared_table(workspace, task.inputs["feature_set"])
    chunks = {chunk.name: chunk for chunk in prepared.chunks()}
    since = parse_time(task.inputs["since"])
    schema = prepared.schema()
    if schema is None:
        raise LookupError("prepared has no schema though its chunks were planned")
    predictions = predictions_table(workspace)
    out_schema = predictions_schema(schema.field(KEY).type)
    columns = [KEY, EVENT_TIME, *bundle.features]
    prefix = chunk_prefix(int(task.inputs["n"]), "score")
    done = _Done() if scope.resume is None else _Done.from_json(scope.resume)
    stamp = pa.scalar(parse_time(task.inputs["as_of"]), type=pa.timestamp("us", tz="UTC"))

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))
        scope.checkpoint(done.to_json(writer.chunks))  # it ends with the last batch that is done

    with chunk_writer(
        context.spec, predictions, prefix=prefix, schema=out_schema, on_chunk=on_chunk, written=done.chunks
    ) as writer:
        for number, name in enumerate(task.inputs["chunks"]):
            if number < done.number:
                continue
            chunk, row = chunks[name], done.row if number == done.number else 0
            known = _scored_within(predictions, chunk)
            for batch in read_batches(
                [chunk.path],
                columns=columns,
                schema=pa.schema([schema.field(column) for column in columns]),
                batch_bytes=scope.governor.batch_bytes,
                span=(EVENT_TIME, since, None),
                after_rows=row,
                least_value_bytes=MODEL_VALUE_BYTES,
            ):
                scope.governor.wait()
                row += batch.num_rows
                fresh = _unscored(batch, known)
                scope.batch_done(batch.num_rows, batch.nbytes)
                scope.governor.passed(batch.nbytes)
                scope.progress(done.rows + batch.num_rows, int(task.inputs["rows"]), "rows")
                if not fresh.num_rows:
                    done.add(number, row, batch, alerts=0)
                    continue
                scores = bundle.score(pa.Table.from_batches([fresh]))
                flags = scores >= bundle.threshold
                arrays = [
                    fresh.column(KEY),
                    fresh.column(EVENT_TIME),
                    pa.array([int(task.inputs["version"])] * fresh.num_rows, type=pa.int64()),
                    pa.array(scores),
                    pa.array(flags),
                    pa.repeat(stamp, fresh.num_rows),
                ]
                writer.write(pa.RecordBatch.from_arrays(arrays, schema=out_schema))
                done.add(number, row, batch, alerts=int(flags.sum()))
    return TaskResult(
        task=task.name,
        outputs={"chunks": [to_json(ref) for ref in writer.chunks], "alerts": done.alerts},
        rows_in=done.rows,
        rows_out=sum(ref.rows for ref in writer.chunks),
        batches=done.batches,
    )


@dataclass
class _Done:
    """How far a scoring is, and what it has written: where another try of it goes on."""

    number: int = 0  # of the prepared chunk
    row: int = 0  # of those that are read of it
    rows: int = 0
    batches: int = 0
    alerts: int = 0
    chunks: Sequence[ChunkRef] = ()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> _Done:
        return cls(**{**value, "chunks": [ChunkRef.from_json(ref) for ref in value["chunks"]]})

    def to_json(self, chunks: Sequence[ChunkRef]) -> dict[str, Any]:
        return to_json(dataclasses.replace(self, chunks=tuple(chunks)))

    def add(self, number: int, row: int, batch: pa.RecordBatch, *, alerts: int) -> None:
        self.number, self.row, self.alerts = number, row, self.alerts + alerts
        self.rows, self.batches = self.rows + batch.num_rows, self.batches + 1


def _scored_within(predictions: Table, chunk: Chunk) -> list[Chunk]:
    """Return the chunks that may hold predictions of a prepared chunk's rows."""
    low, high = chunk.minimum[EVENT_TIME], chunk.maximum[EVENT_TIME]
    return [one for one in predictions.chunks() if one.may_hold(EVENT_TIME, low, high + _MICROSECOND)]


def _unscored(batch: pa.RecordBatch, known: Sequence[Chunk]) -> pa.RecordBatch:
    """Return the rows of a batch that have no prediction among its event times.

    Predictions stream past the batch, so that what is held does not depend on how many there are, or on their keys.
    """
    import polars as pl

    extent = pc.min_max(batch.column(EVENT_TIME))
    low, high = extent["min"].as_py(), extent["max"].as_py() + _MICROSECOND
    mine = [chunk.path for chunk in known if chunk.may_hold(EVENT_TIME, low, high)]
    keys, found = pl.DataFrame(batch.select([KEY]))[KEY], pl.repeat(False, batch.num_rows, eager=True)
    for part in read_batches(mine, columns=[KEY], span=(EVENT_TIME, low, high), batch_bytes=_PART_BYTES):
        scored = pl.DataFrame(part)[KEY]
        # Of the two sets the batch is the one that is hashed; of the other only what it shares with it.
        found = found | keys.is_in(scored.filter(scored.is_in(keys.implode())).implode())
        if found.all():
            break
    return batch.filter((~found).to_arrow())
