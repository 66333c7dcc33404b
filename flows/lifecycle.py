"""The flows: the whole loop, and its parts on their own. Each opens a session, runs stages, and returns their
reports.
"""

from __future__ import annotations

from typing import Any

from prefect import flow, get_run_logger
from prefect.events import emit_event

from engine.learning.retrain import Decision
from engine.ledger import Ledger
from engine.refs import to_json
from engine.stages.extract import ExtractStage
from engine.stages.monitor import MonitorStage, last_record
from engine.stages.promote import PromoteStage, previous_champion
from engine.stages.score import ScoreStage
from engine.stages.train import TrainStage, decide
from engine.stages.validate import ValidateStage
from engine.units import format_time
from flows.artifacts import memory_table, metrics_table
from flows.parameters import LoopParameters, RollbackParameters, RunParameters
from flows.session import Session, open_session


@flow(name="continuous-training", persist_result=False, retries=0)
def continuous_training(parameters: LoopParameters) -> dict[str, Any]:
    """Extract, prepare, score with the champion in use, monitor, and train, validate and promote where that is due."""
    with open_session(parameters) as session:
        _extract(session)
        session.prepare()
        session.run(ScoreStage())
        session.run(MonitorStage())
        return _finish(session, _train(session, parameters.retrain))


@flow(name="extract", persist_result=False, retries=0)
def extract(parameters: RunParameters) -> dict[str, Any]:
    """Extract new rows and label records, and say so with an event where there are any."""
    with open_session(parameters) as session:
        _extract(session)
        return _finish(session)


@flow(name="train", persist_result=False, retries=0)
def train(parameters: LoopParameters) -> dict[str, Any]:
    """Prepare what was extracted; train, validate and promote where that is due."""
    with open_session(parameters) as session:
        session.prepare()
        return _finish(session, _train(session, parameters.retrain))


@flow(name="score", persist_result=False, retries=0)
def score(parameters: RunParameters) -> dict[str, Any]:
    """Extract and prepare new rows, and score them with the champion."""
    with open_session(parameters) as session:
        _extract(session)
        session.prepare()
        session.run(ScoreStage())
        return _finish(session)


@flow(name="monitor", persist_result=False, retries=0)
def monitor(parameters: RunParameters) -> dict[str, Any]:
    """Measure what predictions were worth, and how far new rows have drifted."""
    with open_session(parameters) as session:
        session.prepare()
        session.run(MonitorStage())
        return _finish(session)


@flow(name="rollback", persist_result=False, retries=0)
def rollback(parameters: RollbackParameters) -> dict[str, Any]:
    """Make an earlier champion the champion again."""
    with open_session(parameters) as session:
        version = previous_champion(session.context) if parameters.version is None else parameters.version
        session.run(PromoteStage(rollback_to=version, reason=parameters.reason))
        return _finish(session)


def _extract(session: Session) -> None:
    context = session.context
    rows = session.run(ExtractStage("raw")).rows_out
    labels = session.run(ExtractStage("labels")).rows_out
    for what, count in (("rows", rows), ("labels", labels)):
        if count:
            emit_event(
                event=f"headrace.{what}.landed",
                resource={"prefect.resource.id": f"headrace.pipeline.{context.spec.pipeline}"},
                payload={what: count, "as_of": format_time(context.as_of)},
            )


def _train(session: Session, retrain: str) -> Decision:
    record = last_record(session.context) or {}
    decision = decide(session.context, drift=record.get("drift", {}))
    if retrain == "never":
        decision = Decision(False, (), ("retraining was switched off for this run",))
    elif retrain == "always":
        decision = Decision(True, (*decision.reasons, "asked for"))
    get_run_logger().info("%s: %s", "retrain" if decision.retrain else "keep", decision.text)
    session.run(TrainStage(reasons=decision.reasons))
    verdict = session.run(ValidateStage())
    if verdict.slices:
        metrics_table(verdict.outputs)
    session.run(PromoteStage())
    return decision


def _finish(session: Session, decision: Decision | None = None) -> dict[str, Any]:
    memory_table(session.reports)
    champion = Ledger(session.context.workspace).champion()
    return {
        "pipeline": session.context.spec.pipeline,
        "as_of": format_time(session.context.as_of),
        "stages": {name: to_json(report) for name, report in session.reports.items()},
        "decision": None if decision is None else decision.to_json(),
        "champion": 0 if champion is None else champion.version,
    }
