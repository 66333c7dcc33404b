"""What a capture never gave back: the largest allocations that were still there at the end, by place in the code."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Leak:
    """Allocations of one place that were never freed."""

    bytes: int
    allocations: int
    where: str  # function at file:line of the innermost Python frame


def leaks(capture: Path, *, most: int = 20) -> tuple[Leak, ...]:
    """Return the places that hold most at the end of a capture, largest first.

    Notes
    -----
    What lives as long as the process (modules, caches) is here too: compare two runs of different length. Allocators
    linked into Polars and Arrow show only as large maps.
    """
    from memray import FileReader

    sums: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    with FileReader(capture) as reader:
        for record in reader.get_leaked_allocation_records(merge_threads=True):
            stack = record.stack_trace(max_stacks=1)
            where = f"{stack[0][0]} at {stack[0][1]}:{stack[0][2]}" if stack else "no Python frame"
            sums[where][0] += record.size
            sums[where][1] += record.n_allocations
    found = [Leak(size, count, where) for where, (size, count) in sums.items()]
    return tuple(sorted(found, key=lambda leak: (-leak.bytes, leak.where))[:most])
