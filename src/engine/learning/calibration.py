"""Platt's sigmoid on the logit: two numbers that make a score a probability and keep its ranking.

It comes after the prior correction (``sampling.py``) and is fitted on rows that neither training nor the gate uses.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engine.learning.cache import as_labels

MINIMUM_OF_EACH_CLASS = 20
"""With fewer positives or negatives, two parameters would follow the luck of the draw: the scores stay as they are."""

_EDGE = 1e-15  # scores are kept this far from 0 and 1, where the logit is infinite
_SMALLEST_SLOPE = 0.05


@dataclass(frozen=True)
class Calibration:
    """``sigmoid(slope * logit(p) + intercept)``, with slope above 0; ``identity`` leaves scores untouched."""

    kind: Literal["sigmoid", "shift", "identity"]  # shift: slope fixed at 1, because the fitted one would not rank
    slope: float = 1.0
    intercept: float = 0.0
    rows: int = 0  # it was fitted on
    positives: int = 0  # among them

    def apply(self, scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities of scores in [0, 1], in the same ranking."""
        if self.kind == "identity":
            return scores
        return _sigmoid(self.slope * _logit(scores) + self.intercept)

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Return the calibration that ``to_json`` described."""
        return cls(**value)


def fit_calibration(scores: npt.NDArray[np.float64], labels: npt.NDArray[Any]) -> Calibration:
    """Return the sigmoid that fits held-out rows best, by Newton steps on the regularised log loss.

    Parameters
    ----------
    scores
        float64 (rows,) in [0, 1].
    labels
        (rows,); 0 and 1.

    Returns
    -------
    Calibration
        ``identity`` below ``MINIMUM_OF_EACH_CLASS``; ``shift`` where the fitted slope would be below 0.05 and so
        lose or reverse the ranking (scores that say nothing on these rows).

    References
    ----------
    Platt 1999; targets and line search as in Lin, Lin and Weng 2007, doi:10.1007/s10994-007-5018-6.
    """
    truth = as_labels(labels).astype(np.float64)
    rows, positives = len(truth), int(truth.sum())
    if min(positives, rows - positives) < MINIMUM_OF_EACH_CLASS:
        return Calibration("identity", rows=rows, positives=positives)
    target = np.where(truth == 1, (positives + 1) / (positives + 2), 1 / (rows - positives + 2))
    logits = _logit(np.asarray(scores, dtype=np.float64))
    slope, intercept = _newton(logits, target)
    if slope >= _SMALLEST_SLOPE:
        return Calibration("sigmoid", slope, intercept, rows, positives)
    return Calibration("shift", 1.0, _shift(logits, target), rows, positives)


def _newton(logits: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> tuple[float, float]:
    # From the base rate, where no row's curvature vanishes; from slope 1 extreme scores stop Newton at once.
    mean = float(target.mean())
    slope, intercept = 0.0, float(np.log(mean / (1.0 - mean)))
    loss = _loss(slope * logits + intercept, target)
    for _ in range(100):
        p = _sigmoid(slope * logits + intercept)
        residual, heft = p - target, p * (1.0 - p)
        gradient_a, gradient_b = float(residual @ logits), float(residual.sum())
        if max(abs(gradient_a), abs(gradient_b)) < 1e-9 * len(target):
            break
        h_aa, h_ab, h_bb = float(heft @ logits**2) + 1e-12, float(heft @ logits), float(heft.sum()) + 1e-12
        determinant = max(h_aa * h_bb - h_ab**2, 1e-300)
        step_a = -(h_bb * gradient_a - h_ab * gradient_b) / determinant
        step_b = -(h_aa * gradient_b - h_ab * gradient_a) / determinant
        size, descent = 1.0, gradient_a * step_a + gradient_b * step_b
        while size > 1e-10:
            tried = _loss((slope + size * step_a) * logits + intercept + size * step_b, target)
            if tried <= loss + 1e-4 * size * descent:
                break
            size /= 2
        else:
            break  # no step helps any more: this is the minimum to rounding
        slope, intercept, loss = slope + size * step_a, intercept + size * step_b, tried
    return slope, intercept


def _shift(logits: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> float:
    """Return the intercept at which the mean probability is that of the targets: bisection, since it only grows."""
    low, high = -100.0, 100.0  # logits lie within 35 of 0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if float(_sigmoid(logits + middle).mean()) < float(target.mean()) else (low, middle)
    return (low + high) / 2


def _loss(margin: npt.NDArray[np.float64], target: npt.NDArray[np.float64]) -> float:
    return float(np.sum(np.logaddexp(0.0, margin) - target * margin))


def _logit(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    kept = np.clip(scores, _EDGE, 1.0 - _EDGE)
    return np.asarray(np.log(kept) - np.log1p(-kept), dtype=np.float64)


def _sigmoid(margin: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    small = np.exp(-np.abs(margin))  # never overflows
    return np.where(margin >= 0, 1.0, small) / (1.0 + small)
