"""How sure a difference in average precision is: a paired bootstrap on the same rows.

Only for held-out rows that fit as arrays (the gate's, bounded by the caller). What follows from it is in ``gate.py``.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import LearningError
from engine.learning.cache import as_labels


@dataclass(frozen=True)
class Interval:
    """A gain in average precision, challenger less champion, with its bootstrap interval."""

    gain: float  # on the rows as they are
    low: float
    high: float
    confidence: float  # share of the bootstraps between low and high
    bootstraps: int

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)


def paired_bootstrap(
    labels: npt.NDArray[Any],
    challenger_scores: npt.NDArray[Any],
    champion_scores: npt.NDArray[Any],
    *,
    bootstraps: int,
    confidence: float,
    seed: int,
) -> Interval:
    """Return the gain in average precision and the middle ``confidence`` of its bootstraps.

    Each bootstrap weighs every row by a Poisson(1) draw, the same for both models. Negatives that lie between the
    same positives in both rankings are one cell, drawn as Poisson(count), so a bootstrap costs
    O(positives + cells), and the whole O(rows log rows + bootstraps * cells), with at most ``rows`` cells. Memory is
    about 60 bytes a row. Rows are taken as independent; where many share a cause (a storm) the interval is too narrow.

    Parameters
    ----------
    labels, challenger_scores, champion_scores
        (rows,); labels 0 and 1, finite scores of the same rows.
    bootstraps, confidence, seed
        How many, which share of them the interval holds, and of which random stream.

    Raises
    ------
    LearningError
        When there are no positives.

    References
    ----------
    Chamandy et al. 2012, "Estimating Uncertainty for Massive Data Streams" (Poisson bootstrap).
    """
    truth = as_labels(labels)
    sides = [np.asarray(scores, dtype=np.float64) for scores in (challenger_scores, champion_scores)]
    if any(side.shape != truth.shape or not np.isfinite(side).all() for side in sides):
        raise ValueError(f"both models need one finite score for each of the {len(truth)} rows")
    positives = int(truth.sum())
    if not positives:
        raise LearningError(
            f"two models cannot be compared on {len(truth):,} rows without a positive",
            hint="Lengthen split.validation.",
            details={"rows": len(truth), "positives": 0},
        )
    levels = [np.unique(side[truth == 1], return_inverse=True) for side in sides]
    places = [
        np.searchsorted(level, side[truth == 0], side="right") for (level, _), side in zip(levels, sides, strict=True)
    ]
    # Cell 0 of a model lies below all its positives and never counts; cells 0 in both are dropped.
    joint = places[0].astype(np.int64) * (len(levels[1][0]) + 1) + places[1]
    cells, counts = np.unique(joint[joint > 0], return_counts=True)
    cell_places = np.divmod(cells, len(levels[1][0]) + 1)

    def gain(positive_weights: npt.NDArray[Any], negative_weights: npt.NDArray[Any]) -> float:
        precision = [
            _average_precision(inverse, len(level), place, positive_weights, negative_weights)
            for (level, inverse), place in zip(levels, cell_places, strict=True)
        ]
        return precision[0] - precision[1]

    random = np.random.Generator(np.random.PCG64(seed))
    drawn = np.empty(bootstraps)
    for number in range(bootstraps):
        positive_weights = random.poisson(1.0, size=positives)
        while not positive_weights.any():  # average precision is undefined without one
            positive_weights = random.poisson(1.0, size=positives)
        drawn[number] = gain(positive_weights, random.poisson(counts))
    edge = (1.0 - confidence) / 2.0
    low, high = np.quantile(drawn, [edge, 1.0 - edge])
    return Interval(gain(np.ones(positives), counts), float(low), float(high), confidence, bootstraps)


def _average_precision(
    inverse: npt.NDArray[Any],
    levels: int,
    place: npt.NDArray[Any],
    positive_weights: npt.NDArray[Any],
    negative_weights: npt.NDArray[Any],
) -> float:
    hits = np.bincount(inverse, weights=positive_weights, minlength=levels)[::-1]
    false = np.bincount(place, weights=negative_weights, minlength=levels + 1)[:0:-1]
    true = np.cumsum(hits)
    seen = true + np.cumsum(false)
    return float(np.sum(hits * true / np.maximum(seen, 1.0)) / true[-1])
