"""One extraction as a process of its own, for tests that kill it: ``python -m tests.faults.extraction DIR [STOP]``.

STOP is ``started`` (before the caged child; it goes on after a line of input), ``chunk`` (one was written), ``record``
(the commit comes next) or ``commit`` (after it). There the process says so and waits to be killed.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from engine import events
from engine.batching.journal import Journal
from engine.batching.tables import Table
from engine.errors import HeadraceError
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages import extract

SLICE_ROWS = 20_000


def _stop() -> None:
    print("stopped", flush=True)
    time.sleep(300)
    raise SystemExit("nobody killed this process")


def main(directory: Path, stop: str) -> None:
    """Extract all that is there, in small slices; wait where asked."""
    extract.SLICE_ROWS["raw"] = SLICE_ROWS

    def hook(event: events.Event) -> None:
        if isinstance(event, events.TaskStarted):
            print("started", flush=True)
            if stop == "started":
                sys.stdin.readline()
        if isinstance(event, events.ChunkWritten) and stop == "chunk":
            _stop()

    if stop == "record":
        write = Journal.write_commit

        def write_and_stop(self: Journal, app: str, n: int, record: Any) -> None:
            write(self, app, n, record)
            _stop()

        Journal.write_commit = write_and_stop  # type: ignore[method-assign]
    if stop == "commit":
        commit = Table.commit

        def commit_and_stop(self: Table, *, app: str, **more: Any) -> Any:
            commit(self, app=app, **more)
            if app == "extract:raw":
                _stop()

        Table.commit = commit_and_stop  # type: ignore[method-assign,assignment]
    spec = PipelineSpec.model_validate(json.loads((directory / "pipeline.json").read_text()))
    context = StageContext.of(spec, directory=directory, hook=hook)
    try:
        with context.workspace.lock(wait_seconds=20):
            run_stage(extract.ExtractStage("raw"), context)
    except HeadraceError as error:
        print(json.dumps(error.to_json()), flush=True)
        sys.exit(error.exit_code)
    print("done", flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "")
