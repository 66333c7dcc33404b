import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from engine.learning import Calibration, fit_calibration, metrics


def _distorted(rows=40_000, *, slope=2.0, shift=1.5, seed=0):
    """Return scores whose log odds are ``slope`` times the true ones, plus ``shift``."""
    random = np.random.default_rng(seed)
    truth = random.normal(-4, 1.5, size=rows)
    labels = random.random(rows) < 1 / (1 + np.exp(-truth))
    return 1 / (1 + np.exp(-(slope * truth + shift))), labels


def test_finds_the_distortion_and_removes_it():
    scores, labels = _distorted()
    calibration = fit_calibration(scores, labels)
    assert calibration.kind == "sigmoid"
    assert calibration.slope == pytest.approx(1 / 2.0, rel=0.05)
    assert calibration.intercept == pytest.approx(-1.5 / 2.0, rel=0.2)
    fresh, outcomes = _distorted(seed=1)
    before = metrics(fresh, outcomes, threshold=0.5)
    after = metrics(calibration.apply(fresh), outcomes, threshold=0.5)
    assert after.calibration_error < before.calibration_error / 3
    assert after.brier < before.brier
    assert after.average_precision == pytest.approx(before.average_precision, abs=1e-9)


def test_is_the_minimum_that_scikit_learn_finds():
    scores, labels = _distorted(rows=3_000)
    calibration = fit_calibration(scores, labels)
    positives, rows = labels.sum(), len(labels)
    high, low = (positives + 1) / (positives + 2), 1 / (rows - positives + 2)
    target = np.where(labels, high, low)
    logit = np.log(scores / (1 - scores)).reshape(-1, 1)
    oracle = LogisticRegression(C=np.inf, tol=1e-10).fit(
        np.vstack([logit, logit]),
        np.repeat([1, 0], rows),
        sample_weight=np.concatenate([target, 1 - target]),
    )
    assert calibration.slope == pytest.approx(oracle.coef_[0, 0], rel=1e-4)
    assert calibration.intercept == pytest.approx(oracle.intercept_[0], rel=1e-3, abs=1e-3)


def test_too_few_of_a_class_leave_scores_as_they_are():
    scores, labels = np.linspace(0, 1, 1_000), np.arange(1_000) >= 981
    for truth in (labels, ~labels):
        calibration = fit_calibration(scores, truth)
        assert calibration.kind == "identity"
        np.testing.assert_array_equal(calibration.apply(scores), scores)
    assert fit_calibration(scores, np.arange(1_000) >= 980).kind != "identity"


def test_scores_that_rank_backwards_are_shifted_not_reversed():
    scores, labels = _distorted()
    calibration = fit_calibration(1 - scores, labels)
    assert (calibration.kind, calibration.slope) == ("shift", 1.0)
    assert calibration.apply(1 - scores).mean() == pytest.approx(labels.mean(), rel=0.02)


@given(st.integers(0, 2**32), st.integers(50, 400), st.floats(-3, 3))
def test_ranking_is_kept_and_values_are_probabilities(seed, rows, slope):
    random = np.random.default_rng(seed)
    scores = random.random(rows)
    labels = random.random(rows) < 1 / (1 + np.exp(-slope * (scores - 0.5)))
    out = fit_calibration(scores, labels).apply(np.sort(scores))
    assert (np.diff(out) >= 0).all()
    assert ((out >= 0) & (out <= 1)).all()


def test_separable_and_extreme_scores_stay_finite():
    scores = np.concatenate([np.zeros(100), np.ones(100)])
    calibration = fit_calibration(scores, scores)
    assert np.isfinite([calibration.slope, calibration.intercept]).all()
    assert calibration.apply(np.array([0.0]))[0] < 0.05
    assert calibration.apply(np.array([1.0]))[0] > 0.95


def test_survives_json():
    calibration = fit_calibration(*_distorted(rows=5_000))
    assert Calibration.from_json(json.loads(json.dumps(calibration.to_json()))) == calibration
