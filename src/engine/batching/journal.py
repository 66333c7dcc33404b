"""Plans, commits and finished tasks as small immutable JSON files beside the tables.

A plan is written before it runs, a commit's record before the commit whose transaction names its n. Which n counts is
said by the tables alone (``tables.py``), never by a file here.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine.batching.atomic import read_json, write_json


class Journal:
    """The three kinds of record under a workspace's root."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def plan(self, app: str, n: int) -> dict[str, Any] | None:
        """Return plan n of an app as it was first written, or None."""
        found: dict[str, Any] | None = read_json(self._path("plans", app, n))
        return found

    def write_plan(self, app: str, n: int, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Write plan n, unless one is there: n is never planned twice with other bounds. Return the one that counts."""
        existing = self.plan(app, n)
        if existing is not None:
            return existing
        write_json(self._path("plans", app, n), dict(plan))
        return dict(plan)

    def replace_plan(self, app: str, n: int, plan: Mapping[str, Any]) -> None:
        """Write another plan in the place of one that was never committed and cannot be run."""
        write_json(self._path("plans", app, n), dict(plan))

    def commit(self, app: str, n: int) -> dict[str, Any] | None:
        """Return what commit n of an app recorded (its cursor and counts), or None."""
        found: dict[str, Any] | None = read_json(self._path("commits", app, n))
        return found

    def write_commit(self, app: str, n: int, record: Mapping[str, Any]) -> None:
        """Record commit n; called before the table's own commit."""
        write_json(self._path("commits", app, n), dict(record))

    def task(self, key: str) -> dict[str, Any] | None:
        """Return the result of a task that has run, by the hash of its inputs, or None."""
        found: dict[str, Any] | None = read_json(self._root / "tasks" / f"{key}.json")
        return found

    def write_task(self, key: str, result: Mapping[str, Any]) -> None:
        """Record that a task has run."""
        write_json(self._root / "tasks" / f"{key}.json", dict(result))

    def forget_task(self, key: str) -> None:
        """Drop a task's record, once its plan is committed."""
        (self._root / "tasks" / f"{key}.json").unlink(missing_ok=True)

    def apps(self) -> list[str]:
        """Return the apps that ever planned or committed."""
        places = {
            Path(directory).relative_to(self._root / kind).as_posix()
            for kind in ("plans", "commits")
            for directory, _, files in os.walk(self._root / kind)
            if files
        }
        return sorted(place.replace("/", ":") for place in places)

    def plans(self, app: str) -> list[tuple[int, Path]]:
        """Return the number and the file of each plan of an app that is there still."""
        return [(int(path.stem), path) for path in sorted(self._path("plans", app, 0).parent.glob("[0-9]*.json"))]

    def tasks(self) -> list[Path]:
        """Return the files of the tasks that have run and whose plan was not committed when they were last seen."""
        return sorted((self._root / "tasks").glob("[0-9a-f]*.json"))

    def _path(self, kind: str, app: str, n: int) -> Path:
        return self._root / kind / app.replace(":", "/") / f"{n:08d}.json"
