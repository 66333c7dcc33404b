"""Parquet and Arrow IPC, streamed from any row on, in batches bounded by what they hold in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from engine.sources.files.listing import Found, Place
from engine.sources.files.partitions import partition_value

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


def read_columnar(
    place: Place, file: Found, *, format: str, start: int, batch_bytes: int
) -> Iterator[tuple[pa.RecordBatch, int]]:
    """Yield the rows from number ``start`` on, and the number behind each batch.

    A footer says how large encoded values are; a dictionary or run-length encoding hides what they hold in memory. So
    the first rows are looked at, and a batch that comes larger makes the next ones smaller.
    """
    try:
        with place.open(file) as handle:
            batches = (
                _parquet(handle, start, batch_bytes) if format == "parquet" else _of_ipc(handle, start, batch_bytes)
            )
            at = start
            for batch in batches:
                at += batch.num_rows
                for name, value in file.partition.items():
                    batch = batch.append_column(name, pa.repeat(partition_value(value), batch.num_rows))
                yield batch, at
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None


def _parquet(handle: pa.NativeFile, start: int, batch_bytes: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**20) as file:
        total = file.metadata.num_rows
        at, rows, due = start, min(_PROBE_ROWS, _by_footer(file.metadata, batch_bytes)), 0
        while at < total:
            # One pass with batches of this many rows; it ends early when they turn out to be of another size. Each pass
            # begins with the row group anew, so the next one waits until small batches have cost about as much.
            for passed, batch in enumerate(_from(file, at, rows)):
                at += batch.num_rows
                yield batch
                row_bytes = max(_LEAST_ROW_BYTES, batch.nbytes / max(1, batch.num_rows))
                fitting = max(1, min(_MOST_ROWS, int(batch_bytes / row_bytes)))
                if fitting < rows // 2 or (fitting > 2 * rows and passed >= due):
                    rows, due = fitting, max(_LEAST_BATCHES, at // _ROWS_A_BATCH)
                    break


def _by_footer(metadata: pq.FileMetaData, batch_bytes: int) -> int:
    """Return how many rows are a batch by what the footer says of their encoded size: no more than that are tried."""
    groups = [metadata.row_group(at) for at in range(metadata.num_row_groups)]
    largest = max((group.total_byte_size / max(1, group.num_rows) for group in groups), default=0)
    return max(1, int(batch_bytes / max(_LEAST_ROW_BYTES, largest)))


def _from(file: pq.ParquetFile, start: int, rows: int) -> Iterator[pa.RecordBatch]:
    skip, first = start, 0
    while first < file.num_row_groups and skip >= file.metadata.row_group(first).num_rows:
        skip -= file.metadata.row_group(first).num_rows
        first += 1
    groups = list(range(first, file.num_row_groups))
    for batch in file.iter_batches(batch_size=rows, row_groups=groups, use_threads=False):
        if skip >= batch.num_rows:
            skip -= batch.num_rows
            continue
        part, skip = batch.slice(skip), 0
        yield part


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
