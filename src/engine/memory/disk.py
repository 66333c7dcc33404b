"""Checks of the disk before work: real, not memory in disguise, and with room."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from engine.errors import PlanRefused, WorkspaceError
from engine.units import format_bytes

_IN_MEMORY = ("tmpfs", "ramfs")


def refuse_memory(path: Path) -> None:
    """Do nothing when ``path`` lies on a disk.

    Raises
    ------
    WorkspaceError
        It lies on a tmpfs, whose files are memory that no cage counts right.
    """
    kind = filesystem(path)
    if kind in _IN_MEMORY:
        raise WorkspaceError(
            f"{path} is on a {kind}: its files are memory, so no budget could hold",
            hint="set HEADRACE_HOME or the pipeline's 'workspace' to a directory on a disk",
        )


def require_room(path: Path, needed_bytes: int, allowed_bytes: int, *, what: str) -> None:
    """Do nothing when ``needed_bytes`` fit both the budget and the disk of ``path``, which need not be there yet.

    Raises
    ------
    PlanRefused
        It is more than ``resources.disk`` allows, or than the disk has free; names both figures.
    """
    if needed_bytes > allowed_bytes:
        raise PlanRefused(
            f"{what} needs {format_bytes(needed_bytes)} of disk, {format_bytes(allowed_bytes)} are allowed",
            hint=f"set resources.disk to at least {-(-needed_bytes // 2**20)}MiB",
            details={"needed_bytes": needed_bytes, "allowed_bytes": allowed_bytes},
        )
    free = shutil.disk_usage(next(place for place in (path, *path.absolute().parents) if place.exists())).free
    if free < needed_bytes:
        raise PlanRefused(
            f"{what} needs {format_bytes(needed_bytes)} on the disk of {path}, {format_bytes(free)} are free",
            hint="free some space, or set HEADRACE_HOME to another disk",
            details={"needed_bytes": needed_bytes, "free_bytes": free},
        )


def filesystem(path: Path) -> str:
    """Return the kind of file system that ``path`` is on, empty where the system does not say."""
    try:
        lines = Path("/proc/self/mountinfo").read_text().splitlines()
    except FileNotFoundError:
        return ""
    real = os.path.realpath(path)
    best, kind = "", ""
    for line in lines:
        left, _, right = line.partition(" - ")
        point = left.split()[4].replace("\\040", " ")
        inside = point == "/" or real == point or real.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, right.split()[0]
    return kind
