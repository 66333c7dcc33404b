"""What a check of a pipeline found: one value, printed by the command line."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, suspect, or good to know."""

    severity: Literal["error", "warning", "info"]
    where: str  # key path in the pipeline file, or the column
    message: str
    hint: str = ""
