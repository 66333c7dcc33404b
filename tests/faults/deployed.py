"""The flow ``extract`` as a deployment of tests names it: the real one, that stops where the file ``stop`` beside the
pipeline file says (``stops.py``), leaves its pid in ``stopped``, and goes on when ``stop`` is gone.
"""

from __future__ import annotations

import functools
import os
import time
from pathlib import Path
from typing import Any

from flows.lifecycle import extract
from flows.parameters import ExtractParameters
from flows.session import observing
from tests.faults import stops

_WAIT_SECONDS = 240.0

_extract = extract.fn


@functools.wraps(_extract)
def _stopping(parameters: ExtractParameters) -> dict[str, Any]:
    directory = Path(parameters.pipeline).parent
    (directory / "running").write_text(str(os.getpid()))
    stop = directory / "stop"

    def halt() -> None:
        until = time.monotonic() + _WAIT_SECONDS
        partial = directory / "stopped.partial"
        partial.write_text(str(os.getpid()))
        partial.rename(directory / "stopped")
        while stop.exists():
            if time.monotonic() > until:
                raise RuntimeError("nobody killed this process, nor let it go")
            time.sleep(0.05)

    with observing(stops.install(stop.read_text() if stop.exists() else "", halt)):
        return _extract(parameters)


extract.fn = _stopping
