"""Each stage's projection with distinct primes for its parts: one that is left out, or counted twice, shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engine.batching.chunks import ROW_GROUP_BYTES
from engine.errors import PlanRefused
from engine.features import footprints, labelled
from engine.features.encoders import COUNTED_CATEGORY_BYTES
from engine.learning.learners import learner
from engine.memory.budget import Budget
from engine.memory.projection import Projection
from engine.sources import settling
from engine.sources.reading import COPIES
from engine.stage import StageContext
from engine.stages import compact, extract, monitor, score, validate
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


@pytest.mark.parametrize(("columns", "pages"), [(13, 13 * MIB), (31, 24 * MIB), (1_009, 1_009 * MIB // 4)])
def test_extract(context: StageContext, columns: int, pages: int) -> None:
    _check(extract._project(RESERVED, BATCH, columns), BATCH * COPIES + 2 * GROUP + pages + 24 * MIB)


@pytest.mark.parametrize(
    ("rows", "joins"),
    [(7, 40 * MIB), (1_000_003, 24 * MIB + 160 * 1_000_003), (10**8, (512 * MIB - RESERVED) // 2)],
)
def test_settling_takes_what_its_rows_need_within_bounds(context: StageContext, rows: int, joins: int) -> None:
    _check(extract._project_settling(context, rows=rows), joins + joins // 16 + 2 * BATCH + 2 * GROUP)
    assert settling.join_bytes(rows, free_bytes=512 * MIB - RESERVED) == joins


def test_joining_labels(context: StageContext) -> None:
    expected = ROWS * (64 + 32) * 6 + 3 * BATCH + ROWS * 48 + 2 * GROUP
    _check(footprints.project_labels(context, ROWS), expected)


def test_spans_with_windows(context: StageContext) -> None:
    found = footprints.project_windows(context, ROWS, ROW_BYTES)
    rows = ROWS * (5 * int(ROW_BYTES) + SEGMENT + 16 * COLUMNS + WINDOW) + ROWS // 2 * 240
    pages = (COLUMNS + 3) * MIB // 4
    _check(found, rows + BLOCKS + 2 * BATCH + 3 * GROUP + pages + (16 + 12) * MIB)
    assert (found.rows, found.row_bytes) == (ROWS, 5 * ROW_BYTES)


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


@pytest.mark.parametrize("rows", [ROWS, 10**8])
def test_streaming_holds_its_rows_or_what_is_in_flight(context: StageContext, rows: int) -> None:
    plain = _without(context, numeric=["amount"])
    flight = min(38 * GROUP, rows * int(ROW_BYTES) * 3)
    _check(footprints.project_stream(plain, rows, ROW_BYTES), flight + 44 * MIB + 4 * MIB // 4)


def test_reading_labelled_rows() -> None:
    assert sum(labelled.labelled_terms(BATCH).values()) == LABELLED


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
    found = validate._project(context, rows, models_bytes=MODEL)
    assert found.projected_bytes == RESERVED + MODEL + rows * 25 + max(LABELLED, rows * 60)


def test_scoring(context: StageContext) -> None:
    expected = 6 * BATCH + ROWS * 24 + MODEL + 2 * GROUP + (COLUMNS + 3) * MIB // 8
    _check(score._project(context, ROWS, model_bytes=MODEL), expected)


def test_monitoring(context: StageContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitor, "_positives", lambda context, since: ROWS)
    _check(monitor._projection(context, since=None), LABELLED + 8 * MIB + ROWS * 64)


def test_compacting(context: StageContext) -> None:
    _check(compact._project(context, columns=13), 3 * BATCH + 2 * GROUP + 13 * MIB // 4)
