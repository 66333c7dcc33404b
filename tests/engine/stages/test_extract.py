"""What extraction promises: nothing lost, nothing doubled, nothing that does not fit let in."""

from __future__ import annotations

import dataclasses
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from engine.errors import KeyConflict, QuarantineExceeded, SchemaChanged
from engine.stage import run_stage
from engine.stages import extract as extraction
from engine.stages.extract import last_record
from tests.shop import Shop, at


@pytest.fixture
def shop(tmp_path: Path) -> Shop:
    return Shop(tmp_path).open()


def test_a_first_load_goes_in_commits_of_bounded_size_and_on_from_the_last(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "SLICE_ROWS", 4)
    shop.order(*[(key, key, 5) for key in range(10)])  # all at one moment: the border falls among ties
    report = shop.extract(60)
    assert (report.slices, report.rows_out) == (3, 10)
    assert shop.versions() == [(key, key) for key in range(10)]
    assert shop.extract(61).slices == 0
    shop.order((3, 33, 62), (10, 10, 62))
    assert shop.extract(63).rows_out == 2
    assert shop.versions()[10:] == [(3, 33), (10, 10)]


def test_a_lag_finds_rows_that_came_late_and_doubles_none(shop: Shop) -> None:
    shop.source["lag"] = "10m"
    shop.order((1, 1, 1), (2, 2, 20))
    assert shop.extract(30).rows_out == 2
    shop.order((3, 3, 12), (4, 4, 5), (5, 5, 40))  # 3 is late within the lag, 4 beyond it
    report = shop.extract(50)
    assert report.rows_out == 2
    assert report.outputs["known_rows"] == 1
    assert sorted(shop.versions()) == [(1, 1), (2, 2), (3, 3), (5, 5)]
    assert shop.extract(60).rows_out == 0
    assert shop.extract(60).slices == 0
    record = last_record(shop.context(60), "raw")
    assert record is not None
    assert record["hours"] == {}  # rows that were known touch nothing that prepare has to write again


def test_a_lag_over_several_slices_goes_on_where_the_last_one_ended(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop.source["lag"] = "30m"
    shop.order(*[(key, key, key) for key in range(20)])
    shop.extract(25)
    monkeypatch.setattr(extraction, "SLICE_ROWS", 7)
    shop.order((100, 0, 3), (101, 0, 18), (102, 0, 26))
    report = shop.extract(30)
    assert report.slices == 4
    assert report.rows_out == 3
    assert sorted(key for key, _ in shop.versions()) == [*range(20), 100, 101, 102]


def test_a_backfill_adds_what_is_missing_and_leaves_the_watermark(shop: Shop) -> None:
    shop.order((1, 1, 10), (2, 2, 50))
    shop.extract(60)
    shop.order((3, 3, 20), (4, 4, 30))  # too late for any cursor
    assert shop.extract(70).slices == 0
    before = last_record(shop.context(70), "raw")
    assert shop.extract(80, since=at(15), until=at(25)).rows_out == 1
    assert shop.extract(90, since=at(5)).rows_out == 1
    assert shop.extract(90, since=at(5)).slices == 0
    after = last_record(shop.context(90), "raw")
    assert before is not None
    assert after is not None
    assert after["position"] == before["position"]
    assert sorted(shop.versions()) == [(1, 1), (2, 2), (3, 3), (4, 4)]
    shop.order((5, 5, 95))
    assert shop.extract(100).rows_out == 1


@pytest.mark.parametrize(
    ("rule", "expected"),
    [("newest", [(1, 1), (1, 10), (2, 2)]), ("keep_first", [(1, 1), (2, 2)])],
)
def test_on_conflict_decides_what_a_second_version_is(shop: Shop, rule: str, expected: list[tuple[int, int]]) -> None:
    shop.source["on_conflict"] = rule
    shop.order((1, 1, 1))
    shop.extract(5)
    shop.order((1, 10, 6), (2, 2, 7))
    shop.extract(10)
    assert sorted(shop.versions()) == expected


def test_on_conflict_fail_stops_before_the_commit_and_names_the_key(shop: Shop) -> None:
    shop.source["on_conflict"] = "fail"
    shop.order((1, 1, 1))
    shop.extract(5)
    shop.order((1, 10, 6), (2, 2, 7))
    with pytest.raises(KeyConflict, match="another cursor: 1;"):
        shop.extract(10)
    assert shop.versions() == [(1, 1)]
    shop.source["on_conflict"] = "newest"  # what the message says to do: the same plan goes through
    shop.extract(11)
    assert sorted(shop.versions()) == [(1, 1), (1, 10), (2, 2)]


def test_rows_that_do_not_fit_are_set_aside_with_key_reason_and_value(shop: Shop) -> None:
    shop.source["max_row_bytes"] = 2_000
    shop.sql("ALTER TABLE orders ADD COLUMN note TEXT")
    shop.sql(
        "INSERT INTO orders VALUES (?, ?, ?, ?, ?)",
        values=[
            (1, 1, "2026-01-01 00:00:00", "2026-01-01 00:00:01", "good"),
            (2, "many", "2026-01-01 00:00:00", "2026-01-01 00:00:02", "amount is a text"),
            (3, 3, "soon", "2026-01-01 00:00:03", "the event time is no time"),
            (4, 4, None, "2026-01-01 00:00:04", "there is no event time"),
            (5, 5, "2026-01-01 00:00:00", "2026-01-01 00:00:05", "fat" * 5_000),
            (6, 6, "2026-01-01 00:00:00", "2026-01-01 00:00:06", "good"),
        ],
    )
    shop.source["max_quarantine_share"] = 0.7
    report = shop.extract(10)
    assert [row["id"] for row in shop.rows()] == [1, 6]
    assert (report.rows_in, report.rows_out, report.rows_quarantined) == (6, 2, 4)
    found = {row["key"]: row for row in shop.rows("quarantine")}
    assert {key: (row["column"], row["reason"]) for key, row in found.items()} == {
        "2": ("amount", "column 'amount': it holds text"),
        "3": ("placed_at", "column 'placed_at': it is no time"),
        "4": ("placed_at", "column 'placed_at': the event time is null"),
        "5": ("note", "column 'note': larger than max_row_bytes: 15000 bytes"),
    }
    assert [found[key]["value"] for key in ("2", "3", "4")] == ["many", "soon", None]
    assert found["5"]["value"] == ("fat" * 5_000)[:256]
    assert all(row["cursor"] is not None and row["n"] == 1 and row["table"] == "raw" for row in found.values())


def test_too_large_a_share_of_quarantine_stops_before_the_commit(shop: Shop) -> None:
    shop.source["max_quarantine_share"] = 0.2
    shop.order((1, 1, 1), (2, 2, 2), (3, "x", 3))
    with pytest.raises(QuarantineExceeded, match=r"1 of 3 new rows of raw do not fit \(33.3%") as caught:
        shop.extract(10)
    assert "it holds text" in caught.value.message
    assert not shop.workspace.table("raw").exists()
    shop.sql("UPDATE orders SET amount = 3 WHERE id = 3")
    assert shop.extract(10).rows_out == 3


def test_replaying_brings_in_what_was_corrected_and_keeps_what_is_still_wrong(shop: Shop) -> None:
    shop.source["max_quarantine_share"] = 1.0
    shop.order((1, 1, 1), (2, "two", 2), (3, "three", 3), (4, "four", 90))
    shop.extract(100)
    shop.sql("UPDATE orders SET amount = 2 WHERE id = 2")  # without moving its cursor
    report = shop.extract(110, since=at(1.5), until=at(3.5))
    assert report.rows_out == 1
    assert sorted(shop.versions()) == [(1, 1), (2, 2)]
    assert sorted((row["key"], row["value"]) for row in shop.rows("quarantine")) == [("3", "three"), ("4", "four")]


def test_rows_read_again_are_in_quarantine_once(shop: Shop) -> None:
    shop.source |= {"lag": "1h", "max_quarantine_share": 1.0}
    shop.order((1, 1, 1), (2, "two", 2))
    shop.extract(10)
    shop.order((3, 3, 11), (4, "four", 12))
    shop.extract(20)
    shop.extract(30)
    assert sorted(row["key"] for row in shop.rows("quarantine")) == ["2", "4"]
    assert sorted(shop.versions()) == [(1, 1), (3, 3)]


def test_a_new_column_is_null_before_and_a_dropped_one_stops_until_it_is_allowed(shop: Shop) -> None:
    shop.order((1, 1, 1))
    shop.extract(5)
    shop.sql("ALTER TABLE orders ADD COLUMN note TEXT")
    shop.sql("INSERT INTO orders VALUES (2, 2, '2026-01-01', '2026-01-01 00:06:00', 'new')")
    shop.extract(10)
    assert [(row["id"], row["note"]) for row in shop.rows()] == [(1, None), (2, "new")]
    shop.sql("ALTER TABLE orders DROP COLUMN amount")
    shop.sql("INSERT INTO orders VALUES (3, '2026-01-01', '2026-01-01 00:11:00', 'newer')")
    with pytest.raises(SchemaChanged) as caught:
        shop.extract(15)
    assert caught.value.details["differences"] == [
        {"column": "amount", "kind": "dropped", "was": "int64", "found": "missing", "where": "orders"}
    ]
    assert "source.allow: [dropped]" in caught.value.hint
    assert len(shop.rows()) == 2
    shop.source["allow"] = ["dropped"]
    shop.extract(15)
    assert [(row["id"], row["amount"], row["note"]) for row in shop.rows()][2] == (3, None, "newer")


def test_a_wider_type_widens_all_that_is_there_in_one_commit(shop: Shop) -> None:
    shop.order((1, 1, 1), (2, 2**53 + 1, 2))  # the second is no float: the nearest is kept
    shop.extract(5)
    version = shop.workspace.table("raw").ref().version
    shop.sql(
        "ALTER TABLE orders RENAME TO old",
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, amount REAL, placed_at TIMESTAMP, updated_at TIMESTAMP)",
        "INSERT INTO orders SELECT * FROM old",
    )
    shop.order((3, 2.5, 6))
    shop.extract(10)
    assert shop.versions() == [(1, 1.0), (2, 2.0**53), (3, 2.5)]
    assert shop.workspace.table("raw").ref().version == version + 1
    shop.order((4, 4.5, 11))
    shop.extract(15)
    assert shop.versions()[-1] == (4, 4.5)


def test_a_narrower_or_other_type_and_another_key_stop_with_the_difference(shop: Shop) -> None:
    shop.order((1, 1, 1))
    shop.extract(5)
    shop.sql(
        "ALTER TABLE orders RENAME TO old",
        "CREATE TABLE orders (id TEXT PRIMARY KEY, amount TIMESTAMP, placed_at TIMESTAMP, updated_at TIMESTAMP)",
        "INSERT INTO orders VALUES ('7', '2026-01-01', '2026-01-01', '2026-01-01 00:07:00')",
    )
    with pytest.raises(SchemaChanged) as caught:
        shop.extract(10)
    kinds = {one["column"]: one["kind"] for one in caught.value.details["differences"]}
    assert kinds == {"id": "key", "amount": "retyped"}
    assert "column  was    is" in caught.value.message
    assert shop.versions() == [(1, 1)]


def test_labels_corrected_and_withdrawn_are_further_records_and_late_ones_are_found(shop: Shop) -> None:
    shop.labels["lag"] = timedelta(minutes=30)
    insert = "INSERT INTO verdicts VALUES (?, ?, ?)"
    shop.sql(insert, values=[(1, 1, "2026-01-01 00:10:00"), (2, 0, "2026-01-01 00:11:00")])
    shop.extract(20, "labels")
    shop.sql(insert, values=[(1, 0, "2026-01-01 00:12:00"), (2, None, "2026-01-01 00:13:00")])
    shop.sql(insert, values=[(9, 1, "2026-01-01 00:09:00"), (3, 7, "2026-01-01 00:14:00")])
    report = shop.extract(30, "labels")
    assert report.rows_out == 3
    assert [(row["key"], row["value"]) for row in shop.rows("labels")][2:] == [(9, True), (1, False), (2, None)]
    assert [(row["key"], row["reason"]) for row in shop.rows("quarantine")] == [
        ("3", "column 'fraud': it is neither 0 nor 1")
    ]
    assert shop.extract(40, "labels").rows_out == 0


def test_a_key_that_does_not_identify_a_row_is_said_and_no_row_is_lost_in_silence(shop: Shop) -> None:
    insert = "INSERT INTO verdicts VALUES (?, ?, ?)"
    shop.sql(insert, values=[(key, fraud, "2026-01-01 00:10:00") for key, fraud in ((1, 1), (1, 0), (2, 1))])
    shop.extract(20, "labels")
    assert [(row["key"], row["value"]) for row in shop.rows("labels")] == [(1, True), (2, True)]
    [row] = shop.rows("quarantine")
    assert row["key"] == "1"
    assert "the key does not identify a row" in row["reason"]
    assert '"fraud": 0' in row["row"]


def test_nothing_is_learned_of_a_task_under_a_profiler(shop: Shop) -> None:
    """What the profiler takes itself would be counted as the task's own from then on."""
    shop.order((1, 1, 1))
    learned = shop.workspace.root / "memory"
    context = dataclasses.replace(shop.context(5), launcher=lambda task: [sys.executable])
    assert run_stage(extraction.ExtractStage("raw"), context).rows_out == 1
    assert not learned.exists()
    shop.order((2, 2, 6))
    assert shop.extract(10).rows_out == 1
    assert list(learned.iterdir())
