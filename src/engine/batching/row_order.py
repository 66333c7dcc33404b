"""Whether rows lie in strict order of a time and a key, each key once: watched while they are written, said by footers.

To look at rows that are in memory already takes a twentieth of a millisecond for 100,000; while they are prepared, it
took a twentieth of all the time.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.batching.tables import Chunk

_ORDERED_BY = "headrace.ordered_by"
"""Of a chunk's footer: names of the time and the key that its rows lie in order of; without it they may lie anyhow."""


class RowOrder:
    """Watches the batches of one chunk.

    Parameters
    ----------
    time, key
        Names of columns. Keys have to grow with time: then each comes once, which nothing smaller than all keys
        could tell otherwise.
    """

    def __init__(self, *, time: str, key: str) -> None:
        self._time = time
        self._key = key
        self._last: pa.RecordBatch | None = None  # a row
        self._holds = True

    def add(self, batch: pa.RecordBatch) -> None:
        """Look at the next rows."""
        if not self._holds or not batch.num_rows:
            return
        both = batch.select([self._time, self._key])
        if not all(_is_ordered(field.type) for field in both.schema) or any(c.null_count for c in both.columns):
            self._holds = False
            return
        if self._last is not None:
            self._holds = _ascends(self._last, both.slice(0, 1))
        self._holds = self._holds and _ascends(both.slice(0, both.num_rows - 1), both.slice(1))
        self._last = both.slice(both.num_rows - 1)

    def footer(self) -> dict[str, str]:
        """Return what the chunk's footer says of the rows so far."""
        return {_ORDERED_BY: json.dumps([self._time, self._key])} if self._holds else {}


def in_order(chunks: Sequence[Chunk], *, time: str, key: str) -> list[Chunk] | None:
    """Return chunks one after another such that all of their rows lie in strict order, None where that is not known."""
    bounds = [(chunk.minimum.get(name), chunk.maximum.get(name)) for chunk in chunks for name in (time, key)]
    if any(value is None for bound in bounds for value in bound):
        return None
    sequence = sorted(chunks, key=lambda chunk: (chunk.minimum[time], chunk.minimum[key]))
    for before, after in itertools.pairwise(sequence):
        if before.maximum[time] > after.minimum[time] or before.maximum[key] >= after.minimum[key]:
            return None
    return sequence if all(_said_order(chunk.path) == [time, key] for chunk in chunks) else None


def _said_order(path: Path) -> list[str]:
    try:
        footer = pq.read_metadata(path)
    except (OSError, pa.ArrowException):
        return []  # whoever reads its rows says what is wrong with it
    said = (footer.metadata or {}).get(_ORDERED_BY.encode())
    return list(json.loads(said)) if said else []


def _ascends(before: pa.RecordBatch, after: pa.RecordBatch) -> bool:
    times = pc.all(pc.less_equal(before.column(0), after.column(0)), min_count=0)
    return bool(times.as_py() and pc.all(pc.less(before.column(1), after.column(1)), min_count=0).as_py())


def _is_ordered(kind: pa.DataType) -> bool:
    kinds = pa.types
    return bool(
        kinds.is_integer(kind) or kinds.is_temporal(kind) or kinds.is_string(kind) or kinds.is_large_string(kind)
    )
