"""Values as Python has them, for rows that are set apart. What is rejected, and why, is in the tests of the sources."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from typing import Any

import pyarrow as pa
import pytest

from engine.sources.casting import cast_values, python_values, reject
from engine.sources.dialects import STAMP

NANOSECONDS = 1_700_000_000_123_456_789
MOMENT = datetime(2023, 11, 14, 22, 13, 20, 123456)


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (pa.timestamp("ns"), NANOSECONDS, MOMENT),
        (pa.timestamp("ns", "UTC"), NANOSECONDS, MOMENT.replace(tzinfo=UTC)),
        (pa.timestamp("ns"), -1, datetime(1969, 12, 31, 23, 59, 59, 999_999)),
        (pa.time64("ns"), 3_600_000_001_999, time(1, 0, 0, 1)),
        (pa.duration("ns"), 5_999, timedelta(microseconds=5)),
        (pa.list_(pa.timestamp("ns")), [NANOSECONDS, None], [MOMENT, None]),
        (pa.large_list(pa.struct([("at", pa.timestamp("ns"))])), [{"at": NANOSECONDS}], [{"at": MOMENT}]),
        (pa.map_(pa.string(), pa.timestamp("ns")), [("a", NANOSECONDS)], [("a", MOMENT)]),
        (pa.timestamp("us"), 1, datetime(1970, 1, 1, 0, 0, 0, 1)),
        (pa.string(), "text", "text"),
    ],
    ids=str,
)
def test_times_finer_than_microseconds_are_cut_off(kind: pa.DataType, value: Any, expected: Any) -> None:
    found = python_values(pa.array([value, None], kind))
    assert found == [expected, None]
    assert type(found[0]) is type(expected)  # not what pandas makes of it, where it is installed


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_a_time_of_a_table_is_rounded_down_before_1970_too(zone: str | None) -> None:
    values = pa.array([-1_001, -1_000, -1, None, 0, 1_999], pa.timestamp("ns", zone))
    found = cast_values(values, kind=STAMP)
    assert found.type == STAMP
    assert found.cast(pa.int64()).to_pylist() == [-2, -1, -1, None, 0, 1]


def test_a_row_with_such_times_can_be_rejected() -> None:
    rows = pa.record_batch(
        {
            "id": pa.array([NANOSECONDS], pa.timestamp("ns")),
            "at": pa.array([NANOSECONDS], pa.timestamp("ns", "UTC")),
            "text": ["no number"],
        }
    )
    rejected = reject(rows, 0, "text", "it is no int64", key="id", cursor="at")
    assert (rejected.key, rejected.cursor, rejected.value) == (str(MOMENT), MOMENT.replace(tzinfo=UTC), "no number")
    assert rejected.row == {"id": str(MOMENT), "at": "2023-11-14 22:13:20.123456+00:00", "text": "no number"}
