"""Distinct values of windows against sets: built span by span, in tiers or not, asked as batches and row by row."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import SchemaMismatch, SpecError, TableError
from engine.features import segments
from engine.features.distinct_columns import Before
from engine.features.segment_sets import build_segments
from engine.features.segments import build_segment, open_segment
from engine.features.window_plans import segment_plans, window_block_bytes, window_bytes_per_row
from engine.features.windows import WindowReader
from engine.spec import FeaturesSpec, WindowSpec

START = datetime(2024, 3, 30, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
KEYS = ("a", "b")
OTHERS = ("count", "sum", "mean", "std", "min", "max", "since")
Row = tuple[str | None, int | None, int, Any]  # two keys, seconds, value

VALUES: dict[str, tuple[pa.DataType, list[Any]]] = {
    "text": (pa.string(), ["", "x", "xy", None]),
    "float": (pa.float64(), [0.0, -0.0, math.nan, math.inf, None]),
    "integer": (pa.int64(), [0, 2**63 - 1, -(2**63), None]),
    "decimal": (pa.decimal128(20, 4), [Decimal("1.5"), Decimal("-1.5"), None]),
    "boolean": (pa.bool_(), [True, False, None]),
    "time": (STAMP, [START, START + timedelta(microseconds=1), None]),
    "date": (pa.date32(), [START.date(), START.date() + timedelta(days=1), None]),
    "none": (pa.null(), [None]),
}


def _table(rows: Sequence[Row], of: pa.DataType) -> pa.Table:
    return pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.string()),
            "b": pa.array([row[1] for row in rows], pa.int64()),
            "at": pa.array([START + timedelta(seconds=row[2]) for row in rows], STAMP),
            "x": pa.array([row[3] for row in rows], of),
        }
    )


def _window(keys: Sequence[str] = KEYS, lengths: Sequence[int] = (3, 11), **choices: Any) -> WindowSpec:
    choices = {"statistics": ("distinct", "count"), "column": "x"} | choices
    spans = tuple(timedelta(seconds=length) for length in lengths)
    return WindowSpec(over="events", keys=tuple(keys), lengths=spans, **choices)


def _reader(
    spans: Sequence[Sequence[Row]], of: pa.DataType, root: Path, windows: Sequence[WindowSpec], **choices: Any
) -> WindowReader:
    """Return a reader of the windows' one key, the spans built one after another."""
    (plan,) = segment_plans(FeaturesSpec(windows=tuple(windows)), over="events")
    reader = WindowReader([], root=root, **choices)
    for number, rows in enumerate(spans):
        build_segments(
            _table(rows, of), plans=[plan], time="at", root=root, prefix=str(number), readers={plan.keys: reader}
        )
    return reader


def _cut(rows: Sequence[Row], cuts: Sequence[int]) -> list[Sequence[Row]]:
    edges = [0, *sorted(min(cut, len(rows)) for cut in cuts), len(rows)]
    return [rows[low:high] for low, high in itertools.pairwise(edges)]


def _expected(rows: Sequence[Row], row: Row, window: WindowSpec, gap: int) -> dict[str, int]:
    """The definition: all NaN are one value, and so are both zeros; null is none."""
    out, near, closed = {}, row[2] - gap, gap > 0 or window.same_instant
    names = [("a", "b").index(key) for key in window.keys]
    own = [row[at] for at in names]
    for length, statistic, name in window.names():
        mine = [
            other[3]
            for other in rows
            if [other[at] for at in names] == own
            and near - length.total_seconds() < other[2]
            and (other[2] <= near if closed else other[2] < near)
            and not (window.null_keys == "exclude" and None in own)
        ]
        values = {"nan" if value != value else value for value in mine if value is not None}
        out[name] = len(mine) if statistic == "count" else len(values)
    return out


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_other_statistics_of_a_window_are_to_the_bit_what_they_are_without(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    of, values = VALUES[data.draw(st.sampled_from(["float", "integer", "decimal", "boolean"]))]
    row = st.tuples(st.sampled_from(["x", None]), st.just(1), st.integers(0, 30), st.sampled_from(values))
    rows = sorted(data.draw(st.lists(row, max_size=40)), key=lambda each: each[2])
    spans = _cut(rows, data.draw(st.lists(st.integers(0, 40), max_size=9)))
    plain, full = _window(statistics=OTHERS), _window(statistics=("distinct", *OTHERS))
    root, scratch = tmp_path_factory.mktemp("segments"), tmp_path_factory.mktemp("tiers")
    reader = _reader(spans, of, root, [plain, full], scratch=scratch)
    for batch in [*spans, *spans, rows]:
        without, found = (
            reader.compute(_table(batch, of), keys=KEYS, time="at", window=window, gap=timedelta(0))
            for window in (plain, full)
        )
        counted = [name for _, statistic, name in full.names() if statistic == "distinct"]
        for at, one in enumerate(batch):
            wanted = _expected(rows, one, full, 0)
            assert [found[name][at].as_py() for name in counted] == [wanted[name] for name in counted]
        for name, values_of in without.items():
            assert list(map(repr, values_of.to_pylist())) == list(map(repr, found[name].to_pylist())), name


@st.composite
def cases(draw: Any) -> tuple[pa.DataType, list[Row], list[int], list[Row], dict[str, Any], int]:
    of, values = VALUES[draw(st.sampled_from(sorted(VALUES)))]
    row = st.tuples(
        st.sampled_from(["", "x", None]), st.sampled_from([1, None]), st.integers(0, 30), st.sampled_from(values)
    )
    rows = sorted(draw(st.lists(row, max_size=50)), key=lambda each: each[2])
    cuts = draw(st.lists(st.integers(0, 50), max_size=9))
    keys = draw(st.sampled_from([("a",), ("b",), ("a", "b"), ("b", "a")]))
    choices: dict[str, Any] = {"keys": keys, "null_keys": draw(st.sampled_from(["own", "exclude"]))}
    gap = draw(st.sampled_from([0, 0, 2, 6]))
    choices["same_instant"] = draw(st.booleans())
    choices["lengths"] = draw(st.sampled_from([(3, 11), (1,), (25, 400), (2, 9, 31)]))
    return of, rows, cuts, draw(st.lists(row, max_size=8)), choices, gap


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_distinct_values_are_those_of_the_definition_however_rows_are_cut(
    tmp_path_factory: pytest.TempPathFactory, case: tuple[Any, ...]
) -> None:
    of, rows, cuts, others, choices, gap = case
    window = _window(**choices)
    spans, seconds = _cut(rows, cuts), timedelta(seconds=gap)
    root, scratch = tmp_path_factory.mktemp("segments"), tmp_path_factory.mktemp("tiers")
    reader = _reader(spans, of, root, [window], scratch=scratch)
    # Batches as they come, and again when tiers stand for segments; then rows of any times together.
    for batch in [*spans, *spans[::-1], *spans, [*rows[:20], *others]]:
        found = reader.compute(_table(batch, of), keys=window.keys, time="at", window=window, gap=seconds)
        for at, row in enumerate(batch):
            assert {name: values[at].as_py() for name, values in found.items()} == _expected(rows, row, window, gap)
    for row in [*rows[:3], *others[:2]]:
        keys = {name: row["ab".index(name)] for name in window.keys}
        one = reader.lookup(keys, START + timedelta(seconds=row[2]), window=window, gap=seconds)
        assert one == _expected(rows, row, window, gap)


@pytest.mark.parametrize("most_keys", [2**18, 40])
def test_tiers_count_what_their_segments_do_and_do_without_where_pairs_are_many(tmp_path: Path, most_keys: int) -> None:
    generator = np.random.default_rng(5)
    rows: list[Row] = [
        (key, 1, at // 9, int(value))
        for at, (key, value) in enumerate(zip("xyz" * 100, generator.integers(0, 12, 300), strict=True))
    ]
    spans = _cut(rows, range(0, 300, 9))
    window, scratch = _window(("a",), (40, 500)), tmp_path / "tiers"
    scratch.mkdir()
    reader = _reader(spans, pa.int64(), tmp_path, [window], scratch=scratch, tier_keys=most_keys)
    asked: list[Row] = [(key, 1, 40, None) for key in "xyzw"]
    for _ in range(4):
        found = reader.compute(_table(asked, pa.int64()), keys=("a",), time="at", window=window, gap=timedelta(0))
        for at, row in enumerate(asked):
            assert {name: values[at].as_py() for name, values in found.items()} == _expected(rows, row, window, 0)
    assert reader._tiers is not None
    made = {(size, "x" in tier.distinct) for (_, size), tier in reader._tiers._made.items() if tier is not None}
    assert made == {(4, True), (16, most_keys > 40)}


def test_threads_count_alike(tmp_path: Path) -> None:
    generator = np.random.default_rng(7)
    times = np.sort(generator.integers(0, 4000, 50_000)).tolist()
    keys, values = generator.choice(["x", "y", ""], 50_000).tolist(), generator.integers(0, 900, 50_000).tolist()
    rows: list[Row] = list(zip(keys, [1] * 50_000, times, values, strict=True))
    window = _window(lengths=(60, 1500))
    reader = _reader(_cut(rows, range(5_000, 50_000, 5_000)), pa.int64(), tmp_path, [window])
    opened = reader.open(_table(rows[-40_000:], pa.int64()), keys=KEYS, time="at", window=window, gap=timedelta(0))
    one, four = opened.features(1), opened.features(4)
    assert one == four
    for at in range(0, 40_000, 4_001):
        row = rows[10_000 + at]
        assert {name: values[at].as_py() for name, values in one.items()} == _expected(rows, row, window, 0)


def test_the_longest_window_of_a_column_is_how_far_back_its_segments_look() -> None:
    windows = (
        _window(lengths=(3, 11)),
        _window(lengths=(90,), statistics=("count",)),
        _window(lengths=(20,), statistics=("distinct", "max")),
        _window(column="y", lengths=(7,)),
        _window(("a",), statistics=("max",)),
    )
    plans = segment_plans(FeaturesSpec(windows=windows), over="events")
    assert [plan.distinct for plan in plans] == [{"x": 20_000_000, "y": 7_000_000}, {}]
    assert [plan.measures for plan in plans] == [("x",), ("x",)]  # y is counted only


def test_a_segment_whose_distinct_values_nobody_counts_keeps_nothing_for_them(tmp_path: Path) -> None:
    plain = _window(statistics=("count", "mean"))
    rows = [("x", 1, 0, 1.0), ("x", 1, 1, None)]
    reader = _reader([rows], pa.float64(), tmp_path, [plain])
    segment = open_segment(reader._refs[0], root=tmp_path)
    assert not segment.distinct
    with pytest.raises(SchemaMismatch, match=r"0-0-0\.arrow does not count distinct values of 'x'"):
        reader.compute(_table(rows, pa.float64()), keys=KEYS, time="at", window=_window(), gap=timedelta(seconds=1))


def test_a_value_that_changed_its_type_is_refused(tmp_path: Path) -> None:
    window = _window()
    reader = _reader([[("x", 1, 0, "v")]], pa.string(), tmp_path, [window])
    (plan,) = segment_plans(FeaturesSpec(windows=(window,)), over="events")
    later = _table([("x", 1, 1, 7)], pa.int64())
    with pytest.raises(SchemaMismatch, match="'x' holds integer values, and text values"):
        build_segments(later, plans=[plan], time="at", root=tmp_path, prefix="1", readers={KEYS: reader})


def test_a_value_that_is_nested_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"'x' is of type list"):
        _reader([[("x", 1, 0, [1])]], pa.list_(pa.int64()), tmp_path, [_window()])


def test_a_segment_of_an_older_format_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "_FORMAT", 2)
    rows = _table([("x", 1, 0, 1)], pa.int64())
    ref = build_segment(rows, keys=KEYS, time="at", measures=(), path=tmp_path / "old.arrow")
    monkeypatch.undo()
    with pytest.raises(TableError, match="it is of format 2, and this version reads format 4") as refused:
        open_segment(ref, root=tmp_path)
    assert "prepare the pipeline anew" in refused.value.hint


@pytest.mark.parametrize("kind", [pa.int64(), pa.decimal128(38, 0)])
@pytest.mark.parametrize("counted", [True, False])
def test_a_segment_of_the_format_before_is_read_unless_it_may_have_cut_decimals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType, counted: bool
) -> None:
    monkeypatch.setattr(segments, "_FORMAT", 3)
    rows = pa.table({"k": pa.array([1], kind), "at": pa.array([START], STAMP), "o": [1]})
    key, distinct = ("o", {"k": Before(10**6, [])}) if counted else ("k", None)
    ref = build_segment(rows, keys=(key,), time="at", measures=(), distinct=distinct, path=tmp_path / "old.arrow")
    monkeypatch.undo()
    with pytest.raises(TableError, match="of format 3") if pa.types.is_decimal(kind) else contextlib.nullcontext():
        assert open_segment(ref, root=tmp_path).ref == ref


@pytest.mark.parametrize("values", [11, 50_000])
@pytest.mark.parametrize("statistics", [("distinct",), ("distinct", "mean", "std", "min")])
def test_memory_of_a_batch_stays_within_its_estimate(tmp_path: Path, statistics: tuple[str, ...], values: int) -> None:
    import tracemalloc

    rows: list[Row] = [(str(i % 97), i % 5, i // 3, i * 7 % values) for i in range(60_000)]
    window = _window(lengths=(3, 1100, 10**7), statistics=statistics)
    reader = _reader(_cut(rows, [5_000, 10_000]), pa.int64(), tmp_path, [window])
    question = _table(rows[10_000:], pa.int64())
    reader.compute(question.slice(0, 5), keys=KEYS, time="at", window=window, gap=timedelta(0))
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    found = reader.compute(question, keys=KEYS, time="at", window=window, gap=timedelta(0))
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert len(found) == len(window.names())
    estimate = 50_000 * window_bytes_per_row(window) + window_block_bytes(window, rows=50_000, threads=1)
    assert 0.25 * estimate < peak <= estimate
