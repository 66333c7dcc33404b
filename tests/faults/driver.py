"""The loop over two clocks as a process of its own, for tests that kill it. ``python -m tests.faults.driver DIRECTORY
[CRASH]``.

CRASH is ``record:APP`` (after the commit's record, before the commit) or ``event:KIND:COUNT`` (at the n-th event of a
kind).
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from pathlib import Path
from typing import Any

from engine import events
from engine.batching.journal import Journal
from engine.ledger import Ledger
from engine.stage import StageContext
from tests.world import FEBRUARY, MARCH, World


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(directory: Path, crash: str) -> None:
    """Run the loop at two clocks; die where asked."""
    kind, _, where = crash.partition(":")
    if kind == "record":
        write = Journal.write_commit

        def write_and_die(self: Journal, app: str, n: int, record: Any) -> None:
            write(self, app, n, record)
            if app == where:
                _die()

        Journal.write_commit = write_and_die  # type: ignore[method-assign]
    world = World(directory)
    if kind == "event":
        name, _, count = where.partition(":")
        left = [int(count)]

        def hook(event: events.Event) -> None:
            if type(event).__name__ == name:
                left[0] -= 1
                if not left[0]:
                    _die()

        context = world.context
        world.context = lambda as_of: dataclasses.replace(context(as_of), hook=hook)  # type: ignore[method-assign]
    assert isinstance(world.context(FEBRUARY), StageContext)
    # Time does not go back: a loop that promoted has ended, and another at its clock would score with that model.
    over = world.begun(MARCH) or Ledger(world.workspace).champion() is not None
    for clock in (MARCH,) if over else (FEBRUARY, MARCH):
        with world.workspace.lock(wait_seconds=20):
            # One training; if it was cut off, the next run resumes it and does not ask for another.
            world.loop(clock, retrain=clock == FEBRUARY and not world.trained(clock))
    print("done")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
