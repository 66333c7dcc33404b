import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sk

from engine.errors import LearningError
from engine.learning import PositiveScores, RankingMetrics, metrics

# few distinct values, so that ties are the rule
scored = st.lists(
    st.tuples(st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), st.floats(0, 1)), st.booleans()),
    min_size=1,
    max_size=60,
)


def _arrays(rows):
    return np.array([row[0] for row in rows]), np.array([row[1] for row in rows])


@given(scored.filter(lambda rows: any(row[1] for row in rows) and not all(row[1] for row in rows)))
def test_ranking_is_scikit_learns_with_ties(rows):
    scores, labels = _arrays(rows)
    found = metrics(scores, labels, threshold=0.5)
    assert found.average_precision == pytest.approx(sk.average_precision_score(labels, scores), rel=1e-12)
    assert found.roc_auc == pytest.approx(sk.roc_auc_score(labels, scores), rel=1e-12, abs=1e-15)
    assert found.lift == pytest.approx(found.average_precision / labels.mean(), rel=1e-12)


@given(scored, st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]))
def test_decisions_and_brier_are_scikit_learns(rows, threshold):
    scores, labels = _arrays(rows)
    found = metrics(scores, labels, threshold=threshold)
    alerts = scores >= threshold
    expected = sk.precision_recall_fscore_support(labels, alerts, average="binary", zero_division=np.nan)
    for mine, theirs in zip((found.precision, found.recall, found.f1), expected[:3], strict=True):
        if np.isnan(theirs):
            assert mine is None
        else:
            assert mine == pytest.approx(theirs, rel=1e-12)
    assert found.alert_rate == alerts.mean()
    assert found.brier == pytest.approx(np.mean((scores - labels) ** 2), abs=1e-9)


@given(scored, st.lists(st.integers(0, 60), max_size=5), st.randoms(use_true_random=False))
def test_batches_and_order_change_nothing(rows, cuts, random):
    scores, labels = _arrays(rows)
    whole = metrics(scores, labels, threshold=0.5)
    random.shuffle(rows)
    scores, labels = _arrays(rows)
    first = PositiveScores()
    parts = [slice(a, b) for a, b in zip([0, *sorted(cuts)], [*sorted(cuts), None], strict=True)]
    for part in parts:
        first.update(scores[part], labels[part])
    second = RankingMetrics(first.finish(), threshold=0.5)
    for part in parts:
        second.update(scores[part], labels[part])
    assert second.finish() == whole


def test_undefined_is_none_without_a_warning():
    none = metrics(np.array([0.2, 0.3]), np.array([0, 0]), threshold=0.5)
    assert (none.average_precision, none.roc_auc, none.lift, none.precision, none.recall, none.f1) == (None,) * 6
    assert none.base_rate == 0
    only = metrics(np.array([0.2, 0.3]), np.array([1, 1]), threshold=0.25)
    assert (only.average_precision, only.roc_auc, only.lift, only.recall) == (1.0, None, 1.0, 0.5)
    empty = metrics(np.empty(0), np.empty(0), threshold=0.5)
    assert (empty.rows, empty.base_rate, empty.alert_rate, empty.brier, empty.calibration_error) == (0, *(None,) * 4)


def test_scores_that_are_no_probabilities_still_rank():
    found = metrics(np.array([-3.0, 700.0, 2.0]), np.array([0, 1, 0]), threshold=10)
    assert (found.average_precision, found.precision, found.brier, found.calibration_error) == (1.0, 1.0, None, None)


def test_calibration_error_is_zero_when_calibrated_and_the_gap_when_not():
    random = np.random.default_rng(0)
    scores = random.beta(0.5, 20, size=400_000)
    labels = random.random(400_000) < scores
    assert metrics(scores, labels, threshold=0.5).calibration_error < 0.001
    doubled = np.minimum(1.0, scores * 2)
    expected = np.abs(doubled - scores).mean()
    assert metrics(doubled, labels, threshold=0.5).calibration_error == pytest.approx(expected, rel=0.05)


def test_passes_over_other_rows_are_refused():
    first = PositiveScores()
    first.update(np.array([0.5]), np.array([1]))
    second = RankingMetrics(first.finish(), threshold=0.5)
    second.update(np.array([0.5, 0.5]), np.array([1, 1]))
    with pytest.raises(ValueError, match="pass 1 saw 1 positives, pass 2 2"):
        second.finish()


def test_missing_scores_and_strange_labels_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        metrics(np.array([np.nan]), np.array([1]), threshold=0.5)
    with pytest.raises(LearningError, match="a label is"):
        metrics(np.array([0.5]), np.array([-1]), threshold=0.5)


def test_many_rows_are_counted_in_little_memory():
    rows = 1_500_000
    labels = np.arange(rows) % 7 == 0
    scores = (np.arange(rows) * 7_919 % rows) / rows
    tracemalloc.start()
    try:
        found = metrics(scores, labels, threshold=0.5)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert found.rows == rows
    assert peak < 25 * rows  # with all of them at once it is 68
