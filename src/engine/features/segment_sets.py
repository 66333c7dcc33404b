"""Builds the segments of a slice: one set for each key that windows have. A single segment is ``segments.py``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from engine.features.segments import build_segment
from engine.features.windows import SegmentPlan
from engine.refs import to_json

SEGMENT_ROWS = 500_000
"""At most so many rows in a segment: they are held while it is built."""


def build_segments(
    rows: pa.Table, *, plans: Sequence[SegmentPlan], time: str, root: Path, prefix: str
) -> list[dict[str, Any]]:
    """Write the segments of some rows and return their refs as JSON.

    Parameters
    ----------
    rows
        With the columns of all plans, and ``time``.
    root, prefix
        Directory of segments, and how the paths under it begin.
    """
    refs = []
    for index, plan in enumerate(plans):
        columns = list(dict.fromkeys([*plan.keys, time, *plan.measures]))
        for part, start in enumerate(range(0, rows.num_rows, SEGMENT_ROWS)):
            piece = rows.select(columns).slice(start, SEGMENT_ROWS)
            path = root / f"{prefix}-{index}-{part}.arrow"
            ref = build_segment(
                piece,
                keys=plan.keys,
                time=time,
                measures=plan.measures,
                squares=plan.squares,
                path=path,
                root=root,
            )
            refs.append(to_json(ref))
    return refs
