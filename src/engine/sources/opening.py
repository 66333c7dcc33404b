"""Opens a source by the scheme of its URI."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow as pa
from pydantic import SecretStr

from engine.errors import SpecError
from engine.sources.dialects import Dialect
from engine.sources.generic import open_generic
from engine.sources.postgresql import PostgreSQL
from engine.sources.protocol import Source
from engine.sources.sql import SQLSource
from engine.sources.sqlite import SQLite
from engine.spec import DATABASES, LabelsSpec, SourceSpec

ALLOWED = (
    "sqlite:///path/to.db (sqlite:////absolute/path.db), postgresql://user@host/database, adbc+driver:..., "
    "or files: path/*.parquet, a directory, s3://bucket/path, delta:path"
)

_DIALECTS: dict[str, type[Dialect]] = {"sqlite": SQLite, "postgresql": PostgreSQL, "postgres": PostgreSQL}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*)://")


def open_source(
    uri: SecretStr,
    *,
    key: str,
    cursor: str,
    table: str = "",
    feed: SourceSpec | LabelsSpec | None = None,
    columns: Sequence[str] | None = None,
    times: Sequence[str] = (),
    types: pa.Schema | None = None,
    max_value_bytes: int = 2**30,
) -> Source:
    """Return the source of a table or of files, not yet connected.

    Parameters
    ----------
    uri
        ``sqlite:///path/to.db``, ``postgresql://user@host/database``, ``adbc+driver:...``, or files.
    key, cursor, table
        As in the pipeline file; ``schema.table`` is understood.
    feed
        The section of the pipeline file that says how files are written; by their suffix without it.
    columns
        To read; all by default. Key and cursor are read in any case.
    times
        Columns that hold times whatever their declared type says (beside the cursor).
    types
        Of columns in files that have no types of their own.
    max_value_bytes
        A row with a larger text or blob is rejected without being read.

    Raises
    ------
    SpecError
        There is no source of this scheme.
    """
    if uri.get_secret_value().startswith(DATABASES):
        return SQLSource(
            open_dialect(uri),
            table=table,
            key=key,
            cursor=cursor,
            columns=columns,
            times=(cursor, *times),
            max_value_bytes=max_value_bytes,
        )
    return _open_files(uri, feed, key=key, cursor=cursor, columns=columns, times=(cursor, *times), types=types)


def open_dialect(uri: SecretStr) -> Dialect:
    """Return the database of a URI, not yet connected.

    Raises
    ------
    SpecError
        There is no source of this scheme. The message shows the scheme and nothing else of the URI.
    """
    text = uri.get_secret_value()
    if text.startswith("adbc+"):
        return open_generic(uri, _DIALECTS)
    match = _SCHEME.match(text)
    if match is None:
        raise SpecError("source.uri: it has no scheme", hint=f"allowed: {ALLOWED}")
    scheme = match[1].lower()
    if scheme not in _DIALECTS:
        raise SpecError(f"source.uri: there is no source for {scheme!r}", hint=f"allowed: {ALLOWED}")
    return _DIALECTS[scheme](uri)


def _open_files(
    uri: SecretStr,
    feed: SourceSpec | LabelsSpec | None,
    *,
    key: str,
    cursor: str,
    columns: Sequence[str] | None,
    times: Sequence[str],
    types: pa.Schema | None,
) -> Source:
    from engine.sources.files import FileSource

    return FileSource(
        uri,
        key=key,
        cursor=cursor,
        columns=columns,
        times=times,
        types=types,
        format=feed.format if feed else None,
        csv=feed.csv if feed else None,
        named=feed.types if feed else None,
    )
