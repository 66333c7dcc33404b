"""The flows: the whole loop, and its parts on their own. Each opens a session, runs stages, and returns their
reports.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from prefect import flow, get_run_logger
from prefect.events import emit_event

from engine.learning.retrain import Decision
from engine.ledger import Ledger
from engine.quarantine import replay_windows
from engine.refs import to_json
from engine.stages.extract import ExtractStage
from engine.stages.monitor import MonitorStage, last_record
from engine.stages.promote import PromoteStage, previous_champion
from engine.stages.score import ScoreStage
from engine.stages.train import TrainStage
from engine.stages.validate import ValidateStage
from engine.training.due import decide
from engine.units import format_time, parse_time
from flows.artifacts import memory_table, metrics_table
from flows.parameters import ExtractParameters, LoopParameters, ReplayParameters, RollbackParameters, RunParameters
from flows.session import Session, open_session

_TABLES: tuple[tuple[str, Literal["raw", "labels"]], ...] = (("rows", "raw"), ("labels", "labels"))
"""What is extracted, as events call it, and the table that it goes to."""


@flow(name="continuous-training", persist_result=False, retries=0)
def continuous_training(parameters: LoopParameters) -> dict[str, Any]:
    """Extract, prepare, score with the champion in use, monitor, and train, validate and promote where that is due."""
    with open_session(parameters) as session:
        session.require_fit(
            "extract", "prepare", *_with_champion(session, "score", "monitor"), *_learning(session, parameters.retrain)
        )
        _extract(session)
        session.prepare()
        session.run(ScoreStage())
        session.run(MonitorStage())
        return _finish(session, _train(session, parameters.retrain))


@flow(name="extract", persist_result=False, retries=0)
def extract(parameters: ExtractParameters) -> dict[str, Any]:
    """Extract new rows and label records, or a stretch of them again; say so with an event where there are any."""
    with open_session(parameters) as session:
        session.require_fit(*(["extract"] if parameters.what != "labels" else []))
        _extract(session, what=parameters.what, since=parameters.since, until=parameters.until)
        return _finish(session)


@flow(name="replay", persist_result=False, retries=0)
def replay(parameters: ReplayParameters) -> dict[str, Any]:
    """Read again what is in quarantine: what fits by now comes in, the rest stays there."""
    with open_session(parameters) as session:
        only = None if parameters.what == "all" else parameters.what
        windows, lost = replay_windows(session.context.workspace, table=only)
        if lost:
            get_run_logger().warning("%s quarantined rows have no cursor: they cannot be found again", lost)
        if any(window.table == "raw" for window in windows):
            session.require_fit("extract")
        for window in windows:
            _extract(session, what=window.table, since=window.since, until=window.until)
        return _finish(session)


@flow(name="train", persist_result=False, retries=0)
def train(parameters: LoopParameters) -> dict[str, Any]:
    """Prepare what was extracted; train, validate and promote where that is due."""
    with open_session(parameters) as session:
        session.require_fit("prepare", *_learning(session, parameters.retrain))
        session.prepare()
        return _finish(session, _train(session, parameters.retrain))


@flow(name="score", persist_result=False, retries=0)
def score(parameters: RunParameters) -> dict[str, Any]:
    """Extract and prepare new rows, and score them with the champion."""
    with open_session(parameters) as session:
        session.require_fit("extract", "prepare", *_with_champion(session, "score"))
        _extract(session)
        session.prepare()
        session.run(ScoreStage())
        return _finish(session)


@flow(name="monitor", persist_result=False, retries=0)
def monitor(parameters: RunParameters) -> dict[str, Any]:
    """Measure what predictions were worth, and how far new rows have drifted."""
    with open_session(parameters) as session:
        session.require_fit("prepare", *_with_champion(session, "monitor"))
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


def _with_champion(session: Session, *stages: str) -> tuple[str, ...]:
    """Return the stages where there is a champion; without one they have nothing to do."""
    return () if Ledger(session.context.workspace).champion() is None else stages


def _learning(session: Session, retrain: str) -> tuple[str, ...]:
    """Return the stages that surely come with training. Where a champion is kept unless a trigger holds, none: what no
    longer fits then must not stop scoring.
    """
    first = Ledger(session.context.workspace).champion() is None
    return ("train", "validate") if retrain == "always" or (first and retrain == "auto") else ()


def _extract(
    session: Session, *, what: str = "all", since: datetime | None = None, until: datetime | None = None
) -> None:
    context = session.context
    parts = [
        (name, ExtractStage(table, since=since and parse_time(since), until=until and parse_time(until)))
        for name, table in _TABLES
        if what in ("all", table)
    ]
    for name, stage in parts:
        count = session.run(stage).rows_out
        if count:
            emit_event(
                event=f"headrace.{name}.landed",
                resource={"prefect.resource.id": f"headrace.pipeline.{context.spec.pipeline}"},
                payload={name: count, "as_of": format_time(context.as_of)},
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
