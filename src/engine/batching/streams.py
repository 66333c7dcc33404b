"""Reading chunks as batches bounded by bytes, with the columns and the span that are asked for.

Whole files or row groups are never held; a damaged chunk is a typed error that names it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.batching.chunks import HELD_BYTES, LARGE_ROW_BYTES, LARGEST_ROW, ROW_GROUP_BYTES, fixed_width, sliced
from engine.errors import TableError

BatchBytes = int | Callable[[], int]
"""Upper bound of a batch in memory, or a function that is asked for it again and again: the governor's current one."""

Within = tuple[str, datetime | None, datetime | None]
"""``(column, low, high)``: rows with ``low <= column < high``; None is unbounded."""

_DEFAULT_BYTES_PER_ROW = 256.0  # of a group without rows
_ALIKE = 2.0  # times: rows of such sizes are read with one size of batch
_MAX_ROWS = 131_072
_LOOKED_AT = 8  # chunks


def read_batches(
    paths: Sequence[Path],
    *,
    columns: Sequence[str] | None = None,
    batch_bytes: BatchBytes = 8 * 2**20,
    schema: pa.Schema | None = None,
    span: Within | None = None,
    after_rows: int = 0,
    least_value_bytes: float = 0.0,
) -> Iterator[pa.RecordBatch]:
    """Yield the rows of Parquet files in order, in batches of bounded size.

    Parameters
    ----------
    paths
        Files, read one after another.
    columns
        Names to read, in this order; all by default. One that a file lacks (it is older than the column) is null.
    batch_bytes
        Asked before each file.
    schema
        Types of ``columns``; needed only where a file may lack one.
    span
        Only these rows.
    after_rows
        So many of these rows are passed over: a reader that was stopped goes on behind them.
    least_value_bytes
        What a value counts at least while batches are bounded: who reads booleans may make numbers of them.

    Raises
    ------
    TableError
        A file is missing, cut short, or fails its page checksums; names it.
    """
    passed = 0
    for path in paths:
        limit = bound(batch_bytes)
        with _named(path):
            groups, whole = _groups_within(path, after_rows - passed) if span is None else (0, 0)
            passed += whole
            for batch in _read_one(
                path,
                columns=columns,
                batch_bytes=limit,
                schema=schema,
                span=span,
                after_groups=groups,
                least_value_bytes=least_value_bytes,
            ):
                left = batch.slice(min(batch.num_rows, max(0, after_rows - passed)))
                passed += batch.num_rows
                if left.num_rows:
                    yield left


def bound(batch_bytes: BatchBytes) -> int:
    """Return the bound that holds now."""
    return batch_bytes() if callable(batch_bytes) else batch_bytes


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Name the chunk in what goes wrong with it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise TableError(
            f"chunk {path} cannot be read: {str(error).splitlines()[0]}",
            hint="the file is damaged or gone: restore it from a backup; other chunks and tables are intact",
        ) from error


def _read_one(
    path: Path,
    *,
    columns: Sequence[str] | None,
    batch_bytes: int,
    schema: pa.Schema | None,
    span: Within | None,
    after_groups: int,
    least_value_bytes: float,
) -> Iterator[pa.RecordBatch]:
    with _opened(path) as file:
        present = set(file.schema_arrow.names)
        wanted = list(columns) if columns is not None else file.schema_arrow.names
        needed = [name for name in wanted if name in present]
        filter_only = span is not None and span[0] not in needed
        if filter_only and span is not None:
            needed.append(span[0])
        for groups, size in _runs(file, _row_groups(file, span)[after_groups:], needed):
            rows = rows_for(batch_bytes, bytes_per_row=max(size, least_value_bytes * len(needed)))
            for batch in file.iter_batches(batch_size=rows, row_groups=groups, columns=needed, use_threads=False):
                kept = batch if span is None else _within(batch, *span)
                if kept.num_rows:  # rows of very different sizes may lie in one row group
                    yield from sliced(_select(kept, wanted, schema), batch_bytes)


def _groups_within(path: Path, rows: int) -> tuple[int, int]:
    """Return how many row groups lie whole within the first rows of a file, and their rows."""
    groups = whole = 0
    if rows > 0:
        metadata = pq.read_metadata(path)
        while groups < metadata.num_row_groups and whole + metadata.row_group(groups).num_rows <= rows:
            whole += metadata.row_group(groups).num_rows
            groups += 1
    return groups, whole


def _row_groups(file: pq.ParquetFile, span: Within | None) -> list[int]:
    """Return the row groups that may hold rows of the span, by their own statistics."""
    every = list(range(file.metadata.num_row_groups))
    if span is None:
        return every
    column, low, high = span
    leaves = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)]
    if column not in leaves:
        return every
    kept = []
    for group in every:
        statistics = file.metadata.row_group(group).column(leaves.index(column)).statistics
        if statistics is not None and statistics.has_min_max:
            if low is not None and statistics.max < low:
                continue
            if high is not None and statistics.min >= high:
                continue
        kept.append(group)
    return kept


def rows_of(path: Path) -> int:
    """Return how many rows a chunk has.

    Raises
    ------
    TableError
        As ``read_batches``.
    """
    with _named(path):
        return int(pq.read_metadata(path).num_rows)


def rows_within(path: Path, span: tuple[str, datetime | None, datetime]) -> float:
    """Return about how many rows of a chunk lie in a span, as the statistics of its row groups tell.

    Rows of a group that is in part inside count as if they lay evenly, half of them where only its first or last value
    is inside: many may be of one moment.

    Raises
    ------
    TableError
        As ``read_batches``.
    """
    column, low, high = span
    rows = 0.0
    with _named(path), _opened(path) as file:
        leaf = [file.metadata.schema.column(i).path for i in range(file.metadata.num_columns)].index(column)
        for group in _row_groups(file, span):
            found, statistics = file.metadata.row_group(group), file.metadata.row_group(group).column(leaf).statistics
            if statistics is None or not statistics.has_min_max:
                rows += found.num_rows
                continue
            first, last = statistics.min, statistics.max
            start, end = first if low is None else max(first, low), min(last, high)
            share = 1.0 if (start, end) == (first, last) else (end - start) / (last - first)
            rows += found.num_rows * (share or 0.5)
    return rows


def mean_row_bytes(path: Path, columns: Sequence[str]) -> float:
    """Return what a row of a chunk takes in memory, on average, in the row group where that is most; 0 without rows."""
    with pq.ParquetFile(path) as file:
        return max(_row_sizes(file, columns), default=0.0)


def held_bytes(paths: Sequence[Path], fields: Sequence[pa.Field]) -> dict[str, float]:
    """Return what a value of some columns takes in memory, on average in the row group where it takes most.

    Parameters
    ----------
    paths
        Chunks, newest last: where values have no fixed width, the footers of some of the last are read.

    Raises
    ------
    TableError
        As ``read_batches``.
    """
    widths = {one.name: fixed_width(one.type) for one in fields}
    out = {name: 0.0 if width is None else width for name, width in widths.items()}
    varying = [name for name, width in widths.items() if width is None]
    for path in paths[-_LOOKED_AT:] if varying else ():
        with _named(path), _opened(path) as file:
            for name in varying:
                if name in file.schema_arrow.names:
                    out[name] = max([out[name], *_row_sizes(file, [name])])
    return out


def read_weighed(paths: Sequence[Path], *, of: Sequence[str], span: Within) -> Iterator[tuple[pa.Array, float]]:
    """Yield a span's column of its rows, each part with what its rows take of other columns, in bytes on average.

    Parameters
    ----------
    of
        Those columns, as far as a file has them.

    Raises
    ------
    TableError
        As ``read_batches``.
    """
    for path in paths:
        with _named(path), _opened(path) as file:
            present = set(file.schema_arrow.names)
            sizes = _row_sizes(file, [name for name in of if name in present])
            for group in _row_groups(file, span):
                for batch in file.iter_batches(
                    batch_size=_MAX_ROWS, row_groups=[group], columns=[span[0]], use_threads=False
                ):
                    kept = _within(batch, *span)
                    if kept.num_rows:
                        yield kept.column(0), sizes[group]


def _opened(path: Path) -> pq.ParquetFile:
    return pq.ParquetFile(path, pre_buffer=False, buffer_size=2**20, page_checksum_verification=True)


def said_largest_row(path: Path) -> int:
    """Return what the footer of a chunk says of its largest row, in bytes: 0 of small ones, and where it is silent."""
    return int((pq.read_metadata(path).metadata or {}).get(LARGEST_ROW.encode(), 0))


def uneven_terms(largest_row_bytes: int, *, batch_bytes: int, copies: int) -> dict[str, int]:
    """Return what reading takes beyond batches of even rows, in bytes by the name of a projection's term.

    A row that is larger than a batch goes alone, in as many copies as a batch. Where rows are large, what is decoded of
    a row group at once may be all of it, before it is cut into batches.
    """
    if largest_row_bytes <= LARGE_ROW_BYTES:
        return {}
    return {"large rows": copies * max(0, largest_row_bytes - batch_bytes) + 2 * ROW_GROUP_BYTES}


def rows_for(batch_bytes: int, *, bytes_per_row: float) -> int:
    """Return how many rows of this size a batch of ``batch_bytes`` holds: at least 1, at most 131,072."""
    return max(1, min(_MAX_ROWS, int(batch_bytes / max(1.0, bytes_per_row))))


def most_batch_bytes(batch_bytes: int, *, rows: int | None, row_bytes: float | None) -> int:
    """Return what a batch takes at most, of a table with so many rows of so many bytes each; None: not known."""
    if row_bytes is None:
        return batch_bytes
    return min(batch_bytes, int(row_bytes * (_MAX_ROWS if rows is None else min(rows, _MAX_ROWS))))


def _runs(file: pq.ParquetFile, groups: Sequence[int], columns: Sequence[str]) -> Iterator[tuple[list[int], float]]:
    """Yield row groups that follow one another and have rows of about one size, with that size: bytes in memory."""
    sizes = _row_sizes(file, columns)
    run: list[int] = []
    least = most = 0.0
    for group in groups:
        size = sizes[group]
        if run and max(most, size) > _ALIKE * min(least, size):
            yield run, most
            run = []
        least, most = (min(least, size), max(most, size)) if run else (size, size)
        run.append(group)
    if run:
        yield run, most


def _row_sizes(file: pq.ParquetFile, columns: Sequence[str]) -> list[float]:
    """Return, by row group, what a row of some columns takes in memory on average."""
    schema, metadata = file.schema_arrow, file.metadata
    said = (metadata.metadata or {}).get(HELD_BYTES.encode())
    held: dict[str, Sequence[int]] = json.loads(said) if said else {}
    widths = {name: fixed_width(schema.field(name).type) for name in columns}
    fixed = sum(width for width in widths.values() if width is not None)
    varying = [name for name, width in widths.items() if width is None]
    unknown = any(name not in held for name in varying)
    sizes = []
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        if not rows:
            sizes.append(_DEFAULT_BYTES_PER_ROW)
        elif unknown:  # of a chunk that Polars wrote only the bound is known that its row groups were cut by
            sizes.append(max(fixed, ROW_GROUP_BYTES / rows))
        else:
            sizes.append(fixed + sum(held[name][group] for name in varying) / rows)
    return sizes


def _within(batch: pa.RecordBatch, column: str, low: datetime | None, high: datetime | None) -> pa.RecordBatch:
    values = batch.column(column)
    if not values.null_count and batch.num_rows:
        extent, begin, end = pc.min_max(values), pa.scalar(low, values.type), pa.scalar(high, values.type)
        after = low is None or extent["min"].as_py() >= begin.as_py()
        if after and (high is None or extent["max"].as_py() < end.as_py()):
            return batch  # as most are: a filter would copy it
    mask: pa.Array | None = None
    if low is not None:
        mask = pc.greater_equal(values, pa.scalar(low, type=values.type))
    if high is not None:
        below = pc.less(values, pa.scalar(high, type=values.type))
        mask = below if mask is None else pc.and_(mask, below)
    return batch if mask is None else batch.filter(mask)


def _select(batch: pa.RecordBatch, wanted: Sequence[str], schema: pa.Schema | None) -> pa.RecordBatch:
    if batch.schema.names == list(wanted):
        return batch
    arrays = []
    for name in wanted:
        index = batch.schema.get_field_index(name)
        if index >= 0:
            arrays.append(batch.column(index))
        elif schema is not None:
            arrays.append(pa.nulls(batch.num_rows, type=schema.field(name).type))
        else:
            raise TableError(f"column {name!r} is not in the chunk", hint="run prepare again for this pipeline file")
    return pa.RecordBatch.from_arrays(arrays, names=list(wanted))
