"""Ranking, decision and calibration metrics, exact and bounded: the negatives are counted, never kept.

Pass 1 keeps the scores of the positives (``PositiveScores``), pass 2 counts the negatives above and beside each
(``RankingMetrics``). Choosing a threshold is in ``threshold.py``; comparing two models in ``bootstrap.py``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.learning.cache import as_labels

_FIXED = 2**32  # squares are summed as whole multiples of 2**-32: the same sum in any order and batch size
_CELLS = 4096  # fine cells on the logit scale, from which calibration bins of equal mass are made
_LOGIT_SPAN = 20.0
_BLOCK_ROWS = 131_072  # counted at once: 70 bytes a row meanwhile


@dataclass(frozen=True)
class Metrics:
    """What a model does on rows with known labels; None where it is undefined."""

    rows: int
    positives: int
    base_rate: float | None  # share of positives
    average_precision: float | None  # as scikit-learn's, ties included
    roc_auc: float | None
    lift: float | None  # average precision over the base rate
    threshold: float
    precision: float | None  # of the alerts; None without any
    recall: float | None
    f1: float | None
    alert_rate: float | None
    brier: float | None  # None when a score is no probability
    calibration_error: float | None  # expected, over bins of about equal mass

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)


class PositiveScores:
    """Pass 1: the scores of the positives, 8 bytes each."""

    def __init__(self) -> None:
        self._parts: list[npt.NDArray[np.float64]] = []

    def update(self, scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Take one batch: scores and labels (0 and 1) of shape (rows,)."""
        values, truth = _checked(scores, labels)
        self._parts.append(values[truth == 1])

    def finish(self) -> npt.NDArray[np.float64]:
        """Return the positives' scores in ascending order."""
        return np.sort(np.concatenate(self._parts)) if self._parts else np.empty(0)


class RankingMetrics:
    """Pass 2: counts per positive score; the result does not depend on order or batch size.

    Parameters
    ----------
    positive_scores
        (positives,), from ``PositiveScores``; of the very rows that ``update`` will see.
    threshold
        A row whose score reaches it raises an alert.
    bins
        Calibration bins, at most.
    """

    def __init__(self, positive_scores: npt.NDArray[np.float64], *, threshold: float, bins: int = 15) -> None:
        self._scores, self._counts = np.unique(positive_scores, return_counts=True)
        # 2j counts the negatives between score j-1 and score j, 2j+1 those equal to score j.
        self._negatives = np.zeros(2 * len(self._scores) + 1, dtype=np.int64)
        self._threshold = threshold
        self._bins = bins
        self._rows = self._positives = self._alerts = self._hits = 0
        self._squares = 0
        self._probabilities = True
        self._cell_rows = np.zeros(_CELLS, dtype=np.int64)
        self._cell_positives = np.zeros(_CELLS, dtype=np.int64)
        self._cell_scores = np.zeros(_CELLS, dtype=np.int64)  # holds 2**31 rows

    def update(self, scores: npt.NDArray[Any], labels: npt.NDArray[Any]) -> None:
        """Take one batch: scores and labels (0 and 1) of shape (rows,)."""
        values, truth = _checked(scores, labels)
        negative = values[truth == 0]
        below = np.searchsorted(self._scores, negative, side="left")
        beside = np.searchsorted(self._scores, negative, side="right")
        self._negatives += np.bincount(below + beside, minlength=len(self._negatives))
        alert = values >= self._threshold
        self._rows += len(values)
        self._positives += int(truth.sum())
        self._alerts += int(alert.sum())
        self._hits += int((alert & (truth == 1)).sum())
        if self._probabilities and len(values):
            self._probabilities = bool(values.min() >= 0.0 and values.max() <= 1.0)
        if self._probabilities:
            self._calibrate(values, truth)

    def finish(self) -> Metrics:
        """Return the metrics.

        Raises
        ------
        ValueError
            When the two passes did not see the same positives.
        """
        if self._positives != int(self._counts.sum()):
            raise ValueError(f"pass 1 saw {self._counts.sum()} positives, pass 2 {self._positives}")
        negatives = self._rows - self._positives
        base_rate = self._positives / self._rows if self._rows else None
        average_precision = self._average_precision() if self._positives else None
        missed = self._positives - self._hits
        false = self._alerts - self._hits
        return Metrics(
            rows=self._rows,
            positives=self._positives,
            base_rate=base_rate,
            average_precision=average_precision,
            roc_auc=self._roc_auc() if self._positives and negatives else None,
            lift=average_precision / base_rate if average_precision is not None and base_rate else None,
            threshold=self._threshold,
            precision=self._hits / self._alerts if self._alerts else None,
            recall=self._hits / self._positives if self._positives else None,
            f1=2 * self._hits / (2 * self._hits + false + missed) if self._hits + false + missed else None,
            alert_rate=self._alerts / self._rows if self._rows else None,
            brier=self._squares / _FIXED / self._rows if self._probabilities and self._rows else None,
            calibration_error=self._calibration_error() if self._probabilities and self._rows else None,
        )

    def _average_precision(self) -> float:
        # Recall only moves at a positive's score, so the sum of sklearn's definition runs over those alone.
        true = np.cumsum(self._counts[::-1])
        false = np.cumsum((self._negatives[1::2] + self._negatives[2::2])[::-1])
        return float(np.sum(self._counts[::-1] * (true / (true + false))) / self._positives)

    def _roc_auc(self) -> float:
        equal = self._negatives[1::2]
        below = np.cumsum(self._negatives[0:-1:2]) + np.concatenate(([0], np.cumsum(equal)[:-1]))
        won = sum(int(c) * (2 * int(b) + int(e)) for c, b, e in zip(self._counts, below, equal, strict=True))
        return won / (2 * self._positives * (self._rows - self._positives))

    def _calibrate(self, values: npt.NDArray[np.float64], truth: npt.NDArray[np.uint8]) -> None:
        with np.errstate(divide="ignore"):
            logit = np.log(values) - np.log1p(-values)
        place = (np.clip(logit, -_LOGIT_SPAN, _LOGIT_SPAN) + _LOGIT_SPAN) * ((_CELLS - 1) / (2 * _LOGIT_SPAN))
        cell = place.astype(np.int64)
        self._cell_rows += np.bincount(cell, minlength=_CELLS)
        self._cell_positives += np.bincount(cell[truth == 1], minlength=_CELLS)
        sums = np.zeros(_CELLS, dtype=np.int64)
        np.add.at(sums, cell, np.rint(values * _FIXED).astype(np.int64))
        self._cell_scores += sums
        self._squares += int(np.rint((values - truth) ** 2 * _FIXED).astype(np.int64).sum())

    def _calibration_error(self) -> float:
        bin_of = np.minimum((np.cumsum(self._cell_rows) - 1) * self._bins // self._rows, self._bins - 1)
        gap = 0.0
        for number in range(self._bins):
            inside = bin_of == number
            gap += abs(int(self._cell_scores[inside].sum()) / _FIXED - int(self._cell_positives[inside].sum()))
        return gap / self._rows


def metrics(scores: npt.NDArray[Any], labels: npt.NDArray[Any], *, threshold: float, bins: int = 15) -> Metrics:
    """Return the metrics of rows that are at hand as arrays.

    Parameters
    ----------
    scores, labels
        (rows,); finite scores, labels 0 and 1.
    threshold
        A row whose score reaches it raises an alert.
    bins
        Calibration bins, at most.

    Examples
    --------
    >>> metrics(np.array([0.1, 0.4, 0.35, 0.8]), np.array([0, 0, 1, 1]), threshold=0.5).average_precision
    0.8333333333333333
    """
    kept = PositiveScores()
    kept.update(scores, labels)
    counted = RankingMetrics(kept.finish(), threshold=threshold, bins=bins)
    for start in range(0, len(scores), _BLOCK_ROWS):
        counted.update(scores[start : start + _BLOCK_ROWS], labels[start : start + _BLOCK_ROWS])
    return counted.finish()


def _checked(
    scores: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.uint8]]:
    values = np.asarray(scores, dtype=np.float64)
    truth = as_labels(labels)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores are {values.shape} and labels {truth.shape}; both must be (rows,)")
    if not np.isfinite(values).all():
        raise ValueError("a score is NaN or infinite; leave rows without a score out")
    return values, truth
