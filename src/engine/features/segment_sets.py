"""Builds the segments of a slice: one set for each key that windows have. A single segment is ``segments.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from engine.features.distinct_columns import Before
from engine.features.distinct_search import distinct_column
from engine.features.keys import SortedKeys, sort_keys
from engine.features.segments import SegmentRef, build_segment, read_times
from engine.features.window_plans import SegmentPlan
from engine.features.windows import WindowReader

SEGMENT_ROWS = 1_000_000
"""At most so many rows in a segment: they are held while it is built."""


@dataclass(frozen=True)
class SortedSegment:
    """Some rows in the order of their keys, and the segment that holds these rows and no others."""

    keys: SortedKeys
    ref: SegmentRef


@dataclass(frozen=True)
class BuiltSegments:
    """Segments of some rows."""

    refs: list[SegmentRef]
    in_order: Mapping[tuple[str, ...], SortedSegment]  # by their keys, where one segment holds all rows


def build_segments(
    rows: pa.Table,
    *,
    plans: Sequence[SegmentPlan],
    time: str,
    root: Path,
    prefix: str,
    readers: Mapping[tuple[str, ...], WindowReader] | None = None,
) -> BuiltSegments:
    """Write the segments of some rows; the caller syncs their files.

    Parameters
    ----------
    rows
        With the columns of all plans, and ``time``.
    root, prefix
        Directory of segments, and how the paths under it begin.
    readers
        By key: they learn of each segment as it is built. Where distinct values are counted they have to have all
        segments of earlier rows in reach, and the rows to be in order of time.
    """
    refs, in_order = [], {}
    for index, plan in enumerate(plans):
        reader = (readers or {}).get(plan.keys)
        columns = list(dict.fromkeys([*plan.keys, time, *plan.measures, *plan.distinct]))
        for part, start in enumerate(range(0, rows.num_rows, SEGMENT_ROWS)):
            piece = rows.select(columns).slice(start, SEGMENT_ROWS)
            times = read_times(piece.column(time), name=time)
            ordered = sort_keys(piece, plan.keys, times)
            path = root / f"{prefix}-{index}-{part}.arrow"
            ref = build_segment(
                piece,
                keys=plan.keys,
                time=time,
                measures=plan.measures,
                squares=plan.squares,
                extremes=plan.extremes,
                distinct=_before(plan, reader, int(times.min())),
                path=path,
                root=root,
                in_order=ordered,
                synced=False,
            )
            refs.append(ref)
            if reader is not None:
                reader.extend([ref])
            if piece.num_rows == rows.num_rows:
                in_order[plan.keys] = SortedSegment(ordered, ref)
    return BuiltSegments(refs, in_order)


def _before(plan: SegmentPlan, reader: WindowReader | None, first: int) -> dict[str, Before]:
    """Return, by column whose distinct values are counted, what is before a segment whose first time is ``first``."""
    out = {}
    for name, reach in plan.distinct.items():
        if reader is None:
            raise ValueError(f"distinct values of {name!r} need the segments before")
        earlier = reader.before(first, reach=reach)
        out[name] = Before(reach, [distinct_column(segment, name).pairs for segment in earlier])
    return out
