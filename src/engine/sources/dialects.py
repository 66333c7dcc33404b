"""What a dialect of SQL gives to ``sql.py``: connecting, declared types, one ordered read. Quoting and nearest names
too.

How a driver's message loses its secrets is in ``scrubbing.py``.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import pyarrow as pa
from pydantic import SecretStr

from engine.errors import SourceSchemaError
from engine.sources.protocol import STAMP, Position

__all__ = ["APART", "STAMP", "Column", "Dialect", "Range", "Read", "nearest", "quote", "quote_table"]

APART = "\x1f"
"""Between the parts of a text in ``Read.wrong``."""

_SHOWN_NAMES = 40


@dataclass(frozen=True)
class Column:
    """A column as the database declares it."""

    name: str
    declared: str  # the database's own type name
    type: pa.DataType  # what reading gives
    stored: str = ""  # SQLite: what its values are stored as, integer, real, text or blob
    nullable: bool = True
    primary: bool = False  # part of the primary key


@dataclass(frozen=True)
class Range:
    """One ordered read."""

    table: str  # quoted
    columns: tuple[Column, ...]
    key: Column
    cursor: Column
    after: Position | None
    since: datetime | None  # with a zone
    until: datetime  # with a zone
    max_value_bytes: int  # a larger text or blob stays where it is, and its row is rejected
    limit_rows: int
    batch_rows: int


@dataclass(frozen=True)
class Read:
    """A batch as it came, in order of (cursor, key)."""

    rows: pa.RecordBatch  # with the columns' types
    cursors: pa.Array  # of each row, as the database has it
    keys: pa.Array
    # what is wrong with a row, null where nothing is: place of the column, what, and the value, apart by ``APART``
    wrong: pa.Array | None = None


class Dialect(Protocol):
    """One kind of database, connected at first use."""

    gives_asked_rows: bool  # whether a batch has as many rows as a range asks for, whatever their bytes

    def __init__(self, uri: SecretStr) -> None: ...

    def columns(self, table: str, *, key: str | None, times: Collection[str]) -> list[Column]:
        """Return the table's columns, empty when there is no such table."""

    def tables(self) -> list[str]:
        """Return the names of the tables and views that can be read."""

    def read(self, wanted: Range) -> Iterator[Read]:
        """Yield batches in order; values that the columns' types cannot take are null there, and named in ``wrong``."""

    def count(self, wanted: Range) -> int:
        """Return how many rows a range has, at most its limit."""

    def close(self) -> None:
        """Disconnect."""


def quote(name: str) -> str:
    """Return an identifier quoted by the rule of standard SQL: a quote inside is doubled.

    Raises
    ------
    SourceSchemaError
        It holds a null character, which no identifier can.
    """
    if "\0" in name:
        raise SourceSchemaError(f"{name!r} is no identifier: it holds a null character", hint="correct the name")
    return '"' + name.replace('"', '""') + '"'


def quote_table(name: str) -> str:
    """Return ``table`` or ``schema.table``, each part quoted."""
    return ".".join(quote(part) for part in name.split("."))


def nearest(name: str, known: Collection[str], *, what: str) -> str:
    """Return a hint: the most similar of the known names, whatever their case, and a list of them."""
    by_lower = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=1)
    meant = f"did you mean {by_lower[near[0]]!r}? " if near else ""
    names = sorted(known)
    shown = ", ".join(names[:_SHOWN_NAMES]) or "none"
    return f"{meant}{what}: {shown}{', ...' if len(names) > _SHOWN_NAMES else ''}"
