"""Tables: one commit for each (app, n), schema compared, chunks replaced together, conflicts met by looking again."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pytest
from deltalake import CommitProperties, DeltaTable, Transaction

from engine.batching import ChunkWriter, Table, read_batches
from engine.batching.retention import trim_log
from engine.batching.tables import chunk_n, chunk_prefix
from engine.errors import SchemaMismatch, TableError
from engine.refs import ChunkRef

SCHEMA = pa.schema([("key", pa.int64()), ("at", pa.timestamp("us", tz="UTC")), ("name", pa.string())])


def _batch(keys: list[int]) -> pa.RecordBatch:
    at = [datetime(2013, 1, 1, key % 24, tzinfo=UTC) for key in keys]
    return pa.record_batch({"key": keys, "at": at, "name": [f"row {key}" for key in keys]}, schema=SCHEMA)


def _write(table: Table, n: int, keys: list[int], *, task: str = "rows") -> list[ChunkRef]:
    with ChunkWriter(table.path, prefix=chunk_prefix(n, task), schema=SCHEMA, bounds_of=["at"]) as writer:
        writer.write(_batch(keys))
    return writer.chunks


def _keys(table: Table) -> list[int]:
    return [
        key for b in read_batches([c.path for c in table.chunks()], columns=["key"]) for key in b["key"].to_pylist()
    ]


@pytest.fixture(params=[False, True], ids=["", "stays open"])
def table(tmp_path: Path, request: pytest.FixtureRequest) -> Table:
    return Table(tmp_path / "raw", name="raw", stays_open=request.param)


def test_a_commit_is_made_once_however_often_it_is_repeated(table: Table) -> None:
    chunks = _write(table, 1, [1, 2])
    first = table.commit(app="extract", n=1, schema=SCHEMA, add=chunks)
    again = Table(table.path, name="raw").commit(app="extract", n=1, schema=SCHEMA, add=chunks)
    assert (first.n, again.n) == (1, 1)
    assert again.version == first.version
    assert _keys(table) == [1, 2]


def test_an_older_n_is_skipped_and_apps_do_not_meet(table: Table) -> None:
    table.commit(app="extract", n=5, schema=SCHEMA, add=_write(table, 5, [5]))
    table.commit(app="extract", n=4, schema=SCHEMA, add=_write(table, 4, [4]))
    table.commit(app="other", n=4, schema=SCHEMA, add=_write(table, 4, [40], task="other"))
    assert sorted(_keys(table)) == [5, 40]
    assert (table.transaction("extract"), table.transaction("other"), table.transaction("none")) == (5, 4, 0)


def test_a_commit_that_meets_a_conflict_looks_again(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1]))
    real_open = Table._open
    rival = DeltaTable(table.path)
    opened = []

    def open_then_lose(self: Table, version: int | None = None) -> DeltaTable | None:
        handle = real_open(self, version)
        if not opened:
            opened.append(handle)
            properties = CommitProperties(app_transactions=[Transaction("rival", 1)])
            rival.create_write_transaction([], "append", SCHEMA, commit_properties=properties)
        return handle

    monkeypatch.setattr(Table, "_open", open_then_lose)
    table.commit(app="extract", n=2, schema=SCHEMA, add=_write(table, 2, [2]))
    monkeypatch.undo()
    assert _keys(table) == [1, 2]
    assert table.transaction("rival") == 1


def _commit_in_child(path: str, n: int) -> None:
    table = Table(Path(path), name="raw")
    chunks = _write(table, n, [n], task=f"rows{os.getpid()}")  # the lock of a workspace keeps names apart; here, this
    table.commit(app="extract", n=n, schema=SCHEMA, add=chunks)


def test_the_same_n_from_two_processes_is_committed_once(table: Table) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1]))
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_commit_in_child, args=(str(table.path), 2)) for _ in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert _keys(table) == [1, 2]


def test_a_table_that_stays_open_sees_what_others_commit_and_a_table_made_anew(table: Table) -> None:
    other = Table(table.path, name="raw")
    assert (table.transaction("app"), table.schema()) == (0, None)
    for n in (1, 2):
        other.commit(app="app", n=n, schema=SCHEMA, add=_write(other, n, [n]))
        assert (table.transaction("app"), _keys(table)) == (n, list(range(1, n + 1)))
    assert table.ref("app") == other.ref("app")
    shutil.rmtree(table.path)
    assert (table.transaction("app"), table.chunks()) == (0, [])
    for n in (1, 2):  # as many versions as before
        other.commit(app="again", n=n, schema=SCHEMA, add=_write(other, n, [10 * n]))
    assert (table.transaction("app"), table.transaction("again"), _keys(table)) == (0, 2, [10, 20])


def test_a_table_that_stays_open_is_read_once_a_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, opened = Table(tmp_path / "raw", name="raw", stays_open=True), list[Path]()
    table.commit(app="app", n=1, schema=SCHEMA, add=_write(table, 1, [1]))

    def counted(path: Path, **options: Any) -> DeltaTable:
        opened.append(path)
        return DeltaTable(path, **options)

    monkeypatch.setattr("engine.batching.tables.DeltaTable", counted)
    for _ in range(3):
        assert (table.transaction("app"), len(table.chunks())) == (1, 1)
    assert len(opened) == 1
    trim_log(table, keep=timedelta(0))  # which commits properties of its own
    assert (table.transaction("app"), len(table.chunks()), len(opened)) == (1, 1, 2)


def test_another_type_is_refused_and_nothing_is_committed(table: Table) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1]))
    with pytest.raises(SchemaMismatch, match="column 'key' is int64, the new chunk has int32"):
        table.commit(app="extract", n=2, schema=pa.schema([("key", pa.int32())]))
    assert table.transaction("extract") == 1


def test_a_new_column_is_null_in_older_chunks(table: Table) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1]))
    wider = SCHEMA.append(pa.field("score", pa.float64()))
    with ChunkWriter(table.path, prefix=chunk_prefix(2, "rows"), schema=wider) as writer:
        writer.write(_batch([2]).append_column("score", pa.array([0.5])).cast(wider))
    table.commit(app="extract", n=2, schema=wider, add=writer.chunks)
    paths = [chunk.path for chunk in table.chunks()]
    found = pa.Table.from_batches(read_batches(paths, columns=["key", "score"], schema=wider))
    assert found.to_pydict() == {"key": [1, 2], "score": [None, 0.5]}
    assert pl.read_delta(str(table.path)).height == 2  # other readers see the same


def test_chunks_are_replaced_in_one_version(table: Table) -> None:
    table.commit(app="prepare", n=1, schema=SCHEMA, add=_write(table, 1, [1, 2]))
    old = [chunk.name for chunk in table.chunks()]
    before = table.ref().version
    table.commit(app="prepare", n=2, schema=SCHEMA, add=_write(table, 2, [1, 2, 3]), remove=old)
    assert _keys(table) == [1, 2, 3]
    assert table.ref().version == before + 1
    assert [chunk.n for chunk in table.chunks(version=before)] == [1]


def test_chunks_of_plans_after_the_primary_are_not_read(table: Table) -> None:
    for n in (1, 2, 3):
        table.commit(app="side", n=n, schema=SCHEMA, add=_write(table, n, [n]))
    assert [chunk.n for chunk in table.chunks(newest_n=2)] == [1, 2]


def test_bounds_say_which_chunks_a_span_touches(table: Table) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1, 5]))
    (chunk,) = table.chunks()
    noon = datetime(2013, 1, 1, 5, tzinfo=UTC)
    assert chunk.may_hold("at", noon, None)
    assert not chunk.may_hold("at", None, datetime(2013, 1, 1, 1, tzinfo=UTC))
    assert not chunk.may_hold("at", datetime(2013, 1, 1, 6, tzinfo=UTC), None)
    assert chunk.may_hold("key", 6, None)
    assert chunk.may_hold("unknown", 0, 1)


@pytest.mark.parametrize("name", ["at", "at, or later", "a.b", "`at``", "an at of `at`", ""])
def test_bounds_are_known_of_any_column_that_is_named_wherever_it_stands(table: Table, name: str) -> None:
    columns = {f"feature {at}": [float(at)] * 2 for at in range(40)} | {"key": [7, 9], name: [3, 5]}
    rows = pa.RecordBatch.from_pydict(columns)
    with ChunkWriter(table.path, prefix=chunk_prefix(1, "rows"), schema=rows.schema, bounds_of=[name, "none"]) as out:
        out.write(rows)
    table.commit(app="extract", n=1, schema=rows.schema, add=out.chunks)
    (chunk,) = table.chunks()
    assert (chunk.minimum, chunk.maximum, chunk.rows) == ({name: 3}, {name: 5}, 2)
    DeltaTable(table.path).create_checkpoint()
    assert table.chunks() == [chunk]


def test_columns_that_are_named_later_are_known_from_then_on(table: Table) -> None:
    DeltaTable.create(table.path, SCHEMA)  # as tables were made before they named any
    for n, bounds_of in enumerate((["at"], ["key", "at"], ["key"]), 1):
        with ChunkWriter(table.path, prefix=chunk_prefix(n, "rows"), schema=SCHEMA, bounds_of=bounds_of) as writer:
            writer.write(_batch([n]))
        table.commit(app="extract", n=n, schema=SCHEMA, add=writer.chunks)
    assert [sorted(chunk.minimum) for chunk in table.chunks()] == [["at"], ["at", "key"], ["key"]]
    assert DeltaTable(table.path).version() == 5  # three commits, and two that named columns
    assert DeltaTable(table.path).metadata().configuration["delta.checkpointInterval"] == "10"


def test_a_new_table_names_its_columns_when_it_is_made(table: Table) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1]))
    assert DeltaTable(table.path).version() == 1
    assert [sorted(chunk.minimum) for chunk in table.chunks()] == [["at"]]


def test_a_column_is_not_taken_for_a_field_of_the_same_name(table: Table) -> None:
    rows = pa.RecordBatch.from_pydict({"a": [{"b": 100}], "a.b": [1]})
    with ChunkWriter(table.path, prefix=chunk_prefix(1, "rows"), schema=rows.schema, bounds_of=["a.b"]) as writer:
        writer.write(rows)
    assert writer.chunks[0].maximum == {"a.b": 1}


def test_a_broken_log_is_an_error_that_says_what_to_do(table: Table) -> None:
    table.commit(app="extract", n=1, schema=SCHEMA, add=_write(table, 1, [1]))
    for file in (table.path / "_delta_log").glob("*.json"):
        file.write_text("{broken")
    with pytest.raises(TableError, match="cannot be opened") as caught:
        table.rows()
    assert "backup" in caught.value.hint


def test_the_n_of_a_chunk_is_read_from_its_name() -> None:
    assert chunk_n(f"{chunk_prefix(42, 'rows')}-0001.parquet") == 42
