"""Monitor: what the champions' predictions were worth once labels came, and how far new rows have drifted, into
``metrics``.

Rows that a model was trained on never count as its predictions. Deciding to train again is ``learning/retrain.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa

from engine.batching import ChunkWriter, Table, read_batches
from engine.batching.chunks import fixed_row_bytes
from engine.batching.streams import most_batch_bytes, rows_for, uneven_terms
from engine.batching.tables import chunk_prefix
from engine.bundle import Bundle
from engine.features.labelled import MODEL_VALUE_BYTES, labelled_terms
from engine.layout import EVENT_TIME, key_bytes, largest_row_bytes, predictions_table, prepared_app, prepared_table
from engine.learning.metrics import Metrics
from engine.ledger import Ledger, last_trained, positive_share, trained
from engine.memory.governor import release_pools
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.realised import AT_ONCE, POSITIVE_BYTES, Realised
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.stage import ChildContext, Forecast, Outcome, Plan, StageContext, run_task
from engine.units import format_time, parse_time

_DRIFT_BYTES = 24 * 2**20  # a row group, encoders and histograms, what is freed; the model itself is not loaded
_DRIFT_COPIES = 8  # of a batch, while its columns are encoded and counted one after another
_HELD_ROWS, _HELD_BYTES = 1_000, 2**19  # of metrics, before they are handed to the writer, and before it writes them
_LEAST_DRIFT_ROWS = 1_000  # fifty bins of fewer rows differ by chance alone

METRICS_SCHEMA = pa.schema(
    [
        pa.field("n", pa.int64()),
        pa.field("as_of", pa.string()),
        pa.field("kind", pa.string()),  # realised, drift or counts
        pa.field("model_version", pa.int64()),  # 0 where it is about no model
        pa.field("start", pa.string()),  # of the period; empty where there is none
        pa.field("end", pa.string()),
        pa.field("name", pa.string()),
        pa.field("value", pa.float64()),
    ]
)


@dataclass(frozen=True)
class MonitorStage:
    """The monitor stage of the context's pipeline."""

    name: str = "monitor"

    def app(self, context: StageContext) -> str:
        """Return the application id of the metrics' commits."""
        del context
        return "monitor"

    def primary(self, context: StageContext) -> Table:
        """Return the metrics."""
        return context.workspace.table("metrics")

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return what has come since the last look, or None when nothing has."""
        workspace, spec = context.workspace, context.spec
        before = last_record(context) or {}
        feature_set = spec.feature_set
        now = {
            "raw_n": workspace.table("raw").transaction("extract:raw"),
            "labels_n": workspace.table("labels").transaction("extract:labels"),
            "predictions_n": predictions_table(workspace).transaction("score"),
        }
        if not now["raw_n"] or all(before.get(name) == value for name, value in now.items()):
            return None
        champion = Ledger(workspace).champion()
        facts = trained(Ledger(workspace).history(), champion.version) if champion else None
        return {
            **now,
            "previous": before.get("as_of"),
            "before": {name: int(before.get(name, 0)) for name in now},
            "feature_set": feature_set,
            "champion": champion.version if champion else 0,
            "bundle": facts.details["bundle"] if facts else "",
            "champion_features": facts.details["feature_set"] if facts else "",
            "champion_prepared_n": int(before.get("prepared", {}).get(facts.details["feature_set"], 0)) if facts else 0,
            "models": _models(context),
        }

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the one task that joins predictions with labels and counts drift."""
        if done:
            return ()
        inputs = {
            **plan.bounds,
            "n": plan.n,
            "as_of": format_time(plan.as_of),
            "counts": _counts(context, plan),
            "imports": ["polars"],
        }
        task = Task(self.name, f"monitor.{plan.n}", "engine.stages.monitor:run", inputs)
        since = parse_time(plan.bounds["previous"]) if plan.bounds["previous"] else None
        return ((task, _projection(context, since=since, drift_of=plan.bounds["champion_features"])),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record what was seen; publish the metrics."""
        outputs = done[0][0].outputs
        chunks = [ChunkRef.from_json(value) for value in outputs["chunks"]]
        table = self.primary(context)

        def publish() -> None:
            table.commit(app=plan.app, n=plan.n, schema=METRICS_SCHEMA, add=chunks)

        seen = {name: plan.bounds[name] for name in ("raw_n", "labels_n", "predictions_n")}
        prepared = dict((last_record(context) or {}).get("prepared", {}))
        if plan.bounds["champion_features"]:
            prepared[plan.bounds["champion_features"]] = outputs["prepared_n"]
        summary = {
            **outputs["counts"],
            "period": outputs["period"],
            "drift": outputs["drift"],
            "champion": plan.bounds["champion"],
        }
        record = {**seen, "as_of": format_time(plan.as_of), "prepared": prepared, **summary}
        return Outcome(outputs=summary, record=record, publish=publish)


def _counts(context: StageContext, plan: Plan) -> dict[str, int]:
    """Return how many rows and labels have come since the last look."""
    journal = context.workspace.journal
    return {
        f"new_{name}": sum(
            int((journal.commit(f"extract:{what}", n) or {}).get("rows", 0))
            for n in range(plan.bounds["before"][f"{what}_n"] + 1, plan.bounds[f"{what}_n"] + 1)
        )
        for name, what in (("rows", "raw"), ("labels", "labels"))
    }


def last_record(context: StageContext) -> dict[str, Any] | None:
    """Return what the last committed look recorded, or None."""
    n = context.workspace.table("metrics").transaction("monitor")
    return context.workspace.journal.commit("monitor", n) if n else None


def realised(context: StageContext, *, low: datetime, high: datetime) -> Metrics | None:
    """Return what the predictions for event times in ``[low, high)`` were worth, with the labels known at the clock.

    Predictions of all champions are taken together, each made by the one in use at the time. None without any.
    """
    inputs = {
        "feature_set": context.spec.feature_set,
        "as_of": format_time(context.as_of),
        "models": _models(context),
        "low": format_time(low),
        "high": format_time(high),
        "imports": ["polars"],
    }
    task = Task("monitor", "realised", "engine.stages.monitor:run_realised", inputs)
    projection = _projection(context, since=low, drift_of="")
    projection.check(context.budget)
    found = run_task(task, context, projection=projection).outputs["period"]
    return Metrics(**found) if found else None


def _models(context: StageContext) -> dict[str, dict[str, Any]]:
    """Return, by version, the training cut-off and decision threshold of all models that were ever champion."""
    history = Ledger(context.workspace).history()
    versions = {entry.version for entry in history if entry.action in ("promoted", "rolled back")}
    out = {}
    for version in sorted(versions):
        facts = trained(history, version)
        if facts is not None:
            out[str(version)] = {key: facts.details[key] for key in ("trained_until", "threshold")}
    return out


def forecast(context: StageContext) -> list[Forecast]:
    """Return what a look at predictions, labels and drift takes."""
    before = last_record(context)
    since = parse_time(before["as_of"]) if before else None
    ledger = Ledger(context.workspace)
    champion = ledger.champion()
    facts = trained(ledger.history(), champion.version) if champion else None
    drift_of = facts.details["feature_set"] if facts else context.spec.feature_set
    projection = _projection(context, since=since, drift_of=drift_of)
    return [Forecast(projection, predictions_table(context.workspace).rows())]


def _projection(context: StageContext, *, since: datetime | None, drift_of: str) -> Projection:
    """Return what a look takes whose period begins at ``since``, and that counts drift of a feature set's rows.

    Without a period ``since`` is None, without drift ``drift_of`` is empty.
    """
    workspace, batch_bytes = context.workspace, context.budget.batch_bytes
    rows, row_bytes, _ = _extent(predictions_table(workspace))
    largest = largest_row_bytes(workspace, prepared_app(context.spec.feature_set))
    key = key_bytes(workspace)
    realised = labelled_terms(batch_bytes, rows=rows, row_bytes=row_bytes, key_bytes=key, largest_row_bytes=largest)
    drift = _drift_bytes(context, drift_of) if drift_of else 0
    terms = {
        **realised,
        "drift, beyond what measuring predictions held": max(0, drift - sum(realised.values())),
        "positives of the period": _positives(context, since) * POSITIVE_BYTES,
    }
    return Projection(stage="monitor", reserved_bytes=context.learned.reserved_bytes("monitor"), terms=terms)


def _drift_bytes(context: StageContext, feature_set: str) -> int:
    """Return what counting the drift of a feature set's rows takes: batches as read and as models have them."""
    batch_bytes = context.budget.batch_bytes
    largest = largest_row_bytes(context.workspace, prepared_app(feature_set))
    rows, row_bytes, columns = _extent(prepared_table(context.workspace, feature_set))
    at_once = rows_for(batch_bytes, bytes_per_row=MODEL_VALUE_BYTES * columns if row_bytes is None else row_bytes)
    encoded = 4 * columns * (at_once if rows is None else min(rows, at_once))  # float32
    read = _DRIFT_COPIES * most_batch_bytes(batch_bytes, rows=rows, row_bytes=row_bytes)
    uneven = uneven_terms(largest, batch_bytes=batch_bytes, copies=_DRIFT_COPIES)
    return _DRIFT_BYTES + read + encoded + sum(uneven.values())


def _extent(table: Table) -> tuple[int | None, float | None, int]:
    """Return a table's rows and the bytes of one, as far as they are known, and its columns."""
    schema = table.schema()
    if schema is None:
        return None, None, 0
    return table.rows(), fixed_row_bytes(schema, least_value_bytes=MODEL_VALUE_BYTES), len(schema)


def _positives(context: StageContext, since: datetime | None) -> int:
    """Return about how many positives are held at once: the share of the labels that were learned, of the predictions
    of the period, or of the weeks that are measured together where those have more.
    """
    last = last_trained(Ledger(context.workspace).history())
    chunks = predictions_table(context.workspace).chunks()
    if last is None or not chunks:
        return 0
    extent = max(chunk.maximum[EVENT_TIME] for chunk in chunks) - min(chunk.minimum[EVENT_TIME] for chunk in chunks)
    of_weeks = sum(chunk.rows for chunk in chunks) * min(1.0, AT_ONCE / max(extent, timedelta(seconds=1)))
    period = sum(chunk.rows for chunk in chunks if since and chunk.may_hold(EVENT_TIME, since, None))
    return int(max(of_weeks, period) * positive_share(last.details))


def run(task: Task, scope: Scope) -> TaskResult:
    """Join predictions with labels by version and week, and count drift (in the cage)."""
    context = ChildContext.of(scope.context)
    inputs = task.inputs
    looked = Realised(
        context,
        scope,
        feature_set=inputs["feature_set"],
        models=inputs["models"],
        known_by=parse_time(inputs["as_of"]),
    )
    clock = parse_time(inputs["previous"]) if inputs["previous"] else None
    since = looked.touched_since(clock, predictions_n=int(inputs["before"]["predictions_n"]))
    now, period = parse_time(inputs["as_of"]), dict[str, Any]()
    table = context.workspace.table("metrics")
    with ChunkWriter(
        table.path,
        prefix=chunk_prefix(int(inputs["n"]), "monitor"),
        schema=METRICS_SCHEMA,
        row_group_bytes=_HELD_BYTES,
    ) as writer:
        out = _MetricRows(writer, n=int(inputs["n"]), as_of=inputs["as_of"])
        out.add("counts", inputs["counts"])
        for group, found in looked.weeks(since) if since is not None else ():
            out.add("realised", found.to_json(), version=group.version, start=group.start, end=group.end)
        if clock is not None:
            whole = looked.period(clock, now)
            period = whole.to_json() if whole is not None else {}
            out.add("realised", period, start=clock, end=now)
        release_pools()  # what weeks have left in pieces would be beside what counting drift takes
        drift, prepared_n = _drift(context, inputs, scope) if inputs["bundle"] else ({}, 0)
        out.add("drift", drift, version=inputs["champion"], start=clock, end=now)
        out.flush()
    outputs = {
        "chunks": [to_json(ref) for ref in writer.chunks],
        "counts": inputs["counts"],
        "period": period,
        "drift": drift,
        "prepared_n": prepared_n,
    }
    return TaskResult(task=task.name, outputs=outputs, rows_in=looked.rows, rows_out=out.rows)


def run_realised(task: Task, scope: Scope) -> TaskResult:
    """Measure the predictions of one period (in the cage)."""
    inputs = task.inputs
    looked = Realised(
        ChildContext.of(scope.context),
        scope,
        feature_set=inputs["feature_set"],
        models=inputs["models"],
        known_by=parse_time(inputs["as_of"]),
    )
    found = looked.period(parse_time(inputs["low"]), parse_time(inputs["high"]))
    period = found.to_json() if found is not None else None
    return TaskResult(task=task.name, outputs={"period": period}, rows_in=looked.rows)


class _MetricRows:
    """Rows of ``metrics``, written as they come: a first look at decades has tens of thousands."""

    def __init__(self, writer: ChunkWriter, *, n: int, as_of: str) -> None:
        self._writer = writer
        self._look = {"n": n, "as_of": as_of}
        self._held: list[dict[str, Any]] = []
        self.rows = 0

    def add(
        self,
        kind: str,
        values: Mapping[str, Any],
        *,
        version: int = 0,
        start: datetime | None = None,
        end: datetime | None = None,
    ) -> None:
        """Add a row for each value that is known."""
        period = {"start": format_time(start) if start else "", "end": format_time(end) if end else ""}
        about = {**self._look, "kind": kind, "model_version": version, **period}
        self._held += [
            {**about, "name": name, "value": float(value)} for name, value in values.items() if value is not None
        ]
        if len(self._held) >= _HELD_ROWS:
            self.flush()

    def flush(self) -> None:
        """Hand all rows to the writer."""
        self._writer.write(pa.RecordBatch.from_pylist(self._held, METRICS_SCHEMA))
        self.rows += len(self._held)
        self._held = []


def _drift(context: ChildContext, inputs: Mapping[str, Any], scope: Scope) -> tuple[dict[str, float], int]:
    """Return the population stability index by feature of the rows prepared since the last look."""
    bundle = Bundle.load(context.workspace.root / inputs["bundle"], model=False)
    feature_set = inputs["champion_features"]
    prepared = prepared_table(context.workspace, feature_set)
    newest = prepared.transaction(prepared_app(feature_set))
    chunks = [c for c in prepared.chunks(newest_n=newest) if c.n > inputs["champion_prepared_n"]]
    counter, counted = bundle.drift_counter(), 0
    for batch in read_batches(
        [chunk.path for chunk in chunks],
        columns=list(bundle.features),
        batch_bytes=scope.governor.batch_bytes,
        span=(EVENT_TIME, bundle.trained_until, None),
        least_value_bytes=MODEL_VALUE_BYTES,
    ):
        scope.governor.wait()
        matrix = bundle.encoder.transform(pa.Table.from_batches([batch]))
        counter.update(matrix)
        counted += batch.num_rows
        scope.batch_done(batch.num_rows, batch.nbytes)
        scope.governor.passed(_DRIFT_COPIES * max(batch.nbytes, matrix.nbytes))
    if counted < _LEAST_DRIFT_ROWS:
        return {}, newest
    return {name: value for name, value in counter.finish().items() if value is not None}, newest
