"""Which chunks say that their rows lie in strict order, and which chunks follow one another."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batching import Chunk, ChunkWriter, Table
from engine.batching.row_order import in_order
from engine.batching.tables import chunk_prefix

ROWS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=6)
"""Seconds and keys of a chunk."""


def _chunks(directory: Path, chunks: Sequence[Sequence[tuple[Any, Any]]], *, batch_rows: int = 2) -> list[Chunk]:
    """Return chunks with these seconds and keys, written in small batches and committed to a table."""
    table = Table(directory, name="raw")
    for n, rows in enumerate(chunks, 1):
        start = datetime(2026, 1, 1, tzinfo=UTC)
        times = [None if second is None else start + timedelta(seconds=second) for second, _ in rows]
        whole = pa.record_batch(
            {"at": pa.array(times, pa.timestamp("us", "UTC")), "other": [0] * len(rows), "id": [key for _, key in rows]}
        )
        prefix = chunk_prefix(n, "raw")
        order = ("at", "id")
        with ChunkWriter(table.path, prefix=prefix, schema=whole.schema, order=order, bounds_of=order) as writer:
            for at in range(0, len(rows), batch_rows):
                writer.write(whole.slice(at, batch_rows))
        table.commit(app="extract:raw", n=n, schema=whole.schema, add=writer.chunks)
    return table.chunks()


@settings(max_examples=60, deadline=None)
@given(chunks=st.lists(ROWS, min_size=1, max_size=3), batch_rows=st.integers(1, 4))
def test_chunks_are_in_order_if_their_rows_are(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[list[tuple[int, int]]], batch_rows: int
) -> None:
    directory = tmp_path_factory.mktemp("order")
    found = in_order(_chunks(directory, chunks, batch_rows=batch_rows), time="at", key="id")
    sequence = [row for chunk in sorted(chunks, key=min) for row in chunk]
    strict = all(a[0] <= b[0] and a[1] < b[1] for a, b in itertools.pairwise(sequence))
    assert (found is not None) == strict
    if found is not None:
        assert [chunk.n for chunk in found] == [1 + chunks.index(chunk) for chunk in sorted(chunks, key=min)]


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 1), (None, 2), (3, 3)],
        [(1, 1), (2, None), (3, 3)],
        [(1, "b"), (2, "a")],
        [(1, 1.0), (2, 2.0)],  # of a float, NaN has no place
    ],
)
def test_rows_without_a_place_are_in_no_order(tmp_path: Path, rows: list[tuple[Any, Any]]) -> None:
    assert in_order(_chunks(tmp_path, [rows]), time="at", key="id") is None


def test_text_is_compared_as_it_is_spelled(tmp_path: Path) -> None:
    chunks = _chunks(tmp_path, [[(3, "b"), (3, "c")], [(1, "A"), (2, "a")]])
    assert [chunk.n for chunk in in_order(chunks, time="at", key="id") or ()] == [2, 1]


def test_what_nobody_watched_is_in_no_order(tmp_path: Path) -> None:
    chunks = _chunks(tmp_path, [[(1, 1), (2, 2)]])
    assert in_order(chunks, time="at", key="id") == chunks
    assert in_order(chunks, time="at", key="other") is None
