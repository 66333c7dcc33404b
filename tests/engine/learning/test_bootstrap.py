import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from engine.errors import LearningError
from engine.learning import paired_bootstrap
from engine.learning.bootstrap import _average_precision

SETTINGS = {"bootstraps": 200, "confidence": 0.8, "seed": 1}


def _scored(rows, *, skill, seed=0):
    random = np.random.default_rng(seed)
    labels = random.random(rows) < 0.03
    return labels, [labels * one + np.random.default_rng(10 + i).normal(size=rows) for i, one in enumerate(skill)]


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.booleans()), min_size=1, max_size=50).filter(
        lambda rows: any(row[2] for row in rows)
    )
)
def test_gain_is_the_difference_of_average_precisions(rows):
    challenger, champion, labels = (np.array(column) for column in zip(*rows, strict=True))
    expected = average_precision_score(labels, challenger) - average_precision_score(labels, champion)
    found = paired_bootstrap(labels, challenger, champion, bootstraps=2, confidence=0.8, seed=0)
    assert found.gain == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 2**32))
def test_weighted_average_precision_is_scikit_learns(seed):
    random = np.random.default_rng(seed)
    positive, negative = random.integers(0, 6, 10), random.integers(-1, 6, 30)
    heft, other = random.poisson(1.0, 10) + (np.arange(10) == 0), random.poisson(1.0, 30)
    level, inverse = np.unique(positive, return_inverse=True)
    place = np.searchsorted(level, negative, side="right")
    expected = average_precision_score(
        np.repeat([1, 0], [10, 30]), np.concatenate([positive, negative]), sample_weight=np.concatenate([heft, other])
    )
    assert _average_precision(inverse, len(level), place, heft, other) == pytest.approx(expected, rel=1e-12)


def test_a_model_does_not_differ_from_itself():
    labels, (scores, _) = _scored(5_000, skill=(1.0, 1.0))
    found = paired_bootstrap(labels, scores, scores, **SETTINGS)
    assert (found.gain, found.low, found.high) == (0.0, 0.0, 0.0)


def test_a_clearly_better_model_is_above_zero_and_the_reverse_below():
    labels, (good, poor) = _scored(10_000, skill=(2.5, 1.0))
    assert paired_bootstrap(labels, good, poor, **SETTINGS).low > 0
    assert paired_bootstrap(labels, poor, good, **SETTINGS).high < 0


def test_interval_is_as_wide_as_that_of_resampled_rows():
    labels, (one, two) = _scored(3_000, skill=(1.5, 1.3))
    found = paired_bootstrap(labels, one, two, bootstraps=600, confidence=0.8, seed=1)
    random = np.random.default_rng(0)
    drawn = []
    for _ in range(300):
        rows = random.integers(0, len(labels), len(labels))
        drawn.append(
            average_precision_score(labels[rows], one[rows]) - average_precision_score(labels[rows], two[rows])
        )
    low, high = np.quantile(drawn, [0.1, 0.9])
    assert found.high - found.low == pytest.approx(high - low, rel=0.2)
    assert (found.low + found.high) / 2 == pytest.approx((low + high) / 2, abs=(high - low) / 5)


def test_same_seed_same_interval_and_more_confidence_is_wider():
    labels, (one, two) = _scored(3_000, skill=(1.5, 1.3))
    first = paired_bootstrap(labels, one, two, **SETTINGS)
    assert paired_bootstrap(labels, one, two, **SETTINGS) == first
    wider = paired_bootstrap(labels, one, two, bootstraps=200, confidence=0.95, seed=1)
    assert wider.low < first.low
    assert wider.high > first.high


def test_one_positive_still_gives_an_interval_and_none_is_refused():
    found = paired_bootstrap(np.arange(50) == 3, np.arange(50), -np.arange(50), **SETTINGS)
    assert found.low <= found.gain <= found.high
    with pytest.raises(LearningError, match="without a positive"):
        paired_bootstrap(np.zeros(5), np.arange(5), np.arange(5), **SETTINGS)
    with pytest.raises(ValueError, match="one finite score"):
        paired_bootstrap(np.ones(5), np.arange(5), np.arange(4), **SETTINGS)
