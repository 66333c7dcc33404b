"""What a training takes, and the sampling rate that a budget buys.

What each learner takes it says itself (``learning/learners/``); what learned rows are is ``learning/sampling.py``.
"""

from __future__ import annotations

import math
from datetime import datetime

from engine.batching import Chunk, Workspace
from engine.batching.streams import rows_within, uneven_terms
from engine.errors import PlanRefused
from engine.features.encoders import COUNTED_CATEGORY_BYTES, MOST_CATEGORIES
from engine.features.labelled import labelled_terms
from engine.layout import EVENT_TIME, largest_row_bytes, prepared_app, prepared_table
from engine.learning.learners import learner
from engine.learning.sampling import sampling_rate_for
from engine.memory.budget import BUDGET_BATCHES, Budget
from engine.memory.projection import Projection
from engine.spec import PipelineSpec
from engine.stage import StageContext

_COPIES = 6  # of a batch of calibration rows; the rows that were learned are gone by then
_SPAN_LABEL_BYTES = 100_000 * 120
_CALIBRATION_ROW_BYTES = 104  # scores, labels, and what fitting the calibration makes of them: 98 to 101 measured
_FREE_SHARE = 0.8  # of what is free goes to the learner; the rest absorbs what its projection does not know


def sampling_rate(
    spec: PipelineSpec,
    *,
    rows: int,
    positives: int,
    available_bytes: int,
    row_share: float,
    budget: Budget,
) -> float:
    """Return the pipeline's sampling rate, or the one that the budget buys.

    Raises
    ------
    PlanRefused
        The positives and as many negatives do not fit; names the smallest budget that would do.
    """
    if spec.learner.sampling_rate is not None:
        return spec.learner.sampling_rate
    available, row_bytes = _room(spec, rows, available_bytes=available_bytes, row_share=row_share)
    if not row_bytes:
        return 1.0
    try:
        return sampling_rate_for(
            rows=rows, positives=positives, available_bytes=max(0, available), bytes_per_row=row_bytes
        )
    except PlanRefused as error:
        # Of each further byte the learner gets a share, after what larger batches take of it.
        short = int(error.details["projected_bytes"]) - available
        more = short / _FREE_SHARE / (1 - _COPIES / BUDGET_BATCHES)
        enough = -(-int(budget.allowed_bytes + more) // 2**20)
        raise PlanRefused(
            error.message,
            hint=f"set resources.memory to at least {enough}MiB, or run with --memory {enough}MiB; or shorten "
            "split.history, or use learner.kind sgd: constant memory",
            details={
                **error.details,
                "stage": "train.fit",
                "projected_bytes": int(budget.allowed_bytes + short),
                "smallest_budget_bytes": enough * 2**20,
                "terms": {**_learner_terms(spec, rows), "rows": int(error.details["projected_bytes"])},
            },
        ) from None


def most_rows_kept(context: StageContext, rows: int) -> int:
    """Return how many of so many rows a training samples at most, before their labels are known."""
    rows, chosen = most_labelled(context, rows), context.spec.learner.sampling_rate
    if chosen is not None:  # all positives, of which there are no more than label records
        expected = chosen * rows
        return min(rows, context.workspace.table("labels").rows() + math.ceil(expected + 4.0 * math.sqrt(expected)))
    share = fit_share(context)
    available, row_bytes = _room(context.spec, rows, available_bytes=fit_bytes(context), row_share=share)
    return min(rows, max(0, int(available / row_bytes))) if row_bytes else rows


def most_labelled(context: StageContext, rows: int) -> int:
    """Return how many of so many rows are learned from at most: where no label means nothing, as many as have one."""
    unlabelled = context.spec.labels.absent == "negative"
    return rows if unlabelled else min(rows, context.workspace.table("labels").rows())


def _room(spec: PipelineSpec, rows: int, *, available_bytes: int, row_share: float) -> tuple[int, float]:
    """Return what the learner leaves for rows, and what each takes: 0 where rows cost none."""
    terms = _learner_terms(spec, rows)
    others = sum(size for term, size in terms.items() if term != "rows")
    return available_bytes - others, row_share * terms["rows"] / rows if rows else 0.0


def span_rows(workspace: Workspace, feature_set: str, low: datetime | None, high: datetime) -> int:
    """Return about how many prepared rows lie in a span of event time, by the statistics of chunks and row groups."""
    return int(
        sum(
            chunk.rows if _is_within(chunk, low, high) else rows_within(chunk.path, (EVENT_TIME, low, high))
            for chunk in prepared_table(workspace, feature_set).chunks()
            if chunk.may_hold(EVENT_TIME, low, high)
        )
    )


def _is_within(chunk: Chunk, low: datetime | None, high: datetime) -> bool:
    """Return whether all rows of a chunk lie in a span."""
    return (low is None or chunk.minimum[EVENT_TIME] >= low) and bool(chunk.maximum[EVENT_TIME] < high)


def fit_bytes(context: StageContext) -> int:
    """Return what the budget leaves for the rows of a fit and all that its learner adds."""
    free = (
        context.budget.allowed_bytes
        - context.learned.reserved_bytes("train.fit")
        - sum(_shared_terms(context).values())
    )
    return int(free * _FREE_SHARE)


def _shared_terms(context: StageContext) -> dict[str, int]:
    batch = context.budget.batch_bytes
    return {
        "batches in flight": batch * _COPIES,
        "labels of one span": _SPAN_LABEL_BYTES,
        **uneven_terms(_largest_row_bytes(context), batch_bytes=batch, copies=_COPIES),
    }


def _learner_terms(spec: PipelineSpec, rows: int) -> dict[str, int]:
    """Return what the pipeline's learner takes for so many rows, by term."""
    return learner(spec.learner.kind).project(
        rows,
        features=len(spec.features.names()),
        parameters=spec.learner.parameters,
        codes=[MOST_CATEGORIES + 1] * len(spec.features.categorical),
    )


def _largest_row_bytes(context: StageContext) -> int:
    return largest_row_bytes(context.workspace, prepared_app(context.spec.feature_set))


def project_cache(context: StageContext) -> Projection:
    """Return what making the training cache takes."""
    terms = {
        **labelled_terms(context.budget.batch_bytes, largest_row_bytes=_largest_row_bytes(context)),
        "encoders and drift reference": len(context.spec.features.names()) * 2**20,
        "categories while they are counted": len(context.spec.features.categorical) * COUNTED_CATEGORY_BYTES,
    }
    return Projection(stage="train.cache", reserved_bytes=context.learned.reserved_bytes("train.cache"), terms=terms)


def project_fit(context: StageContext, rows: int, *, calibration_rows: int) -> Projection:
    """Return what fitting on so many rows takes, and calibrating on others, which comes after it."""
    terms = _learner_terms(context.spec, rows)
    first = terms["rows"] / rows if rows else 0.0
    terms["rows"] = int(rows * fit_share(context) * first)
    beyond = max(0, calibration_rows * _CALIBRATION_ROW_BYTES - sum(terms.values()))
    return Projection(
        stage="train.fit",
        reserved_bytes=context.learned.reserved_bytes("train.fit"),
        terms={**_shared_terms(context), **terms, "calibration, beyond what the fit held": beyond},
        rows=rows if first else 0,
        row_term="rows" if first else "",
        table=context.spec.pipeline,
        base_row_bytes=first,
    )


def fit_share(context: StageContext) -> float:
    """Return what a row takes in a fit in relation to what its learner projects: more where that was measured.

    Never less, so that the sampling rate, and with it the model, follows from the data and the budget alone as long as
    the projection holds.
    """
    return max(1.0, context.learned.row_bytes("train.fit", context.spec.pipeline, base=1.0, copies=1.0))
