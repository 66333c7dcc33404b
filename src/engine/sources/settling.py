"""The task that makes a slice fit what the table has (in the cage): versions that are there already are taken out, rows
of files that were replaced are taken from older chunks, and columns that became wider are rewritten.

Reading the slice is ``reading.py``, which rows are there already says ``known_rows.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.batching import Chunk, ChunkWriter, Table, read_batches
from engine.batching.tables import chunk_n, chunk_prefix
from engine.layout import chunk_writer
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.sources.admission import QUARANTINE_SCHEMA, table_schema
from engine.sources.casting import cast_values
from engine.sources.contracts import Contract
from engine.sources.hours import Hours
from engine.sources.known_rows import Joins, KnownRows, Places
from engine.spec import FILE, PipelineSpec
from engine.stage import ChildContext
from engine.units import parse_time


def run(task: Task, scope: Scope) -> TaskResult:
    """Settle one slice; see ``stages/extract.py`` for its inputs."""
    context = ChildContext.of(scope.context)
    spec, what, n = context.spec, str(task.inputs["what"]), int(task.inputs["n"])
    contract = Contract.from_json(task.inputs["contract"])
    schema = table_schema(spec, what, contract.stored)
    table, quarantine = context.workspace.table(what), context.workspace.table("quarantine")
    key, cursor = (spec.source.key, spec.source.cursor) if what == "raw" else ("key", "labelled_at")
    new = [ChunkRef.from_json(value) for value in task.inputs["chunks"]]
    live = [chunk for chunk in table.chunks() if chunk.n < n]
    rule = spec.source.on_conflict if what == "raw" else "newest"  # corrections of labels are further records
    scratch = context.workspace.scratch / f"duckdb-{scope.task}"
    done = _Done() if scope.resume is None else _Done.from_json(scope.resume)

    def on_chunk(ref: ChunkRef) -> None:
        done.settled.append(ref)
        scope.checkpoint(done.to_json())  # it ends with the last batch that is done

    if done.quarantine is None:
        with Joins(scratch, limit_bytes=int(task.inputs["join_bytes"]), threads=scope.budget.threads) as joins:
            known = KnownRows(joins, table, new=new, live=live, key=key, cursor=cursor, gone=task.inputs["replaces"])
            drop = known.places(rule, identify=bool(task.inputs["identify"]))
            prefix = chunk_prefix(n, f"{what}.settled")
            with chunk_writer(
                spec, table, prefix=prefix, schema=schema, on_chunk=on_chunk, written=done.settled
            ) as writer:
                event_time = spec.event_time if what == "raw" else None
                _without(table, new, drop, writer, done=done, event_time=event_time, scope=scope)
            done.quarantine = _quarantine(joins, quarantine, task.inputs, what=what, n=n, scope=scope)
        scope.checkpoint(done.to_json())
    _rewrite(table, live, schema=schema, n=n, files=task.inputs["replaces"], spec=spec, done=done, scope=scope)
    chunks = [*done.kept, *done.settled]
    bad, gone = done.quarantine
    return TaskResult(
        task=task.name,
        outputs={
            "chunks": [to_json(ref) for ref in [*chunks, *done.rewritten]],
            "remove": done.replaced,
            "retyped": table.is_retyped_by(schema),
            "dropped_rows": sum(ref.rows for ref in new) - sum(ref.rows for ref in chunks),
            "dropped": done.dropped.to_json(),
            "removed": done.removed.to_json(),
            "quarantine": [to_json(ref) for ref in bad],
            "quarantine_remove": gone,
        },
        rows_out=sum(ref.rows for ref in chunks),
        rows_quarantined=sum(ref.rows for ref in bad if chunk_n(ref.path) == n),
    )


@dataclass
class _Done:
    """How far settling is, and what it has written: where another try of it goes on."""

    number: int = 0  # of the new chunk
    row: int = 0  # of those that are looked at of it
    kept: list[ChunkRef] = field(default_factory=list)  # new chunks that nothing is left out of
    settled: list[ChunkRef] = field(default_factory=list)  # what the others are written as
    dropped: Hours = field(default_factory=Hours)
    quarantine: tuple[list[ChunkRef], list[str]] | None = None  # what is there after it, and what goes; None: not yet
    replaced: list[str] = field(default_factory=list)  # older chunks
    rewritten: list[ChunkRef] = field(default_factory=list)
    removed: Hours = field(default_factory=Hours)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> _Done:
        bad = value["quarantine"]
        return cls(
            number=int(value["number"]),
            row=int(value["row"]),
            kept=_refs(value["kept"]),
            settled=_refs(value["settled"]),
            dropped=Hours.from_json(value["dropped"]),
            quarantine=None if bad is None else (_refs(bad[0]), list(bad[1])),
            replaced=list(value["replaced"]),
            rewritten=_refs(value["rewritten"]),
            removed=Hours.from_json(value["removed"]),
        )

    def to_json(self) -> dict[str, Any]:
        lists = ("kept", "settled", "rewritten")
        bad = self.quarantine
        return {
            "number": self.number,
            "row": self.row,
            "replaced": self.replaced,
            **{name: [to_json(ref) for ref in getattr(self, name)] for name in lists},
            "dropped": self.dropped.to_json(),
            "removed": self.removed.to_json(),
            "quarantine": None if bad is None else [[to_json(ref) for ref in bad[0]], bad[1]],
        }


def _refs(values: Sequence[Mapping[str, Any]]) -> list[ChunkRef]:
    return [ChunkRef.from_json(value) for value in values]


def _without(
    table: Table,
    new: Sequence[ChunkRef],
    drop: Places,
    writer: ChunkWriter,
    *,
    done: _Done,
    event_time: str | None,
    scope: Scope,
) -> None:
    """Keep the slice's chunks that have no rows to leave out; write the others again without them."""
    for number, ref in enumerate(new):
        places = drop.of(Path(ref.path).name)
        if number < done.number:
            continue
        if not len(places):
            done.kept.append(ref)
            done.number, done.row = number + 1, 0
            continue
        start = done.row if number == done.number else 0
        for batch in read_batches([table.path / ref.path], batch_bytes=scope.governor.batch_bytes, after_rows=start):
            first, last = np.searchsorted(places, (start, start + batch.num_rows))
            mask = np.ones(batch.num_rows, dtype=bool)
            mask[places[first:last] - start] = False
            keep, start = pa.array(mask), start + batch.num_rows
            writer.write(batch.filter(keep))
            if event_time is not None:
                done.dropped.add(batch.filter(pc.invert(keep)).column(event_time))
            done.number, done.row = number, start
            scope.batch_done(batch.num_rows, batch.nbytes)


def _rewrite(
    table: Table,
    live: Sequence[Chunk],
    *,
    schema: pa.Schema,
    n: int,
    files: Sequence[str],
    spec: PipelineSpec,
    done: _Done,
    scope: Scope,
) -> None:
    """Write older chunks again without the rows of ``files``, or with the table's new types.

    A rewritten chunk keeps its n, so that a plan which reads the table up to an earlier n still finds the rows.
    """
    retyped, gone = table.is_retyped_by(schema), pa.array(files, pa.string())
    for chunk in live:
        if chunk.name in done.replaced or not (retyped or any(_may_hold(chunk, file) for file in files)):
            continue
        kept = pa.schema([schema.field(name) for name in pq.read_schema(chunk.path).names if name in schema.names])
        prefix = chunk_prefix(chunk.n, f"{table.name}.rewritten.{n}.{len(done.replaced) + 1}")
        with chunk_writer(spec, table, prefix=prefix, schema=kept) as writer:
            for batch in read_batches([chunk.path], columns=kept.names, batch_bytes=scope.governor.batch_bytes):
                scope.governor.wait()
                if files and FILE in kept.names:
                    of_gone = pc.is_in(batch.column(FILE), value_set=gone)
                    if table.name == "raw":
                        done.removed.add(batch.filter(of_gone).column(spec.event_time))
                    batch = batch.filter(pc.invert(of_gone))
                columns = [cast_values(batch.column(field.name), kind=field.type) for field in kept]
                writer.write(pa.RecordBatch.from_arrays(columns, schema=kept))
                scope.batch_done(batch.num_rows, batch.nbytes)
        done.rewritten += writer.chunks
        done.replaced.append(chunk.name)
        scope.checkpoint(done.to_json())


def _may_hold(chunk: Chunk, file: str) -> bool:
    low, high = chunk.minimum.get(FILE), chunk.maximum.get(FILE)
    return low is None or high is None or low <= file <= high


def _quarantine(
    joins: Joins, quarantine: Table, inputs: Mapping[str, Any], *, what: str, n: int, scope: Scope
) -> tuple[list[ChunkRef], list[str]]:
    """Return the slice's quarantine without rows that are there already, and the older chunks that it replaces.

    Rows are read again on purpose when a window is (``again``: a backfill or replay): what was in quarantine of it is
    then replaced by what is still wrong.
    """
    new = [ChunkRef.from_json(value) for value in inputs["quarantine"]]
    live = [chunk for chunk in quarantine.chunks() if chunk.n < n]
    written: list[ChunkRef] = []
    replaced: list[str] = []
    if inputs["again"] is not None:
        low, high = (pa.scalar(parse_time(value), pa.timestamp("us", tz="UTC")) for value in inputs["again"])
        for at, chunk in enumerate(live):
            prefix = chunk_prefix(chunk.n, f"{what}.rewritten.{n}.{at}")
            taken = 0
            with ChunkWriter(quarantine.path, prefix=prefix, schema=QUARANTINE_SCHEMA) as writer:
                for batch in read_batches([chunk.path], batch_bytes=scope.governor.batch_bytes):
                    cursor = batch.column("cursor")
                    inside = pc.and_(pc.greater_equal(cursor, low), pc.less_equal(cursor, high))
                    mine = pc.and_(pc.equal(batch.column("table"), what), pc.fill_null(inside, False))
                    taken += pc.sum(mine).as_py() or 0
                    writer.write(batch.filter(pc.invert(mine)))
            if taken:
                written += writer.chunks
                replaced.append(chunk.name)
        return [*new, *written], replaced
    if not new or not live:
        return new, []
    sql = (
        "SELECT n.filename AS f, n.file_row_number AS r FROM "
        "read_parquet($new, filename = true, file_row_number = true) n "
        'WHERE EXISTS (SELECT 1 FROM read_parquet($old) o WHERE o."table" = n."table" '
        "AND o.key IS NOT DISTINCT FROM n.key AND o.cursor IS NOT DISTINCT FROM n.cursor "
        "AND o.place IS NOT DISTINCT FROM n.place AND o.reason = n.reason)"
    )
    values = {
        "new": [str(quarantine.path / ref.path) for ref in new],
        "old": [str(chunk.path) for chunk in live],
    }
    drop = Places()
    for batch in joins.batches(sql, values):
        drop.add(batch)
    prefix, settled = chunk_prefix(n, f"{what}.settled"), _Done()
    with ChunkWriter(quarantine.path, prefix=prefix, schema=QUARANTINE_SCHEMA) as writer:
        _without(quarantine, new, drop, writer, done=settled, event_time=None, scope=scope)
    return [*settled.kept, *writer.chunks], []
