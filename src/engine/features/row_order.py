"""Whether streamed rows lie in strict order of event time and key, each key once: watched as they go by.

Polars hands batches over in any order, and several at once; what they say is put together at the end.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class _Piece:
    first: tuple[Any, Any]  # time and key
    last: tuple[Any, Any]
    rows: int


class RowOrder:
    """Watches the rows of one span.

    Parameters
    ----------
    time, key
        Names of columns. Keys have to grow with time: then each comes once, which nothing smaller than all keys
        could tell otherwise.
    """

    def __init__(self, *, time: str, key: str) -> None:
        self._time = time
        self._key = key
        self._pieces: list[_Piece] = []
        self.broken = ""  # why the rows are not in order, as soon as that is known

    def watched(self, frame: pl.LazyFrame) -> pl.Expr:
        """Return the key column, which passes through this watch; a batch out of order ends the query."""
        import polars as pl

        key = pl.struct(self._time, self._key)
        return key.map_batches(self._look, return_dtype=frame.collect_schema()[self._key], is_elementwise=True).alias(
            self._key
        )

    def holds(self, rows: int) -> bool:
        """Return whether all batches together were in order, and were so many rows."""
        pieces = sorted(self._pieces, key=lambda piece: piece.first)
        for before, after in itertools.pairwise(pieces):
            if not (before.last[0] <= after.first[0] and before.last[1] < after.first[1]):
                return False
        return sum(piece.rows for piece in pieces) == rows

    def _look(self, both: pl.Series) -> pl.Series:
        import polars as pl

        times, keys = both.struct.field(self._time), both.struct.field(self._key)
        if len(keys):
            ordered = (times.head(-1) <= times.tail(-1)).all() and (keys.head(-1) < keys.tail(-1)).all()
            if not ordered or times.null_count() or keys.null_count():
                self.broken = "rows are not in order of event time and key: they are sorted"
                raise pl.exceptions.ComputeError(self.broken)
            self._pieces.append(_Piece((times[0], keys[0]), (times[-1], keys[-1]), len(keys)))
        return keys
