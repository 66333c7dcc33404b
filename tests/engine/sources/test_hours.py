"""Counts by hour of event time, whatever the batches."""

from __future__ import annotations

import json
from collections import Counter

import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources.hours import Hours, hours_with, hours_without

HOUR = 3_600_000_000
TIMES = st.lists(st.none() | st.integers(-50 * HOUR, 50 * HOUR) | st.integers(-(2**55), 2**55), max_size=40)


def _times(values: list[int | None]) -> pa.Array:
    return pa.array(values, pa.int64()).cast(pa.timestamp("us", tz="UTC"))


@settings(deadline=None)
@given(st.lists(TIMES, max_size=8), st.integers(0, 8), st.sets(st.integers(0, 7)))
def test_every_row_with_a_time_is_counted_once_also_over_a_checkpoint(
    batches: list[list[int | None]], at: int, looks: set[int]
) -> None:
    hours = Hours()
    for number, batch in enumerate(batches):
        if number == at:
            hours = Hours.from_json(json.loads(json.dumps(hours.to_json())))
        hours.add(_times(batch))
        if number in looks:  # what is pending is merged
            hours.by_hour()
    known = [value for batch in batches for value in batch if value is not None]
    counted = Counter(value // HOUR for value in known)
    assert hours.by_hour() == {str(hour): count for hour, count in sorted(counted.items())}
    assert hours.extent == (min(known, default=None), max(known, default=None))


def test_hours_of_many_runs_that_come_in_any_order_are_all_there() -> None:
    years = [*range(10), 4, 11, 10, 0]
    hours = Hours()
    for year in years:
        hours.add(_times([(year * 8_766 + hour) * HOUR for hour in range(9_000)]))
    counted = Counter(year * 8_766 + hour for year in years for hour in range(9_000))
    assert hours.by_hour() == {str(hour): count for hour, count in sorted(counted.items())}
    assert Hours.from_json(hours.to_json()).by_hour() == hours.by_hour()


def test_times_of_any_year_that_64_bits_hold_are_counted_in_their_hour() -> None:
    far = [2**63 - 1, -(2**63) + HOUR, 0]
    hours = Hours()
    hours.add(_times(far))
    counted = {"-2562047788": 1, "0": 1, "2562047788": 1}
    assert hours.by_hour() == counted
    assert Hours.from_json(json.loads(json.dumps(hours.to_json()))).by_hour() == counted


def test_a_checkpoint_of_decades_is_small() -> None:
    hours = Hours()
    for year in range(40):
        hours.add(_times([(year * 8_766 + hour) * HOUR for hour in range(8_766)]))
    assert len(json.dumps(hours.to_json())) < 60_000
    assert len(hours.by_hour()) == 40 * 8_766


def test_counts_are_added_and_taken_away() -> None:
    assert hours_without({"1": 3, "2": 1}, {"2": 1, "3": 4}) == {"1": 3}
    assert hours_with({"1": 3}, {"1": 1, "2": 2}) == {"1": 4, "2": 2}
