"""The tasks of a slice without windows: spans whose rows lie in order are streamed by Polars from ``raw`` to chunks.

Both run in the cage. What is not in order (late rows, new versions) is left to the second task, which sorts pieces that
fit. Which spans there are is planned by ``preparing/``.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from engine import events
from engine.batching import Chunk, ChunkWriter, read_batches
from engine.batching.chunks import ROW_GROUP_BYTES, adopt_chunk
from engine.batching.row_order import in_order
from engine.batching.streams import Within, mean_row_bytes, read_weighed, said_largest_row
from engine.batching.tables import chunk_prefix, same_type
from engine.features.row_slices import newest_rows, prepared_rows, raw_chunks, search_rows, time_of
from engine.features.spans import Span
from engine.features.stretches import stretches
from engine.features.transform import LazyTransform, transform_of
from engine.layout import BASELINE, EVENT_TIME, KEY, bounds_of, chunk_writer, prepared_table
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext

if TYPE_CHECKING:
    import polars as pl

STREAMED_GROUPS = 38
"""Row groups in flight between Polars' reader, its two operators and its writer: what it held at most, measured."""

MOST_STREAMED_COLUMNS = 200
_HEAD_ROWS = 2_000
_MOST_UNEVEN = 8.0  # times the mean row: Polars writes row groups of so many rows, whatever their bytes
_AT_ONCE = 2
_KNOBS = {
    "POLARS_ROW_GROUP_PREFETCH_SIZE": "1"
}  # two spans at once: 240 to 310 MiB, with 2 340 to 365, with the same CPU
_CODEC: Literal["lz4"] = "lz4"
"""A seventh less time than zstd at its lowest level, for files a fifth larger: they are read more than once."""

_STREAMED = ("Int8", "Int16", "Int32", "Int64", "Float32", "Float64", "Boolean", "String", "Date")
_WIDENED = {"UInt8": "Int32", "UInt16": "Int32", "UInt32": "Int64", "UInt64": "Int64"}


def run_stream(task: Task, scope: Scope) -> TaskResult:
    """Write one chunk for each span whose rows lie in order (in the cage); say which spans are left."""
    os.environ.update(_KNOBS)
    context = ChildContext.of(scope.context)
    spec, workspace = context.spec, context.workspace
    prepared = prepared_table(workspace, spec.feature_set)
    prepared.path.mkdir(parents=True, exist_ok=True)
    transform = LazyTransform(spec, directory=context.directory, types=task.inputs.get("row_types"))
    schema, raw = raw_chunks(context, task)
    head = _head(raw, schema, spec, spans=task.inputs["spans"])
    if head is not None:
        transform.check(head)
    prefix, spans = chunk_prefix(int(task.inputs["n"]), "stream"), task.inputs["spans"]
    begun = scope.resume or {"first": 0, "chunks": [], "unordered": []}

    def one(number: int) -> ChunkRef | str:
        low, high, rows = spans[number]
        span = (time_of(low), time_of(high), rows)
        mine = [chunk for chunk in raw if chunk.may_hold(spec.event_time, *span[:2])]
        return _stream(mine, schema, task, transform, spec, span, prepared.path / f"{prefix}-{number:04d}.parquet")

    chunks = [ChunkRef.from_json(value) for value in begun["chunks"]]
    left: list[list[int]] = list(begun["unordered"])
    total = sum(rows for _, _, rows in spans)
    numbers = range(int(begun["first"]), len(spans))
    # Two at a time: while one begins or reaches the disk, the other keeps the processors busy.
    with ThreadPoolExecutor(min(_AT_ONCE, scope.budget.threads)) as pool:
        for number, found in zip(numbers, pool.map(one, numbers), strict=True):
            if isinstance(found, str):
                scope.emit(events.Note(scope.stage, scope.task, found))
                left.append(spans[number])
                continue
            chunks.append(found)
            scope.emit(events.ChunkWritten(scope.stage, scope.task, found.path, found.rows, found.bytes))
            scope.progress(sum(chunk.rows for chunk in chunks), total, "rows")
            written = [to_json(ref) for ref in chunks]
            rest = [*left, *spans[number + 1 :]]
            scope.checkpoint({"first": number + 1, "chunks": written, "unordered": left, "left": rest})
    rows_out = sum(ref.rows for ref in chunks)
    return TaskResult(
        task=task.name,
        outputs={"chunks": [to_json(ref) for ref in chunks], "left": left},
        rows_in=rows_out,
        rows_out=rows_out,
        batches=len(chunks),
    )


def run_sort(task: Task, scope: Scope) -> TaskResult:
    """Write the newest rows of spans in order of event time, piece by piece (in the cage)."""
    context = ChildContext.of(scope.context)
    spec = context.spec
    prepared = prepared_table(context.workspace, spec.feature_set)
    transform = transform_of(spec, directory=context.directory, types=task.inputs.get("row_types"))
    schema, raw = raw_chunks(context, task)
    total, rows_in, batches = sum(rows for _, _, rows in task.inputs["spans"]), 0, 0
    chunks: list[ChunkRef] = []
    for number, (low, high, of_span_rows) in enumerate(task.inputs["spans"]):
        before = rows_in
        mine = [chunk for chunk in raw if chunk.may_hold(spec.event_time, time_of(low), time_of(high))]
        most = int(task.inputs["piece_rows"])
        most_bytes = most * float(task.inputs["row_bytes"])
        span = Span(low, high)
        pieces = stretches(
            mine, columns=schema.names, time=spec.event_time, span=span, rows=most, most_bytes=most_bytes
        )
        for part, piece_span in enumerate(pieces):
            within = (time_of(piece_span.low), time_of(piece_span.high))
            of_piece = [chunk for chunk in mine if chunk.may_hold(spec.event_time, *within)]
            rows = newest_rows(of_piece, schema, spec, span=within, rows=most, scope=scope)
            rows_in += rows.rows_in
            writer: ChunkWriter | None = None
            row_bytes = rows.table.nbytes / max(1, rows.table.num_rows)
            batch_bytes = scope.governor.batch_bytes()
            for piece in rows.in_order(search_rows(spec, batch_bytes, row_bytes=row_bytes), most_bytes=batch_bytes):
                scope.governor.wait()
                out = prepared_rows(transform(piece), spec)
                if writer is None:
                    name = f"sort.{int(task.inputs['first']) + number:04d}.{part:04d}"
                    prefix = chunk_prefix(int(task.inputs["n"]), name)
                    writer = chunk_writer(spec, prepared, prefix=prefix, schema=out.schema)
                    writer.__enter__()
                for batch in out.to_batches():
                    writer.write(batch)
                batches += 1
            del rows
            if writer is not None:
                writer.__exit__(None, None, None)
                chunks += writer.chunks
            scope.progress(rows_in, max(total, rows_in), "rows")
            left, end = max(0, of_span_rows - rows_in + before), piece_span.high
            of_span = [[end, high, left]] if end < high else []
            scope.checkpoint(
                {
                    "first": int(task.inputs["first"]) + number + 1,
                    "chunks": [to_json(ref) for ref in chunks],
                    "left": [*of_span, *task.inputs["spans"][number + 1 :]],
                }
            )
    return TaskResult(
        task=task.name,
        outputs={"chunks": [to_json(ref) for ref in chunks], "left": []},
        rows_in=rows_in,
        rows_out=sum(ref.rows for ref in chunks),
        batches=batches,
    )


def _head(
    raw: Sequence[Chunk], schema: pa.Schema, spec: PipelineSpec, *, spans: Sequence[Sequence[int]]
) -> pa.Table | None:
    """Return the first rows of the spans, to hold the transform against its contract; None where there are none."""
    for low, high, _ in spans:
        span = (spec.event_time, time_of(low), time_of(high))
        paths = [chunk.path for chunk in raw if chunk.may_hold(*span)]
        for batch in read_batches(paths, columns=schema.names, schema=schema, span=span):
            return pa.Table.from_batches([batch.slice(0, _HEAD_ROWS)])
    return None


def _alike(chunks: Sequence[Chunk], schema: pa.Schema) -> bool:
    """Return whether all chunks have all columns, of the table's types: what differs needs a cast on read."""
    if not chunks or len(schema) > MOST_STREAMED_COLUMNS:
        return False
    for chunk in chunks:
        found = pq.read_schema(chunk.path)
        if any(f.name not in found.names or not same_type(found.field(f.name).type, f.type) for f in schema):
            return False
    return True


def _stream(
    chunks: Sequence[Chunk],
    schema: pa.Schema,
    task: Task,
    transform: LazyTransform,
    spec: PipelineSpec,
    span: tuple[datetime | None, datetime | None, int],
    final: Path,
) -> ChunkRef | str:
    """Write a span's rows to a chunk, or return why they are left: no order, or no types for Polars to stream."""
    import polars as pl

    if not _alike(chunks, schema):
        return "not streamed: chunks differ in their columns, or have too many"
    row_bytes = float(task.inputs["row_bytes"])
    if any(mean_row_bytes(chunk.path, schema.names) > _MOST_UNEVEN * row_bytes for chunk in chunks):
        return "not streamed: some rows are so large that a row group of as many rows as elsewhere would be too"
    ordered = in_order(chunks, time=spec.event_time, key=spec.source.key)
    if ordered is None:
        return "rows are not in order of event time and key: they are sorted"
    low, high, rows = span
    frame = pl.scan_parquet([chunk.path for chunk in ordered]).select(schema.names)
    if frame.collect_schema()[spec.event_time] != pl.Datetime("us", "UTC"):
        return f"not streamed: {spec.event_time} is not in microseconds"
    if low is not None:
        frame = frame.filter(pl.col(spec.event_time) >= low)
    if high is not None:
        frame = frame.filter(pl.col(spec.event_time) < high)
    selected = _selected(transform(frame), spec)
    if selected is None:
        return "not streamed: columns are of types that need a cast"
    names, frame = selected
    temporary = final.with_name(f".{final.name}.tmp")
    largest = max(said_largest_row(chunk.path) for chunk in chunks)
    row_bytes = max(row_bytes, sum(_width(kind) for kind in names.values()))
    try:
        frame.sink_parquet(
            temporary,
            compression=_CODEC,
            row_group_size=max(1, int(ROW_GROUP_BYTES / row_bytes)),
            metadata={"ARROW:schema": _arrow_schema(names)},
        )
        written = pq.read_metadata(temporary).num_rows
        # A plan is sure of whole hours only; where it was wrong they are counted.
        if written == rows or written == _rows_of(ordered, (spec.event_time, low, high)):
            return adopt_chunk(
                temporary,
                final,
                memory_bytes=int(written * row_bytes),
                largest_row_bytes=largest,
                bounds_of=bounds_of(spec, "prepared"),
            )
        why = "not as many rows were written as there are: they are sorted"
    except pl.exceptions.PolarsError as error:
        # The task that sorts meets the same rows batch by batch, and says exactly what is wrong with them.
        why = f"not streamed: {(str(error).splitlines() or [''])[0]}"
    temporary.unlink(missing_ok=True)
    return why


def _rows_of(chunks: Sequence[Chunk], span: Within) -> int:
    """Return how many rows chunks have in a span, by reading their times."""
    paths, time = [chunk.path for chunk in chunks], span[0]
    return sum(len(times) for times, _ in read_weighed(paths, of=[time], span=span))


def _selected(frame: pl.LazyFrame, spec: PipelineSpec) -> tuple[dict[str, pl.DataType], pl.LazyFrame] | None:
    """Return the prepared columns with the types that tables keep, or None where a type is not for streaming."""
    import polars as pl

    wanted = {KEY: spec.source.key, EVENT_TIME: spec.event_time}
    if spec.baseline is not None:
        wanted[BASELINE] = spec.baseline
    wanted |= {name: name for name in (*spec.features.numeric, *spec.features.categorical)}
    found = frame.collect_schema()
    names: dict[str, pl.DataType] = {}
    columns = []
    for name, column in wanted.items():
        kind = found.get(column)
        if kind is None:
            return None
        to: pl.DataType
        if name == BASELINE:
            to = pl.Float64()
        elif str(kind) in _WIDENED:
            to = getattr(pl, _WIDENED[str(kind)])()
        elif isinstance(kind, pl.Categorical | pl.Enum):
            to = pl.String()
        else:
            to = kind
        if str(to) not in _STREAMED and to != pl.Datetime("us", "UTC"):
            return None
        names[name] = to
        columns.append((pl.col(column) if to == kind else pl.col(column).cast(to)).alias(name))
    return names, frame.select(columns)


def _arrow_schema(names: dict[str, pl.DataType]) -> str:
    """Return how Parquet files say which Arrow types they hold: plain strings, as all our chunks have."""
    import polars as pl

    empty = pl.DataFrame(schema=names).to_arrow(compat_level=pl.CompatLevel.oldest()).schema
    fields = [f.with_type(pa.string()) if pa.types.is_large_string(f.type) else f for f in empty]
    return base64.b64encode(pa.schema(fields).serialize().to_pybytes()).decode()


def _width(kind: pl.DataType) -> int:
    import polars as pl

    if isinstance(kind, pl.String):
        return 16
    return {"Int8": 1, "Boolean": 1, "Int16": 2, "Int32": 4, "Float32": 4, "Date": 4}.get(str(kind), 8)
