"""Memory as tickets on one host: runs that do not fit together wait for one another, server or none.

Each holder keeps a file of its own locked for as long as it lives; the kernel lets go of the lock however it ends.
Under a Prefect server ``flows/tickets.py`` occupies a concurrency limit instead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

from engine.errors import PlanRefused, WorkspaceError
from engine.memory.host import host_memory_bytes
from engine.units import format_bytes

MEMORY_LIMIT = "memory-mib"
"""Prefect's global concurrency limit of which a run occupies its allowed MiB."""

_RESERVE_SHARE = 0.2  # of the host's memory: the system's, and what is not a task's own
_LOOK_SECONDS = 0.5
_SHARED = Path("/tmp")
_MIB = 2**20


def tickets_mib() -> int:
    """Return how many MiB runs on this host may hold together: its memory less a fifth, in whole MiB."""
    return int(host_memory_bytes() * (1.0 - _RESERVE_SHARE)) // _MIB


def require_memory(size_mib: int, *, total_mib: int) -> None:
    """Do nothing where a budget is no more than what runs may hold together.

    Raises
    ------
    PlanRefused
        It is more: no waiting would help.
    """
    if size_mib > total_mib:
        raise PlanRefused(
            f"the budget of {format_bytes(size_mib * _MIB)} is more than the {format_bytes(total_mib * _MIB)} that "
            "runs on this host may hold together",
            hint=f"set resources.memory to at most {total_mib}MiB, or to auto",
            details={"allowed_bytes": size_mib * _MIB, "host_bytes": total_mib * _MIB},
        )


@contextlib.contextmanager
def host_ticket(
    size_mib: int,
    *,
    total_mib: int | None = None,
    directory: Path | None = None,
    waiting: Callable[[str], None] = lambda message: None,
) -> Iterator[None]:
    """Hold ``size_mib`` of the host's memory while the block runs; waits until so much is free.

    Parameters
    ----------
    total_mib
        What may be held together; default: ``tickets_mib()``.
    directory
        Where the host's tickets are; default: the user's own below ``/tmp``, wherever a session has its files.
    waiting
        Told once, when it begins to wait, what is held by others.

    Raises
    ------
    PlanRefused
        It is more than the host has in all: no waiting would help.
    WorkspaceError
        The directory is another user's.
    """
    total = tickets_mib() if total_mib is None else total_mib
    place = directory or _run_directory()
    place.mkdir(parents=True, exist_ok=True, mode=0o700)
    if place.stat().st_uid != os.getuid():
        raise WorkspaceError(f"{place} is another user's: it is for this user's tickets", hint="have it removed")
    require_memory(size_mib, total_mib=total)
    path = place / f"{os.getpid()}-{uuid4().hex[:8]}.ticket"
    told = False
    while True:
        with _gate(place):
            held = _held(place)
            if held + size_mib <= total:
                mine = _take(path, size_mib)
                break
        if not told:
            told = True
            waiting(
                f"{size_mib} MiB are needed, {held} of {total} MiB are held by other runs on this host: "
                "going on when they end"
            )
        time.sleep(_LOOK_SECONDS)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        mine.close()


def _run_directory() -> Path:
    """Return one place for all runs of this user: a job of cron has not the environment of a login."""
    base = _SHARED if _SHARED.is_dir() else Path(tempfile.gettempdir())
    return base / f"headrace-{os.getuid()}"


@contextlib.contextmanager
def _gate(place: Path) -> Iterator[None]:
    """Let one process at a time count and take."""
    with open(place / "gate", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _held(place: Path) -> int:
    """Return the MiB of all living holders; the tickets of those that are gone are removed."""
    total = 0
    for path in place.glob("*.ticket"):
        try:
            with open(path, "r+") as handle:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # free: its holder is gone
                path.unlink(missing_ok=True)
        except BlockingIOError:
            total += _size(path)
        except FileNotFoundError:
            continue  # given back since
    return total


def _size(path: Path) -> int:
    """Return the MiB of a ticket that is held, 0 where it has been given back since."""
    try:
        return int(path.read_text() or 0)
    except FileNotFoundError:
        return 0


def _take(path: Path, size_mib: int) -> IO[str]:
    handle = open(path, "w")  # noqa: SIM115 - held, and with it the lock, until the ticket is given back
    fcntl.flock(handle, fcntl.LOCK_EX)
    handle.write(str(size_mib))
    handle.flush()
    return handle
