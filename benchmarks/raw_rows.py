"""Writes generated rows to ``raw``, as extraction leaves them: chunks, and a journal entry for each commit."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from engine.spec import PipelineSpec

if TYPE_CHECKING:
    import pyarrow as pa

_PART_ROWS = 65_536  # that are written at once
_MICROSECONDS_OF_HOUR = 3_600_000_000


def generate(
    spec: PipelineSpec,
    home: Path,
    block: Callable[[int, int], pa.RecordBatch],
    *,
    rows: int,
    begin: int = 0,
    commit_rows: int,
    block_rows: int,
) -> None:
    """Commit rows ``begin`` to ``rows`` to ``raw``; nothing is done where it has so many already.

    Parameters
    ----------
    block
        Called as ``block(start, rows)``; returns the rows from ``start`` on, in order of event time, which none lacks.
    begin
        How many rows, from the first on, are there already.
    commit_rows, block_rows
        How many rows a commit and a block have: a multiple, and blocks are always asked for at the same places.
    """
    from engine.batching import Workspace
    from engine.batching.tables import chunk_prefix
    from engine.layout import chunk_writer

    workspace = Workspace(home / "workspace")
    workspace.prepare()
    raw, started = workspace.table("raw"), time.perf_counter()
    if raw.rows() == rows:
        return
    n = raw.transaction("extract:raw")
    for first in range(begin, rows, commit_rows):
        n, end, memory, hours, moments = n + 1, min(first + commit_rows, rows), 0, Counter[str](), list[int]()
        with ExitStack() as stack:
            writer = None
            for at in range(first, end, block_rows):
                batch = block(at, min(block_rows, end - at))
                if writer is None:
                    prefix = chunk_prefix(n, "raw")
                    writer = stack.enter_context(chunk_writer(spec, raw, prefix=prefix, schema=batch.schema))
                memory += batch.nbytes
                hours.update(_hours(batch.column(spec.event_time)))
                moments += _extent(batch.column(spec.event_time))
                for part in range(0, batch.num_rows, _PART_ROWS):
                    writer.write(batch.slice(part, _PART_ROWS))
        if writer is None:
            raise ValueError(f"{block_rows} rows of a block make no commit")
        record = {"rows": end - first, "memory_bytes": memory, "hours": dict(hours)}
        record |= {"event_minimum": min(moments), "event_maximum": max(moments)}
        workspace.journal.write_commit("extract:raw", n, record)
        raw.commit(app="extract:raw", n=n, schema=batch.schema, add=writer.chunks)
    print(f"{rows - begin:,} rows written in {time.perf_counter() - started:.0f} s", flush=True)


def _hours(times: pa.Array) -> dict[str, int]:
    """Return how many rows each hour since 1970 has."""
    import numpy as np

    values, counts = np.unique(times.cast("int64").to_numpy() // _MICROSECONDS_OF_HOUR, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def _extent(times: pa.Array) -> list[int]:
    return [times[at].cast("int64").as_py() for at in (0, len(times) - 1)]
