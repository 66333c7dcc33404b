"""What a task is expected to hold at its peak: named terms, summed, and refused when over the budget. Pure
arithmetic; what earlier runs measured comes from ``learned.py``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.errors import PlanRefused
from engine.memory.budget import LEAST_BATCH, Budget
from engine.units import format_bytes

_MIB = 2**20

BATCHES = "batches"
"""How the names of terms begin that grow with the batch."""


@dataclass(frozen=True)
class Projection:
    """The expected peak of a task."""

    stage: str
    reserved_bytes: int  # the process before any data
    terms: Mapping[str, int] = field(default_factory=dict)  # bytes by name
    rows: int = 0  # that the task holds at once; 0: it holds batches only
    row_term: str = ""  # the term that is proportional to ``rows``
    table: str = ""  # whose rows they are
    base_row_bytes: float = 0.0  # of a row as the table has it

    @property
    def row_bytes(self) -> float:
        """Bytes of a row that is held, 0 where none is."""
        return self.terms[self.row_term] / self.rows if self.rows and self.row_term else 0.0

    def observed_row_bytes(self, measured_bytes: int) -> float | None:
        """Return the bytes of a row as a run has measured them, None where its rows were too few to tell.

        Where rows are most of it, all that was measured beyond ``reserved`` is put down to them, which errs on the safe
        side. Elsewhere they are learned only to take more than was thought: what was measured beyond all other terms.
        """
        if not self.rows or not self.row_term:
            return None
        beyond, of_rows = max(0, measured_bytes - self.reserved_bytes), self.terms[self.row_term]
        others = sum(self.terms.values()) - of_rows
        if of_rows >= others:
            return beyond / self.rows
        return (beyond - others) / self.rows if beyond - others > of_rows else None

    @property
    def projected_bytes(self) -> int:
        """Reserved and all terms."""
        return self.reserved_bytes + sum(self.terms.values())

    @property
    def worst_term(self) -> tuple[str, int]:
        """The largest term, ``reserved`` included."""
        name, size = max({"reserved": self.reserved_bytes, **self.terms}.items(), key=lambda item: item[1])
        return name, size

    def smallest_budget_bytes(self, budget: Budget) -> int:
        """Return a budget in whole MiB that would do, where ``budget`` does not.

        It has batches of its own size where rows are held; where all is batches, the smallest ones.
        """
        growing, found = self._batch_terms, 0
        if not self.row_term:
            least = self.projected_bytes - growing + -(-growing * LEAST_BATCH // budget.batch_bytes)
            return -(-least // _MIB) * _MIB
        needed = self.projected_bytes
        while needed > found:
            found = -(-needed // _MIB) * _MIB
            batches = -(-growing * Budget(found).batch_bytes // budget.batch_bytes)
            needed = self.projected_bytes - growing + batches
        return found

    @property
    def _batch_terms(self) -> int:
        """Bytes of the terms that grow with the batch: their names begin with ``batches``."""
        return sum(size for name, size in self.terms.items() if name.startswith(BATCHES))

    def largest_batch_bytes(self, budget: Budget) -> int:
        """Return the largest batch with which the task would fit the budget, 0 when none would."""
        growing = self._batch_terms
        room = budget.allowed_bytes - (self.projected_bytes - growing)
        if not growing:
            return budget.batch_bytes if room >= 0 else 0
        fitting = budget.batch_bytes * room // growing
        return int(fitting) if fitting >= LEAST_BATCH else 0

    def fitting(self, budget: Budget) -> Budget:
        """Return the budget with the largest batch that fits, itself where its own does, or where none would.

        What holds rows is made of fewer rows instead.
        """
        if self.projected_bytes <= budget.allowed_bytes or self.row_term:
            return budget
        batch = self.largest_batch_bytes(budget)
        return dataclasses.replace(budget, batch_bytes=batch) if batch else budget

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
        smallest, batch = self.smallest_budget_bytes(budget), self.largest_batch_bytes(budget)
        smaller = f"; with batches of {format_bytes(batch)} it would fit" if batch else "; no smaller batch would fit"
        if self.row_term:  # its batches are as they are
            smaller = ""
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
