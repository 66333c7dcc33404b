"""Reading a database's table the way its tests do: the keyset scan beneath a source's ranges."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
from pydantic import SecretStr

from engine.sources import open_source
from engine.sources.protocol import Batch
from engine.sources.sql import SQLSource


def open_table(uri: SecretStr, **more: Any) -> SQLSource:
    """Return the source of a database's table."""
    source = open_source(uri, **more)
    assert isinstance(source, SQLSource)
    return source


def rows_of(batches: Iterable[Batch]) -> Iterator[pa.RecordBatch]:
    """Yield the rows that fit; a row that does not fails the test."""
    for batch in batches:
        assert not batch.rejected, batch.rejected
        yield batch.rows
