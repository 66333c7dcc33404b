"""What every source offers. SQL databases are in ``sql.py``, files in ``files/``; a new kind is a module beside them
and a line in ``opening.py``.

A source says what a slice would read, and reads it; what has been committed, and what of it is new, is for
``stages/extract.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa

from engine.batching.streams import BatchBytes

STAMP = pa.timestamp("us", tz="UTC")
"""What every time is."""

LONGEST_VALUE = 256
"""Characters of a rejected value that are kept."""


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


@dataclass(frozen=True)
class SeenFile:
    """A file of which rows have been committed."""

    name: str  # relative to the source's directory, or the whole URI
    size: int  # bytes
    modified: int  # microseconds since 1970 UTC
    digest: str  # of what has been read of it; empty where that is not known: it is then read anew when it changes
    rows: int  # read so far
    read_at: int  # microseconds since 1970 UTC: ``_read_at`` of its rows
    offset: int | None = None  # where to go on (bytes or rows, as the format has it); None: read to its end
    same_as: str | None = None  # the file of the same content that was read instead

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SeenFile:
        """Return the file that ``to_json`` described."""
        return cls(**value)


@dataclass(frozen=True)
class Seen:
    """What the committed slices have read of a source."""

    position: Mapping[str, Any] | None = None  # ``Ending.position`` of the last slice
    files: Callable[[], Mapping[str, SeenFile]] = dict  # by name; empty for sources that are no files


@dataclass(frozen=True)
class Window:
    """What a slice may read."""

    until: datetime  # nothing that is newer: the run's clock
    limit_rows: int  # about so many rows: SQL exactly, files to the end of a block
    since: datetime | None = None  # read again from this cursor on (inclusive), whatever was seen; None: what is new


@dataclass(frozen=True)
class Rejected:
    """A row that does not fit its schema."""

    reason: str
    column: str | None = None
    value: str | None = None  # of that column, as it came, cut at ``LONGEST_VALUE`` characters
    key: str | None = None
    cursor: datetime | None = None  # where the row can be found again
    place: str | None = None  # file and row
    row: Mapping[str, Any] = field(default_factory=dict)  # JSON-able; long values are cut


@dataclass(frozen=True)
class Batch:
    """Rows that fit the schema, and those beside them that do not."""

    rows: pa.RecordBatch
    rejected: Sequence[Rejected] = ()


@dataclass(frozen=True)
class Ending:
    """Where a read of a range ended; recorded with the commit that holds its rows."""

    position: Mapping[str, Any] | None
    more: bool  # whether the window held more than the slice took
    files: Sequence[SeenFile] = ()  # as they are now; each replaces what was recorded of its name
    counts: Mapping[str, int] = field(default_factory=dict)  # for the report: files new, grown, changed, ...


@dataclass(frozen=True)
class Standing:
    """Where a read stands."""

    text: str  # for a person
    column_bytes: int = 0  # decoded, of the largest column of the row group there; 0 where nothing says so


@dataclass(frozen=True)
class Extent:
    """How large a range is, as far as metadata and a look at its first rows tell."""

    rows: int | None = None  # at most; None: nothing tells
    row_bytes: float = 0.0  # of one row in memory, about; 0: nothing tells
    batch_rows: int | None = None  # of what a driver gives at once; None: it is bounded by its bytes
    driver_row_bytes: float = 0.0  # of one row as the driver gives it, at least, where that has other types
    uneven_bytes: int = 0  # of one value, as large as a row group beside others allows


class Source(Protocol):
    """Rows that arrive, open for reading; a context manager that connects at first use.

    Errors of all methods: ``SourceSchemaError`` when the table or a needed column is not there, ``SourceError`` when
    the source cannot be reached, the connection breaks, or a file is damaged (named). Messages hold no secrets.
    """

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None
    ) -> None: ...

    def schema(self) -> pa.Schema:
        """Return the columns with the types that ``head`` gives; times are timestamp[us, UTC]. Reads metadata only.

        Files without types of their own (CSV, NDJSON) are guessed from their first rows.
        """

    def head(self, *, limit_rows: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield the oldest rows with ``schema``, at most ``limit_rows``: a look at the data, for checks and drafts.

        Rows that do not fit are left out.
        """

    def next_range(self, seen: Seen, window: Window) -> Mapping[str, Any] | None:
        """Return what the next slice reads, as JSON, or None when there is nothing; reads metadata only.

        The same range read again, after a crash, gives the same rows, as far as the source still has them.
        """

    def schemas(self, bounds: Mapping[str, Any]) -> Sequence[tuple[str, pa.Schema]]:
        """Return the distinct schemas of what a range holds, each with an example of where it was found."""

    def extent(self, bounds: Mapping[str, Any], *, batch_bytes: int) -> Extent:
        """Return how large a range is; costs little beside reading it."""

    def read(self, bounds: Mapping[str, Any], *, schema: pa.Schema, batch_bytes: BatchBytes) -> Iterator[Batch]:
        """Yield the rows of a range, in the source's order.

        Parameters
        ----------
        bounds
            From ``next_range``.
        schema
            Of every batch: values are converted to its types, and a row with one that cannot be is rejected; a column
            that the source lacks is null, one that the schema lacks is left out.
        batch_bytes
            A batch is about so large at most; a row that is larger alone comes alone. Asked for each row group, block
            of text or batch of a driver.
        """

    def mark(self) -> Mapping[str, Any]:
        """Return where the running ``read`` stands after the batch that it has just yielded; for its own thread."""

    def place(self) -> Standing:
        """Return what the running ``read`` is about to read next, such as a file and a row of it."""

    def rest(self, bounds: Mapping[str, Any], mark: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the bounds of what the running ``read`` of ``bounds`` yields after a mark.

        Reading these ends as reading all of ``bounds`` would have.
        """

    def ending(self) -> Ending:
        """Return where the last ``read``, which has been exhausted, ended."""
