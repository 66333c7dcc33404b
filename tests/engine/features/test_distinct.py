"""Distinct values of windows against sets, the rows in one segment or in many that follow one another."""

import itertools
import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import SchemaMismatch
from engine.features.distinct import build_distinct, build_firsts, count_distinct, count_firsts
from engine.features.keys import build_dictionary, merged_columns, sort_keys
from engine.features.pair_times import NEVER, merged_times, pair_times

KEYS = {"a": pa.string(), "b": pa.int64()}
VALUES = {
    pa.string(): ["", "x", "xy", None],
    pa.float64(): [0.0, -0.0, math.nan, math.inf, 1.5, None],
    pa.int64(): [0, 2**63 - 1, -(2**63), None],
    pa.decimal128(20, 4): [Decimal("1.5"), Decimal("-1.5"), None],
    pa.bool_(): [True, False, None],
    pa.null(): [None],
}
LONGEST = 12
UNTIMED = 2**62  # the first time of a segment without rows
WINDOWS = [(far, far + length) for far in range(-3, 24) for length in (1, 4, LONGEST)]


class Part:
    """A segment's rows (a, b, time, value), sorted, with what a segment will hold of them."""

    def __init__(self, rows, of, *, earlier, keys=("a", "b"), reach=LONGEST):
        table = table_of(rows, of)
        self.times = table["t"].to_numpy()
        by_key, by_pair = sort_keys(table, keys, self.times), sort_keys(table, [*keys, "x"], self.times)
        order, (self.keys, _) = by_key.order, build_dictionary(by_key.columns)
        self.pairs = pair_times(by_pair, self.times, earlier=[part.pairs for part in earlier[::-1]], reach=reach)
        self.arrays = build_distinct(by_pair, order=order, pairs=self.pairs)
        self.given = rows
        self.rows = [rows[place] for place in order]

    def count(self, key, windows):
        """By window (far, near]."""
        mine = [place for place, row in enumerate(self.rows) if row[:2] == key]
        ranges = []
        for far, near in windows:
            inside = [place for place in mine if far < self.rows[place][2] <= near]
            ranges.append((inside[0], inside[-1] + 1, far) if inside else (0, 0, far))
        low, high, far = np.array(ranges, dtype=np.int64).T
        return count_distinct(self.arrays, low, high, far, time_min=int(self.times.min(initial=UNTIMED)))


def table_of(rows, of):
    columns = zip(*rows, strict=True) if rows else [()] * 4
    types = {**KEYS, "t": pa.int64(), "x": of}
    return pa.table({name: pa.array(each, types[name]) for name, each in zip(types, columns, strict=True)})


def parts_of(rows, of, cuts, **options):
    """Rows in order of time, cut at places."""
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    parts = []
    for low, high in itertools.pairwise(edges):
        parts.append(Part(rows[low:high], of, earlier=parts, **options))
    return parts


def expected(rows, key, window):
    """The definition: all NaN are one value, and so are both zeros."""
    inside = [r[3] for r in rows if r[:2] == key and window[0] < r[2] <= window[1] and r[3] is not None]
    return len({"nan" if v != v else v for v in inside})


@st.composite
def tables(draw):
    of = draw(st.sampled_from(list(VALUES)))
    row = st.tuples(
        st.sampled_from(["", "x", None]),
        st.sampled_from([1, None]),
        st.integers(0, 20),
        st.sampled_from(VALUES[of]),
    )
    return of, sorted(draw(st.lists(row, max_size=40)), key=lambda r: r[2])


@settings(max_examples=60, deadline=None)
@given(tables(), st.lists(st.integers(0, 40), max_size=4))
def test_distinct_values_are_those_of_the_definition_however_rows_are_cut(table, cuts):
    of, rows = table
    parts = parts_of(rows, of, cuts)
    for key in {row[:2] for row in rows}:
        found = sum(part.count(key, WINDOWS) for part in parts)
        assert found.tolist() == [expected(rows, key, window) for window in WINDOWS]


@settings(max_examples=40, deadline=None)
@given(tables(), st.lists(st.integers(0, 40), max_size=4))
def test_segments_beyond_the_longest_window_need_not_be_looked_up(table, cuts):
    of, rows = table
    parts = parts_of(rows, of, cuts)
    for place, part in enumerate(parts):
        if part.rows:
            near = [p for p in parts[:place] if p.rows and p.times[-1] > part.times[0] - LONGEST]
            again = Part(part.given, of, earlier=near)
            assert same(again.arrays, part.arrays)


@settings(max_examples=60, deadline=None)
@given(tables(), st.lists(st.integers(0, 40), min_size=2, max_size=4), st.data())
def test_whole_segments_count_as_one(table, cuts, data):
    of, rows = table
    parts = [part for part in parts_of(rows, of, cuts) if part.rows]
    if not parts:
        return
    first = data.draw(st.integers(0, len(parts) - 1))
    whole = parts[first : data.draw(st.integers(first + 1, len(parts)))]
    some = data.draw(st.permutations(data.draw(st.lists(st.sampled_from(whole), min_size=1, unique_by=id))))
    columns = merged_columns([part.keys for part in some])
    keys, _ = build_dictionary(columns)
    arrays = build_firsts(merged_times([part.pairs for part in some]), keys=keys.size)
    begin, end = whole[0].times[0], whole[-1].times[-1]
    windows = [(far, end) for far in range(end - LONGEST, begin)]  # none is longer than the longest
    for key in {row[:2] for row in rows} if windows else ():
        found = keys.find(sort_keys(table_of([(*key, 0, None)], of), ["a", "b"], np.zeros(1, np.int64)).columns)
        counted = count_firsts(arrays, np.repeat(found, len(windows)), np.array([far for far, _ in windows]))
        assert counted.tolist() == sum(part.count(key, windows) for part in some).tolist()


def test_a_hot_key_and_instants_of_many_rows_count_as_others():
    generator = np.random.default_rng(7)
    times, values = np.sort(generator.integers(0, 20, 3000)), generator.integers(0, 300, 3000)
    keys = generator.choice([None, "x", ""], 3000, p=[0.9, 0.05, 0.05])
    rows = list(zip(keys.tolist(), [1] * 3000, times.tolist(), values.tolist(), strict=True))
    parts = parts_of(rows, pa.int64(), [1000, 1001, 2500])
    for key in ((None, 1), ("x", 1)):
        found = sum(part.count(key, WINDOWS) for part in parts)
        assert found.tolist() == [expected(rows, key, window) for window in WINDOWS]


def test_rows_at_one_instant_count_a_value_once_across_segments():
    rows = [("x", 1, 5, "v")] * 6
    parts = parts_of(rows, pa.string(), [2, 3])
    assert [part.count(("x", 1), [(4, 5), (5, 9)]).tolist() for part in parts] == [[1, 0], [0, 0], [0, 0]]


def test_a_pair_is_looked_for_in_the_latest_of_earlier_segments_first():
    earlier = parts_of([("x", 1, 3, "v"), ("x", 1, 4, "w"), ("x", 1, 7, "v")], pa.string(), [2])
    part = Part([("x", 1, 9, "v"), ("x", 1, 9, "w"), ("x", 1, 9, "z")], pa.string(), earlier=earlier)
    assert part.pairs.before.tolist() == [7, 4, NEVER]


def test_a_segment_without_rows_holds_and_finds_nothing():
    empty = Part([], pa.string(), earlier=[])
    part = Part([("x", 1, 5, "v")], pa.string(), earlier=[empty])
    assert Part([], pa.string(), earlier=[part]).count(("x", 1), [(4, 5)]).tolist() == [0]
    assert part.arrays["earlier"].tolist() == [NEVER]
    assert part.count(("x", 1), [(4, 5), (5, 6)]).tolist() == [1, 0]


def test_earlier_times_are_kept_within_reach_only():
    rows = [("x", 1, 0, "v"), ("x", 1, 1, "w"), ("x", 1, 12, "v"), ("x", 1, 12, "w"), ("x", 1, 13, None)]
    _, part = parts_of(rows, pa.string(), [2])
    assert part.arrays["earlier"].tolist() == [NEVER, 1]


def test_earliest_times_do_not_overflow():
    rows = [("x", 1, NEVER + 1, "v"), ("x", 1, NEVER + 2, "v")]
    first, second = parts_of(rows, pa.string(), [1], reach=2**61)
    assert first.arrays["earlier"].tolist() == [NEVER]
    assert second.arrays["earlier"].tolist() == [NEVER + 1]


def test_a_late_row_changes_no_segment_that_begins_beyond_its_reach():
    rows = [("x", 1, 0, "v"), ("x", 1, 9, "v"), ("x", 1, 15, "v"), ("x", 1, 16, None)]
    before = parts_of(rows, pa.string(), [1, 2])
    after = parts_of([*rows[:1], ("x", 1, 3, "v"), *rows[1:]], pa.string(), [2, 3])
    assert [same(a.arrays, b.arrays) for a, b in zip(before, after, strict=True)] == [False, False, True]


def test_a_row_takes_three_sixteenths_of_a_byte_for_each_bit_and_one_more():
    rows = 2**13 - 1
    arrays = Part([("x", 1, i, str(i % 7)) for i in range(rows)], pa.string(), earlier=[]).arrays
    assert sum(array.nbytes for array in arrays.values()) <= 14 * 3 / 16 * rows + 14 * (8 + 12) + 8


@pytest.mark.parametrize("keys", [("a",), ("a", "b"), ("b", "x"), ("x",)])
def test_pairs_share_all_but_the_last_with_the_dictionary_of_keys(keys):
    rows = [("x", 1, 0, "v"), (None, 1, 1, "v"), ("x", None, 2, None), ("", 1, 3, "w"), ("x", 1, 4, "v")]
    part = Part(rows, pa.string(), earlier=[], keys=keys)
    alone, _ = build_dictionary(sort_keys(table_of(rows, pa.string()), keys, part.times).columns)
    pairs = part.pairs.pairs
    assert (pairs.names[:-1], pairs.kinds[:-1], pairs.values[:-1]) == (alone.names, alone.kinds, alone.values)
    assert [known.tolist() for known in pairs.pairs[:-1]] == [known.tolist() for known in alone.pairs]
    latest = {tuple(row["abtx".index(name)] for name in [*keys, "x"]): row[2] for row in rows}
    assert sorted(part.pairs.last.tolist()) == sorted(latest.values())


def test_a_value_of_another_type_is_refused():
    part = Part([("x", 1, 5, "v")], pa.string(), earlier=[])
    with pytest.raises(SchemaMismatch, match="'x'"):
        Part([("x", 1, 6, 7)], pa.int64(), earlier=[part])


def same(left, right):
    return {name: each.tolist() for name, each in left.items()} == {name: each.tolist() for name, each in right.items()}
