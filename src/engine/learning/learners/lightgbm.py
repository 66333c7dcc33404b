"""Gradient-boosted trees: LightGBM on rows that stay in the mapped cache, its models in its own text format."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import LearningError
from engine.learning.cache import TrainingCache
from engine.learning.learners.parameters import Parameter, checked
from engine.learning.learners.protocol import FitProgress, silent

_LOG = logging.getLogger(__name__)
_FILE = "model.txt"
_SAMPLE_VALUES = 2_000_000
_PUSH_VALUES = 262_144
_NARROW_BINS = 255  # a feature with more takes two bytes a row
_COPIED = 0.5  # LightGBM's own bound: a smaller bag is a data set of its own

_ALLOWED = {
    "num_trees": Parameter(200, 1, 100_000),
    "learning_rate": Parameter(0.05, 1e-6, 1.0),
    "num_leaves": Parameter(31, 2, 131_072),
    "max_depth": Parameter(-1, -1, 1_000),
    "min_data_in_leaf": Parameter(100, 0),
    "min_sum_hessian_in_leaf": Parameter(1e-3, 0.0),
    "min_gain_to_split": Parameter(0.0, 0.0),
    "lambda_l1": Parameter(0.0, 0.0),
    "lambda_l2": Parameter(0.0, 0.0),
    "feature_fraction": Parameter(1.0, 1e-6, 1.0),
    "bagging_fraction": Parameter(1.0, 1e-6, 1.0),
    "bagging_freq": Parameter(0, 0),
    "max_bin": Parameter(255, 2, _NARROW_BINS),  # above it a bin takes two bytes, and a row twice as many
    "path_smooth": Parameter(0.0, 0.0),
    "extra_trees": Parameter(False),
    "min_data_per_group": Parameter(100, 1),
    "max_cat_threshold": Parameter(32, 1),
    "max_cat_to_onehot": Parameter(4, 1),
    "cat_l2": Parameter(10.0, 0.0),
    "cat_smooth": Parameter(10.0, 0.0),
}
_OTHER_NAMES = {
    "n_estimators": "num_trees",
    "num_iterations": "num_trees",
    "num_boost_round": "num_trees",
    "max_iter": "num_trees",
    "eta": "learning_rate",
    "max_leaf_nodes": "num_leaves",
    "min_child_samples": "min_data_in_leaf",
    "min_child_weight": "min_sum_hessian_in_leaf",
    "reg_alpha": "lambda_l1",
    "reg_lambda": "lambda_l2",
    "colsample_bytree": "feature_fraction",
    "subsample": "bagging_fraction",
    "subsample_freq": "bagging_freq",
}
_WEIGHTED = "The probability is corrected for the sampling of negatives, which holds only without class weights."
_REFUSED = {
    "scale_pos_weight": _WEIGHTED,
    "is_unbalance": _WEIGHTED,
    "num_threads": "Set resources.threads.",
    "seed": "Set learner.seed.",
    "objective": "It is binary: the label is 0 or 1.",
}


class LightGBM:
    """The learner ``lightgbm``."""

    kind = "lightgbm"

    def check(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        """Return all parameters, defaults filled in; see ``Learner.check``."""
        return checked(parameters, kind=self.kind, allowed=_ALLOWED, other_names=_OTHER_NAMES, refused=_REFUSED)

    def project(
        self, rows: int, *, features: int, parameters: Mapping[str, Any], codes: Sequence[int] = ()
    ) -> dict[str, int]:
        """Return the bytes that a fit needs, by named term; see ``Learner.project``.

        Measured with LightGBM 4.7, 1.5 to 3 M rows: 67 bytes a row with 15 features, 78 with 26 and 112 with 60, with
        many zeros or few: a byte a feature, its bin, and 54 for label, score, gradients and places in the leaves.
        """
        values = self.check(parameters)
        # 112 bytes are the head of a NumPy array, one a sampled row; then float64 twice and the indices
        sample_bytes = min(rows, _sample_rows(features)) * (112 + 24 * features)
        wide = sum(count > _NARROW_BINS for count in codes)
        row_bytes = rows * (features + wide + 54)
        bins = (features - len(codes)) * (values["max_bin"] + 1) + sum(codes) + len(codes)
        terms = {
            "rows": row_bytes,
            # It is gone before the rows are there; about half of its pages are not given back.
            "bin sample": max(sample_bytes // 2, sample_bytes - row_bytes),
            "rows on their way in": 3 * 4 * max(features, _PUSH_VALUES),
            # sums of gradients and hessians, one histogram a leaf and one a thread's block
            "histograms": (values["num_leaves"] + 8) * bins * 16,
            "trees": values["num_trees"] * values["num_leaves"] * 200,
        }
        if values["bagging_freq"] and values["bagging_fraction"] < 1.0:  # up to a half, its rows are copied
            copied = values["bagging_fraction"] if values["bagging_fraction"] <= _COPIED else 0.0
            terms["rows"] += rows * (8 + math.ceil(copied * (features + wide + 24)))
        return terms

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
    ) -> LightGBMModel:
        """Return a model trained on the cache; see ``Learner.fit``."""
        del cardinalities, numeric_stats  # trees need neither
        values = self.check(parameters)
        cache.require_both_classes()
        import lightgbm

        lightgbm.register_logger(_Log())

        trees = values.pop("num_trees")
        settings = {
            **values,
            "objective": "binary",
            "deterministic": True,
            # By row it would keep all bins twice, and where a quarter of the values are the most frequent ones of their
            # feature, in a form that takes up to thrice as much while it is made.
            "force_col_wise": True,
            "is_enable_sparse": False,
            "seed": seed & 0x7FFF_FFFF,
            "num_threads": threads,
            "bin_construct_sample_cnt": _sample_rows(cache.features),
            "verbosity": -1,
        }

        class Rows(lightgbm.Sequence):
            batch_size = max(1, _PUSH_VALUES // cache.features)

            def __getitem__(self, index: Any) -> npt.NDArray[Any]:
                rows = cache.matrix[index]
                return np.asarray(
                    rows, dtype=np.float32 if isinstance(index, slice) else np.float64
                )  # samples must be float64

            def __len__(self) -> int:
                return cache.rows

        data = lightgbm.Dataset(
            Rows(),
            label=cache.labels,
            weight=cache.weights if cache.weighted else None,
            categorical_feature=[int(column) for column in categorical],
            params=settings,
            free_raw_data=True,
        )

        def report(state: Any) -> None:
            progress(state.iteration + 1, trees, "trees")

        booster = lightgbm.train(settings, data, num_boost_round=trees, callbacks=[report])
        # The text ends with the settings; threads are no part of the model.
        text = re.sub(r"\[num_threads: \d+\]", "[num_threads: 0]", booster.model_to_string())
        return LightGBMModel(text)

    def load(self, directory: Path) -> LightGBMModel:
        """Return the model that ``save`` wrote; see ``Learner.load``."""
        path = Path(directory) / _FILE
        if not path.is_file():
            raise LearningError(f"{path} is missing", hint="The bundle is damaged; roll back to another version.")
        return LightGBMModel(path.read_text())


class _Log:
    """Sends LightGBM's remarks to the log: it prints some whatever its verbosity."""

    def info(self, message: str) -> None:
        _LOG.debug(message)

    def warning(self, message: str) -> None:
        _LOG.info(message)


class LightGBMModel:
    """Boosted trees as LightGBM's text.

    Raises
    ------
    LearningError
        When the text is not a model of LightGBM.
    """

    kind = "lightgbm"

    def __init__(self, text: str) -> None:
        import lightgbm

        # LightGBM ends the process on some damaged texts, so a cut one is refused before it is parsed.
        if not text.startswith("tree\n") or "\nend of trees\n" not in text or "\npandas_categorical:" not in text:
            raise LearningError(
                "the model's text is not a whole LightGBM model", hint="Roll back to another version, or train again."
            )
        try:
            self._booster = lightgbm.Booster(model_str=text)
        except (lightgbm.basic.LightGBMError, ValueError) as error:
            raise LearningError(
                f"LightGBM cannot read the model: {error}", hint="Roll back to another version."
            ) from error
        self._text = text

    def predict(self, matrix: npt.NDArray[np.float32], *, threads: int = 1) -> npt.NDArray[np.float64]:
        """Return raw probabilities, float64 (rows,); see ``Model.predict``."""
        if not len(matrix):
            return np.empty(0)
        scores = self._booster.predict(np.ascontiguousarray(matrix, dtype=np.float32), num_threads=threads)
        return np.asarray(scores, dtype=np.float64)

    def save(self, directory: Path) -> None:
        """Write ``model.txt`` into the directory."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / _FILE).write_text(self._text)

    def importance(self) -> npt.NDArray[np.float64]:
        """Return each feature's share of the total gain, float64 (features,)."""
        gain = np.asarray(self._booster.feature_importance(importance_type="gain"), dtype=np.float64)
        return gain / gain.sum() if gain.sum() else gain


def _sample_rows(features: int) -> int:
    """Return how many rows LightGBM looks at for its bins: fewer of wide tables, so that the sample stays small."""
    return max(5_000, min(200_000, _SAMPLE_VALUES // max(1, features)))
