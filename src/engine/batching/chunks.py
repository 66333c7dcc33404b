"""Writing chunks: Parquet files, row group by row group, each with the statistics that plans read.

A chunk has its final name only when it is whole; making it part of a table is ``tables.py``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.batching.atomic import replace_synced
from engine.batching.row_order import RowOrder
from engine.refs import ChunkRef
from engine.units import format_time

ROW_GROUP_BYTES = 8 * 2**20
"""In memory, before compression: bounds what a reader holds of one row group."""

CHUNK_ROWS = 1_000_000

_MOST_PARTS = 20_000
"""Columns of row groups in one chunk: who writes it holds 800 bytes for each, who opens it half as much, whatever is
read. In one file, 100,000 rows of 2,000 doubles take 330 MiB for their footer alone.
"""

HELD_BYTES = "headrace.held_bytes"
"""Of a chunk's footer: what each column of no fixed width takes in memory, in bytes by row group.

Parquet counts encoded bytes: two megabytes of constant text, or of long runs, may be two gigabytes in memory.
"""

LARGEST_ROW = "headrace.largest_row_bytes"
"""Of a chunk's footer: what its largest row takes in memory, at most; 0 where all rows are small."""

LARGE_ROW_BYTES = 64 * 2**10
"""A row that is smaller makes no difference to a batch, wherever it lies."""

_EVEN = 1.25  # times a bound: pieces that are so much larger are not cut again
_SAMPLE_ROWS = 10_000
_LEAST_SAMPLE_ROWS = 1_000
_NOISE = 0.9  # compressed size to size: it takes a fifth of the time of writing, for files 3 % smaller
_LEVEL = -1  # of zstd: a quarter less CPU than 1, for files that are 3 % larger

_LEAST_VARYING = 8.0  # bytes of a value of no fixed width, as far as its type tells
_LONGEST_STATISTIC = 64  # characters; a longer string says nothing that a plan needs


class ChunkWriter:
    """Writes a stream of batches as chunks of bounded size.

    Parameters
    ----------
    directory
        The table's directory.
    prefix
        Begins each file's name, ``<n>-<task>``: the n of the plan is read back from it.
    schema
        Of every batch.
    on_chunk
        Called with each finished chunk.
    chunk_rows
        Of a chunk at most; fewer where the table is so wide that its row groups are many.
    written
        Chunks of an earlier try that the new ones come after.
    order
        Names of a time and a key: a chunk's footer says where its rows lie in strict order of both.
    bounds_of
        Columns whose smallest and largest values in each chunk the table's log keeps, for plans to choose chunks by;
        those that the schema has. Of all columns they would make the log, and who opens the table, large for nothing.

    Notes
    -----
    Dictionaries are built only for strings that repeat: with the default, writing costs 3.5 times as much CPU, and with
    one for a column of order numbers 1.4 times as much, for a larger file. Whole numbers and times are stored as packed
    differences: a quarter less CPU, and files a quarter smaller, since less is left to compress. Every page has a
    checksum. When an exception leaves the ``with`` block, unfinished files are removed and finished ones stay; they
    belong to no table.
    """

    def __init__(
        self,
        directory: Path,
        *,
        prefix: str,
        schema: pa.Schema,
        chunk_rows: int | None = None,
        row_group_bytes: int = ROW_GROUP_BYTES,
        on_chunk: Callable[[ChunkRef], None] | None = None,
        written: Sequence[ChunkRef] = (),
        order: tuple[str, str] | None = None,
        bounds_of: Sequence[str] = (),
    ) -> None:
        self._directory = directory
        self._prefix = prefix
        self._schema = schema
        self._chunk_rows = most_chunk_rows(schema) if chunk_rows is None else chunk_rows
        self._row_group_bytes = row_group_bytes
        self._on_chunk = on_chunk
        self._strings = [
            field.name for field in schema if pa.types.is_string(field.type) or pa.types.is_large_string(field.type)
        ]
        self._encodings = {field.name: "DELTA_BINARY_PACKED" for field in schema if _is_whole(field.type)}
        widths = {field.name: fixed_width(field.type) for field in schema}
        self._unbounded = [name for name, width in widths.items() if width is None]
        self._fixed_bytes = sum(int(width) for width in widths.values() if width is not None)
        self._held: dict[str, list[int]] = {}
        self._writer: pq.ParquetWriter | None = None
        self._pending: list[pa.RecordBatch] = []
        self._pending_bytes = 0
        self._rows = 0
        self._memory_bytes = 0
        self._largest_row_bytes = 0
        self._bounds_of = bounds_of
        self._ordered_by = order
        self._order = self._new_order()
        self.chunks: list[ChunkRef] = list(written)

    def __enter__(self) -> Self:
        """Return itself; nothing is opened before the first batch."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Finish the last chunk, or remove it when the block failed."""
        if kind is None:
            self._finish()
        elif self._writer is not None:
            self._writer.close()
            self._temporary.unlink(missing_ok=True)

    def write(self, batch: pa.RecordBatch) -> None:
        """Add a batch; its rows are in the order of the calls."""
        if not batch.num_rows:
            return
        if self._rows + batch.num_rows > self._chunk_rows and self._rows:
            self._finish()
        largest = self._fixed_bytes + sum(largest_value(batch.column(name)) for name in self._unbounded)
        self._largest_row_bytes = max(self._largest_row_bytes, largest if largest > LARGE_ROW_BYTES else 0)
        if self._order is not None:
            self._order.add(batch)
        for piece in sliced(batch, self._row_group_bytes):
            self._pending.append(piece)
            self._pending_bytes += piece.nbytes
            if self._pending_bytes >= self._row_group_bytes:
                self._flush()
        self._rows += batch.num_rows
        self._memory_bytes += batch.nbytes

    @property
    def open_rows(self) -> int:
        """Rows since the last finished chunk."""
        return self._rows

    def end_chunk(self) -> None:
        """Finish the chunk that is being written, whatever its size; without rows there is none."""
        self._finish()

    @property
    def _name(self) -> str:
        return f"{self._prefix}-{len(self.chunks):04d}.parquet"

    @property
    def _temporary(self) -> Path:
        return self._directory / f".{self._name}.tmp"

    def _flush(self) -> None:
        if not self._pending:
            return
        rows = pa.Table.from_batches(self._pending, schema=self._schema)
        if self._writer is None:
            self._directory.mkdir(parents=True, exist_ok=True)
            self._writer = pq.ParquetWriter(
                self._temporary,
                self._schema,
                **self._compression(rows),
                use_dictionary=self._repeating(rows),
                column_encoding=self._encodings,
                write_page_checksum=True,
            )
        self._writer.write_table(rows)
        for name in self._unbounded:
            self._held.setdefault(name, []).append(rows.column(name).nbytes)
        self._pending = []
        self._pending_bytes = 0

    def _compression(self, rows: pa.Table) -> dict[str, Any]:
        """Return what the writer compresses: not floats whose bytes are noise, as far as a chunk's first rows tell."""
        floats = [field.name for field in self._schema if pa.types.is_floating(field.type)]
        noise = {name for name in floats if _is_noise(rows.column(name))}
        if not noise or any(pa.types.is_nested(field.type) for field in self._schema):  # whose leaves have other names
            return {"compression": "zstd", "compression_level": _LEVEL}
        return {
            "compression": {name: "none" if name in noise else "zstd" for name in self._schema.names},
            "compression_level": {name: _LEVEL for name in self._schema.names if name not in noise},
        }

    def _repeating(self, rows: pa.Table) -> list[str]:
        """Return the columns of text of which each value comes twice or more, as far as a chunk's first rows tell."""
        first = rows.slice(0, _SAMPLE_ROWS)
        return [name for name in self._strings if 2 * pc.count_distinct(first.column(name)).as_py() <= first.num_rows]

    def _new_order(self) -> RowOrder | None:
        if self._ordered_by is None:
            return None
        time, key = self._ordered_by
        return RowOrder(time=time, key=key)

    def _finish(self) -> None:
        self._flush()
        if self._writer is None:
            return
        largest = self._largest_row_bytes
        footer = {HELD_BYTES: json.dumps(self._held), LARGEST_ROW: str(largest)}
        self._writer.add_key_value_metadata(footer | (self._order.footer() if self._order is not None else {}))
        self._writer.close()
        self._writer, self._held = None, {}
        ref = adopt_chunk(
            self._temporary,
            self._directory / self._name,
            memory_bytes=self._memory_bytes,
            largest_row_bytes=largest,
            bounds_of=self._bounds_of,
        )
        self.chunks.append(ref)
        self._rows = 0
        self._memory_bytes = self._largest_row_bytes = 0
        self._order = self._new_order()
        if self._on_chunk is not None:
            self._on_chunk(ref)


def _is_whole(kind: pa.DataType) -> bool:
    """Return whether Parquet stores values as whole numbers of 32 or 64 bits, which it can store as differences."""
    return bool(pa.types.is_integer(kind) or pa.types.is_temporal(kind))


def _is_noise(column: pa.ChunkedArray) -> bool:
    """Return whether compressing a column of floats would save a tenth of it at most."""
    values = pa.concat_arrays(column.slice(0, _SAMPLE_ROWS).chunks).drop_null()
    if len(values) < _LEAST_SAMPLE_ROWS:
        return False
    raw = pa.py_buffer(values.to_numpy(zero_copy_only=False))
    return bool(pa.Codec("zstd", _LEVEL).compress(raw).size > _NOISE * raw.size)


def fixed_width(kind: pa.DataType) -> float | None:
    """Return the bytes of a value in memory with its bit of null, None where that depends on the value."""
    try:
        return (float(kind.bit_width) + 1) / 8
    except ValueError:
        return None


def sliced(batch: pa.RecordBatch, most_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield a batch in pieces of about so many bytes at most, or of one row; nothing is copied."""
    size, rows = batch.nbytes, batch.num_rows
    if rows <= 1 or size <= _EVEN * most_bytes:
        yield batch
        return
    step = max(1, min(rows // 2, int(rows * most_bytes / size)))
    for start in range(0, rows, step):
        yield from sliced(batch.slice(start, step), most_bytes)


def largest_value(values: pa.Array) -> int:
    """Return what the largest value of a column takes in memory, at most: the column, where its type does not tell."""
    kind = values.type
    width = fixed_width(kind)
    if width is not None:
        return int(width)
    if pa.types.is_string(kind) or pa.types.is_binary(kind) or pa.types.is_large_string(kind):
        return pc.max(pc.binary_length(values)).as_py() or 0
    if pa.types.is_struct(kind):
        return sum(largest_value(field) for field in values.flatten())
    of_value = fixed_width(kind.value_type) if pa.types.is_list(kind) or pa.types.is_large_list(kind) else None
    if of_value is not None:
        return int((pc.max(pc.list_value_length(values)).as_py() or 0) * of_value)
    return int(values.nbytes)


def fixed_row_bytes(schema: pa.Schema, *, least_value_bytes: float = 0.0) -> float | None:
    """Return the bytes of a row in memory, None where that depends on its values."""
    widths = [fixed_width(field.type) for field in schema]
    row = None if None in widths else sum(width for width in widths if width is not None)
    return None if row is None else max(row, least_value_bytes * len(widths))


def most_chunk_rows(schema: pa.Schema) -> int:
    """Return how many rows a chunk has at most: a million, or fewer where columns make its footer large."""
    leaves = [leaf for field in schema for leaf in _leaves(field.type)]
    groups = max(1, _MOST_PARTS // max(1, len(leaves)))
    row_bytes = sum(fixed_width(leaf) or _LEAST_VARYING for leaf in leaves)
    return max(1, min(CHUNK_ROWS, int(groups * ROW_GROUP_BYTES / max(1.0, row_bytes))))


def _leaves(kind: pa.DataType) -> list[pa.DataType]:
    """Return the types of the columns of Parquet that a column is."""
    inner = [kind.field(at).type for at in range(kind.num_fields)]
    return [leaf for one in inner for leaf in _leaves(one)] if inner else [kind]


def adopt_chunk(
    temporary: Path, final: Path, *, memory_bytes: int, largest_row_bytes: int = 0, bounds_of: Sequence[str] = ()
) -> ChunkRef:
    """Give a finished Parquet file its final name, and return what plans and tables have to know of it."""
    metadata = pq.read_metadata(temporary)
    minimum, maximum, nulls = _bounds(metadata, bounds_of)
    ref = ChunkRef(
        path=final.name,
        rows=metadata.num_rows,
        bytes=os.path.getsize(temporary),
        memory_bytes=memory_bytes,
        largest_row_bytes=largest_row_bytes,
        minimum={key: _json(value) for key, value in minimum.items()},
        maximum={key: _json(value) for key, value in maximum.items()},
        nulls=nulls,
    )
    replace_synced(temporary, final)
    return ref


def _bounds(metadata: pq.FileMetaData, columns: Sequence[str]) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Return minimum, maximum and number of nulls of columns, as far as a footer knows."""
    leaves = [metadata.schema.column(index) for index in range(metadata.num_columns)]
    wanted = [index for index, leaf in enumerate(leaves) if leaf.path in columns and leaf.path == leaf.name]
    minimum: dict[str, Any] = {}
    maximum: dict[str, Any] = {}
    nulls: dict[str, int] = {}
    unknown: set[str] = set()
    for group in range(metadata.num_row_groups):
        for index in wanted:
            column = metadata.row_group(group).column(index)
            column_name, statistics = column.path_in_schema, column.statistics
            if statistics is None:
                continue
            if statistics.has_null_count:
                nulls[column_name] = nulls.get(column_name, 0) + statistics.null_count
            if not statistics.has_min_max:
                if statistics.null_count != metadata.row_group(group).num_rows:
                    unknown.add(column_name)
                continue
            try:
                low, high = statistics.min, statistics.max
            except OverflowError:  # a time that Python has none for
                unknown.add(column_name)
                continue
            minimum[column_name] = min(minimum.get(column_name, low), low)
            maximum[column_name] = max(maximum.get(column_name, high), high)
    for column_name in list(minimum):
        if column_name in unknown or not (_is_plain(minimum[column_name]) and _is_plain(maximum[column_name])):
            del minimum[column_name], maximum[column_name]
    return minimum, maximum, nulls


def _is_plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= _LONGEST_STATISTIC
    if isinstance(value, float):
        return value == value and abs(value) != float("inf")
    return isinstance(value, int | datetime)


def _json(value: Any) -> Any:
    return format_time(value) if isinstance(value, datetime) else value
