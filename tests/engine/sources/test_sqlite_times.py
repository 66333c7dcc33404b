"""Times as text and numbers, against Python's own parser."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import SourceError
from engine.sources.sqlite_times import as_time, written_like

TIMES = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1)).map(lambda time: time.replace(tzinfo=UTC))
STYLES: dict[str, Callable[[datetime], str]] = {
    "space": lambda t: t.strftime("%Y-%m-%d %H:%M:%S"),
    "fraction": lambda t: t.strftime("%Y-%m-%d %H:%M:%S.%f"),
    "python": lambda t: t.replace(tzinfo=None).isoformat(),  # with a fraction only where there is one
    "z": lambda t: t.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "z and fraction": lambda t: t.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
    "zone": lambda t: t.astimezone(timezone(timedelta(hours=-3, minutes=-30))).strftime("%Y-%m-%dT%H:%M:%S-03:30"),
}


@pytest.mark.parametrize("style", STYLES)
@given(times=st.lists(TIMES, min_size=1, max_size=5), until=TIMES)
def test_text_compares_with_until_as_its_time_does(style: str, times: list[datetime], until: datetime) -> None:
    written = [STYLES[style](time) for time in times]
    bound = written_like(max(written), until)
    assert isinstance(bound, str)
    for text, time in zip(written, as_time(pa.array(written), column="c").to_pylist(), strict=True):
        assert (text <= bound) == (time <= until)


@pytest.mark.parametrize("units", [1, 1_000, 1_000_000])
@given(time=TIMES, until=TIMES)
def test_numbers_compare_with_until_as_their_time_does(units: int, time: datetime, until: datetime) -> None:
    number = (time - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * units // 1_000_000
    read = as_time(pa.array([number]), column="c")[0].as_py()
    assert abs(read - time) <= timedelta(seconds=1 / units)
    bound = written_like(number, until)
    assert isinstance(bound, int)
    assert (number <= bound) == (read <= until)


def test_nanoseconds_are_rounded_down_before_1970_too() -> None:
    read = as_time(pa.array([-(10**18) - 1, -(10**18), 10**18 + 1, None]), column="c")
    assert read.cast(pa.int64()).to_pylist() == [-(10**15) - 1, -(10**15), 10**15, None]


def test_mixed_notations_of_one_column_are_all_read() -> None:
    texts = ["2020-01-01 10:00:00", "2020-01-01T10:00:00Z", "2020-01-01T12:00:00+02:00", "2020-01-01T10:00", None]
    ten = datetime(2020, 1, 1, 10, tzinfo=UTC)
    assert as_time(pa.array(texts), column="c").to_pylist() == [ten, ten, ten, ten, None]
    texts = ["2020-01-01", "2020-01-01T00:00:00Z"]
    assert as_time(pa.array(texts), column="c").to_pylist() == [datetime(2020, 1, 1, tzinfo=UTC)] * 2


@pytest.mark.parametrize("value", ["soon", "2020-13-01", "12:00", "", float("nan"), float("inf"), 2**63 - 1])
def test_what_is_no_time_is_an_error_that_names_the_column(value: object) -> None:
    if isinstance(value, int):  # nanoseconds up to the year 2262
        assert as_time(pa.array([value]), column="c")[0].as_py().year == 2262
        return
    with pytest.raises(SourceError, match="column 'c' holds a value that is no time"):
        as_time(pa.array([value]), column="c")
