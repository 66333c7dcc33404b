"""Windows of the cursor to read again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from engine.quarantine import windows_of

START = datetime(2026, 1, 1, tzinfo=UTC)


@given(minutes=st.lists(st.integers(0, 10**6), min_size=1, max_size=80), most=st.integers(1, 9))
def test_few_windows_hold_every_cursor_and_do_not_overlap(minutes: list[int], most: int) -> None:
    cursors = [START + timedelta(minutes=minute) for minute in minutes]
    windows = windows_of(cursors, table="raw", most=most)
    assert 1 <= len(windows) <= most
    assert sum(window.rows for window in windows) == len(cursors)
    assert all(sum(window.since <= cursor <= window.until for window in windows) == 1 for cursor in cursors)


def test_cursors_far_apart_are_read_apart() -> None:
    cursors = [START, START + timedelta(seconds=30), START + timedelta(days=300)]
    windows = windows_of(cursors, table="raw")
    assert [(window.until - window.since, window.rows) for window in windows] == [
        (timedelta(seconds=30), 2),
        (timedelta(0), 1),
    ]
