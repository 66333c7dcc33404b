"""What every learner offers: a memory projection, a fit on the mapped cache, and a model in a safe file format.

Implementations are one file each; ``kinds.py`` finds them by name, ``parameters.py`` checks what they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from engine.learning.cache import TrainingCache

FitProgress = Callable[[float, float, str], None]
"""Called with how much is done, the total, and the unit: trees, rows."""


def silent(done: float, total: float, what: str) -> None:
    """Report to nobody: the default progress."""
    del done, total, what


class Model(Protocol):
    """A trained model; immutable, and the same for any number of threads."""

    @property
    def kind(self) -> str:
        """The name of its learner."""

    def predict(self, matrix: npt.NDArray[np.float32], *, threads: int = 1) -> npt.NDArray[np.float64]:
        """Return raw probabilities, float64 (rows,), of float32 (rows, features); a row's depends on no other row."""

    def save(self, directory: Path) -> None:
        """Write the model's files into a directory, made when missing."""

    def importance(self) -> npt.NDArray[np.float64]:
        """Return each feature's share of what the model rests on, float64 (features,), with sum 1 or all 0."""


class Learner(Protocol):
    """Makes models of one kind; holds no state."""

    @property
    def kind(self) -> str:
        """Its name in the pipeline file."""

    def check(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, defaults filled in; imports nothing heavy.

        Raises
        ------
        SpecError
            When one is unknown, of a wrong type or out of range.
        """

    def project(
        self, rows: int, *, features: int, parameters: Mapping[str, Any], codes: Sequence[int] = ()
    ) -> dict[str, int]:
        """Return the bytes that a fit needs, by named term.

        The term ``rows`` is proportional to them; the others do not exceed a bound as rows grow.

        Parameters
        ----------
        rows, features
            Of the training cache.
        parameters
            As in the pipeline file; unchecked.
        codes
            How many codes each categorical one of the features may have.
        """

    def fit(
        self,
        cache: TrainingCache,
        *,
        categorical: Sequence[int],
        cardinalities: Sequence[int],
        numeric_stats: Mapping[int, tuple[float, float]],
        parameters: Mapping[str, Any],
        seed: int,
        threads: int,
        progress: FitProgress = silent,
    ) -> Model:
        """Return a model trained on the cache.

        Parameters
        ----------
        cache
            Training rows.
        categorical, cardinalities
            Columns that hold codes 0, 1, ..., and the number of codes of each; NaN is missing.
        numeric_stats
            Mean and standard deviation of the present values, by column, for every other column.
        parameters
            As in the pipeline file; unchecked.
        seed, threads
            The result depends on the seed and not on the threads.
        progress
            Called from time to time.

        Raises
        ------
        SpecError
            When a parameter is wrong.
        LearningError
            When there are no rows, or rows of one class only.
        """

    def load(self, directory: Path) -> Model:
        """Return the model that ``Model.save`` wrote, without running any code from its files.

        Raises
        ------
        LearningError
            When files are missing, damaged or hold types that are not trusted.
        """
