"""The plan of a whole pipeline before it runs: what each kind of task would take, and what it took last time.

Reads metadata only. Each stage says itself what it takes (``forecast`` in ``stages/``); a run checks the same
projections, task by task, before it reads a row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from engine.batching.runs import last_reports
from engine.errors import HeadraceError, PlanRefused
from engine.memory.groups import enforcement
from engine.stage import Forecast, StageContext
from engine.stages import extract, monitor, prepare, score, train, validate

_STAGES: tuple[tuple[str, Callable[[StageContext], Sequence[Forecast]]], ...] = (
    ("extract", extract.forecast),
    ("prepare", prepare.forecast),
    ("train", train.forecast),
    ("validate", validate.forecast),
    ("score", score.forecast),
    ("monitor", monitor.forecast),
)


def plan(context: StageContext) -> dict[str, Any]:
    """Return the plan of the context's pipeline under its budget, as a JSON-able mapping.

    ``stages`` lists one entry for each kind of task: ``stage``, the four figures in bytes (``measured_bytes`` and
    ``seconds`` of the last run, None before it), ``terms`` by name, ``rows``, ``row_bytes`` (of a row that is held at
    once, as learned; None where none is), ``batch_bytes``, ``batch_rows``, ``disk_bytes``, ``sampling_rate``, ``fits``,
    and, where it does not fit, ``error`` with what would do.
    """
    reports = last_reports(context.workspace)
    stages = []
    for name, forecast in _STAGES:
        past = reports.get(name, ())
        seconds = round(sum(report.seconds for report in past), 1) if past else None
        measured = max((report.memory.measured_bytes for report in past), default=None)
        try:
            found = forecast(context)
        except PlanRefused as error:
            stages.append({**_refused(name, error, context), "measured_bytes": measured, "seconds": seconds})
            continue
        stages += [{**_entry(one, context), "measured_bytes": measured, "seconds": seconds} for one in found]
    return {
        "pipeline": context.spec.pipeline,
        "allowed_bytes": context.budget.allowed_bytes,
        "disk_bytes": context.budget.disk_bytes,
        "threads": context.budget.threads,
        "enforced_by": enforcement(),
        "fits": all(stage["fits"] for stage in stages),
        "smallest_budget_bytes": max(stage["smallest_budget_bytes"] or 0 for stage in stages),
        "stages": stages,
    }


def _entry(forecast: Forecast, context: StageContext) -> dict[str, Any]:
    projection, budget = forecast.projection, context.budget
    refusal: HeadraceError | None = None
    try:
        projection.check(budget)
    except PlanRefused as error:
        refusal = error
    row_bytes = _row_bytes(context)
    return {
        "stage": projection.stage,
        "allowed_bytes": budget.allowed_bytes,
        "reserved_bytes": projection.reserved_bytes,
        "projected_bytes": projection.projected_bytes,
        "terms": dict(projection.terms),
        "worst_term": projection.worst_term[0],
        "smallest_budget_bytes": projection.smallest_budget_bytes(budget),
        "largest_batch_bytes": projection.largest_batch_bytes(budget),
        "rows": forecast.rows,
        "row_bytes": round(projection.row_bytes, 1) or None,
        "batch_bytes": budget.batch_bytes,
        "batch_rows": max(1, int(budget.batch_bytes / row_bytes)) if row_bytes else None,
        "disk_bytes": forecast.disk_bytes,
        "sampling_rate": forecast.sampling_rate,
        "fits": refusal is None,
        "error": None if refusal is None else refusal.to_json(),
    }


def _refused(name: str, error: PlanRefused, context: StageContext) -> Mapping[str, Any]:
    """Return the entry of a stage that cannot even be laid out under the budget."""
    return {
        "stage": name,
        "allowed_bytes": context.budget.allowed_bytes,
        "reserved_bytes": context.learned.reserved_bytes(name),
        "projected_bytes": error.details.get("projected_bytes"),
        "terms": error.details.get("terms", {}),
        "worst_term": error.details.get("worst_term"),
        "smallest_budget_bytes": error.details.get("smallest_budget_bytes"),
        "largest_batch_bytes": 0,
        "rows": None,
        "row_bytes": None,
        "batch_bytes": context.budget.batch_bytes,
        "batch_rows": None,
        "disk_bytes": 0,
        "sampling_rate": None,
        "fits": False,
        "error": error.to_json(),
    }


def _row_bytes(context: StageContext) -> float | None:
    """Return the bytes of a row of ``raw`` in memory, as its last commit had them."""
    raw = context.workspace.table("raw")
    n = raw.transaction("extract:raw")
    record = (context.workspace.journal.commit("extract:raw", n) if n else None) or {}
    return record["memory_bytes"] / record["rows"] if record.get("rows") else None
