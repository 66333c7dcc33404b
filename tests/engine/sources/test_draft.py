"""A drafted file is read back by the project's own reader, and asks where it cannot know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from engine.errors import SourceError, SpecError
from engine.sources.draft import draft_from, draft_pipeline
from engine.specfile import parse_spec


def make_shop(database: Any) -> None:
    database.execute(
        "CREATE TABLE orders (order_id BIGINT PRIMARY KEY, created_at TIMESTAMP, updated_at TIMESTAMP, "
        "country VARCHAR(2), amount DOUBLE PRECISION, express BOOLEAN)"
    )
    database.execute(
        "CREATE TABLE fraud_labels (order_id BIGINT, is_fraud BOOLEAN, reviewed_at TIMESTAMP, "
        "PRIMARY KEY (order_id, reviewed_at))"
    )
    database.execute("CREATE TABLE customers (id BIGINT PRIMARY KEY)")


def test_a_draft_is_a_pipeline_file_with_the_obvious_guesses(database: Any) -> None:
    make_shop(database)
    text = draft_from(f"{database.uri.get_secret_value()}::orders")
    spec = parse_spec(text, name="draft.yaml", environ={})
    assert spec.pipeline == "orders"
    assert spec.source.uri.get_secret_value() == database.uri.get_secret_value()
    assert (spec.source.table, spec.source.key, spec.source.cursor) == ("orders", "order_id", "updated_at")
    assert spec.event_time == "created_at"
    labels = spec.labels
    assert (labels.table, labels.key, labels.value, labels.labelled_at) == (
        "fraud_labels",
        "order_id",
        "is_fraud",
        "reviewed_at",
    )
    assert spec.features.numeric == ("amount", "express")
    assert spec.features.categorical == ("country",)
    assert text.count("DECIDE") >= 10


def test_labels_are_looked_for_in_the_tables_that_have_the_key(sqlite_database: Any) -> None:
    execute = sqlite_database.execute
    execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, created_at TIMESTAMP, updated_at TIMESTAMP, amount REAL)")
    execute("CREATE TABLE reviews (id INTEGER PRIMARY KEY, stars INTEGER)")  # of something else
    execute("CREATE TABLE items (order_id INTEGER, price REAL)")
    execute("CREATE TABLE claims (order_id INTEGER, justified BOOLEAN, decided_at TIMESTAMP)")
    text = draft_from(f"{sqlite_database.uri.get_secret_value()}::orders")
    labels = parse_spec(text, name="draft.yaml", environ={}).labels
    assert (labels.table, labels.key, labels.value, labels.labelled_at) == (
        "claims",
        "order_id",
        "justified",
        "decided_at",
    )
    assert "; or items" in text
    assert "reviews" not in text


def test_columns_that_look_late_or_unique_are_asked_about_in_comments(sqlite_database: Any) -> None:
    sqlite_database.execute(
        "CREATE TABLE orders (id INTEGER PRIMARY KEY, at TIMESTAMP, email TEXT, country TEXT, refund_amount REAL)"
    )
    text = draft_from(f"{sqlite_database.uri.get_secret_value()}::orders")
    assert "\n#   refund_amount: {known: after}\n" in text
    assert "then leave out: email\n" in text
    spec = parse_spec(text, name="draft.yaml", environ={})
    assert (spec.features.numeric, spec.features.categorical) == (("refund_amount",), ("email", "country"))
    assert spec.columns == {}


def test_what_cannot_be_guessed_is_left_to_fill_in(sqlite_database: Any) -> None:
    sqlite_database.execute("CREATE TABLE things (a REAL, b TEXT)")
    text = draft_from(f"{sqlite_database.uri.get_secret_value()}::things")
    spec = parse_spec(text, name="draft.yaml", environ={})
    assert spec.source.key == spec.event_time == spec.labels.table == "FILL_IN"


def test_hostile_names_come_back_as_they_are(sqlite_database: Any) -> None:
    names = ["a: b", "true", "${HOME}", "x'y", 'x"y', "#c", "[z]", "- d", "1", "ü"]
    columns = ", ".join('"' + name.replace('"', '""') + '" REAL' for name in names)
    sqlite_database.execute(f'CREATE TABLE "2 odd: name" (id INTEGER PRIMARY KEY, {columns})')
    text = draft_from(f"{sqlite_database.uri.get_secret_value()}::2 odd: name")
    spec = parse_spec(text, name="draft.yaml", environ={})
    assert spec.source.table == "2 odd: name"
    assert spec.features.numeric == tuple(names)


def test_a_password_becomes_a_variable(postgresql_database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    make_shop(postgresql_database)
    uri = postgresql_database.uri.get_secret_value().replace("postgres:@", "postgres:Tr0ub4dor@")
    text = draft_pipeline(SecretStr(uri), "orders")
    assert "Tr0ub4dor" not in text
    assert "set ORDERS_PASSWORD in the environment" in text
    spec = parse_spec(text, name="draft.yaml", environ={"ORDERS_PASSWORD": "Tr0ub4dor"})
    assert spec.source.uri.get_secret_value() == uri


def test_files_are_drafted_with_their_own_columns_and_labels(tmp_path: Path) -> None:
    (tmp_path / "orders.csv").write_text("order_id,amount,town,placed_at,fraud\n1,2.5,Ulm,2026-01-01,true\n")
    text = draft_from(str(tmp_path / "orders.csv"))
    spec = parse_spec(text, name="orders.yaml", environ={})
    assert spec.source.is_files
    assert (spec.source.key, spec.source.cursor, spec.event_time) == ("_key", "_read_at", "placed_at")
    assert (spec.labels.key, spec.labels.value, spec.labels.labelled_at) == ("_key", "fraud", "_read_at")
    assert spec.features.numeric == ("order_id", "amount")
    assert spec.features.categorical == ("town",)


@pytest.mark.parametrize("source", ["orders.parquet", "data/orders.csv"])
def test_files_that_are_not_there_are_said_to_be_missing(source: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="there is nothing at"):
        draft_from(str(tmp_path / source))


def test_without_a_table_the_tables_are_listed(sqlite_database: Any) -> None:
    make_shop(sqlite_database)
    with pytest.raises(SpecError, match="customers, fraud_labels, orders"):
        draft_from(sqlite_database.uri.get_secret_value())


def test_a_missing_table_names_the_nearest(sqlite_database: Any) -> None:
    make_shop(sqlite_database)
    with pytest.raises(SourceError, match="did you mean 'orders'"):
        draft_from(f"{sqlite_database.uri.get_secret_value()}::order")
