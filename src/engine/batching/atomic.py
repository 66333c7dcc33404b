"""Files that are either whole or absent: written beside, synced, then renamed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from engine.errors import TableError


def replace_synced(temporary: Path, final: Path) -> None:
    """Rename a finished file over its final name, after its bytes and before its name reach the disk."""
    _sync(temporary)
    os.replace(temporary, final)
    _sync(final.parent)


def sync_files(paths: Iterable[Path]) -> None:
    """Wait until files and their names are on the disk: those that were renamed without, because one cannot wait."""
    directories = set()
    for path in paths:
        _sync(path)
        directories.add(path.parent)
    for directory in directories:
        _sync(directory)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
