"""Encoders: from prepared columns to a float32 matrix, fitted in one pass over the training rows.

What they learn does not depend on how the rows come in batches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.features.prefix_sums import two_sum

_BLOCK_ROWS = 65_536
_MOST_COUNTED = 200_000  # distinct values of a category that are counted at once; the rarest half is dropped beyond
MAX_CATEGORIES = 1_000


@dataclass(frozen=True)
class FeatureEncoder:
    """Fitted encoders: numeric columns first, then categories as codes.

    A category's code is its rank by frequency (ties by value); all others and the rare share the code after the last; null is
    NaN, as for numbers.
    """

    numeric: tuple[str, ...]
    categories: Mapping[str, tuple[str, ...]]  # values by column, most frequent first
    means: tuple[float, ...] = ()  # of the numeric columns' present, finite values
    deviations: tuple[float, ...] = field(default=())  # population standard deviation

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return (*self.numeric, *self.categories)

    @property
    def categorical_indices(self) -> tuple[int, ...]:
        """Columns of the matrix that hold codes."""
        return tuple(range(len(self.numeric), len(self.numeric) + len(self.categories)))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each categorical column, that of all other values included."""
        return tuple(len(values) + 1 for values in self.categories.values())

    @property
    def numeric_stats(self) -> dict[int, tuple[float, float]]:
        """Mean and standard deviation by numeric column of the matrix."""
        return dict(enumerate(zip(self.means, self.deviations, strict=True)))

    def transform(self, rows: pa.Table) -> npt.NDArray[np.float32]:
        """Return float32 (rows, features), row-major."""
        out = np.empty((rows.num_rows, len(self.feature_names)), dtype=np.float32)
        for index, name in enumerate(self.numeric):
            with np.errstate(over="ignore"):
                out[:, index] = _numbers(rows.column(name))
        for index, (name, values) in enumerate(self.categories.items(), start=len(self.numeric)):
            column = _texts(rows.column(name))
            codes = pc.fill_null(pc.index_in(column, pa.array(values, type=pa.string())), len(values))
            missing = np.asarray(column.is_null())
            out[:, index] = np.where(missing, np.nan, codes.to_numpy().astype(np.float32))
        return out

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return {
            "numeric": list(self.numeric),
            "categories": {name: list(values) for name, values in self.categories.items()},
            "means": list(self.means),
            "deviations": list(self.deviations),
            "order": list(self.categories),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureEncoder:
        """Return the encoder that ``to_json`` described."""
        return cls(
            numeric=tuple(value["numeric"]),
            categories={name: tuple(value["categories"][name]) for name in value["order"]},
            means=tuple(value["means"]),
            deviations=tuple(value["deviations"]),
        )


class EncoderBuilder:
    """Fits the encoders on a stream of batches.

    Parameters
    ----------
    numeric, categorical
        Columns of each kind.
    max_categories
        Of a column; the most frequent are kept.

    Notes
    -----
    Sums run from row to row, so batches do not show in them. Categories are counted in blocks of 65,536 rows; when more
    than 200,000 distinct values of a column are in hand at a block's end, the rarer half is forgotten, so a value that makes
    up less than about one in 100,000 rows may be missed.
    """

    def __init__(
        self, *, numeric: Sequence[str], categorical: Sequence[str], max_categories: int = MAX_CATEGORIES
    ) -> None:
        self._numeric = {name: _Moments() for name in numeric}
        self._counts: dict[str, Counter[str]] = {name: Counter() for name in categorical}
        self._most = max_categories
        self._rows = 0

    def update(self, rows: pa.Table) -> None:
        """Take one batch."""
        for name, moments in self._numeric.items():
            moments.update(_numbers(rows.column(name)))
        start = 0
        while start < rows.num_rows:
            size = min(_BLOCK_ROWS - self._rows % _BLOCK_ROWS, rows.num_rows - start)
            for name, counts in self._counts.items():
                part = _texts(rows.column(name).slice(start, size)).drop_null()
                for pair in pc.value_counts(part).to_pylist():
                    counts[pair["values"]] += pair["counts"]
            start, self._rows = start + size, self._rows + size
            if self._rows % _BLOCK_ROWS == 0:
                self._forget_rare()

    def finish(self) -> FeatureEncoder:
        """Return the fitted encoder."""
        return FeatureEncoder(
            numeric=tuple(self._numeric),
            categories={name: tuple(_ranked(counts)[: self._most]) for name, counts in self._counts.items()},
            means=tuple(moments.mean for moments in self._numeric.values()),
            deviations=tuple(moments.deviation for moments in self._numeric.values()),
        )

    def _forget_rare(self) -> None:
        for name, counts in self._counts.items():
            if len(counts) > _MOST_COUNTED:
                kept = _ranked(counts)[: _MOST_COUNTED // 2]
                self._counts[name] = Counter({value: counts[value] for value in kept})


class _Moments:
    """Mean and deviation of a column, summed from row to row about its first value, with the rounding errors kept."""

    def __init__(self) -> None:
        self._rows = 0
        self._pivot = 0.0
        self._sums = [(0.0, 0.0), (0.0, 0.0)]

    def update(self, values: npt.NDArray[np.float64]) -> None:
        finite = values[np.isfinite(values)]
        if not len(finite):
            return
        if not self._rows:
            self._pivot = float(finite[0])
        self._rows += len(finite)
        with np.errstate(over="ignore", invalid="ignore"):
            centred = finite - self._pivot
            for index, terms in enumerate((centred, centred * centred)):
                total, error = self._sums[index]
                running = np.cumsum(np.concatenate(([total], terms)))
                _, errors = two_sum(running[:-1], terms)
                lost = np.cumsum(np.concatenate(([error], errors)))
                self._sums[index] = (float(running[-1]), float(lost[-1]))

    @property
    def mean(self) -> float:
        return self._pivot + sum(self._sums[0]) / self._rows if self._rows else 0.0

    @property
    def deviation(self) -> float:
        if not self._rows:
            return 0.0
        mean = sum(self._sums[0]) / self._rows
        variance = sum(self._sums[1]) / self._rows - mean * mean
        return math.sqrt(variance) if math.isfinite(variance) and variance > 0.0 else 0.0


def _numbers(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("us")).cast(pa.int64()) if pa.types.is_date(column.type) else column
        column = pc.divide(column.cast(pa.int64()).cast(pa.float64()), 1e6)
    values = column.cast(pa.float64(), safe=False)
    return pc.fill_null(values, np.nan).to_numpy().astype(np.float64)


def _texts(column: pa.ChunkedArray) -> pa.Array:
    return column.cast(pa.string()).combine_chunks()


def _ranked(counts: Counter[str]) -> list[str]:
    return [value for value, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]
