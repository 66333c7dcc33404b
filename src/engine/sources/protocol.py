"""What every source offers. SQL databases are in ``sql.py``; a new kind is a file beside it and a line in
``opening.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa


@dataclass(frozen=True)
class Position:
    """How far a source has been read: the cursor in the source's own literal, and the key that breaks its ties."""

    cursor: str | int | float
    key: str | int | float | None  # None: the last row had no key

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Position:
        """Return the position that ``to_json`` described."""
        return cls(**value)


class Source(Protocol):
    """A table that grows, open for reading; a context manager."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def schema(self) -> pa.Schema:
        """Return the columns with the types that ``read`` gives; times are timestamp[us, UTC]. Reads metadata only.

        Raises
        ------
        SourceSchemaError
            The table, or a column that is needed, is not there.
        SourceError
            The source cannot be reached.
        """

    def read(
        self, *, after: Position | None, until: datetime, limit_rows: int, batch_rows: int
    ) -> Iterator[pa.RecordBatch]:
        """Yield rows in order of (cursor, key), strictly after ``after``, with a cursor up to ``until``.

        Rows are the same, in the same order, whatever ``batch_rows`` is. A row whose cursor is null has no place in
        the order and is never read.

        Parameters
        ----------
        after
            Where the last read ended; None reads from the beginning.
        until
            Upper bound of the cursor, inclusive.
        limit_rows
            At most so many rows.
        batch_rows
            At most so many in one batch.

        Raises
        ------
        SourceError
            The connection broke, or a value contradicts its column's type.
        """

    @property
    def position(self) -> Position | None:
        """Where the last row that ``read`` yielded stands; ``after`` before any."""
