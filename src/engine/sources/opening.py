"""Opens a source by the scheme of its URI."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import SecretStr

from engine.errors import SpecError
from engine.sources.dialects import Dialect
from engine.sources.postgresql import PostgreSQL
from engine.sources.protocol import Source
from engine.sources.sql import SQLSource
from engine.sources.sqlite import SQLite

_DIALECTS: dict[str, type[Dialect]] = {"sqlite": SQLite, "postgresql": PostgreSQL, "postgres": PostgreSQL}


def open_source(
    uri: SecretStr, *, table: str, key: str, cursor: str, columns: Sequence[str] | None = None, times: Sequence[str] = ()
) -> Source:
    """Return the source of a table, not yet connected.

    Parameters
    ----------
    uri
        ``sqlite:///path/to.db`` or ``postgresql://user@host/database``.
    table, key, cursor
        As in the pipeline file; ``schema.table`` is understood.
    columns
        To read; all by default.
    times
        Columns that hold times whatever their declared type says (beside the cursor).

    Raises
    ------
    SpecError
        There is no source of this scheme.
    """
    scheme = uri.get_secret_value().partition(":")[0].lower()
    if scheme not in _DIALECTS:
        raise SpecError(
            f"source.uri: there is no source for {scheme!r}",
            hint=f"allowed: {', '.join(sorted(_DIALECTS))}; for example sqlite:///path/to.db",
        )
    dialect = _DIALECTS[scheme](uri)
    return SQLSource(dialect, table=table, key=key, cursor=cursor, columns=columns, times=(cursor, *times))
