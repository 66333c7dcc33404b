"""What tests of projections share: distinct primes for the parts, so that one that is left out, or doubled, shows."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from engine.batching.chunks import ROW_GROUP_BYTES
from engine.memory.budget import Budget
from engine.memory.projection import Projection
from engine.stage import StageContext
from tests.shop import Shop

MIB = 2**20
BATCH, RESERVED, ROWS, ROW_BYTES = 65_537, 104_729, 7_919, 31.0
GROUP = ROW_GROUP_BYTES
FEATURES = {
    "numeric": ["amount"],
    "categorical": ["town", "method"],
    "windows": [
        {"keys": ["customer"], "over": "events", "lengths": ["1d", "7d"], "statistics": ["count"]},
        {"keys": ["town"], "over": "labels", "lengths": ["7d"], "statistics": ["count", "rate"]},
    ],
}
COLUMNS = 1 + 2 + 2 + 2
"""Features of ``FEATURES``: numbers, categories, and the results of each window."""
_STAGES = (
    "compact",
    "extract",
    "extract.settle",
    "prepare",
    "train.cache",
    "train.fit",
    "validate",
    "score",
    "monitor",
)


def make_context(directory: Path) -> StageContext:
    """Return a shop's context, whose stages have all measured the same before any data."""
    spec = Shop(directory).spec
    spec = spec.model_validate({**spec.model_dump(mode="json"), "features": FEATURES})
    made = StageContext.of(spec, directory=directory)
    made.workspace.prepare()
    for stage in _STAGES:
        made.learned.save_reserved(stage, RESERVED)
    return with_memory(made, 512)


def with_memory(context: StageContext, mebibytes: int) -> StageContext:
    """Return the context under another budget, with batches of the same size."""
    return dataclasses.replace(context, budget=Budget(mebibytes * MIB, batch_bytes=BATCH))


def with_features(context: StageContext, **features: Any) -> StageContext:
    """Return the context with these features alone."""
    value = {**context.spec.model_dump(mode="json"), "features": features}
    return dataclasses.replace(context, spec=context.spec.model_validate(value))


def check(projection: Projection, expected: int) -> None:
    """Assert what is projected beyond *reserved*, and that no term is empty."""
    assert projection.projected_bytes == RESERVED + expected
    assert all(size > 0 for size in projection.terms.values()), projection.terms
