"""The gate: whether a candidate becomes the challenger, each rule with its reason. Pure.

The figures come from ``metrics.py`` and ``bootstrap.py``; moving the alias is in the promote stage.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.learning.bootstrap import Interval
from engine.spec import GateSpec
from engine.units import format_bytes


@dataclass(frozen=True)
class Rule:
    """One rule of the gate."""

    name: str
    passed: bool
    text: str  # actual and limit, for a person


@dataclass(frozen=True)
class Verdict:
    """All rules; it passes when each of them does."""

    passed: bool
    reasons: tuple[Rule, ...]

    @property
    def text(self) -> str:
        """One line: the failed rules, or, when all passed, all of them."""
        shown = [rule.text for rule in self.reasons if not rule.passed] or [rule.text for rule in self.reasons]
        return "; ".join(shown)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)


def judge(
    gate: GateSpec,
    *,
    challenger: Mapping[str, float | None],
    champion: Mapping[str, float | None] | None,
    gain: Interval | None,
    scoring_bytes: int | None = None,
    allowed_bytes: int | None = None,
) -> Verdict:
    """Return the verdict on a candidate.

    Parameters
    ----------
    gate
        Floors, least gain, tolerance.
    challenger, champion
        ``Metrics.to_json()`` of each on the same rows, which neither has seen; no champion leaves the floors alone.
    gain
        The paired bootstrap of the two; None where it is undefined, which with a champion fails.
    scoring_bytes, allowed_bytes
        Projected memory of scoring with the candidate, and the budget; the rule is there when both are.
    """
    rules = [_floor(name, limit, challenger.get(name)) for name, limit in gate.floors.items()]
    if champion is None:
        rules.append(Rule("champion", True, "there is no champion to compare with"))
    elif gain is None:
        rules.append(Rule("gain", False, "the gain over the champion is undefined: no positive row to compare on"))
    else:
        rules.extend(_comparison(gate, gain, challenger=challenger, champion=champion))
    if scoring_bytes is not None and allowed_bytes is not None:
        fits = scoring_bytes <= allowed_bytes
        rules.append(
            Rule(
                "scoring memory",
                fits,
                f"scoring needs {format_bytes(scoring_bytes)}, {'within' if fits else 'over'} "
                f"the {format_bytes(allowed_bytes)} allowed",
            )
        )
    return Verdict(all(rule.passed for rule in rules), tuple(rules))


def _floor(name: str, limit: float, actual: float | None) -> Rule:
    label = name.replace("_", " ")
    if actual is None:
        return Rule(f"floor {name}", False, f"{label} is undefined on the validation rows; its floor is {limit:g}")
    passed = actual >= limit
    return Rule(
        f"floor {name}", passed, f"{label} {actual:.4f} is {'at least' if passed else 'below'} its floor {limit:g}"
    )


def _comparison(
    gate: GateSpec,
    gain: Interval,
    *,
    challenger: Mapping[str, float | None],
    champion: Mapping[str, float | None],
) -> list[Rule]:
    pair = " against ".join(_number(side.get("average_precision")) for side in (challenger, champion))
    safe = gain.low >= -gate.tolerance
    tolerance = Rule(
        "tolerance",
        safe,
        f"average precision {pair}: a gain of {gain.gain:+.4f}, {gain.confidence:.0%} interval {gain.low:+.4f} to "
        f"{gain.high:+.4f}, whose lower end is {'not below' if safe else 'below'} the tolerance {-gate.tolerance:+g}",
    )
    if gate.min_gain is None:
        return [tolerance]
    enough = gain.gain >= gate.min_gain
    word = "at least" if enough else "below"
    return [Rule("gain", enough, f"a gain of {gain.gain:+.4f} is {word} the least gain {gate.min_gain:+g}"), tolerance]


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
