"""How much memory there is: the smaller of the machine's and what a control group leaves us."""

from __future__ import annotations

from pathlib import Path

import psutil

AUTO_SHARE = 0.4
"""Of the host's memory, for ``resources.memory: auto``, the default: two such runs hold all that tickets give out. The
rest is the system's, Prefect's (about 500 MiB) and the page cache, which the engine's speed rests on."""

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_MIB = 2**20


def host_memory_bytes(*, root_v1: Path = _V1, root_v2: Path = _V2, proc: Path = Path("/proc/self/cgroup")) -> int:
    """Return the smaller of physical memory and every limit that a control group above this process sets, in bytes.

    A limit on any group up to the root counts: a container's is often on the parent of the group that it shows.
    """
    limits = [psutil.virtual_memory().total, *_limits(proc, root_v1, root_v2)]
    return min(limits)


def auto_budget_bytes() -> int:
    """Return the budget that ``auto`` stands for: two fifths of the host's memory, in whole MiB."""
    return int(host_memory_bytes() * AUTO_SHARE) // _MIB * _MIB


def _limits(proc: Path, root_v1: Path, root_v2: Path) -> list[int]:
    try:
        lines = proc.read_text().splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            found += _upwards(root_v1, path, "memory.limit_in_bytes")
        elif not controllers:
            found += _upwards(root_v2, path, "memory.max")
    return found


def _upwards(root: Path, path: str, name: str) -> list[int]:
    here, found = root / path.lstrip("/"), []
    while True:
        file = here / name
        text = file.read_text().strip() if file.is_file() else "max"
        if text != "max":
            found.append(int(text))  # version 1 writes a number near 2**63 where there is none
        if here == root or root not in here.parents:
            return found
        here = here.parent
