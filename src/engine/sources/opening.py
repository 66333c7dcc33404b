"""Opens a source by the scheme of its URI."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pydantic import SecretStr

from engine.errors import SpecError
from engine.sources.dialects import Dialect
from engine.sources.postgresql import PostgreSQL
from engine.sources.protocol import Source
from engine.sources.sql import SQLSource
from engine.sources.sqlite import SQLite

ALLOWED = "sqlite:///path/to.db (sqlite:////absolute/path.db) or postgresql://user@host/database"

_DIALECTS: dict[str, type[Dialect]] = {"sqlite": SQLite, "postgresql": PostgreSQL, "postgres": PostgreSQL}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")
_FILES = frozenset([".parquet", ".csv", ".tsv", ".json", ".ndjson", ".jsonl", ".arrow", ".feather", ".ipc"])


def open_source(
    uri: SecretStr,
    *,
    table: str,
    key: str,
    cursor: str,
    columns: Sequence[str] | None = None,
    times: Sequence[str] = (),
) -> Source:
    """Return the source of a table, not yet connected.

    Parameters
    ----------
    uri
        ``sqlite:///path/to.db`` or ``postgresql://user@host/database``.
    table, key, cursor
        As in the pipeline file; ``schema.table`` is understood.
    columns
        To read; all by default. Key and cursor are read in any case.
    times
        Columns that hold times whatever their declared type says (beside the cursor).

    Raises
    ------
    SpecError
        There is no source of this scheme.
    """
    return SQLSource(open_dialect(uri), table=table, key=key, cursor=cursor, columns=columns, times=(cursor, *times))


def open_dialect(uri: SecretStr) -> Dialect:
    """Return the database of a URI, not yet connected.

    Raises
    ------
    SpecError
        There is no source of this scheme. The message shows the scheme and nothing else of the URI.
    """
    text = uri.get_secret_value()
    match = _SCHEME.match(text)
    if match is None:
        what = "files are not read yet" if Path(text).suffix.lower() in _FILES else "it has no scheme"
        raise SpecError(f"source.uri: {what}", hint=f"allowed: {ALLOWED}")
    scheme = match[1].lower()
    if scheme not in _DIALECTS:
        raise SpecError(f"source.uri: there is no source for {scheme!r}", hint=f"allowed: {ALLOWED}")
    return _DIALECTS[scheme](uri)
