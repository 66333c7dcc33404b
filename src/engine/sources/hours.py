"""How many rows a slice has in each hour of event time: what tells prepare which spans a commit touches."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

_MICROSECONDS = 3_600_000_000
_LEAST_PENDING = 4_096  # hours, before they are merged

_Integers = npt.NDArray[np.int64]


class Hours:
    """Counts rows by hour of event time; exact extent beside. 16 bytes an hour: a first load may span decades."""

    def __init__(self) -> None:
        self._hours: _Integers = np.empty(0, dtype=np.int64)  # sorted
        self._counts: _Integers = np.empty(0, dtype=np.int64)
        self._pending: list[tuple[_Integers, _Integers]] = []
        self._pending_hours = 0
        self._minimum: int | None = None
        self._maximum: int | None = None

    def add(self, times: pa.Array) -> None:
        """Count the rows of one batch; times are timestamp[us, UTC], null where there is none."""
        times = times.drop_null()
        if not len(times):
            return
        microseconds = times.cast(pa.int64())
        hours = pc.divide(microseconds, _MICROSECONDS).to_numpy(zero_copy_only=False)
        self._pending.append(np.unique(hours, return_counts=True))
        self._pending_hours += len(self._pending[-1][0])
        if self._pending_hours > max(_LEAST_PENDING, len(self._hours)):
            self._merge()
        low, high = (pc.min_max(microseconds)[side].as_py() for side in ("min", "max"))
        self._minimum = low if self._minimum is None else min(self._minimum, low)
        self._maximum = high if self._maximum is None else max(self._maximum, high)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Hours:
        """Return the counts that ``to_json`` described."""
        made = cls()
        made._hours, made._counts = np.cumsum(_unpacked(value["steps"])), _unpacked(value["counts"])
        made._minimum, made._maximum = value["minimum"], value["maximum"]
        return made

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON that is small: it is made where memory is short."""
        self._merge()
        return {
            "steps": _packed(np.diff(self._hours, prepend=0)),  # mostly 1, which compresses to nearly nothing
            "counts": _packed(self._counts),
            "minimum": self._minimum,
            "maximum": self._maximum,
        }

    def by_hour(self) -> dict[str, int]:
        """Return rows by hours since 1970."""
        self._merge()
        return {str(hour): count for hour, count in zip(self._hours.tolist(), self._counts.tolist(), strict=True)}

    @property
    def extent(self) -> tuple[int | None, int | None]:
        """The first and the last event time, microseconds since 1970; None without any."""
        return self._minimum, self._maximum

    def _merge(self) -> None:
        if not self._pending:
            return
        parts = [(self._hours, self._counts), *self._pending]
        hours = np.concatenate([hours for hours, _ in parts])
        self._hours, place = np.unique(hours, return_inverse=True)
        self._counts = np.zeros(len(self._hours), dtype=np.int64)
        np.add.at(self._counts, place, np.concatenate([counts for _, counts in parts]))
        self._pending, self._pending_hours = [], 0


def _packed(values: _Integers) -> str:
    return base64.b64encode(zlib.compress(values.astype("<i8").tobytes(), 1)).decode()


def _unpacked(text: str) -> _Integers:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), "<i8").astype(np.int64)


def hours_without(hours: Mapping[str, int], less: Mapping[str, int]) -> dict[str, int]:
    """Return counts by hour after taking others away; hours that are left with none are gone."""
    left = {hour: count - less.get(hour, 0) for hour, count in hours.items()}
    return {hour: count for hour, count in left.items() if count > 0}


def hours_with(hours: Mapping[str, int], more: Mapping[str, int]) -> dict[str, int]:
    """Return counts by hour with others added."""
    return {hour: hours.get(hour, 0) + more.get(hour, 0) for hour in {**hours, **more}}
