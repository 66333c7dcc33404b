"""The budget of a task: how much memory, how many threads, how large a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_BATCH = 64 * 1024
BUDGET_BATCHES = 64
"""A batch is such a part of the budget, within bounds."""

ATTEMPTS = 5
"""How often a task that is stopped at its budget is begun, with ever smaller batches."""

_SMALLER = {2: 2, 3: 16, 4: 256}
_ONE_ROW = 1024
"""A batch that holds one row, if that is so large as to matter: ten rows of 100 bytes pass no budget."""

_MOST_BATCH = 8 * 2**20  # a row group in memory: what is larger than that buys no speed


@dataclass(frozen=True)
class Budget:
    """What one task may take."""

    allowed_bytes: int  # anonymous and shared memory of the process tree, plus swap
    threads: int = 2
    disk_bytes: int = 0
    batch_bytes: int = 0  # upper bound of a batch; 0 derives it from allowed_bytes

    def __post_init__(self) -> None:
        """Derive the batch: a 64th of the budget, from 64 KiB to 8 MiB (at 512 MiB)."""
        if not self.batch_bytes:
            derived = max(LEAST_BATCH, min(_MOST_BATCH, self.allowed_bytes // BUDGET_BATCHES))
            object.__setattr__(self, "batch_bytes", derived)

    def for_attempt(self, number: int, *, fitting_bytes: int | None = None) -> Budget:
        """Return the budget for another try after one that was stopped: its batch is ever smaller, one row at last.

        Parameters
        ----------
        number
            Of the try, from 2.
        fitting_bytes
            The batch that would fit by what was seen of the one that did not. It is an upper bound only: what more it
            would have taken nobody has seen.
        """
        batch = self.batch_bytes // _SMALLER.get(number, self.batch_bytes)
        if fitting_bytes is not None:
            batch = min(batch, fitting_bytes)
        return dataclasses.replace(self, batch_bytes=max(_ONE_ROW, batch))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Budget:
        """Return the budget that ``to_json`` described."""
        return cls(**value)
