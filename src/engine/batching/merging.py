"""Which small chunks of a table become one: pure arithmetic over the log.

Reading and writing them is ``stages/compact.py``, which also knows where a table's readers stand.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.batching.chunks import CHUNK_ROWS
from engine.batching.tables import Chunk, chunk_prefix

_MIB = 2**20
_OWNER = re.compile(r"\d+-([^.-]+)")


@dataclass(frozen=True)
class MergeLimits:
    """What is small, and how large a merged chunk becomes."""

    small_bytes: int = 8 * _MIB  # on disk; a chunk that is no smaller is left as it is
    most_bytes: int = 64 * _MIB
    most_rows: int = CHUNK_ROWS


@dataclass(frozen=True)
class Merge:
    """Neighbouring chunks of one owner that become one, which has the n of the last."""

    owner: str
    chunks: Sequence[Chunk]  # two or more, in the order of the table

    @property
    def rows(self) -> int:
        """Rows of all of them."""
        return sum(chunk.rows for chunk in self.chunks)


def merged_prefix(n: int, *, owner: str, plan_n: int) -> str:
    """Return how a merged chunk's name begins: the n of its last chunk, its owner, and the compaction that wrote it."""
    return chunk_prefix(n, f"{owner}.compact{plan_n:08d}")


def chunk_owner(name: str) -> str:
    """Return the first word of the task that wrote a chunk: tables with several writers keep them apart by it."""
    match = _OWNER.match(Path(name).name)
    return match[1] if match else ""


def find_merges(
    chunks: Sequence[Chunk], *, pins: Collection[int] = (), limits: MergeLimits = MergeLimits()
) -> list[Merge]:
    """Return the runs of small neighbouring chunks that may become one chunk each.

    Parameters
    ----------
    chunks
        Live ones, in the order of their names.
    pins
        Each n up to which a reader may still ask for the table, or after which it goes on: no merge spans one, since
        its chunk would be on one side of it with all its rows.
    limits
        What is small, and what a merged chunk may hold.

    Notes
    -----
    All chunks of one n stay together, so the merged chunk has the place in the order that they had.
    """
    borders = sorted(set(pins))
    found = []
    for owner in sorted({chunk_owner(chunk.name) for chunk in chunks}):
        mine = [chunk for chunk in chunks if chunk_owner(chunk.name) == owner]
        found += [Merge(owner, run) for run in _runs(mine, borders, limits) if len(run) > 1]
    return found


def spans_a_pin(low_n: int, high_n: int, pins: Collection[int]) -> bool:
    """Return whether a reader at one of the pins sees one of the two n and not the other."""
    return any(low_n <= pin < high_n for pin in pins)


def _runs(chunks: Sequence[Chunk], borders: Sequence[int], limits: MergeLimits) -> Iterator[list[Chunk]]:
    run: list[Chunk] = []
    for n, group in itertools.groupby(chunks, key=lambda chunk: chunk.n):
        same = list(group)
        if not _fits(same, limits) or any(chunk.bytes >= limits.small_bytes for chunk in same):
            yield run
            run = []
            continue
        if run and (spans_a_pin(run[0].n, n, borders) or not _fits([*run, *same], limits)):
            yield run
            run = []
        run += same
    yield run


def _fits(chunks: Sequence[Chunk], limits: MergeLimits) -> bool:
    rows, size = sum(chunk.rows for chunk in chunks), sum(chunk.bytes for chunk in chunks)
    return rows <= limits.most_rows and size <= limits.most_bytes
