"""Drift per feature: histograms of the training rows, and how far later rows lie from them.

Works on encoded matrices (numeric columns, and categories as codes). When drift retrains is in ``retrain.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from engine.learning.sampling import row_uniform

_CODES = 50  # codes are ranks by frequency, so those beyond are rare: one bin together
_SAMPLE_VALUES = 2_000_000  # at most, over all features: 8 MB, twice that while it is taken
_SAMPLE_ROWS = 50_000


@dataclass(frozen=True)
class FeatureHistogram:
    """Bins and counts of one feature on the training rows; the last bin holds what is missing."""

    name: str
    kind: Literal["numeric", "categorical"]
    edges: tuple[float, ...]  # numeric: bin i holds values from edge i-1 on and below edge i
    codes: int  # categorical: bins of a code each; one more holds all other codes
    counts: tuple[int, ...]

    @property
    def bins(self) -> int:
        """Number of bins, that of missing values included."""
        return (len(self.edges) + 1 if self.kind == "numeric" else self.codes + 1) + 1

    def count(self, values: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
        """Return how many of ``values`` (rows,) lie in each bin, as int64 (bins,)."""
        missing = np.isnan(values)
        present = values[~missing].astype(np.float64)
        if self.kind == "numeric":
            place = np.searchsorted(np.asarray(self.edges), present, side="right")
        else:
            place = np.where((present >= 0) & (present < self.codes), present, self.codes).astype(np.int64)
        counts = np.bincount(place, minlength=self.bins)
        counts[-1] = missing.sum()
        return counts.astype(np.int64)


@dataclass(frozen=True)
class Reference:
    """The histograms of all features, in the order of the matrix's columns."""

    features: tuple[FeatureHistogram, ...]

    def count(self, matrix: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int64], ...]:
        """Return the counts of a batch (rows, features), one int64 (bins,) a feature; batches add up."""
        if matrix.shape[1] != len(self.features):
            raise ValueError(f"the matrix has {matrix.shape[1]} columns, the reference {len(self.features)}")
        return tuple(feature.count(matrix[:, column]) for column, feature in enumerate(self.features))

    def psi(self, counts: Sequence[npt.NDArray[np.int64]]) -> dict[str, float | None]:
        """Return the population stability index of each feature by name; None without rows."""
        pairs = zip(self.features, counts, strict=True)
        return {feature.name: psi(feature.counts, counted) for feature, counted in pairs}

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Reference:
        """Return the reference that ``to_json`` described."""
        return cls(
            tuple(
                FeatureHistogram(**{**one, "edges": tuple(one["edges"]), "counts": tuple(one["counts"])})
                for one in value["features"]
            )
        )


class DriftCounter:
    """Adds up the counts of batches; the sum does not depend on their size or order."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        self.counts = tuple(np.zeros(feature.bins, dtype=np.int64) for feature in reference.features)

    def update(self, matrix: npt.NDArray[np.float32]) -> None:
        """Take one batch, float32 (rows, features)."""
        for total, counted in zip(self.counts, self.reference.count(matrix), strict=True):
            total += counted

    def finish(self) -> dict[str, float | None]:
        """Return the population stability index of each feature by name; None without rows."""
        return self.reference.psi(self.counts)


class ReferenceBuilder:
    """Takes the training rows in batches and keeps a bounded sample of them.

    The sample is the rows whose position hashes lowest, so it is the same whatever the batch size; at most 50,000
    rows and 2 million values. (Ten bins counted on 50,000 rows are uncertain by a PSI of 0.0002.)

    Parameters
    ----------
    names
        Of the matrix's columns.
    categorical
        Cardinality by column, for columns that hold codes 0, 1, ... ranked by frequency.
    bins
        Of a numeric feature, at about equal mass; a value that fills a bin alone gets its own.
    seed
        Of the sample.
    """

    def __init__(
        self, names: Sequence[str], *, categorical: Mapping[int, int] | None = None, bins: int = 10, seed: int = 0
    ) -> None:
        self._names = tuple(names)
        self._categorical = dict(categorical or {})
        self._bins = bins
        self._seed = seed
        self._room = max(1_000, min(_SAMPLE_ROWS, _SAMPLE_VALUES // max(1, len(self._names))))
        self._rows = 0
        self._values = np.empty((0, len(self._names)), dtype=np.float32)
        self._draws = np.empty(0)

    def update(self, matrix: npt.NDArray[np.float32]) -> None:
        """Take one batch, float32 (rows, features), in the order of the rows."""
        if matrix.shape[1] != len(self._names):
            raise ValueError(f"the matrix has {matrix.shape[1]} columns, there are {len(self._names)} names")
        for start in range(0, len(matrix), self._room):
            part = matrix[start : start + self._room]
            draws = row_uniform(np.arange(self._rows, self._rows + len(part), dtype=np.int64), seed=self._seed)
            self._rows += len(part)
            if len(self._draws) == self._room:
                low = draws < self._draws.max()
                part, draws = part[low], draws[low]
            values, draws = np.concatenate((self._values, part)), np.concatenate((self._draws, draws))
            if len(draws) > self._room:
                lowest = np.argpartition(draws, self._room - 1)[: self._room]
                values, draws = values[lowest], draws[lowest]
            self._values, self._draws = values, draws

    def finish(self) -> Reference:
        """Return the reference; without rows every count is 0 and every drift undefined."""
        return Reference(tuple(self._histogram(column, name) for column, name in enumerate(self._names)))

    def _histogram(self, column: int, name: str) -> FeatureHistogram:
        values = self._values[:, column]
        if column in self._categorical:
            empty = FeatureHistogram(name, "categorical", (), min(self._categorical[column], _CODES), ())
        else:
            empty = FeatureHistogram(name, "numeric", _edges(values[~np.isnan(values)], bins=self._bins), 0, ())
        return dataclasses.replace(empty, counts=tuple(int(count) for count in empty.count(values)))


def psi(reference: Sequence[int], counts: Sequence[int] | npt.NDArray[np.int64]) -> float | None:
    """Return the population stability index of two histograms with the same bins.

    ``sum((a - e) * ln(a / e))`` over the shares of each bin, with half a row added to every bin so that an empty one is
    finite. 0 is the same distribution; 0.1 and 0.25 are the usual marks of some and much drift. Even without drift it
    is about ``(bins - 1) * (1 / rows + 1 / reference rows)``.

    Returns
    -------
    float or None
        None when either has no rows.

    Examples
    --------
    >>> round(psi([500, 500], [250, 750]), 3)
    0.274
    """
    expected, actual = np.asarray(reference, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    if expected.shape != actual.shape:
        raise ValueError(f"the histograms have {expected.shape} and {actual.shape} bins")
    if not expected.sum() or not actual.sum():
        return None
    e = (expected + 0.5) / (expected + 0.5).sum()
    a = (actual + 0.5) / (actual + 0.5).sum()
    return float(np.sum((a - e) * np.log(a / e)))


def _edges(values: npt.NDArray[np.float32], *, bins: int) -> tuple[float, ...]:
    """Return rising bin edges; a value that repeats among the quantiles is fenced in on both sides."""
    if not len(values):
        return ()
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, bins + 1), method="lower").astype(np.float32)
    repeated = quantiles[1:][quantiles[1:] == quantiles[:-1]]
    fences = np.nextafter(repeated, np.float32(np.inf))
    # Without the ends: what lies beyond them joins the outermost bins, unless an end repeats and is fenced in.
    inner = quantiles[1:-1]
    edges = np.unique(np.concatenate((inner, repeated, fences)))
    return tuple(float(edge) for edge in edges if np.isfinite(edge))
