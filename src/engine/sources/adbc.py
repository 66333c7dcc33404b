"""A session with a database through an ADBC driver: queries out, Arrow batches in.

The drivers' own DBAPI does the same; it imports pandas and Polars where they are installed, which costs a process
0.4 s and 40 MiB before its first row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import adbc_driver_manager
import pyarrow as pa
from adbc_driver_manager import AdbcConnection, AdbcDatabase, AdbcStatement, GetObjectsDepth

_T = TypeVar("_T")

ERRORS = (OSError, pa.ArrowException, adbc_driver_manager.Error)
"""What a driver may raise, from connecting to the last batch."""


class Session:
    """A connection of which each statement is a transaction of its own, so that none stays open between reads.

    Parameters
    ----------
    database
        Closed with the session.
    """

    def __init__(self, database: AdbcDatabase) -> None:
        self._database = database
        self._running: set[ExitStack] = set()
        try:
            self._connection = AdbcConnection(database)
        except BaseException:  # nobody else would close it
            database.close()
            raise

    def close(self) -> None:
        """Disconnect; what is still being read ends."""
        for running in list(self._running):
            running.close()
        self._connection.close()
        self._database.close()

    @contextmanager
    def query(
        self, sql: str, values: Sequence[Any] | pa.RecordBatch = (), **options: str
    ) -> Iterator[pa.RecordBatchReader]:
        """Run a query, and stream its result until the block is left.

        Parameters
        ----------
        values
            Bound in the order of their places: one each, or a batch of one row where their types matter.
        options
            Of the statement, as the driver calls them.
        """
        with ExitStack() as running:
            statement = running.enter_context(AdbcStatement(self._connection))
            self._running.add(running)
            running.callback(self._running.discard, running)
            if options:
                statement.set_options(**options)
            statement.set_sql_query(sql)
            if len(values):
                statement.prepare()
                statement.bind(values if isinstance(values, pa.RecordBatch) else _one_row(values))
            handle, _ = _interruptibly(statement.execute_query, statement.cancel)
            yield running.enter_context(pa.RecordBatchReader.from_stream(handle))

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Run a query and return all of its rows; for few."""
        with self.query(sql, values) as reader:
            return [tuple(row.values()) for batch in reader for row in _plain(batch)]

    def table_schema(self, name: str, *, schema: str | None) -> pa.Schema:
        """Return the columns of a table as the driver has them."""
        handle = self._connection.get_table_schema(None, schema, name)
        found: pa.Schema = pa.schema(handle)
        return found

    def tables(self) -> list[tuple[str | None, str]]:
        """Return the names of all tables and views, each with its schema."""
        handle = self._connection.get_objects(GetObjectsDepth.TABLES)
        with pa.RecordBatchReader.from_stream(handle) as reader:
            catalogs = reader.read_all().to_pylist()
        return [
            (schema["db_schema_name"], table["table_name"])
            for catalog in catalogs
            for schema in catalog["catalog_db_schemas"] or ()
            for table in schema["db_schema_tables"] or ()
        ]


def _one_row(values: Sequence[Any]) -> pa.RecordBatch:
    return pa.record_batch([[value] for value in values], names=[str(place) for place in range(len(values))])


def _plain(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    names = [str(place) for place in range(batch.num_columns)]  # two columns may have one name
    rows: list[dict[str, Any]] = batch.rename_columns(names).to_pylist()
    return rows


def _interruptibly(call: Callable[[], _T], cancel: Callable[[], None]) -> _T:
    """Return what a call returns that waits for a server; Ctrl-C cancels it instead of waiting for its end."""
    with ThreadPoolExecutor(1, thread_name_prefix="headrace-query") as pool:
        running = pool.submit(call)
        try:
            return running.result()
        except KeyboardInterrupt:
            cancel()
            raise
