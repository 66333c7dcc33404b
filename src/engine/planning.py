"""The plan of a whole pipeline before it runs: what each kind of task would take, and what it took last time.

Reads metadata only. Each stage says itself what it takes (``forecast`` in ``stages/``). A run refuses the same before
it reads a row, and checks each task once its rows are counted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from engine.batching.runs import last_reports
from engine.errors import HeadraceError, PlanRefused, from_json
from engine.memory.disk import refuse_memory, require_room
from engine.memory.groups import enforcement
from engine.memory.tickets import require_memory, tickets_mib
from engine.stage import Forecast, StageContext
from engine.stages import extract, monitor, prepare, score, train, validate

_STAGES: Mapping[str, Callable[[StageContext], Sequence[Forecast]]] = {
    "extract": extract.forecast,
    "prepare": prepare.forecast,
    "train": train.forecast,
    "validate": validate.forecast,
    "score": score.forecast,
    "monitor": monitor.forecast,
}


def plan(context: StageContext) -> dict[str, Any]:
    """Return the plan of the context's pipeline under its budget, as a JSON-able mapping.

    ``stages`` lists one entry for each kind of task: ``stage``, the four figures in bytes (``measured_bytes`` and
    ``seconds`` of the stage's last run, None before it), ``terms`` by name, ``rows``, ``row_bytes`` (of a row that is
    held at once, as learned; None where none is), ``batch_bytes``, ``batch_rows``, ``disk_bytes``, ``sampling_rate``,
    ``fits``, and, where it does not fit, ``error`` with what would do. ``smallest_budget_bytes``, of a task and of all,
    is None where the budget does. ``error`` of the whole says that the host has less than the budget.

    Raises
    ------
    WorkspaceError
        The workspace would be memory.
    SourceError
        Nothing was extracted yet, and the source cannot be reached for its columns.
    """
    refuse_memory(context.workspace.root)
    reports = last_reports(context.workspace)
    stages = []
    for name in _STAGES:
        past = reports.get(name, ())
        last = {
            "measured_bytes": max((report.memory.measured_bytes for report in past), default=None),
            "seconds": round(sum(report.seconds for report in past), 1) if past else None,
        }
        stages += [{**entry, **last} for entry in _entries(name, context)]
    refusal = _refusal(lambda: require_memory(-(-context.budget.allowed_bytes // 2**20), total_mib=tickets_mib()))
    smallest = [stage["smallest_budget_bytes"] for stage in stages if not stage["fits"]]
    return {
        "pipeline": context.spec.pipeline,
        "allowed_bytes": context.budget.allowed_bytes,
        "disk_bytes": context.budget.disk_bytes,
        "threads": context.budget.threads,
        "enforced_by": enforcement(),
        "fits": refusal is None and all(stage["fits"] for stage in stages),
        "smallest_budget_bytes": max((size for size in smallest if size), default=None),
        "error": None if refusal is None else refusal.to_json(),
        "stages": stages,
    }


def require_fit(context: StageContext, *, stages: Collection[str]) -> None:
    """Do nothing where the tasks of these stages fit the budget, as ``plan`` has them.

    Before a run reads a row: what is refused only once the stages before it have run has cost their time.

    Raises
    ------
    PlanRefused
        That of the first task which does not fit; its hint names what would do for all of them.
    """
    refused = [entry for name in _STAGES if name in stages for entry in _entries(name, context) if not entry["fits"]]
    if not refused:
        return
    first, smallest = from_json(refused[0]["error"]), [entry["smallest_budget_bytes"] or 0 for entry in refused]
    if max(smallest) > smallest[0] > 0:
        enough = max(smallest) // 2**20
        first.hint = f"set resources.memory to at least {enough}MiB, or run with --memory {enough}MiB"
    raise first


def _entries(name: str, context: StageContext) -> list[dict[str, Any]]:
    """Return what the tasks of a stage would take, with smaller batches where only those are too large."""
    try:
        found = _STAGES[name](context)
        fitting = context.with_batches_that_fit([one.projection for one in found])
        return [_entry(one, fitting) for one in (found if fitting is context else _STAGES[name](fitting))]
    except PlanRefused as error:
        return [_refused(name, error, context)]


def _entry(forecast: Forecast, context: StageContext) -> dict[str, Any]:
    projection, budget, scratch = forecast.projection, context.budget, context.workspace.scratch
    over = _refusal(lambda: projection.check(budget))
    refusal = over or _refusal(
        lambda: require_room(scratch, forecast.disk_bytes, budget.disk_bytes, what=forecast.on_disk)
    )
    row_bytes = _row_bytes(context)
    return {
        "stage": projection.stage,
        "allowed_bytes": budget.allowed_bytes,
        "reserved_bytes": projection.reserved_bytes,
        "projected_bytes": projection.projected_bytes,
        "terms": dict(projection.terms),
        "worst_term": projection.worst_term[0],
        "smallest_budget_bytes": None if over is None else projection.smallest_budget_bytes(budget),
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


def _refusal(check: Callable[[], None]) -> HeadraceError | None:
    """Return what a check refuses with, None where it passes."""
    try:
        check()
    except PlanRefused as error:
        return error
    return None


def _refused(name: str, error: PlanRefused, context: StageContext) -> dict[str, Any]:
    """Return the entry of a stage that cannot even be laid out under the budget."""
    task = error.details.get("stage", name)
    return {
        "stage": task,
        "allowed_bytes": context.budget.allowed_bytes,
        "reserved_bytes": context.learned.reserved_bytes(task),
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
