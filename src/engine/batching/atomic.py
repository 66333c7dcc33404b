"""Files that are either whole or absent: written beside, synced, then renamed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from engine.errors import TableError


def replace_synced(temporary: Path, final: Path) -> None:
    """Rename a finished file over its final name, after its bytes and before its name reach the disk."""
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, final)
    directory = os.open(final.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file so that a reader, or a crash, sees the old one, the new one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(json.dumps(value, indent=1, sort_keys=True, default=str) + "\n")
        replace_synced(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def require_json(path: Path) -> dict[str, Any]:
    """Return a JSON file's mapping.

    Raises
    ------
    TableError
        There is no such file.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise TableError(f"{path} is missing or damaged", hint="restore it from a backup, or run the stage again")
    return found


def read_json(path: Path) -> Any | None:
    """Return a JSON file's value, or None when there is no such file."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return None
