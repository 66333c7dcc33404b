import json

from engine.learning import Interval, judge
from engine.spec import GateSpec

CHALLENGER = {"average_precision": 0.21, "lift": 9.0, "recall": 0.4}
CHAMPION = {"average_precision": 0.2}


def _gain(gain, low, high=0.1):
    return Interval(gain, low, high, 0.8, 200)


def _failed(verdict):
    return [rule.name for rule in verdict.reasons if not rule.passed]


def test_first_model_needs_the_floors_alone():
    gate = GateSpec(floors={"lift": 1.5, "recall": 0.4})
    verdict = judge(gate, challenger=CHALLENGER, champion=None, gain=None)
    assert verdict.passed
    assert [rule.name for rule in verdict.reasons] == ["floor lift", "floor recall", "champion"]


def test_floor_missed_fails_with_actual_and_limit():
    verdict = judge(GateSpec(floors={"recall": 0.41, "lift": 1}), challenger=CHALLENGER, champion=None, gain=None)
    assert not verdict.passed
    assert _failed(verdict) == ["floor recall"]
    assert verdict.text == "recall 0.4000 is below its floor 0.41"


def test_undefined_metric_misses_its_floor():
    for challenger in ({"precision": None}, {}):
        verdict = judge(GateSpec(floors={"precision": 0.0}), challenger=challenger, champion=None, gain=None)
        assert _failed(verdict) == ["floor precision"]
        assert "undefined" in verdict.text


def test_gain_and_tolerance_are_both_needed_and_their_limits_pass():
    gate = GateSpec(min_gain=0.01, tolerance=0.02)
    for gain, failed in (
        (_gain(0.01, -0.02), []),
        (_gain(0.0099, -0.02), ["gain"]),
        (_gain(0.01, -0.0201), ["tolerance"]),
        (_gain(-0.05, -0.1), ["gain", "tolerance"]),
    ):
        verdict = judge(gate, challenger=CHALLENGER, champion=CHAMPION, gain=gain)
        assert _failed(verdict) == failed
        assert verdict.passed == (not failed)


def test_comparison_says_both_models_and_the_interval():
    text = judge(GateSpec(), challenger=CHALLENGER, champion=CHAMPION, gain=_gain(0.01, -0.005)).text
    assert "0.2100 against 0.2000" in text
    assert "80% interval" in text
    assert "-0.0050 to +0.1000" in text


def test_champion_that_cannot_be_compared_with_stays():
    verdict = judge(GateSpec(), challenger=CHALLENGER, champion=CHAMPION, gain=None)
    assert _failed(verdict) == ["gain"]


def test_scoring_must_fit_its_budget():
    arguments = {"challenger": CHALLENGER, "champion": None, "gain": None}
    assert judge(GateSpec(), **arguments, scoring_bytes=512, allowed_bytes=512).passed
    verdict = judge(GateSpec(), **arguments, scoring_bytes=600 * 2**20, allowed_bytes=512 * 2**20)
    assert verdict.text == "scoring needs 600 MiB, over the 512 MiB allowed"


def test_verdict_is_jsonable():
    verdict = judge(GateSpec(floors={"lift": 1.5}), challenger=CHALLENGER, champion=None, gain=None)
    assert json.loads(json.dumps(verdict.to_json()))["reasons"][0]["name"] == "floor lift"
