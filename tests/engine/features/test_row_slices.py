"""Rows of a span: the newest versions, however many older ones there are; in order, so many at a time, and no part
much larger than a batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import events
from engine.batching import Chunk
from engine.features.row_slices import NewestRows, newest_rows
from engine.layout import chunk_writer
from engine.memory.budget import Budget
from engine.memory.governor import Governor
from engine.memory.scope import Scope
from tests.shop import Shop

TEXTS = ["a" * 11] * 503 + ["b" * 70_001] * 23 + ["c" * 300_007] + ["a" * 11] * 503


@pytest.mark.parametrize("backwards", [False, True])
def test_large_rows_come_few_at_a_time_and_small_ones_many(backwards: bool) -> None:
    table = pa.table({"number": range(len(TEXTS)), "text": TEXTS})
    order = pl.Series(list(reversed(range(len(TEXTS)))), dtype=pl.UInt32) if backwards else None
    parts = list(NewestRows(table, order, len(TEXTS), 1).in_order(600, most_bytes=200_003))
    numbers = [number for part in parts for number in part.column("number").to_pylist()]
    assert numbers == (list(reversed(range(len(TEXTS)))) if backwards else list(range(len(TEXTS))))
    assert all(part.nbytes <= 220_000 or part.num_rows == 1 for part in parts)
    assert max(part.num_rows for part in parts) > 400


def test_rows_without_long_texts_come_as_many_as_are_asked_for() -> None:
    table = pa.table({"number": range(1_009), "text": [None, *["t" * 50] * 1_008]})
    parts = list(NewestRows(table, None, 1_009, 1).in_order(503, most_bytes=100_003))
    assert [part.num_rows for part in parts] == [503, 503, 3]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.integers(0, 11), st.integers(0, 4)), min_size=1, max_size=9), max_size=9),
    st.integers(0, 20),
    st.sampled_from([1, 100, 10_000]),
)
def test_newest_versions_are_left_whatever_was_expected(
    commits: list[list[tuple[int, int]]], expected: int, batch_bytes: int
) -> None:
    """Each commit has rows as (id, minute of the event); a later row of the same id is a newer version."""
    with TemporaryDirectory() as directory:
        shop, newest = Shop(Path(directory)), dict[int, tuple[int, int, int]]()
        chunks, version, total = [], 0, 0
        for n, commit in enumerate(commits, 1):
            rows = []
            for number, minute in dict(commit).items():  # a commit holds a version of each
                version += 1
                rows.append((number, minute, version))
                newest[number] = (minute, number, version)
            chunks.append(_chunk(shop, n, rows))
            total += len(rows)
        budget, seen = Budget(2**30, batch_bytes=batch_bytes), list[events.Event]()
        governor = Governor(budget, reserved_bytes=0)
        scope = Scope("prepare", "windows", {}, budget, governor, seen.append, time.monotonic())
        found = newest_rows(chunks, _RAW, shop.spec, span=(None, None), rows=expected, scope=scope)
    columns = found.columns(["placed_at", "id", "updated_at"])
    values = [column.cast(pa.int64()).to_pylist() for column in columns.columns]
    assert list(zip(*values, strict=True)) == sorted(newest.values())
    assert (found.rows_in, found.batches) == (total, len(seen))
    assert found.table.num_rows <= 1.25 * max(expected, len(newest))


_RAW = pa.schema({"id": pa.int64(), "placed_at": pa.timestamp("us", "UTC"), "updated_at": pa.timestamp("us", "UTC")})


def _chunk(shop: Shop, n: int, rows: Sequence[tuple[int, int, int]]) -> Chunk:
    raw = shop.workspace.table("raw")
    columns = [pa.array(values, pa.int64()) for values in zip(*rows, strict=True)]
    batch = pa.record_batch([c.cast(f.type) for c, f in zip(columns, _RAW, strict=True)], schema=_RAW)
    with chunk_writer(shop.spec, raw, prefix=f"{n:08d}-raw", schema=_RAW) as writer:
        writer.write(batch)
    [ref] = writer.chunks
    return Chunk(raw.path / ref.path, ref.path, n, ref.rows, ref.bytes)
