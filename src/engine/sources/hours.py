"""How many rows a slice has in each hour of event time: what tells prepare which spans a commit touches."""

from __future__ import annotations

import base64
import bisect
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_MICROSECONDS = 3_600_000_000
_LEAST_PENDING = 4_096  # hours, before they are merged
_RUN_HOURS = 8_192
_PENDING_SHARE = 8  # of the hours that are known: half of them were half of what a long first load took

_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Run:
    """Counts of some hours, packed: a fifth of what the numbers take."""

    last: int  # hour
    size: int
    packed: bytes

    @classmethod
    def of(cls, hours: _Numbers, counts: _Numbers) -> _Run:
        steps = np.diff(hours, prepend=0)
        return cls(int(hours[-1]), len(hours), zlib.compress(np.concatenate([steps, counts]).tobytes(), 1))

    def numbers(self) -> tuple[_Numbers, _Numbers]:
        """Return hours, sorted, and counts."""
        steps, counts = np.split(np.frombuffer(zlib.decompress(self.packed), np.int64), 2)
        return np.cumsum(steps), counts


class Hours:
    """Counts rows by hour of event time; exact extent beside. A few bytes an hour: a first load may span decades.

    They lie in runs, one after another in time. Rows come nearly in order, so that what is new lengthens the last run
    or makes one more; all are unpacked only where a row is older than all of them.
    """

    def __init__(self) -> None:
        self._runs: list[_Run] = []  # sorted, disjoint
        self._size = 0
        self._pending: list[tuple[_Numbers, _Numbers]] = []
        self._pending_size = 0
        self._minimum: int | None = None
        self._maximum: int | None = None

    def add(self, times: pa.Array) -> None:
        """Count the rows of one batch; times are timestamp[us, UTC], null where there is none."""
        times = times.drop_null()
        if not len(times):
            return
        microseconds = times.cast(pa.int64())
        hours = microseconds.to_numpy(zero_copy_only=False) // _MICROSECONDS  # rounded down, before 1970 too
        self._pending.append(np.unique(hours, return_counts=True))
        self._pending_size += len(self._pending[-1][0])
        if self._pending_size > max(_LEAST_PENDING, self._size // _PENDING_SHARE):
            self._merge()
        low, high = (pc.min_max(microseconds)[side].as_py() for side in ("min", "max"))
        self._minimum = low if self._minimum is None else min(self._minimum, low)
        self._maximum = high if self._maximum is None else max(self._maximum, high)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Hours:
        """Return the counts that ``to_json`` described."""
        made = cls()
        hours, counts = np.cumsum(_unpacked(value["steps"])), _unpacked(value["counts"])
        if len(hours):
            made._runs, made._size = list(_cut(hours, counts)), len(hours)
        made._minimum, made._maximum = value["minimum"], value["maximum"]
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON that is small: it is made where memory is short."""
        self._merge()
        before = [0, *(run.last for run in self._runs)]
        steps = (np.diff(run.numbers()[0], prepend=last) for run, last in zip(self._runs, before, strict=False))
        return {
            "steps": _packed(steps),  # mostly 1, which compresses to nearly nothing
            "counts": _packed(run.numbers()[1] for run in self._runs),
            "minimum": self._minimum,
            "maximum": self._maximum,
        }

    def by_hour(self) -> dict[str, int]:
        """Return rows by hours since 1970."""
        self._merge()
        numbers = (run.numbers() for run in self._runs)
        pairs = (zip(hours.tolist(), counts.tolist(), strict=True) for hours, counts in numbers)
        return {str(hour): count for run in pairs for hour, count in run}

    @property
    def extent(self) -> tuple[int | None, int | None]:
        """The first and the last event time, microseconds since 1970; None without any."""
        return self._minimum, self._maximum

    def _merge(self) -> None:
        if not self._pending:
            return
        new = _summed(self._pending)
        self._pending, self._pending_size = [], 0
        touched = bisect.bisect_left(self._runs, new[0][0], key=lambda run: run.last)
        if touched == len(self._runs) and touched and self._runs[-1].size < _RUN_HOURS:
            touched -= 1  # it has room left
        kept, late = self._runs[:touched], self._runs[touched:]
        self._runs = [*kept, *_cut(*_summed([*(run.numbers() for run in late), new]))]
        self._size = sum(run.size for run in self._runs)


def _summed(parts: Sequence[tuple[_Numbers, _Numbers]]) -> tuple[_Numbers, _Numbers]:
    """Return counts by hour, sorted, of several."""
    hours, counts = (np.concatenate(both) for both in zip(*parts, strict=True))
    order = np.argsort(hours, kind="stable")
    hours, counts = hours[order], counts[order]
    first = np.flatnonzero(np.diff(hours, prepend=hours[0] - 1))
    return hours[first], np.add.reduceat(counts, first)


def _cut(hours: _Numbers, counts: _Numbers) -> Iterator[_Run]:
    """Yield runs of some thousand hours."""
    for start in range(0, len(hours), _RUN_HOURS):
        yield _Run.of(hours[start : start + _RUN_HOURS], counts[start : start + _RUN_HOURS])


def _packed(parts: Iterable[_Numbers]) -> str:
    packer = zlib.compressobj(1)
    packed = [packer.compress(part.astype("<i8").tobytes()) for part in parts]
    return base64.b64encode(b"".join([*packed, packer.flush()])).decode()


def _unpacked(text: str) -> _Numbers:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64)


def hours_without(hours: Mapping[str, int], less: Mapping[str, int]) -> dict[str, int]:
    """Return counts by hour after taking others away; hours that are left with none are gone."""
    left = {hour: count - less.get(hour, 0) for hour, count in hours.items()}
    return {hour: count for hour, count in left.items() if count > 0}


def hours_with(hours: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Return counts by hour with others added."""
    return {hour: hours.get(hour, 0) + more.get(hour, 0) for hour in {**hours, **more}}
