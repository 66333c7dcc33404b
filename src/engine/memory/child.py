"""The child's side of the cage: reads its task from standard input, runs it, answers over a pipe. Started by
``cage.py``.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import importlib
import json
import numbers
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from typing import IO, Any

from engine import events
from engine.errors import HeadraceError, disk_error
from engine.late_pandas import import_pandas_late
from engine.memory.budget import Budget
from engine.memory.governor import Governor
from engine.memory.measure import end_tree, measure_self
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult, to_json

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SAYING = threading.Lock()


def main() -> int:
    """Run one task and return the exit code; every outcome that Python lives to see is an answer on the pipe."""
    _die_with_parent()
    with os.fdopen(int(os.environ["HEADRACE_EVENTS_FD"]), "w", buffering=1) as pipe:
        payload = json.load(sys.stdin)
        try:
            result, measured = _run(payload, pipe)
        except HeadraceError as error:
            _say(pipe, {"ours": error.to_json()})
            return 1
        except MemoryError:
            _say(pipe, {"out_of_memory": True})
            return 1
        except OSError as error:
            ours = _disk_error(error, str(payload["context"].get("workspace", "")))
            _say(pipe, {"ours": ours.to_json()} if ours is not None else _described(error))
            return 1
        except Exception as error:  # of any kind: the parent makes it a TaskCrashed with this traceback
            _say(pipe, _described(error))
            return 1
        _say(pipe, {"result": to_json(result), "measured": measured})
    return 0


def _run(payload: Mapping[str, Any], pipe: IO[str]) -> tuple[TaskResult, int]:
    task, budget = Task(**payload["task"]), Budget.from_json(payload["budget"])
    function = _loaded(task)
    reserved = measure_self().counted_bytes
    _say(pipe, {"reserved": reserved})
    started = time.monotonic()

    def emit(event: events.Event) -> None:
        _say(pipe, events.to_json(event))

    def pressure(level: str, measured: int) -> None:
        emit(events.Pressure(task.stage, task.name, level, measured, round(time.monotonic() - started, 3)))

    governor = Governor(budget, reserved_bytes=reserved, on_pressure=pressure)

    def keep(checkpoint: Mapping[str, Any]) -> None:
        _say(pipe, {"checkpoint": checkpoint})

    def at(place: str, column_bytes: int) -> None:
        _say(pipe, {"place": place, "column_bytes": column_bytes})

    resume = payload.get("resume")
    scope = Scope(task.stage, task.name, payload["context"], budget, governor, emit, started, keep, at, resume)
    result = function(task, scope)
    return result, measure_self().counted_bytes


def _loaded(task: Task) -> Callable[[Task, Scope], TaskResult]:
    """Return the task's function, with its libraries imported.

    What they make stays: the collector looks for garbage neither among it nor meanwhile, which is a tenth of a second
    here and at each time that memory is given back.
    """
    gc.disable()
    import_pandas_late()
    module, _, name = task.function.partition(":")
    function: Callable[[Task, Scope], TaskResult] = getattr(importlib.import_module(module), name)
    for library in task.inputs.get("imports", ()):
        importlib.import_module(library)
    gc.freeze()
    gc.enable()
    return function


def _say(pipe: IO[str], value: Mapping[str, Any]) -> None:
    line = json.dumps(value, default=_plain) + "\n"
    with _SAYING:  # a task may have threads that say something
        pipe.write(line)


def _plain(value: Any) -> Any:
    """Return a number of another library (NumPy's are none of json's) as Python's, all else as text."""
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    return str(value)


def _described(error: Exception) -> dict[str, Any]:
    lines = traceback.format_exception(error)
    return {"type": type(error).__name__, "text": str(error), "traceback": "".join(lines).splitlines()[-40:]}


def _disk_error(error: OSError, workspace: str) -> HeadraceError | None:
    """Return our error for a full or read-only disk, None for any other OSError."""
    known = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
    return disk_error(error, workspace) if error.errno in known else None


def _die_with_parent() -> None:
    """Ask the kernel to kill this process when its parent is gone; where it cannot be asked, only the pipe tells.

    What it starts and leaves behind becomes its own child again, so that it is counted and ended with it.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    except (OSError, AttributeError):
        return  # not Linux
    if os.getppid() != int(os.environ["HEADRACE_PARENT"]):  # it went while this one was starting
        os.kill(os.getpid(), signal.SIGKILL)


def _leave(code: int) -> None:
    """End at once: what the interpreter would tidy up takes a fifth of a second, and goes with the process anyway."""
    if "memray" in sys.modules:  # it writes its capture when the interpreter ends
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    end_tree(os.getpid(), itself=False)
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
