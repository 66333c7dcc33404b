"""Keeping tables quick to open: compacts those with many small chunks, after the stages that wrote them.

What may be merged is ``stages/compact.py``; deleting what is no longer needed is ``vacuum.py``.
"""

from __future__ import annotations

from engine.refs import StageReport
from engine.stage import Execute, StageContext, in_a_loop, run_stage
from engine.stages.compact import COMPACTED, DUE, CompactStage
from engine.units import format_time


def compact_tables(context: StageContext, *, least: int = DUE, execute: Execute = in_a_loop) -> StageReport:
    """Compact each table in which at least ``least`` chunks would go, and return the sum; the caller holds the lock.

    Where nothing is due this opens each table once and starts no process.

    Raises
    ------
    HeadraceError
        Any of our tree; every table is as it was or compacted, and the next call resumes.
    """
    total = StageReport(stage="compact", n=0, as_of=format_time(context.as_of))
    for table in COMPACTED:
        stage = CompactStage(table, least=least)
        if stage.is_due(context):
            total = total.join(run_stage(stage, context, execute=execute))
    return total
