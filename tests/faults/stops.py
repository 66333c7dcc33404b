"""Where an extraction can be made to stop, so that a test may kill it there: ``started`` (before the caged child),
``chunk`` (one was written), ``record`` (the commit comes next) or ``commit`` (after it).

Moments on the wire are the proxy's; what is killed there, and how, is the tests'.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine import events
from engine.batching.journal import Journal
from engine.batching.tables import Table
from engine.stages import extract

SLICE_ROWS = 20_000


def install(stop: str, halt: Callable[[], None]) -> events.Hook:
    """Make this process extract in small slices and call ``halt`` at the moment ``stop``; the hook is to observe it."""
    extract.SLICE_ROWS = SLICE_ROWS

    def hook(event: events.Event) -> None:
        started = isinstance(event, events.TaskStarted) and stop == "started"
        if started or (isinstance(event, events.ChunkWritten) and stop == "chunk"):
            halt()

    if stop == "record":
        write = Journal.write_commit

        def write_and_stop(self: Journal, app: str, n: int, record: Any) -> None:
            write(self, app, n, record)
            halt()

        Journal.write_commit = write_and_stop  # type: ignore[method-assign]
    if stop == "commit":
        commit = Table.commit

        def commit_and_stop(self: Table, *, app: str, **more: Any) -> Any:
            done = commit(self, app=app, **more)
            if app == "extract:raw":
                halt()
            return done

        Table.commit = commit_and_stop  # type: ignore[method-assign]
    return hook
