"""The decision threshold, and the operating point that it gives on held-out rows.

Scores are calibrated probabilities of rows that training did not see; the caller bounds how many.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import LearningError
from engine.learning.cache import as_labels
from engine.spec import OperatingPointSpec


@dataclass(frozen=True)
class OperatingPoint:
    """The decision threshold with what it gave on held-out rows; None where undefined."""

    threshold: float  # a row whose score reaches it raises an alert
    precision: float | None
    recall: float | None
    alert_rate: float
    f1: float | None
    met: bool  # whether the wish of the pipeline file could be met on these rows
    rows: int
    positives: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> OperatingPoint:
        """Return the operating point that ``to_json`` described."""
        return cls(**value)


def choose_threshold(
    wish: OperatingPointSpec, *, scores: npt.NDArray[np.float64], labels: npt.NDArray[Any]
) -> OperatingPoint:
    """Return the operating point that meets the wish and catches the most positives.

    - precision: the lowest threshold with at least that precision; where none has it, the one with the highest.
    - recall: the highest threshold with at least that recall.
    - alert rate: the lowest threshold with at most that share of alerts; where the top score alone has more
      (ties), the top score, since a model that never alerts is of no use.

    Parameters
    ----------
    wish
        Exactly one of precision, recall, alert rate.
    scores, labels
        (rows,); scores and labels 0 and 1 of held-out rows.

    Raises
    ------
    LearningError
        When there are no rows, or no positives to measure precision or recall with.
    """
    truth = as_labels(labels)
    rows, positives = len(truth), int(truth.sum())
    if not rows or (wish.alert_rate is None and not positives):
        raise LearningError(
            f"no threshold can be chosen: {rows:,} calibration rows, {positives:,} of them positive",
            hint="Lengthen split.calibration, or choose operating_point.alert_rate, which needs no positives.",
            details={"rows": rows, "positives": positives},
        )
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    descending = np.asarray(scores, dtype=np.float64)[order]
    ends = np.append(np.flatnonzero(np.diff(descending)), rows - 1)  # last row of each run of equal scores
    alerts = ends + 1
    hits = np.cumsum(truth[order], dtype=np.int64)[ends]
    if wish.precision is not None:
        share = hits / alerts
        reached = np.flatnonzero(share >= wish.precision)
        met = len(reached) > 0
        place = reached[-1] if met else len(share) - 1 - int(np.argmax(share[::-1]))
    elif wish.recall is not None:
        met = True
        place = int(np.argmax(hits / positives >= wish.recall))
    else:
        reached = np.flatnonzero(alerts / rows <= (wish.alert_rate or 0.0))
        met = len(reached) > 0
        place = reached[-1] if met else 0
    caught, raised = int(hits[place]), int(alerts[place])
    return OperatingPoint(
        threshold=float(descending[ends[place]]),
        precision=caught / raised,
        recall=caught / positives if positives else None,
        alert_rate=raised / rows,
        f1=2 * caught / (raised + positives),
        met=met,
        rows=rows,
        positives=positives,
    )
