"""Predictions and labels of 40 weeks, against metrics of the rows at hand."""

from __future__ import annotations

import time
import tracemalloc
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from engine import events
from engine.batching.tables import chunk_prefix
from engine.features.label_events import label_event_schema
from engine.layout import chunk_writer, label_events_table, predictions_table, prepared_app, prepared_table
from engine.learning.metrics import metrics
from engine.memory.governor import Governor
from engine.memory.scope import Scope
from engine.realised import Group, Realised
from engine.spec import LABEL_EVENT_COLUMNS
from engine.stage import ChildContext, StageContext
from engine.stages.score import predictions_schema
from tests.shop import Shop

START = datetime(2026, 1, 5, tzinfo=UTC)  # a Monday
TRAINED = START + timedelta(days=10)
MODELS = {
    "1": {"trained_until": START.isoformat(), "threshold": 0.4},
    "2": {"trained_until": TRAINED.isoformat(), "threshold": 0.6},
}
CLOCK = START + timedelta(weeks=200)


def _predictions(weeks: int, *, rows: int = 600) -> pl.DataFrame:
    random = np.random.default_rng(11)
    count = weeks * rows
    seconds = np.sort(random.integers(0, weeks * 7 * 86_400, count))
    score = random.random(count)
    return pl.DataFrame(
        {
            "key": np.arange(count),
            "event_time": pl.Series(seconds * 1_000_000 + int(START.timestamp()) * 1_000_000).cast(
                pl.Datetime("us", "UTC")
            ),
            "model_version": random.integers(1, 3, count),
            "score": score,
            "alert": random.random(count) < score,  # as an earlier threshold may have raised them
            "label": random.random(count) < score,
        }
    )


def _realised(directory: Path, rows: pl.DataFrame) -> Realised:
    directory.mkdir()
    spec = Shop(directory).spec
    stages = StageContext.of(spec, directory=directory, as_of=CLOCK)
    workspace = stages.workspace
    workspace.prepare()
    schema = predictions_schema(pa.int64())
    scored = rows.with_columns(scored_at=pl.lit(CLOCK).cast(pl.Datetime("us", "UTC"))).select(schema.names)
    events_schema = label_event_schema(pa.int64(), [])
    known = rows.select(
        "key",
        "event_time",
        known_at=pl.col("event_time") + timedelta(hours=1),
        labelled_at=pl.col("event_time") + timedelta(hours=1),
        value=pl.col("label"),
    )
    side = label_events_table(workspace, spec.feature_set)
    predictions = predictions_table(workspace)
    for table, prefix, app, frame, fitting in (
        (predictions, "score", "score", scored, schema),
        (side, "labels", "side", known, events_schema),
    ):
        with chunk_writer(spec, table, prefix=chunk_prefix(1, prefix), schema=fitting, chunk_rows=600) as writer:
            for batch in frame.to_arrow().cast(fitting).to_batches(max_chunksize=600):
                writer.write(batch)
        table.commit(app=app, n=1, schema=fitting, add=writer.chunks)
    prepared_table(workspace, spec.feature_set).commit(
        app=prepared_app(spec.feature_set), n=1, schema=pa.schema([("key", pa.int64())]), add=[]
    )
    governor = Governor(stages.budget, reserved_bytes=0)
    scope = Scope("monitor", "look", {}, stages.budget, governor, events.ignore, time.monotonic())
    child = ChildContext.of(stages.for_child())
    return Realised(child, scope, feature_set=spec.feature_set, models=MODELS, known_by=CLOCK)


def _honest(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.filter((pl.col("model_version") == 1) | (pl.col("event_time") >= TRAINED))


def test_each_week_of_each_version_has_the_metrics_of_its_rows(tmp_path: Path) -> None:
    rows = _predictions(40)
    found = dict(_realised(tmp_path / "a", rows).weeks(START + timedelta(days=3)))
    weeks = _honest(rows).with_columns(week=pl.col("event_time").dt.truncate("1w"))
    wanted = {
        Group(int(version), week, week + timedelta(weeks=1)): metrics(
            part["score"].to_numpy(),
            part["label"].to_numpy(),
            threshold=float(MODELS[str(version)]["threshold"]),  # type: ignore[arg-type]
        )
        for (version, week), part in weeks.group_by("model_version", "week")
    }
    assert len(found) == 79  # the second version has no week before it was trained
    assert found == wanted


def test_a_period_takes_the_alerts_as_they_were_raised(tmp_path: Path) -> None:
    rows = _predictions(4)
    low, high = START + timedelta(days=5), START + timedelta(days=16, hours=7)
    found = _realised(tmp_path / "a", rows).period(low, high)
    mine = _honest(rows).filter((pl.col("event_time") >= low) & (pl.col("event_time") < high))
    wanted = metrics(mine["score"].to_numpy(), mine["label"].to_numpy(), threshold=0.4)
    hits = (mine["alert"] & mine["label"]).sum()
    assert found is not None
    assert (found.rows, found.average_precision, found.roc_auc) == (
        mine.height,
        wanted.average_precision,
        wanted.roc_auc,
    )
    assert found.precision == hits / mine["alert"].sum()
    assert found.recall == hits / mine["label"].sum()
    assert found.alert_rate == mine["alert"].sum() / mine.height


def test_a_period_without_predictions_has_no_metrics(tmp_path: Path) -> None:
    assert _realised(tmp_path / "a", _predictions(1)).period(CLOCK, CLOCK + timedelta(days=1)) is None


def test_only_what_new_labels_or_predictions_touch_is_measured_again(tmp_path: Path) -> None:
    looked = _realised(tmp_path / "a", _predictions(10))  # a chunk holds about a week
    first = looked.touched_since(None, predictions_n=1)
    again = looked.touched_since(START + timedelta(days=20), predictions_n=1)
    assert first is not None
    assert again is not None
    assert first - START < timedelta(hours=2)
    assert timedelta(days=12) < again - START < timedelta(days=16)
    assert looked.touched_since(CLOCK, predictions_n=0) == first
    assert looked.touched_since(CLOCK, predictions_n=1) is None


def test_five_times_as_many_weeks_take_no_more_memory(tmp_path: Path) -> None:
    peaks = []
    for number, weeks in enumerate((52, 260)):
        looked = _realised(tmp_path / str(number), _predictions(weeks, rows=100))
        for _ in looked.weeks(START):  # what is loaded once is loaded
            break
        tracemalloc.start()
        try:
            for _ in looked.weeks(START):
                pass
            peaks.append(tracemalloc.get_traced_memory()[1])
        finally:
            tracemalloc.stop()
    assert peaks[1] < 1.3 * peaks[0]


def test_no_window_over_labels_may_have_a_key_that_label_records_have() -> None:
    assert set(label_event_schema(pa.int64(), []).names) == LABEL_EVENT_COLUMNS
