"""Whether a model is due to be trained again, with every reason. Pure: facts in, decision out.

The facts come from the tables and the ledger; events only wake the flow that asks here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from engine.refs import content_hash
from engine.spec import PipelineSpec, TriggersSpec
from engine.units import format_duration


def learner_hash(spec: PipelineSpec) -> str:
    """Return the hash of the learner's section; with the feature set it is what the trigger ``code`` watches."""
    return content_hash(spec.learner.model_dump(mode="json"))


@dataclass(frozen=True)
class ChampionFacts:
    """What is known of the champion's training."""

    version: int
    trained_until: datetime  # its training cut-off, UTC
    rows: int  # the table's rows at its training
    labels: int  # label records at its training
    feature_set: str  # hash of the features that it reads
    learner: str = ""  # hash of its learner's section
    code: str | None = None  # hash of the code of its transform; None where nobody wrote it down


@dataclass(frozen=True)
class Decision:
    """Whether to train again; one of ``reasons`` and ``kept_because`` is empty, and the other never."""

    retrain: bool
    reasons: tuple[str, ...]  # the triggers that hold, with actual and limit
    kept_because: tuple[str, ...] = ()  # the triggers that do not hold, when none does

    @property
    def text(self) -> str:
        """One line for reports."""
        return "; ".join(self.reasons or self.kept_because)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)


def should_retrain(
    triggers: TriggersSpec,
    *,
    champion: ChampionFacts | None,
    now: datetime,
    rows: int,
    labels: int,
    drift: Mapping[str, float | None],
    feature_set: str,
    learner: str = "",
    code: str | None = None,
) -> Decision:
    """Return whether to train again. A limit that is just reached holds.

    Parameters
    ----------
    triggers
        The limits.
    champion
        The model in use; None is a reason by itself (also where the baseline is champion number zero).
    now
        The run's ``as_of``, UTC.
    rows, labels
        Rows and label records of the tables now; the champion's are subtracted.
    drift
        Population stability index by feature since the champion's training; None where undefined.
    feature_set, learner, code
        Hashes of the pipeline file's features and learner, and of the code of the transform (None: not known), now.

    Notes
    -----
    Calendar months are 28 to 31 days: ``every: 30d`` asked at each month's end does not hold at the end of February.
    """
    if champion is None:
        return Decision(True, ("there is no champion yet",))
    checks: list[tuple[bool, str]] = []
    if triggers.every is not None:
        checks.append(_age(now - champion.trained_until, every=triggers.every))
    if triggers.new_rows is not None:
        checks.append(_new_rows(rows - champion.rows, before=champion.rows, limit=triggers.new_rows))
    if triggers.new_labels is not None:
        new = labels - champion.labels
        text = f"{new:,} new label records (from {triggers.new_labels:,} on)"
        checks.append((new >= triggers.new_labels, text))
    if triggers.drift is not None:
        checks.append(_drift(drift, limit=triggers.drift))
    if triggers.code:
        changed = [
            what
            for what, before, after in (
                ("features", champion.feature_set, feature_set),
                ("learner", champion.learner, learner),
            )
            if before != after
        ]
        changed = [f"the pipeline file's {' and '.join(changed)}"] if changed else []
        if None not in (champion.code, code) and champion.code != code:
            changed.append("the code of its transform")
        text = f"{' and '.join(changed)} changed" if changed else "features and learner unchanged"
        checks.append((bool(changed), text))
    reasons = tuple(text for holds, text in checks if holds)
    if reasons:
        return Decision(True, reasons)
    kept = tuple(text for _, text in checks)
    return Decision(False, (), kept or ("no trigger is set",))


def _age(age: timedelta, *, every: timedelta) -> tuple[bool, str]:
    days = age / timedelta(days=1)
    shown = f"{days:.4g} days" if days >= 2 else format_duration(max(age, timedelta(0)))
    return age >= every, f"{shown} since the training cut-off (every {format_duration(every)})"


def _new_rows(new: int, *, before: int, limit: float) -> tuple[bool, str]:
    share = new / before if before else math.inf if new > 0 else 0.0
    return share >= limit, f"{new:,} new rows, {share:.1%} of the {before:,} before (from {limit:.1%} on)"


def _drift(drift: Mapping[str, float | None], *, limit: float) -> tuple[bool, str]:
    known = {name: value for name, value in drift.items() if value is not None and not math.isnan(value)}
    if not known:
        return False, "drift is not measured yet"
    worst = min(known, key=lambda name: (-known[name], name))
    above = sum(value >= limit for value in known.values())
    others = f", and {above - 1} more" if above > 1 else ""
    return known[worst] >= limit, f"drift of {worst} is {known[worst]:.3f} (from {limit:g} on){others}"
