"""Monitor: what the champions' predictions were worth once labels came, and how far new rows have drifted, into
``metrics``.

Rows that a model was trained on never count as its predictions. Deciding to train again is ``learning/retrain.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine.batching import Chunk, ChunkWriter, Table, read_batches
from engine.batching.tables import chunk_prefix
from engine.bundle import Bundle
from engine.features.labelled import LabelView, labelled_rows
from engine.layout import EVENT_TIME, label_events_table, predictions_table, prepared_app, prepared_table
from engine.learning.metrics import Metrics, PositiveScores, RankingMetrics
from engine.ledger import Ledger, trained
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult
from engine.stage import ChildContext, Forecast, Outcome, Plan, StageContext, run_task
from engine.units import format_time, parse_time

if TYPE_CHECKING:
    import polars as pl

_COPIES = 6
_SPAN_LABEL_BYTES = 100_000 * 120  # one span's labels while they are joined (features/labelled.py)
_MODEL_BYTES = 24 * 2**20  # encoders and histograms; the model itself is not loaded
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
        periods = [[plan.bounds["previous"], format_time(plan.as_of)]] if plan.bounds["previous"] else []
        inputs = {
            **plan.bounds,
            "n": plan.n,
            "as_of": format_time(plan.as_of),
            "periods": periods,
            "imports": ["polars"],
        }
        task = Task(self.name, f"monitor.{plan.n}", "engine.stages.monitor:run", inputs)
        return ((task, _projection(context)),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record what was seen; publish the metrics."""
        outputs = done[0][0].outputs
        as_of = format_time(plan.as_of)
        journal = context.workspace.journal
        counts = {
            f"new_{name}": sum(
                int((journal.commit(f"extract:{what}", n) or {}).get("rows", 0))
                for n in range(plan.bounds["before"][f"{what}_n"] + 1, plan.bounds[f"{what}_n"] + 1)
            )
            for name, what in (("rows", "raw"), ("labels", "labels"))
        }
        rows = [
            {"kind": "counts", "model_version": 0, "start": "", "end": "", "name": name, "value": float(value)}
            for name, value in counts.items()
        ]
        rows += outputs["metrics"]
        batch = pa.RecordBatch.from_pylist([{**row, "n": plan.n, "as_of": as_of} for row in rows], METRICS_SCHEMA)
        table = self.primary(context)

        def publish() -> None:
            with ChunkWriter(table.path, prefix=chunk_prefix(plan.n, "monitor"), schema=METRICS_SCHEMA) as writer:
                writer.write(batch)
            table.commit(app=plan.app, n=plan.n, schema=METRICS_SCHEMA, add=writer.chunks)

        seen = {name: plan.bounds[name] for name in ("raw_n", "labels_n", "predictions_n")}
        prepared = dict((last_record(context) or {}).get("prepared", {}))
        if plan.bounds["champion_features"]:
            prepared[plan.bounds["champion_features"]] = outputs["prepared_n"]
        summary = {
            **counts,
            "period": outputs["period"],
            "drift": outputs["drift"],
            "champion": plan.bounds["champion"],
        }
        return Outcome(
            outputs=summary, record={**seen, "as_of": as_of, "prepared": prepared, **summary}, publish=publish
        )


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
        "periods": [[format_time(low), format_time(high)]],
        "bundle": "",
        "imports": ["polars"],
        "weeks_from": format_time(high),
    }
    task = Task("monitor", "realised", "engine.stages.monitor:run", inputs)
    projection = _projection(context)
    projection.check(context.budget)
    result = run_task(task, context, projection=projection)
    found = result.outputs["period"]
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
    return [Forecast(_projection(context), predictions_table(context.workspace).rows())]


def _projection(context: StageContext) -> Projection:
    terms = {
        "batches in flight": context.budget.batch_bytes * _COPIES,
        "labels of one span": _SPAN_LABEL_BYTES,
        "champion for drift": _MODEL_BYTES,
    }
    return Projection(stage="monitor", reserved_bytes=context.learned.reserved_bytes("monitor"), terms=terms)


def run(task: Task, scope: Scope) -> TaskResult:
    """Join predictions with labels by version and week, and count drift (in the cage)."""
    context = ChildContext.of(scope.context)
    inputs = task.inputs
    groups, rows_in = _realised(context, inputs, scope)
    out: list[dict[str, Any]] = []
    period: dict[str, Any] = {}
    for (kind, version, start, end), found in groups.items():
        values = found.to_json()
        if kind == "period" and version == 0:
            period = values
        out += [
            {"kind": "realised", "model_version": version, "start": start, "end": end, "name": name, "value": float(v)}
            for name, v in values.items()
            if v is not None
        ]
    drift, prepared_n = _drift(context, inputs, scope) if inputs["bundle"] else ({}, 0)
    out += [
        {
            "kind": "drift",
            "model_version": inputs["champion"],
            "start": inputs["previous"] or "",
            "end": inputs["as_of"],
            "name": name,
            "value": value,
        }
        for name, value in drift.items()
    ]
    outputs = {"metrics": out, "period": period, "drift": drift, "prepared_n": prepared_n}
    return TaskResult(task=task.name, outputs=outputs, rows_in=rows_in, rows_out=len(out))


_Group = tuple[str, int, str, str]  # week or period; model version, 0 for all; start; end


def _realised(context: ChildContext, inputs: Mapping[str, Any], scope: Scope) -> tuple[dict[_Group, Metrics], int]:
    predictions = predictions_table(context.workspace)
    chunks = predictions.chunks()
    if not chunks or not inputs["models"]:
        return {}, 0
    periods = [(parse_time(low), parse_time(high)) for low, high in inputs["periods"]]
    weeks_from = inputs.get("weeks_from")
    start = parse_time(weeks_from) if weeks_from else _touched_from(context, inputs, chunks)
    low = min([start, *(period[0] for period in periods)])
    first: dict[_Group, PositiveScores] = {}
    rows = 0
    for group, scores, labels in _groups(context, inputs, chunks, low=low, weeks=start, periods=periods, scope=scope):
        first.setdefault(group, PositiveScores()).update(scores, labels)
    second = {
        group: RankingMetrics(kept.finish(), threshold=_threshold(inputs, group[1])) for group, kept in first.items()
    }
    for group, scores, labels in _groups(context, inputs, chunks, low=low, weeks=start, periods=periods, scope=scope):
        second[group].update(scores, labels)
        rows += len(scores)
    alerts = _Alerts()
    for group, flags, labels in _groups(
        context, inputs, chunks, low=low, weeks=start, periods=periods, scope=scope, column="alert"
    ):
        if group[1] == 0:
            alerts.update(group, flags, labels)
    return {group: alerts.amend(group, counted.finish()) for group, counted in second.items()}, rows


class _Alerts:
    """Precision, recall and F1 where several models' thresholds meet: by the alerts as they were raised."""

    def __init__(self) -> None:
        self._counts: dict[_Group, list[int]] = {}

    def update(self, group: _Group, flags: Any, labels: Any) -> None:
        counts = self._counts.setdefault(group, [0, 0, 0, 0])
        for index, value in enumerate(((flags & labels).sum(), flags.sum(), labels.sum(), len(labels))):
            counts[index] += int(value)

    def amend(self, group: _Group, found: Metrics) -> Metrics:
        if group not in self._counts:
            return found
        hits, alerts, positives, rows = self._counts[group]
        return dataclasses.replace(
            found,
            precision=hits / alerts if alerts else None,
            recall=hits / positives if positives else None,
            f1=2 * hits / (alerts + positives) if alerts + positives else None,
            alert_rate=alerts / rows if rows else None,
        )


def _threshold(inputs: Mapping[str, Any], version: int) -> float:
    models = inputs["models"]
    return float(models[str(version)]["threshold"]) if version else float(next(iter(models.values()))["threshold"])


def _touched_from(context: ChildContext, inputs: Mapping[str, Any], chunks: Sequence[Chunk]) -> datetime:
    """Return the start of the first week in which a prediction or a label is new."""
    prepared = prepared_table(context.workspace, inputs["feature_set"])
    side = label_events_table(context.workspace, inputs["feature_set"])
    known = side.chunks(newest_n=prepared.transaction(prepared_app(inputs["feature_set"])))
    since = parse_time(inputs["previous"]) if inputs["previous"] else None
    times = [chunk.minimum[EVENT_TIME] for chunk in chunks if chunk.n > inputs["before"]["predictions_n"]]
    times += [chunk.minimum[EVENT_TIME] for chunk in known if since is None or chunk.maximum["labelled_at"] > since]
    return (
        _week(max(min(times), min(chunk.minimum[EVENT_TIME] for chunk in chunks)))
        if times
        else parse_time(inputs["as_of"])
    )


def _groups(
    context: ChildContext,
    inputs: Mapping[str, Any],
    chunks: Sequence[Chunk],
    *,
    low: datetime,
    weeks: datetime,
    periods: Sequence[tuple[datetime, datetime]],
    scope: Scope,
    column: str = "score",
) -> Iterator[tuple[_Group, Any, Any]]:
    """Yield (group, values, labels): by version and week, by version and period, and by period for all versions."""
    import polars as pl

    for rows in _labelled(context, inputs, chunks, low=low, scope=scope):
        honest = pl.lit(value=False)
        for version, facts in inputs["models"].items():
            until = pl.lit(parse_time(facts["trained_until"]))
            honest = honest | ((pl.col("model_version") == int(version)) & (pl.col(EVENT_TIME) >= until))
        rows = rows.filter(honest)
        by_week = rows.with_columns(_week=pl.col(EVENT_TIME).dt.truncate("1w")).filter(pl.col(EVENT_TIME) >= weeks)
        for (version, week), part in by_week.group_by("model_version", "_week", maintain_order=True):
            end = format_time(week + timedelta(weeks=1))
            group = ("week", int(version), format_time(week), end)
            yield group, part[column].to_numpy(), part["label"].to_numpy()
        for start, end_time in periods:
            part = rows.filter((pl.col(EVENT_TIME) >= start) & (pl.col(EVENT_TIME) < end_time))
            if part.height:
                group = ("period", 0, format_time(start), format_time(end_time))
                yield group, part[column].to_numpy(), part["label"].to_numpy()


def _labelled(
    context: ChildContext, inputs: Mapping[str, Any], chunks: Sequence[Chunk], *, low: datetime, scope: Scope
) -> Iterator[pl.DataFrame]:
    schema = predictions_table(context.workspace).schema()
    if schema is None:
        return
    feature_set = inputs["feature_set"]
    prepared = prepared_table(context.workspace, feature_set)
    side = label_events_table(context.workspace, feature_set)
    labels = LabelView(
        chunks=side.chunks(newest_n=prepared.transaction(prepared_app(feature_set))),
        known_by=parse_time(inputs["as_of"]),
        absent=context.spec.labels.absent,
        delay=context.spec.labels.delay,
    )
    for rows in labelled_rows(
        chunks,
        labels,
        columns=["model_version", "score", "alert"],
        schema=schema,
        low=low,
        high=None,
        batch_bytes=scope.governor.batch_bytes,
    ):
        scope.governor.wait()
        yield rows


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
    ):
        scope.governor.wait()
        counter.update(bundle.encoder.transform(pa.Table.from_batches([batch])))
        counted += batch.num_rows
        scope.batch_done(batch.num_rows, batch.nbytes)
    if counted < _LEAST_DRIFT_ROWS:
        return {}, newest
    return {name: value for name, value in counter.finish().items() if value is not None}, newest


def _week(value: datetime) -> datetime:
    day = value.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return day - timedelta(days=day.weekday())
