"""Distinct values of windows through the prepare stage: as rows arrive, late ones too, and under small spans."""

from __future__ import annotations

import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.batching import read_batches
from engine.layout import prepared_table
from engine.preparing import windowed_rows
from engine.spec import PipelineSpec, WindowSpec
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage

START = datetime(2024, 3, 30, tzinfo=UTC)
ROWS = 400
Row = dict[str, Any]

WINDOWS = [
    {"over": "events", "keys": ["card"], "lengths": ["5h", "30h"], "statistics": ["distinct", "count"], "column": "to"},
    {"over": "events", "keys": ["card"], "lengths": ["9h"], "statistics": ["distinct", "sum"], "column": "amount"},
    {"over": "events", "keys": ["card", "town"], "lengths": ["40h"], "statistics": ["distinct"], "column": "to"}
    | {"gap": "3h", "null_keys": "exclude"},
]


def _rows(seed: int) -> list[Row]:
    """Rows of 80 hours; many share an instant."""
    pick = random.Random(seed)
    return [
        {
            "id": number,
            "at": START + timedelta(minutes=20 * pick.randrange(240)),
            "card": pick.choice(["a", "a", "a", "b", "c", None]),
            "town": pick.choice([1, 2, None]),
            "to": pick.choice(["x", "y", "z", "v", "w", str(number), None]),
            "amount": pick.choice([0.0, -0.0, 1.5, 2.5, None]),
        }
        for number in range(ROWS)
    ]


STAMP = pa.timestamp("us", tz="UTC")
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "at": STAMP,
        "card": pa.string(),
        "town": pa.int64(),
        "to": pa.string(),
        "amount": pa.float64(),
        "written": STAMP,
    }
)


def _context(home: Path) -> StageContext:
    spec = PipelineSpec.model_validate(
        {
            "pipeline": "cards",
            "workspace": str(home / "workspace"),
            "source": {"uri": str(home / "in"), "key": "id", "cursor": "written"},
            "event_time": "at",
            "labels": {"uri": str(home / "labels"), "key": "id", "value": "good", "labelled_at": "known_at"},
            "features": {"windows": WINDOWS},
        }
    )
    return StageContext.of(spec, directory=home)


def _arrive(home: Path, number: int, rows: Sequence[Row]) -> StageContext:
    """Let rows arrive in one file, and prepare them."""
    (home / "in").mkdir(exist_ok=True)
    written = [row | {"written": START + timedelta(days=100, hours=number)} for row in rows]
    pq.write_table(pa.Table.from_pylist(written, schema=SCHEMA), home / "in" / f"{number:03d}.parquet")
    context = _context(home)  # its clock is later than the file
    run_stage(ExtractStage("raw"), context)
    run_stage(PrepareStage(), context)
    return context


def _prepared(context: StageContext) -> dict[int, Row]:
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    found = [row for batch in read_batches([chunk.path for chunk in chunks]) for row in batch.to_pylist()]
    assert len({row["key"] for row in found}) == len(found)
    return {row["key"]: row for row in found}


def _distinct(rows: Sequence[Row], row: Row, window: WindowSpec, length: timedelta, gap: timedelta) -> int:
    """The definition."""
    key, near = [row[name] for name in window.keys], row["at"] - gap
    if window.null_keys == "exclude" and None in key:
        return 0
    inside = [
        other[str(window.column)]
        for other in rows
        if [other[name] for name in window.keys] == key
        and near - length < other["at"]
        and (other["at"] <= near if gap else other["at"] < near)
    ]
    return len({value for value in inside if value is not None})


def _check(context: StageContext, rows: Sequence[Row]) -> None:
    found, features = _prepared(context), context.spec.features
    assert len(found) == len(rows)
    for row in rows:
        for window in features.windows:
            for length, statistic, name in window.names():
                if statistic == "distinct":
                    wanted = _distinct(rows, row, window, length, features.gap_of(window))
                    assert found[row["id"]][name] == wanted, (row, name)


def _schedule(rows: Sequence[Row], name: str, pick: random.Random) -> list[list[Row]]:
    """Return which rows arrive together."""
    quarter = [int((row["at"] - START) / timedelta(hours=20)) for row in rows]
    if name == "backwards":
        quarter = [3 - number for number in quarter]
    elif name == "shuffled":
        quarter = [pick.randrange(4) for _ in rows]
    elif name == "some late":
        quarter = [number if pick.random() < 0.95 else pick.randrange(number, 5) for number in quarter]
    return [[row for row, number in zip(rows, quarter, strict=True) if number == n] for n in range(max(quarter) + 1)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["at once", "backwards", "shuffled", "some late"])
def test_rows_in_any_order_of_arrival_lead_to_what_the_definition_gives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(windowed_rows, "windowed_rows_per_span", lambda *_: 30)
    monkeypatch.setattr(windowed_rows, "COMMIT_SPANS", 5)  # a slice takes several commits
    held, rows = list[Row](), _rows(3)
    schedule = [rows] if name == "at once" else _schedule(rows, name, random.Random(name))
    for number, arrived in enumerate(schedule):
        held += arrived
        _check(_arrive(tmp_path, number, arrived), held)


@pytest.mark.timeout(600)
def test_a_new_version_of_a_row_takes_its_value_out_of_later_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windowed_rows, "windowed_rows_per_span", lambda *_: 30)
    rows = _rows(5)
    _arrive(tmp_path, 0, rows)
    changed = {row["id"]: row | {"to": "new", "card": "b"} for row in rows[::37]}
    _check(_arrive(tmp_path, 1, list(changed.values())), [changed.get(row["id"], row) for row in rows])
