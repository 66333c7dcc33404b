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
    "compact": 46 * _MIB,
    "extract": 46 * _MIB,
    "extract.settle": 48 * _MIB,
    "prepare": 57 * _MIB,
    "train.cache": 57 * _MIB,
    "train.fit": 141 * _MIB,
    "validate": 141 * _MIB,
    "score": 141 * _MIB,
    "monitor": 57 * _MIB,
}
"""Before a workspace has measured its own: somewhat more than fresh children took on Linux x86-64, Python 3.11."""

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

    def row_bytes(self, stage: str, table: str, *, base: float, copies: float) -> float:
        """Return the bytes that a task holds for each of its rows, as the last runs over a table measured them.

        Parameters
        ----------
        base
            Of a row as the table has it. What was measured counts in relation to it, so that rows which have become
            larger since are projected larger.
        copies
            How often a row is held, before the first run has told.
        """
        measured = self._figures(f"{stage}.{table}", "row_bytes")
        return base * (max(measured) * _MARGIN if measured else copies)

    def save_row_bytes(self, stage: str, table: str, row_bytes: float, *, base: float) -> None:
        """Keep what a run has measured, in relation to the bytes of a row as the table has it."""
        name = f"{stage}.{table}"
        self._write(name, "row_bytes", [*self._figures(name, "row_bytes"), round(row_bytes / base, 4)][-_RUNS:])

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
