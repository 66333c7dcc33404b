"""One row looked up is what prepare writes for it, to the bit, and is scored as the score stage does."""

from __future__ import annotations

import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.batching import read_batches
from engine.errors import HeadraceError, RowError, SpecError
from engine.layout import prepared_table
from engine.preparing import windowed_rows
from engine.refs import StageReport
from engine.serving import Champion, RowFeatures
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from engine.stages.score import ScoreStage
from tests.world import MARCH, World, copy_world

START = datetime(2024, 3, 30, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
HOURS = 20  # of event time in a delivery
Row = dict[str, Any]

OF_CARD = {"over": "events", "keys": ["card"], "column": "amount"}
WINDOWS = [
    OF_CARD | {"lengths": ["5h", "30h"], "statistics": ["count", "sum", "mean", "std", "min", "max", "since", "ratio"]},
    OF_CARD | {"lengths": ["40h"], "statistics": ["distinct"], "column": "to", "gap": "3h"},
    OF_CARD | {"lengths": ["9h"], "statistics": ["sum", "mean"], "column": "price", "same_instant": True},
    {"over": "events", "keys": ["card", "town"], "lengths": ["30h"], "statistics": ["count"], "null_keys": "exclude"},
    {"over": "labels", "keys": ["card"], "lengths": ["12h", "9d"], "statistics": ["rate", "count"], "gap": "1h"},
    {"over": "labels", "keys": ["town"], "lengths": ["3d"], "statistics": ["count", "since"]},
]
FEATURES = {
    "numeric": ["amount", "price", "double"],
    "categorical": ["to", "ok"],
    "windows": WINDOWS,
    "transform": "cards:doubled",
}
SCHEMA = pa.schema(
    {
        "id": pa.int64(),
        "at": STAMP,
        "card": pa.string(),
        "town": pa.int64(),
        "to": pa.string(),
        "ok": pa.bool_(),
        "amount": pa.float64(),
        "price": pa.decimal128(12, 2),
        "written": STAMP,
    }
)
TRANSFORM = """
import polars as pl

def doubled(rows):
    return rows.with_columns(double=pl.col("amount") * 2)
"""


def _rows(count: int) -> list[Row]:
    """Rows of 80 hours; many share an instant."""
    pick = random.Random(5)
    return [
        {
            "id": number,
            "at": START + timedelta(minutes=20 * pick.randrange(12 * HOURS)),
            "card": pick.choice(["a", "a", "a", "b", "c", None]),
            "town": pick.choice([1, 2, None]),
            "to": pick.choice(["x", "y", str(number), None]),
            "ok": pick.choice([True, False, None]),
            "amount": pick.choice([0.1, 1e12, -0.0, pick.gauss(0, 20), None]),
            "price": pick.choice([Decimal("12.50"), Decimal("0.01"), None]),
        }
        for number in range(count)
    ]


def _context(home: Path, features: dict[str, Any]) -> StageContext:
    spec = PipelineSpec.model_validate(
        {
            "pipeline": "cards",
            "workspace": str(home / "workspace"),
            "source": {"uri": str(home / "in"), "key": "id", "cursor": "written"},
            "event_time": "at",
            "labels": {"uri": str(home / "labels"), "key": "id", "value": "good", "labelled_at": "known_at"},
            "features": features,
        }
    )
    return StageContext.of(spec, directory=home)


def _deliver(home: Path, number: int, rows: Sequence[Row], labels: Sequence[Row], features: dict[str, Any]) -> None:
    """Let rows and label records arrive in a file each, and prepare them."""
    (home / "cards.py").write_text(TRANSFORM)
    kinds = pa.schema({"id": pa.int64(), "good": pa.bool_(), "known_at": STAMP})
    written = [row | {"written": START + timedelta(days=100, hours=number)} for row in rows]
    for name, some, schema in (("in", written, SCHEMA), ("labels", labels, kinds)):
        (home / name).mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(some, schema=schema), home / name / f"{number:03d}.parquet")
    context = _context(home, features)
    for stage in (ExtractStage("raw"), ExtractStage("labels"), PrepareStage()):
        run_stage(stage, context)


def _delivery(time: datetime) -> int:
    return int((time - START) / timedelta(hours=HOURS))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return _rows(300)


@pytest.fixture(scope="module")
def cards(tmp_path_factory: pytest.TempPathFactory, rows: list[Row]) -> Path:
    """Five deliveries in spans of 30 rows; some rows come two deliveries late, and their labels before them."""
    home, pick = tmp_path_factory.mktemp("cards"), random.Random(2)
    labels = [
        {"id": row["id"], "good": pick.random() < 0.3, "known_at": row["at"] + timedelta(hours=pick.randrange(1, 30))}
        for row in rows
    ]
    late = {row["id"] for row in rows if row["id"] % 23 == 0}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(windowed_rows, "windowed_rows_per_span", lambda *_: 30)
        for number in range(5):
            came = [row for row in rows if min(4, _delivery(row["at"]) + 2 * (row["id"] in late)) == number]
            known = [record for record in labels if min(4, _delivery(record["known_at"])) == number]
            _deliver(home, number, came, known, FEATURES)
    return home


def _prepared(context: StageContext) -> dict[int, Row]:
    chunks = prepared_table(context.workspace, context.spec.feature_set).chunks()
    found = [row for batch in read_batches([chunk.path for chunk in chunks]) for row in batch.to_pylist()]
    return {row["key"]: row for row in found}


def _equal(found: Row, prepared: Row, names: Sequence[str]) -> bool:
    return {name: repr(value) for name, value in found.items()} == {name: repr(prepared[name]) for name in names}


@pytest.mark.parametrize("order", ["forwards", "backwards", "shuffled"])
def test_every_row_is_what_prepare_wrote(cards: Path, rows: list[Row], order: str) -> None:
    context = _context(cards, FEATURES)
    prepared, names = _prepared(context), context.spec.features.names()
    assert len(prepared) == len(rows)
    assert len(windowed_rows.LiveSegments.of(context).spans) > 8
    wanted = sorted(rows, key=lambda row: row["at"], reverse=order == "backwards")
    if order == "shuffled":
        random.Random(1).shuffle(wanted)
    with RowFeatures.open(context) as opened:
        for row in wanted:
            found = opened.features(row)
            assert list(found) == list(names)
            assert _equal(found, prepared[row["id"]], names), row
    # The windows were not empty.
    for name in context.spec.features.window_names():
        assert len({repr(row[name]) for row in prepared.values()}) > 3, name


def test_a_row_as_json_gives_it_is_the_same(cards: Path, rows: list[Row]) -> None:
    context = _context(cards, FEATURES)
    prepared, names = _prepared(context), context.spec.features.names()
    with RowFeatures.open(context) as opened:
        for row in rows[::7]:
            given = row | {"at": row["at"].isoformat(), "price": None if row["price"] is None else float(row["price"])}
            assert _equal(opened.features(given), prepared[row["id"]], names), row


def test_threads_may_ask_at_once(cards: Path, rows: list[Row]) -> None:
    context = _context(cards, FEATURES)
    prepared, names = _prepared(context), context.spec.features.names()
    with RowFeatures.open(context) as opened, ThreadPoolExecutor(8) as threads:
        for row, found in zip(rows, threads.map(opened.features, rows), strict=True):
            assert _equal(found, prepared[row["id"]], names), row


def test_a_row_that_is_to_come_sees_all_before_it(cards: Path, rows: list[Row]) -> None:
    after = START + timedelta(hours=4 * HOURS + 10)
    row = {"at": after, "card": "a", "town": 1, "to": "x", "ok": True, "amount": 5, "price": 1}
    with RowFeatures.open(_context(cards, FEATURES)) as opened:
        found = opened.features(row)
        through = opened.prepared_through
    mine = [r for r in rows if r["card"] == "a" and after - timedelta(hours=30) < r["at"] < after]
    assert found["events_card_1d6h_count"] == len(mine) > 0
    assert found["events_card_1d6h_since"] == (after - max(r["at"] for r in mine)).total_seconds()
    assert repr(found["double"]) == "10.0"
    assert found["to"] == "x"
    assert through.rows == max(r["at"] for r in rows)
    assert through.labels is not None
    assert through.labels > through.rows


def test_of_same_instant_windows_a_row_counts_itself_once_it_is_prepared(cards: Path, rows: list[Row]) -> None:
    row = next(r for r in rows if r["card"] == "b" and r["price"] is not None)
    with RowFeatures.open(_context(cards, FEATURES)) as opened:
        there = opened.features(row)["events_card_9h_price_sum"]
        new = opened.features(row | {"at": row["at"] + timedelta(microseconds=1), "id": 10**6})
    assert new["events_card_9h_price_sum"] == there


def test_a_stored_row_is_found_by_its_key_in_its_newest_version(cards: Path, rows: list[Row]) -> None:
    context = _context(cards, FEATURES)
    prepared = _prepared(context)
    with RowFeatures.open(context) as opened:
        for key in ("17", 17):
            found = opened.stored(key)
            assert {name: found[name] for name in rows[17]} == rows[17]
        assert _equal(opened.features(found), prepared[17], context.spec.features.names())
        with pytest.raises(RowError, match="there is no row with id 5000 in raw"):
            opened.stored(5000)
        with pytest.raises(RowError, match="id is int64, and 'x' is none"):
            opened.stored("x")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"at": None}, "no at, its event time"),
        ({"at": "yesterday"}, "at is 'yesterday'"),
        ({"at": 1_700_000_000}, "at is 1700000000, and of type timestamp"),
        ({"town": True}, "town is True, and of type int64"),
        ({"town": 1.5}, "town is 1.5, and of type int64"),
        ({"town": "1"}, "town is '1', and of type int64"),
        ({"town": 2**70}, "town is 1180591620717411303424"),
        ({"card": 5}, "card is 5, and of type string"),
        ({"amount": "5"}, "amount is '5', and of type double"),
        ({"amount": True}, "amount is True, and of type double"),
        ({"price": 0.001}, r"price is 0.001, and of type decimal128\(12, 2\)"),
        ({"price": "dear"}, "price is 'dear'"),
        ({"ok": 1}, "ok is 1, and of type bool"),
        ({"card": ["a"]}, r"card is \['a'\]"),
    ],
)
def test_a_value_of_another_type_is_named(cards: Path, rows: list[Row], change: Row, said: str) -> None:
    with RowFeatures.open(_context(cards, FEATURES)) as opened, pytest.raises(RowError, match=said):
        opened.features(rows[0] | change)


@pytest.mark.parametrize("name", ["at", "card", "town", "to", "ok", "amount", "price"])
def test_a_missing_column_is_named(cards: Path, rows: list[Row], name: str) -> None:
    row = {key: value for key, value in rows[0].items() if key != name}
    with RowFeatures.open(_context(cards, FEATURES)) as opened:
        with pytest.raises(RowError, match=f"the row lacks {name}\n"):
            opened.features(row)
        with pytest.raises(RowError) as caught:
            opened.features({**row, f"{name}_": 1})
    assert caught.value.details == {"missing": [name]}
    assert f"did you mean '{name}_'" in caught.value.hint


def test_a_column_that_only_the_transform_reads_is_named_by_it(tmp_path: Path, rows: list[Row]) -> None:
    features = {"numeric": ["double"], "transform": "cards:doubled"}
    _deliver(tmp_path, 0, rows[:20], [], features)
    with RowFeatures.open(_context(tmp_path, features)) as opened:
        assert opened.features({"at": START, "amount": 3}) == {"double": 6.0}
        with pytest.raises(SpecError, match=r"cards:doubled raised ColumnNotFoundError.*amount"):
            opened.features({"at": START})
        with pytest.raises(SpecError, match=r"unable to find column \"amount\""):
            opened.features({"at": START, "amont": 3})


def test_before_anything_is_prepared_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(HeadraceError, match="cards: no rows are prepared") as caught:
        RowFeatures.open(_context(tmp_path, {"numeric": ["amount"]}))
    assert "headrace run" in caught.value.hint
    assert not (tmp_path / "workspace").exists()


def test_tiers_are_removed_and_change_nothing(
    cards: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = _context(cards, FEATURES)
    row = max(rows, key=lambda row: row["at"])
    with RowFeatures.open(context, scratch=tmp_path) as opened:
        first = opened.features(row)
        for _ in range(4):
            assert repr(opened.features(row)) == repr(first)
        assert list(tmp_path.rglob("*.tier"))
    assert not list(tmp_path.iterdir())


@pytest.mark.timeout(240)
@pytest.mark.xdist_group("loop")
def test_real_flights_have_the_features_and_the_scores_of_the_stages(
    tmp_path: Path, february: tuple[World, dict[str, StageReport]]
) -> None:
    world = copy_world(february[0], tmp_path / "world")
    world.prepare(MARCH)
    world.run(ScoreStage(), MARCH)
    champion, context = Champion.of(world.workspace), world.context(MARCH)
    assert champion is not None
    prepared, names = {row["key"]: row for row in world.prepared()}, world.spec.features.names()
    predictions = random.Random(4).sample(world.rows("predictions"), 100)
    with RowFeatures.open(context) as opened:
        for prediction in predictions:
            row = opened.prepared(opened.stored(prediction["key"]))
            assert _equal(row.select(names).to_pylist()[0], prepared[prediction["key"]], names)
            verdict = champion.verdict(row)
            assert (verdict.score, verdict.alert) == (prediction["score"], prediction["alert"])
            assert champion.version == prediction["model_version"]
