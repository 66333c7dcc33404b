import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.learning import DriftCounter, Reference, ReferenceBuilder, psi

NAMES = ("normal", "constant", "zeros", "code")


def _matrix(rows, *, seed=0, shift=0.0):
    random = np.random.default_rng(seed)
    normal = random.normal(shift, 1, rows)
    normal[random.random(rows) < 0.1] = np.nan
    zeros = np.where(random.random(rows) < 0.8, 0.0, random.exponential(5, rows))
    code = np.minimum(random.geometric(0.3, rows) - 1, 9)
    return np.column_stack([normal, np.full(rows, 7.0), zeros, code]).astype(np.float32)


def _reference(matrix, *, batch=100_000, **options):
    builder = ReferenceBuilder(NAMES, categorical={3: 10}, **options)
    for start in range(0, len(matrix), batch):
        builder.update(matrix[start : start + batch])
    return builder.finish()


def _drift(reference, matrix):
    counter = DriftCounter(reference)
    counter.update(matrix)
    return counter.finish()


def test_same_distribution_has_next_to_no_drift():
    drift = _drift(_reference(_matrix(50_000)), _matrix(50_000, seed=1))
    assert set(drift) == set(NAMES)
    assert all(value < 0.002 for value in drift.values())


def test_each_kind_of_change_is_seen_in_its_feature_alone():
    reference, base = _reference(_matrix(30_000)), _matrix(30_000, seed=1)
    missing = np.where(np.random.default_rng(2).random(30_000) < 0.4, np.nan, base[:, 0])
    for column, values in (
        (0, base[:, 0] + 1),
        (0, missing),
        (1, 8.0),
        (1, 6.0),
        (2, np.where(base[:, 2] == 0, 0.5, base[:, 2])),
        (3, 9 - base[:, 3]),
        (3, base[:, 3] + 10),  # codes never seen
    ):
        changed = base.copy()
        changed[:, column] = values
        drift = _drift(reference, changed)
        assert drift[NAMES[column]] > 0.25, (column, drift)
        assert sum(value > 0.01 for value in drift.values()) == 1


@pytest.mark.parametrize("batch", [1, 977, 30_000])
def test_batch_size_changes_nothing(batch):
    matrix = _matrix(3_000 if batch == 1 else 30_000)
    whole = _reference(matrix)
    assert _reference(matrix, batch=batch) == whole
    counter = DriftCounter(whole)
    for start in range(0, len(matrix), batch):
        counter.update(matrix[start : start + batch])
    for counted, expected in zip(counter.counts, whole.count(matrix), strict=True):
        np.testing.assert_array_equal(counted, expected)


def test_every_row_of_a_batch_is_in_one_bin():
    reference = _reference(_matrix(10_000))
    strange = np.array([[np.inf, -np.inf, np.nan, -1], [-np.inf, 1e30, np.inf, 1e9]], dtype=np.float32)
    assert [counted.sum() for counted in reference.count(strange)] == [2, 2, 2, 2]
    assert all(counted.sum() == 7 for counted in reference.count(_matrix(7)))


def test_infinite_training_values_make_no_edge():
    builder = ReferenceBuilder(("x",))
    builder.update(np.array([-np.inf] * 30 + list(range(40)) + [np.inf] * 30, dtype=np.float32).reshape(-1, 1))
    (histogram,) = builder.finish().features
    assert np.isfinite(histogram.edges).all()
    assert sum(histogram.counts) == 100


def test_sample_is_bounded_and_from_all_over_the_rows():
    builder = ReferenceBuilder(("position",))
    for start in range(0, 300_000, 10_000):
        builder.update(np.arange(start, start + 10_000, dtype=np.float32).reshape(-1, 1))
    (histogram,) = builder.finish().features
    assert sum(histogram.counts) == 50_000
    np.testing.assert_allclose(histogram.edges[:9], np.arange(1, 10) * 30_000, rtol=0.05)


def test_many_codes_share_the_last_bin():
    builder = ReferenceBuilder(("code",), categorical={0: 1000})
    builder.update(np.arange(1000, dtype=np.float32).reshape(-1, 1))
    (histogram,) = builder.finish().features
    assert (histogram.bins, histogram.counts[:50], histogram.counts[50:]) == (52, (1,) * 50, (950, 0))


def test_no_rows_is_no_drift_measured():
    empty = _reference(_matrix(0))
    assert _drift(empty, _matrix(10)) == dict.fromkeys(NAMES)
    assert _drift(_reference(_matrix(10)), _matrix(0)) == dict.fromkeys(NAMES)


def test_survives_json():
    reference = _reference(_matrix(1_000))
    assert Reference.from_json(json.loads(json.dumps(reference.to_json()))) == reference


@given(st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 1000)), min_size=1, max_size=12))
def test_index_is_symmetric_and_never_negative(bins):
    left, right = zip(*bins, strict=True)
    found = psi(left, right)
    if not sum(left) or not sum(right):
        assert found is None
    else:
        assert found >= 0
        assert found == pytest.approx(psi(right, left), rel=1e-9, abs=1e-12)
        assert psi(left, left) == 0
        assert np.isfinite(found)


def test_index_by_hand():
    assert psi([500_000, 500_000], [250_000, 750_000]) == pytest.approx(0.25 * np.log(3), rel=1e-4)
    with pytest.raises(ValueError, match="bins"):
        psi([1, 2], [1, 2, 3])
