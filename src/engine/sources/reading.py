"""The task that reads a range of a source and writes it as chunks (in the cage).

Which range, and what is committed, is for ``stages/extract.py``; what the table has already is taken out in
``settling.py``.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from engine import events
from engine.batching import ChunkWriter
from engine.batching.tables import chunk_prefix
from engine.errors import SourceError
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.sources.admission import QUARANTINE_SCHEMA, Admission, table_schema
from engine.sources.ahead import read_ahead
from engine.sources.check import open_feed
from engine.sources.contracts import CHANGES, Contract, renewed
from engine.stage import ChildContext

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

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    schema = table_schema(spec, what, contract.stored)
    with open_feed(spec, what, types=contract.stored) as source:
        bounds = task.inputs["range"]
        _require_same(contract, source.schemas(bounds))
        good = ChunkWriter(table.path, prefix=chunk_prefix(n, what), schema=schema, on_chunk=on_chunk)
        bad = ChunkWriter(quarantine.path, prefix=chunk_prefix(n, what), schema=QUARANTINE_SCHEMA)
        rows_in = batches = 0
        with good, bad:
            stream = source.read(bounds, schema=contract.stored, batch_bytes=scope.budget.batch_bytes)
            for batch in read_ahead(stream, waiting=_WAITING):
                scope.governor.wait()
                rows = batch.rows.num_rows + len(batch.rejected)
                rows_in, batches = rows_in + rows, batches + 1
                kept, rejected = admission.split(batch)
                good.write(kept)
                bad.write(rejected)
                scope.batch_done(rows, batch.rows.nbytes)
                scope.progress(rows_in, rows_in, "rows")
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
            **admission.hours.to_json(),
        },
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in good.chunks),
        rows_quarantined=sum(ref.rows for ref in bad.chunks),
        batches=batches,
    )


def _require_same(contract: Contract, found: Sequence[tuple[str, pa.Schema]]) -> None:
    """Raise when the source has changed since the plan was made: the next run compares it anew."""
    after, differences = renewed(contract, found, key=contract.key, cursor=contract.cursor, allow=CHANGES)
    if differences and after.stored != contract.stored:
        names = ", ".join(sorted({one.column for one in differences}))
        raise SourceError(f"the source's columns changed while it was being read: {names}", hint="run again")
