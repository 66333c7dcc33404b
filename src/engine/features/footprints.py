"""What preparing holds: the projections of its tasks, and how many rows of a span a budget takes. Pure arithmetic over
figures of the workspace.

Which slices there are is planned by ``preparing/``; the tasks are in ``label_slices.py``, ``window_slices.py``
and ``row_streams.py``.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from engine.batching.chunks import ROW_GROUP_BYTES
from engine.batching.streams import uneven_terms
from engine.features.label_slices import label_window_keys
from engine.features.row_slices import search_rows
from engine.features.row_streams import STREAMED_GROUPS
from engine.features.segment_sets import SEGMENT_ROWS
from engine.features.segments import segment_build_bytes_per_row
from engine.features.tiers import FAN_IN, TIER_KEY_BYTES, TIER_PAIR_BYTES
from engine.features.window_plans import search_threads, segment_plans, window_block_bytes, window_bytes_per_row
from engine.features.window_slices import tier_keys
from engine.layout import column_bytes, key_bytes, largest_row_bytes
from engine.memory.projection import Projection
from engine.stage import StageContext

UNKNOWN_ROW_BYTES = 64.0
"""Of a raw row, before any was extracted."""

_WINDOWED_COPIES = 5  # a span as read and sorted (3), the one that is searched, the one that is written
_ALONE_SHARE = 3 / _WINDOWED_COPIES  # where a slice is one span
_GATHER_COPIES = 3  # the span as read, and key, cursor and event time while they are sorted
_SEARCH_COPIES = 6  # a batch, its transform and results
_STREAM_COPIES = 3  # of a slice that is smaller than what is in flight
_LABEL_COPIES, _WINDOW_KEY_COPIES = 6, 5  # keys come from raw: a label record is read without them
_LABEL_BYTES = 56  # a label record in memory, beside its key and its window keys
_WINDOW_KEY_BYTES = 24  # of a label record, each, beside what it holds
_ROW_COPIES = 3  # of a batch of rows that labels are looked for in: as read, for Polars, those that have one
_MADE_BYTES = 64.0  # of a value that a transform makes: nobody has seen it
_FIXED_KEY_BYTES = 17  # of a key of fixed width, at most
_TEXT_COPIES = 4  # of keys and of values that are counted, beyond those of a number: read, distinct, in order, known
_SEGMENT_ROW_BYTES = 48  # of label events while their segments are built
_UNRETURNED_BYTES = 12 * 2**20  # freed by Polars and not given back yet
_ENGINE_BYTES = 28 * 2**20  # of Polars' streaming engine
_TRANSFORM_BYTES = 16 * 2**20
_PAGE_BYTES = 2**18  # of each column
_SPAN_SHARE = 0.6  # of what is free, for one span while it is sorted
_BESIDE_SHARE = 0.9  # of what is free beside all else that is held then: little, where budgets are small
_WINDOWED_SHARE = 0.9  # of what is free beside the rows, for the spans in flight
_MOST_SPAN_ROWS = 1_000_000
_LEAST_SPAN_ROWS = 64  # with fewer, a plan of spans would be larger than what it saves: such a slice is divided
_SPANS, _BUILDING, _TIER = "spans in flight", "segment being built", "tier being made"
_RESULTS, _TEXTS = "window results", "texts of keys"
_ROW_TERMS = (_SPANS, _BUILDING, _TIER, _TEXTS, _RESULTS)
_LABELS, _LABEL_SEGMENTS = "label records", "window segments in hand"
_LABEL_TERMS = (_LABELS, _LABEL_SEGMENTS)
_MOST_LABELS, _LEAST_LABELS = 250_000, 1_000  # of one slice
_LABELS_SHARE = 0.9  # of what is free
_ROW_BYTES_COMMITS = 100


def raw_row_bytes(context: StageContext, *, through_n: int) -> float:
    """Return the bytes of a raw row in memory, from the last commits that hold any: there may be ten thousand."""
    rows = size = 0
    for looked, n in enumerate(range(through_n, 0, -1)):
        if looked >= _ROW_BYTES_COMMITS and rows:
            break
        record = context.workspace.journal.commit("extract:raw", n)
        if record and record["rows"]:
            rows, size = rows + int(record["rows"]), size + int(record["memory_bytes"])
    return size / rows if rows else UNKNOWN_ROW_BYTES


def rows_per_span(context: StageContext, row_bytes: float) -> int:
    """Return how many rows, of ``row_bytes`` in memory each, a span without windows may hold while it is sorted."""
    free = context.budget.allowed_bytes - _reserved(context)
    beside = context.budget.allowed_bytes - project_sort(context, 0, row_bytes).projected_bytes
    held = min(free * _SPAN_SHARE, beside * _BESIDE_SHARE)
    return max(1, min(_MOST_SPAN_ROWS, int(held / _sorted_row_bytes(context, row_bytes))))


def windowed_rows_per_span(context: StageContext, row_bytes: float) -> int:
    """Return how many rows, of ``row_bytes`` in memory each, a span with windows may hold."""

    def is_too_large(rows: int) -> bool:
        found = project_windows(context, rows, row_bytes)
        of_rows = sum(found.terms.get(name, 0) for name in _ROW_TERMS)
        return of_rows > _WINDOWED_SHARE * (context.budget.allowed_bytes - (found.projected_bytes - of_rows))

    if not is_too_large(_MOST_SPAN_ROWS):
        return _MOST_SPAN_ROWS
    # Blocks being searched are as large as they can be with few rows already, so this is no straight line.
    sizes = range(_LEAST_SPAN_ROWS + 1, _MOST_SPAN_ROWS)
    return _LEAST_SPAN_ROWS + bisect.bisect_left(sizes, True, key=is_too_large)


@dataclass(frozen=True)
class LabelBytes:
    """What label records take in memory, and the rows that they are looked for in."""

    key: float  # of a key, on average
    window_keys: float  # of all columns that windows over labels are keyed by, of a row
    rows: int | None  # of raw; None before any
    transformed: float | None = None  # of a row as a transform takes it; None where there is none to make such keys

    @classmethod
    def of(cls, context: StageContext) -> LabelBytes:
        """Return what the workspace's tables say."""
        raw, columns = context.workspace.table("raw"), label_window_keys(context.spec)
        held = _held_bytes(context, columns)
        made = bool(columns) and context.spec.features.transform is not None
        row = raw_row_bytes(context, through_n=raw.transaction("extract:raw")) if made else None
        return cls(key_bytes(context.workspace), sum(held[name] for name in columns), raw.rows() or None, row)

    @property
    def read_bytes(self) -> int | None:
        """What all rows of raw take, as they are read for labels: key, cursor, event time and the windows' keys, or all
        that a transform may look at.
        """
        read = self.key + 16 + self.window_keys if self.transformed is None else self.transformed
        return None if self.rows is None else int(self.rows * read)


def label_rows_per_slice(context: StageContext, held: LabelBytes) -> int:
    """Return how many label records a slice has at most: joining them holds all of them at once."""
    most = project_labels(context, _MOST_LABELS, held)
    of_rows = sum(most.terms[name] for name in _LABEL_TERMS)
    free = context.budget.allowed_bytes - (most.projected_bytes - of_rows)
    return max(_LEAST_LABELS, min(_MOST_LABELS, int(_LABELS_SHARE * free * _MOST_LABELS / of_rows)))


def project_labels(context: StageContext, rows: int, held: LabelBytes) -> Projection:
    """Return what joining a slice of so many label records takes, with the rows of ``raw`` that stream past them."""
    keys = held.window_keys + _WINDOW_KEY_BYTES * len(label_window_keys(context.spec))
    copies = _ROW_COPIES if held.transformed is None else _SEARCH_COPIES
    batches, group = copies * context.budget.batch_bytes, ROW_GROUP_BYTES
    if held.read_bytes is not None:
        batches, group = min(batches, copies * held.read_bytes), min(group, held.read_bytes)
    terms = {
        _LABELS: int(rows * ((_LABEL_BYTES + held.key) * _LABEL_COPIES + keys * _WINDOW_KEY_COPIES)),
        "batches in flight": batches,
        "row group being read": group,
        _LABEL_SEGMENTS: rows * _SEGMENT_ROW_BYTES,
        "row group being written": 2 * ROW_GROUP_BYTES,
        "freed, not yet given back": _UNRETURNED_BYTES,
        **({} if held.transformed is None else {"transform": _TRANSFORM_BYTES, **_uneven_terms(context)}),
    }
    return Projection(stage="prepare.labels", reserved_bytes=_reserved(context), terms=terms, rows=rows)


def project_windows(
    context: StageContext, rows: int, row_bytes: float, *, spans: int = 2, segments: int | None = None
) -> Projection:
    """Return what gathering, searching and writing spans of at most so many rows takes: one of each at a time.

    Parameters
    ----------
    spans
        Of the slice. A single one is gathered, searched and written one after another: what is held is what searching
        it takes, and what the others take beyond that.
    segments
        With the same keys that windows may reach at most; None: not known.
    """
    features, table = context.spec.features, context.spec.feature_set
    columns, windows = len(features.names()), features.windows
    alone = spans == 1
    base = row_bytes * (_ALONE_SHARE if alone else 1)
    held = context.learned.row_bytes("prepare.windows", table, base=base, copies=_WINDOWED_COPIES)
    plans = segment_plans(features, over="events")
    building = [
        segment_build_bytes_per_row(
            len(plan.keys),
            len(plan.measures),
            squares=len(plan.squares),
            extremes=sum(map(len, plan.extremes.values())),
            distinct=len(plan.distinct),
        )
        for plan in plans
    ]
    compared = [list(dict.fromkeys([*plan.keys, *plan.distinct])) for plan in plans]  # whose values themselves are kept
    widths = _held_bytes(context, sorted({name for names in compared for name in names}))
    beyond = {name: max(0.0, width - _FIXED_KEY_BYTES) for name, width in widths.items()}
    text = max((sum(beyond[name] for name in names) for names in compared), default=0.0)
    counted = max((len(plan.distinct) for plan in plans), default=0)
    threads = context.budget.threads if alone else search_threads(context.budget.threads)
    blocks = [window_block_bytes(window, rows=rows, threads=threads) for window in windows]
    results = rows * max((window_bytes_per_row(window) for window in windows), default=0)
    searching = results + max(blocks, default=0)
    reading = {"batches in flight": 2 * context.budget.batch_bytes, "row group being read": ROW_GROUP_BYTES}
    writing = {"row group being written": 2 * ROW_GROUP_BYTES, "page of each column": (columns + 3) * _PAGE_BYTES}
    beside = {**reading, **writing}
    if alone:
        most = max(sum(reading.values()), sum(writing.values()))
        beside = {"reading or writing, beyond what searching held": max(0, most - searching)}
    tiers = segments is None or segments >= FAN_IN
    terms = {
        _SPANS: int(rows * held),
        _BUILDING: min(rows, SEGMENT_ROWS) * max(building, default=0),
        _TIER: tier_keys(rows) * (TIER_KEY_BYTES + TIER_PAIR_BYTES * counted) if tiers else 0,
        **({_TEXTS: int(min(rows, SEGMENT_ROWS) * _TEXT_COPIES * text)} if text else {}),
        _RESULTS: results + rows * (8 if alone else 16) * columns,
        "blocks being searched": max(blocks, default=0),
        **beside,
        "transform": _TRANSFORM_BYTES,
        "freed, not yet given back": _UNRETURNED_BYTES,
        **_uneven_terms(context),
    }
    return Projection(
        stage="prepare.windows",
        reserved_bytes=_reserved(context),
        terms=terms,
        rows=rows,
        row_term=_SPANS,
        table=table,
        base_row_bytes=base,
    )


def project_stream(context: StageContext, rows: int, row_bytes: float) -> Projection:
    """Return what streaming so many rows takes that lie in order."""
    terms = {
        "row groups in flight": min(STREAMED_GROUPS * ROW_GROUP_BYTES, int(rows * row_bytes * _STREAM_COPIES)),
        "streaming engine": _ENGINE_BYTES,
        "page of each column": (len(context.spec.features.names()) + 3) * _PAGE_BYTES,
        "transform": _TRANSFORM_BYTES,
    }
    return Projection(stage="prepare.stream", reserved_bytes=_reserved(context), terms=terms)


def project_sort(context: StageContext, rows: int, row_bytes: float) -> Projection:
    """Return what sorting a piece of so many rows takes that do not lie in order, and writing them."""
    columns = len(context.spec.features.names())
    sorting = "span while it is sorted"
    terms = {
        sorting: int(rows * _sorted_row_bytes(context, row_bytes)),
        "batches in flight": context.budget.batch_bytes * _SEARCH_COPIES,
        "row group being read": ROW_GROUP_BYTES,
        "freed, not yet given back": _UNRETURNED_BYTES,
        "rows being written": search_rows(context.spec, context.budget.batch_bytes) * 8 * columns,
        "row group being written": 2 * ROW_GROUP_BYTES,
        "page of each column": (columns + 3) * _PAGE_BYTES,
        "transform": _TRANSFORM_BYTES,
        **_uneven_terms(context),
    }
    return Projection(
        stage="prepare.sort",
        reserved_bytes=_reserved(context),
        terms=terms,
        rows=rows,
        row_term=sorting,
        table=context.spec.feature_set,
        base_row_bytes=row_bytes,
    )


def _sorted_row_bytes(context: StageContext, row_bytes: float) -> float:
    """Return what sorting a span holds for each of its rows, of ``row_bytes`` in memory."""
    table = context.spec.feature_set
    return context.learned.row_bytes("prepare.sort", table, base=row_bytes, copies=_GATHER_COPIES)


def _held_bytes(context: StageContext, columns: Sequence[str]) -> dict[str, float]:
    """Return what a value of some columns takes in memory; of one that the transform makes, a text's."""
    raw = context.workspace.table("raw")
    schema = raw.schema()
    made = [] if schema is None else [name for name in columns if name not in schema.names]
    return column_bytes(raw, columns) | dict.fromkeys(made, _MADE_BYTES)


def _uneven_terms(context: StageContext) -> dict[str, int]:
    largest = largest_row_bytes(context.workspace, "extract:raw")
    return uneven_terms(largest, batch_bytes=context.budget.batch_bytes, copies=_SEARCH_COPIES)


def _reserved(context: StageContext) -> int:
    return context.learned.reserved_bytes("prepare")
