"""Compaction: the same rows in the same order for every reader, whatever stands half-done.

Kills, and the loop with compaction between its steps, are in ``tests/faults/test_compaction.py``.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.batching import Workspace, read_batches
from engine.batching.runs import last_reports
from engine.errors import TableError
from engine.refs import to_json
from engine.stage import run_stage
from engine.stages.compact import CompactStage
from engine.upkeep import compact_tables
from tests.commits import commit_slice
from tests.shop import Shop


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path)


def _ids(workspace: Workspace, table: str = "raw", *, newest_n: int | None = None) -> list[int]:
    chunks = workspace.table(table).chunks(newest_n=newest_n)
    return [value for b in read_batches([c.path for c in chunks], columns=["id"]) for value in b["id"].to_pylist()]


def _compact(shop: Shop, table: str = "raw", *, least: int = 2) -> int:
    return run_stage(CompactStage(table, least=least), shop.context(0)).slices


def _stands_at(shop: Shop, **record: object) -> str:
    """Let the pipeline's prepare have recorded how far it is."""
    workspace, feature_set = shop.workspace, shop.spec.feature_set
    app, table = f"prepare:{feature_set}", workspace.table(f"prepared/{feature_set}")
    schema = workspace.table("raw").schema()
    assert schema is not None
    n = table.transaction(app) + 1
    workspace.journal.write_commit(app, n, record)
    table.commit(app=app, n=n, schema=schema)
    return app


def test_small_chunks_become_one_with_the_same_rows_and_the_writers_go_on(shop: Shop) -> None:
    for n in range(1, 7):
        commit_slice(shop.workspace, n, note="late" if n > 4 else None)  # a column that came later
    raw, before, rows = shop.workspace.table("raw"), _ids(shop.workspace), shop.rows()
    version = raw.ref().version
    assert _compact(shop) == 1
    (chunk,) = raw.chunks()
    assert (chunk.n, chunk.rows, chunk.minimum["id"], chunk.maximum["id"]) == (6, 18, 10, 62)
    assert shop.rows() == rows
    assert [row["note"] for row in rows] == [None] * 12 + ["late"] * 6
    assert raw.transaction("extract:raw") == 6
    assert len(raw.chunks(version=version)) == 6  # an older snapshot is there still
    assert [path for path in (chunk.path for chunk in raw.chunks(version=version)) if not path.is_file()] == []
    commit_slice(shop.workspace, 7)
    assert _ids(shop.workspace) == [*before, 70, 71, 72]
    assert _compact(shop) == 0  # two chunks are not worth it


def test_nothing_starts_before_it_is_due(shop: Shop) -> None:
    for n in range(1, 9):
        commit_slice(shop.workspace, n, rows=1)
    assert compact_tables(shop.context(0), least=8).slices == 0
    commit_slice(shop.workspace, 9, rows=1)
    assert CompactStage("raw", least=8).is_due(shop.context(0))
    assert not CompactStage("raw").is_due(shop.context(0))
    assert compact_tables(shop.context(0), least=8).slices == 1
    assert len(shop.workspace.table("raw").chunks()) == 1


def test_no_merge_spans_where_a_feature_set_stands(shop: Shop) -> None:
    for n in range(1, 11):
        commit_slice(shop.workspace, n)
        commit_slice(shop.workspace, n, what="labels")
    app = _stands_at(shop, raw_n=4, labels_n=6, todo=[[0, 1, 1]])
    bounds = {"kind": "labels", "after_n": 6, "through_n": 8, "raw_n": 9, "pending": [], "pending_rows": 0}
    shop.workspace.journal.write_plan(app, 2, {"as_of": "2026-01-01T00:00:00Z", "bounds": bounds})
    seen = {n: _ids(shop.workspace, newest_n=n) for n in (4, 9, 10)}
    assert _compact(shop) == 1
    assert [chunk.n for chunk in shop.workspace.table("raw").chunks()] == [4, 9, 10]
    assert {n: _ids(shop.workspace, newest_n=n) for n in seen} == seen
    assert _compact(shop, "labels") == 1
    assert [chunk.n for chunk in shop.workspace.table("labels").chunks()] == [6, 8, 10]


def test_no_merge_spans_what_monitor_has_seen(shop: Shop) -> None:
    workspace = shop.workspace
    for n in range(1, 7):
        commit_slice(workspace, n, what="predictions")
    schema = workspace.table("predictions").schema()
    assert schema is not None
    workspace.journal.write_commit("monitor", 1, {"predictions_n": 2})
    workspace.table("metrics").commit(app="monitor", n=1, schema=schema)
    assert _compact(shop, "predictions") == 1
    assert [chunk.n for chunk in workspace.table("predictions").chunks()] == [2, 6]


def test_nothing_is_merged_while_an_extraction_is_half_done(shop: Shop) -> None:
    for n in range(1, 7):
        commit_slice(shop.workspace, n)
        commit_slice(shop.workspace, n, what="quarantine")
    shop.workspace.journal.write_plan("extract:raw", 7, {"as_of": "2026-01-01T00:00:00Z", "bounds": {}})
    assert _compact(shop) == _compact(shop, "quarantine") == 0
    assert len(shop.workspace.table("raw").chunks()) == 6


def test_a_chunk_that_lacks_rows_stops_it_and_the_table_stays(shop: Shop) -> None:
    for n in range(1, 5):
        commit_slice(shop.workspace, n)
    raw = shop.workspace.table("raw")
    chunks = raw.chunks()
    before = raw.ref()
    chunks[1].path.write_bytes(chunks[1].path.read_bytes()[:-20])
    with pytest.raises(TableError, match="nothing was merged"):
        _compact(shop)
    assert raw.ref() == before


def _cut_off(shop: Shop, table: str) -> None:
    """Leave a compaction whose task has run and that is not committed."""
    stage, context = CompactStage(table, least=2), shop.context(0)

    class KilledError(Exception):
        pass

    def then_die(calls, tasks):
        for call in calls:
            call()
        raise KilledError

    with pytest.raises(KilledError):
        run_stage(stage, context, execute=then_die)


def test_a_compaction_that_was_cut_off_gives_up_what_was_rewritten_since(shop: Shop) -> None:
    for n in range(1, 5):
        commit_slice(shop.workspace, n)
    _cut_off(shop, "raw")
    raw = shop.workspace.table("raw")
    gone, schema = raw.chunks()[1].name, raw.schema()
    assert schema is not None
    raw.commit(app="extract:raw", n=5, schema=schema, remove=[gone])  # as when a file's rows are taken out
    assert _ids(shop.workspace) == [10, 11, 12, 30, 31, 32, 40, 41, 42]
    compact_tables(shop.context(0), least=2)
    assert _ids(shop.workspace) == [10, 11, 12, 30, 31, 32, 40, 41, 42]


def test_a_compaction_that_was_cut_off_gives_up_where_a_reader_came_to_stand(shop: Shop) -> None:
    for n in range(1, 5):
        commit_slice(shop.workspace, n)
        commit_slice(shop.workspace, n, what="labels")
    _stands_at(shop, labels_n=0)
    _cut_off(shop, "labels")
    _stands_at(shop, labels_n=2)
    compact_tables(shop.context(0), least=2)
    assert [chunk.n for chunk in shop.workspace.table("labels").chunks()] == [2, 4]


def test_the_last_reports_are_the_same_after_runs_is_compacted(shop: Shop) -> None:
    for n in range(1, 9):
        commit_slice(shop.workspace, n, runs=True)
        commit_slice(shop.workspace, n, what="labels", runs=n < 5)
    before = last_reports(shop.workspace)
    assert [report.n for report in before["extract"]] == [4, 8]
    assert _compact(shop, "runs") == 1
    after = last_reports(shop.workspace)
    assert after.pop("compact")[0].outputs["chunks_after"] == 2
    assert {name: [to_json(r) for r in of] for name, of in after.items()} == {
        name: [to_json(r) for r in of] for name, of in before.items()
    }


def test_compactions_of_runs_come_to_an_end_though_each_adds_a_row(shop: Shop) -> None:
    for n in range(1, 5):
        commit_slice(shop.workspace, n, runs=True)
    assert [_compact(shop, "runs", least=1) for _ in range(2)] == [1, 0]
