"""A task that is stopped at its budget goes on behind what it has written, and ends as one that was not stopped."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from benchmarks.wide_prepare import generate, spec_of
from engine import events
from engine.batching import chunks as chunking
from engine.batching.tables import chunk_prefix
from engine.features import footprints
from engine.layout import chunk_writer, prepared_table
from engine.preparing import streamed_rows
from engine.refs import StageReport
from engine.stage import StageContext, run_stage
from engine.stages.compact import CompactStage
from engine.stages.prepare import PrepareStage
from engine.stages.score import ScoreStage
from engine.units import microseconds
from tests.commits import commit_slice
from tests.shop import Shop
from tests.stopped import Stops, stop
from tests.world import FEBRUARY, MARCH, World, copy_world

ROWS = 66_000
FAR = 10**9
Ran = tuple[World, dict[str, StageReport]]


def _counted(names: Sequence[str]) -> list[str]:
    """Return names, after a look that each is there once."""
    assert len(set(names)) == len(names)
    return sorted(names)


# Prepare without windows.


def _orders(directory: Path) -> StageContext:
    generate(directory, rows=ROWS)
    return _context(directory)


def _context(directory: Path, *, memory: int = 2**30) -> StageContext:
    spec = spec_of(directory)
    spec = spec.model_copy(update={"resources": spec.resources.model_copy(update={"memory": memory})})
    return StageContext.of(spec, directory=directory)


def _prepared(context: StageContext) -> tuple[pl.DataFrame, list[str]]:
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    names = _counted([chunk.name for chunk in chunks])
    return pl.read_parquet([chunk.path for chunk in chunks]).sort("key"), names


def _commit_copy(context: StageContext, path: Path) -> None:
    """Commit a first row of ``raw`` once more, under another key that is out of order."""
    raw = context.workspace.table("raw")
    row = pl.read_parquet(path, n_rows=1).with_columns(id=pl.lit(10**7))
    batch = row.to_arrow(compat_level=pl.CompatLevel.oldest()).cast(raw.schema()).combine_chunks().to_batches()[0]
    with chunk_writer(context.spec, raw, prefix=chunk_prefix(2, "raw"), schema=batch.schema) as writer:
        writer.write(batch)
    micros = microseconds(row["placed_at"][0] - datetime(1970, 1, 1, tzinfo=UTC))
    record = {"rows": 1, "memory_bytes": batch.nbytes, "hours": {str(micros // 3_600_000_000): 1}}
    record |= {"event_minimum": micros, "event_maximum": micros}
    context.workspace.journal.write_commit("extract:raw", 2, record)
    raw.commit(app="extract:raw", n=2, schema=batch.schema, add=writer.chunks)


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let six chunks be what a plan of the orders streams."""
    monkeypatch.setattr(streamed_rows, "SPAN_ROWS", 12_000)


@pytest.mark.parametrize("after", [(1,), (3,), (1, 2, 5)])
def test_streaming_goes_on_with_the_spans_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans: None, after: Sequence[int]
) -> None:
    shutil.copytree(_orders(tmp_path / "whole").directory, tmp_path / "stopped")
    contexts = [_context(tmp_path / name) for name in ("whole", "stopped")]
    whole = stop(monkeypatch)
    expected = run_stage(PrepareStage(), contexts[0])
    stopped = stop(monkeypatch, *after)
    report = run_stage(PrepareStage(), contexts[1])
    assert (whole.tries, stopped.tries) == (1, 1 + len(after))
    assert whole.checkpoints == stopped.checkpoints == 6  # none was written twice
    assert _prepared(contexts[1])[0].equals(_prepared(contexts[0])[0])
    assert _prepared(contexts[1])[1] == _prepared(contexts[0])[1]
    assert (report.rows_out, report.slices) == (expected.rows_out, 1)


def test_what_was_streamed_in_five_tries_is_kept_and_the_rest_is_sorted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans: None
) -> None:
    context = _orders(tmp_path)
    stops = stop(monkeypatch, 1, 2, 3, 4, 5)
    report = run_stage(PrepareStage(), context)
    rows, names = _prepared(context)
    assert (stops.tries, report.rows_out, report.slices) == (6, ROWS, 1)
    assert rows["key"].to_list() == list(range(ROWS))
    assert ["-stream-" in name for name in names] == [False] + [True] * 5


@pytest.mark.parametrize("after", [(1,), (4,), (2, 3, 9)])
def test_sorting_goes_on_behind_the_pieces_that_are_written_with_smaller_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Sequence[int]
) -> None:
    monkeypatch.setattr(footprints, "_STREAM_COPIES", 10**6)  # as if there were too many rows to stream
    monkeypatch.setattr(footprints, "_MOST_SPAN_ROWS", 8_000)
    shutil.copytree(_orders(tmp_path / "whole").directory, tmp_path / "stopped")
    notes: list[events.Event] = []
    contexts = [_context(tmp_path / name, memory=192 * 2**20) for name in ("whole", "stopped")]
    stop(monkeypatch)
    run_stage(PrepareStage(), contexts[0])
    stops = stop(monkeypatch, *after)
    report = run_stage(PrepareStage(), dataclasses.replace(contexts[1], hook=notes.append))
    assert stops.tries == 1 + len(after)
    texts = [one.message for one in notes if isinstance(one, events.Note)]
    assert sum("again with a smaller slice" in text for text in texts) == len(after)
    (whole, whole_names), (stopped, names) = (_prepared(context) for context in contexts)
    assert stopped.equals(whole)
    assert len(names) > len(whole_names)  # pieces are smaller behind each stop
    assert set(names) & set(whole_names)  # and those before it stay
    assert report.rows_out == ROWS


def test_a_slice_that_was_streamed_in_part_is_not_streamed_again_when_sorting_the_rest_is_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spans: None
) -> None:
    context = _orders(tmp_path)
    raw = context.workspace.table("raw")
    _commit_copy(context, raw.chunks()[0].path)
    monkeypatch.setattr(footprints, "_MOST_SPAN_ROWS", 3_000)
    stops = stop(monkeypatch, 6, 8)
    report = run_stage(PrepareStage(), context)
    rows, names = _prepared(context)
    assert stops.tries == 4
    assert rows.height == ROWS + 1 == report.rows_out
    assert sum("-stream-" in name for name in names) == 5


# Prepare with windows.

WINDOWS = [
    {
        "over": "events",
        "keys": ["destination"],
        "lengths": ["30d"],
        "statistics": ["count", "mean"],
        "column": "distance",
    },
    {"over": "labels", "keys": ["origin"], "lengths": ["7d"], "statistics": ["rate"]},
]


@pytest.mark.parametrize("after", [(1,), (3,), (1, 3, 4)])
def test_windows_go_on_behind_the_spans_that_are_written_and_find_their_segments(
    prepared_world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Sequence[int]
) -> None:
    monkeypatch.setattr(footprints, "_MOST_SPAN_ROWS", 1_000)
    worlds = [copy_world(prepared_world, tmp_path / name) for name in ("whole", "stopped")]
    found = []
    for world, stops in zip(worlds, (stop(monkeypatch), Stops(*after)), strict=True):
        world.edit(features={**_features(world), "windows": WINDOWS})  # a feature set that nothing is prepared of
        monkeypatch.setattr("engine.stage.run_task", stops.run_task)
        world.run(PrepareStage(), FEBRUARY)
        world.prepare(MARCH)  # whose windows reach back into the slice that was stopped
        found.append((world.prepared(), stops.tries))
        names = [chunk.name for chunk in prepared_table(world.workspace, world.spec.feature_set).chunks()]
        _counted(names)
    (whole, tries), (stopped, more) = found
    assert more == tries + len(after)
    assert len(whole) > 10_000
    assert stopped == whole


def _features(world: World) -> dict[str, Any]:
    return world.spec.features.model_dump(mode="json", exclude_defaults=True)


# Score, compact and settle.


@pytest.mark.parametrize("after", [(1,), (2,), (1, 3, 5)])
def test_scoring_goes_on_behind_its_last_chunk(
    february: Ran, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Sequence[int]
) -> None:
    monkeypatch.setattr(chunking, "CHUNK_ROWS", 1_000)
    template = copy_world(february[0], tmp_path / "template")
    template.prepare(MARCH)
    found = []
    for name, stops in (("whole", Stops()), ("stopped", Stops(*after))):
        world = copy_world(template, tmp_path / name)
        monkeypatch.setattr("engine.stage.run_task", stops.run_task)
        report = world.run(ScoreStage(), MARCH)
        names = [chunk.name for chunk in world.workspace.table("predictions").chunks()]
        found.append((world.rows("predictions"), report.rows_in, report.outputs, _counted(names), stops.tries))
    assert found[0][4] + len(after) == found[1][4]
    assert found[0][:4] == found[1][:4]
    assert len(found[0][3]) > 6


@pytest.mark.parametrize("after", [(1,), (1, 2, 3)])
def test_compaction_goes_on_behind_its_last_merge(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: Sequence[int]
) -> None:
    shop = Shop(tmp_path)
    for n in range(1, 13):
        commit_slice(shop.workspace, n, note="late" if n > 9 else None)
    rows = shop.rows()
    monkeypatch.setattr("engine.stages.compact._pins", lambda *_: {3, 6, 9})
    stops = stop(monkeypatch, *after)
    report = run_stage(CompactStage("raw", least=2), shop.context(0))
    assert (report.slices, report.rows_out, report.rows_in) == (1, 36, 36)
    assert stops.tries == 1 + len(after)
    assert stops.checkpoints == 4  # no chunk was merged twice
    assert [chunk.n for chunk in shop.workspace.table("raw").chunks()] == [3, 6, 9, 12]
    assert shop.rows() == rows


def _arrivals(directory: Path) -> Shop:
    """Return a shop with two months of files extracted; then one was changed, and one overlaps with both."""
    (directory / "in").mkdir(parents=True)
    source = {"uri": str(directory / "in"), "table": "", "key": "id", "cursor": "updated"}
    shop = Shop(directory, source={**source, "max_quarantine_share": 0.5}, event_time="at")

    def write(name: str, keys: Sequence[int], *, day: int = 2) -> None:
        lines = [f"{key},{key * 3},2026-01-01 {key % 24:02d}:00:00,2026-01-{day:02d}" for key in keys]
        lines += [f"{key},none,2026-01-01,2026-01-{day:02d}" for key in keys[:40]]
        (directory / "in" / name).write_text("\n".join(["id,amount,at,updated", *lines]) + "\n")

    write("a.csv", range(3_000))
    shop.extract(FAR)
    write("b.csv", range(3_000, 6_000))
    shop.extract(FAR)
    write("a.csv", range(10, 2_900), day=3)
    write("c.csv", [*range(2_000, 5_000, 2), *range(6_000, 9_000)])
    return shop


@pytest.mark.timeout(240)
def test_settling_goes_on_behind_whatever_it_has_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunking, "CHUNK_ROWS", 1_000)
    monkeypatch.setattr("engine.sources.reading._CHUNK_ROWS", 1_000)
    template = _arrivals(tmp_path / "template")

    def settled(name: str, stops: Stops) -> tuple[Any, ...]:
        shutil.copytree(template.directory, tmp_path / name)
        shop = dataclasses.replace(template, directory=tmp_path / name)
        shop.source = {**template.source, "uri": str(tmp_path / name / "in")}
        monkeypatch.setattr("engine.stage.run_task", stops.run_task)
        report = shop.extract(FAR)
        _counted([chunk.name for chunk in shop.workspace.table("raw").chunks()])
        rows, bad = (sorted(map(str, shop.rows(table))) for table in ("raw", "quarantine"))
        record = shop.workspace.journal.commit("extract:raw", 3)
        assert record is not None
        return rows, bad, report.rows_out, report.outputs, record["hours"]

    unstopped = Stops()
    whole = settled("whole", unstopped)
    assert unstopped.checkpoints > 10
    for after in range(1, unstopped.checkpoints + 1):
        stops = Stops(after, after + 1)
        assert settled(str(after), stops) == whole
        assert stops.tries > unstopped.tries
