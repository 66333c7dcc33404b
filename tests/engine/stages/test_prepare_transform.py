"""Windows over columns that the pipeline's transform makes or changes: as if the source had had them, and the code."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from engine import stage
from engine.errors import SpecError
from engine.memory.projection import Projection
from engine.preparing import retyped
from engine.preparing.state import State
from engine.refs import StageReport, Task, TaskResult
from engine.stage import StageContext, run_stage
from engine.stages.prepare import PrepareStage
from tests.shop import Shop, at

WINDOWS = [
    {"over": "events", "keys": ["place"], "lengths": ["1h", "20h"], "statistics": ["count"]},
    {"over": "events", "keys": ["place"], "lengths": ["20h"], "statistics": ["mean", "ratio"], "column": "amount"},
    {"over": "events", "keys": ["large"], "lengths": ["20h"], "statistics": ["sum", "distinct"], "column": "cents"},
    {"over": "labels", "keys": ["place", "large"], "lengths": ["20h"], "statistics": ["count", "rate"]},
]
COLUMNS = "(id INTEGER PRIMARY KEY, amount REAL, place TEXT{more}, placed_at TIMESTAMP, updated_at TIMESTAMP)"
CODE = """
import polars as pl
def made(rows):
    rows = rows.with_columns(place=pl.col("place").str.to_lowercase(), amount=pl.col("amount") * {factor})
    return rows.with_columns(large=pl.col("amount") > 60, cents=(pl.col("amount") * 100).round().cast(pl.Int64))
"""
LAST = 240


def _shop(directory: Path, *, transform: bool) -> Shop:
    directory.mkdir()
    made = {"transform": "own:made"} if transform else {}
    shop = Shop(directory, features={"numeric": ["amount"], "windows": WINDOWS, **made})
    more = "" if transform else ", large BOOLEAN, cents INTEGER"
    verdicts = "CREATE TABLE verdicts (order_id INTEGER, fraud INTEGER, decided_at TIMESTAMP)"
    shop.sql(f"CREATE TABLE orders {COLUMNS.format(more=more)}", verdicts)
    if transform:
        _write_code(shop, factor=2)
    return shop


def _write_code(shop: Shop, *, factor: int) -> None:
    (shop.directory / "own.py").write_text(CODE.format(factor=factor))


def _add(shop: Shop, first: int, last: int, *, factor: int | None = None) -> None:
    """Add orders, every seventh of them late; with a factor as the transform has them."""
    rows: list[tuple[Any, ...]] = []
    for key in range(first, last):
        place, amount = "aAbBc"[key % 5], key * 7 % 40
        stamps = [f"{at(key - 50 if key % 7 == 0 else key):%Y-%m-%d %H:%M:%S}", f"{at(key):%Y-%m-%d %H:%M:%S}"]
        if factor is None:
            rows.append((key, amount, place, *stamps))
        else:
            amount *= factor
            rows.append((key, amount, place.lower(), amount > 60, amount * 100, *stamps))
    shop.sql(f"INSERT INTO orders VALUES ({', '.join('?' * len(rows[0]))})", values=rows)
    verdicts = [(key, key % 8 == 0, f"{at(key + 5):%Y-%m-%d %H:%M:%S}") for key in range(first, last) if key % 2]
    shop.sql("INSERT INTO verdicts VALUES (?, ?, ?)", values=verdicts)


def _prepare(shop: Shop, minute: float) -> StageReport:
    shop.extract(minute)
    shop.extract(minute, "labels")
    return run_stage(PrepareStage(), shop.context(minute))


def _prepared(shop: Shop) -> list[dict[str, Any]]:
    rows = shop.rows(f"prepared/{shop.spec.feature_set}")
    return sorted(rows, key=lambda row: row["key"])


def _of_the_source(directory: Path, *, factor: int) -> list[dict[str, Any]]:
    shop = _shop(directory, transform=False)
    _add(shop, 1, LAST, factor=factor)
    _prepare(shop, LAST + 10)
    return _prepared(shop)


def test_windows_see_what_the_transform_makes_as_if_the_source_had_it(tmp_path: Path) -> None:
    shop = _shop(tmp_path / "made", transform=True)
    for first, last in ((1, 100), (100, 150), (150, LAST)):
        _add(shop, first, last)
        _prepare(shop, last + 10)
    found = _prepared(shop)
    assert found == _of_the_source(tmp_path / "source", factor=2)
    assert {row["events_place_20h_count"] for row in found} > {0, 1}
    assert {row["labels_place_large_20h_count"] for row in found} > {0, 1}


def test_another_code_prepares_all_rows_anew_and_another_layout_none(tmp_path: Path) -> None:
    shop = _shop(tmp_path / "made", transform=True)
    _add(shop, 1, 150)
    _prepare(shop, 160)
    _add(shop, 150, LAST)
    _write_code(shop, factor=3)
    assert _prepare(shop, LAST + 10).rows_out >= LAST - 1
    assert _prepared(shop) == _of_the_source(tmp_path / "source", factor=3)
    with (shop.directory / "own.py").open("a") as file:
        file.write("\n\n# only a remark\n")
    assert _prepare(shop, LAST + 20).slices == 0


def test_code_that_changes_while_a_run_goes_on_is_an_error_that_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = _shop(tmp_path / "made", transform=True)
    _add(shop, 1, 150)
    run = stage.run_task

    def changed(task: Task, context: StageContext, *, projection: Projection) -> TaskResult:
        if task.stage == "prepare":
            _write_code(shop, factor=3)
        return run(task, context, projection=projection)

    with monkeypatch.context() as patch:
        patch.setattr(stage, "run_task", changed)
        with pytest.raises(SpecError, match="the code of own:made is another than rows are prepared by"):
            _prepare(shop, 160)
    _add(shop, 150, LAST)
    _prepare(shop, LAST + 10)
    assert _prepared(shop) == _of_the_source(tmp_path / "source", factor=3)


@pytest.mark.parametrize("name", ["id", "placed_at", "updated_at"])
def test_what_tells_rows_apart_and_orders_them_is_not_changed(tmp_path: Path, name: str) -> None:
    shop = _shop(tmp_path / "made", transform=True)
    changed = f'pl.col("{name}") + 1000' if name == "id" else f'pl.col("{name}").dt.offset_by("5h")'
    code = f"\n_made = made\ndef made(rows):\n    return _made(rows).with_columns({name}={changed})\n"
    (shop.directory / "own.py").write_text(CODE.format(factor=2) + code)
    _add(shop, 1, 20)
    with pytest.raises(SpecError, match=f"changed {name}, by which rows are told apart and ordered"):
        _prepare(shop, 30)
    plain = dataclasses.replace(shop, features={"numeric": ["amount"], "transform": "own:made"})
    with pytest.raises(SpecError, match=f"changed {name}"):
        _prepare(plain, 30)


@pytest.mark.parametrize("over", ["events", "labels"])
def test_a_column_that_nobody_has_is_named(tmp_path: Path, over: str) -> None:
    shop = _shop(tmp_path / "made", transform=True)
    windows = [{"over": over, "keys": ["town"], "lengths": ["1h"], "statistics": ["count"]}]
    _add(shop, 1, 20)
    for features in ({"windows": windows}, {"windows": windows, "transform": "own:made"}):
        with pytest.raises(SpecError, match="no column 'town': neither the source nor the transform has it"):
            _prepare(dataclasses.replace(shop, features=features), 30)


def test_windows_of_before_the_code_was_written_down_are_prepared_anew_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = _shop(tmp_path / "made", transform=True)
    _add(shop, 1, 150)
    with monkeypatch.context() as patch:
        patch.setattr(retyped, "transform_code", lambda *_, **__: "")
        _prepare(shop, 160)
        assert _prepare(shop, 170).slices == 0
    assert _prepare(shop, 180).rows_out >= 149
    with monkeypatch.context() as patch:  # a process that does not find the module: nobody knows better
        patch.setattr(retyped, "transform_code", lambda *_, **__: "")
        _add(shop, 150, 160)
        before = State.of(shop.context(190)).record
        assert _prepare(shop, 190).rows_out
    after = State.of(shop.context(190)).record
    assert before["raw_n"] < after["raw_n"]
    assert before["row_types"] == after["row_types"] == retyped.types_now(shop.context(190))
    assert before["label_types"] == after["label_types"]


def test_labels_are_joined_with_columns_in_the_order_of_the_source(tmp_path: Path) -> None:
    windows = [{"over": "labels", "keys": ["both"], "lengths": ["20h"], "statistics": ["count"]}]
    shop = Shop(tmp_path, features={"windows": windows, "transform": "own:made"})
    code = "import polars as pl\ndef made(rows):\n    return rows.with_columns(both=pl.concat_str(pl.col(pl.String)))\n"
    (tmp_path / "own.py").write_text(code)
    shop.sql(
        "CREATE TABLE orders (country TEXT, city TEXT, id INTEGER, placed_at TIMESTAMP, updated_at TIMESTAMP)",
        "CREATE TABLE verdicts (order_id INTEGER, fraud INTEGER, decided_at TIMESTAMP)",
    )
    moments = [f"{at(key):%Y-%m-%d %H:%M:%S}" for key in range(3)]
    shop.sql(
        "INSERT INTO orders VALUES (?, ?, ?, ?, ?)", values=[("US", "NY", n, one, one) for n, one in enumerate(moments)]
    )
    shop.sql("INSERT INTO verdicts VALUES (?, ?, ?)", values=[(n, 1, one) for n, one in enumerate(moments)])
    _prepare(shop, 10)
    assert [row["labels_both_20h_count"] for row in _prepared(shop)] == [0, 1, 2]
