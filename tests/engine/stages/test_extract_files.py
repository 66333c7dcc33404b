"""Files through the extract stage: the table is right after each arrival, whatever arrives."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.batching import read_batches
from engine.errors import SchemaChanged, SourceError
from engine.sources import known_rows
from engine.stages import extract as extraction
from tests.shop import Shop, at

FAR = 10**9  # minutes: files are as old as this machine's clock says


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    (tmp_path / "in").mkdir()
    source = {"uri": str(tmp_path / "in"), "table": "", "key": "", "cursor": ""}
    return Shop(tmp_path, source=source, event_time="at")


def _write(shop: Shop, name: str, rows: Sequence[tuple[Any, ...]], *, header: str = "id,amount,at") -> Path:
    path = shop.directory / "in" / name
    lines = [header, *(",".join("" if value is None else str(value) for value in row) for row in rows)]
    path.write_text("\n".join(lines) + "\n")
    return path


def _orders(first: int, last: int, amount: int = 1) -> list[tuple[Any, ...]]:
    return [(key, amount, f"2026-01-{1 + key % 28:02d} 00:00:00") for key in range(first, last)]


def _table(shop: Shop) -> list[tuple[Any, ...]]:
    return sorted((row["_file"], row["id"], row["amount"]) for row in shop.rows())


def test_files_without_a_key_are_right_after_each_arrival(shop: Shop) -> None:
    _write(shop, "a.csv", _orders(0, 3) + _orders(0, 1))  # a row that is there twice is two rows
    report = shop.extract(FAR)
    assert report.rows_out == 4
    assert report.outputs["files"] == {"new": 1}
    _write(shop, "b.csv", _orders(3, 5))
    _write(shop, "again.csv", _orders(3, 5))
    report = shop.extract(FAR)
    assert report.rows_out == 2
    assert report.outputs["files"] == {"new": 1, "same_content": 1}
    read = {row["_file"] for row in shop.rows()}
    other = ({"b.csv", "again.csv"} & read).pop()
    _write(shop, "a.csv", _orders(1, 3, amount=2))
    os.utime(shop.directory / "in" / "a.csv")
    report = shop.extract(FAR)
    assert report.outputs["files"] == {"changed": 1}
    assert _table(shop) == [("a.csv", 1, 2), ("a.csv", 2, 2), (other, 3, 1), (other, 4, 1)]
    assert shop.extract(FAR).slices == 0


def test_a_changed_file_touches_the_hours_of_its_old_rows_too(shop: Shop) -> None:
    _write(shop, "a.csv", [(1, 1, "2026-01-01 00:00:00"), (2, 2, "2026-01-05 00:00:00")])
    shop.extract(FAR)
    _write(shop, "a.csv", [(1, 1, "2026-01-01 00:00:00")])
    shop.extract(FAR)
    record = extraction.last_record(shop.context(FAR), "raw")
    assert record is not None
    hours = {int(hour) for hour in record["hours"]}
    assert hours == {int(at(60 * 24 * day).timestamp() // 3600) for day in (0, 4)}


def test_exports_that_overlap_are_told_apart_by_key_and_cursor(shop: Shop) -> None:
    shop.source |= {"key": "id", "cursor": "updated"}
    header = "id,amount,at,updated"
    day = [(key, 1, "2026-01-01", "2026-01-02") for key in range(5)]
    _write(shop, "monday.csv", day, header=header)
    assert shop.extract(FAR).rows_out == 5
    newer = [(2, 9, "2026-01-01", "2026-01-03")]
    _write(shop, "tuesday.csv", [*day, *newer, *newer], header=header)  # all of monday's, one changed, and that twice
    report = shop.extract(FAR)
    assert report.rows_out == 1
    assert report.outputs["known_rows"] == 6
    _write(shop, "monday.csv", day[:2], header=header)
    shop.extract(FAR)
    assert sorted((row["id"], row["amount"]) for row in shop.rows()) == [(0, 1), (1, 1), (2, 9)]


def test_exports_of_many_columns_are_told_apart_by_key_and_cursor_too(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    source = {"uri": str(tmp_path / "in"), "table": "", "key": "id", "cursor": "at"}
    shop = Shop(tmp_path, source=source, event_time="at")
    more = known_rows._MOST_JOINED_COLUMNS
    header = ",".join(["id,amount,at", *(f"c{i}" for i in range(more))])

    def write(name: str, rows: Sequence[tuple[Any, ...]]) -> None:
        _write(shop, name, [(*row, *range(more)) for row in rows], header=header)

    write("a.csv", _orders(0, 5))
    assert shop.extract(FAR).rows_out == 5
    write("b.csv", [*_orders(3, 8), *_orders(7, 8)])  # two that are known, and one twice
    report = shop.extract(FAR)
    assert (report.rows_out, report.outputs["known_rows"]) == (3, 3)
    write("a.csv", _orders(1, 5, amount=2))
    os.utime(shop.directory / "in" / "a.csv")
    assert shop.extract(FAR).outputs["files"] == {"changed": 1}
    assert _table(shop) == [(f"{'a' if key < 5 else 'b'}.csv", key, 2 if key < 5 else 1) for key in range(1, 8)]
    assert not any(shop.workspace.scratch.iterdir())


def test_a_large_file_is_committed_in_slices(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "SLICE_ROWS", 90_000)
    _write(shop, "a.csv", _orders(0, 300_000))
    report = shop.extract(FAR)
    assert 2 <= report.slices <= 4
    assert report.rows_out == 300_000
    assert sorted(row["id"] for row in shop.rows()) == list(range(300_000))


def test_a_value_that_does_not_fit_is_found_again_when_it_is_corrected(shop: Shop) -> None:
    _write(shop, "a.csv", [(1, 1, "2026-01-01"), (2, 2, "2026-01-02"), (3, 3, "2026-01-03")])
    shop.extract(FAR)
    _write(shop, "b.csv", [(4, "many", "2026-01-04"), (5, 5, "2026-01-05"), (6, 6, None)])
    shop.source["max_quarantine_share"] = 0.9
    assert shop.extract(FAR).rows_quarantined == 2
    rows = {row["key"]: row for row in shop.rows("quarantine")}
    assert set(rows) == {"b.csv#0", "b.csv#2"}
    assert (rows["b.csv#0"]["place"], rows["b.csv#0"]["value"]) == ("b.csv#0", "many")
    cursor = rows["b.csv#0"]["cursor"]
    before = _table(shop)
    assert shop.extract(FAR + 1, since=cursor, until=cursor).rows_out >= 1  # nothing has changed: the same again
    assert _table(shop) == before
    assert len(shop.rows("quarantine")) == 2
    _write(shop, "b.csv", [(4, 4, "2026-01-04"), (5, 5, "2026-01-05"), (6, 6, "2026-01-06")])
    shop.extract(FAR + 2)
    assert [row[1:] for row in _table(shop)] == [(key, key) for key in range(1, 7)]


def test_a_new_column_of_files_is_added_and_a_missing_one_stops_the_run(shop: Shop) -> None:
    _write(shop, "a.csv", [(1, 1, "2026-01-01")])
    shop.extract(FAR)
    _write(shop, "b.csv", [(2, 2, "2026-01-02", "new")], header="id,amount,at,note")
    shop.extract(FAR)
    assert sorted((row["id"], row["note"]) for row in shop.rows()) == [(1, None), (2, "new")]
    _write(shop, "c.csv", [(3, "2026-01-03", "x")], header="id,at,note")
    with pytest.raises(SchemaChanged) as caught:
        shop.extract(FAR)
    [difference] = caught.value.details["differences"]
    assert (difference["column"], difference["kind"], difference["where"]) == ("amount", "dropped", "c.csv")
    shop.source["allow"] = ["dropped"]
    shop.extract(FAR)
    assert sorted((row["id"], row["amount"]) for row in shop.rows()) == [(1, 1), (2, 2), (3, None)]


def test_labels_come_from_files_too_and_a_second_delivery_adds_nothing(shop: Shop) -> None:
    shop.labels |= {"uri": str(shop.directory / "labels" / "*.csv"), "table": ""}
    folder = shop.directory / "labels"
    folder.mkdir()
    (folder / "1.csv").write_text("order_id,fraud,decided_at\n1,1,2026-01-01\n2,0,2026-01-01\n")
    assert shop.extract(FAR, "labels").rows_out == 2
    (folder / "2.csv").write_text("order_id,fraud,decided_at\n1,1,2026-01-01\n1,0,2026-01-02\n3,,2026-01-02\n")
    assert shop.extract(FAR, "labels").rows_out == 2
    found = sorted((row["key"], row["labelled_at"].day, str(row["value"])) for row in shop.rows("labels"))
    assert found == [(1, 1, "True"), (1, 2, "False"), (2, 1, "False"), (3, 2, "None")]


def test_rows_of_a_changed_file_stay_until_a_slice_comes_to_it(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(shop, "a.csv", _orders(0, 5))
    _write(shop, "b.csv", _orders(5, 11))
    shop.extract(FAR)
    monkeypatch.setattr(extraction, "SLICE_ROWS", 3)
    _write(shop, "a.csv", _orders(0, 5, amount=2) + _orders(20, 21))
    _write(shop, "b.csv", _orders(5, 11, amount=2) + _orders(21, 22))
    first = shop.workspace.table("raw").ref().version
    report = shop.extract(FAR)
    assert report.slices >= 2
    for version in range(first, shop.workspace.table("raw").ref().version + 1):
        chunks = shop.workspace.table("raw").chunks(version=version)
        files = {name for batch in read_batches([c.path for c in chunks]) for name in batch["_file"].to_pylist()}
        assert files == {"a.csv", "b.csv"}
    assert [row[1:] for row in sorted(_table(shop), key=lambda row: row[1])] == [
        *((key, 2) for key in range(11)),
        (20, 1),
        (21, 1),
    ]


def test_a_damaged_file_that_was_moved_away_does_not_hold_up_the_others(shop: Shop) -> None:
    folder = shop.directory / "in"
    (folder / "a.parquet").write_bytes(b"PAR1 and no more")
    _write(shop, "b.csv", _orders(0, 3))
    with pytest.raises(SourceError, match=r"a\.parquet cannot be read"):
        shop.extract(FAR)
    (folder / "a.parquet").rename(shop.directory / "a.parquet")
    assert shop.extract(FAR).rows_out == 3
    assert shop.extract(FAR).slices == 0
