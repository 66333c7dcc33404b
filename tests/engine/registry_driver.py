"""Registers a bundle and dies on the way, for tests that kill it: in ``DIRECTORY/POINT``, for each POINT.

``python -m tests.engine.registry_driver DIRECTORY POINT...``
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from engine.registry import ModelRegistry

KEY = "flights/1"
POINTS = ("among the migrations", "before the run ends", "before the version", "after the version")


def register(directory: Path) -> int:
    """Register the bundle of a directory, always in the same words."""
    return ModelRegistry(directory, name="flights").register(
        directory / "bundle", key=KEY, metrics={"rows": 3.0}, parameters={"learner": "sgd"}, tags={"until": "2013"}
    )


def _die(*args: Any, **named: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _arm(point: str) -> None:
    from mlflow.tracking import MlflowClient

    create: Callable[..., Any] = MlflowClient.create_model_version
    if point == "among the migrations":
        from sqlalchemy import event
        from sqlalchemy.engine import Engine

        def executed(connection: Any, cursor: Any, statement: str, *more: Any) -> None:
            if "CREATE TABLE scorers" in statement:
                _die()

        event.listen(Engine, "after_cursor_execute", executed)
    elif point == "before the run ends":
        MlflowClient.set_terminated = _die
    elif point == "before the version":
        MlflowClient.create_model_version = _die
    else:
        MlflowClient.create_model_version = lambda *args, **named: _die(create(*args, **named))


def main(directory: Path, points: list[str]) -> None:
    """Die at each point in a process of its own: MLflow is imported once for all."""
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking  # noqa: F401

    for point in points:
        process = os.fork()
        if not process:
            _arm(point)
            register(directory / point)
            os._exit(0)
        _, status = os.waitpid(process, 0)
        print(f"{point}: {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
