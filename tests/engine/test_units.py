from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.units import (
    format_bytes,
    format_duration,
    format_time,
    microseconds,
    parse_bytes,
    parse_duration,
    parse_time,
)

durations = st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=36_500))
times = st.datetimes(min_value=datetime(1700, 1, 1), max_value=datetime(2200, 1, 1))


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("512MiB", 536_870_912),
        ("512 MiB", 536_870_912),
        ("2GB", 2_000_000_000),
        ("1.5KiB", 1_536),
        ("1TiB", 1_099_511_627_776),
        ("7B", 7),
        ("1048576", 1_048_576),
        (1_048_576, 1_048_576),
    ],
)
def test_a_size_is_read_in_its_unit(text, size_bytes):
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "MiB", "512Mb", "512mib", "-1MiB", "1,5GiB", "1 2MiB", True])
def test_what_is_not_a_size_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="512MiB"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (512 * 2**20, "512 MiB"), (-(2**30), "-1 GiB")],
)
def test_a_size_is_shown_in_the_largest_unit_that_it_fills(size_bytes, text):
    assert format_bytes(size_bytes) == text


@given(st.integers(0, 2**50))
def test_a_shown_size_reads_back_within_its_rounding(size_bytes):
    assert parse_bytes(format_bytes(size_bytes)) == pytest.approx(size_bytes, rel=0.05)


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("3h", timedelta(hours=3)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(days=14)),
        ("1h30m", timedelta(minutes=90)),
        ("1h 30m", timedelta(minutes=90)),
        ("0.5s", timedelta(milliseconds=500)),
        ("250ms", timedelta(milliseconds=250)),
        ("0", timedelta(0)),
        (timedelta(days=1), timedelta(days=1)),
    ],
)
def test_a_duration_is_read_in_its_units(text, duration):
    assert parse_duration(text) == duration


@pytest.mark.parametrize("text", ["", "24", "h", "-3h", "3 hours", "3h later", "1:30"])
def test_what_is_not_a_duration_is_refused_with_an_example(text):
    with pytest.raises(ValueError, match="1h30m"):
        parse_duration(text)


@given(durations)
def test_a_written_duration_reads_back_exactly(duration):
    assert parse_duration(format_duration(duration)) == duration


@given(durations, durations)
def test_different_durations_are_written_differently(one, other):
    assert (format_duration(one) == format_duration(other)) == (one == other)


@given(st.integers(-(2**60), 2**60))
def test_microseconds_are_exact(value):
    assert microseconds(timedelta(microseconds=value)) == value


def test_a_time_without_a_zone_is_utc_and_one_with_a_zone_is_converted():
    assert parse_time("2013-06-30 12:00:00") == datetime(2013, 6, 30, 12, tzinfo=UTC)
    assert parse_time("2013-06-30T12:00:00-04:00") == datetime(2013, 6, 30, 16, tzinfo=UTC)
    assert parse_time("2013-06-30T12:00:00Z").tzinfo == UTC


@given(times, st.integers(-14 * 60, 14 * 60))
def test_a_written_time_reads_back_as_the_same_instant(time, offset_minutes):
    zoned = time.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
    assert parse_time(format_time(zoned)) == zoned
    assert format_time(zoned).endswith("Z")
