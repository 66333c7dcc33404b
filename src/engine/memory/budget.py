"""The budget of a task: how much memory, how many threads, how large a batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_BATCH = 64 * 1024
_MOST_BATCH = 32 * 2**20


@dataclass(frozen=True)
class Budget:
    """What one task may take."""

    allowed_bytes: int  # anonymous and shared memory of the process tree, plus swap
    threads: int = 2
    disk_bytes: int = 0
    batch_bytes: int = 0  # upper bound of a batch; 0 derives it from allowed_bytes

    def __post_init__(self) -> None:
        """Derive the batch: a 64th of the budget, from 64 KiB to 32 MiB (8 MiB at 512 MiB)."""
        if not self.batch_bytes:
            derived = max(LEAST_BATCH, min(_MOST_BATCH, self.allowed_bytes // 64))
            object.__setattr__(self, "batch_bytes", derived)

    def halved(self) -> Budget:
        """Return the budget for another try, with half the batch."""
        return dataclasses.replace(self, batch_bytes=max(LEAST_BATCH, self.batch_bytes // 2))

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Budget:
        """Return the budget that ``to_json`` described."""
        return cls(**value)
