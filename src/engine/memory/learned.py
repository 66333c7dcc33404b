"""What a workspace's own runs have measured, from which the next projections are made.

Two kinds of figures, one small file each: what a kind of task takes before any data, and, by table, the bytes of a row
that it holds. A file that cannot be read says nothing, and is measured again.
"""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

_MIB = 2**20
_RUNS = 8  # of which the largest figure counts: one that was large is forgotten once it has not been for so long
_MARGIN = 1.05

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


class Learned:
    """The figures of one workspace.

    Parameters
    ----------
    directory
        In the workspace; made with the first figure.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def reserved_bytes(self, stage: str) -> int:
        """Return the largest figure measured so far of a process before any data, or a documented first guess."""
        return int(max(self._figures(stage, "reserved"), default=0)) or _FIRST_RESERVED.get(stage, _UNKNOWN_RESERVED)

    def save_reserved(self, stage: str, reserved_bytes: int) -> None:
        """Keep a figure where it is the largest of this kind; 0 says nothing."""
        if reserved_bytes > max(self._figures(stage, "reserved"), default=0):
            self._write(stage, "reserved", [reserved_bytes])

    def row_bytes(self, stage: str, table: str, *, first: float) -> float:
        """Return the bytes that a task holds for each of its rows, as the last runs over a table measured them.

        Parameters
        ----------
        first
            The estimate from the table alone. What was measured counts in relation to the estimate of its time, so
            that rows which have become larger since are projected larger.
        """
        shares = self._figures(f"{stage}.{table}", "row_bytes")
        return first * max(shares) * _MARGIN if shares else first

    def save_row_bytes(self, stage: str, table: str, row_bytes: float, *, first: float) -> None:
        """Keep what a run has measured, with the estimate that was made before it."""
        name = f"{stage}.{table}"
        self._write(name, "row_bytes", [*self._figures(name, "row_bytes"), round(row_bytes / first, 4)][-_RUNS:])

    def _figures(self, name: str, kind: str) -> list[float]:
        try:
            found = json.loads(self._path(name, kind).read_text())
        except (FileNotFoundError, ValueError):  # cut off with the power: it is measured again by the next task
            return []
        return [one for one in found if isinstance(one, int | float)] if isinstance(found, list) else []

    def _write(self, name: str, kind: str, figures: list[float]) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        path = self._path(name, kind)
        temporary = path.with_suffix(f".{uuid4().hex[:8]}.tmp")  # tasks of one phase may end at once
        temporary.write_text(json.dumps(figures))
        temporary.replace(path)

    def _path(self, name: str, kind: str) -> Path:
        return self._directory / f"{name}.{kind}"
