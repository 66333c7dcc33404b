"""What reading a range of a source takes, and settling it.

What the tasks do is in ``reading.py`` and ``settling.py``; how large a range is, its source says.
"""

from __future__ import annotations

from engine.batching.chunks import ROW_GROUP_BYTES
from engine.batching.streams import uneven_terms
from engine.memory.budget import Budget
from engine.memory.projection import Projection
from engine.sources.known_rows import join_bytes
from engine.sources.protocol import Extent
from engine.sources.reading import COPIES
from engine.stage import StageContext

_PAGE_BYTES = 2**18  # on average, where columns are many
_LARGE_PAGE_BYTES, _LARGE_PAGES_BYTES = 2**20, 32 * 2**20  # of few: with 32 of one large row group 24 MiB are used up
_VALUE_COPIES = 3  # of a large value: Arrow decompresses its page, decodes it, and has the batch
_DRIVER_COPIES = 3  # of what the driver gives, before it is cut into batches: its own, one ahead, the one that is cut
_LONGER = 1.2  # times the rows that were looked at: so much larger may others be on average
_BEYOND_LIMIT = 16  # DuckDB passes its limit by a little: with ten million rows all other terms were used up too


def project_reading(reserved_bytes: int, budget: Budget, columns: int, extent: Extent, *, is_files: bool) -> Projection:
    """Return what reading a range takes.

    Where a row group may hold one value of unusual size, that counts up to what the budget leaves: whether it is one or
    many small ones only reading tells.
    """
    pages = columns * _PAGE_BYTES
    if is_files:  # Parquet's reader has pages too
        pages = max(pages, min(columns * _LARGE_PAGE_BYTES, _LARGE_PAGES_BYTES))
    terms = {
        "batches in flight": _batches_in_flight(budget.batch_bytes, extent),
        "row group being written": 2 * ROW_GROUP_BYTES,
        "page of each column": pages,
        "driver and query buffers": 24 * 2**20,
    }
    beyond = _VALUE_COPIES * max(0, extent.uneven_bytes - budget.batch_bytes)
    free = budget.allowed_bytes - reserved_bytes - sum(terms.values())
    if beyond and free > 0:
        terms["large values of a row group"] = min(beyond, free)
    return Projection(stage="extract", reserved_bytes=reserved_bytes, terms=terms)


def _batches_in_flight(batch_bytes: int, extent: Extent) -> int:
    """Return what batches hold: so many of full size, or of the rows that the driver gives, or all of a small range.

    Of that a row group waits to be written, which is a term of its own. What the driver's rows take more than the
    table's comes on top.
    """
    batch, beyond = batch_bytes, 0
    if extent.batch_rows is not None:
        given = int(extent.batch_rows * extent.row_bytes)
        batch, beyond = min(batch_bytes, int(_LONGER * given)), _DRIVER_COPIES * max(0, given - batch_bytes)
    held, rows = batch * COPIES + beyond, extent.batch_rows or 0
    if extent.rows is not None:
        whole = int(_LONGER * extent.rows * extent.row_bytes)
        held, rows = min(held, max(min(batch, whole), whole - ROW_GROUP_BYTES)), min(rows, extent.rows)
    wider = max(0.0, extent.driver_row_bytes - _LONGER * extent.row_bytes)
    return held + int((_DRIVER_COPIES + 1) * rows * wider)  # and as they are filtered


def project_settling(context: StageContext, *, rows: int, largest: int = 0) -> Projection:
    """Return what taking out the known ones of so many rows takes, the largest of which has ``largest`` bytes."""
    batch = context.budget.batch_bytes
    reserved = context.learned.reserved_bytes("extract.settle")
    free = max(0, context.budget.allowed_bytes - reserved)
    joins = join_bytes(rows, free_bytes=free)
    terms = {
        "joins": joins,
        "joins beyond their limit": joins // _BEYOND_LIMIT,
        "batches in flight": 2 * batch,
        "row group being written": 2 * ROW_GROUP_BYTES,
        **uneven_terms(largest, batch_bytes=batch, copies=2),
    }
    return Projection(stage="extract.settle", reserved_bytes=reserved, terms=terms)
