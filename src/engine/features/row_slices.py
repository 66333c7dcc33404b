"""The tasks of a slice of rows: a span of event time gathered in order, then searched for its windows.

Both run in the cage. Which spans there are is planned by ``stages/prepare.py``, by the arithmetic of ``spans.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine import events
from engine.batching import Chunk, ChunkWriter, read_batches
from engine.batching.frames import to_arrow
from engine.batching.streams import rows_for
from engine.batching.tables import chunk_prefix
from engine.features.segment_sets import build_segments
from engine.features.segments import SegmentRef
from engine.features.transform import load_transform
from engine.features.windows import WindowReader, segment_plans
from engine.layout import BASELINE, EVENT_TIME, KEY, prepared_table
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext

if TYPE_CHECKING:
    import polars as pl

_SLICE_BATCH_ROWS = 16_384
_NEAR = 4


def run_gather(task: Task, scope: Scope) -> TaskResult:
    """Write one span's newest rows in order of event time, and the segments of its events (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    low, high = (time_of(value) for value in task.inputs["span"])
    chunks = [
        chunk
        for chunk in workspace.table("raw").chunks(newest_n=int(task.inputs["raw_n"]))
        if chunk.may_hold(spec.event_time, low, high)
    ]
    schema = workspace.table("raw").schema()
    if schema is None:
        raise LookupError("raw has no schema though a span of it was planned")
    schema = pa.schema([schema.field(name) for name in schema.names if name not in spec.after_columns])
    rows = newest_rows(chunks, schema, spec, span=(low, high), scope=scope)
    path = workspace.root / "slices" / spec.feature_set / f"{n:08d}.arrow"
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        for piece in rows.in_order(_SLICE_BATCH_ROWS):
            writer.write_table(piece)
    rows_in, count = rows.rows_in, rows.batches
    del rows
    with pa.memory_map(str(path), "rb") as source, pa.ipc.open_file(source) as reader:
        segments = build_segments(
            reader.read_all(),
            plans=segment_plans(spec.features, over="events"),
            time=spec.event_time,
            root=workspace.segments,
            prefix=f"{spec.feature_set}/events-{n:08d}",
        )
    return TaskResult(
        task=task.name,
        outputs={"slice": str(path.relative_to(workspace.root)), "segments": segments},
        rows_in=rows_in,
        rows_out=0,
        batches=count,
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

    def in_order(self, rows: int) -> Iterator[pa.Table]:
        """Yield them, so many at a time: the span is held once, not once more in order."""
        if self.order is None:
            for start in range(0, self.table.num_rows, rows):
                yield self.table.slice(start, rows)
            return
        for start in range(0, len(self.order), rows):
            yield self._taken(self.order.slice(start, rows))

    def _taken(self, rows: pl.Series) -> pa.Table:
        """Return some rows: by Polars where they lie near each other, eight times as fast, else by Arrow, in place."""
        import polars as pl

        low, high = rows.min(), rows.max()
        if not isinstance(low, int) or not isinstance(high, int):
            raise TypeError(f"rows are numbered by {rows.dtype}")
        if high - low < _NEAR * len(rows):
            return to_arrow(pl.DataFrame(self.table.slice(low, high - low + 1))[rows - low], self.table.schema)
        return self.table.take(rows.to_arrow())


def newest_rows(
    chunks: Sequence[Chunk],
    schema: pa.Schema,
    spec: PipelineSpec,
    *,
    span: tuple[datetime, datetime],
    scope: Scope,
) -> NewestRows:
    """Read a span's rows from chunks of ``raw``."""
    batches = []
    for batch in read_batches(
        [chunk.path for chunk in chunks],
        columns=schema.names,
        schema=schema,
        batch_bytes=scope.governor.batch_bytes,
        span=(spec.event_time, *span),
    ):
        scope.batch_done(batch.num_rows, batch.nbytes)
        batches.append(batch)
    table = pa.Table.from_batches(batches, schema=schema)
    return NewestRows(table, _order(table, spec), table.num_rows, len(batches))


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


def run_search(task: Task, scope: Scope) -> TaskResult:
    """Transform a span's rows, look up their windows, and write them as prepared chunks (in the cage)."""
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    transform = load_transform(spec.features.transform, directory=context.directory)
    readers = _readers(spec, task.inputs["segments"], root=workspace.segments)
    writer: ChunkWriter | None = None
    prepared = prepared_table(workspace, spec.feature_set)

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    rows_in = batches = 0
    with pa.memory_map(str(workspace.root / task.inputs["slice"]), "rb") as source, pa.ipc.open_file(source) as reader:
        total = sum(reader.get_batch(i).num_rows for i in range(reader.num_record_batches))
        for group in _grouped(reader, spec, batch_bytes=scope.governor.batch_bytes):
            scope.governor.wait()
            out = prepared_rows(transform(group), spec, readers)
            if writer is None:
                prefix = chunk_prefix(n, "rows")
                writer = ChunkWriter(prepared.path, prefix=prefix, schema=out.schema, on_chunk=on_chunk)
                writer.__enter__()
            for batch in out.to_batches():
                writer.write(batch)
            rows_in, batches = rows_in + group.num_rows, batches + 1
            scope.batch_done(group.num_rows, group.nbytes)
            scope.progress(rows_in, total, "rows")
    if writer is not None:
        writer.__exit__(None, None, None)
    chunks = [] if writer is None else writer.chunks
    return TaskResult(
        task=task.name,
        outputs={"chunks": [to_json(ref) for ref in chunks]},
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in chunks),
        batches=batches,
    )


def search_rows(spec: PipelineSpec, batch_bytes: int, *, row_bytes: float = 0.0) -> int:
    """Return how many rows of a span, of ``row_bytes`` as they lie in it, are searched at once."""
    return rows_for(batch_bytes, bytes_per_row=max(row_bytes, 8.0 * (len(spec.features.names()) + 8)))


def _grouped(
    reader: pa.ipc.RecordBatchFileReader, spec: PipelineSpec, *, batch_bytes: Callable[[], int]
) -> Iterator[pa.Table]:
    """Yield the rows of a span by so many as are searched at once: parts of its batches, or several small ones."""
    held: list[pa.RecordBatch] = []
    for number in range(reader.num_record_batches):
        batch = reader.get_batch(number)
        rows = search_rows(spec, batch_bytes(), row_bytes=batch.nbytes / max(1, batch.num_rows))
        for start in range(0, batch.num_rows, rows):
            part = batch.slice(start, rows)
            if held and sum(one.num_rows for one in held) + part.num_rows > rows:
                yield pa.Table.from_batches(held)
                held = []
            held.append(part)
    if held:
        yield pa.Table.from_batches(held)


def _readers(
    spec: PipelineSpec, segments: Mapping[str, Sequence[Mapping[str, Any]]], *, root: Path
) -> dict[tuple[str, tuple[str, ...]], WindowReader]:
    """Return one reader for the windows over labels, or events, with the same keys."""
    readers: dict[tuple[str, tuple[str, ...]], WindowReader] = {}
    for window in spec.features.windows:
        refs = [SegmentRef.from_json(value) for value in segments[window.over]]
        mine = [ref for ref in refs if ref.keys == window.keys]
        readers.setdefault((window.over, window.keys), WindowReader(mine, root=root))
    return readers


def prepared_rows(
    rows: pa.Table, spec: PipelineSpec, readers: Mapping[tuple[str, tuple[str, ...]], WindowReader] | None = None
) -> pa.Table:
    """Return the prepared rows of a batch: key, event_time, baseline, numeric, categorical, windows."""
    columns = {KEY: rows.column(spec.source.key), EVENT_TIME: rows.column(spec.event_time)}
    if spec.baseline is not None:
        columns[BASELINE] = rows.column(spec.baseline).cast(pa.float64())
    for name in (*spec.features.numeric, *spec.features.categorical):
        columns[name] = rows.column(name)
    for window in spec.features.windows:
        reader, gap = (readers or {})[window.over, window.keys], spec.features.gap_of(window)
        columns |= reader.compute(rows, keys=window.keys, time=spec.event_time, window=window, gap=gap)
    return pa.table(columns)


def time_of(value: int) -> datetime:
    """Return microseconds since 1970 as a time in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
