"""The measure: anonymous and shared memory of a process tree, plus its swap. Mapped file pages are shown, never
counted.
"""

from __future__ import annotations

import contextlib
import os
import signal
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """One look at a process tree."""

    counted_bytes: int  # RssAnon + RssShmem + VmSwap
    file_bytes: int = 0  # RssFile: the kernel takes it back


def measure_tree(pid: int) -> Measure:
    """Return the measure of a process and its descendants; those that have ended count nothing."""
    counted = file = 0
    for one in _tree(pid):
        found = _measure_one(one)
        counted += found.counted_bytes
        file += found.file_bytes
    return Measure(counted, file)


def measure_self() -> Measure:
    """Return the measure of this process and its descendants: that which a budget is of."""
    return measure_tree(os.getpid())


def end_tree(pid: int, *, itself: bool = True) -> None:
    """Kill a process, or not itself, and its descendants, whatever session they are in."""
    for one in _tree(pid)[0 if itself else 1 :]:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended, or became another user's
            os.kill(one, signal.SIGKILL)


def _tree(pid: int) -> list[int]:
    found, at = [pid], 0
    while at < len(found):
        for thread in _threads(found[at]):
            found += map(int, _read(f"/proc/{found[at]}/task/{thread}/children").split())
        at += 1
    return found


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except (FileNotFoundError, ProcessLookupError):
        return []


def _read(path: str) -> bytes:
    """Return what a small file of /proc holds, nothing when its process has ended.

    Read without Python's own files and paths: this is done every 20 ms, for each thread of a tree.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        return b""
    try:
        parts = []
        while part := os.read(handle, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    except ProcessLookupError:
        return b""
    finally:
        os.close(handle)


def _measure_one(pid: int) -> Measure:
    text = _read(f"/proc/{pid}/status")
    if not text:
        return Measure(0) if os.path.isdir("/proc/self") else _portable(pid)
    counted = sum(_field(text, name) for name in (b"RssAnon:", b"RssShmem:", b"VmSwap:"))
    return Measure(counted, _field(text, b"RssFile:"))


def _field(text: bytes, name: bytes) -> int:
    at = text.find(name)
    return 0 if at < 0 else int(text[at + len(name) : text.index(b"\n", at)].split()[0]) * 1024


def _portable(pid: int) -> Measure:
    """Return USS where there is no /proc, else RSS."""
    import psutil  # a hundredth of a second of each child, which has a /proc

    try:
        process = psutil.Process(pid)
        info = process.memory_full_info()
    except psutil.NoSuchProcess:
        return Measure(0)
    return Measure(int(getattr(info, "uss", info.rss)))
