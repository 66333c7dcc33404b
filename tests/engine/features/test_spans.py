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


def test_a_row_of_a_wrong_year_is_a_span_of_its_own_and_later_rows_are_not_in_it() -> None:
    today, wrong = 480_000 * HOUR, 1_100_000 * HOUR
    first = plan_spans([_increment([7, today, wrong])], live=[], rows_per_span=600)
    assert [(span.low, span.high) for span in first] == [(7, HOUR), (today, today + HOUR), (wrong, wrong + 1)]
    [later] = plan_spans([_increment([today + HOUR, today + 700 * HOUR])], live=first, rows_per_span=600)
    assert (later.low, later.high) == (today + HOUR, today + 700 * HOUR + 1)  # monthly rows make one


def test_a_late_row_rewrites_its_span_and_those_its_windows_reach() -> None:
    live = [Span(i * 10 * HOUR, (i + 1) * 10 * HOUR, 100) for i in range(4)]
    late = [_increment([5 * HOUR])]
    fuller = Span(0, 10 * HOUR, 101)
    assert plan_spans(late, live=live, rows_per_span=100) == (fuller,)
    assert plan_spans(late, live=live, rows_per_span=100, reach=16 * HOUR) == (fuller, live[1], live[2])


def test_a_live_span_with_many_more_rows_is_written_again_as_several() -> None:
    late = [Increment({3: 600, 4: 300, 7: 9}, 3 * HOUR, 8 * HOUR - 1)]
    for rows in (100, 0):
        live = [Span(0, 10 * HOUR, rows)]
        cut = plan_spans(late, live=live, rows_per_span=300, cut_live=True)
        assert (cut[0].low, cut[-1].high) == (0, 10 * HOUR)
        assert all(a.high == b.low for a, b in itertools.pairwise(cut))
        assert len(cut) >= 4
        assert all(span.rows <= 300 for span in cut)
        assert sum(span.rows for span in cut) >= rows + 909
        assert plan_spans(late, live=live, rows_per_span=300) == (Span(0, 10 * HOUR, rows + 909),)


def test_a_live_span_with_a_few_more_rows_stays_one() -> None:
    live, late = [Span(0, 10 * HOUR, 300)], [Increment({3: 30}, 3 * HOUR, 4 * HOUR - 1)]
    assert plan_spans(late, live=live, rows_per_span=300, cut_live=True) == (Span(0, 10 * HOUR, 330),)
    assert len(plan_spans(late, live=live, rows_per_span=299, cut_live=True)) == 2
    assert plan_spans([], live=live, rows_per_span=100, again=[(7, 8)]) == (live[0],)
    assert len(plan_spans([], live=live, rows_per_span=100, again=[(7, 8)], cut_live=True)) == 3


def test_an_hour_with_more_rows_than_a_span_holds_is_cut() -> None:
    spans = plan_spans([Increment({7: 1_000}, 7 * HOUR, 8 * HOUR - 1)], live=[], rows_per_span=300)
    assert len(spans) == 4
    assert all(a.high == b.low for a, b in itertools.pairwise(spans))


@given(
    st.lists(st.lists(st.integers(0, 30 * HOUR), min_size=1, max_size=30), min_size=1, max_size=4),
    st.lists(st.integers(0, 30 * HOUR), max_size=6),
    st.integers(1, 50),
    st.integers(0, 100),
    st.booleans(),
)
def test_every_new_row_is_in_exactly_one_span(
    batches: list[list[int]], borders: list[int], rows: int, live_rows: int, cut_live: bool
) -> None:
    cuts = sorted(set(borders))
    live = [Span(low, high, live_rows) for low, high in zip(cuts[::2], cuts[1::2], strict=False)]
    increments = [_increment(times) for times in batches]
    spans = plan_spans(increments, live=live, rows_per_span=rows, cut_live=cut_live)
    for time in [time for times in batches for time in times]:
        assert sum(span.low <= time < span.high for span in spans) == 1
    for span in spans:
        touched = [other for other in live if other.overlaps(span.low, span.high)]
        assert len(touched) <= 1
        assert all(other.low <= span.low and span.high <= other.high for other in touched)
    for one in live:
        parts = [span for span in spans if span.overlaps(one.low, one.high)]
        if parts:
            assert (parts[0].low, parts[-1].high) == (one.low, one.high)
            assert all(a.high == b.low for a, b in itertools.pairwise(parts))
            assert len(parts) == 1 or cut_live
