"""The row-wise transform of the flights pipeline: calendar features of the scheduled departure."""

from __future__ import annotations

import polars as pl


def add_calendar(rows: pl.LazyFrame) -> pl.LazyFrame:
    """Return the rows with the local hour and weekday of departure (1 is Monday)."""
    local = pl.col("scheduled_departure").dt.convert_time_zone("America/New_York")
    return rows.with_columns(hour=local.dt.hour(), weekday=local.dt.weekday())
