import json
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from engine.spec import FeaturesSpec, OperatingPointSpec, PipelineSpec, SourceSpec, WindowSpec


def _spec(**changes) -> PipelineSpec:
    values = {
        "pipeline": "cards",
        "workspace": "here",
        "source": {"uri": "postgresql://u:hunter2@h/db", "table": "t", "key": "id", "cursor": "updated_at"},
        "event_time": "at",
        "labels": {"table": "l", "key": "id", "value": "fraud", "labelled_at": "labelled_at"},
        "features": {"numeric": ["amount"], "categorical": ["card"]},
    }
    return PipelineSpec.model_validate({**values, **changes})


def _window(**changes) -> WindowSpec:
    values = {"over": "labels", "keys": ["origin"], "lengths": ["3h", "7d"], "statistics": ["rate"]}
    return WindowSpec.model_validate({**values, **changes})


def test_a_spec_cannot_be_changed():
    with pytest.raises(ValidationError, match="frozen"):
        _spec().event_time = "other"


def test_a_password_is_masked_where_a_person_looks_and_kept_where_a_child_reads():
    spec = _spec()
    assert "hunter2" not in repr(spec)
    assert "hunter2" not in str(spec.model_dump())
    assert PipelineSpec.model_validate_json(spec.model_dump_json()) == spec
    assert "hunter2" in spec.model_dump_json()


def test_window_names_hold_over_keys_length_column_and_statistic():
    labels = _window(keys=["carrier", "origin"], statistics=["rate", "count"])
    assert [name for _, _, name in labels.names()] == [
        "labels_carrier_origin_3h_rate",
        "labels_carrier_origin_3h_count",
        "labels_carrier_origin_7d_rate",
        "labels_carrier_origin_7d_count",
    ]
    events = _window(over="events", column="distance", statistics=["mean", "count"], lengths=["90m"])
    assert [name for _, _, name in events.names()] == ["events_origin_1h30m_distance_mean", "events_origin_1h30m_count"]


def test_time_since_the_last_event_has_one_feature_for_the_longest_length():
    window = _window(over="events", statistics=["since", "count"])
    assert [(length, statistic) for length, statistic, _ in window.names() if statistic == "since"] == [
        (timedelta(days=7), "since")
    ]


@given(
    st.lists(st.integers(1, 5_000).map(lambda minutes: f"{minutes}m"), min_size=1, max_size=4, unique=True),
    st.lists(
        st.sampled_from(["count", "sum", "mean", "std", "rate", "since", "min", "max", "distinct"]),
        min_size=1,
        max_size=9,
        unique=True,
    ),
)
def test_one_window_never_names_a_feature_twice(lengths, statistics):
    window = _window(over="events", column="late", lengths=lengths, statistics=statistics)
    names = [name for _, _, name in window.names()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"over": "events", "statistics": ["mean"]}, "need a column"),
        ({"over": "events", "statistics": ["rate"]}, "boolean column"),
        ({"column": "distance"}, "leave column out"),
        ({"lengths": ["0s"]}, "longer than 0"),
        ({"keys": []}, "at least 1"),
        ({"keys": ["value"]}, "no key 'value'"),
        ({"lengths": []}, "at least 1"),
        ({"statistics": ["median"]}, "Input should be"),
    ],
)
def test_a_window_that_cannot_be_computed_is_refused(changes, says):
    with pytest.raises(ValidationError, match=says):
        _window(**changes)


def test_a_window_without_a_gap_takes_that_of_the_features():
    own, shared = _window(gap="1h"), _window()
    features = FeaturesSpec.model_validate({"gap": "2h", "windows": []})
    assert features.gap_of(own) == timedelta(hours=1)
    assert features.gap_of(shared) == timedelta(hours=2)


@pytest.mark.parametrize("values", [{}, {"precision": 0.5, "recall": 0.5}, {"recall": 1.5}])
def test_an_operating_point_is_exactly_one_share(values):
    with pytest.raises(ValidationError):
        OperatingPointSpec.model_validate(values)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"columns": {"amount": {"known": "after"}}}, "'amount' is known only after the event"),
        ({"features": {"numeric": ["amount", "amount"]}}, "'amount' is named twice"),
        ({"features": {}}, "there are none"),
        ({"features": {"numeric": ["amount", "key"]}}, "a column of their own called 'key'"),
        ({"features": {"numeric": ["event_time"]}}, "a column of their own called 'event_time'"),
        ({"features": {"categorical": ["baseline"]}, "baseline": "amount"}, "a column of their own called 'baseline'"),
        ({"features": {"numeric": ["_label"]}}, "a column of their own called '_label'"),
        (
            {
                "columns": {"arrived": {"known": "after"}},
                "features": {
                    "windows": [
                        {
                            "over": "events",
                            "keys": ["origin"],
                            "lengths": ["3h"],
                            "statistics": ["mean"],
                            "column": "arrived",
                        }
                    ]
                },
            },
            "'arrived' is known only after the event",
        ),
        (
            {
                "columns": {"gate": {"known": "after"}},
                "features": {
                    "windows": [{"over": "labels", "keys": ["gate"], "lengths": ["3h"], "statistics": ["rate"]}]
                },
            },
            "key 'gate' is known only after the event",
        ),
    ],
)
def test_features_that_leak_or_collide_are_refused(changes, says):
    with pytest.raises(ValidationError, match=says):
        _spec(**changes)


def test_a_column_known_after_the_event_may_be_declared_when_no_feature_reads_it():
    spec = _spec(columns={"arrived": {"known": "after"}, "booked": {"known": "at_event"}})
    assert spec.after_columns == ("arrived",)


def test_the_gap_before_validation_is_the_label_delay_unless_given():
    labels = {"table": "l", "key": "id", "value": "fraud", "labelled_at": "labelled_at", "delay": "30d"}
    assert _spec(labels=labels).split_gap == timedelta(days=30)
    assert _spec(labels=labels, split={"gap": "1d"}).split_gap == timedelta(days=1)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": {"numeric": ["amount", "age"], "categorical": ["card"]}},
        {"features": {"numeric": ["amount"], "categorical": ["card"], "gap": "1h"}},
        {"event_time": "other"},
        {"columns": {"arrived": {"known": "after"}}},
        {"baseline": "old_score"},
    ],
)
def test_the_feature_set_changes_with_what_prepared_holds(changes):
    assert _spec(**changes).feature_set != _spec().feature_set


@pytest.mark.parametrize(
    "changes",
    [
        {"learner": {"kind": "sgd"}},
        {"resources": {"memory": "2GiB"}},
        {"workspace": "there"},
        {"gate": {"floors": {"lift": 2.0}}},
        {"source": {"uri": "sqlite:///x.db", "table": "t", "key": "id", "cursor": "updated_at"}},
    ],
)
def test_the_feature_set_stays_when_prepared_would_be_the_same(changes):
    assert _spec(**changes).feature_set == _spec().feature_set


def test_the_feature_set_does_not_depend_on_how_a_duration_is_written():
    features = {"numeric": ["amount"], "gap": "120m"}
    assert _spec(features=features).feature_set == _spec(features={**features, "gap": "2h"}).feature_set


def test_json_keeps_durations_as_people_write_them():
    spec = _spec(triggers={"every": "36h"})
    assert json.loads(spec.model_dump_json())["triggers"]["every"] == "1d12h"


def test_an_unknown_key_is_refused():
    with pytest.raises(ValidationError, match="Extra inputs"):
        SourceSpec.model_validate({"uri": "x", "table": "t", "key": "k", "cursor": "c", "cursr": "c"})
