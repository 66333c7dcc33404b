import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import LearningError
from engine.learning import OperatingPoint, choose_threshold, metrics
from engine.spec import OperatingPointSpec

rows_of_both = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=1, max_size=40).filter(
    lambda rows: any(row[1] for row in rows)
)
wishes = st.tuples(st.sampled_from(["precision", "recall", "alert_rate"]), st.floats(0, 1))


@given(rows_of_both, wishes)
def test_is_the_best_that_brute_force_finds(rows, wish):
    name, limit = wish
    scores, labels = np.array([row[0] for row in rows]) / 8, np.array([row[1] for row in rows])
    point = choose_threshold(OperatingPointSpec(**{name: limit}), scores=scores, labels=labels)
    measured = {threshold: metrics(scores, labels, threshold=threshold) for threshold in set(scores)}
    if name == "recall":
        fits = [threshold for threshold, found in measured.items() if found.recall >= limit]
        best = max(fits)
    elif name == "precision":
        fits = [threshold for threshold, found in measured.items() if found.precision >= limit]
        highest = max(found.precision for found in measured.values())
        best = min(fits) if fits else min(t for t, found in measured.items() if found.precision == highest)
    else:
        fits = [threshold for threshold, found in measured.items() if found.alert_rate <= limit]
        best = min(fits) if fits else max(measured)
    assert (point.threshold, point.met) == (best, bool(fits))
    found = measured[best]
    assert (point.precision, point.recall, point.alert_rate) == (found.precision, found.recall, found.alert_rate)
    assert point.f1 == pytest.approx(found.f1)


def test_alert_rate_needs_no_positives_and_the_others_do():
    scores, labels = np.arange(100) / 100, np.zeros(100)
    point = choose_threshold(OperatingPointSpec(alert_rate=0.02), scores=scores, labels=labels)
    assert (point.threshold, point.alert_rate, point.recall, point.precision) == (0.98, 0.02, None, 0.0)
    for wish in (OperatingPointSpec(precision=0.5), OperatingPointSpec(recall=0.5)):
        with pytest.raises(LearningError, match="100 calibration rows, 0 of them positive"):
            choose_threshold(wish, scores=scores, labels=labels)
    with pytest.raises(LearningError, match="0 calibration rows"):
        choose_threshold(OperatingPointSpec(alert_rate=0.1), scores=np.empty(0), labels=np.empty(0))


def test_survives_json():
    point = choose_threshold(OperatingPointSpec(recall=0.5), scores=np.array([0.3, 0.7]), labels=np.array([0, 1]))
    assert OperatingPoint.from_json(json.loads(json.dumps(point.to_json()))) == point
