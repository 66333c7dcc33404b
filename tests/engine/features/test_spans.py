"""Spans: every new row is in exactly one planned span, live ones keep their extent, nothing else is written again."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from engine.features.spans import HOUR, Increment, Span, plan_spans


def _increment(times: list[int]) -> Increment:
    return Increment(Counter(time // HOUR for time in times), min(times), max(times))


def test_a_first_load_is_cut_into_spans_of_bounded_rows() -> None:
    times = [hour * HOUR + minute * 60_000_000 for hour in range(48) for minute in range(60)]
    spans = plan_spans([_increment(times)], live=[], rows_per_span=600)
    assert [span.rows for span in spans] == [600, 600, 600, 600, 480]
    assert spans[0].low == times[0]
    assert spans[-1].high == times[-1] + 1


def test_later_rows_make_fresh_spans_and_leave_live_ones_alone() -> None:
    live = Span(0, 10 * HOUR, 100)
    (span,) = plan_spans([_increment([10 * HOUR + 5, 11 * HOUR])], live=[live], rows_per_span=100)
    assert (span.low, span.high) == (10 * HOUR + 5, 11 * HOUR + 1)


def test_a_late_row_rewrites_its_span_and_those_its_windows_reach() -> None:
    live = [Span(i * 10 * HOUR, (i + 1) * 10 * HOUR, 100) for i in range(4)]
    late = [_increment([5 * HOUR])]
    assert plan_spans(late, live=live, rows_per_span=100) == (live[0],)
    assert plan_spans(late, live=live, rows_per_span=100, reach=16 * HOUR) == (live[0], live[1], live[2])


def test_an_hour_with_more_rows_than_a_span_holds_is_cut() -> None:
    spans = plan_spans([Increment({7: 1_000}, 7 * HOUR, 8 * HOUR - 1)], live=[], rows_per_span=300)
    assert len(spans) == 4
    assert all(a.high == b.low for a, b in itertools.pairwise(spans))


@given(
    st.lists(st.lists(st.integers(0, 30 * HOUR), min_size=1, max_size=30), min_size=1, max_size=4),
    st.lists(st.integers(0, 30 * HOUR), max_size=6),
    st.integers(1, 50),
)
def test_every_new_row_is_in_exactly_one_span(batches: list[list[int]], borders: list[int], rows: int) -> None:
    cuts = sorted(set(borders))
    live = [Span(low, high, 1) for low, high in zip(cuts[::2], cuts[1::2], strict=False)]
    spans = plan_spans([_increment(times) for times in batches], live=live, rows_per_span=rows)
    for time in [time for times in batches for time in times]:
        assert sum(span.low <= time < span.high for span in spans) == 1
    for span in spans:
        touched = [other for other in live if other.overlaps(span.low, span.high)]
        assert touched in ([], [span])
