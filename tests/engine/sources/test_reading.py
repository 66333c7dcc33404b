"""A reading that is stopped goes on from its last checkpoint, and ends as one that was not."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from engine.batching import read_batches
from engine.memory.budget import Budget
from engine.memory.governor import Governor
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult
from engine.sources import open_source, reading
from engine.sources.protocol import Seen, Window
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage
from tests.shop import Shop, at

ROWS = 5_000  # of each of three files
KINDS = ("sqlite", "parquet", "csv", "ndjson", "arrow")


class _Stopped(Exception):
    pass


def _rows(number: int) -> pa.Table:
    keys = range(number * ROWS, (number + 1) * ROWS)
    amounts = [None if key % 101 == 0 else key * 0.5 for key in keys]
    texts = [f"order {key}" if key % 1_007 else "x" * 5_000 for key in keys]  # some are larger than max_row_bytes
    return pa.table({"id": pa.array(keys), "amount": amounts, "note": texts, "placed_at": [at(key) for key in keys]})


def _write(kind: str, directory: Path) -> None:
    (directory / "orders").mkdir()
    for number in range(3):
        rows, path = _rows(number), directory / "orders" / f"{number}.{kind}"
        if kind == "parquet":
            pq.write_table(rows, path, row_group_size=1_700)
        elif kind == "arrow":
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, rows.schema) as writer:
                writer.write_table(rows, max_chunksize=900)
        else:
            lines = [json.dumps(row, default=str) for row in rows.to_pylist()]
            if kind == "csv":
                lines = ["id,amount,note,placed_at"]
                lines += [
                    f"{r['id']},{'' if r['amount'] is None else r['amount']},{r['note']},{r['placed_at']}"
                    for r in rows.to_pylist()
                ]
                lines[40] = "a line that lacks fields"
            path.write_text("\n".join(lines) + "\n")


def _source(kind: str, directory: Path) -> dict[str, Any]:
    if kind != "sqlite":
        _write(kind, directory)
        return {"uri": str(directory / "orders"), "key": "id"}
    shop = Shop(directory)
    shop.sql("CREATE TABLE orders (id INTEGER PRIMARY KEY, amount REAL, note TEXT, placed_at TIMESTAMP)")
    for number in range(3):
        rows = [(r["id"], r["amount"], r["note"], str(r["placed_at"])[:19]) for r in _rows(number).to_pylist()]
        shop.sql("INSERT INTO orders VALUES (?, ?, ?, ?)", values=rows)
    return {"uri": f"sqlite:///{shop.database}", "table": "orders", "key": "id", "cursor": "placed_at"}


def _context(source: Mapping[str, Any], directory: Path, *, name: str) -> StageContext:
    spec = PipelineSpec.model_validate(
        {
            "pipeline": "orders",
            "workspace": str(directory / name),
            "source": {**source, "max_row_bytes": 4_000, "max_quarantine_share": 0.5},
            "event_time": "placed_at",
            "labels": {"table": "none", "key": "id", "value": "amount", "labelled_at": "placed_at"},
            "features": {"numeric": ["amount"]},
        }
    )
    return StageContext.of(spec, directory=directory, as_of=at(60 * 24 * 365))


def _read(context: StageContext, *, stop_at: Sequence[int] = ()) -> tuple[TaskResult, int]:
    """Read a first slice in this process; end it with the exception at some checkpoints, and begin again from there."""
    kept: list[Mapping[str, Any]] = []
    stops = list(stop_at)

    def keep(checkpoint: Mapping[str, Any]) -> None:
        kept.append(json.loads(json.dumps(checkpoint)))
        if stops and len(kept) == stops[0]:
            stops.pop(0)
            raise _Stopped

    def execute(calls: Sequence[Any], tasks: Sequence[Task]) -> Sequence[TaskResult]:
        del calls
        [task] = tasks
        while True:
            budget = Budget(2**30, batch_bytes=64 * 1024)
            resume = kept[-1] if kept else None
            governor = Governor(budget, reserved_bytes=0)
            scope = Scope(
                "extract",
                task.name,
                context.for_child(),
                budget,
                governor,
                lambda _: None,
                time.monotonic(),
                keep,
                resume=resume,
            )
            try:
                found.append(reading.run(task, scope))
            except _Stopped:
                continue
            raise _Stopped

    found: list[TaskResult] = []
    with pytest.raises(_Stopped):
        run_stage(ExtractStage("raw"), context, execute=execute)
    return found[0], len(kept)


def _content(context: StageContext, result: TaskResult, table: str, outputs: str) -> list[dict[str, Any]]:
    directory = context.workspace.table(table).path
    names = [chunk["path"] for chunk in result.outputs[outputs]]
    assert len(set(names)) == len(names)
    return [row for batch in read_batches([directory / name for name in names]) for row in batch.to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stop_at", [(1,), (2, 4, 5)])
def test_a_reading_that_was_stopped_ends_as_one_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, stop_at: Sequence[int]
) -> None:
    monkeypatch.setattr(reading, "_CHUNK_ROWS", 2_000)
    source = _source(kind, tmp_path)
    whole, checkpoints = _read(_context(source, tmp_path, name="whole"))
    assert checkpoints >= 5
    stopped, _ = _read(_context(source, tmp_path, name="stopped"), stop_at=stop_at)
    for name in (
        "position",
        "more",
        "files",
        "counts",
        "newest",
        "contract",
        "hours",
    ):
        assert stopped.outputs[name] == whole.outputs[name], name
    assert (stopped.rows_in, stopped.rows_out, stopped.rows_quarantined) == (
        whole.rows_in,
        whole.rows_out,
        whole.rows_quarantined,
    )
    assert whole.rows_quarantined >= 3 * (ROWS // 1_007)
    for table, outputs in (("raw", "chunks"), ("quarantine", "quarantine")):
        contents = [
            _content(_context(source, tmp_path, name=name), result, table, outputs)
            for name, result in (("whole", whole), ("stopped", stopped))
        ]
        assert contents[0] == contents[1]
        assert contents[0]


def test_what_is_left_at_the_limit_of_a_slice_still_says_how_far_its_file_was_read(tmp_path: Path) -> None:
    """A mark at the very end of a slice: the file would else be forgotten, and its rows read again by the next one."""
    _write("csv", tmp_path)
    with open_source(SecretStr(str(tmp_path / "orders")), key="id", cursor="placed_at") as source:
        bounds = source.next_range(Seen(), Window(until=at(60 * 24 * 365), limit_rows=ROWS - 1))
        assert bounds is not None
        marks = [source.mark() for _ in source.read(bounds, schema=source.schema(), batch_bytes=64 * 1024)]
        whole = source.ending()
        rest = source.rest(bounds, marks[-1])
        assert marks[-1]["left"] <= 0
        list(source.read(rest, schema=source.schema(), batch_bytes=64 * 1024))
        assert [file.name for file in source.ending().files] >= [file.name for file in whole.files] != []


def test_under_pressure_the_next_batch_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the thread that reads ahead that waits: the one that writes goes on, and frees what waited."""
    waited: list[str] = []
    monkeypatch.setattr(Governor, "wait", lambda governor: waited.append(threading.current_thread().name))
    result, _ = _read(_context(_source("sqlite", tmp_path), tmp_path, name="whole"))
    assert len(waited) == result.batches > 1
    assert set(waited) == {"headrace-reader"}


def test_under_pressure_a_source_is_asked_for_smaller_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = _source("parquet", tmp_path)
    calm, _ = _read(_context(source, tmp_path, name="calm"))
    monkeypatch.setattr(Governor, "batch_bytes", lambda _: 8 * 1024)
    pressed, _ = _read(_context(source, tmp_path, name="pressed"))
    assert pressed.batches > 4 * calm.batches
    assert pressed.rows_out == calm.rows_out
