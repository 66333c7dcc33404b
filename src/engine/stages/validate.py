"""Validate: candidate and champion on the same rows, which neither has seen, and the gate's verdict with its reasons.

The rules themselves are ``learning/gate.py``; what follows from a verdict is ``promote.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.batching import Table, Workspace
from engine.batching.chunks import fixed_width
from engine.batching.frames import to_arrow
from engine.bundle import Bundle, expected_bytes, loaded_bytes
from engine.errors import LearningError
from engine.features.labelled import LabelView, labelled_rows, labelled_terms
from engine.layout import (
    BASELINE,
    EVENT_TIME,
    KEY,
    LABEL,
    key_bytes,
    label_events_table,
    largest_row_bytes,
    prepared_app,
    prepared_table,
)
from engine.learning.bootstrap import paired_bootstrap
from engine.learning.gate import judge
from engine.learning.learners import LIBRARIES
from engine.learning.metrics import metrics
from engine.ledger import Entry, Ledger, champion_of, last_trained, trained
from engine.memory.projection import Projection
from engine.memory.scope import Scope
from engine.refs import Task, TaskResult
from engine.registry import ModelRegistry
from engine.stage import ChildContext, Forecast, Outcome, Plan, StageContext
from engine.training.footprints import span_rows
from engine.units import format_time, parse_time

if TYPE_CHECKING:
    import polars as pl

_SCORED_ROW_BYTES = 2 * 8 + 1  # two scores and a label, keys aside
_BOOTSTRAP_ROW_BYTES = 60  # once no row is read any more
_VIEW_BYTES = 32  # of a text beside its letters, while rows are paired: 308 bytes a row measured with keys of 7 letters
_JOINED_ROW_BYTES = 200  # of rows of two feature sets, keys of 8 bytes: 170 measured


@dataclass(frozen=True)
class ValidateStage:
    """The validation of the newest candidate."""

    name: str = "validate"

    def app(self, context: StageContext) -> str:
        """Return the application id of the ledger's verdicts."""
        del context
        return "validate"

    def primary(self, context: StageContext) -> Table:
        """Return the ledger."""
        return context.workspace.table("ledger")

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the newest candidate and the champion, or None when the candidate has its verdict."""
        history = Ledger(context.workspace).history()
        candidate = last_trained(history)
        judged = {entry.version for entry in history if entry.action in ("passed", "failed")}
        if candidate is None or candidate.version in judged:
            return None
        champion = champion_of(history)
        facts = trained(history, champion.version) if champion else None
        return {
            "candidate": _model(candidate),
            "champion": _model(facts) if facts else None,
            "split": candidate.details["split"],
            "prepared_n": {
                feature_set: prepared_table(context.workspace, feature_set).transaction(prepared_app(feature_set))
                for feature_set in {e.details["feature_set"] for e in (candidate, facts) if e is not None}
            },
            "rows": _expected_rows(context.workspace, candidate),
        }

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the one task that scores the validation rows with both models."""
        if done:
            return ()
        kinds = {model["learner"] for model in (plan.bounds["candidate"], plan.bounds["champion"]) if model}
        libraries = ["polars", *(library for kind in sorted(kinds) for library in LIBRARIES[kind])]
        gate = context.spec.gate.model_dump(mode="json")
        inputs = {**plan.bounds, "n": plan.n, "gate": gate, "imports": libraries}
        task = Task(self.name, f"validate.{plan.n}", "engine.stages.validate:run", inputs)
        models = [model for model in (plan.bounds["candidate"], plan.bounds["champion"]) if model]
        models_bytes = sum(loaded_bytes(context.workspace.root / model["bundle"]) for model in models)
        joined = len({model["feature_set"] for model in models}) > 1
        projection = _project(context, int(plan.bounds["rows"]), models_bytes=models_bytes, joined=joined)
        return ((task, projection),)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Log the metrics with the model, mark a challenger, enter the verdict in the ledger."""
        outputs = done[0][0].outputs
        version = int(plan.bounds["candidate"]["version"])
        passed = bool(outputs["verdict"]["passed"])

        def publish() -> None:
            registry = ModelRegistry(context.workspace.root, name=context.spec.pipeline)
            known = {name: float(value) for name, value in outputs["candidate"].items() if value is not None}
            registry.log_metrics(version, known, step=plan.n)
            if passed:
                registry.set_alias("challenger", version)
            entry = Entry(
                app=plan.app,
                n=plan.n,
                as_of=format_time(plan.as_of),
                action="passed" if passed else "failed",
                version=version,
                previous=int(plan.bounds["champion"]["version"]) if plan.bounds["champion"] else 0,
                reasons=_reasons(outputs["verdict"]["reasons"]),
                details={"candidate": outputs["candidate"], "champion": outputs["champion"], "gain": outputs["gain"]},
            )
            Ledger(context.workspace).enter(entry)

        return Outcome(outputs={"version": version, "passed": passed, **outputs}, record={}, publish=publish)


def forecast(context: StageContext) -> list[Forecast]:
    """Return what judging a candidate trained now takes: as many rows as the validation span holds."""
    workspace, spec = context.workspace, context.spec
    chunks = prepared_table(workspace, spec.feature_set).chunks()
    newest = max((chunk.maximum[EVENT_TIME] for chunk in chunks), default=None)
    high = context.as_of if newest is None else min(context.as_of, newest)
    rows = span_rows(workspace, spec.feature_set, high - spec.split.validation, high) + 1
    history = Ledger(workspace).history()
    champion = champion_of(history)
    facts = trained(history, champion.version) if champion else None
    joined = facts is not None and facts.details["feature_set"] != spec.feature_set
    return [Forecast(_project(context, rows, models_bytes=2 * expected_bytes(workspace), joined=joined), rows)]


def _project(context: StageContext, rows: int, *, models_bytes: int, joined: bool) -> Projection:
    """Return what judging takes; ``joined`` where the models are of two feature sets, and their rows are paired."""
    key = int(key_bytes(context.workspace))
    schema = prepared_table(context.workspace, context.spec.feature_set).schema()
    views = 0 if schema is None or fixed_width(schema.field(KEY).type) is not None else _VIEW_BYTES
    judging = rows * (_JOINED_ROW_BYTES + 4 * (key + views - 8) if joined else _BOOTSTRAP_ROW_BYTES)
    largest = largest_row_bytes(context.workspace, prepared_app(context.spec.feature_set))
    reading = labelled_terms(context.budget.batch_bytes, largest_row_bytes=largest)
    terms = {
        **reading,
        "models": models_bytes,
        "scores of both models": rows * (_SCORED_ROW_BYTES + 2 * key),
        "bootstrap, beyond what reading held": max(0, judging - sum(reading.values())),
    }
    return Projection(stage="validate", reserved_bytes=context.learned.reserved_bytes("validate"), terms=terms)


def _reasons(rules: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """Return what the rules say; that scoring fits is left out, since it names the budget, which is not content."""
    return tuple(rule["text"] for rule in rules if rule["name"] != "scoring memory" or not rule["passed"])


def _model(entry: Entry) -> dict[str, Any]:
    return {
        "version": entry.version,
        **{k: entry.details[k] for k in ("bundle", "feature_set", "threshold", "learner")},
    }


def _expected_rows(workspace: Workspace, candidate: Entry) -> int:
    low = parse_time(candidate.details["split"]["validate_from"])
    high = parse_time(candidate.details["split"]["cutoff"])
    return span_rows(workspace, candidate.details["feature_set"], low, high) + 1


def run(task: Task, scope: Scope) -> TaskResult:
    """Score the validation rows with both models and judge (in the cage)."""
    context = ChildContext.of(scope.context)
    inputs, gate = task.inputs, context.spec.gate
    mine = _scores(context, inputs, inputs["candidate"], scope)
    if not len(mine.labels) or not mine.labels.any():
        split = inputs["split"]
        raise LearningError(
            f"{len(mine.labels):,} labelled rows, none of them positive, between {split['validate_from']} and "
            f"{split['cutoff']}: the candidate cannot be judged",
            hint="make split.validation longer, or wait for labels",
        )
    found = metrics(mine.scores, mine.labels, threshold=float(inputs["candidate"]["threshold"]))
    other: _Scored | None = None
    threshold = float("inf")
    if inputs["champion"] is not None:
        other = _scores(context, inputs, inputs["champion"], scope)
        threshold = float(inputs["champion"]["threshold"])
    elif context.spec.baseline is not None:
        other = mine.baseline()
    theirs = gain = None
    if other is not None:
        mine, other = _paired(mine, other)
        theirs = metrics(other.scores, other.labels, threshold=threshold)
        gain = paired_bootstrap(
            mine.labels,
            mine.scores,
            other.scores,
            bootstraps=gate.bootstraps,
            confidence=gate.confidence,
            seed=context.spec.learner.seed,
        )
    verdict = judge(
        gate,
        challenger=found.to_json(),
        champion=None if theirs is None else theirs.to_json(),
        gain=gain,
        scoring_bytes=loaded_bytes(context.workspace.root / inputs["candidate"]["bundle"])
        + sum(labelled_terms(scope.budget.batch_bytes).values()),
        allowed_bytes=scope.budget.allowed_bytes,
    )
    return TaskResult(
        task=task.name,
        outputs={
            "candidate": found.to_json(),
            "champion": None if theirs is None else theirs.to_json(),
            "gain": None if gain is None else gain.to_json(),
            "verdict": verdict.to_json(),
        },
        rows_in=len(mine.labels),
        rows_out=len(mine.labels),
        batches=mine.batches,
    )


@dataclass(frozen=True)
class _Scored:
    """Scores and labels of the validation rows, by key, (rows,) each."""

    keys: pa.ChunkedArray
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.uint8]
    baselines: npt.NDArray[np.float64] | None
    batches: int

    def baseline(self) -> _Scored | None:
        if self.baselines is None:
            return None
        return _Scored(self.keys, np.nan_to_num(self.baselines, nan=-np.inf), self.labels, None, self.batches)


def _scores(context: ChildContext, inputs: Mapping[str, Any], model: Mapping[str, Any], scope: Scope) -> _Scored:
    bundle = Bundle.load(context.workspace.root / model["bundle"])
    keys: list[pa.Table] = []
    scores, labels, baselines = [np.empty(0)], [np.empty(0, dtype=np.uint8)], [np.empty(0)]
    extra = [BASELINE] if context.spec.baseline is not None else []
    batches = 0
    for frame in _rows(context, inputs, model, [*bundle.features, *extra], scope):
        scope.governor.wait()
        table = to_arrow(frame)
        # A copy: what shares memory with a batch keeps all of its columns.
        keys.append(table.select([KEY]).take(pa.array(np.arange(table.num_rows))))
        scores.append(bundle.score(table))
        labels.append(frame[LABEL].to_numpy().astype(np.uint8))
        if extra:
            baselines.append(frame[BASELINE].to_numpy().astype(np.float64))
        batches += 1
        scope.batch_done(frame.height, int(frame.estimated_size()))
    column = pa.concat_tables(keys).column(KEY) if keys else pa.chunked_array([], type=pa.int64())
    merged = np.concatenate(baselines) if extra else None
    return _Scored(column, np.concatenate(scores), np.concatenate(labels), merged, batches)


def _paired(mine: _Scored, other: _Scored) -> tuple[_Scored, _Scored]:
    """Return both on the rows that both have, in the candidate's order.

    Of one feature set they are the same rows in the same order: nothing is joined then, which takes 150 bytes a row.
    """
    import polars as pl

    if mine.keys.equals(other.keys):
        return mine, other

    left = pl.DataFrame({"key": pl.Series(mine.keys), "i": np.arange(len(mine.scores))})
    right = pl.DataFrame({"key": pl.Series(other.keys), "j": np.arange(len(other.scores))})
    both = left.join(right, on="key", how="inner", maintain_order="left")
    i, j = both["i"].to_numpy(), both["j"].to_numpy()
    return (
        _Scored(mine.keys.take(pa.array(i)), mine.scores[i], mine.labels[i], None, mine.batches),
        _Scored(other.keys.take(pa.array(j)), other.scores[j], other.labels[j], None, other.batches),
    )


def _rows(
    context: ChildContext,
    inputs: Mapping[str, Any],
    model: Mapping[str, Any],
    columns: Sequence[str],
    scope: Scope,
) -> Iterator[pl.DataFrame]:
    workspace, feature_set = context.workspace, model["feature_set"]
    prepared = prepared_table(workspace, feature_set)
    schema = prepared.schema()
    if schema is None:
        return
    n = int(inputs["prepared_n"][feature_set])
    labels = LabelView(
        chunks=label_events_table(workspace, feature_set).chunks(newest_n=n),
        known_by=parse_time(inputs["split"]["cutoff"]),
        absent=context.spec.labels.absent,
        delay=context.spec.labels.delay,
    )
    yield from labelled_rows(
        prepared.chunks(newest_n=n),
        labels,
        columns=columns,
        schema=schema,
        low=parse_time(inputs["split"]["validate_from"]),
        high=parse_time(inputs["split"]["cutoff"]),
        governor=scope.governor,
    )
