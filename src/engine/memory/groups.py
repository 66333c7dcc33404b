"""A child control group with a memory limit, v1 or v2, where one can be made: the exact way to enforce a budget.

Starting the child and everything else is ``cage.py``.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_FULL = 0.99


class MemoryGroup:
    """A control group of one task.

    Parameters
    ----------
    path
        Its directory.
    kind
        ``cgroup-v1`` or ``cgroup-v2``.
    """

    def __init__(self, path: Path, *, kind: str) -> None:
        self.path = path
        self.kind = kind
        self.bounds_swap = False
        """Whether the kernel holds memory with swap to the limit, not memory alone."""

    def limit(self, allowed_bytes: int) -> None:
        """Set the limit of memory, and of memory with swap where the kernel accounts for it."""
        if self.kind == "cgroup-v1":
            (self.path / "memory.limit_in_bytes").write_text(str(allowed_bytes))
            with contextlib.suppress(OSError):  # no swap accounting
                (self.path / "memory.memsw.limit_in_bytes").write_text(str(allowed_bytes))
                self.bounds_swap = True
        else:
            (self.path / "memory.max").write_text(str(allowed_bytes))
            with contextlib.suppress(OSError):  # as above
                (self.path / "memory.swap.max").write_text("0")
                self.bounds_swap = True
            with contextlib.suppress(OSError):  # Linux before 4.19: it kills the largest process, not all of them
                (self.path / "memory.oom.group").write_text("1")

    def add(self, pid: int) -> None:
        """Move a process into the group; its children follow it."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """Return how many processes the kernel has killed in the group for want of memory."""
        return self._events().get("oom_kill", 0)

    def _events(self) -> dict[str, int]:
        name = "memory.oom_control" if self.kind == "cgroup-v1" else "memory.events"
        lines = (line.partition(" ") for line in (self.path / name).read_text().splitlines())
        return {key: int(value) for key, _, value in lines}

    def was_full(self) -> bool:
        """Return whether the group had no room left: what the kernel kills before that, it kills for the host."""
        if self.kind == "cgroup-v1":  # which counts page cache too: an idle group comes near its limit, not to it
            return self._number("memory.max_usage_in_bytes") >= _FULL * self._number("memory.limit_in_bytes")
        return self._events().get("oom", 0) > 0  # ``max`` counts page cache that was taken back there, too

    def _number(self, name: str) -> int:
        return int((self.path / name).read_text())

    def remove(self) -> None:
        """End what is left in the group and remove it; the kernel may take a moment to see that it is empty."""
        for _ in range(100):
            try:
                self.path.rmdir()
            except FileNotFoundError:
                return
            except OSError:
                self._kill()
                time.sleep(0.01)
            else:
                return

    def _kill(self) -> None:
        """Kill what a task has started in a session of its own, which outlives the child's."""
        with contextlib.suppress(FileNotFoundError):  # removed since
            for word in (self.path / "cgroup.procs").read_text().split():
                if int(word) > 0:  # 0 is a process of another pid namespace, and to kill it is to kill ourselves
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(word), signal.SIGKILL)


@contextlib.contextmanager
def memory_group(allowed_bytes: int) -> Iterator[MemoryGroup | None]:
    """Yield a new group with this limit, or None where none can be made; it is removed at the end."""
    group = _make()
    if group is not None:
        try:
            group.limit(allowed_bytes)
        except OSError:
            group.remove()
            group = None
    try:
        yield group
    finally:
        if group is not None:
            group.remove()


def enforcement() -> str:
    """Return how a budget would be enforced here: ``cgroup-v1`` or ``cgroup-v2`` (exact), or ``polling``."""
    group = _make()
    if group is None:
        return "polling"
    group.remove()
    return group.kind


def _make() -> MemoryGroup | None:
    if os.environ.get("HEADRACE_CAGE") == "polling":
        return None
    parent, kind = _place()
    if parent is None:
        return None
    _remove_left(parent)
    path = parent / f"headrace-{os.getpid()}-{uuid4().hex[:8]}"
    try:
        path.mkdir()
    except OSError:
        return None
    probe = "memory.limit_in_bytes" if kind == "cgroup-v1" else "memory.max"
    if not (path / probe).exists():  # the directory is not what it seems
        path.rmdir()
        return None
    return MemoryGroup(path, kind=kind)


def _remove_left(parent: Path) -> None:
    """Remove the groups whose maker was killed; the kernel refuses while a process is in one."""
    for path in parent.glob("headrace-*-*"):
        if not Path("/proc", path.name.split("-")[1]).exists():
            with contextlib.suppress(OSError):  # still ending, or another run was first
                path.rmdir()


def _place() -> tuple[Path | None, str]:
    """Return the directory under which groups may be made, None where there is none, and their kind."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except FileNotFoundError:
        return None, ""
    groups = {controllers: path for _, controllers, path in (line.split(":", 2) for line in lines)}
    for controllers, path in groups.items():
        if "memory" in controllers.split(","):
            own = _V1 / path.lstrip("/")
            return (own if own.is_dir() else _V1), "cgroup-v1"
    if "" in groups and (_V2 / "cgroup.controllers").exists():
        return _place_v2(_V2 / groups[""].lstrip("/")), "cgroup-v2"
    return None, ""


def _place_v2(own: Path) -> Path | None:
    """Return the parent of our own group, or the root where we are in it: processes and limits do not go together.

    None where groups beside our own would leave its limit, and where nobody has delegated the parent to us. The root of
    a container is such a place: it is a group with processes, though it looks like the root of the machine.
    """
    if ".." in own.parts or not (own / "cgroup.procs").exists():  # beyond what our namespace or our mount shows
        return None
    if any(file.exists() and file.read_text() != "max\n" for file in (own / "memory.max", own / "memory.high")):
        return None
    parent = own if own == _V2 else own.parent
    switch = parent / "cgroup.subtree_control"
    try:
        if "memory" not in switch.read_text().split():
            switch.write_text("+memory")  # systemd leaves this to whom it delegates
    except OSError:
        return None
    return parent if os.access(parent / "cgroup.procs", os.W_OK) else None  # the child has to pass through it
