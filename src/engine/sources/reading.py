"""The task that reads a range of a source and writes it as chunks (in the cage).

Which range, and what is committed, is for ``stages/extract.py``; what the table has already is taken out in
``settling.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine import events
from engine.batching import ChunkWriter
from engine.batching.chunks import CHUNK_ROWS, most_chunk_rows
from engine.batching.tables import chunk_prefix
from engine.errors import SourceError
from engine.layout import chunk_writer
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.sources.admission import QUARANTINE_SCHEMA, Admission, table_schema
from engine.sources.ahead import read_ahead
from engine.sources.check import open_feed
from engine.sources.contracts import CHANGES, Contract, renewed
from engine.sources.protocol import Batch, Source
from engine.stage import ChildContext

_CHUNK_ROWS = CHUNK_ROWS
_WAITING = 3  # batches between the reader and the writer, who comes to rest while it writes a row group of some

COPIES = 5 + _WAITING
"""Of a batch: the driver's, those that wait (one before it is checked), the checked one, the one that is written."""


def run(task: Task, scope: Scope) -> TaskResult:
    """Read one range of the source; write the rows that fit, and those that do not to ``quarantine``."""
    context = ChildContext.of(scope.context)
    spec, what, n = context.spec, str(task.inputs["what"]), int(task.inputs["n"])
    contract = Contract.from_json(task.inputs["contract"])
    admission = Admission(spec, what=what, n=n, as_of=task.inputs["until"])
    table, quarantine = context.workspace.table(what), context.workspace.table("quarantine")
    begun = _Begun.of(task, scope.resume)
    if scope.resume is not None:
        admission.go_on(scope.resume["admission"])

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    schema = table_schema(spec, what, contract.stored)
    prefix = chunk_prefix(n, what)
    chunk_rows = min(_CHUNK_ROWS, most_chunk_rows(schema))
    with open_feed(spec, what, types=contract.stored) as source:
        _require_same(contract, source.schemas(task.inputs["range"]))
        good = chunk_writer(spec, table, prefix=prefix, schema=schema, on_chunk=on_chunk, written=begun.chunks)
        bad = ChunkWriter(quarantine.path, prefix=prefix, schema=QUARANTINE_SCHEMA, written=begun.quarantine)
        rows_in, batches = begun.rows_in, begun.batches
        marked = _marked(source, begun.range, schema=contract.stored, scope=scope)
        with good, bad, closing(read_ahead(marked, waiting=_WAITING)) as ahead:
            for batch, mark in ahead:
                rows = batch.rows.num_rows + len(batch.rejected)
                rows_in, batches = rows_in + rows, batches + 1
                kept, rejected = admission.split(batch)
                good.write(kept)
                bad.write(rejected)
                scope.batch_done(rows, batch.rows.nbytes)
                scope.governor.passed(batch.rows.nbytes)
                scope.progress(rows_in, rows_in, "rows")
                if good.open_rows + kept.num_rows > chunk_rows:  # the next batch may not go into it any more
                    good.end_chunk()
                    bad.end_chunk()
                    now = _Begun(source.rest(begun.range, mark), good.chunks, bad.chunks, rows_in, batches)
                    scope.checkpoint({**now.to_json(), "admission": admission.to_json()})
            admission.require_few_rejected()
        ending = source.ending()
    return TaskResult(
        task=task.name,
        outputs={
            "chunks": [to_json(ref) for ref in good.chunks],
            "quarantine": [to_json(ref) for ref in bad.chunks],
            "position": ending.position,
            "more": ending.more,
            "files": [file.to_json() for file in ending.files],
            "counts": dict(ending.counts),
            "newest": admission.newest,
            "contract": contract.to_json(),
            "hours": admission.hours.to_json(),
        },
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in good.chunks),
        rows_quarantined=sum(ref.rows for ref in bad.chunks),
        batches=batches,
    )


@dataclass(frozen=True)
class _Begun:
    """What is left to read of a range, and what was written of it."""

    range: Mapping[str, Any]
    chunks: Sequence[ChunkRef]
    quarantine: Sequence[ChunkRef]
    rows_in: int
    batches: int

    @classmethod
    def of(cls, task: Task, checkpoint: Mapping[str, Any] | None) -> _Begun:
        """Return where a task begins: with all of its range, or where another try of it was stopped."""
        if checkpoint is None:
            return cls(task.inputs["range"], (), (), 0, 0)
        chunks, quarantine = (
            [ChunkRef.from_json(ref) for ref in checkpoint[name]] for name in ("chunks", "quarantine")
        )
        return cls(checkpoint["range"], chunks, quarantine, int(checkpoint["rows_in"]), int(checkpoint["batches"]))

    def to_json(self) -> dict[str, Any]:
        """Return what ``of`` takes."""
        return {
            "range": self.range,
            "chunks": [to_json(ref) for ref in self.chunks],
            "quarantine": [to_json(ref) for ref in self.quarantine],
            "rows_in": self.rows_in,
            "batches": self.batches,
        }


def _marked(
    source: Source, bounds: Mapping[str, Any], *, schema: pa.Schema, scope: Scope
) -> Iterator[tuple[Batch, Mapping[str, Any]]]:
    """Yield batches with the mark behind each, and say what comes next: it may be what no budget holds.

    Under pressure they are smaller, and the next one is not read before those that wait are written.
    """
    _say_place(source, scope)
    for batch in source.read(bounds, schema=schema, batch_bytes=scope.governor.batch_bytes):
        _say_place(source, scope)
        yield batch, source.mark()
        scope.governor.wait()


def _say_place(source: Source, scope: Scope) -> None:
    at = source.place()
    scope.at(at.text, column_bytes=at.column_bytes)


def _require_same(contract: Contract, found: Sequence[tuple[str, pa.Schema]]) -> None:
    """Raise when the source has changed since the plan was made: the next run compares it anew."""
    after, differences = renewed(contract, found, key=contract.key, cursor=contract.cursor, allow=CHANGES)
    if differences and after.stored != contract.stored:
        names = ", ".join(sorted({one.column for one in differences}))
        raise SourceError(f"the source's columns changed while it was being read: {names}", hint="run again")
