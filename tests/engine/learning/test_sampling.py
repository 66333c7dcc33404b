import datetime
import decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import PlanRefused
from engine.learning import correct_prior, keep, row_uniform, sampling_rate_for

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def _mix_oracle(value):
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def _text_oracle(key, seed):
    """The definition in plain Python integers, byte by byte."""
    start = _mix_oracle(((seed & MASK) + GOLDEN) & MASK)
    hashed = _mix_oracle(len(key) ^ start)
    for begin in range(0, len(key), 8):
        hashed = (_mix_oracle(hashed ^ int.from_bytes(key[begin : begin + 8], "little")) + GOLDEN) & MASK
    return (_mix_oracle(hashed) >> 11) * 2.0**-53


@given(st.lists(st.binary(max_size=40), max_size=30), st.integers())
def test_bytes_hash_as_defined(keys, seed):
    expected = [_text_oracle(key, seed) for key in keys]
    assert row_uniform(pa.array(keys, pa.binary()), seed=seed).tolist() == expected


@given(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=30), st.integers(0, 2**70))
def test_integers_hash_as_defined(keys, seed):
    start = _mix_oracle(((seed & MASK) + GOLDEN) & MASK)
    expected = [(_mix_oracle((key & MASK) ^ start) >> 11) * 2.0**-53 for key in keys]
    assert row_uniform(pa.array(keys, pa.int64()), seed=seed).tolist() == expected


def test_values_are_those_of_the_first_release():
    # A change here silently changes which rows every deployed model was trained on.
    assert row_uniform(np.array([0, 1, -1]), seed=0).tolist() == [
        0.28176129772258496,
        0.6172084904339515,
        0.9482802731023046,
    ]
    assert row_uniform(pa.array(["", "a", "key-000123"]), seed=7).tolist() == [
        0.06577191750538158,
        0.40705883505028306,
        0.994239259399488,
    ]


@given(st.lists(st.one_of(st.none(), st.text(max_size=300)), min_size=1, max_size=20), st.integers(0, 19))
def test_does_not_depend_on_batches_slices_or_representation(keys, cut):
    array = pa.array(keys, pa.string())
    whole = row_uniform(array, seed=3)
    parts = [row_uniform(array[:cut], seed=3), row_uniform(array[cut:], seed=3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(row_uniform(array.cast(pa.large_string()), seed=3), whole)
    np.testing.assert_array_equal(row_uniform(array.dictionary_encode(), seed=3), whole)
    np.testing.assert_array_equal(row_uniform(pa.chunked_array([array[:cut], array[cut:]]), seed=3), whole)


def test_width_of_an_integer_does_not_matter():
    kinds = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint64())
    hashed = [row_uniform(pa.array([1, None, 100], kind), seed=1).tolist() for kind in kinds]
    assert all(one == hashed[0] for one in hashed)


def test_largest_unsigned_key_is_hashed():
    assert len(set(row_uniform(pa.array([2**64 - 1, 2**63, 0], pa.uint64()), seed=0))) == 3


def test_other_types_have_a_hash_and_a_null_is_a_key():
    stamp = datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC)
    for array in (
        pa.array([1.5, None, 2.5]),
        pa.array([True, None, False]),
        pa.array([stamp, None, stamp + datetime.timedelta(seconds=1)], pa.timestamp("us", "UTC")),
        pa.array([datetime.date(2013, 1, 1), None, datetime.date(2013, 1, 2)]),
        pa.array([decimal.Decimal("1.50"), None, decimal.Decimal("2.50")]),
        pa.array([b"0123456789abcdef", None, b"0123456789abcdeg"], pa.binary(16)),
    ):
        hashed = row_uniform(array, seed=0)
        assert len(set(hashed.tolist())) == 3, array.type
        assert hashed[1] == row_uniform(pa.nulls(2), seed=0)[0]


def test_long_keys_differ_and_do_not_slow_the_others():
    long = "x" * 1_000_000
    hashed = row_uniform(pa.array([long + "a", long + "b", "short"]), seed=0)
    assert len(set(hashed.tolist())) == 3
    assert hashed[2] == row_uniform(pa.array(["short"]), seed=0)[0]


@pytest.mark.parametrize("keys", [np.arange(200_000), pa.array([f"flight-{i:09d}" for i in range(200_000)])])
def test_is_uniform_and_independent_of_neighbours(keys):
    drawn = row_uniform(keys, seed=5)
    assert ((drawn >= 0) & (drawn < 1)).all()
    counts = np.histogram(drawn, bins=100, range=(0, 1))[0]
    chi_square = ((counts - 2000) ** 2 / 2000).sum()
    assert 50 < chi_square < 165  # 99 degrees of freedom: 1 in 10,000 on either side
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 0.01
    assert abs(np.corrcoef(drawn, row_uniform(keys, seed=6))[0, 1]) < 0.01


def test_keeps_all_positives_and_its_share_of_negatives():
    keys, labels = np.arange(100_000), np.arange(100_000) % 50 == 0
    kept = keep(keys, labels, rate=0.1, seed=1)
    assert kept[labels].all()
    assert abs(kept[~labels].mean() - 0.1) < 0.004


def test_larger_rate_keeps_what_a_smaller_one_keeps():
    keys, labels = np.arange(10_000), np.zeros(10_000)
    small, large = (keep(keys, labels, rate=rate, seed=1) for rate in (0.05, 0.2))
    assert small.sum() > 0
    assert not (small & ~large).any()
    assert keep(keys, labels, rate=1.0, seed=1).all()
    with pytest.raises(ValueError, match="sampling rate"):
        keep(keys, labels, rate=0.0, seed=1)


@given(
    st.integers(2, 50_000_000),
    st.floats(0.0001, 0.3),
    st.integers(25, 400),
    st.integers(2**20, 2**33),
)
def test_rate_fits_and_is_nearly_the_largest(rows, share, per_row, available):
    positives = max(1, int(rows * share))
    try:
        rate = sampling_rate_for(rows=rows, positives=positives, available_bytes=available, bytes_per_row=per_row)
    except PlanRefused as refusal:
        needed = refusal.details["projected_bytes"]
    else:
        needed = 0
    if needed:
        assert available < needed
        return
    assert 0 < rate <= 1
    if rate == 1.0 and rows * per_row <= available:
        return
    expected = rate * (rows - positives)
    assert (positives + expected + 3.99 * expected**0.5) * per_row <= available
    assert (positives + expected + 4.01 * expected**0.5) * per_row >= available * 0.9999 - 2 * per_row


def test_a_drawn_sample_fits_the_budget():
    labels = np.arange(200_000) % 100 == 0
    available = 40_000 * 34
    rate = sampling_rate_for(rows=200_000, positives=2_000, available_bytes=available, bytes_per_row=34)
    for seed in range(20):
        kept = keep(np.arange(200_000), labels, rate=rate, seed=seed).sum()
        assert 0.95 * available <= kept * 34 <= available


def test_rows_that_cost_nothing_are_all_kept():
    assert sampling_rate_for(rows=10**9, positives=10, available_bytes=0, bytes_per_row=0) == 1.0


def test_refusal_names_what_would_do():
    arguments = {"rows": 1_000_000, "positives": 100_000, "bytes_per_row": 34}
    with pytest.raises(PlanRefused, match="100,000 positives") as refused:
        sampling_rate_for(**arguments, available_bytes=34 * 100_000)
    enough = refused.value.details["projected_bytes"]
    assert 0 < sampling_rate_for(**arguments, available_bytes=enough) < 1


def test_correction_lowers_probabilities_and_restores_the_true_odds():
    q = np.linspace(0, 1, 101)
    p = correct_prior(q, rate=0.1)
    assert (p[1:-1] < q[1:-1]).all()
    assert (np.diff(p) > 0).all()
    assert (p[0], p[-1]) == (0.0, 1.0)
    np.testing.assert_array_equal(correct_prior(q, rate=1.0), q)
    # 200 positives among 10,000; a tenth of the negatives kept: the share seen is 200 / (200 + 980)
    assert correct_prior(np.array([200 / 1180]), rate=0.1)[0] == pytest.approx(0.02, rel=1e-12)
