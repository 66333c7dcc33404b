"""What a task is expected to hold at its peak: named terms, summed, and refused when over the budget. Pure
arithmetic.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from uuid import uuid4

from engine.errors import PlanRefused
from engine.memory.budget import LEAST_BATCH, Budget
from engine.units import format_bytes

_MIB = 2**20

BATCHES = "batches"
"""How the names of terms begin that grow with the batch."""

_FIRST_RESERVED = {
    "extract": 100 * _MIB,
    "prepare": 110 * _MIB,
    "train.cache": 140 * _MIB,
    "train.fit": 160 * _MIB,
    "validate": 170 * _MIB,
    "score": 170 * _MIB,
    "monitor": 110 * _MIB,
}
"""Before a workspace has measured its own: fresh children on Linux x86-64, Python 3.11, rounded up."""

_UNKNOWN_RESERVED = 170 * _MIB


@dataclass(frozen=True)
class Projection:
    """The expected peak of a task."""

    stage: str
    reserved_bytes: int  # the process before any data
    terms: Mapping[str, int] = field(default_factory=dict)  # bytes by name

    @property
    def projected_bytes(self) -> int:
        """Reserved and all terms."""
        return self.reserved_bytes + sum(self.terms.values())

    @property
    def worst_term(self) -> tuple[str, int]:
        """The largest term, ``reserved`` included."""
        name, size = max({"reserved": self.reserved_bytes, **self.terms}.items(), key=lambda item: item[1])
        return name, size

    @property
    def smallest_budget_bytes(self) -> int:
        """The smallest budget that would do with these batches, in whole MiB."""
        return -(-self.projected_bytes // _MIB) * _MIB

    def largest_batch_bytes(self, budget: Budget) -> int:
        """Return the largest batch with which the task would fit the budget, 0 when none would.

        Terms whose name begins with ``batches`` grow with the batch, the others do not.
        """
        growing = sum(size for name, size in self.terms.items() if name.startswith(BATCHES))
        room = budget.allowed_bytes - (self.projected_bytes - growing)
        if not growing:
            return budget.batch_bytes if room >= 0 else 0
        fitting = budget.batch_bytes * room // growing
        return int(fitting) if fitting >= LEAST_BATCH else 0

    def check(self, budget: Budget) -> None:
        """Do nothing when the projection fits the budget.

        Raises
        ------
        PlanRefused
            It does not: names stage, figures, the worst term, the smallest budget and the largest batch that would do.
        """
        if self.projected_bytes <= budget.allowed_bytes:
            return
        name, size = self.worst_term
        smallest, batch = self.smallest_budget_bytes, self.largest_batch_bytes(budget)
        smaller = f"; with batches of {format_bytes(batch)} it would fit" if batch else "; no smaller batch would fit"
        raise PlanRefused(
            f"{self.stage}: projected {format_bytes(self.projected_bytes)} is over the "
            f"{format_bytes(budget.allowed_bytes)} allowed (reserved {format_bytes(self.reserved_bytes)}); "
            f"the worst term is {name} with {format_bytes(size)}{smaller}",
            hint=f"set resources.memory to at least {smallest // _MIB}MiB, or run with --memory {smallest // _MIB}MiB",
            details={
                "stage": self.stage,
                "allowed_bytes": budget.allowed_bytes,
                "reserved_bytes": self.reserved_bytes,
                "projected_bytes": self.projected_bytes,
                "worst_term": name,
                "smallest_budget_bytes": smallest,
                "largest_batch_bytes": batch,
                "terms": dict(self.terms),
            },
        )


class ReservedStore:
    """What each kind of task takes before any data, as its children measured it; one small file a kind.

    Parameters
    ----------
    directory
        In the workspace; made with the first figure.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self, stage: str) -> int:
        """Return the largest figure measured so far, or a documented first guess, in bytes."""
        return self._measured(stage) or _FIRST_RESERVED.get(stage, _UNKNOWN_RESERVED)

    def save(self, stage: str, reserved_bytes: int) -> None:
        """Keep a figure where it is the largest of this kind; 0 says nothing."""
        if reserved_bytes > self._measured(stage):
            self._directory.mkdir(parents=True, exist_ok=True)
            path = self._path(stage)
            temporary = path.with_suffix(f".{uuid4().hex[:8]}.tmp")  # tasks of one phase may end at once
            temporary.write_text(str(reserved_bytes))
            temporary.replace(path)

    def _measured(self, stage: str) -> int:
        try:
            return int(self._path(stage).read_text())
        except (FileNotFoundError, ValueError):  # cut off with the power: it is measured again by the next task
            return 0

    def _path(self, stage: str) -> Path:
        return self._directory / f"{stage}.reserved"
