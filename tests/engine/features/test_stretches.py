"""Stretches make up their span, have the rows that they say, and no more than are asked for, however rows crowd."""

from __future__ import annotations

import itertools
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.batching import Chunk, ChunkWriter
from engine.features import stretches as module
from engine.features.spans import Span
from engine.features.stretches import stretches

DAY = 86_400_000_000


def _chunk(directory: Path, times: list[int]) -> Chunk:
    rows = pa.record_batch({"at": pa.array(times, pa.timestamp("us", "UTC"))})
    with ChunkWriter(directory, prefix="00000001-raw", schema=rows.schema) as writer:
        writer.write(rows)
    [ref] = writer.chunks
    return Chunk(directory / ref.path, ref.path, 1, ref.rows, ref.bytes)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-DAY, 10 * DAY), st.integers(1, 20), st.sampled_from([0, 1, 1_000])), max_size=9),
    st.integers(1, 12),
    st.sampled_from([2, 5, 65_536]),
)
def test_stretches_of_crowds(crowds: list[tuple[int, int, int]], rows: int, bins: int) -> None:
    """Crowds are given as (first time, rows, microseconds from one row to the next)."""
    times = [first + step * number for first, count, step in crowds for number in range(count)]
    low, high = min(times, default=0), max(times, default=0) + 1
    with TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BINS", bins)
        chunks = [_chunk(Path(directory), times)] if times else []
        found = list(stretches(chunks, columns=["at"], time="at", span=Span(low, high), rows=rows))
    assert (found[0].low, found[-1].high) == (low, high)
    assert all(a.high == b.low for a, b in itertools.pairwise(found))
    for part in found:
        inside = [time for time in times if part.low <= time < part.high]
        assert part.rows == len(inside)
        assert part.rows <= rows or len(set(inside)) == 1


def test_a_part_with_a_thousandth_of_the_rows_is_not_looked_at_again(tmp_path: Path) -> None:
    every_other = list(range(0, 200_000, 2))
    parts = list(stretches([_chunk(tmp_path, every_other)], columns=["at"], time="at", span=Span(0, 200_000), rows=1))
    assert {part.rows for part in parts} == {2}  # of four microseconds
    assert sum(part.rows for part in parts) == len(every_other)
