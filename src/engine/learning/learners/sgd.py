"""Logistic regression by stochastic gradient descent: any number of rows in constant memory.

Rows come from the mapped cache in shuffled blocks, so the result depends on the cache and the seed alone. Missing
values are imputed, numbers standardised, codes one-hot; scikit-learn does the descent, skops the file.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import LearningError
from engine.learning.cache import TrainingCache
from engine.learning.learners.parameters import Parameter, checked
from engine.learning.learners.protocol import FitProgress, silent

_MODEL = "model.skops"
_LAYOUT = "layout.json"
_BLOCK_VALUES = 65_536  # read together from the cache: 256 KiB
_BUFFER_BLOCKS = 32  # shuffled together
_PART_ROWS = 4_096  # rows made sparse at a time
_CLIP = 10.0  # standard deviations; further out, and infinity, count as this

_ALLOWED = {
    "epochs": Parameter(5, 1, 1_000),
    "alpha": Parameter(1e-6, 0.0, 10.0),
    "eta0": Parameter(0.5, 1e-8, 10.0),
    "power_t": Parameter(0.25, 0.0, 1.0),
}
_OTHER_NAMES = {"max_iter": "epochs", "n_iter": "epochs", "learning_rate": "eta0", "lambda_l2": "alpha", "l2": "alpha"}
_WEIGHTED = "The probability is corrected for the sampling of negatives, which holds only without class weights."
_REFUSED = {"class_weight": _WEIGHTED, "random_state": "Set learner.seed.", "loss": "It is the log loss."}


@dataclass(frozen=True)
class _Layout:
    """Where each feature goes in the sparse row: a number's value or its absence, a category's code or its absence."""

    features: int
    numeric: tuple[int, ...]  # columns
    mean: tuple[float, ...]
    scale: tuple[float, ...]  # 1 over the standard deviation; 0 for a constant
    categorical: tuple[int, ...]  # columns
    cardinalities: tuple[int, ...]

    @property
    def width(self) -> int:
        return 2 * len(self.numeric) + sum(self.cardinalities) + len(self.cardinalities)

    def sparse(self, matrix: npt.NDArray[np.float32]) -> Any:
        """Return a CSR matrix (rows, width) with one entry for each feature of each row."""
        from scipy import sparse

        rows, numbers = len(matrix), len(self.numeric)
        values = np.ones((rows, self.features))
        places = np.empty((rows, self.features), dtype=np.int32)
        given = matrix[:, list(self.numeric)].astype(np.float64)
        missing = np.isnan(given)
        standard = np.clip((given - np.asarray(self.mean)) * np.asarray(self.scale), -_CLIP, _CLIP)
        values[:, :numbers] = np.where(missing, 1.0, np.nan_to_num(standard))
        places[:, :numbers] = np.arange(numbers) + np.where(missing, numbers, 0)
        start = 2 * numbers
        for number, (column, cardinality) in enumerate(zip(self.categorical, self.cardinalities, strict=True)):
            code = matrix[:, column]
            known = (code >= 0) & (code < cardinality)  # NaN is neither
            places[:, numbers + number] = start + np.where(known, code, cardinality).astype(np.int32)
            start += cardinality + 1
        ends = np.arange(rows + 1, dtype=np.int32) * self.features
        return sparse.csr_matrix((values.ravel(), places.ravel(), ends), shape=(rows, self.width))


class SGD:
    """The learner ``sgd``."""

    kind = "sgd"

    def check(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, defaults filled in; see ``Learner.check``."""
        return checked(parameters, kind=self.kind, allowed=_ALLOWED, other_names=_OTHER_NAMES, refused=_REFUSED)

    def project(
        self, rows: int, *, features: int, parameters: Mapping[str, Any], codes: Sequence[int] = ()
    ) -> dict[str, int]:
        """Return the bytes that a fit needs, by named term; see ``Learner.project``."""
        self.check(parameters)
        blocks = -(-rows // _block_rows(features))
        buffered = min(rows, _BUFFER_BLOCKS * _block_rows(features))
        return {
            "rows": 0,  # they stay in the mapped cache
            "order of blocks": 8 * blocks,
            # the blocks, their shuffled copy, and the buffer before it until it is replaced
            "shuffled buffer": buffered * (3 * (4 * features + 9) + 8),
            "sparse part": min(rows, _PART_ROWS) * features * 96,
            # the last weights, their mean, and copies of both
            "model": (2 * (features - len(codes)) + sum(codes) + len(codes)) * 8 * 4,
        }

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
    ) -> SGDModel:
        """Return a model trained on the cache; see ``Learner.fit``."""
        del threads  # one row after another
        values = self.check(parameters)
        cache.require_both_classes()
        layout = _layout(cache.features, categorical, cardinalities, numeric_stats)
        from sklearn.linear_model import SGDClassifier

        estimator = SGDClassifier(
            loss="log_loss",
            alpha=values["alpha"],
            learning_rate="invscaling",
            eta0=values["eta0"],
            power_t=values["power_t"],
            average=cache.rows * values["epochs"] // 2 + 1,  # the mean over the second half: less noise, no start-up
            shuffle=False,
        )
        random = np.random.Generator(np.random.PCG64(seed))
        done, total = 0, cache.rows * values["epochs"]
        for _ in range(values["epochs"]):
            for matrix, labels, weights in _shuffled(cache, random):
                for start in range(0, len(labels), _PART_ROWS):
                    part = slice(start, start + _PART_ROWS)
                    estimator.partial_fit(
                        layout.sparse(matrix[part]), labels[part], classes=[0, 1], sample_weight=weights[part]
                    )
                done += len(labels)
                progress(done, total, "rows")
        if not (np.isfinite(estimator.coef_).all() and np.isfinite(estimator.intercept_).all()):
            raise LearningError(
                f"sgd diverged after {done:,} rows with eta0 {values['eta0']:g}",
                hint="Lower learner.parameters.eta0, or raise alpha.",
            )
        return SGDModel(estimator, layout)

    def load(self, directory: Path) -> SGDModel:
        """Return the model that ``save`` wrote, trusting only skops' own list of types; see ``Learner.load``."""
        import skops.io

        model, layout = Path(directory) / _MODEL, Path(directory) / _LAYOUT
        for path in (model, layout):
            if not path.is_file():
                raise LearningError(f"{path} is missing", hint="The bundle is damaged; roll back to another version.")
        try:
            strange = skops.io.get_untrusted_types(file=model)
            if strange:
                raise LearningError(
                    f"{model} holds types that are not trusted: {', '.join(strange)}",
                    hint="It was not written by this project; do not load it.",
                )
            estimator = skops.io.load(model, trusted=[])
            fields = json.loads(layout.read_text())
        except (OSError, zipfile.BadZipFile, ValueError, KeyError, TypeError) as error:
            raise LearningError(f"{model} cannot be read: {error}", hint="Roll back to another version.") from error
        lists = {name: tuple(value) for name, value in fields.items() if name != "features"}
        return SGDModel(estimator, _Layout(features=int(fields["features"]), **lists))


class SGDModel:
    """A linear model with its layout."""

    kind = "sgd"

    def __init__(self, estimator: Any, layout: _Layout) -> None:
        self._estimator = estimator
        self._layout = layout

    def predict(self, matrix: npt.NDArray[np.float32], *, threads: int = 1) -> npt.NDArray[np.float64]:
        """Return raw probabilities, float64 (rows,); see ``Model.predict``."""
        del threads
        scores = np.empty(len(matrix))
        for start in range(0, len(matrix), _PART_ROWS):
            part = slice(start, start + _PART_ROWS)
            margin = self._estimator.decision_function(self._layout.sparse(matrix[part]))
            small = np.exp(-np.abs(margin))
            scores[part] = np.where(margin >= 0, 1.0, small) / (1.0 + small)
        return scores

    def save(self, directory: Path) -> None:
        """Write ``model.skops`` and ``layout.json`` into the directory."""
        import skops.io

        directory.mkdir(parents=True, exist_ok=True)
        skops.io.dump(self._estimator, directory / _MODEL)
        (directory / _LAYOUT).write_text(json.dumps(vars(self._layout), indent=1, sort_keys=True) + "\n")

    def importance(self) -> npt.NDArray[np.float64]:
        """Return each feature's share of the length of the weights, float64 (features,)."""
        weights = self._estimator.coef_[0] ** 2
        layout, numbers = self._layout, len(self._layout.numeric)
        length = np.zeros(layout.features)
        length[list(layout.numeric)] = weights[:numbers] + weights[numbers : 2 * numbers]
        start = 2 * numbers
        for column, cardinality in zip(layout.categorical, layout.cardinalities, strict=True):
            length[column] = weights[start : start + cardinality + 1].sum()
            start += cardinality + 1
        length = np.sqrt(length)
        return length / length.sum() if length.sum() else length


def _layout(
    features: int,
    categorical: Sequence[int],
    cardinalities: Sequence[int],
    numeric_stats: Mapping[int, tuple[float, float]],
) -> _Layout:
    codes = [int(column) for column in categorical]
    numeric = [column for column in range(features) if column not in set(codes)]
    unknown = [column for column in numeric if column not in numeric_stats]
    if unknown or len(codes) != len(cardinalities):
        raise ValueError(f"columns {unknown} lack mean and deviation, or a category its cardinality")
    mean, scale = [], []
    for column in numeric:
        centre, deviation = (float(value) for value in numeric_stats[column])
        usable = np.isfinite(centre) and np.isfinite(deviation) and deviation > 0  # not so where all is missing
        mean.append(centre if usable else 0.0)
        scale.append(1.0 / deviation if usable else 0.0)
    sizes = tuple(int(cardinality) for cardinality in cardinalities)
    return _Layout(features, tuple(numeric), tuple(mean), tuple(scale), tuple(codes), sizes)


def _block_rows(features: int) -> int:
    return max(1, _BLOCK_VALUES // max(1, features))


def _shuffled(
    cache: TrainingCache, random: np.random.Generator
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.uint8], npt.NDArray[np.float64]]]:
    """Yield the rows once, in buffers of blocks from all over the cache, each buffer in random order."""
    size = _block_rows(cache.features)
    order = random.permutation(-(-cache.rows // size))
    for first in range(0, len(order), _BUFFER_BLOCKS):
        blocks = [slice(block * size, (block + 1) * size) for block in order[first : first + _BUFFER_BLOCKS]]
        labels = np.concatenate([cache.labels[block] for block in blocks])
        mixed = random.permutation(len(labels))
        matrix = np.concatenate([cache.matrix[block] for block in blocks])[mixed]
        weights = np.concatenate([cache.weights[block] for block in blocks])[mixed].astype(np.float64)
        yield matrix, labels[mixed], weights
