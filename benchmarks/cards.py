"""Payments by card, a quarter of them of one: the rows and the pipeline that the benchmarks of windows are about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import raw_rows
from engine.spec import PipelineSpec
from engine.units import microseconds

if TYPE_CHECKING:
    import pyarrow as pa

ALLOWED_BYTES = 2**30
THREADS = 2
DAYS = 24
HOT = 7
"""The card of every fourth row."""

LENGTHS = {"1d": timedelta(days=1), "7d": timedelta(days=7)}
START = datetime(2025, 1, 1, tzinfo=UTC)
BLOCK_ROWS = 500_000
COMMIT_ROWS = 2_000_000
_CARDS = 1_000_000


def spec_of(
    home: Path, column: str, *, lengths: Sequence[str] = tuple(LENGTHS), statistics: Sequence[str] = ("count", "mean")
) -> PipelineSpec:
    """Return the pipeline over the rows under ``home``: one window by card over ``column``."""
    window: dict[str, Any] = {"over": "events", "keys": ["card"], "lengths": lengths, "statistics": statistics}
    return PipelineSpec.model_validate(
        {
            "pipeline": "cards",
            "workspace": str(home / "workspace"),
            "source": {"uri": "postgresql://nowhere", "table": "payments", "key": "id", "cursor": "at"},
            "event_time": "at",
            "labels": {"table": "disputes", "key": "id", "value": "lost", "labelled_at": "closed_at"},
            "features": {"windows": [{**window, "column": column}]},
            "resources": {"memory": ALLOWED_BYTES, "threads": THREADS},
        }
    )


def generate(home: Path, *, rows: int, begin: int = 0, step: timedelta | None = None) -> None:
    """Commit rows ``begin`` to ``rows`` to ``raw``, as extraction leaves them, spread evenly over 24 days.

    Parameters
    ----------
    begin
        How many rows, from the first on, are there already.
    step
        Between two rows; default: so that ``rows`` are 24 days.
    """
    micros = microseconds(timedelta(days=DAYS) if step is None else step) // (rows if step is None else 1)

    def block(start: int, size: int) -> pa.RecordBatch:
        return _block(start, size, step=micros)

    spec = spec_of(home, "amount")
    raw_rows.generate(spec, home, block, rows=rows, begin=begin, commit_rows=COMMIT_ROWS, block_rows=BLOCK_ROWS)


def _block(start: int, rows: int, *, step: int) -> pa.RecordBatch:
    """Return rows ``start`` and following: every fourth of the hot card, the others of Zipf's law."""
    import numpy as np
    import pyarrow as pa

    random = np.random.default_rng([11, start])
    ids = np.arange(start, start + rows)
    cards = random.zipf(1.2, rows) % _CARDS + HOT + 1
    cards[ids % 4 == 0] = HOT
    cents = np.round(random.lognormal(8.0, 1.5, rows)).astype(np.int64) + 1
    return pa.record_batch(
        {
            "id": pa.array(ids),
            "at": times_of(ids, step=step),
            "card": pa.array(cards),
            "amount": pa.array(cents / 100.0),
            "cents": pa.array(cents),
        }
    )


def times_of(ids: Any, *, step: int) -> pa.Array:
    """Return the event times of rows by their numbers, ``step`` microseconds from one to the next."""
    import pyarrow as pa

    return pa.array(int(START.timestamp()) * 1_000_000 + ids * step, pa.timestamp("us", tz="UTC"))
