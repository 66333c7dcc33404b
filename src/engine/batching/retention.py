"""What of a table's files no snapshot needs that is younger than a given age, and cutting its log to that age.

Deleting them, and everything beside tables, is ``vacuum.py``.
"""

from __future__ import annotations

import math
from datetime import timedelta

from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from engine.batching.tables import Table
from engine.errors import TableError

LEAST_LOG = timedelta(days=7)
"""A log is not cut closer: it is small, and it alone knows when a chunk left the table."""

_LOG = "delta.logRetentionDuration"
_REMOVED = "delta.deletedFileRetentionDuration"


def unneeded_chunks(table: Table, *, keep: timedelta) -> list[str]:
    """Return the names of chunks that left the table, or never came into it, longer ago than ``keep``.

    ``keep`` counts in whole hours, rounded up. Nothing is deleted.
    """
    hours = math.ceil(keep / timedelta(hours=1))
    try:
        found = DeltaTable(table.path).vacuum(
            retention_hours=hours, dry_run=True, enforce_retention_duration=False, full=True
        )
    except (DeltaError, OSError) as error:
        raise _failed(table, error) from error
    return sorted(name for name in found if name.endswith(".parquet") and (table.path / name).is_file())


def trim_log(table: Table, *, keep: timedelta) -> None:
    """Write a checkpoint and delete the log's files from before it that no snapshot younger than ``keep`` needs.

    ``keep`` is at least a week here, and stays with the table: later checkpoints cut the log to it by themselves.
    Neither rows nor transactions are lost: the checkpoint has the live chunks and the last n of every app.
    """
    interval = f"interval {math.ceil(max(keep, LEAST_LOG).total_seconds())} seconds"
    try:
        handle = DeltaTable(table.path)
        known = handle.metadata().configuration
        if known.get(_LOG) != interval or known.get(_REMOVED) != interval:
            handle.alter.set_table_properties({_LOG: interval, _REMOVED: interval})
            handle = DeltaTable(table.path)
        handle.create_checkpoint()
        handle.cleanup_metadata()
    except (DeltaError, OSError) as error:
        raise _failed(table, error) from error


def _failed(table: Table, error: Exception) -> TableError:
    return TableError(
        f"table {table.name} in {table.path} cannot be cleaned: {error}",
        hint="check space and permissions of the workspace, then run again: no live chunk was touched",
    )
