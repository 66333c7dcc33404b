"""The task of a slice with windows: spans of event time, each gathered in order, made into segments and searched.

Which spans there are is planned by ``preparing/``, by the arithmetic of ``spans.py``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa

from engine import events
from engine.batching import Chunk
from engine.batching.atomic import sync_files
from engine.batching.tables import chunk_prefix
from engine.features.open_windows import OpenWindow
from engine.features.row_slices import (
    FullerThanPlanned,
    NewestRows,
    newest_rows,
    prepared_rows,
    raw_chunks,
    time_of,
    transformed,
)
from engine.features.segment_sets import BuiltSegments, SortedSegment, build_segments
from engine.features.segments import SegmentRef
from engine.features.spans import Span
from engine.features.stretches import stretches
from engine.features.tiers import FAN_IN
from engine.features.transform import transform_of
from engine.features.window_plans import search_threads, segment_plans
from engine.features.windows import WindowReader
from engine.layout import chunk_writer, prepared_table
from engine.memory.governor import keep_freed
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.spec import PipelineSpec
from engine.stage import ChildContext

_KEPT = 32  # of the budget, the share that is kept of what was freed, to be used again
_LEAST_ROWS = 1_000  # that a span may turn out to have, however few were planned

Readers = Mapping[tuple[str, tuple[str, ...]], WindowReader]
"""By what windows are over, and their keys."""


def run(task: Task, scope: Scope) -> TaskResult:
    """Write the prepared rows of spans, the earliest first, and the segments of their events (in the cage)."""
    keep_freed(scope.budget.allowed_bytes // _KEPT)
    context = ChildContext.of(scope.context)
    with TemporaryDirectory(prefix="tiers-", dir=context.workspace.scratch) as tiers:
        return _Spans(task, scope, context, tiers=Path(tiers)).run()


def tier_keys(rows: int) -> int:
    """Return how many keys, or pairs of a key and a value, a tier may be made of where spans have so many rows: then a
    span's segment takes more.
    """
    return rows // 2


@dataclass(frozen=True)
class _Gathered:
    """A span, ready to be searched."""

    rows: pa.Table  # the newest versions in order, as the transform has them
    built: BuiltSegments
    first: OpenWindow  # of its windows
    rows_in: int
    batches: int


class _Spans:
    """The spans of one task.

    While a span is searched, the next one is read and its segments are built, and the one before is written: one of
    each is held.
    """

    def __init__(self, task: Task, scope: Scope, context: ChildContext, *, tiers: Path) -> None:
        spec, workspace = context.spec, context.workspace
        self._scope, self._spec, self._n = scope, spec, int(task.inputs["n"])
        self._spans = [Span(*span) for span in task.inputs["spans"]]
        self._most_rows = max(_LEAST_ROWS, *(span.rows for span in self._spans))
        # A few spans are projected neither beside others nor with tiers, which several parts in their place may be.
        self._part_rows = self._most_rows // (2 if len(self._spans) < FAN_IN else 1)
        self._first = int(task.inputs["first"])
        self._transform = transform_of(spec, directory=context.directory, types=task.inputs.get("row_types"))
        self._schema, self._raw = raw_chunks(context, task)
        self._readers = _readers(
            spec,
            task.inputs["segments"],
            root=workspace.segments,
            scratch=tiers,
            most_tier_keys=tier_keys(max(span.rows for span in self._spans)),
        )
        self._root = workspace.segments
        self._prepared = prepared_table(workspace, spec.feature_set)
        self._plans = segment_plans(spec.features, over="events")
        self._chunks: list[ChunkRef] = []
        self._segments: dict[str, list[dict[str, Any]]] = {}
        self._rows_in = self._batches = self._done = 0
        self._disk = ThreadPoolExecutor(1)
        self._syncing: list[Future[None]] = []

    def run(self) -> TaskResult:
        """Take the spans one after another."""
        with self._disk, ThreadPoolExecutor(1) as ahead, ThreadPoolExecutor(1) as behind:
            reading, writing = ahead.submit(self._gather, 0), behind.submit(list[ChunkRef])
            number = 0
            while number < len(self._spans):
                gathered = reading.result()
                if not isinstance(gathered, _Gathered):
                    self._spans[number : number + 1] = gathered
                    reading = ahead.submit(self._gather, number)
                    continue
                self._scope.governor.wait()
                if number + 1 < len(self._spans):
                    reading = ahead.submit(self._gather, number + 1)
                out = self._search(number, gathered)
                del gathered
                self._written(number, writing)
                writing = behind.submit(self._write, number, out)
                if out is not None:
                    self._say_progress(out.num_rows)
                    self._scope.governor.step_done()
                number += 1
            self._written(len(self._spans), writing)
            for synced in self._syncing:
                synced.result()
        return TaskResult(
            task=self._scope.task,
            outputs={"chunks": [to_json(ref) for ref in self._chunks], "segments": self._segments},
            rows_in=self._rows_in,
            rows_out=sum(ref.rows for ref in self._chunks),
            batches=self._batches,
        )

    def _written(self, number: int, writing: Future[list[ChunkRef]]) -> None:
        """Take over the chunks of the spans before one, and say that another try may begin with it.

        Not where their segments are still on their way to the disk: to wait for it would cost more than it may save.
        Nor behind the last one: a slice of no spans cannot be run.
        """
        chunks = writing.result()
        self._chunks += chunks
        if not chunks or number == len(self._spans) or not all(synced.done() for synced in self._syncing[:number]):
            return
        written = {name: refs for name, refs in self._segments.items() if name != self._prefix(number)}
        self._scope.checkpoint(
            {
                "first": self._first + number,
                "left": [[span.low, span.high, span.rows] for span in self._spans[number:]],
                "chunks": [to_json(ref) for ref in self._chunks],
                "segments": written,
            }
        )

    def _gather(self, number: int) -> _Gathered | list[Span]:
        """Return a span's rows, after their segments are built and known to the readers, and its first window open; or
        the parts that are to be gathered in its place, where it has many more rows than a span was planned to have.
        """
        spec, span = self._spec, self._spans[number]
        low, high = time_of(span.low), time_of(span.high)
        mine = [chunk for chunk in self._raw if chunk.may_hold(spec.event_time, low, high)]
        newest = self._newest_of_few(mine, span)
        if newest is None:
            columns = self._schema.names
            found = stretches(mine, columns=columns, time=spec.event_time, span=span, rows=self._part_rows)
            parts = [part for part in found if part.rows]
            if len(parts) > 1:
                return parts
            newest = newest_rows(mine, self._schema, spec, span=(low, high), rows=self._most_rows, scope=self._scope)
        rows_in, batches = newest.rows_in, newest.batches
        rows = transformed(newest, self._transform, spec, self._scope)
        del newest
        built = build_segments(
            rows,
            plans=self._plans,
            time=spec.event_time,
            root=self._root,
            prefix=f"{spec.feature_set}/events-{self._n:08d}-{self._first + number:04d}",
            readers={keys: reader for (over, keys), reader in self._readers.items() if over == "events"},
        )
        self._syncing.append(self._disk.submit(sync_files, [self._root / ref.path for ref in built.refs]))
        return _Gathered(rows, built, self._first_window(rows, built.in_order), rows_in, batches)

    def _newest_of_few(self, chunks: Sequence[Chunk], span: Span) -> NewestRows | None:
        """Return a span's rows, None where there are too many: what was read of them is gone then."""
        within, most = (time_of(span.low), time_of(span.high)), self._most_rows
        try:
            return newest_rows(chunks, self._schema, self._spec, span=within, rows=most, scope=self._scope, whole=False)
        except FullerThanPlanned:
            return None

    def _first_window(self, rows: pa.Table, in_order: Mapping[tuple[str, ...], SortedSegment]) -> OpenWindow:
        spec, window = self._spec, self._spec.features.windows[0]
        known = in_order.get(window.keys)
        return self._readers[window.over, window.keys].open(
            rows,
            keys=window.keys,
            time=spec.event_time,
            window=window,
            gap=spec.features.gap_of(window),
            in_order=None if known is None else known.keys,
            own=None if known is None or window.over != "events" else known.ref,
        )

    def _search(self, number: int, span: _Gathered) -> pa.Table | None:
        """Return a span's prepared rows, None where it has none."""
        self._rows_in, self._batches = self._rows_in + span.rows_in, self._batches + span.batches
        if not span.rows.num_rows:
            return None
        self._segments[self._prefix(number)] = [to_json(ref) for ref in span.built.refs]
        threads = self._scope.budget.threads
        return prepared_rows(
            span.rows,
            self._spec,
            self._readers,
            span.built.in_order,
            span.first,
            self._scope.governor.part_done,
            threads if number + 1 == len(self._spans) else search_threads(threads),
        )

    def _write(self, number: int, rows: pa.Table | None) -> list[ChunkRef]:
        if rows is None:
            return []

        def on_chunk(ref: ChunkRef) -> None:
            self._scope.emit(events.ChunkWritten(self._scope.stage, self._scope.task, ref.path, ref.rows, ref.bytes))

        with chunk_writer(
            self._spec, self._prepared, prefix=self._prefix(number), schema=rows.schema, on_chunk=on_chunk
        ) as writer:
            for batch in rows.to_batches():
                writer.write(batch)
        return writer.chunks

    def _prefix(self, number: int) -> str:
        return chunk_prefix(self._n, f"rows.{self._first + number:04d}")

    def _say_progress(self, rows: int) -> None:
        self._done += rows
        self._scope.progress(self._done, max(self._done, sum(span.rows for span in self._spans)), "rows")


def _readers(
    spec: PipelineSpec,
    segments: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    root: Path,
    scratch: Path,
    most_tier_keys: int,
) -> Readers:
    """Return one reader for the windows over labels, or events, with the same keys."""
    readers: dict[tuple[str, tuple[str, ...]], WindowReader] = {}
    for window in spec.features.windows:
        refs = [SegmentRef.from_json(value) for value in segments[window.over]]
        mine = [ref for ref in refs if ref.keys == window.keys]
        name = (window.over, window.keys)
        if name not in readers:
            own = scratch / str(len(readers))
            own.mkdir()
            readers[name] = WindowReader(mine, root=root, scratch=own, tier_keys=most_tier_keys)
    return readers
