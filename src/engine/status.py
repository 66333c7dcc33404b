"""What a pipeline's workspace holds: champion, tables, last report of each stage. Reads logs and ledger, no rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from engine.batching import Workspace
from engine.batching.runs import last_reports
from engine.layout import label_events_table, prepared_app, prepared_table
from engine.ledger import Ledger, champion_of, trained
from engine.refs import StageReport
from engine.spec import PipelineSpec


def status(spec: PipelineSpec) -> dict[str, Any]:
    """Return the state of a pipeline as a JSON-able mapping.

    ``champion`` (None before the first) has ``version`` and ``metrics``, as the gate measured them; ``tables`` has
    ``rows``, ``version`` and ``watermark`` by name, ``labels`` also ``waiting``: records whose row has not come;
    ``stages`` the four memory figures and ``seconds`` by name.
    """
    workspace = Workspace(spec.workspace)
    return {
        "pipeline": spec.pipeline,
        "workspace": str(workspace.root),
        "champion": _champion(workspace),
        "tables": _tables(workspace, spec),
        "stages": {stage: _stage(reports) for stage, reports in last_reports(workspace).items()},
    }


def _champion(workspace: Workspace) -> dict[str, Any] | None:
    history = Ledger(workspace).history()
    champion = champion_of(history)
    if champion is None:
        return None
    facts = trained(history, champion.version)
    verdict = next((e for e in history if e.action == "passed" and e.version == champion.version), None)
    measured = dict(verdict.details["candidate"]) if verdict else {}
    point = facts.details["operating_point"] if facts else {}
    return {
        "version": champion.version,
        "since": champion.as_of,
        "trained_until": facts.details["trained_until"] if facts else None,
        "bundle": facts.details["bundle"] if facts else None,
        "metrics": {**measured, "operating_point": point},
    }


def _tables(workspace: Workspace, spec: PipelineSpec) -> dict[str, dict[str, Any]]:
    tables = {
        "raw": workspace.table("raw"),
        "labels": workspace.table("labels"),
        "label_events": label_events_table(workspace, spec.feature_set),
        "prepared": prepared_table(workspace, spec.feature_set),
        **{name: workspace.table(name) for name in ("predictions", "quarantine", "metrics", "ledger", "runs")},
    }
    out: dict[str, dict[str, Any]] = {}
    for name, table in tables.items():
        out[name] = {"rows": table.rows(), "version": table.ref().version, "watermark": None}
        if name in ("raw", "labels"):
            record = workspace.journal.commit(f"extract:{name}", table.transaction(f"extract:{name}")) or {}
            position = record.get("position")
            out[name]["watermark"] = position.get("cursor") if position else None
    out["labels"]["waiting"] = _waiting(workspace, spec)  # records whose row has not come
    return out


def _waiting(workspace: Workspace, spec: PipelineSpec) -> int:
    app = prepared_app(spec.feature_set)
    n = prepared_table(workspace, spec.feature_set).transaction(app)
    record = (workspace.journal.commit(app, n) if n else None) or {}
    return int(record.get("pending_rows", 0))


def _stage(reports: tuple[StageReport, ...]) -> dict[str, Any]:
    joined = reports[0]
    for report in reports[1:]:
        joined = joined.join(report)
    return {
        **asdict(joined.memory),
        "seconds": joined.seconds,
        "rows_in": joined.rows_in,
        "rows_out": joined.rows_out,
        "as_of": joined.as_of,
        "finished_at": joined.finished_at,
    }
