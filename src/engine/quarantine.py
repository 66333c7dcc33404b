"""What lies in ``quarantine``, and which parts of the source to read again to bring it in.

How rows get there is ``sources/admission.py``; reading again is a backfill of ``stages/extract.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from engine.batching import Workspace, read_batches

_MOST_WINDOWS = 32
_CLOSE = timedelta(minutes=1)


@dataclass(frozen=True)
class Quarantined:
    """The whole quarantine of a pipeline, and some of its rows."""

    rows: int
    reasons: Sequence[tuple[str, str, int]]  # table, reason, rows; the most frequent first
    examples: Sequence[dict[str, Any]]  # the newest first


@dataclass(frozen=True)
class ReplayWindow:
    """A stretch of the cursor that holds quarantined rows; both ends inclusive."""

    table: str
    since: datetime
    until: datetime
    rows: int


def quarantined(workspace: Workspace, *, table: str | None = None, limit: int = 20) -> Quarantined:
    """Return what is in quarantine, of ``raw``, ``labels`` or both, with at most ``limit`` examples."""
    reasons: Counter[tuple[str, str]] = Counter()
    examples: list[dict[str, Any]] = []
    for row in _rows(workspace, table):
        reasons[row["table"], row["reason"]] += 1
        examples.append(row)
        if len(examples) > 2 * limit:
            del examples[:-limit]
    shown = [(name, reason, count) for (name, reason), count in reasons.most_common()]
    return Quarantined(sum(reasons.values()), shown, list(reversed(examples[-limit:])) if limit else [])


def replay_windows(workspace: Workspace, *, table: str | None = None) -> tuple[list[ReplayWindow], int]:
    """Return the windows to read again, and the number of rows without a cursor, which no window finds."""
    cursors: dict[str, list[datetime]] = {}
    lost = 0
    for row in _rows(workspace, table):
        if row["cursor"] is None:
            lost += 1
        else:
            cursors.setdefault(row["table"], []).append(row["cursor"])
    return [window for name in sorted(cursors) for window in windows_of(cursors[name], table=name)], lost


def windows_of(cursors: Iterable[datetime], *, table: str, most: int = _MOST_WINDOWS) -> list[ReplayWindow]:
    """Return at most ``most`` windows that hold all cursors: those that lie close to one another share one."""
    times = sorted(cursors)
    close = _CLOSE
    while True:
        out: list[ReplayWindow] = []
        for time in times:
            if out and time - out[-1].until <= close:
                out[-1] = ReplayWindow(table, out[-1].since, time, out[-1].rows + 1)
            else:
                out.append(ReplayWindow(table, time, time, 1))
        if len(out) <= most:
            return out
        close *= 2


def _rows(workspace: Workspace, table: str | None) -> Iterator[dict[str, Any]]:
    chunks = workspace.table("quarantine").chunks()
    for batch in read_batches([chunk.path for chunk in chunks]):
        for row in batch.to_pylist():
            if table is None or row["table"] == table:
                yield row
