"""Calling a flow from the terminal: the file is checked first, Prefect stays quiet, progress is shown."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from engine import events
from engine.batching import Workspace
from engine.late_pandas import import_pandas_late
from engine.spec import PipelineSpec
from engine.specfile import load_spec
from headrace.progress import TerminalProgress


def call_flow(
    name: str, *, pipeline: Path, quiet: bool = False, hook: events.Hook = events.ignore, **given: Any
) -> dict[str, Any]:
    """Run a flow of ``flows.lifecycle`` in this process and return its report.

    Against the server of ``PREFECT_API_URL`` or of the active Prefect profile; without one, Prefect starts a
    temporary one.

    Parameters
    ----------
    name
        The flow's function.
    pipeline
        The pipeline file; read before Prefect is even imported, since a mistake in it should not take seconds to see.
    quiet
        Show no progress.
    given
        Parameters of the flow; None is left to its default.
    """
    Workspace(read_pipeline(pipeline).workspace).prepare()
    silence_prefect()
    import flows.lifecycle as lifecycle
    from flows import parameters as known
    from flows.session import observing

    values = {key: value for key, value in given.items() if value is not None}
    kinds: dict[str, type[known.RunParameters]] = {
        "continuous_training": known.LoopParameters,
        "train": known.LoopParameters,
        "extract": known.ExtractParameters,
        "replay": known.ReplayParameters,
        "rollback": known.RollbackParameters,
    }
    parameters = kinds.get(name, known.RunParameters)(pipeline=str(pipeline), **values)
    with TerminalProgress(enabled=not quiet) as progress, observing(events.fan_out(progress, hook)):
        report: dict[str, Any] = getattr(lifecycle, name)(parameters)
    return report


def read_pipeline(path: Path) -> PipelineSpec:
    """Return the pipeline of a file; Prefect is asked only when the file names one of its secrets."""
    import_pandas_late()

    def secret(name: str) -> str:
        silence_prefect()
        from flows.secrets import secret as secret_of

        return secret_of(name)

    return load_spec(path, secrets=secret)


@contextlib.contextmanager
def held_memory(allowed_bytes: int) -> Iterator[None]:
    """Hold the memory of work that is no flow run, with a line on standard error where that has to wait."""
    silence_prefect()
    from flows.tickets import memory_ticket

    with memory_ticket(allowed_bytes, waiting=lambda message: print(f"waiting: {message}", file=sys.stderr)):
        yield


def silence_prefect() -> None:
    """Keep Prefect's log off the terminal, where our own progress is; it still goes to the server. Before its
    import.
    """
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")
