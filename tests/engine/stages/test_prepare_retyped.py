"""A column that a feature set is made of gets a wider type: all rows are prepared anew, as if it had always had it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine.refs import StageReport
from engine.stage import run_stage
from engine.stages.prepare import PrepareStage
from tests.shop import Shop

WINDOWS = [
    {"over": "events", "keys": ["place"], "lengths": ["1h", "20h"], "statistics": ["count"]},
    {"over": "events", "keys": ["place"], "lengths": ["20h"], "statistics": ["sum", "max"], "column": "amount"},
    {"over": "events", "keys": ["code"], "lengths": ["20h"], "statistics": ["distinct"], "column": "place"},
    {"over": "labels", "keys": ["place"], "lengths": ["20h"], "statistics": ["count", "rate"]},
]
FEATURES = [{"numeric": ["amount"], "categorical": ["place"]}, {"numeric": ["amount"], "windows": WINDOWS}]
LATER = 600


def _shop(directory: Path, features: dict[str, Any], *, kind: str) -> Shop:
    directory.mkdir()
    shop = Shop(directory, features=features)
    shop.sql(
        f"CREATE TABLE orders (id INTEGER PRIMARY KEY, amount {kind}, place {kind}, code INTEGER, placed_at TIMESTAMP, "
        "updated_at TIMESTAMP)",
        "CREATE TABLE verdicts (order_id INTEGER, fraud INTEGER, decided_at TIMESTAMP)",
    )
    return shop


def _add(shop: Shop, first: int, last: int) -> None:
    stamp = "strftime('%Y-%m-%d %H:%M:%S', '2026-01-01', '+' || ? || ' minutes')"
    rows = [(key, 2**53 + 1 if key == 3 else key * 7 % 40, key % 3, key % 2, key, key) for key in range(first, last)]
    shop.sql(f"INSERT INTO orders VALUES (?, ?, ?, ?, {stamp}, {stamp})", values=rows)
    verdicts = [(key, int(key % 8 == 0), key + 5) for key in range(first, last) if key % 4 == 0]
    shop.sql(f"INSERT INTO verdicts VALUES (?, ?, {stamp})", values=verdicts)


def _widen(shop: Shop) -> None:
    shop.sql(
        "ALTER TABLE orders RENAME TO old",
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, amount REAL, place REAL, code INTEGER, placed_at TIMESTAMP, "
        "updated_at TIMESTAMP)",
        "INSERT INTO orders SELECT * FROM old",
        "DROP TABLE old",
    )


def _extract(shop: Shop, minute: float) -> None:
    shop.extract(minute)
    shop.extract(minute, "labels")


def _prepare(shop: Shop, minute: float) -> StageReport:
    return run_stage(PrepareStage(), shop.context(minute))


def _prepared(shop: Shop) -> list[dict[str, Any]]:
    rows = shop.rows(f"prepared/{shop.spec.feature_set}")
    return sorted(rows, key=lambda row: row["key"])


def _as_if_always(directory: Path, features: dict[str, Any]) -> list[dict[str, Any]]:
    shop = _shop(directory, features, kind="REAL")
    _add(shop, 1, LATER)
    _extract(shop, LATER)
    _prepare(shop, LATER)
    return _prepared(shop)


@pytest.mark.parametrize("features", FEATURES, ids=["plain", "windows"])
def test_all_rows_are_prepared_anew_in_one_commit(tmp_path: Path, features: dict[str, Any]) -> None:
    shop = _shop(tmp_path / "widened", features, kind="INTEGER")
    for first, last in ((1, 200), (200, 400)):
        _add(shop, first, last)
        _extract(shop, last)
        _prepare(shop, last)
    before = _prepared(shop)
    assert isinstance(before[0]["amount"], int)
    _widen(shop)
    _add(shop, 400, LATER)
    _extract(shop, LATER)
    _prepare(shop, LATER)
    assert _prepared(shop) == _as_if_always(tmp_path / "always", features)
    assert isinstance(_prepared(shop)[0]["amount"], float)
    assert not _prepare(shop, LATER).slices
    version = shop.workspace.table(f"prepared/{shop.spec.feature_set}").ref().version
    _add(shop, LATER, LATER + 10)
    _extract(shop, LATER + 10)
    assert _prepare(shop, LATER + 10).rows_out < LATER, "what comes after it is an increment again"
    assert shop.workspace.table(f"prepared/{shop.spec.feature_set}").ref().version > version


@pytest.mark.parametrize("features", FEATURES, ids=["plain", "windows"])
def test_a_slice_that_was_planned_before_ends_without_effect(
    tmp_path: Path, features: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = _shop(tmp_path / "widened", features, kind="INTEGER")
    _add(shop, 1, 200)
    _extract(shop, 200)
    _prepare(shop, 200)
    _add(shop, 200, 400)
    _extract(shop, 400)

    def killed(*given: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(PrepareStage, "phase", killed)
        with pytest.raises(KeyboardInterrupt):
            _prepare(shop, 400)
    _widen(shop)
    _add(shop, 400, LATER)
    _extract(shop, LATER)
    _prepare(shop, LATER)
    assert _prepared(shop) == _as_if_always(tmp_path / "always", features)
