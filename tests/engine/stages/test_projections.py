"""Each stage's projection with distinct primes for its parts (``prepare``: ``test_prepare_projections.py``)."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from engine.batching import ChunkWriter, Table
from engine.batching.streams import most_batch_bytes
from engine.errors import PlanRefused
from engine.features import footprints, labelled
from engine.features.encoders import COUNTED_CATEGORY_BYTES
from engine.layout import chunk_writer, predictions_table, prepared_table
from engine.learning.learners import learner
from engine.memory.budget import Budget
from engine.memory.projection import Projection
from engine.sources import known_rows
from engine.sources.footprints import project_reading, project_settling
from engine.sources.protocol import Extent
from engine.sources.reading import COPIES
from engine.stage import StageContext
from engine.stages import compact, monitor, score, validate
from engine.training import footprints as training
from tests.projections import BATCH, COLUMNS, GROUP, MIB, RESERVED, ROW_BYTES, ROWS, check, make_context

MODEL = 1_299_709
LABELLED = 6 * BATCH + 100_000 * 400 + GROUP + 16 * MIB
SMALL = Budget(512 * MIB, batch_bytes=BATCH)


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return make_context(tmp_path)


@pytest.mark.parametrize(
    ("columns", "files", "pages"),
    [
        (13, True, 13 * MIB),
        (31, True, 31 * MIB),
        (101, True, 32 * MIB),
        (1_009, True, 1_009 * MIB // 4),
        (13, False, 13 * MIB // 4),
    ],
)
def test_extract(columns: int, files: bool, pages: int) -> None:
    found = project_reading(RESERVED, SMALL, columns, Extent(), is_files=files)
    check(found, BATCH * COPIES + 2 * GROUP + pages + 24 * MIB)


@pytest.mark.parametrize(
    ("extent", "batches"),
    [
        (Extent(row_bytes=31.0), BATCH * COPIES),
        (Extent(rows=503, row_bytes=31.0), int(503 * 31 * 1.2)),
        (Extent(rows=2_003, row_bytes=31.0), BATCH),
        (Extent(rows=233_567, row_bytes=31.0), int(233_567 * 31 * 1.2) - GROUP),
        (Extent(rows=10**6, row_bytes=31.0), BATCH * COPIES),
        (Extent(row_bytes=31.0, batch_rows=1_009), int(1_009 * 31 * 1.2) * COPIES),
        (Extent(row_bytes=31.0, batch_rows=5_003), BATCH * COPIES + 3 * (5_003 * 31 - BATCH)),
        (Extent(rows=503, row_bytes=31.0, batch_rows=5_003), int(503 * 31 * 1.2)),
        (Extent(row_bytes=31.0, batch_rows=1_009, driver_row_bytes=37), int(1_009 * 31 * 1.2) * COPIES),
        (
            Extent(row_bytes=31.0, batch_rows=1_009, driver_row_bytes=71),
            int(1_009 * 31 * 1.2) * COPIES + int(4 * 1_009 * (71 - 1.2 * 31)),
        ),
        (
            Extent(rows=503, row_bytes=31.0, batch_rows=1_009, driver_row_bytes=71),
            int(503 * 31 * 1.2) + int(4 * 503 * (71 - 1.2 * 31)),
        ),
    ],
)
def test_extract_holds_batches_as_a_driver_gives_them_or_all_of_a_small_range(extent: Extent, batches: int) -> None:
    found = project_reading(RESERVED, SMALL, 13, extent, is_files=False)
    check(found, batches + 2 * GROUP + 13 * MIB // 4 + 24 * MIB)


@pytest.mark.parametrize("uneven", [BATCH, BATCH + 1_299_721, 10**9])
def test_extract_holds_a_value_that_a_row_group_may_have_up_to_the_budget(uneven: int) -> None:
    plain = project_reading(RESERVED, SMALL, 13, Extent(), is_files=True)
    found = project_reading(RESERVED, SMALL, 13, Extent(uneven_bytes=uneven), is_files=True)
    check(found, plain.projected_bytes - RESERVED + min(3 * (uneven - BATCH), 512 * MIB - plain.projected_bytes))


@pytest.mark.parametrize(
    ("rows", "joins"),
    [(7, 40 * MIB), (1_000_003, 24 * MIB + 160 * 1_000_003), (10**8, (512 * MIB - RESERVED) // 2)],
)
def test_settling_takes_what_its_rows_need_within_bounds(context: StageContext, rows: int, joins: int) -> None:
    check(project_settling(context, rows=rows), joins + joins // 16 + 2 * BATCH + 2 * GROUP)
    spilled = 0 if rows == 7 else 64 * rows  # a million rows want a hair more than their limit
    assert known_rows.spilled_bytes(rows, limit_bytes=joins - 1 if rows == 1_000_003 else joins) == spilled
    large = joins + joins // 16 + 2 * 1_299_721 + 4 * GROUP
    check(project_settling(context, rows=rows, largest=1_299_721), large)
    assert known_rows.join_bytes(rows, free_bytes=512 * MIB - RESERVED) == joins


def test_reading_labelled_rows() -> None:
    assert sum(labelled.labelled_terms(BATCH).values()) == LABELLED
    few = labelled.labelled_terms(BATCH, rows=503, row_bytes=31.0, largest_row_bytes=1_299_721)
    batches = 503 * 31 * 6 + (1_299_721 - BATCH) * 6 + 2 * GROUP
    assert sum(few.values()) == batches + 503 * 400 + GROUP + 16 * MIB
    texts = {rows: labelled.labelled_terms(BATCH, rows=rows, key_bytes=307.0) for rows in (None, 503, 10**6)}
    assert [one["labels of one span"] for one in texts.values()] == [40_000_000, 503 * (336 + 8 * 307), 40_000_000]
    longest = labelled.labelled_terms(BATCH, rows=10**6, key_bytes=10_007.0)
    assert longest["labels of one span"] == 1_000 * (336 + 8 * 10_007)


def test_batches_have_so_many_rows_at_most() -> None:
    for rows, row_bytes, expected in (
        (503, 31.0, 503 * 31),
        (503, 31_013.0, BATCH * 100),
        (1_000_003, 31.0, 131_072 * 31),
        (None, 31.0, 131_072 * 31),
        (503, None, BATCH * 100),
    ):
        assert most_batch_bytes(BATCH * 100, rows=rows, row_bytes=row_bytes) == expected


def test_each_stage_that_reads_rows_holds_the_largest_as_often_as_a_batch(
    context: StageContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {"extract:raw": 1_299_721, f"prepare:{context.spec.feature_set}": 1_299_827}

    def found() -> dict[str, Projection]:
        return {
            "windows": footprints.project_windows(context, ROWS, ROW_BYTES),
            "sort": footprints.project_sort(context, ROWS, ROW_BYTES),
            "cache": training.project_cache(context),
            "fit": training.project_fit(context, ROWS, calibration_rows=0),
            "validate": validate._project(context, ROWS, models_bytes=MODEL, joined=False),
            "score": score._project(context, model_bytes=MODEL),
            "monitor": monitor._projection(context, since=None, drift_of=""),
        }

    before = found()
    for module in (footprints, training, validate, score, monitor):
        monkeypatch.setattr(module, "largest_row_bytes", lambda workspace, app: said[app])
    for name, after in found().items():
        largest = said["extract:raw"] if name in ("windows", "sort") else said[f"prepare:{context.spec.feature_set}"]
        more = 6 * (largest - BATCH) + 2 * GROUP
        assert after.projected_bytes - before[name].projected_bytes == more, name


def test_training(context: StageContext) -> None:
    check(training.project_cache(context), LABELLED + COLUMNS * MIB + 2 * COUNTED_CATEGORY_BYTES)
    mine = learner(context.spec.learner.kind)
    terms = mine.project(ROWS, features=COLUMNS, parameters=context.spec.learner.parameters, codes=[1_001, 1_001])
    for rows, beyond in ((7, 0), (1_000_003, 1_000_003 * 104 - sum(terms.values()))):
        fit = training.project_fit(context, ROWS, calibration_rows=rows)
        expected = RESERVED + sum(terms.values()) + 6 * BATCH + 100_000 * 120 + beyond
        assert (fit.projected_bytes, fit.rows, fit.row_term) == (expected, ROWS, "rows")


@pytest.mark.parametrize(
    ("chosen", "labels", "kept"),
    [
        ({}, 0, 10_000_019),
        ({"sampling_rate": 0.01}, 503, 503 + 101_266),  # 100,000.19 and four deviations
        ({"sampling_rate": 1.0}, 503, 10_000_019),
        ({"kind": "sgd"}, 503, 10_000_019),
    ],
)
def test_the_cache_has_at_most_the_rows_that_may_be_sampled(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, Any], labels: int, kept: int
) -> None:
    value = {**context.spec.model_dump(mode="json"), "learner": chosen}
    value["labels"]["absent"] = "negative"
    mine = dataclasses.replace(context, spec=context.spec.model_validate(value), budget=Budget(2**40))
    monkeypatch.setattr(Table, "rows", lambda _: labels)
    assert training.most_rows_kept(mine, 10_000_019) == kept
    assert training.most_labelled(mine, 10_000_019) == 10_000_019
    value["labels"]["absent"] = "unknown"
    mine = dataclasses.replace(mine, spec=context.spec.model_validate(value))
    assert training.most_labelled(mine, 10_000_019) == labels
    assert training.most_rows_kept(mine, 10_000_019) == labels


def test_the_cache_has_at_most_the_rows_that_the_budget_buys(context: StageContext) -> None:
    value = {**context.spec.model_dump(mode="json")}
    value["labels"]["absent"] = "negative"
    context = dataclasses.replace(context, spec=context.spec.model_validate(value))
    kept = training.most_rows_kept(context, 10_000_019)
    fits, over = (training.project_fit(context, rows, calibration_rows=0).projected_bytes for rows in (kept, 2 * kept))
    assert fits <= 512 * MIB < over


@pytest.mark.parametrize("mebibytes", [240, 256, 509])
def test_training_names_a_budget_in_which_the_positives_fit(context: StageContext, mebibytes: int) -> None:
    def rate(budget: Budget) -> float:
        mine = dataclasses.replace(context, budget=budget)
        return training.sampling_rate(
            mine.spec,
            rows=10_000_019,
            positives=4_000_037,
            available_bytes=training.fit_bytes(mine),
            row_share=1.0,
            budget=budget,
        )

    with pytest.raises(PlanRefused, match="4,000,037 positives") as refused:
        rate(Budget(mebibytes * MIB))
    named = int(refused.value.details["smallest_budget_bytes"])
    assert f"--memory {named // MIB}MiB" in refused.value.hint
    assert 0 < rate(Budget(named)) < 1


@pytest.mark.parametrize("rows", [ROWS, 10_000_019])
def test_validation_takes_the_larger_of_reading_and_the_bootstrap(context: StageContext, rows: int) -> None:
    found = validate._project(context, rows, models_bytes=MODEL, joined=False)
    assert found.projected_bytes == RESERVED + MODEL + rows * 33 + max(LABELLED, rows * 60)
    joined = validate._project(context, rows, models_bytes=MODEL, joined=True)
    assert joined.projected_bytes == RESERVED + MODEL + rows * 33 + max(LABELLED, rows * 200)


def test_validation_holds_the_keys_of_both_models_rows(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validate, "key_bytes", lambda workspace: 53.0)
    found = validate._project(context, ROWS, models_bytes=MODEL, joined=False)
    assert found.terms["scores of both models"] == ROWS * (17 + 2 * 53)
    for kind, views in ((pa.int64(), 0), (pa.string(), 32)):
        monkeypatch.setattr(Table, "schema", lambda _, kind=kind: pa.schema([("key", kind)]))
        joined = validate._project(context, 10**7, models_bytes=MODEL, joined=True)
        paired = 10**7 * (200 + 4 * (53 + views - 8))
        assert joined.projected_bytes == RESERVED + MODEL + 10**7 * (17 + 2 * 53) + paired


def test_scoring(context: StageContext) -> None:
    expected = 6 * BATCH + MODEL + 3 * GROUP + (COLUMNS + 3) * MIB // 8 + 12 * MIB
    check(score._project(context, model_bytes=MODEL), expected)


def test_monitoring(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_positives", lambda context, since: ROWS)
    found = monitor._projection(context, since=None, drift_of="")
    assert found.projected_bytes == RESERVED + LABELLED + ROWS * 64
    batch = 40_000_003
    of_large = dataclasses.replace(context, budget=Budget(509 * MIB, batch_bytes=batch))
    of_drift = monitor._projection(of_large, since=None, drift_of=context.spec.feature_set)
    check(of_drift, 8 * batch + 24 * MIB + ROWS * 64)


def test_monitoring_few_rows_of_fixed_width(context: StageContext) -> None:
    numbers = pa.schema([("key", pa.int64()), ("event_time", pa.timestamp("us", tz="UTC")), ("amount", pa.float64())])
    workspace = context.workspace
    for table, rows in (
        (predictions_table(workspace), 307),
        (prepared_table(workspace, context.spec.feature_set), 503),
    ):
        columns = [pa.array(range(rows)).cast(field.type) for field in numbers]
        with ChunkWriter(table.path, prefix="00000001-rows", schema=numbers) as writer:
            writer.write(pa.record_batch(columns, schema=numbers))
        table.commit(app="rows", n=1, schema=numbers, add=writer.chunks)
    of_weeks = int(307 * 3 * 65 / 8) * 6 + 307 * 400 + GROUP + 16 * MIB
    of_drift = int(503 * 3 * 65 / 8) * 8 + 503 * 3 * 4 + 24 * MIB
    found = monitor._projection(context, since=None, drift_of=context.spec.feature_set)
    assert found.projected_bytes == RESERVED + max(of_weeks, of_drift)


@pytest.mark.parametrize(
    ("days", "since", "held"), [(1820, None, 100), (1820, 0, 1000), (1820, 1456, 200), (7, None, 1000)]
)
def test_monitoring_holds_positives_of_weeks_or_of_the_period(
    context: StageContext, monkeypatch: pytest.MonkeyPatch, days: int, since: int | None, held: int
) -> None:
    start, table = datetime(2020, 1, 1, tzinfo=UTC), predictions_table(context.workspace)
    rows = pa.RecordBatch.from_pydict({"event_time": [start + timedelta(days=days) * at / 999 for at in range(1000)]})
    rows = rows.cast(pa.schema([("event_time", pa.timestamp("us", tz="UTC"))]))
    with chunk_writer(context.spec, table, prefix="00000001-rows", schema=rows.schema, chunk_rows=200) as writer:
        for at in range(0, 1000, 200):
            writer.write(rows.slice(at, 200))
    table.commit(app="rows", n=1, schema=rows.schema, add=writer.chunks)
    monkeypatch.setattr(monitor, "last_trained", lambda history: SimpleNamespace(details={}))
    monkeypatch.setattr(monitor, "positive_share", lambda details: 1.0)
    assert monitor._positives(context, None if since is None else start + timedelta(days=since)) == held


def test_compacting(context: StageContext) -> None:
    check(compact._project(context, columns=13), 3 * BATCH + 2 * GROUP + 13 * MIB // 4)
    large = 3 * 1_299_721 + 4 * GROUP + 13 * MIB // 4
    check(compact._project(context, columns=13, largest_row_bytes=1_299_721), large)
