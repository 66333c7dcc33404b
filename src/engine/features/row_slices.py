"""The rows of a span of event time: read from ``raw``, the newest versions in order, and what is prepared of them.

The tasks that take spans are ``window_slices.py`` and ``row_streams.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.batching import Chunk, read_batches
from engine.batching.chunks import LARGE_ROW_BYTES
from engine.batching.frames import to_arrow
from engine.batching.row_order import in_order
from engine.batching.streams import rows_for
from engine.errors import SpecError
from engine.features.keys import sort_keys
from engine.features.open_windows import OpenWindow
from engine.features.segment_sets import SortedSegment
from engine.features.segments import read_times
from engine.features.windows import WindowReader
from engine.layout import BASELINE, EVENT_TIME, KEY
from engine.memory.scope import Scope
from engine.refs import Task
from engine.spec import PipelineSpec
from engine.stage import ChildContext

if TYPE_CHECKING:
    import polars as pl

_NEAR = 4
_HELD = 1.25  # times the rows that are expected, or newest: beyond that older versions are let go
_FIRST_MOMENT, _LAST_MOMENT = -62_135_596_800_000_000, 253_402_300_799_999_999  # of the years 1 and 9999


def raw_chunks(context: ChildContext, task: Task) -> tuple[pa.Schema, list[Chunk]]:
    """Return the columns of ``raw`` to read, and its chunks up to the task's ``raw_n``.

    For a transform all that rows may know, else what is kept: of 2,000 columns, twenty are features.
    """
    spec = context.spec
    table = context.workspace.table("raw")
    schema = table.schema()
    if schema is None:
        raise LookupError("raw has no schema though a span of it was planned")
    names = [name for name in schema.names if name not in spec.after_columns]
    if spec.features.transform is None:  # which may look at any of them
        needed = {spec.source.cursor, *_used(spec)}
        names = [name for name in names if name in needed]
    return pa.schema([schema.field(name) for name in names]), table.chunks(newest_n=int(task.inputs["raw_n"]))


def _used(spec: PipelineSpec) -> list[str]:
    """Return the columns that prepared rows are made of."""
    features = spec.features
    names = [spec.source.key, spec.event_time, *features.numeric, *features.categorical]
    names += [spec.baseline] if spec.baseline is not None else []
    names += [name for window in features.windows for name in (*window.keys, window.column) if name is not None]
    return list(dict.fromkeys(names))


def transformed(
    rows: NewestRows, transform: Callable[[pa.Table], pa.Table], spec: PipelineSpec, scope: Scope
) -> pa.Table:
    """Return a span's rows as the transform has them, batch by batch, with no more columns than are used."""
    wanted = _used(spec)
    if spec.features.transform is None:
        require_columns(wanted, rows.table.schema)
        return rows.columns(wanted)
    row_bytes, batch_bytes = rows.table.nbytes / max(1, rows.table.num_rows), scope.governor.batch_bytes()
    count = search_rows(spec, batch_bytes, row_bytes=row_bytes)
    pieces = rows.in_order(count, most_bytes=batch_bytes) if rows.num_rows else iter([rows.table])
    out = []
    for piece in pieces:
        made = transform(piece)
        require_columns(wanted, made.schema)
        out.append(made.select(wanted))
    return pa.concat_tables(out)


def require_columns(names: Sequence[str], schema: pa.Schema) -> None:
    """Raise SpecError where rows, as the transform has them, lack a column that the pipeline file names."""
    missing = [name for name in names if name not in schema.names]
    if missing:
        raise SpecError(
            f"features: there is no column {missing[0]!r}: neither the source nor the transform has it",
            hint="headrace check names what is near; correct the pipeline file or the transform",
        )


@dataclass(frozen=True)
class NewestRows:
    """A span's rows as they were read, and which of them are the newest versions, in order of event time."""

    table: pa.Table
    order: pl.Series | None  # rows of ``table``; None: all, as they lie
    rows_in: int
    batches: int

    @property
    def num_rows(self) -> int:
        """Rows that are left."""
        return self.table.num_rows if self.order is None else len(self.order)

    def columns(self, names: Sequence[str]) -> pa.Table:
        """Return some columns of all rows, in order."""
        narrow = self.table.select(names)
        return narrow if self.order is None else narrow.take(self.order.to_arrow())

    def in_order(self, rows: int, *, most_bytes: int) -> Iterator[pa.Table]:
        """Yield them, so many at a time, fewer where they would be much larger than ``most_bytes``.

        The span is held once, not once more in order.
        """
        sizes = _large_rows(self.table, most_bytes)
        for start in range(0, self.num_rows, rows):
            count = min(rows, self.num_rows - start)
            taken = None if self.order is None else self.order.slice(start, count)
            for low, high in _parts(_of(sizes, start, count, taken), count, most_bytes):
                if taken is None:
                    yield self.table.slice(start + low, high - low)
                else:
                    yield self._taken(taken.slice(low, high - low))

    def _taken(self, rows: pl.Series) -> pa.Table:
        """Return some rows: by Polars where they lie near each other, eight times as fast, else by Arrow, in place."""
        import polars as pl

        low, high = rows.min(), rows.max()
        if not isinstance(low, int) or not isinstance(high, int):
            raise TypeError(f"rows are numbered by {rows.dtype}")
        if high - low < _NEAR * len(rows):
            return to_arrow(pl.DataFrame(self.table.slice(low, high - low + 1))[rows - low], self.table.schema)
        return self.table.take(rows.to_arrow())


def _large_rows(table: pa.Table, most_bytes: int) -> npt.NDArray[np.int64] | None:
    """Return the bytes of each row's texts, None where no part of ``most_bytes`` could be much of one row's."""
    texts = [column for column in table.columns if pa.types.is_string(column.type) or pa.types.is_binary(column.type)]
    lengths = [pc.binary_length(column) for column in texts]
    if sum(pc.max(length).as_py() or 0 for length in lengths) <= min(LARGE_ROW_BYTES, most_bytes):
        return None
    sizes = np.zeros(table.num_rows, dtype=np.int64)
    for length in lengths:
        sizes += pc.fill_null(length, 0).to_numpy()
    return sizes


def _of(
    sizes: npt.NDArray[np.int64] | None, start: int, count: int, taken: pl.Series | None
) -> npt.NDArray[np.int64] | None:
    if sizes is None:
        return None
    return sizes[start : start + count] if taken is None else sizes[taken.to_numpy()]


def _parts(sizes: npt.NDArray[np.int64] | None, count: int, most_bytes: int) -> Iterator[tuple[int, int]]:
    """Yield stretches of ``count`` rows of about ``most_bytes`` at most, or of one row."""
    if sizes is None:
        yield 0, count
        return
    ends = np.cumsum(sizes)
    low = 0
    while low < count:
        before = int(ends[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(ends, before + most_bytes, side="right")))
        yield low, min(high, count)
        low = high


class FullerThanPlanned(Exception):
    """A span has many more rows than was planned for: it is to be taken in parts."""


def newest_rows(
    chunks: Sequence[Chunk],
    schema: pa.Schema,
    spec: PipelineSpec,
    *,
    span: tuple[datetime | None, datetime | None],
    rows: int,
    scope: Scope,
    whole: bool = True,
) -> NewestRows:
    """Read a span's rows from chunks of ``raw``; older versions are let go once more is held than was planned.

    Parameters
    ----------
    rows
        How many the span is expected to have. What is held goes by that, or by how many newest versions there are:
        however often rows were written.
    whole
        However many there are; else too many are refused.

    Raises
    ------
    FullerThanPlanned
        The newest versions are more than a quarter more than expected, and they are not taken ``whole``.
    """
    ordered = in_order(chunks, time=spec.event_time, key=spec.source.key)
    batches: list[pa.RecordBatch] = []
    rows_in = read = held = 0
    most = _HELD * rows
    for batch in read_batches(
        [chunk.path for chunk in (chunks if ordered is None else ordered)],
        columns=schema.names,
        schema=schema,
        batch_bytes=scope.governor.batch_bytes,
        span=(spec.event_time, *span),
    ):
        scope.batch_done(batch.num_rows, batch.nbytes)
        batches.append(batch)
        rows_in, read, held = rows_in + batch.num_rows, read + 1, held + batch.num_rows
        if held <= most:
            continue
        if ordered is None:
            _let_go(batches, schema, spec)
            held = sum(left.num_rows for left in batches)
        if held > most and not whole:
            raise FullerThanPlanned
        most = _HELD * max(rows, held)
    table = pa.Table.from_batches(batches, schema=schema)
    order = _order(table, spec) if ordered is None else None
    return NewestRows(table, order, rows_in, read)


def _let_go(batches: list[pa.RecordBatch], schema: pa.Schema, spec: PipelineSpec) -> None:
    """Leave the newest versions in batches of rows, one batch after another, so that none is held twice."""
    order = _order(pa.Table.from_batches(batches, schema=schema), spec)
    if order is None:
        return
    newest = np.zeros(sum(batch.num_rows for batch in batches), dtype=np.bool_)
    newest[order.to_numpy()] = True
    end = 0
    for number, batch in enumerate(batches):
        start, end = end, end + batch.num_rows
        mine = newest[start:end]
        if not mine.all():
            batches[number] = batch.filter(pa.array(mine))
    batches[:] = [batch for batch in batches if batch.num_rows]


def _order(table: pa.Table, spec: PipelineSpec) -> pl.Series | None:
    """Return where the newest versions lie, by event time and key, from three columns; None: as they are."""
    import polars as pl

    key, time, row = spec.source.key, spec.event_time, "row"
    while row in table.column_names:
        row = f"_{row}"
    narrow = pl.DataFrame(table.select(list(dict.fromkeys([key, spec.source.cursor, time]))))
    keys, times = narrow[key], narrow[time]
    if not (keys.null_count() or times.null_count()):
        forward = (times.head(-1) <= times.tail(-1)).all() and (keys.head(-1) < keys.tail(-1)).all()
        if forward:
            return None
    narrow = narrow.with_row_index(row).sort(key, spec.source.cursor)
    return narrow.unique(subset=key, keep="last", maintain_order=True).sort(time, key)[row]


def search_rows(spec: PipelineSpec, batch_bytes: int, *, row_bytes: float = 0.0) -> int:
    """Return how many rows of a span, of ``row_bytes`` as they lie in it, are searched at once."""
    return rows_for(batch_bytes, bytes_per_row=max(row_bytes, 8.0 * (len(spec.features.names()) + 8)))


def prepared_rows(
    rows: pa.Table,
    spec: PipelineSpec,
    readers: Mapping[tuple[str, tuple[str, ...]], WindowReader] | None = None,
    in_order: Mapping[tuple[str, ...], SortedSegment] | None = None,
    first: OpenWindow | None = None,
    part_done: Callable[[], None] = lambda: None,
    threads: int = 1,
) -> pa.Table:
    """Return the prepared rows of a batch: key, event_time, baseline, numeric, categorical, windows.

    Parameters
    ----------
    in_order
        The rows by windows' keys, as far as that is known.
    first
        The first window of them, if it is open already; while one is searched, the next one is opened.
    part_done
        Called after each window.
    threads
        That search at once.
    """
    columns = {KEY: rows.column(spec.source.key), EVENT_TIME: rows.column(spec.event_time)}
    if spec.baseline is not None:
        columns[BASELINE] = rows.column(spec.baseline).cast(pa.float64())
    for name in (*spec.features.numeric, *spec.features.categorical):
        columns[name] = rows.column(name)
    windows, segments = spec.features.windows, in_order or {}
    ordered = {keys: known.keys for keys, known in segments.items()}

    def opened(number: int) -> OpenWindow:
        window = windows[number]
        keys, gap = window.keys, spec.features.gap_of(window)
        if keys not in ordered:
            ordered[keys] = sort_keys(rows, keys, read_times(rows.column(spec.event_time), name=spec.event_time))
        return (readers or {})[window.over, keys].open(
            rows,
            keys=keys,
            time=spec.event_time,
            window=window,
            gap=gap,
            in_order=ordered[keys],
            own=segments[keys].ref if window.over == "events" and keys in segments else None,
        )

    with ThreadPoolExecutor(1) as ahead:
        ready = ahead.submit(opened, 0) if windows and first is None else None
        for number in range(len(windows)):
            window = first if ready is None else ready.result()
            if number + 1 < len(windows):
                ready = ahead.submit(opened, number + 1)
            if window is not None:
                columns |= window.features(threads)
                part_done()
    return pa.table(columns)


def time_of(value: int) -> datetime | None:
    """Return microseconds since 1970 as a time in UTC; None before the year 1 and after 9999, where no row lies."""
    if not _FIRST_MOMENT <= value <= _LAST_MOMENT:
        return None
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
