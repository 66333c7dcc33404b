"""The directory under which a pipeline's tables live: its places, its probe before work, and its one lock.

What lies in the tables is ``tables.py``; which plans were written and committed is ``journal.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from engine.batching.journal import Journal
from engine.batching.tables import Table
from engine.errors import WorkspaceLocked, disk_error
from engine.memory.disk import refuse_memory

_LOCK = "lock"
_OTHERS = ("bundles", "registry", "profiles", "scratch")  # what lies there is not written by way of a temporary name


class Workspace:
    """Where one pipeline keeps everything.

    Parameters
    ----------
    root
        A local directory; made by ``prepare``.
    tables_stay_open
        For a process that plans, which asks the same tables dozens of times; a task reads a log once, and forgets it.

    Notes
    -----
    ``tables/<name>`` Delta tables; ``plans``, ``commits``, ``tasks`` the journal; ``segments`` window segments, a cache
    that can be rebuilt; ``bundles/<n>`` candidates; ``registry`` MLflow; ``scratch`` for a task's own files.
    """

    def __init__(self, root: Path | str, *, tables_stay_open: bool = False) -> None:
        self.root = Path(root).expanduser().absolute()
        self.journal = Journal(self.root)
        self._open: dict[str, Table] | None = {} if tables_stay_open else None

    def table(self, name: str) -> Table:
        """Return the handle of a table, which need not exist yet."""
        path = self.root / "tables" / name
        if self._open is None:
            return Table(path, name=name)
        return self._open.setdefault(name, Table(path, name=name, stays_open=True))

    @property
    def segments(self) -> Path:
        """Directory of window segments."""
        return self.root / "segments"

    @property
    def bundles(self) -> Path:
        """Directory of candidates' bundles."""
        return self.root / "bundles"

    @property
    def scratch(self) -> Path:
        """Directory for files that live no longer than their task."""
        return self.root / "scratch"

    def prepare(self) -> None:
        """Make the directory and prove that it can be written.

        Raises
        ------
        WorkspaceError
            Read-only, full, or not a directory: before any work has begun.
        """
        try:
            self.scratch.mkdir(parents=True, exist_ok=True)
            probe = self.scratch / f".probe-{os.getpid()}"
            probe.write_bytes(b"\0" * 65_536)
            probe.unlink()
        except OSError as error:
            raise disk_error(error, str(self.root)) from None
        refuse_memory(self.scratch)

    def empty(self) -> None:
        """Remove everything in it but the lock, which the caller holds."""
        for entry in self.root.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry)
            elif entry.name != _LOCK:
                entry.unlink()

    @contextlib.contextmanager
    def lock(self, *, wait_seconds: float = 0.0, waiting: Callable[[str], None] | None = None) -> Iterator[None]:
        """Hold the pipeline's one lock; it is released with the process, however that ends.

        When an exception leaves the block (an error, Ctrl-C, a cancelled run), what its tasks were writing is removed.

        Parameters
        ----------
        wait_seconds
            How long to wait for another run to end.
        waiting
            Told once, when it begins to wait, for whom.

        Raises
        ------
        WorkspaceLocked
            Another run holds it still; names its process.
        """
        self.prepare()
        until = time.monotonic() + wait_seconds
        with open(self.root / _LOCK, "a+") as handle:
            while not _locked(handle):
                handle.seek(0)
                holder = handle.read().strip() or "unknown"
                message = f"another run of this pipeline is writing to {self.root} (process {holder})"
                if time.monotonic() >= until:
                    raise WorkspaceLocked(
                        message, hint="wait for it to end, or stop that process; the lock goes with it"
                    )
                if waiting is not None:
                    waiting(message)
                    waiting = None
                time.sleep(0.2)
            handle.truncate(0)
            handle.write(f"{os.getpid()}\n")
            handle.flush()
            try:
                yield
            except BaseException:  # whatever ends the run, and it goes on from here
                self.remove_unfinished()
                raise

    def unfinished(self) -> Iterator[Path]:
        """Yield files that have not got their final name: no reader ever sees them."""
        for place in sorted(self.root.iterdir()):
            if place.is_dir() and place.name not in _OTHERS:
                yield from sorted(place.rglob(".*.tmp"))

    def remove_unfinished(self) -> None:
        """Remove those and all scratch; for the holder of the lock, once no task of it is running.

        What cannot be removed (the disk is read-only, or gone) stays for ``headrace vacuum``: the error that ended the
        run is the one to be shown.
        """
        with contextlib.suppress(OSError):
            for path in (*self.unfinished(), *self.scratch.iterdir()):
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)


def _locked(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
