"""What each kind of slice of prepare is projected to take, with distinct primes for its parts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pyarrow as pa
import pytest

from engine import layout
from engine.batching import ChunkWriter, Table
from engine.features import footprints
from engine.stage import StageContext
from tests.projections import (
    BATCH,
    COLUMNS,
    GROUP,
    MIB,
    RESERVED,
    ROW_BYTES,
    ROWS,
    check,
    make_context,
    with_features,
    with_memory,
)

SEARCHED = BATCH // (8 * (COLUMNS + 8))
# Of the window that takes most: for each of its rows, and for each of those that a thread searches at once.
WINDOW = 32 + max(2 * 2 * 16 + 9 * 2, 2 * 1 * (16 + 24) + 9 * 2)
BLOCKS = ROWS * (160 + 1 * (40 + 24) + 24 * 16)
SEGMENT = 40 + 16 + 72 + 8 + 8


@pytest.fixture
def context(tmp_path: Path) -> StageContext:
    return make_context(tmp_path)


def test_joining_labels(context: StageContext) -> None:
    for raw, rows in ((None, ROWS), (1_000_003, ROWS), (101, 503)):
        held = footprints.LabelBytes(key=307.0, window_keys=37.0, rows=raw)
        read = (raw or 10**9) * (307 + 16 + 37)
        joined = rows * ((56 + 307) * 6 + (37 + 24) * 5) + rows * 48
        found = footprints.project_labels(context, rows, held)
        check(found, joined + min(3 * BATCH, 3 * read) + min(GROUP, read) + 2 * GROUP + 12 * MIB)
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
    texts = with_features(context, windows=windows)
    assert "texts of keys" not in footprints.project_windows(texts, ROWS, ROW_BYTES).terms
    row = {name: ["n" * width] * 5 for name, width in (("customer", 53), ("town", 31), ("method", 41), ("other", 997))}
    _commit(context.workspace.table("raw"), {name: pa.array(values) for name, values in row.items()})
    found = footprints.project_windows(texts, ROWS, ROW_BYTES).terms["texts of keys"]
    assert found == pytest.approx(ROWS * 4 * (31 + 4 + 41 + 4 - 2 * 17), rel=0.05)


def test_spans_with_windows(context: StageContext) -> None:
    found = footprints.project_windows(context, ROWS, ROW_BYTES)
    rows = ROWS * (5 * int(ROW_BYTES) + SEGMENT + 16 * COLUMNS + WINDOW) + ROWS // 2 * 240
    pages = (COLUMNS + 3) * MIB // 4
    check(found, rows + BLOCKS + 2 * BATCH + 3 * GROUP + pages + (16 + 12) * MIB)
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
        return footprints.project_windows(with_features(context, windows=windows), ROWS, ROW_BYTES).terms

    found, plain = projected("distinct"), projected("mean")
    # Two columns in a segment and in a tier, instead of two float measures; one window at a time, instead of its sums.
    differ = {
        "segment being built": ROWS * (2 * (44 + 16) + 192 - 2 * 24),
        "tier being made": ROWS // 2 * 2 * 160,
        "window results": ROWS * (2 * 8 - 2 * 2 * 24),
        "blocks being searched": ROWS * (128 - 2 * (32 + 24)),
    }
    assert {name: size - plain[name] for name, size in found.items() if size != plain[name]} == differ


@pytest.mark.parametrize("mebibytes", [62, 72, 192, 256, 384])
def test_a_span_with_windows_has_the_rows_that_fit(context: StageContext, mebibytes: int) -> None:
    small = with_memory(context, mebibytes)
    rows = footprints.windowed_rows_per_span(small, ROW_BYTES)
    assert footprints.project_windows(small, rows, ROW_BYTES).projected_bytes <= mebibytes * MIB
    assert footprints.project_windows(small, 2 * rows, ROW_BYTES).projected_bytes > mebibytes * MIB
    assert rows > 1_000


def test_sorting_a_piece_holds_its_rows_while_it_writes_them(context: StageContext) -> None:
    found = footprints.project_sort(context, ROWS, ROW_BYTES)
    held = ROWS * 3 * int(ROW_BYTES) + 6 * BATCH + SEARCHED * 8 * COLUMNS
    check(found, held + 3 * GROUP + 12 * MIB + (COLUMNS + 3) * MIB // 4 + 16 * MIB)
    assert (found.rows, found.row_bytes) == (ROWS, 3 * ROW_BYTES)


def test_a_span_beside_others_is_searched_on_one_thread_fewer(context: StageContext) -> None:
    two = dataclasses.replace(context, budget=dataclasses.replace(context.budget, threads=2))
    alone, beside = (footprints.project_windows(two, 10**6, ROW_BYTES, spans=spans).terms for spans in (1, 2))
    assert alone["blocks being searched"] == 2 * beside["blocks being searched"] > 0


@pytest.mark.parametrize("rows", [ROWS, 10**8])
def test_streaming_holds_its_rows_or_what_is_in_flight(context: StageContext, rows: int) -> None:
    plain = with_features(context, numeric=["amount"])
    flight = min(38 * GROUP, rows * int(ROW_BYTES) * 3)
    check(footprints.project_stream(plain, rows, ROW_BYTES), flight + 44 * MIB + 4 * MIB // 4)
