"""Counts of a wavelet matrix against numpy's own."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.features.wavelet import build_wavelet, count_below


@st.composite
def cases(draw):
    bound = draw(st.sampled_from([0, 1, 2, 7, 8, 100, 2**31, 2**40]))
    pool = np.array(draw(st.lists(st.integers(0, bound), min_size=1, max_size=30)), dtype=np.int64)
    rows, ranges = draw(st.integers(0, 300)), draw(st.integers(0, 60))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    low, high = np.sort(generator.integers(0, rows + 1, (2, ranges)), axis=0)
    asked = np.minimum(generator.choice(pool, ranges) + generator.integers(0, 2, ranges), bound)
    return generator.choice(pool, rows), bound, low, high, asked


@settings(max_examples=150, deadline=None)
@given(cases())
def test_every_range_counts_what_lies_below(case):
    values, bound, low, high, asked = case
    found = count_below(build_wavelet(values, bound=bound), low, high, asked)
    wanted = [np.count_nonzero(values[a:b] < c) for a, b, c in zip(low, high, asked, strict=True)]
    assert found.dtype == np.int64
    assert found.tolist() == wanted


@pytest.mark.parametrize("rows", [63, 64, 65, 127, 128, 1000])
def test_ranges_end_on_any_bit_of_a_word(rows):
    values = np.random.default_rng(rows).integers(0, rows, rows)
    arrays, places = build_wavelet(values, bound=rows), np.arange(rows + 1)
    for asked in (0, 1, rows // 3, rows):
        found = count_below(arrays, np.zeros_like(places), places, np.full(rows + 1, asked))
        assert found.tolist() == [0, *np.cumsum(values < asked).tolist()]


def test_what_was_asked_is_not_written_over():
    low, high, asked = np.zeros(3, np.int64), np.array([0, 5, 9]), np.array([3, 4, 5])
    before = low.copy(), high.copy(), asked.copy()
    count_below(build_wavelet(np.arange(9), bound=9), low, high, asked)
    assert all(np.array_equal(a, b) for a, b in zip(before, (low, high, asked), strict=True))
