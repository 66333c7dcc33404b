"""Builds the segments of a slice: one set for each key that windows have. A single segment is ``segments.py``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.features.keys import SortedKeys, sort_keys
from engine.features.segments import build_segment, read_times
from engine.features.windows import SegmentPlan
from engine.refs import to_json

SEGMENT_ROWS = 500_000
"""At most so many rows in a segment: they are held while it is built."""


@dataclass(frozen=True)
class BuiltSegments:
    """Segments of some rows, and these by their keys, where one segment holds them all."""

    refs: list[dict[str, Any]]
    in_order: Mapping[tuple[str, ...], SortedKeys]


def build_segments(
    rows: pa.Table, *, plans: Sequence[SegmentPlan], time: str, root: Path, prefix: str
) -> BuiltSegments:
    """Write the segments of some rows.

    Parameters
    ----------
    rows
        With the columns of all plans, and ``time``.
    root, prefix
        Directory of segments, and how the paths under it begin.
    """
    refs, in_order = [], {}
    for index, plan in enumerate(plans):
        columns = list(dict.fromkeys([*plan.keys, time, *plan.measures]))
        for part, start in enumerate(range(0, rows.num_rows, SEGMENT_ROWS)):
            piece = rows.select(columns).slice(start, SEGMENT_ROWS)
            ordered = sort_keys(piece, plan.keys, read_times(piece.column(time), name=time))
            path = root / f"{prefix}-{index}-{part}.arrow"
            ref = build_segment(
                piece,
                keys=plan.keys,
                time=time,
                measures=plan.measures,
                squares=plan.squares,
                path=path,
                root=root,
                in_order=ordered,
            )
            refs.append(to_json(ref))
            if piece.num_rows == rows.num_rows:
                in_order[plan.keys] = ordered
    return BuiltSegments(refs, in_order)
