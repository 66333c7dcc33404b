"""Slices that turn out not to fit: the plan thought that they would, the cage says otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine import events
from engine.batching import read_batches
from engine.errors import MemoryBudgetExceeded
from engine.features import footprints
from engine.layout import prepared_table
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages import prepare
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage

MIB = 2**20
ROWS = 40_000
TEXT = 4_000  # characters of a row
MANY = 400_000  # rows
START = 1_767_225_600_000_000  # 2026-01-01


def _context(directory: Path, *, memory: str, seen: list[events.Event]) -> StageContext:
    spec = PipelineSpec.model_validate(
        {
            "pipeline": "letters",
            "workspace": str(directory / f"workspace-{memory}"),
            "source": {"uri": str(directory / "letters"), "key": "id", "cursor": "at"},
            "event_time": "at",
            "labels": {"uri": str(directory / "labels"), "key": "id", "value": "good", "labelled_at": "known_at"},
            "features": {
                "numeric": ["size"],
                "categorical": ["text"],
                # With a window, rows are gathered; without one they would be streamed.
                "windows": [{"over": "events", "keys": ["id"], "lengths": ["1h"], "statistics": ["count"]}],
            },
            "resources": {"memory": memory},
        }
    )
    return StageContext.of(spec, directory=directory, hook=seen.append)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    """Rows of 4 kB that hardly compress, all within one hour."""
    rng = np.random.default_rng(7)
    letters = rng.integers(33, 127, size=ROWS * TEXT, dtype=np.uint8)
    offsets = np.arange(ROWS + 1, dtype=np.int32) * TEXT
    text = pa.StringArray.from_buffers(ROWS, pa.py_buffer(offsets), pa.py_buffer(letters))
    at = pa.array(START + np.arange(ROWS) * 36_000, pa.int64()).cast(pa.timestamp("us", tz="UTC"))
    size = pa.array(rng.normal(size=ROWS))
    (tmp_path / "letters").mkdir()
    table = pa.table({"id": pa.array(range(ROWS)), "at": at, "size": size, "text": text})
    pq.write_table(table, tmp_path / "letters" / "one.parquet", row_group_size=1_000)
    (tmp_path / "labels").mkdir()
    return tmp_path


def _prepared(context: StageContext) -> list[tuple[Any, ...]]:
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    columns = ["key", "event_time", "size", "text"]
    batches = read_batches([chunk.path for chunk in chunks], columns=columns)
    return sorted(tuple(row.values()) for batch in batches for row in batch.to_pylist())


@pytest.mark.timeout(240)
def test_a_span_that_is_stopped_at_its_budget_is_divided_and_the_next_plan_knows(
    letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprints, "_WINDOWED_COPIES", 0.5)  # a projection that knows nothing of the copies
    seen: list[events.Event] = []
    small = _context(letters, memory="192MiB", seen=seen)
    run_stage(ExtractStage("raw"), small)
    report = run_stage(PrepareStage(), small)
    notes = [event.message for event in seen if isinstance(event, events.Note)]
    assert any("again with a smaller slice" in note for note in notes), notes
    assert report.slices == 1
    assert len(prepared_table(small.workspace, small.spec.feature_set).chunks()) > 1  # one for each span
    assert report.memory.measured_bytes <= 192 * MIB
    [windows] = [one for one in prepare.forecast(small) if one.projection.stage == "prepare.windows"]
    assert windows.projection.row_bytes > TEXT  # half of it was thought before

    large = _context(letters, memory="1GiB", seen=[])
    run_stage(ExtractStage("raw"), large)
    assert run_stage(PrepareStage(), large).slices == 1
    assert _prepared(small) == _prepared(large)
    assert len(_prepared(small)) == ROWS


@pytest.mark.slow
def test_a_slice_that_cannot_be_divided_further_fails_with_what_it_would_take(
    letters: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(footprints, "_WINDOWED_COPIES", 0.5)
    monkeypatch.setattr(PrepareStage, "smaller", lambda *_: None)
    context = _context(letters, memory="192MiB", seen=[])
    run_stage(ExtractStage("raw"), context)
    with pytest.raises(MemoryBudgetExceeded, match=r"prepare .*windows.* was stopped at its memory budget") as caught:
        run_stage(PrepareStage(), context)
    assert caught.value.details["suggested_budget_bytes"] > 192 * MIB
    assert _prepared(context) == []
    monkeypatch.undo()
    # The plan is there still; with the right projection it is divided before it runs.
    assert run_stage(PrepareStage(), context).slices >= 1
    assert len(_prepared(context)) == ROWS


@pytest.mark.timeout(240)
@pytest.mark.parametrize("crowded", [False, True])
def test_many_rows_where_the_plan_did_not_expect_them_are_taken_in_parts(tmp_path: Path, crowded: bool) -> None:
    """They come late, among a few that are prepared; or crowd in two seconds of a day, of which hours are known."""
    ids = np.arange(MANY)
    few = ids % 10_007 == 0
    times = START + ids * (4 if crowded else 5_000_003)
    times[few] = START + ids[few] * (172_801 if crowded else 5_000_003)
    seen: list[events.Event] = []
    (tmp_path / "letters").mkdir()
    (tmp_path / "labels").mkdir()
    for name, some in (("both", ids),) if crowded else (("few", ids[few]), ("many", ids[~few])):
        at = pa.array(times[some]).cast(pa.timestamp("us", tz="UTC"))
        text = pa.array(["a", "b"]).take(pa.array(some % 2))
        rows = pa.table({"id": some, "at": at, "size": some / 2, "text": text})
        pq.write_table(rows, tmp_path / "letters" / f"{name}.parquet", row_group_size=100_000)
        context = _context(tmp_path, memory="128MiB", seen=seen)
        run_stage(ExtractStage("raw"), context)
        report = run_stage(PrepareStage(), context)
    notes = [event.message for event in seen if isinstance(event, events.Note)]
    assert not any("again with a smaller slice" in note for note in notes), notes
    assert report.memory.measured_bytes <= report.memory.projected_bytes <= 128 * MIB
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    assert sum(chunk.rows for chunk in chunks) == MANY
    assert len(chunks) > 30
