"""What a run leaves to read in the Prefect UI: tables of metrics and of memory, and progress on long work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext

from engine import events
from engine.refs import StageReport
from engine.units import format_bytes

_LONG_SECONDS = 5.0  # work shorter than this needs no progress bar
_EVERY_SECONDS = 2.0


def memory_table(reports: Mapping[str, StageReport]) -> None:
    """Publish the four figures of each stage."""
    rows = [
        {
            "stage": name,
            "allowed": format_bytes(report.memory.allowed_bytes),
            "reserved": format_bytes(report.memory.reserved_bytes),
            "projected": format_bytes(report.memory.projected_bytes),
            "measured": format_bytes(report.memory.measured_bytes),
            "enforced by": report.memory.enforced_by,
            "rows in": report.rows_in,
            "rows out": report.rows_out,
            "seconds": report.seconds,
        }
        for name, report in reports.items()
        if report.slices
    ]
    if rows:
        create_table_artifact(table=rows, key="memory-by-stage", description="Memory by stage, against the budget")


def metrics_table(outputs: Mapping[str, Any]) -> None:
    """Publish the candidate's metrics beside the champion's, as the gate saw them."""
    candidate, champion = outputs["candidate"], outputs["champion"] or {}
    rows = [
        {"metric": name, "candidate": _shown(candidate[name]), "champion": _shown(champion.get(name))}
        for name in ("average_precision", "roc_auc", "precision", "recall", "f1", "alert_rate", "brier", "lift")
    ]
    verdict = outputs["verdict"]
    word = "passed" if verdict["passed"] else "failed"
    reasons = "; ".join(rule["text"] for rule in verdict["reasons"])
    create_table_artifact(
        table=rows,
        key="champion-against-challenger",
        description=f"Gate **{word}** (version {outputs['version']}): {reasons}",
    )


def report_link(url: str) -> None:
    """Link the memory profiling page of a run."""
    create_link_artifact(key="memory-profile", link=url, link_text="memory profile", description="Memory over time")


class ProgressArtifact:
    """A hook that shows the progress of tasks that take long; it needs a flow run around it."""

    def __init__(self) -> None:
        self._artifact: UUID | None = None
        self._task = ""
        self._last = time.monotonic()

    def __call__(self, event: events.Event) -> None:
        """Observe one event."""
        if isinstance(event, events.TaskEnded) and self._artifact is not None and event.task == self._task:
            if event.outcome == "ok":
                update_progress_artifact(artifact_id=self._artifact, progress=100.0)
            self._artifact = None
        if not isinstance(event, events.Progress) or FlowRunContext.get() is None or event.total <= 0:
            return
        now = time.monotonic()
        if event.seconds < _LONG_SECONDS or now - self._last < _EVERY_SECONDS:
            return
        self._last = now
        share = min(100.0, 100.0 * event.done / event.total)
        if self._artifact is None or self._task != event.task:
            self._task = event.task
            text = f"{event.stage}: {event.total:,.0f} {event.what}"
            created = create_progress_artifact(progress=share, key="progress", description=text)
            self._artifact = created if isinstance(created, UUID) else None
        else:
            update_progress_artifact(artifact_id=self._artifact, progress=share)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
