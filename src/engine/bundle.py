"""A model with everything that turns a prepared row into a calibrated probability, as a directory without pickles.

``bundle.json`` holds features, correction, calibration, threshold and facts of the training; ``encoder.json`` and
``drift.json``
the fitted state; ``model/`` the learner's own safe format.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.batching import Workspace
from engine.batching.atomic import read_json, require_json, write_json
from engine.errors import RegistryError
from engine.features.encoders import FeatureEncoder
from engine.learning.calibration import Calibration
from engine.learning.drift import DriftCounter, Reference
from engine.learning.learners import Model, learner
from engine.learning.sampling import correct_prior
from engine.ledger import Ledger, champion_of, trained
from engine.spec import PipelineSpec
from engine.units import parse_time

_FORMAT = 1
_LOADED_COPIES = 4  # of its files: a text model is parsed into nodes that are larger than their digits
_LOADED_BASE_BYTES = 8 * 2**20
_UNKNOWN_LOADED_BYTES = 16 * 2**20  # of a model that is not trained yet


@dataclass(frozen=True)
class Bundle:
    """A trained model and what it needs."""

    features: tuple[str, ...]  # columns of prepared that it reads
    feature_set: str
    encoder: FeatureEncoder
    reference: Reference  # of drift
    learner: str
    sampling_rate: float  # of negatives, at training
    calibration: Calibration
    threshold: float
    trained_until: datetime  # the training cut-off: nothing later was seen, calibration and validation included
    facts: Mapping[str, Any] = field(default_factory=dict)  # rows, positives, snapshots, spans, metrics, memory figures
    sections: Mapping[str, Any] = field(default_factory=dict)  # of the pipeline file: what prepare needs for this model
    model: Model | None = None

    @classmethod
    def load(cls, directory: Path, *, model: bool = True) -> Bundle:
        """Return the bundle of a directory; without its model when only the rest is needed.

        Raises
        ------
        RegistryError
            It is missing, or written by another version of the format.
        """
        found = read_json(directory / "bundle.json")
        if found is None or found.get("format") != _FORMAT:
            raise RegistryError(
                f"{directory} is not a bundle of format {_FORMAT}",
                hint="train again, or roll back to a version whose bundle is there: headrace history",
            )
        return cls(
            features=tuple(found["features"]),
            feature_set=found["feature_set"],
            encoder=FeatureEncoder.from_json(require_json(directory / "encoder.json")),
            reference=Reference.from_json(require_json(directory / "drift.json")),
            learner=found["learner"],
            sampling_rate=found["sampling_rate"],
            calibration=Calibration.from_json(found["calibration"]),
            threshold=found["threshold"],
            trained_until=parse_time(found["trained_until"]),
            facts=found["facts"],
            sections=found["sections"],
            model=learner(found["learner"]).load(directory / "model") if model else None,
        )

    def save(self, directory: Path) -> None:
        """Write the bundle; ``bundle.json`` comes last, so that a directory with one is whole.

        Raises
        ------
        ValueError
            It has no model.
        """
        if self.model is None:
            raise ValueError("a bundle without its model cannot be saved")
        if directory.exists():
            shutil.rmtree(directory)  # of an attempt that was killed
        (directory / "model").mkdir(parents=True)
        self.model.save(directory / "model")
        write_json(directory / "encoder.json", self.encoder.to_json())
        write_json(directory / "drift.json", self.reference.to_json())
        write_json(
            directory / "bundle.json",
            {
                "format": _FORMAT,
                "features": list(self.features),
                "feature_set": self.feature_set,
                "learner": self.learner,
                "sampling_rate": self.sampling_rate,
                "calibration": self.calibration.to_json(),
                "threshold": self.threshold,
                "trained_until": self.trained_until.isoformat(),
                "facts": dict(self.facts),
                "sections": dict(self.sections),
            },
        )

    def score(self, rows: pa.Table) -> npt.NDArray[np.float64]:
        """Return calibrated probabilities, (rows,), for prepared rows with at least the columns ``features``."""
        if self.model is None:
            raise ValueError("the bundle was loaded without its model")
        raw = self.model.predict(self.encoder.transform(rows.select(list(self.features))))
        return self.calibration.apply(correct_prior(raw, rate=self.sampling_rate))

    def drift_counter(self) -> DriftCounter:
        """Return a counter of encoded rows against the training's distribution."""
        return DriftCounter(self.reference)


def loaded_bytes(directory: Path) -> int:
    """Return about what the bundle of a directory takes in memory; the learner's library is not in it."""
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    return _LOADED_BASE_BYTES + _LOADED_COPIES * size


def expected_bytes(workspace: Workspace) -> int:
    """Return about what a next model takes in memory: as much as the champion, or a usual figure before the first."""
    history = Ledger(workspace).history()
    champion = champion_of(history)
    facts = trained(history, champion.version) if champion else None
    return loaded_bytes(workspace.root / facts.details["bundle"]) if facts else _UNKNOWN_LOADED_BYTES


def sections_of(spec: PipelineSpec) -> dict[str, Any]:
    """Return the sections of a pipeline file that prepare needs to go on feeding a model trained by it; no secrets."""
    own = spec.model_dump(mode="json", include={"event_time", "features", "columns", "baseline"})
    return {**own, "labels": spec.labels.model_dump(mode="json", include={"delay"})}


def spec_for(bundle: Bundle, spec: PipelineSpec) -> PipelineSpec:
    """Return the pipeline as the bundle's model knows it: an edited file does not orphan the champion."""
    value, sections = spec.model_dump(mode="json"), dict(bundle.sections)
    labels = {**value["labels"], **sections.pop("labels", {})}
    return PipelineSpec.model_validate({**value, **sections, "labels": labels})
