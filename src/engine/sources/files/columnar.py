"""Parquet and Arrow IPC, streamed from any row on, in batches bounded by what they hold in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from engine.sources.files.listing import Found, Place
from engine.sources.files.partitions import partition_value
from engine.sources.protocol import Standing

_PROBE_ROWS = 1_024
_MOST_ROWS = 131_072
_LEAST_ROW_BYTES = 8
_LEAST_BATCHES = 16  # before batches grow again
_ROWS_A_BATCH = 2_000  # are decoded in the time that a small batch takes


def columnar_schema(place: Place, file: Found, *, format: str) -> pa.Schema:
    """Return a file's own columns, and those that a Delta table keeps in its path."""
    try:
        with place.open(file) as handle:
            schema = pq.read_schema(handle) if format == "parquet" else _ipc(handle).schema
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None
    for name, value in file.partition.items():
        schema = schema.append(pa.field(name, partition_value(value).type))
    return schema.remove_metadata()


def columnar_rows(place: Place, file: Found) -> int:
    """Return how many rows a Parquet file says that it has."""
    try:
        with place.open(file) as handle:
            return int(pq.read_metadata(handle).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file, as its footer has it."""

    end: int  # number of the row behind it
    column_bytes: int  # of its largest column; repeated values count once


def row_groups(place: Place, file: Found) -> Sequence[RowGroup]:
    """Return the row groups of a Parquet file."""
    try:
        with place.open(file) as handle:
            metadata = pq.read_metadata(handle)
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    ends = accumulate(group.num_rows for group in groups)
    return [
        RowGroup(end, max(group.column(at).total_uncompressed_size for at in range(group.num_columns)))
        for end, group in zip(ends, groups, strict=True)
    ]


def read_columnar(
    place: Place, file: Found, *, format: str, start: int, batch_bytes: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the rows from number ``start`` on, and the number behind each batch.

    A footer says how large encoded values are; a dictionary or run-length encoding hides what they hold in memory. So
    the first rows are looked at, and a batch that comes larger makes the next ones smaller.
    """
    at = start
    try:
        with place.open(file) as handle:
            batches = (
                _parquet(handle, start, batch_bytes) if format == "parquet" else _of_ipc(handle, start, batch_bytes)
            )
            for batch in batches:
                at += batch.num_rows
                for name, value in file.partition.items():
                    batch = batch.append_column(name, pa.repeat(partition_value(value), batch.num_rows))
                yield batch, at
    except (pa.ArrowException, OSError) as error:
        groups = row_groups(place, file) if format == "parquet" else ()
        raise place.unreadable(file, error, where=f" {standing(at, groups).text}") from None


def standing(row: int, groups: Sequence[RowGroup]) -> Standing:
    """Return where a read stands that goes on from a row, given the row groups of its file, if it has any."""
    at = bisect_right([group.end for group in groups], row)
    if at >= len(groups):
        return Standing(f"from row {row:,} on")
    return Standing(f"from row {row:,} on (row group {at})", groups[at].column_bytes)


def _parquet(handle: pa.NativeFile, start: int, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**20) as file:
        skip, rows = start, _PROBE_ROWS
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            if skip >= size.num_rows:
                skip -= size.num_rows
                continue
            # The footer bounds what a row takes from below: a group of few large rows is known before it is read.
            least = max(_LEAST_ROW_BYTES, size.total_byte_size / max(1, size.num_rows))
            first = min(rows, max(1, int(batch_bytes / least)))
            for batch, fitting in _group(file, group, skip, first, batch_bytes):
                rows = fitting
                yield batch
            skip = 0


def _group(
    file: pq.ParquetFile, group: int, start: int, rows: int, batch_bytes: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the rows of a group from number ``start`` on, each batch with how many rows the next one may have.

    One pass with batches of so many rows; it ends early when they turn out to be of another size. Each pass begins with
    the group anew, so the next one waits until small batches have cost about as much.
    """
    at, total, due = start, file.metadata.row_group(group).num_rows, 0
    while at < total:
        skip = at
        for passed, batch in enumerate(file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            part, skip = batch.slice(skip), 0
            at += part.num_rows
            row_bytes = max(_LEAST_ROW_BYTES, part.nbytes / max(1, part.num_rows))
            fitting = max(1, min(_MOST_ROWS, int(batch_bytes / row_bytes)))
            yield part, fitting
            if fitting < rows // 2 or (fitting > 2 * rows and passed >= due):
                rows, due = fitting, max(_LEAST_BATCHES, at // _ROWS_A_BATCH)
                break


def _ipc(handle: pa.NativeFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    magic = handle.read(6)
    handle.seek(0)
    return pa.ipc.open_file(handle) if magic == b"ARROW1" else pa.ipc.open_stream(handle)


def _of_ipc(handle: pa.NativeFile, start: int, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    reader = _ipc(handle)
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        batches = (reader.get_batch(at) for at in range(reader.num_record_batches))
    else:
        batches = iter(reader)
    skip = start
    for batch in batches:
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        part, skip = batch.slice(skip), 0
        row_bytes = max(_LEAST_ROW_BYTES, part.nbytes / max(1, part.num_rows))
        rows = max(1, min(_MOST_ROWS, int(batch_bytes / row_bytes)))
        for at in range(0, part.num_rows, rows):
            yield part.slice(at, rows)
