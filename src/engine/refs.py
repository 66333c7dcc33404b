"""Pointers to data, and what happened to it: the only things that pass between stages, processes and Prefect.

All are JSON-able through ``to_json``; none holds rows.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


def to_json(value: Any) -> dict[str, Any]:
    """Return a Ref or Report as a JSON-able mapping."""
    return dataclasses.asdict(value)


def content_hash(value: Any) -> str:
    """Return 16 hexadecimal digits that identify a JSON-able value."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class ChunkRef:
    """One immutable Parquet file of a table."""

    path: str  # relative to the table's directory, '/'-separated
    rows: int
    bytes: int  # on disk
    memory_bytes: int = 0  # as Arrow batches, when written
    largest_row_bytes: int = 0  # of them, at most; 0 where all rows are small
    # by column: minimum, maximum (JSON values; timestamps as ISO 8601 UTC) and null count
    minimum: Mapping[str, Any] = field(default_factory=dict)
    maximum: Mapping[str, Any] = field(default_factory=dict)
    nulls: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ChunkRef:
        """Return the ref that ``to_json`` described."""
        return cls(**value)


@dataclass(frozen=True)
class TableRef:
    """A table at a version: a snapshot."""

    table: str
    version: int
    n: int = 0  # the last plan that its app committed, 0 if none


@dataclass(frozen=True)
class ModelRef:
    """One version of a pipeline's model; its bundle is a directory."""

    version: int
    bundle: str  # relative to the workspace
    feature_set: str  # hash of the features that it reads


@dataclass(frozen=True)
class Task:
    """A unit of a stage that runs alone, knowing only this and the workspace."""

    stage: str
    name: str  # unique in its plan: "1.rows.0"
    function: str  # "engine.stages.extract:run"
    inputs: Mapping[str, Any]  # JSON-able; refs and bounds, no rows

    @property
    def key(self) -> str:
        """The hash of the inputs, by which a finished task is known."""
        return content_hash([self.stage, self.name, self.function, self.inputs])


@dataclass(frozen=True)
class MemoryFigures:
    """The four figures of every report, in bytes."""

    allowed_bytes: int = 0
    reserved_bytes: int = 0
    projected_bytes: int = 0
    measured_bytes: int = 0
    enforced_by: str = ""

    def join(self, other: MemoryFigures) -> MemoryFigures:
        """Return the larger of each figure, as for tasks that run one after another."""
        return MemoryFigures(
            max(self.allowed_bytes, other.allowed_bytes),
            max(self.reserved_bytes, other.reserved_bytes),
            max(self.projected_bytes, other.projected_bytes),
            max(self.measured_bytes, other.measured_bytes),
            self.enforced_by or other.enforced_by,
        )


@dataclass(frozen=True)
class TaskResult:
    """What a task returned: refs and counts."""

    task: str
    outputs: Mapping[str, Any]  # JSON-able, by the stage's own names
    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    batches: int = 0
    seconds: float = 0.0
    attempts: int = 1
    memory: MemoryFigures = MemoryFigures()

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TaskResult:
        """Return the result that ``to_json`` described."""
        fields = dict(value)
        fields["memory"] = MemoryFigures(**fields.get("memory", {}))
        return cls(**fields)


@dataclass(frozen=True)
class StageReport:
    """What one stage did: the sum of its slices."""

    stage: str
    n: int  # the last plan committed
    as_of: str  # ISO 8601 UTC
    slices: int = 0
    inputs: Mapping[str, Any] = field(default_factory=dict)
    outputs: Mapping[str, Any] = field(default_factory=dict)
    rows_in: int = 0
    rows_out: int = 0
    rows_quarantined: int = 0
    batches: int = 0
    attempts: int = 0
    seconds: float = 0.0
    memory: MemoryFigures = MemoryFigures()
    finished_at: str = ""  # wall clock, ISO 8601 UTC

    def join(self, later: StageReport) -> StageReport:
        """Return the sum with a later report of the same stage: counts add up, figures take the larger."""
        return dataclasses.replace(
            later if later.slices else self,
            slices=self.slices + later.slices,
            rows_in=self.rows_in + later.rows_in,
            rows_out=self.rows_out + later.rows_out,
            rows_quarantined=self.rows_quarantined + later.rows_quarantined,
            batches=self.batches + later.batches,
            attempts=self.attempts + later.attempts,
            seconds=round(self.seconds + later.seconds, 3),
            memory=self.memory.join(later.memory),
        )

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StageReport:
        """Return the report that ``to_json`` described."""
        fields = dict(value)
        fields["memory"] = MemoryFigures(**fields.get("memory", {}))
        return cls(**fields)
