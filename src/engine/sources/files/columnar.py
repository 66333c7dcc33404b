"""Parquet and Arrow IPC, streamed from any row on, in batches bounded by what they hold in memory."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from engine.batching.streams import BatchBytes, bound
from engine.sources.files.listing import Found, Place
from engine.sources.files.partitions import partition_value
from engine.sources.protocol import Standing

_PROBE_ROWS = 1_024
_MOST_ROWS = 131_072
_LEAST_ROW_BYTES = 8
_LEAST_BATCHES = 16  # before batches grow again
_ROWS_A_BATCH = 2_000  # are decoded in the time that a small batch takes


@dataclass(frozen=True)
class RowGroup:
    """A row group of a Parquet file, as its footer has it."""

    end: int  # number of the row behind it
    rows: int
    column_bytes: int  # of its largest column; repeated values count once
    varying_bytes: int = 0  # of its largest column whose values differ in size


def columnar_schema(place: Place, file: Found, *, format: str) -> tuple[pa.Schema, Sequence[RowGroup]]:
    """Return a file's own columns with those that a Delta table keeps in its path, and the row groups of Parquet."""
    groups: Sequence[RowGroup] = ()
    try:
        with place.open(file) as handle:
            if format == "parquet":
                with pq.ParquetFile(handle) as opened:
                    schema, groups = opened.schema_arrow, _groups_of(opened.metadata)
            else:
                schema = _ipc(handle).schema
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None
    for name, value in file.partition.items():
        schema = schema.append(pa.field(name, partition_value(value).type))
    return schema.remove_metadata(), groups


def columnar_rows(place: Place, file: Found) -> int:
    """Return how many rows a Parquet file says that it has."""
    try:
        with place.open(file) as handle:
            return int(pq.read_metadata(handle).num_rows)
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None


def row_groups(place: Place, file: Found) -> Sequence[RowGroup]:
    """Return the row groups of a Parquet file."""
    try:
        with place.open(file) as handle:
            return _groups_of(pq.read_metadata(handle))
    except (pa.ArrowException, OSError) as error:
        raise place.unreadable(file, error) from None


def _groups_of(metadata: pq.FileMetaData) -> Sequence[RowGroup]:
    leaves = [metadata.schema.column(at) for at in range(metadata.num_columns)]
    varying = [leaf.physical_type == "BYTE_ARRAY" or leaf.max_repetition_level > 0 for leaf in leaves]
    out, end = [], 0
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        sizes = [group.column(at).total_uncompressed_size for at in range(group.num_columns)]
        end += group.num_rows
        differing = [size for size, may in zip(sizes, varying, strict=True) if may]
        out.append(RowGroup(end, group.num_rows, max(sizes, default=0), max(differing, default=0)))
    return out


def uneven_bytes(groups: Sequence[RowGroup]) -> int:
    """Return how much more the largest column of a row group takes than as many rows do elsewhere.

    It may be one value. What is usual is the least that a row takes in any row group, those of few rows aside.
    """
    most_rows = max((group.rows for group in groups), default=0)
    usual = min((group.varying_bytes / group.rows for group in groups if 2 * group.rows > most_rows), default=0.0)
    return max((int(group.varying_bytes - group.rows * usual) for group in groups), default=0)


def read_columnar(
    place: Place, file: Found, *, format: str, start: int, batch_bytes: BatchBytes
) -> Iterator[tuple[pa.RecordBatch, int, int]]:
    """Yield the rows from number ``start`` on, what each batch was bounded by in bytes, and the number behind it.

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
                at, size = at + batch.num_rows, batch.nbytes
                for name, value in file.partition.items():
                    batch = batch.append_column(name, pa.repeat(partition_value(value), batch.num_rows))
                yield batch, size, at
    except (pa.ArrowException, OSError) as error:
        groups = row_groups(place, file) if format == "parquet" else ()
        raise place.unreadable(file, error, where=f" {standing(at, groups).text}") from None


def standing(row: int, groups: Sequence[RowGroup]) -> Standing:
    """Return where a read stands that goes on from a row, given the row groups of its file, if it has any."""
    at = bisect_right([group.end for group in groups], row)
    if at >= len(groups):
        return Standing(f"from row {row:,} on")
    return Standing(f"from row {row:,} on (row group {at})", groups[at].column_bytes)


def _parquet(handle: pa.NativeFile, start: int, batch_bytes: BatchBytes) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(handle, pre_buffer=False, buffer_size=2**20) as file:
        skip, rows = start, _PROBE_ROWS
        for group in range(file.num_row_groups):
            size = file.metadata.row_group(group)
            if skip >= size.num_rows:
                skip -= size.num_rows
                continue
            # The footer bounds what a row takes from below: a group of few large rows is known before it is read.
            least = max(_LEAST_ROW_BYTES, size.total_byte_size / max(1, size.num_rows))
            first = min(rows, max(1, int(bound(batch_bytes) / least)))
            rows = yield from _group(file, group, skip, first, batch_bytes)
            skip = 0


def _group(
    file: pq.ParquetFile, group: int, start: int, rows: int, batch_bytes: BatchBytes
) -> Generator[pa.RecordBatch, None, int]:
    """Yield the rows of a group from number ``start`` on; return how many the next batch may have.

    One pass with batches of so many rows; it ends early when they turn out to be of another size. Each pass begins with
    the group anew, so the next one waits until small batches have cost about as much.
    """
    at, total, due, fitting = start, file.metadata.row_group(group).num_rows, 0, rows
    while at < total:
        skip = at
        for passed, batch in enumerate(file.iter_batches(batch_size=rows, row_groups=[group], use_threads=False)):
            if skip >= batch.num_rows:
                skip -= batch.num_rows
                continue
            part, skip = batch.slice(skip), 0
            at += part.num_rows
            fitting = yield from _cut(part, batch_bytes)
            if fitting < rows // 2 or (fitting > 2 * rows and passed >= due):
                rows, due = fitting, max(_LEAST_BATCHES, at // _ROWS_A_BATCH)
                break
    return fitting


def _ipc(handle: pa.NativeFile) -> pa.RecordBatchFileReader | pa.RecordBatchStreamReader:
    magic = handle.read(6)
    handle.seek(0)
    return pa.ipc.open_file(handle) if magic == b"ARROW1" else pa.ipc.open_stream(handle)


def _of_ipc(handle: pa.NativeFile, start: int, batch_bytes: BatchBytes) -> Iterator[pa.RecordBatch]:
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
        yield from _cut(part, batch_bytes)


def _cut(rows: pa.RecordBatch, batch_bytes: BatchBytes) -> Generator[pa.RecordBatch, None, int]:
    """Yield rows in batches of the bound, which is asked for each; return how many rows of this size one would have."""
    row_bytes = max(_LEAST_ROW_BYTES, rows.nbytes / max(1, rows.num_rows))

    def fitting() -> int:
        return max(1, min(_MOST_ROWS, int(bound(batch_bytes) / row_bytes)))

    at = 0
    while at < rows.num_rows:
        part = rows.slice(at, fitting())
        at += part.num_rows
        yield part
    return fitting()
