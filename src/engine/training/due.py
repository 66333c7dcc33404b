"""Whether a pipeline is due to be trained again, and up to when: what the tables and the ledger say of it.

The rules are ``learning/retrain.py``; drift is measured by ``stages/monitor.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

from engine.layout import EVENT_TIME, prepared_table
from engine.learning.retrain import ChampionFacts, Decision, learner_hash, should_retrain
from engine.ledger import Ledger, champion_of, last_trained, trained
from engine.stage import StageContext
from engine.units import parse_time
from engine.usercode import transform_code


def cutoff(context: StageContext) -> datetime:
    """Return the training cut-off: the run's clock, or the newest event where rows have stopped coming before it."""
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    newest = [chunk.maximum[EVENT_TIME] for chunk in chunks]
    return min(context.as_of, max(newest)) if newest else context.as_of


def decide(context: StageContext, *, drift: Mapping[str, float | None]) -> Decision:
    """Return whether the context's pipeline is due to be trained again, from tables and ledger alone.

    Parameters
    ----------
    drift
        Population stability index by feature, as monitor saw it last.
    """
    workspace, spec = context.workspace, context.spec
    history = Ledger(workspace).history()
    champion = champion_of(history)
    facts = trained(history, champion.version) if champion else None
    last = last_trained(history)
    champion_facts = None
    if facts is not None and last is not None:
        # What was tried last counts, also when the gate kept the champion: else every run would try again.
        details = last.details
        champion_facts = ChampionFacts(
            version=facts.version,
            trained_until=parse_time(details["trained_until"]),
            rows=int(details["raw_rows"]),
            labels=int(details["label_rows"]),
            feature_set=details["feature_set"],
            learner=details["learner_hash"],
            code=details.get("transform_code"),
        )
    return should_retrain(
        spec.triggers,
        champion=champion_facts,
        now=cutoff(context),
        rows=workspace.table("raw").rows(),
        labels=workspace.table("labels").rows(),
        drift=drift,
        feature_set=spec.feature_set,
        learner=learner_hash(spec),
        code=transform_code(spec.features.transform, directory=context.directory) or None,
    )
