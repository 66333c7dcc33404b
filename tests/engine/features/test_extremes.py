"""Extremes of ranges against Python's min and max, and combined over segments."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.features.extremes import Extreme, build_extremes, range_extreme

BOTH = ("min", "max")
FLOATS = st.none() | st.floats() | st.sampled_from([0.0, -0.0, math.inf, -math.inf, math.nan, 5e-324, 1.0])
INTEGERS = st.none() | st.integers(-(2**63), 2**63 - 1) | st.sampled_from([-(2**63), 2**63 - 1, 2**53, 2**53 + 1, 0])
KINDS = {np.float64: FLOATS, np.int64: INTEGERS}


def expected(values, which):
    """The definition, over the present values."""
    mine = [v for v in values if v is not None]
    if not mine:
        return None
    if any(v != v for v in mine):
        return math.nan
    return (min if which == "min" else max)(mine) + 0  # -0.0 is 0.0


def arrays_of(rows, kind, *, starts=(0,), which=BOTH):
    values = np.array([v if v is not None else 7 for v in rows], dtype=kind)
    present = np.array([v is not None for v in rows], dtype=bool)
    return build_extremes(values, starts=np.array(starts, np.int64), which=which, present=present)


def ask(arrays, ranges, which):
    low, high = (np.array(side, dtype=np.int64) for side in zip(*ranges, strict=True))
    values, found = range_extreme(arrays, low, high, which)
    return [value if some else None for value, some in zip(values.tolist(), found.tolist(), strict=True)]


def every_range(runs):
    return [(low, high) for a, b in runs for low in range(a, b) for high in range(low + 1, b + 1)]


@st.composite
def tables(draw, *, most):
    """Return a type, rows (few distinct values, so that there are ties), and the runs of keys."""
    kind = draw(st.sampled_from([np.float64, np.int64]))
    pool = draw(st.lists(KINDS[kind], min_size=1, max_size=12))
    seed = draw(st.integers(0, 2**32 - 1))
    sizes = draw(st.lists(st.integers(1, most), max_size=4))
    rows = [pool[i] for i in np.random.default_rng(seed).integers(0, len(pool), sum(sizes))]
    ends = np.cumsum(sizes).tolist()
    return kind, rows, list(zip([0, *ends[:-1]], ends, strict=True)) if sizes else []


@settings(max_examples=60, deadline=None)
@given(tables(most=40))
def test_every_range_has_the_extremes_of_its_present_values(table):
    kind, rows, runs = table
    arrays = arrays_of(rows, kind, starts=[low for low, _ in runs])
    ranges = every_range(runs)
    for which in BOTH if ranges else ():
        found = ask(arrays, ranges, which)
        assert list(map(repr, found)) == [repr(expected(rows[low:high], which)) for low, high in ranges]


@settings(max_examples=25, deadline=None)
@given(tables(most=1500), st.integers(0, 2**32 - 1))
def test_long_ranges_pass_over_whole_blocks(table, seed):
    kind, rows, runs = table
    arrays = arrays_of(rows, kind, starts=[low for low, _ in runs])
    generator = np.random.default_rng(seed)
    ranges = [sorted(generator.choice(np.arange(a, b + 1), 2, replace=False).tolist()) for a, b in runs * 20] + runs
    for which in BOTH if ranges else ():
        found = ask(arrays, ranges, which)
        assert list(map(repr, found)) == [repr(expected(rows[low:high], which)) for low, high in ranges]


@pytest.mark.parametrize("rows", [1, 2, 31, 32, 33, 64, 65, 66, 95, 96, 97, 98, 128, 130, 1000])
def test_each_row_is_found_wherever_blocks_begin(rows):
    for place in range(0, rows, max(rows // 97, 1)):
        values = np.ones(rows)
        values[place] = -np.inf
        arrays = build_extremes(values, starts=np.array([0]), which=("min",))
        places = np.arange(rows)
        before, _ = range_extreme(arrays, np.zeros(rows, np.int64), places + 1, "min")
        after, _ = range_extreme(arrays, places, np.full(rows, rows), "min")
        assert np.array_equal(before == -np.inf, places >= place)
        assert np.array_equal(after == -np.inf, places <= place)


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 4, 7, 8, 9, 16])
def test_the_longest_run_is_found_where_it_passes_over_most_blocks(blocks):
    rows = 31 + 1 + 32 * blocks + 1
    values = -np.abs(np.arange(rows) - rows // 2)
    arrays = build_extremes(values, starts=np.array([0, 31]), which=("max",))
    assert ask(arrays, [(31, rows)], "max") == [values[31:].max()]


def test_infinite_values_are_told_from_none():
    arrays = arrays_of([math.inf, None, -math.inf], np.float64)
    assert ask(arrays, [(0, 1), (1, 2), (0, 2)], "min") == [math.inf, None, math.inf]
    assert ask(arrays, [(1, 2), (2, 3), (1, 3)], "max") == [None, -math.inf, -math.inf]


def test_large_integers_are_not_rounded():
    arrays = arrays_of([2**53 + 1, 2**53, 2**63 - 1, 2**63 - 2], np.int64)
    assert ask(arrays, [(0, 2), (2, 4)], "min") == [2**53, 2**63 - 2]
    assert ask(arrays, [(0, 2), (2, 4)], "max") == [2**53 + 1, 2**63 - 1]


def test_all_nan_come_out_alike():
    odd = np.array([0xFFF8_0000_0000_0001, 0x7FF0_0000_0000_0001], dtype=np.uint64).view(np.float64)
    values, _ = range_extreme(
        build_extremes(odd, starts=np.array([0]), which=("min",)), np.array([0, 1]), np.array([1, 2]), "min"
    )
    assert values.tobytes() == np.array([np.nan, np.nan]).tobytes()


def test_an_empty_range_has_no_value():
    for rows in ([1.0, 2.0], [1.0, None]):
        assert ask(arrays_of(rows, np.float64), [(0, 0), (0, 1), (2, 2)], "min") == [None, 1.0, None]


def test_no_row_and_no_value_make_arrays_that_can_be_asked():
    none = np.empty(0, dtype=np.int64)
    for arrays in (arrays_of([], np.float64, starts=()), arrays_of([None] * 70, np.int64)):
        values, found = range_extreme(arrays, none, none, "max")
        assert len(values) == len(found) == 0
    assert ask(arrays, [(0, 70), (3, 4)], "max") == [None, None]


def test_other_types_are_refused():
    with pytest.raises(ValueError, match="not float32"):
        build_extremes(np.zeros(1, np.float32), starts=np.array([0]), which=("min",))


def test_only_what_is_asked_is_built_and_short_runs_need_no_table():
    arrays = build_extremes(np.zeros(3200), starts=np.arange(0, 3200, 32), which=("max",))
    assert sorted(arrays) == ["max.blocks", "max.stacks", "values"]
    assert sum(array.nbytes for array in arrays.values()) == 12 * 3200


def test_a_row_takes_16_bytes_for_one_extreme_and_23_for_both():
    values = np.random.default_rng(0).normal(size=2**17)
    sizes = {
        which: sum(a.nbytes for a in build_extremes(values, starts=np.array([0]), which=which).values()) / len(values)
        for which in (("min",), BOTH)
    }
    assert sizes[("min",)] <= 16
    assert sizes[BOTH] <= 23


@settings(max_examples=60, deadline=None)
@given(tables(most=60), st.lists(st.integers(0, 200), max_size=3))
def test_how_rows_are_cut_into_segments_changes_no_bit(table, cuts):
    kind, rows, _ = table
    edges = sorted({0, len(rows), *(cut for cut in cuts if cut < len(rows))})
    for which in BOTH:
        whole = expected(rows, which)
        total = Extreme(2, which)
        for low, high in itertools.pairwise(edges):
            arrays = arrays_of(rows[low:high], kind, which=(which,))
            total.add(np.array([1]), *range_extreme(arrays, np.array([0]), np.array([high - low]), which))
        values, missing = total.result()
        assert missing.tolist() == [True, whole is None]
        assert repr(values.tolist()[1]) == repr(float(whole) if whole is not None else 0.0)


def test_segments_of_integers_and_floats_combine():
    total = Extreme(1, "max")
    for rows, kind in (([2**62 + 1], np.int64), ([2.0**62, -math.inf], np.float64), ([None], np.int64)):
        arrays = arrays_of(rows, kind)
        total.add(slice(None), *range_extreme(arrays, np.array([0]), np.array([len(rows)]), "max"))
    assert total.result()[0].tolist() == [2.0**62]


def test_taken_windows_go_on_apart():
    total = Extreme(2, "min")
    total.add(np.array([0]), np.array([5.0]), np.array([True]))
    taken = total.take(np.array([0, 0, 1]))
    taken.add(np.array([1, 2]), np.array([3, 9]), np.array([True, False]))
    assert taken.result()[0].tolist() == [5.0, 3.0, 0.0]
    assert taken.result()[1].tolist() == [False, False, True]
    assert total.result()[0].tolist() == [5.0, 0.0]
