"""One extraction as a process of its own, for tests that kill it: ``python -m tests.faults.extraction DIR [STOP]``.

At STOP (see ``stops.py``) the process says so and waits to be killed; from ``started`` it goes on after a line of
input.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from engine.errors import HeadraceError
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages import extract
from tests.faults import stops


def main(directory: Path, stop: str) -> None:
    """Extract all that is there, in small slices; wait where asked."""

    def halt() -> None:
        if stop == "started":
            print("started", flush=True)
            sys.stdin.readline()
            return
        print("stopped", flush=True)
        time.sleep(300)
        raise SystemExit("nobody killed this process")

    hook = stops.install(stop, halt)
    spec = PipelineSpec.model_validate(json.loads((directory / "payments.yaml").read_text()))
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
