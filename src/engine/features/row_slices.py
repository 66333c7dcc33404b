"""The task of a slice with windows: spans of event time, each gathered in order, made into segments and searched.

Which spans there are is planned by ``stages/prepare.py``, by the arithmetic of ``spans.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from engine import events
from engine.batching import Chunk, ChunkWriter, read_batches
from engine.batching.atomic import sync_files
from engine.batching.frames import to_arrow
from engine.batching.streams import rows_for
from engine.batching.tables import chunk_prefix
from engine.features.keys import sort_keys
from engine.features.open_windows import OpenWindow
from engine.features.segment_sets import BuiltSegments, SortedSegment, build_segments
from engine.features.segments import SegmentRef, read_times
from engine.features.transform import load_transform
from engine.features.window_plans import segment_plans
from engine.features.windows import WindowReader
from engine.layout import BASELINE, EVENT_TIME, KEY, prepared_table
from engine.memory.governor import keep_freed
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext

if TYPE_CHECKING:
    import polars as pl

_NEAR = 4
_KEPT = 32  # of the budget, the share that is kept of what was freed, to be used again


def run_spans(task: Task, scope: Scope) -> TaskResult:
    """Write the prepared rows of spans, the earliest first, and the segments of their events (in the cage).

    While a span is searched by all threads, the next one is read and its segments are built, and the one before is
    written.
    """
    context = ChildContext.of(scope.context)
    spec, workspace, n = context.spec, context.workspace, int(task.inputs["n"])
    spans = task.inputs["spans"]
    transform = load_transform(spec.features.transform, directory=context.directory)
    schema, raw = raw_chunks(context, task)
    scratch = TemporaryDirectory(prefix="tiers-", dir=workspace.scratch)
    readers = _readers(
        spec,
        task.inputs["segments"],
        root=workspace.segments,
        threads=scope.budget.threads,
        scratch=Path(scratch.name),
        most_tier_keys=tier_keys(max(rows for _, _, rows in spans)),
    )
    prepared = prepared_table(workspace, spec.feature_set)
    plans = segment_plans(spec.features, over="events")
    of_events = {keys: reader for (over, keys), reader in readers.items() if over == "events"}

    keep_freed(scope.budget.allowed_bytes // _KEPT)
    syncing: list[Future[None]] = []

    def gather(number: int) -> _Gathered:
        low, high = (time_of(value) for value in spans[number][:2])
        mine = [chunk for chunk in raw if chunk.may_hold(spec.event_time, low, high)]
        rows = newest_rows(mine, schema, spec, span=(low, high), scope=scope)
        prefix = f"{spec.feature_set}/events-{n:08d}-{number:04d}"
        names = dict.fromkeys(
            [spec.event_time, *(name for plan in plans for name in (*plan.keys, *plan.measures, *plan.distinct))]
        )
        narrow = rows.columns(list(names)) if plans else rows.table
        built = build_segments(
            narrow, plans=plans, time=spec.event_time, root=workspace.segments, prefix=prefix, readers=of_events
        )
        syncing.append(disk.submit(sync_files, [workspace.segments / ref.path for ref in built.refs]))
        if spec.features.transform is not None:  # it may change what a key is
            return _Gathered(rows, built, {}, None)
        return _Gathered(rows, built, built.in_order, _first_window(rows, spec, readers, built.in_order))

    def write(number: int, rows: pa.Table) -> list[ChunkRef]:
        prefix = chunk_prefix(n, f"rows.{number:04d}")
        with ChunkWriter(prepared.path, prefix=prefix, schema=rows.schema, on_chunk=on_chunk) as writer:
            for batch in rows.to_batches():
                writer.write(batch)
        return writer.chunks

    def on_chunk(ref: ChunkRef) -> None:
        scope.emit(events.ChunkWritten(scope.stage, scope.task, ref.path, ref.rows, ref.bytes))

    chunks: list[ChunkRef] = []
    segments: dict[str, list[dict[str, Any]]] = {}
    rows_in = batches = done = 0
    with scratch, ThreadPoolExecutor(1) as disk, ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
        reading, writing = ahead.submit(gather, 0), behind.submit(list[ChunkRef])
        for number in range(len(spans)):
            gathered = reading.result()
            rows, own = gathered.rows, gathered.built
            scope.governor.wait()
            if number + 1 < len(spans):
                reading = ahead.submit(gather, number + 1)
            rows_in, batches = rows_in + rows.rows_in, batches + rows.batches
            if not rows.num_rows:
                continue
            segments[chunk_prefix(n, f"rows.{number:04d}")] = [to_json(ref) for ref in own.refs]
            out = prepared_rows(
                _transformed(rows, transform, spec, scope), spec, readers, gathered.in_order, gathered.first
            )
            done += rows.num_rows
            del rows, gathered
            chunks += writing.result()
            writing = behind.submit(write, number, out)
            scope.progress(done, max(done, sum(span[2] for span in spans)), "rows")
        chunks += writing.result()
        for synced in syncing:
            synced.result()
    return TaskResult(
        task=task.name,
        outputs={"chunks": [to_json(ref) for ref in chunks], "segments": segments},
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in chunks),
        batches=batches,
    )


def tier_keys(rows: int) -> int:
    """Return how many keys, or pairs of a key and a value, a tier may be made of where spans have so many rows: then a
    span's segment takes more.
    """
    return rows // 2


@dataclass(frozen=True)
class _Gathered:
    """A span, ready to be searched."""

    rows: NewestRows
    built: BuiltSegments
    in_order: Mapping[tuple[str, ...], SortedSegment]  # its rows by windows' keys, as far as that is known
    first: OpenWindow | None  # of its windows


def _first_window(
    rows: NewestRows,
    spec: PipelineSpec,
    readers: Mapping[tuple[str, tuple[str, ...]], WindowReader],
    in_order: Mapping[tuple[str, ...], SortedSegment],
) -> OpenWindow:
    window = spec.features.windows[0]
    names = [*window.keys, spec.event_time, *([] if window.column is None else [window.column])]
    known = in_order.get(window.keys)
    return readers[window.over, window.keys].open(
        rows.columns(list(dict.fromkeys(names))),
        keys=window.keys,
        time=spec.event_time,
        window=window,
        gap=spec.features.gap_of(window),
        in_order=None if known is None else known.keys,
        own=None if known is None or window.over != "events" else known.ref,
    )


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


def _transformed(
    rows: NewestRows, transform: Callable[[pa.Table], pa.Table], spec: PipelineSpec, scope: Scope
) -> pa.Table:
    """Return a span's rows as the transform has them, batch by batch, with no more columns than are used."""
    wanted = _used(spec)
    if spec.features.transform is None:
        return rows.columns(wanted)
    row_bytes = rows.table.nbytes / max(1, rows.table.num_rows)
    pieces = []
    for piece in rows.in_order(search_rows(spec, scope.governor.batch_bytes(), row_bytes=row_bytes)):
        out = transform(piece)
        pieces.append(out.select([name for name in wanted if name in out.column_names]))
    return pa.concat_tables(pieces)


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


def search_rows(spec: PipelineSpec, batch_bytes: int, *, row_bytes: float = 0.0) -> int:
    """Return how many rows of a span, of ``row_bytes`` as they lie in it, are searched at once."""
    return rows_for(batch_bytes, bytes_per_row=max(row_bytes, 8.0 * (len(spec.features.names()) + 8)))


def _readers(
    spec: PipelineSpec,
    segments: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    root: Path,
    threads: int,
    scratch: Path,
    most_tier_keys: int,
) -> dict[tuple[str, tuple[str, ...]], WindowReader]:
    """Return one reader for the windows over labels, or events, with the same keys."""
    readers: dict[tuple[str, tuple[str, ...]], WindowReader] = {}
    for window in spec.features.windows:
        refs = [SegmentRef.from_json(value) for value in segments[window.over]]
        mine = [ref for ref in refs if ref.keys == window.keys]
        name = (window.over, window.keys)
        if name not in readers:
            own = scratch / str(len(readers))
            own.mkdir()
            readers[name] = WindowReader(mine, root=root, threads=threads, scratch=own, tier_keys=most_tier_keys)
    return readers


def prepared_rows(
    rows: pa.Table,
    spec: PipelineSpec,
    readers: Mapping[tuple[str, tuple[str, ...]], WindowReader] | None = None,
    in_order: Mapping[tuple[str, ...], SortedSegment] | None = None,
    first: OpenWindow | None = None,
) -> pa.Table:
    """Return the prepared rows of a batch: key, event_time, baseline, numeric, categorical, windows.

    Parameters
    ----------
    in_order
        The rows by windows' keys, as far as that is known.
    first
        The first window of them, if it is open already; while one is searched, the next one is opened.
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
                columns |= window.features()
    return pa.table(columns)


def time_of(value: int) -> datetime:
    """Return microseconds since 1970 as a time in UTC."""
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=value)
