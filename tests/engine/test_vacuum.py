"""Vacuum frees what is old and needed by nothing, and nothing else: not what is young, planned, live or looked up."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest

from engine.batching import ChunkWriter, Workspace, read_batches
from engine.batching.tables import chunk_prefix
from engine.stage import run_stage
from engine.stages.compact import CompactStage
from engine.vacuum import VacuumReport, vacuum
from tests.commits import SCHEMA, commit_slice
from tests.shop import Shop

DAY, WEEK = timedelta(days=1), timedelta(days=7)


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def _vacuum(shop: Shop, keep: timedelta = WEEK, *, dry_run: bool = False) -> VacuumReport:
    with shop.workspace.lock():
        return vacuum(shop.context(0), keep=keep, dry_run=dry_run)


def _age(root: Path, days: float = 30) -> None:
    """Make every file look as if it had been written that long ago."""
    then = time.time() - days * 86_400
    for path in root.rglob("*"):
        os.utime(path, (then, then))


def _ids(workspace: Workspace) -> list[int]:
    paths = [chunk.path for chunk in workspace.table("raw").chunks()]
    return [value for batch in read_batches(paths, columns=["id"]) for value in batch["id"].to_pylist()]


def _file(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def _everything(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_workspace_in_which_nothing_ran_has_nothing_to_free(shop: Shop) -> None:
    assert _vacuum(shop).to_json()["bytes"] == 0


def test_what_compaction_replaced_goes_when_it_has_been_gone_long_enough(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = shop.workspace
    for n in range(1, 6):
        commit_slice(workspace, n)
    _age(workspace.root)
    raw, before = workspace.table("raw"), _ids(workspace)
    version, two_days_ago = raw.ref().version, time.time() - 2 * 86_400
    with monkeypatch.context() as clock:
        clock.setattr("engine.batching.tables.time.time", lambda: two_days_ago)
        run_stage(CompactStage("raw", least=2), shop.context(0))
    # The chunks are a month old. What counts is that they left the table two days ago.
    assert _vacuum(shop, 3 * DAY).freed["chunks"].files == 0
    snapshot = [chunk.path for chunk in raw.chunks(version=version)]
    assert [value for batch in read_batches(snapshot) for value in batch["id"].to_pylist()] == before
    assert _vacuum(shop, DAY).freed["chunks"].files == 5
    assert _ids(workspace) == before
    assert [path.name for path in raw.path.glob("*.parquet")] == [chunk.name for chunk in raw.chunks()]
    assert raw.transaction("extract:raw") == 5


def test_the_log_is_cut_and_neither_rows_nor_watermarks_are_lost(shop: Shop) -> None:
    workspace = shop.workspace
    for n in range(1, 8):
        commit_slice(workspace, n, runs=True)
    raw, before = workspace.table("raw"), _ids(workspace)
    _age(workspace.root)
    report = _vacuum(shop)
    assert report.freed["logs"].files >= 14
    assert len(list((raw.path / "_delta_log").glob("*.json"))) <= 2
    assert (raw.transaction("extract:raw"), workspace.table("runs").transaction("runs:extract:raw")) == (7, 7)
    assert _ids(workspace) == before
    commit_slice(workspace, 8)
    commit_slice(workspace, 7)  # a repeated commit is still known
    assert _ids(workspace) == [*before, 80, 81, 82]


def test_what_a_killed_run_left_goes_when_it_is_old(shop: Shop) -> None:
    workspace = shop.workspace
    commit_slice(workspace, 1)
    with ChunkWriter(workspace.table("raw").path, prefix=chunk_prefix(1, "raw.settled"), schema=SCHEMA) as orphan:
        orphan.write(next(iter(read_batches([workspace.table("raw").chunks()[0].path]))))
    left = [
        workspace.table("raw").path / orphan.chunks[0].path,
        _file(workspace.table("raw").path / ".00000002-raw-0000.parquet.tmp"),
        _file(workspace.root / "plans/extract/raw/.00000002.json.77.tmp"),
        _file(workspace.root / "tasks/0123456789abcdef.json", "{}"),
        _file(workspace.scratch / "duckdb-raw.1/spilled"),
    ]
    plan = workspace.root / "plans/extract/raw/00000001.json"
    kept = _everything(workspace.root)
    assert _vacuum(shop).bytes == 0
    assert _everything(workspace.root) >= kept
    _age(workspace.root)
    assert _vacuum(shop, dry_run=True).freed["leftovers"].files == 4
    assert _everything(workspace.root) >= kept
    report = _vacuum(shop)
    assert [path for path in (*left, plan) if path.exists()] == []
    assert (report.freed["chunks"].files, report.freed["leftovers"].files, report.freed["plans"].files) == (1, 4, 1)
    assert (workspace.root / "commits/extract/raw/00000001.json").is_file()
    assert _ids(workspace) == [10, 11, 12]


def test_what_a_plan_needs_that_is_yet_to_be_resumed_is_kept_however_old(shop: Shop) -> None:
    workspace = shop.workspace
    commit_slice(workspace, 1)
    plan = {"as_of": "2026-01-01T00:00:00Z", "bounds": {"kind": "new"}}
    workspace.journal.write_plan("extract:raw", 2, plan)
    with ChunkWriter(workspace.table("raw").path, prefix=chunk_prefix(2, "raw"), schema=SCHEMA) as writer:
        writer.write(next(iter(read_batches([workspace.table("raw").chunks()[0].path]))))
    workspace.journal.write_task("0123456789abcdef", {"outputs": {"chunks": [{"path": writer.chunks[0].path}]}})
    kept = [
        workspace.table("raw").path / writer.chunks[0].path,
        workspace.root / "plans/extract/raw/00000002.json",
        workspace.root / "tasks/0123456789abcdef.json",
        _file(workspace.scratch / "cache/rows"),
    ]
    _age(workspace.root)
    _vacuum(shop)
    assert [path for path in kept if not path.exists()] == []


def test_segments_go_with_the_chunks_that_they_belong_to(shop: Shop) -> None:
    workspace, feature_set = shop.workspace, shop.spec.feature_set
    table = workspace.table(f"prepared/{feature_set}")
    for n in (1, 2):
        _commit_prepared(shop, n, remove=[])
    _commit_prepared(shop, 3, remove=[table.chunks()[0].name])
    segments = {n: _file(workspace.segments / feature_set / f"events-{n:08d}-0000-0-0.arrow") for n in (1, 2, 3, 4)}
    span = _file(workspace.segments / feature_set / "events-00000002-0001-0-0.arrow")  # another of the same commit
    other = _file(workspace.segments / feature_set / "labels-00000002-0-0.arrow")  # its label events are gone
    waiting = [_file(workspace.root / "pending" / feature_set / f"{n:08d}-labels-0000.parquet") for n in (1, 2)]
    rows = _file(workspace.root / "slices" / feature_set / "00000002.arrow")
    _age(workspace.root)
    assert _vacuum(shop, DAY).freed["segments"].files == 2  # the chunk of 1 left just now and is kept for a day
    assert {n: path.exists() for n, path in segments.items()} == dict.fromkeys(segments, True)
    assert not other.exists()
    assert not span.exists()
    assert [path.exists() for path in (*waiting, rows)] == [False, True, False]
    dry = _vacuum(shop, timedelta(0), dry_run=True)
    report = _vacuum(shop, timedelta(0))
    assert dry.freed["segments"] == report.freed["segments"]
    assert {n: path.exists() for n, path in segments.items()} == {1: False, 2: True, 3: True, 4: True}


def _commit_prepared(shop: Shop, n: int, *, remove: list[str]) -> None:
    workspace, feature_set = shop.workspace, shop.spec.feature_set
    table, app = workspace.table(f"prepared/{feature_set}"), f"prepare:{feature_set}"
    with ChunkWriter(table.path, prefix=chunk_prefix(n, "rows.0000"), schema=SCHEMA) as writer:
        writer.write(pa.RecordBatch.from_pylist([{"id": n}], schema=SCHEMA))
    workspace.journal.write_commit(app, n, {"pending": ["00000002-labels-0000.parquet"]})
    table.commit(app=app, n=n, schema=SCHEMA, add=writer.chunks, remove=remove)


def test_it_keeps_what_is_younger_than_the_longest_slice(shop: Shop) -> None:
    commit_slice(shop.workspace, 1, runs=True)
    assert _vacuum(shop, timedelta(0)).keep == timedelta(seconds=0.1)
    assert _vacuum(shop, DAY).keep == DAY


@pytest.mark.slow
def test_vacuums_among_three_hundred_commits_lose_nothing(shop: Shop) -> None:
    for n in range(1, 301):
        commit_slice(shop.workspace, n, rows=1)
        if n % 60 == 0:
            _age(shop.workspace.root)
            _vacuum(shop, timedelta(0))
    raw = shop.workspace.table("raw")
    assert _ids(shop.workspace) == [10 * n for n in range(1, 301)]
    assert raw.transaction("extract:raw") == 300
    assert len(raw.chunks()) == 1
    assert len(list((raw.path / "_delta_log").iterdir())) < 80
