"""Each stage's projection with distinct primes for its parts: one that is left out, or counted twice, shows."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from engine import layout
from engine.batching import ChunkWriter, Table
from engine.batching.chunks import ROW_GROUP_BYTES
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
from tests.shop import Shop

MIB = 2**20
BATCH, RESERVED, ROWS, ROW_BYTES, MODEL = 65_537, 104_729, 7_919, 31.0, 1_299_709
GROUP = ROW_GROUP_BYTES
LABELLED = 6 * BATCH + 100_000 * 400 + GROUP + 16 * MIB
FEATURES = {
    "numeric": ["amount"],
    "categorical": ["town", "method"],
    "windows": [
        {"keys": ["customer"], "over": "events", "lengths": ["1d", "7d"], "statistics": ["count"]},
        {"keys": ["town"], "over": "labels", "lengths": ["7d"], "statistics": ["count", "rate"]},
    ],
}
COLUMNS = 1 + 2 + 2 + 2
SEARCHED = BATCH // (8 * (COLUMNS + 8))
# Of the window that takes most: for each of its rows, and for each of those that a thread searches at once.
WINDOW = 32 + max(2 * 2 * 16 + 9 * 2, 2 * 1 * (16 + 24) + 9 * 2)
BLOCKS = ROWS * (160 + 1 * (40 + 24) + 24 * 16)
SEGMENT = 40 + 16 + 72 + 8 + 8


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    spec = Shop(tmp_path).spec
    spec = spec.model_validate({**spec.model_dump(mode="json"), "features": FEATURES})
    made = StageContext.of(spec, directory=tmp_path)
    made.workspace.prepare()
    for stage in (
        "compact",
        "extract",
        "extract.settle",
        "prepare",
        "train.cache",
        "train.fit",
        "validate",
        "score",
        "monitor",
    ):
        made.learned.save_reserved(stage, RESERVED)
    return dataclasses.replace(made, budget=Budget(512 * MIB, batch_bytes=BATCH))


def _without(spec: StageContext, **features: Any) -> StageContext:
    value = {**spec.spec.model_dump(mode="json"), "features": features}
    return dataclasses.replace(spec, spec=spec.spec.model_validate(value))


def _check(projection: Projection, expected: int) -> None:
    assert projection.projected_bytes == RESERVED + expected
    assert all(size > 0 for size in projection.terms.values()), projection.terms


FAR = 10**9
SMALL = Budget(512 * MIB, batch_bytes=BATCH)


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
    _check(found, BATCH * COPIES + 2 * GROUP + pages + 24 * MIB)


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
    _check(found, batches + 2 * GROUP + 13 * MIB // 4 + 24 * MIB)


@pytest.mark.parametrize("uneven", [BATCH, BATCH + 1_299_721, 10**9])
def test_extract_holds_a_value_that_a_row_group_may_have_up_to_the_budget(uneven: int) -> None:
    plain = project_reading(RESERVED, SMALL, 13, Extent(), is_files=True)
    found = project_reading(RESERVED, SMALL, 13, Extent(uneven_bytes=uneven), is_files=True)
    _check(found, plain.projected_bytes - RESERVED + min(3 * (uneven - BATCH), 512 * MIB - plain.projected_bytes))


@pytest.mark.parametrize(
    ("rows", "joins"),
    [(7, 40 * MIB), (1_000_003, 24 * MIB + 160 * 1_000_003), (10**8, (512 * MIB - RESERVED) // 2)],
)
def test_settling_takes_what_its_rows_need_within_bounds(context: StageContext, rows: int, joins: int) -> None:
    _check(project_settling(context, rows=rows), joins + joins // 16 + 2 * BATCH + 2 * GROUP)
    spilled = 0 if rows == 7 else 64 * rows  # a million rows want a hair more than their limit
    assert known_rows.spilled_bytes(rows, limit_bytes=joins - 1 if rows == 1_000_003 else joins) == spilled
    large = joins + joins // 16 + 2 * 1_299_721 + 4 * GROUP
    _check(project_settling(context, rows=rows, largest=1_299_721), large)
    assert known_rows.join_bytes(rows, free_bytes=512 * MIB - RESERVED) == joins


def test_joining_labels(context: StageContext) -> None:
    for raw, rows in ((None, ROWS), (1_000_003, ROWS), (101, 503)):
        held = footprints.LabelBytes(key=307.0, window_keys=37.0, rows=raw)
        read = (raw or FAR) * (307 + 16 + 37)
        joined = rows * ((56 + 307) * 6 + (37 + 24) * 5) + rows * 48
        found = footprints.project_labels(context, rows, held)
        _check(found, joined + min(3 * BATCH, 3 * read) + min(GROUP, read) + 2 * GROUP + 12 * MIB)
        assert found.rows == rows


def _commit(table: Table, columns: dict[str, pa.Array]) -> None:
    batch = pa.RecordBatch.from_pydict(columns)
    n = table.transaction("rows") + 1
    with ChunkWriter(table.path, prefix=f"{n:08d}-rows", schema=batch.schema) as writer:
        writer.write(batch)
    table.commit(app="rows", n=n, schema=batch.schema, add=writer.chunks)


def test_keys_take_what_the_newest_chunks_say(context: StageContext) -> None:
    workspace = context.workspace
    assert footprints.LabelBytes.of(context) == footprints.LabelBytes(key=8.0, window_keys=8.0, rows=None)
    for width in (50, *[7] * 7):  # of the last eight chunks the one where keys are largest
        _commit(workspace.table("labels"), {"key": pa.array(["k" * width] * 3), "value": pa.array([True] * 3)})
    _commit(workspace.table("raw"), {"town": pa.array(["t" * 13] * 5), "x": pa.array(["x" * 10_000] * 5)})
    found = footprints.LabelBytes.of(context)
    assert (found.key, found.window_keys, found.rows) == (pytest.approx(54, abs=2), pytest.approx(17, abs=2), 5)
    _commit(workspace.table("raw"), {"x": pa.array(["x"])})  # older than the column, or before its transform
    assert layout.column_bytes(workspace.table("raw"), ["town", "to come"]) == {
        "town": found.window_keys,
        "to come": 8.0,
    }
    _commit(workspace.table("labels"), {"key": pa.array(["k" * 7] * 3), "value": pa.array([True] * 3)})
    assert layout.key_bytes(workspace) == pytest.approx(11, abs=2)


def test_spans_whose_keys_and_values_to_count_are_texts(context: StageContext) -> None:
    windows = [
        {"keys": ["town"], "over": "events", "lengths": ["1d"], "statistics": ["count"]},
        {"keys": ["town"], "over": "events", "lengths": ["7d"], "statistics": ["distinct"], "column": "method"},
        {"keys": ["customer"], "over": "events", "lengths": ["1d"], "statistics": ["mean"], "column": "amount"},
    ]
    texts = _without(context, windows=windows)
    assert "texts of keys" not in footprints.project_windows(texts, ROWS, ROW_BYTES).terms
    row = {name: ["n" * width] * 5 for name, width in (("customer", 53), ("town", 31), ("method", 41), ("other", 997))}
    _commit(context.workspace.table("raw"), {name: pa.array(values) for name, values in row.items()})
    found = footprints.project_windows(texts, ROWS, ROW_BYTES).terms["texts of keys"]
    assert found == pytest.approx(ROWS * 4 * (31 + 4 + 41 + 4 - 2 * 17), rel=0.05)


def test_spans_with_windows(context: StageContext) -> None:
    found = footprints.project_windows(context, ROWS, ROW_BYTES)
    rows = ROWS * (5 * int(ROW_BYTES) + SEGMENT + 16 * COLUMNS + WINDOW) + ROWS // 2 * 240
    pages = (COLUMNS + 3) * MIB // 4
    _check(found, rows + BLOCKS + 2 * BATCH + 3 * GROUP + pages + (16 + 12) * MIB)
    assert (found.rows, found.row_bytes) == (ROWS, 5 * ROW_BYTES)


@pytest.mark.parametrize("rows", [ROWS, 1])
def test_a_single_span_is_gathered_searched_and_written_one_after_another(context: StageContext, rows: int) -> None:
    found = footprints.project_windows(context, rows, ROW_BYTES, spans=1, segments=3)
    searching = rows * (WINDOW + 160 + 1 * (40 + 24) + 24 * 16)
    beyond = 2 * GROUP + (COLUMNS + 3) * MIB // 4 - searching
    held = rows * (3 * int(ROW_BYTES) + SEGMENT + 8 * COLUMNS)
    assert found.projected_bytes == pytest.approx(RESERVED + held + searching + beyond + (16 + 12) * MIB, abs=1)
    assert (found.rows, found.base_row_bytes) == (rows, pytest.approx(ROW_BYTES * 3 / 5))
    context.learned.save_row_bytes("prepare.windows", context.spec.feature_set, 7 * ROW_BYTES, base=ROW_BYTES)
    learned = footprints.project_windows(context, rows, ROW_BYTES, spans=1, segments=3)
    assert learned.terms["spans in flight"] == int(rows * 7 * 1.05 * ROW_BYTES * 3 / 5)


def test_a_single_large_span_is_read_and_written_within_what_searching_it_held(context: StageContext) -> None:
    found = footprints.project_windows(context, 100_003, ROW_BYTES, spans=1, segments=4)
    assert found.terms["reading or writing, beyond what searching held"] == 0
    assert found.terms["tier being made"] == 100_003 // 2 * 240


def test_spans_whose_distinct_values_are_counted(context: StageContext) -> None:
    def projected(statistic: str) -> dict[str, int]:
        common = {"keys": ["customer"], "over": "events", "lengths": ["1d", "7d"]}
        windows = [
            common | {"column": "town", "statistics": ["count", statistic]},
            common | {"column": "method", "statistics": [statistic]},
        ]
        return footprints.project_windows(_without(context, windows=windows), ROWS, ROW_BYTES).terms

    found, plain = projected("distinct"), projected("mean")
    # Two columns in a segment and in a tier, instead of two float measures; one window at a time, instead of its sums.
    differ = {
        "segment being built": ROWS * (2 * (44 + 16) + 192 - 2 * 24),
        "tier being made": ROWS // 2 * 2 * 160,
        "window results": ROWS * (2 * 8 - 2 * 2 * 24),
        "blocks being searched": ROWS * (128 - 2 * (32 + 24)),
    }
    assert {name: size - plain[name] for name, size in found.items() if size != plain[name]} == differ


@pytest.mark.parametrize("mebibytes", [192, 256, 384])
def test_a_span_with_windows_has_the_rows_that_fit(context: StageContext, mebibytes: int) -> None:
    small = dataclasses.replace(context, budget=Budget(mebibytes * MIB, batch_bytes=BATCH))
    rows = footprints.windowed_rows_per_span(small, ROW_BYTES)
    assert footprints.project_windows(small, rows, ROW_BYTES).projected_bytes <= mebibytes * MIB
    assert footprints.project_windows(small, 2 * rows, ROW_BYTES).projected_bytes > mebibytes * MIB or rows == 500_000


def test_sorting_a_piece_holds_its_rows_while_it_writes_them(context: StageContext) -> None:
    found = footprints.project_sort(context, ROWS, ROW_BYTES)
    held = ROWS * 3 * int(ROW_BYTES) + 6 * BATCH + SEARCHED * 8 * COLUMNS
    _check(found, held + 3 * GROUP + 12 * MIB + (COLUMNS + 3) * MIB // 4 + 16 * MIB)
    assert (found.rows, found.row_bytes) == (ROWS, 3 * ROW_BYTES)


def test_a_span_beside_others_is_searched_on_one_thread_fewer(context: StageContext) -> None:
    two = dataclasses.replace(context, budget=dataclasses.replace(context.budget, threads=2))
    alone, beside = (footprints.project_windows(two, 10**6, ROW_BYTES, spans=spans).terms for spans in (1, 2))
    assert alone["blocks being searched"] == 2 * beside["blocks being searched"] > 0


@pytest.mark.parametrize("rows", [ROWS, 10**8])
def test_streaming_holds_its_rows_or_what_is_in_flight(context: StageContext, rows: int) -> None:
    plain = _without(context, numeric=["amount"])
    flight = min(38 * GROUP, rows * int(ROW_BYTES) * 3)
    _check(footprints.project_stream(plain, rows, ROW_BYTES), flight + 44 * MIB + 4 * MIB // 4)


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
            "fit": training.project_fit(context, ROWS),
            "validate": validate._project(context, ROWS, models_bytes=MODEL, joined=False),
            "score": score._project(context, ROWS, model_bytes=MODEL),
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
    _check(training.project_cache(context), LABELLED + COLUMNS * MIB + 2 * COUNTED_CATEGORY_BYTES)
    mine = learner(context.spec.learner.kind)
    terms = mine.project(ROWS, features=COLUMNS, parameters=context.spec.learner.parameters, codes=[1_001, 1_001])
    fit = training.project_fit(context, ROWS)
    _check(fit, sum(terms.values()) + 6 * BATCH + 100_000 * 120)
    assert (fit.rows, fit.row_term) == (ROWS, "rows")


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
    expected = 6 * BATCH + ROWS * 24 + MODEL + 2 * GROUP + (COLUMNS + 3) * MIB // 8 + 12 * MIB
    _check(score._project(context, ROWS, model_bytes=MODEL), expected)


def test_monitoring(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_positives", lambda context, since: ROWS)
    found = monitor._projection(context, since=None, drift_of="")
    assert found.projected_bytes == RESERVED + LABELLED + ROWS * 64
    batch = 40_000_003
    of_large = dataclasses.replace(context, budget=Budget(509 * MIB, batch_bytes=batch))
    of_drift = monitor._projection(of_large, since=None, drift_of=context.spec.feature_set)
    _check(of_drift, 8 * batch + 24 * MIB + ROWS * 64)


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
    _check(compact._project(context, columns=13), 3 * BATCH + 2 * GROUP + 13 * MIB // 4)
    large = 3 * 1_299_721 + 4 * GROUP + 13 * MIB // 4
    _check(compact._project(context, columns=13, largest_row_bytes=1_299_721), large)
