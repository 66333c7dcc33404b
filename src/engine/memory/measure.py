"""The measure: anonymous and shared memory of a process tree, plus its swap. Mapped file pages are shown, never
counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import psutil


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
    """Return the measure of this process alone."""
    return _measure_one(os.getpid())


def _tree(pid: int) -> list[int]:
    found, at = [pid], 0
    while at < len(found):
        for thread in _threads(found[at]):
            try:
                found += [int(word) for word in Path(thread, "children").read_text().split()]
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended since
        at += 1
    return found


def _threads(pid: int) -> list[str]:
    try:
        return [entry.path for entry in os.scandir(f"/proc/{pid}/task")]
    except (FileNotFoundError, ProcessLookupError):
        return []


def _measure_one(pid: int) -> Measure:
    try:
        with open(f"/proc/{pid}/status", "rb") as handle:
            text = handle.read()
    except (FileNotFoundError, ProcessLookupError):
        return Measure(0) if os.path.isdir("/proc/self") else _portable(pid)
    counted = sum(_field(text, name) for name in (b"RssAnon:", b"RssShmem:", b"VmSwap:"))
    return Measure(counted, _field(text, b"RssFile:"))


def _field(text: bytes, name: bytes) -> int:
    at = text.find(name)
    return 0 if at < 0 else int(text[at + len(name) : text.index(b"\n", at)].split()[0]) * 1024


def _portable(pid: int) -> Measure:
    """Return USS where there is no /proc, else RSS."""
    try:
        process = psutil.Process(pid)
        info = process.memory_full_info()
    except psutil.NoSuchProcess:
        return Measure(0)
    return Measure(int(getattr(info, "uss", info.rss)))
