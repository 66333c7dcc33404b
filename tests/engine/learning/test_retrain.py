import dataclasses
from datetime import UTC, datetime, timedelta

import pytest

from engine.learning import ChampionFacts, should_retrain
from engine.spec import TriggersSpec

CUT_OFF = datetime(2013, 6, 30, tzinfo=UTC)
CHAMPION = ChampionFacts(version=3, trained_until=CUT_OFF, rows=1_000, labels=500, feature_set="f", learner="l")


def _ask(triggers, **changes):
    facts = {
        "champion": CHAMPION,
        "now": CUT_OFF,
        "rows": 1_000,
        "labels": 500,
        "drift": {},
        "feature_set": "f",
        "learner": "l",
    }
    return should_retrain(TriggersSpec(**triggers), **{**facts, **changes})


def test_without_a_champion_there_is_one_reason():
    decision = _ask({"every": "30d"}, champion=None)
    assert (decision.retrain, decision.reasons) == (True, ("there is no champion yet",))


@pytest.mark.parametrize(
    ("days", "retrain"), [(28, False), (29.999, False), (30, True), (30.5, True), (31, True), (-1, False)]
)
def test_age_holds_from_its_limit_on(days, retrain):
    decision = _ask({"every": "30d", "code": False}, now=CUT_OFF + timedelta(days=days))
    assert decision.retrain is retrain


def test_age_says_actual_and_limit():
    decision = _ask({"every": "30d"}, now=CUT_OFF + timedelta(days=31))
    assert decision.reasons == ("31 days since the training cut-off (every 30d)",)
    decision = _ask({"every": "30d"}, now=CUT_OFF + timedelta(hours=36))
    assert decision.kept_because[0] == "1d12h since the training cut-off (every 30d)"


@pytest.mark.parametrize(("rows", "retrain"), [(1_099, False), (1_100, True), (900, False)])
def test_new_rows_are_a_share_of_those_trained_on(rows, retrain):
    assert _ask({"new_rows": 0.1}, rows=rows).retrain is retrain


def test_new_rows_after_a_training_without_any():
    champion = ChampionFacts(1, CUT_OFF, rows=0, labels=0, feature_set="f", learner="l")
    assert _ask({"new_rows": 0.5}, champion=champion, rows=1).retrain
    assert not _ask({"new_rows": 0.5}, champion=champion, rows=0).retrain


@pytest.mark.parametrize(("labels", "retrain"), [(599, False), (600, True)])
def test_new_labels_are_counted(labels, retrain):
    decision = _ask({"new_labels": 100}, labels=labels)
    assert decision.retrain is retrain
    assert f"{labels - 500} new label records (from 100 on)" in decision.text


def test_worst_feature_decides_on_drift_and_unmeasured_ones_do_not():
    drift = {"a": 0.5, "b": 0.7, "c": None, "d": float("nan"), "e": 0.1}
    decision = _ask({"drift": 0.5}, drift=drift)
    assert decision.reasons == ("drift of b is 0.700 (from 0.5 on), and 1 more",)
    assert not _ask({"drift": 0.71}, drift=drift).retrain
    assert "not measured" in _ask({"drift": 0.5}, drift={"c": None}).text


def test_changed_code_is_named_unless_switched_off():
    assert _ask({}, feature_set="g").reasons == ("the pipeline file's features changed",)
    assert _ask({}, feature_set="g", learner="m").reasons == ("the pipeline file's features and learner changed",)
    assert not _ask({"code": False}, feature_set="g").retrain
    assert not _ask({}, code="new").retrain  # of a champion from before it was written down
    known = dataclasses.replace(CHAMPION, code="old")
    assert not _ask({}, champion=known, code="old").retrain
    assert _ask({}, champion=known, code="new").reasons == ("the code of its transform changed",)
    assert _ask({}, champion=known, code="new", learner="m").reasons == (
        "the pipeline file's learner and the code of its transform changed",
    )


def test_every_trigger_that_holds_is_a_reason_and_else_every_one_says_why_not():
    triggers = {"every": "30d", "new_rows": 0.1, "new_labels": 100, "drift": 0.5}
    held = _ask(triggers, now=CUT_OFF + timedelta(days=40), rows=2_000, drift={"a": 0.1})
    assert len(held.reasons) == 2
    assert held.kept_because == ()
    kept = _ask(triggers, drift={"a": 0.1})
    assert (kept.reasons, len(kept.kept_because)) == ((), 5)
    assert _ask({"code": False}).kept_because == ("no trigger is set",)
