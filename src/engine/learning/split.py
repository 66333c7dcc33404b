"""How time is divided between training, calibration and validation. Pure: a cut-off and the pipeline's spans in.

Which rows lie in a span is ``features/labelled.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from engine.spec import PipelineSpec
from engine.units import format_time, parse_time


@dataclass(frozen=True)
class Split:
    """The four spans of event time: train | gap | calibration | validation | cut-off."""

    train_from: datetime | None
    train_until: datetime
    calibrate_from: datetime
    validate_from: datetime
    cutoff: datetime

    @classmethod
    def of(cls, spec: PipelineSpec, cutoff: datetime) -> Split:
        """Return the split of a pipeline at a cut-off."""
        validate_from = cutoff - spec.split.validation
        calibrate_from = validate_from - spec.split.calibration
        history = spec.split.history
        return cls(
            train_from=None if history is None else cutoff - history,
            train_until=calibrate_from - spec.split_gap,
            calibrate_from=calibrate_from,
            validate_from=validate_from,
            cutoff=cutoff,
        )

    def to_json(self) -> dict[str, str | None]:
        """Return the spans as ISO 8601 times."""
        return {
            name: None if value is None else format_time(value)
            for name, value in (
                ("train_from", self.train_from),
                ("train_until", self.train_until),
                ("calibrate_from", self.calibrate_from),
                ("validate_from", self.validate_from),
                ("cutoff", self.cutoff),
            )
        }

    @classmethod
    def from_json(cls, value: Mapping[str, str | None]) -> Split:
        """Return the split that ``to_json`` described."""
        times = {name: None if text is None else parse_time(text) for name, text in value.items()}
        return cls(**times)  # type: ignore[arg-type]
