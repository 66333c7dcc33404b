"""What a window may be asked for beside its statistics: null keys, rows at the same instant, the row's own ratio."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.features.segments import build_segment
from engine.features.windows import WindowReader
from engine.spec import WindowSpec

START = datetime(2024, 3, 30, tzinfo=UTC)
LENGTH = timedelta(seconds=7)
Row = tuple[str | None, int | None, int, float | None]  # two keys, seconds, value

ROWS = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", None]),
        st.sampled_from([1, None]),
        st.integers(0, 15),
        st.none() | st.integers(-8, 8).map(float) | st.floats(-1e9, 1e9),
    ),
    max_size=30,
)


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.string()),
            "b": pa.array([row[1] for row in rows], pa.int64()),
            "at": pa.array([START + timedelta(seconds=row[2]) for row in rows], pa.timestamp("us", tz="UTC")),
            "x": pa.array([row[3] for row in rows], pa.float64()),
        }
    )


def _window(**choices: Any) -> WindowSpec:
    statistics = ("count", "mean", "since", "ratio", "min", "max")
    return WindowSpec(over="events", keys=("a", "b"), lengths=(LENGTH,), statistics=statistics, column="x", **choices)


def _reader(rows: Sequence[Row], cuts: Sequence[int], root: Path) -> WindowReader:
    parts = [[row for row, part in zip(rows, cuts, strict=True) if part == number] for number in range(3)]
    refs = [
        build_segment(
            _table(part),
            keys=("a", "b"),
            time="at",
            measures=("x",),
            extremes={"x": ("min", "max")},
            path=root / f"{i}.arrow",
            root=root,
        )
        for i, part in enumerate(parts)
    ]
    return WindowReader(refs[::-1], root=root)


def _expected(rows: Sequence[Row], row: Row, window: WindowSpec, gap: int) -> dict[str, Any]:
    near, closed = row[2] - gap, gap > 0 or window.same_instant
    mine = [
        other
        for other in rows
        if other[:2] == row[:2]
        and near - LENGTH.total_seconds() < other[2]
        and (other[2] <= near if closed else other[2] < near)
    ]
    if window.null_keys == "exclude" and None in row[:2]:
        mine = []
    present = [other[3] for other in mine if other[3] is not None]
    values = [Fraction(other[3]) for other in mine if other[3] is not None]
    mean = sum(values, Fraction(0)) / len(values) if values else None
    rounded = None if mean is None else float(mean)
    return {
        "count": len(mine),
        "mean": rounded,
        "since": float(row[2] - max(other[2] for other in mine)) if mine else None,
        "ratio": row[3] / rounded if rounded and row[3] is not None else None,
        "min": min(present, default=None),
        "max": max(present, default=None),
    }


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ROWS,
    st.lists(st.integers(0, 2), min_size=30, max_size=30),
    st.sampled_from(["own", "exclude"]),
    st.booleans(),
    st.sampled_from([0, 3]),
)
def test_choices_are_those_of_the_definition_however_rows_are_cut(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[Row],
    cuts: list[int],
    null_keys: str,
    same_instant: bool,
    gap: int,
) -> None:
    window = _window(null_keys=null_keys, same_instant=same_instant)
    reader = _reader(rows, cuts[: len(rows)], tmp_path_factory.mktemp("segments"))
    found = reader.compute(_table(rows), keys=("a", "b"), time="at", window=window, gap=timedelta(seconds=gap))
    names = {statistic: name for _, statistic, name in window.names()}
    for at, row in enumerate(rows):
        wanted = _expected(rows, row, window, gap)
        for statistic in ("count", "since", "min", "max"):
            assert found[names[statistic]][at].as_py() == wanted[statistic]
        for statistic in ("mean", "ratio"):
            value, right = found[names[statistic]][at].as_py(), wanted[statistic]
            assert (value is None) == (right is None), (statistic, value, right)
            assert right is None or math.isclose(value, right, rel_tol=1e-9)
        one = reader.lookup(
            {"a": row[0], "b": row[1]},
            START + timedelta(seconds=row[2]),
            window=window,
            gap=timedelta(seconds=gap),
            value=row[3],
        )
        assert {name: repr(value) for name, value in one.items()} == {
            name: repr(values[at].as_py()) for name, values in found.items()
        }


def test_the_row_itself_is_in_its_window_only_when_that_is_asked(tmp_path: Path) -> None:
    rows: list[Row] = [("a", 1, 5, 2.0), ("a", 1, 5, 4.0)]
    reader = _reader(rows, [0, 1], tmp_path)
    for same_instant, count in ((False, 0), (True, 2)):
        window = _window(same_instant=same_instant)
        found = reader.compute(_table(rows), keys=("a", "b"), time="at", window=window, gap=timedelta(0))
        assert [value.to_pylist() for name, value in found.items() if name.endswith("_count")] == [[count, count]]
    ratio = next(value for name, value in found.items() if name.endswith("_ratio"))
    assert ratio.to_pylist() == [2.0 / 3.0, 4.0 / 3.0]


@pytest.mark.parametrize(
    ("own", "before", "ratio"),
    [
        (3.0, [2.0, 4.0], 1.0),
        (3.0, [1.0, -1.0], None),
        (None, [2.0], None),
        (3.0, [None], None),
        (math.inf, [2.0], math.inf),
    ],
)
def test_a_ratio_has_no_value_where_there_is_none_or_the_mean_is_zero(
    tmp_path: Path, own: float | None, before: list[float | None], ratio: float | None
) -> None:
    rows: list[Row] = [*(("a", 1, 1, value) for value in before), ("a", 1, 5, own)]
    window = _window()
    found = _reader(rows, [0] * len(rows), tmp_path).compute(
        _table(rows[-1:]), keys=("a", "b"), time="at", window=window, gap=timedelta(0)
    )
    assert next(value for name, value in found.items() if name.endswith("_ratio")).to_pylist() == [ratio]


def test_a_ratio_of_decimals_is_of_the_nearest_float_however_many_zeros_are_written(tmp_path: Path) -> None:
    """Arrow's own cast of 0.0110 is 0.011000000000000001."""
    row: Row = ("a", 1, 5, None)
    reader = _reader([("a", 1, 1, 1.0)], [0], tmp_path)
    rows = _table([row]).set_column(3, "x", pa.array([Decimal("0.0110")], pa.decimal128(18, 4)))
    found = reader.compute(rows, keys=("a", "b"), time="at", window=_window(), gap=timedelta(0))
    assert next(value for name, value in found.items() if name.endswith("_ratio")).to_pylist() == [0.011]


@pytest.mark.parametrize(
    ("window", "says"),
    [
        ({"over": "events", "statistics": ["ratio"]}, "ratio of events need a column"),
        ({"over": "events", "statistics": ["min", "count"]}, "min of events need a column"),
        ({"over": "events", "statistics": ["distinct", "count"]}, "distinct of events need a column"),
        ({"over": "labels", "statistics": ["distinct"]}, "over labels has no distinct: .* use count and rate"),
        ({"over": "labels", "statistics": ["ratio"]}, "its label is not known yet"),
        ({"over": "labels", "statistics": ["rate", "min", "max"]}, "over labels has no min and no max: .* use rate"),
        ({"over": "labels", "statistics": ["rate"], "same_instant": True}, "same_instant is for events"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(window: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        WindowSpec.model_validate({"keys": ["a"], "lengths": ["7d"], **window})
