"""Leaks are found where there are some, and only there."""

from __future__ import annotations

import random
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest

from engine.sources.check import check_leaks, open_labels, open_rows
from engine.sources.findings import Finding
from engine.spec import PipelineSpec

ROWS = 4_000
BASE_RATE = 0.05


def spec_for(database: Any, **changes: Any) -> PipelineSpec:
    values: dict[str, Any] = {
        "pipeline": "p",
        "workspace": "w",
        "source": {"uri": database.uri.get_secret_value(), "table": "t", "key": "id", "cursor": "at"},
        "event_time": "at",
        "labels": {"table": "l", "key": "id", "value": "bad", "labelled_at": "at"},
        "features": {"numeric": ["v"]},
    }
    return PipelineSpec.model_validate({**values, **changes})


def fill(database: Any, declared: str, value: Any, *, rate: float = BASE_RATE, labelled: Any = None) -> None:
    """Write rows whose ``v`` is ``value(bad, random)``; ``labelled(bad)`` says which labels are written."""
    chance = random.Random(0)
    rows, labels = [], []
    for key in range(ROWS):
        bad = chance.random() < rate
        at = (datetime(2020, 1, 1) + timedelta(minutes=10 * key)).strftime("%Y-%m-%d %H:%M:%S")
        rows.append((key, at, value(bad, chance)))
        if labelled is None or labelled(bad):
            labels.append((key, int(bad), at))
    database.execute(f"CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP, v {declared})")
    database.execute("CREATE TABLE l (id INTEGER PRIMARY KEY, bad INTEGER, at TIMESTAMP)")
    database.insert("t", rows)
    database.insert("l", labels)


def leaks(spec: PipelineSpec, **more: Any) -> tuple[Finding, ...]:
    with open_rows(spec) as rows, open_labels(spec) as labels:
        return check_leaks(spec, rows, labels, **more)


@pytest.mark.parametrize(
    ("declared", "value", "what"),
    [
        ("REAL", lambda bad, chance: None if bad else chance.random(), "being null"),
        ("TIMESTAMP", lambda bad, chance: "2020-01-01 00:00:00" if bad else None, "having a value"),
        ("TEXT", lambda bad, chance: "refused" if bad else chance.choice("abc"), "= 'refused'"),
        ("INTEGER", lambda bad, chance: -1 if bad else chance.randrange(9), "= -1"),
        ("BOOLEAN", lambda bad, chance: bad, "= True"),
    ],
)
def test_a_value_that_stands_for_the_label_is_found(sqlite_database: Any, declared: str, value: Any, what: str) -> None:
    fill(sqlite_database, declared, value)
    (found,) = leaks(spec_for(sqlite_database))
    assert (found.severity, found.where) == ("warning", "features.numeric")
    assert f"'v' {what} gives the label away: 100.0% of such rows are positive" in found.message


@pytest.mark.parametrize(
    ("declared", "value"),
    [
        ("TEXT", lambda bad, chance: chance.choice("abc")),  # 95 % negative, as everything
        ("TEXT", lambda bad, chance: "constant"),
        ("REAL", lambda bad, chance: chance.random()),
        ("REAL", lambda bad, chance: None),
        ("TEXT", lambda bad, chance: "honest" if not bad and chance.random() < 0.5 else "rest"),  # all negative
        ("TEXT", lambda bad, chance: "seldom" if bad and chance.random() < 0.05 else "rest"),  # fewer than 30
        ("TEXT", lambda bad, chance: "often" if bad or chance.random() < 0.002 else "rest"),  # 96 % positive
    ],
)
def test_an_honest_column_is_not_suspected(sqlite_database: Any, declared: str, value: Any) -> None:
    fill(sqlite_database, declared, value)
    assert leaks(spec_for(sqlite_database)) == ()


def test_the_common_class_at_97_5_percent_is_no_leak(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: chance.choice("abc"), rate=0.025)
    assert leaks(spec_for(sqlite_database)) == ()


def test_where_positives_are_common_the_negatives_are_looked_at(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: "ok" if not bad else chance.choice("abc"), rate=0.95)
    (found,) = leaks(spec_for(sqlite_database))
    assert "'v' = 'ok' gives the label away: 100.0% of such rows are negative" in found.message


def test_an_unused_column_is_information_and_one_known_after_is_none(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: None if bad else "x")
    sqlite_database.execute("ALTER TABLE t ADD COLUMN w REAL")
    (found,) = leaks(spec_for(sqlite_database, features={"numeric": ["w"]}))
    assert (found.severity, found.where) == ("info", "v")
    assert found.message.endswith("no feature reads it")
    assert leaks(spec_for(sqlite_database, features={"numeric": ["w"]}, columns={"v": {"known": "after"}})) == ()


def test_key_cursor_and_event_time_are_not_suspected(sqlite_database: Any) -> None:
    fill(sqlite_database, "TIMESTAMP", lambda bad, chance: "2020-01-01 00:00:00" if bad else None)
    sqlite_database.execute("ALTER TABLE t ADD COLUMN w REAL")
    assert [found.where for found in leaks(spec_for(sqlite_database, features={"numeric": ["w"]}))] == ["v"]
    assert leaks(spec_for(sqlite_database, features={"numeric": ["w"]}, event_time="v")) == ()


def test_rows_without_a_label_are_negative_where_the_file_says_so(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: None if bad else "x", labelled=lambda bad: bad)
    labels = {"table": "l", "key": "id", "value": "bad", "labelled_at": "at"}
    (found,) = leaks(spec_for(sqlite_database, labels={**labels, "absent": "negative"}))
    assert "being null" in found.message
    (found,) = leaks(spec_for(sqlite_database, labels={**labels, "absent": "unknown"}))
    assert found.message.startswith("too few labelled rows")


def test_few_labels_are_said_to_be_few(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: None if bad else "x", rate=0.005)
    (found,) = leaks(spec_for(sqlite_database))
    assert (found.severity, found.where) == ("info", "labels")
    assert f"{ROWS:,} with " in found.message


def test_a_label_that_is_neither_0_nor_1_is_shown(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: "x")
    sqlite_database.execute("UPDATE l SET bad = 7 WHERE id = 3")
    (found,) = leaks(spec_for(sqlite_database))
    assert (found.where, found.severity) == ("labels.value", "warning")
    assert "'bad' holds 7" in found.message


def test_columns_of_the_transform_are_looked_at_too(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: "a" if bad else "b")

    def coded(rows: pa.Table) -> pa.Table:
        return rows.append_column("code", pa.compute.equal(rows.column("v"), "a"))

    spec = spec_for(sqlite_database, features={"numeric": ["code"], "transform": "m:f"})
    found = {one.where: one.severity for one in leaks(spec, transform=coded)}
    assert found == {"v": "info", "features.numeric": "warning"}


def test_the_sample_is_bounded(sqlite_database: Any) -> None:
    fill(sqlite_database, "TEXT", lambda bad, chance: None if bad else "x", rate=0.2)
    (found,) = leaks(spec_for(sqlite_database), sample_rows=500)
    rows = int(found.message.split("(")[1].split(" ")[0])
    assert 30 <= rows <= 150
