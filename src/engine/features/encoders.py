"""Prepared rows as the float32 matrix that learners read: numbers cast, categories coded; fitted in one stream.

Fitting keeps counts and exact sums, so the result depends on the rows and their order, never on how they were batched.
Text forms of values and the casts are in ``casting.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SchemaMismatch
from engine.features.casting import as_float32, as_texts
from engine.features.prefix_sums import Expansion, running_sums, sum_squared_deviations

_FORMAT = 1
MOST_CATEGORIES = 1_000
"""Of a column that have a code of their own, unless asked for otherwise."""

COUNTED_CATEGORY_BYTES = 6 * 2**20
"""Of a categorical column while it is counted: 24,384 texts of some tens of bytes, each with its count, at most."""

_BLOCK_ROWS = 16_384  # rows between two prunings, counted over the whole stream


@dataclass(frozen=True)
class NumericFeature:
    """What was seen of a numeric column, as float32; NaN and infinities aside."""

    name: str
    present: int  # finite values
    mean: float  # 0 where there are none
    std: float  # of the population
    minimum: float | None
    maximum: float | None


@dataclass(frozen=True)
class CategoricalFeature:
    """The categories that have a code of their own: the place in ``values``."""

    name: str
    values: tuple[str, ...]  # as text, the most frequent first, equally frequent ones by text
    exact: bool  # False where more values occurred than could be counted: see EncoderBuilder

    @property
    def cardinality(self) -> int:
        """How many codes there are: one a value and one for all others."""
        return len(self.values) + 1


@dataclass(frozen=True)
class FeatureEncoder:
    """Turns rows into a matrix: numeric columns first, then categorical ones."""

    numeric: tuple[NumericFeature, ...]
    categorical: tuple[CategoricalFeature, ...]

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the matrix's columns."""
        return (*(feature.name for feature in self.numeric), *(feature.name for feature in self.categorical))

    @property
    def categorical_indices(self) -> tuple[int, ...]:
        """Columns of the matrix that hold codes."""
        return tuple(range(len(self.numeric), len(self.numeric) + len(self.categorical)))

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Number of codes of each of ``categorical_indices``; the last code of each stands for all other values."""
        return tuple(feature.cardinality for feature in self.categorical)

    @property
    def numeric_stats(self) -> dict[int, tuple[float, float]]:
        """Mean and standard deviation by column, for every column that holds no codes."""
        return {column: (feature.mean, feature.std) for column, feature in enumerate(self.numeric)}

    def transform(self, table: pa.Table | pa.RecordBatch) -> npt.NDArray[np.float32]:
        """Return float32 (rows, features), row-major.

        A null number is NaN. A category is its code, one that has none the last code, null NaN: learners take NaN as
        missing.

        Raises
        ------
        SchemaMismatch
            A column is missing.
        SpecError
            A column is of a type that cannot be encoded.
        """
        out = np.empty((table.num_rows, len(self.numeric) + len(self.categorical)), dtype=np.float32)
        for place, feature in enumerate(self.numeric):
            out[:, place] = as_float32(_column(table, feature.name), name=feature.name)
        for place, category in zip(self.categorical_indices, self.categorical, strict=True):
            texts = as_texts(_column(table, category.name), name=category.name)
            found = pc.index_in(texts, value_set=self._value_sets[category.name], skip_nulls=True)
            codes = found.fill_null(len(category.values)).to_numpy(zero_copy_only=False).astype(np.float32)
            codes[texts.is_null().to_numpy(zero_copy_only=False)] = np.nan
            out[:, place] = codes
        return out

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able form that ``from_json`` turns back into the same encoder."""
        return {
            "format": _FORMAT,
            "numeric": [asdict(feature) for feature in self.numeric],
            "categorical": [asdict(feature) for feature in self.categorical],
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> FeatureEncoder:
        """Return the encoder that ``to_json`` described.

        Raises
        ------
        SchemaMismatch
            It is of another format.
        """
        if value.get("format") != _FORMAT:
            raise SchemaMismatch(
                f"an encoder of format {value.get('format')!r}, not {_FORMAT}", hint="train the model again"
            )
        return cls(
            numeric=tuple(NumericFeature(**feature) for feature in value["numeric"]),
            categorical=tuple(
                CategoricalFeature(feature["name"], tuple(feature["values"]), feature["exact"])
                for feature in value["categorical"]
            ),
        )

    @functools.cached_property
    def _value_sets(self) -> dict[str, pa.Array]:
        return {feature.name: pa.array(feature.values, pa.large_string()) for feature in self.categorical}


class EncoderBuilder:
    """Fits a ``FeatureEncoder`` to a stream of tables.

    Parameters
    ----------
    numeric, categorical
        Column names.
    max_categories
        Codes of a column at most, besides the one for all other values.

    Notes
    -----
    Sums of numbers are exact to 2**-159 (``prefix_sums.py``), so that they round to the same figure for any batches.
    Categories are counted exactly up to eight times ``max_categories`` distinct ones; above that, each 16,384th row of
    the stream, wherever batches end, half as many are kept: the most frequent, equally frequent ones by text. Memory is
    at most 8 x ``max_categories`` + 16,384 texts a column, each of 512 bytes at most.
    """

    def __init__(
        self, *, numeric: Sequence[str], categorical: Sequence[str], max_categories: int = MOST_CATEGORIES
    ) -> None:
        if not 1 <= max_categories < 2**24:
            raise ValueError(f"max_categories is {max_categories:,}; float32 holds codes from 1 to {2**24 - 1:,}")
        self._numbers = [_Numbers(name) for name in numeric]
        self._categories = [_Categories(name, max_categories) for name in categorical]
        self._rows = 0

    def update(self, table: pa.Table | pa.RecordBatch) -> EncoderBuilder:
        """Take in rows, after those before; returns itself.

        Raises
        ------
        SchemaMismatch, SpecError
            As ``FeatureEncoder.transform``.
        """
        for numbers in self._numbers:
            numbers.update(as_float32(_column(table, numbers.name), name=numbers.name))
        for categories in self._categories:
            texts = as_texts(_column(table, categories.name), name=categories.name)
            start = 0
            while start < len(texts):
                end = min(len(texts), start + _BLOCK_ROWS - (self._rows + start) % _BLOCK_ROWS)
                categories.update(texts[start:end])
                if not (self._rows + end) % _BLOCK_ROWS:
                    categories.prune()
                start = end
        self._rows += table.num_rows
        return self

    def finish(self) -> FeatureEncoder:
        """Return the encoder of what was taken in."""
        return FeatureEncoder(
            numeric=tuple(numbers.finish() for numbers in self._numbers),
            categorical=tuple(categories.finish() for categories in self._categories),
        )


class _Numbers:
    def __init__(self, name: str) -> None:
        self.name = name
        self._present = 0
        self._sum, self._squares = Expansion(1), Expansion(1)
        self._minimum, self._maximum = np.inf, -np.inf

    def update(self, values: npt.NDArray[np.float32]) -> None:
        finite = values[np.isfinite(values)].astype(np.float64)
        if not len(finite):
            return
        self._present += len(finite)
        self._minimum, self._maximum = min(self._minimum, finite.min()), max(self._maximum, finite.max())
        start = np.zeros(1, dtype=np.int64)
        # The square of a float32 is exact in a float64.
        for sums, terms in ((self._sum, finite), (self._squares, finite * finite)):
            for level in running_sums(terms, start):
                sums.add(level[-1:])

    def finish(self) -> NumericFeature:
        if not self._present:
            return NumericFeature(self.name, 0, 0.0, 0.0, None, None)
        count = np.array([self._present], dtype=np.int64)
        spread = sum_squared_deviations(count, self._sum.parts(), self._squares.parts())
        return NumericFeature(
            self.name,
            self._present,
            mean=float(self._sum.rounded()[0] / self._present),
            std=float(np.sqrt(spread[0]) / self._present),
            minimum=float(self._minimum),
            maximum=float(self._maximum),
        )


class _Categories:
    def __init__(self, name: str, limit: int) -> None:
        self.name = name
        self._limit = limit
        self._counts: dict[str, int] = {}
        self._exact = True

    def update(self, texts: pa.Array) -> None:
        counted = pc.value_counts(texts.drop_null())
        for text, count in zip(*(counted.field(name).to_pylist() for name in ("values", "counts")), strict=True):
            self._counts[text] = self._counts.get(text, 0) + count

    def prune(self) -> None:
        if len(self._counts) > 8 * self._limit:
            self._counts = dict(self._ranked()[: 4 * self._limit])
            self._exact = False

    def finish(self) -> CategoricalFeature:
        values = tuple(value for value, _ in self._ranked()[: self._limit])
        return CategoricalFeature(self.name, values, self._exact)

    def _ranked(self) -> list[tuple[str, int]]:
        return sorted(self._counts.items(), key=lambda item: (-item[1], item[0]))


def _column(table: pa.Table | pa.RecordBatch, name: str) -> pa.Array:
    if name not in table.schema.names:
        raise SchemaMismatch(
            f"column {name!r} is not among the rows to encode",
            hint="a model reads the columns that it was trained on: prepare them again",
        )
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        return pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], type=column.type)
    return column
