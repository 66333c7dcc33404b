"""Rows of a span as they are handed on: in order, so many at a time, and no part much larger than a batch."""

from __future__ import annotations

import polars as pl
import pyarrow as pa
import pytest

from engine.features.row_slices import NewestRows

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
