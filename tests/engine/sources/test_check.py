"""What a check finds in the schema of the source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from engine.errors import SourceSchemaError, SpecError
from engine.sources.check import Finding, check_pipeline, check_schema
from engine.spec import PipelineSpec

STAMP = pa.timestamp("us", tz="UTC")
ROWS = pa.schema(
    [
        ("id", pa.int64()),
        ("at", STAMP),
        ("happened", STAMP),
        ("amount", pa.float64()),
        ("country", pa.string()),
        ("flag", pa.bool_()),
        ("score", pa.float64()),
    ]
)
LABELS = pa.schema([("id", pa.int64()), ("bad", pa.bool_()), ("labelled_at", STAMP)])


def make(uri: str = "sqlite:///x.db", **changes: Any) -> PipelineSpec:
    values: dict[str, Any] = {
        "pipeline": "p",
        "workspace": "w",
        "source": {"uri": uri, "table": "t", "key": "id", "cursor": "at"},
        "event_time": "happened",
        "labels": {"table": "l", "key": "id", "value": "bad", "labelled_at": "labelled_at"},
        "features": {"numeric": ["amount", "flag"], "categorical": ["country"]},
    }
    return PipelineSpec.model_validate({**values, **changes})


def window_of(column: str, *statistics: str) -> dict[str, Any]:
    return {"over": "events", "keys": ["id"], "lengths": ["1d"], "statistics": [*statistics], "column": column}


def errors(spec: PipelineSpec, rows: pa.Schema = ROWS, labels: pa.Schema = LABELS, **more: Any) -> dict[str, Finding]:
    return {one.where: one for one in check_schema(spec, rows, labels, **more) if one.severity == "error"}


def test_a_pipeline_that_fits_has_no_finding() -> None:
    assert check_schema(make(), ROWS, LABELS) == ()


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("event_time", {"event_time": "happend"}),
        ("columns.contry", {"columns": {"contry": {"known": "after"}}}),
        ("baseline", {"baseline": "scor"}),
        ("features.numeric", {"features": {"numeric": ["amuont"]}}),
        ("features.categorical", {"features": {"categorical": ["contry"]}}),
        (
            "features.windows[0].keys",
            {
                "features": {
                    "windows": [{"over": "labels", "keys": ["contry"], "lengths": ["1d"], "statistics": ["rate"]}]
                }
            },
        ),
        (
            "features.windows[0].column",
            {
                "features": {
                    "windows": [
                        {"over": "events", "keys": ["id"], "lengths": ["1d"], "statistics": ["sum"], "column": "amuont"}
                    ]
                }
            },
        ),
    ],
)
def test_a_missing_column_names_its_place_and_the_nearest(where: str, changes: dict[str, Any]) -> None:
    found = errors(make(**changes))
    assert list(found) == [where]
    assert "there is no column" in found[where].message
    assert found[where].hint.startswith("did you mean ")
    assert "columns: amount, at, country" in found[where].hint


@pytest.mark.parametrize(
    ("where", "changes"),
    [
        ("event_time", {"event_time": "country"}),
        ("baseline", {"baseline": "country"}),
        ("features.numeric", {"features": {"numeric": ["country"]}}),
        ("features.windows[0].column", {"features": {"windows": [window_of("country", "count", "max")]}}),
    ],
)
def test_a_column_of_an_unusable_type_is_an_error(where: str, changes: dict[str, Any]) -> None:
    assert list(errors(make(**changes))) == [where]


def test_distinct_values_may_be_of_any_type() -> None:
    spec = make(features={"windows": [window_of("country", "count", "distinct")]})
    assert check_schema(spec, ROWS, LABELS) == ()


def test_a_label_is_a_boolean_or_a_number() -> None:
    text = LABELS.set(1, pa.field("bad", pa.string()))
    assert list(errors(make(), labels=text)) == ["labels.value"]
    assert errors(make(), labels=LABELS.set(1, pa.field("bad", pa.int64()))) == {}


def test_keys_of_another_kind_would_never_meet() -> None:
    text = LABELS.set(0, pa.field("id", pa.string()))
    assert list(errors(make(), labels=text)) == ["labels.key"]


def test_the_label_and_the_key_are_no_features() -> None:
    rows = ROWS.append(pa.field("bad", pa.bool_())).append(pa.field("labelled_at", STAMP))
    labels = {"table": "t", "key": "id", "value": "bad", "labelled_at": "labelled_at"}
    spec = make(labels=labels, features={"numeric": ["bad", "id"]})
    found = {one.message.split()[0]: one.severity for one in check_schema(spec, rows, LABELS)}
    assert found == {"'bad'": "error", "'id'": "warning"}


def test_a_transform_may_add_columns_and_is_asked_which_when_it_is_given() -> None:
    features = {"numeric": ["hour"], "categorical": ["countri"], "transform": "m:f"}
    assert errors(make(features=features)) == {}

    def with_hour(rows: pa.Table) -> pa.Table:
        return rows.append_column("hour", pa.nulls(rows.num_rows, pa.int64()))

    assert list(errors(make(features=features), transform=with_hour)) == ["features.categorical"]

    def broken(rows: pa.Table) -> pa.Table:
        raise SpecError("features.transform: it fails", hint="mend it")

    assert errors(make(features=features), transform=broken) == {
        "features.transform": Finding("error", "features.transform", "features.transform: it fails", "mend it")
    }


def test_features_that_a_transform_has_to_make_are_named_and_near_misses_too() -> None:
    features = {"numeric": ["hour", "amuont"], "categorical": ["country"], "transform": "m:f"}
    (found,) = check_schema(make(features=features), ROWS, LABELS)
    assert (found.severity, found.where) == ("info", "features.transform")
    assert found.message == "it has to make what is not in the source: hour, amuont"
    assert found.hint == "'amuont': did you mean 'amount'?"


def test_a_number_with_a_fraction_as_a_category_is_suspect() -> None:
    found = check_schema(make(features={"categorical": ["amount"]}), ROWS, LABELS)
    assert [(one.severity, one.where) for one in found] == [("warning", "features.categorical")]


def test_a_pipeline_is_checked_against_its_real_source(sqlite_database: Any, tmp_path: Path) -> None:
    uri = sqlite_database.uri.get_secret_value()
    sqlite_database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, at TIMESTAMP, happened TIMESTAMP, amount REAL)")
    sqlite_database.execute("CREATE TABLE l (id INTEGER PRIMARY KEY, bad BOOLEAN, labelled_at TIMESTAMP)")
    found = check_pipeline(make(uri, features={"numeric": ["amount", "x"], "transform": "gone:f"}), directory=tmp_path)
    severities = [(one.severity, one.where) for one in found]
    assert severities == [("error", "features.transform"), ("info", "features.transform")]
    (tmp_path / "gone.py").write_text("")
    found = check_pipeline(make(uri, features={"numeric": ["amount", "x"], "transform": "gone:f"}), directory=tmp_path)
    severities = [(one.severity, one.where) for one in found]
    assert severities == [("info", "features.transform"), ("info", "labels")]  # no rows yet
    labels = {"table": "l2", "key": "id", "value": "bad", "labelled_at": "labelled_at"}
    with pytest.raises(SourceSchemaError, match="no table 'l2'"):
        check_pipeline(make(uri, labels=labels, features={"numeric": ["amount"]}), directory=tmp_path)
