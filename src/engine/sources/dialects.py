"""What differs between databases: connecting, declared types, binding, and how a time is written. Used by ``sql.py``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pydantic import SecretStr

from engine.errors import SourceError

STAMP = pa.timestamp("us", tz="UTC")


@dataclass(frozen=True)
class Column:
    """A column as the database declares it."""

    name: str
    declared: str  # the database's own type name, lower case
    type: pa.DataType  # what reading gives


@dataclass(frozen=True)
class Range:
    """One ordered read."""

    table: str  # quoted
    columns: Sequence[Column]
    key: Column
    cursor: Column
    after: tuple[str | int, str | int] | None
    until: datetime
    limit_rows: int
    batch_rows: int


class Dialect(Protocol):
    """One kind of database, connected at first use."""

    def __init__(self, uri: SecretStr) -> None: ...

    def columns(self, table: str, *, times: Sequence[str]) -> list[Column]:
        """Return the table's columns, empty when there is no such table."""

    def tables(self) -> list[str]:
        """Return the names of the tables and views that can be read."""

    def read(self, wanted: Range) -> Iterator[tuple[pa.RecordBatch, Any, Any]]:
        """Yield batches with the columns' types, each with the literals of its last row's cursor and key."""

    def scrub(self, error: Exception) -> str:
        """Return a driver's message on one line, without the connection string or its password."""

    def close(self) -> None:
        """Disconnect."""


def quote(name: str) -> str:
    """Return an identifier quoted by the rule of standard SQL: a quote inside is doubled."""
    if "\0" in name:
        raise SourceError(f"{name!r} is no identifier: it holds a null character")
    return '"' + name.replace('"', '""') + '"'


def quote_table(name: str) -> str:
    """Return ``table`` or ``schema.table``, each part quoted."""
    return ".".join(quote(part) for part in name.split("."))


def scrubbed(error: Exception, uri: SecretStr) -> str:
    """Return an error's message on one line, without the connection string or its password."""
    text = " ".join(str(error).split())
    whole = uri.get_secret_value()
    parts = urlsplit(whole)
    secrets = [whole, parts.netloc if "@" in parts.netloc else "", parts.password or "", unquote(parts.password or "")]
    for secret in sorted(filter(None, secrets), key=len, reverse=True):
        text = text.replace(secret, "****")
    return re.sub(r"(password=)\S+", r"\1****", text)
