"""The spans of a training: where each begins and ends, and what is written of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine.learning.split import Split
from tests.shop import Shop

CUTOFF = datetime(2024, 3, 31, 6, tzinfo=UTC)


def _split(directory: Path, **spans: Any) -> Split:
    spec = Shop(directory).spec
    value = {**spec.model_dump(mode="json"), "split": {"validation": "7d", "calibration": "3d", **spans}}
    return Split.of(spec.model_validate(value), CUTOFF)


def test_spans_end_at_the_cutoff_with_the_gap_before_calibration(tmp_path: Path) -> None:
    split = _split(tmp_path, gap="36h")
    assert split == Split(
        train_from=None,
        train_until=CUTOFF - timedelta(days=11, hours=12),
        calibrate_from=CUTOFF - timedelta(days=10),
        validate_from=CUTOFF - timedelta(days=7),
        cutoff=CUTOFF,
    )


def test_history_is_counted_from_the_cutoff(tmp_path: Path) -> None:
    assert _split(tmp_path, history="90d").train_from == CUTOFF - timedelta(days=90)


@pytest.mark.parametrize("spans", [{}, {"history": "90d"}])
def test_a_split_is_what_it_was_before_it_was_written_down(tmp_path: Path, spans: dict[str, str]) -> None:
    split = _split(tmp_path, **spans)
    assert Split.from_json(json.loads(json.dumps(split.to_json()))) == split
