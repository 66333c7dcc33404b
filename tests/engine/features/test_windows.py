"""Windows against a brute-force oracle in fractions, and the same rows in one segment or many."""

import json
import math
import random
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine import refs
from engine.errors import SchemaMismatch, SourceError, TableError
from engine.features.segments import SegmentRef, build_segment, open_segment
from engine.features.window_plans import segment_plans, window_block_bytes, window_bytes_per_row
from engine.features.windows import WindowReader
from engine.spec import FeaturesSpec, WindowSpec

START = datetime(2024, 3, 30, tzinfo=UTC)
STAMP = pa.timestamp("us", tz="UTC")
FLOAT = pa.float64()
LENGTHS = (timedelta(seconds=3), timedelta(seconds=11), timedelta(days=400))
STATISTICS = ("count", "sum", "mean", "std", "since", "min", "max")
BOTH = ("min", "max")
TYPES = {"float": pa.float64(), "integer": pa.int64(), "decimal": pa.decimal128(20, 4), "boolean": pa.bool_()}


def window_over(keys=("a", "b"), *, lengths=LENGTHS, statistics=STATISTICS, column="x"):
    return WindowSpec(over="events", keys=keys, lengths=lengths, statistics=statistics, column=column)


def table_of(rows, *, measure=FLOAT, tz="UTC"):
    """Rows are (a, b, seconds, x)."""
    times = pa.array([START + timedelta(seconds=row[2]) for row in rows], STAMP).cast(pa.timestamp("us", tz=tz))
    return pa.table(
        {
            "a": pa.array([row[0] for row in rows], pa.string()),
            "b": pa.array([row[1] for row in rows], pa.int64()),
            "at": times,
            "x": pa.array([row[3] for row in rows], measure),
        }
    )


def segments_of(parts, root, *, keys=("a", "b"), measures=("x",)):
    made = [
        build_segment(
            part,
            keys=keys,
            time="at",
            measures=measures,
            extremes=dict.fromkeys(measures, BOTH),
            path=root / f"p{i}" / "s.arrow",
            root=root,
        )
        for i, part in enumerate(parts)
    ]
    return [SegmentRef.from_json(json.loads(json.dumps(refs.to_json(ref)))) for ref in made]


def ask(parts, rows, root, *, window=None, gap=timedelta(0), keys=("a", "b"), measures=("x",)):
    reader = WindowReader(segments_of(parts, root, keys=keys, measures=measures), root=root)
    found = reader.compute(rows, keys=keys, time="at", window=window or window_over(keys), gap=gap)
    return {name: values.to_pylist() for name, values in found.items()}


def same(left, right):
    """Equal to the bit, NaN included."""
    return {k: list(map(repr, v)) for k, v in left.items()} == {k: list(map(repr, v)) for k, v in right.items()}


def expected(rows, row, *, gap, window):
    """The definition, over Python values, in fractions."""
    out = {}
    near = row[2] - gap
    for length, statistic, name in window.names():
        far = near - length.total_seconds()
        mine = [r for r in rows if r[:2] == row[:2] and far < r[2] and (r[2] <= near if gap else r[2] < near)]
        values = [r[3] for r in mine if r[3] is not None]
        if statistic == "count":
            out[name] = len(mine)
        elif statistic == "since":
            out[name] = row[2] - max(r[2] for r in mine) if mine else None
        else:
            out[name] = statistic_of(statistic, values)
    return out


def statistic_of(statistic, values):
    least = {"sum": 0, "mean": 1, "rate": 1, "std": 2, "min": 1, "max": 1}[statistic]
    if len(values) < least:
        return None
    if statistic in BOTH:
        pick = min if statistic == "min" else max
        return math.nan if any(v != v for v in values) else float(pick(values))
    special = [v for v in values if isinstance(v, float) and not math.isfinite(v)]
    if special:
        return sum(special) if statistic != "std" else math.nan
    exact = [Fraction(v) for v in values]
    if statistic == "sum":
        return sum(exact, Fraction(0))
    mean = sum(exact, Fraction(0)) / max(len(exact), 1)
    if statistic != "std":
        return mean
    variance = sum((v - mean) ** 2 for v in exact) / (len(exact) - 1)
    # the square root to 200 bits, of a variance of any size
    scale = 1 << (200 + max(0, variance.denominator.bit_length() - variance.numerator.bit_length()) // 2)
    return Fraction(math.isqrt(int(variance * scale * scale)), scale)


def check(found, wanted, *, ulps=1):
    for name, values in found.items():
        for value, right in zip(values, [row[name] for row in wanted], strict=True):
            if right is None or (isinstance(right, float) and not math.isfinite(right)):
                assert repr(value) == repr(right), name
            elif isinstance(right, Fraction):
                assert value is not None, name
                assert abs(Fraction(value) - right) <= ulps * Fraction(math.ulp(float(right))), (name, value, right)
            else:
                assert value == right, name


KEYS_A = st.sampled_from(["", "x", "xy", None])
KEYS_B = st.sampled_from([0, 1, -1, 2**62, None])
NUMBERS = {
    "float": st.none()
    | st.floats(1e-3, 1e12)  # sums keep 159 bits below the largest of a key: tinier ones may be lost beside it
    | st.floats(-1e12, -1e-3)
    | st.sampled_from([0.1, 1e12, 1e-3, -1e12, math.nan, math.inf, -math.inf]),
    "integer": st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9),
    "decimal": st.none() | st.decimals(-(10**15), 10**15, places=4, allow_nan=False),
    "boolean": st.none() | st.booleans(),
}


@st.composite
def cases(draw):
    kind = draw(st.sampled_from(sorted(NUMBERS)))
    row = st.tuples(KEYS_A, KEYS_B, st.integers(0, 25), NUMBERS[kind])
    rows = draw(st.lists(row, max_size=40))
    asked = draw(st.lists(row, max_size=8))
    parts = draw(st.lists(st.integers(0, 4), min_size=len(rows), max_size=len(rows)))
    return kind, rows, rows[:10] + asked, parts, draw(st.sampled_from([0, 2, 5]))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cases())
def test_windows_are_those_of_the_definition_however_rows_are_cut(tmp_path_factory, case):
    kind, rows, asked, parts, gap = case
    measure, window = TYPES[kind], window_over()
    root = tmp_path_factory.mktemp("segments")
    question = table_of(asked, measure=measure)
    cut = [table_of([r for r, p in zip(rows, parts, strict=True) if p == n], measure=measure) for n in range(5)]
    seconds = timedelta(seconds=gap)
    many = ask([part for part in reversed(cut) if part.num_rows], question, root / "many", window=window, gap=seconds)
    wanted = [expected(rows, row, gap=gap, window=window) for row in asked]
    check(many, wanted, ulps=3)  # a decimal's sum is rounded and then divided, its std takes a root too
    one = ask([table_of(rows, measure=measure)], question, root / "one", window=window, gap=seconds)
    assert same(many, one)


@st.composite
def earlier_parts(draw):
    """Return a type, at least 18 parts that follow one another, and rows that are later than all of them."""
    kind = draw(st.sampled_from(sorted(NUMBERS)))
    count = draw(st.integers(18, 21))
    parts = [
        draw(st.lists(st.tuples(KEYS_A, KEYS_B, st.just(n), NUMBERS[kind]), min_size=1, max_size=4))
        for n in range(count)
    ]
    asked = draw(st.lists(st.tuples(KEYS_A, KEYS_B, st.integers(30, 32), NUMBERS[kind]), min_size=1, max_size=9))
    return kind, parts, asked


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(earlier_parts())
def test_windows_are_those_of_the_definition_when_tiers_stand_for_segments(tmp_path_factory, case):
    kind, parts, asked = case
    root, scratch, window = tmp_path_factory.mktemp("segments"), tmp_path_factory.mktemp("tiers"), window_over()
    made = segments_of([table_of(part, measure=TYPES[kind]) for part in parts], root)
    reader, question = WindowReader(made, root=root, scratch=scratch), table_of(asked, measure=TYPES[kind])
    rows = [row for part in parts for row in part]
    wanted = [expected(rows, row, gap=0, window=window) for row in asked]
    first = None
    for _ in range(4):
        answers = reader.compute(question, keys=("a", "b"), time="at", window=window, gap=timedelta(0))
        found = {name: values.to_pylist() for name, values in answers.items()}
        check(found, wanted, ulps=3)
        assert first is None or same(first, found)
        first = found
    assert {path.name.rsplit("-", 1)[1] for path in scratch.glob("*.tier")} == {"4.tier", "16.tier"}


@pytest.mark.parametrize("late", [None, 3])
def test_rows_without_a_key_see_no_more_when_tiers_stand_for_segments(tmp_path, late):
    """Of a key of one column a tier has a place for null, whether or not a row lacks its key."""
    window = window_over(("a",), lengths=(timedelta(days=400),), statistics=(*STATISTICS, "rate"))
    parts = [[("k", 1, 10 * n + i, 5.0) for i in range(8)] for n in range(20)]
    if late is not None:
        parts[late].append((None, 1, 10 * late + 8, 7.0))
    made = segments_of([table_of(part) for part in parts], tmp_path / "segments", keys=("a",))
    scratch = tmp_path / "tiers"
    scratch.mkdir()
    asked = table_of([(None, 1, 1_000, 1.0), ("k", 1, 1_000, 1.0)])
    plain = WindowReader(made, root=tmp_path / "segments")
    tiered = WindowReader(made, root=tmp_path / "segments", scratch=scratch)
    for _ in range(4):
        both = [
            {
                name: values.to_pylist()
                for name, values in reader.compute(
                    asked, keys=("a",), time="at", window=window, gap=timedelta(0)
                ).items()
            }
            for reader in (plain, tiered)
        ]
        assert same(*both)
    assert list(scratch.glob("*.tier"))
    without = {name.rsplit("_", 1)[1]: values[0] for name, values in both[1].items()}
    assert (without["count"], without["since"], without["min"]) == ((1, 962.0, 7.0) if late else (0, None, None))


def test_decimals_of_a_negative_scale_are_summed_as_they_are(tmp_path):
    values = pa.array([Decimal(7), Decimal(3)], pa.decimal128(3, 0)).cast(pa.decimal128(9, 0))
    values = pa.concat_arrays([values, pa.nulls(1, values.type)])
    scaled = pa.Array.from_buffers(pa.decimal128(9, -2), 3, values.buffers())
    rows = table_of([("k", 1, second, None) for second in range(3)]).set_column(3, "x", scaled)
    found = ask([rows], table_of([("k", 1, 5, 1.0)]), tmp_path, window=window_over(lengths=LENGTHS[1:2]))
    by_statistic = {name.rsplit("_", 1)[1]: values[0] for name, values in found.items()}
    assert (by_statistic["sum"], by_statistic["mean"], by_statistic["max"]) == (1000.0, 500.0, 700.0)


@pytest.mark.parametrize("cuts", [1, 3])
@pytest.mark.parametrize("kind", ["float", "integer"])
def test_extremes_of_a_busy_key_are_those_of_the_definition(tmp_path, cuts, kind):
    pick = random.Random(11)
    rare = {500: math.nan, 900: math.inf, 1400: -math.inf} if kind == "float" else {500: 2**63 - 1, 900: -(2**63)}
    values = [rare.get(i, None if i % 7 == 0 else pick.randrange(-(10**6), 10**6)) for i in range(3000)]
    rows = [(pick.choice("kkkkl"), 0, i, value) for i, value in enumerate(values)]
    lengths = tuple(timedelta(seconds=seconds) for seconds in (40, 450, 5000))
    window = window_over(lengths=lengths, statistics=BOTH)
    size = len(rows) // cuts
    parts = [table_of(rows[n * size : (n + 1) * size], measure=TYPES[kind]) for n in range(cuts)]
    asked = rows[::31]
    found = ask(parts, table_of(asked, measure=TYPES[kind]), tmp_path, window=window)
    check(found, [expected(rows, row, gap=0, window=window) for row in asked])


def test_the_largest_unsigned_integers_and_long_decimals_have_the_nearest_extremes(tmp_path):
    decimal = [Decimal("0.10"), Decimal("-123456789012345678901234567890.99"), None, Decimal("3.30")]
    cases = [(decimal, pa.decimal128(38, 2)), ([2**64 - 1, 2**63, None, 5], pa.uint64()), ([None] * 4, pa.null())]
    cases.append(([Decimal("0.10"), None, Decimal("3.30"), Decimal("-0.07")], pa.decimal128(9, 2)))
    window = window_over(lengths=LENGTHS[1:2], statistics=BOTH)
    for number, (values, measure) in enumerate(cases):
        rows = [("k", 1, i, value) for i, value in enumerate(values)]
        question = table_of([("k", 1, 5, None)], measure=measure)
        found = ask([table_of(rows, measure=measure)], question, tmp_path / str(number), window=window)
        check(found, [expected(rows, ("k", 1, 5, None), gap=0, window=window)])


def test_what_keeps_no_extremes_holds_nothing_for_them_and_is_refused_when_asked(tmp_path):
    rows = table_of([("k", 1, 0, 1.0), ("k", 1, 1, None)])

    def built(name, **choices):
        path = tmp_path / f"{name}.arrow"
        return build_segment(rows, keys=("a", "b"), time="at", measures=("x",), path=path, **choices)

    ref, full = built("plain"), built("full", extremes={"x": BOTH})
    plain = set(open_segment(ref, root=tmp_path).arrays["x"])
    kept = set(open_segment(full, root=tmp_path).arrays["x"])
    assert kept - plain == {"values", "min.stacks", "min.blocks", "max.stacks", "max.blocks"}
    asked, window = table_of([("k", 1, 5, 0.0)]), window_over(statistics=("max", "mean"))
    with pytest.raises(SchemaMismatch, match=r"plain\.arrow holds no max of 'x'"):
        WindowReader([ref], root=tmp_path).compute(asked, keys=("a", "b"), time="at", window=window, gap=timedelta(0))


def test_float_sums_are_rounded_as_fsum_does(tmp_path):
    pick = random.Random(7)
    values = [pick.choice([1e12, 1e-3, 3.3, -1e12, 1e-9]) * pick.random() for _ in range(1200)]
    rows = [(pick.choice("kl"), 0, i, v) for i, v in enumerate(values)]
    window = window_over(lengths=(timedelta(seconds=10), timedelta(seconds=700)), statistics=("sum",))
    found = ask([table_of(rows[::2]), table_of(rows[1::2])], table_of(rows), tmp_path, window=window)
    for length, _, name in window.names():
        span = int(length.total_seconds())
        for i, row in enumerate(rows):
            mine = [r[3] for r in rows[max(0, i - span + 1) : i] if r[0] == row[0]]
            assert found[name][i] == math.fsum(mine)


def test_a_key_of_1e12_leaves_its_neighbour_of_one_thousandth_alone(tmp_path):
    rows = [
        (key, 0, i, value) for i in range(500) for key, value in (("big", 1e12 + i / 7), ("small", 1e-3 + i * 1e-9))
    ]
    window = window_over(lengths=(timedelta(seconds=5),), statistics=("sum", "mean", "std"))
    found = ask([table_of(rows)], table_of(rows), tmp_path, window=window)
    wanted = [expected(rows, row, gap=0, window=window) for row in rows]
    check(found, wanted, ulps=2)


@pytest.mark.parametrize("value", [1e300, 1e-300])
def test_a_key_of_any_size_leaves_its_neighbour_alone(tmp_path, value):
    rows = [("a", 0, i, 0.1) for i in range(9)] + [("b", 0, i, 1e290) for i in range(9)] + [("c", 0, 1, value)]
    window = window_over(lengths=(timedelta(seconds=4),), statistics=("sum",))
    (found,) = ask([table_of(rows)], table_of([("a", 0, 9, 0.0)]), tmp_path, window=window).values()
    assert found == [math.fsum([0.1] * 3)]


def test_std_at_mean_1e6_and_std_1(tmp_path):
    pick = random.Random(3)
    rows = [("k", 1, i, 1e6 + pick.gauss(0, 1)) for i in range(1200)]
    window = window_over(lengths=(timedelta(seconds=4), timedelta(seconds=900)), statistics=("std",))
    thirds = [table_of(rows[n::3]) for n in range(3)]
    asked = rows[::37]
    found = ask(thirds, table_of(asked), tmp_path / "3", window=window)
    check(found, [expected(rows, row, gap=0, window=window) for row in asked], ulps=2)
    assert same(found, ask([table_of(rows)], table_of(asked), tmp_path / "1", window=window))


def test_std_of_equal_values_is_exactly_0(tmp_path):
    rows = [("k", 1, i, 0.1 if i > 50 else i / 3) for i in range(100)]
    window = window_over(lengths=(timedelta(seconds=20),), statistics=("std",))
    (found,) = ask([table_of(rows[::2]), table_of(rows[1::2])], table_of(rows[80:]), tmp_path, window=window).values()
    assert found == [0.0] * 20


def test_std_of_integers_near_the_limit_of_int64_is_exact(tmp_path):
    rows = [("k", 1, i, 2**62 + i * i) for i in range(9)]
    window = window_over(lengths=(timedelta(seconds=30),), statistics=("std", "mean", "sum"))
    found = ask([table_of(rows, measure=pa.int64())], table_of([("k", 1, 9, 0)]), tmp_path, window=window)
    check(found, [expected(rows, ("k", 1, 9, 0), gap=0, window=window)])


def test_decimals_of_two_scales_and_of_38_digits_add_up(tmp_path):
    wide, narrow = Decimal("9" * 30 + ".25"), Decimal("0.001")
    parts = [
        table_of([("k", 1, 0, wide), ("k", 1, 1, -wide)], measure=pa.decimal128(38, 2)),
        table_of([("k", 1, 2, narrow)], measure=pa.decimal128(9, 3)),
    ]
    window = window_over(lengths=(timedelta(seconds=9),), statistics=("sum", "std"))
    found = ask(parts, table_of([("k", 1, 3, 0.0)]), tmp_path, window=window)
    rows = [("k", 1, 0, wide), ("k", 1, 1, -wide), ("k", 1, 2, narrow)]
    check(found, [expected(rows, ("k", 1, 3, None), gap=0, window=window)], ulps=2)


def test_integers_and_floats_of_one_measure_add_up_after_the_column_was_widened(tmp_path):
    parts = [
        table_of([("k", 1, 0, 2**60 + 1)], measure=pa.int64()),
        table_of([("k", 1, 1, 0.5)]),
        table_of([("k", 1, 2, Decimal("0.25"))], measure=pa.decimal128(9, 2)),
    ]
    rows = [("k", 1, 0, 2**60 + 1), ("k", 1, 1, 0.5), ("k", 1, 2, 0.25)]
    window = window_over(lengths=(timedelta(seconds=9),))
    found = ask(parts, table_of([("k", 1, 3, 0.0)]), tmp_path, window=window)
    check(found, [expected(rows, ("k", 1, 3, None), gap=0, window=window)], ulps=2)


def test_rows_at_the_same_instant_do_not_see_one_another_but_with_a_gap_the_near_end_is_closed(tmp_path):
    rows = [("k", 1, 10, 1.0), ("k", 1, 10, 2.0)]
    window = window_over(lengths=(timedelta(seconds=5),), statistics=("count",))
    asked = table_of([("k", 1, s, 0.0) for s in (10, 11, 12, 14, 15, 16, 17)])
    (now,) = ask([table_of(rows)], asked, tmp_path / "0", window=window).values()
    assert now == [0, 2, 2, 2, 0, 0, 0]
    (late,) = ask([table_of(rows)], asked, tmp_path / "2", window=window, gap=timedelta(seconds=2)).values()
    assert late == [0, 0, 2, 2, 2, 2, 0]


def test_a_nan_or_infinity_is_seen_only_by_the_windows_that_hold_it(tmp_path):
    rows = [("k", 1, i, v) for i, v in enumerate([1.0, math.nan, 2.0, math.inf, 3.0, -math.inf, 4.0, None, 5.0])]
    window = window_over(lengths=(timedelta(seconds=2),), statistics=("sum", "mean", "std", "count"))
    found = ask([table_of(rows)], table_of([("k", 1, i, 0.0) for i in range(11)]), tmp_path, window=window)
    sums = [repr(v) for v in found["events_a_b_2s_x_sum"]]
    assert sums == ["0.0", "1.0", "nan", "2.0", "inf", "3.0", "-inf", "4.0", "0.0", "5.0", "0.0"]
    assert found["events_a_b_2s_count"] == [0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0]
    assert found["events_a_b_2s_x_mean"][8] is None
    pair = window_over(lengths=(timedelta(seconds=5),), statistics=("sum", "std"))
    found = ask([table_of(rows)], table_of([("k", 1, 6, 0.0)]), tmp_path / "pair", window=pair)
    assert [math.isnan(values[0]) for values in found.values()] == [True, True]


def test_values_near_the_largest_float_do_not_spoil_later_windows(tmp_path):
    rows = [("k", 1, 0, 1.7e308), ("k", 1, 1, 1.7e308), ("k", 1, 2, 1.0), ("k", 1, 3, 1.0)]
    window = window_over(lengths=(timedelta(seconds=3),), statistics=("sum", "std"))
    found = ask([table_of(rows)], table_of([("k", 1, 2, 0.0), ("k", 1, 4, 0.0)]), tmp_path, window=window)
    assert found["events_a_b_3s_x_sum"] == [math.inf, 2.0]
    assert math.isnan(found["events_a_b_3s_x_std"][0])
    assert found["events_a_b_3s_x_std"][1] == 0.0


def test_times_of_other_zones_and_units_are_the_same_instants(tmp_path):
    rows = [("k", 1, 3600 * hour, 1.0) for hour in range(48)]  # across the change to summer time
    window = window_over(lengths=(timedelta(hours=5),), statistics=("count", "since"))
    plain = ask([table_of(rows)], table_of(rows), tmp_path / "utc", window=window)
    question = table_of(rows, tz="Europe/Berlin")
    assert same(plain, ask([table_of(rows, tz="America/New_York")], question, tmp_path / "tz", window=window))
    naive = table_of(rows)
    naive = naive.set_column(2, "at", naive.column("at").cast(pa.timestamp("us")).cast(pa.timestamp("ns")))
    assert same(plain, ask([naive], naive, tmp_path / "ns", window=window))


KEY_COLUMNS = {
    "text": pa.array(["a", "", None, "a"]),
    "dictionary": pa.array(["a", "b", None, "a"]).dictionary_encode(),
    "view": pa.array(["a", "b", None, "a"], pa.string_view()),
    "integer": pa.array([-(2**63), 2**63 - 1, None, -(2**63)]),
    "small": pa.array([1, 2, None, 1], pa.int8()),
    "float": pa.array([-0.0, math.nan, None, 0.0]),
    "boolean": pa.array([True, False, None, True]),
    "decimal": pa.array([Decimal("1.50"), Decimal(0), None, Decimal("1.5")]),
    "binary": pa.array([b"\xff", b"", None, b"\xff"]),
    "time": pa.array([START, START + timedelta(microseconds=1), None, START], STAMP),
    "date": pa.array([START.date(), START.date() + timedelta(days=1), None, START.date()]),
    "duration": pa.array([timedelta(1), timedelta(2), None, timedelta(1)]),
}


@pytest.mark.parametrize("kind", sorted(KEY_COLUMNS))
def test_keys_of_any_type_are_compared_exactly(tmp_path, kind):
    rows = pa.table({"k": KEY_COLUMNS[kind], "at": pa.array([START] * 4, STAMP)})
    later = rows.set_column(1, "at", pa.array([START + timedelta(seconds=1)] * 4, STAMP))
    window = window_over(("k",), lengths=(timedelta(seconds=9),), statistics=("count",), column=None)
    (found,) = ask([rows], later, tmp_path, window=window, keys=("k",), measures=()).values()
    assert found == [2, 1, 1, 2]


def test_nan_is_one_key_whatever_its_bits(tmp_path):
    bits = pa.array([0x7FF8000000000000, 0x7FF8000000000001], pa.int64()).view(pa.float64())
    rows = pa.table({"k": bits, "at": pa.array([START] * 2, STAMP)})
    later = rows.set_column(1, "at", pa.array([START + timedelta(seconds=1)] * 2, STAMP))
    window = window_over(("k",), lengths=(timedelta(seconds=9),), statistics=("count",), column=None)
    assert list(ask([rows], later, tmp_path, window=window, keys=("k",), measures=()).values()) == [[2, 2]]


def test_five_key_columns_with_many_values_do_not_collide(tmp_path):
    pick = random.Random(1)
    names = ("k0", "k1", "k2", "k3", "k4")
    columns = {name: pa.array([pick.randrange(10**6) or None for _ in range(2000)]) for name in names}
    columns["k0"] = pa.array([str(value) for value in columns["k0"].to_pylist()])
    rows = pa.table({**columns, "at": pa.array([START] * 2000, STAMP)})
    later = rows.set_column(5, "at", pa.array([START + timedelta(seconds=1)] * 2000, STAMP))
    window = window_over(names, lengths=(timedelta(seconds=9),), statistics=("count",), column=None)
    (found,) = ask([rows], later, tmp_path, window=window, keys=names, measures=()).values()
    assert found == [1] * 2000
    swapped = later.set_column(1, "k1", later.column("k2"))
    (found,) = ask([rows], swapped, tmp_path / "2", window=window, keys=names, measures=()).values()
    assert sum(found) < 3


def test_a_key_that_changed_its_type_is_refused_not_missed(tmp_path):
    made = segments_of([table_of([("k", 1, 0, 1.0)])], tmp_path, keys=("b",))
    rows = pa.table({"b": ["1"], "at": pa.array([START + timedelta(seconds=1)], STAMP)})
    with pytest.raises(SchemaMismatch, match="key 'b' holds text values, and integer values"):
        WindowReader(made, root=tmp_path).compute(
            rows, keys=("b",), time="at", window=window_over(("b",)), gap=timedelta(0)
        )


def test_one_row_is_looked_up_to_the_bit(tmp_path):
    pick = random.Random(5)
    rows = [(pick.choice(["p", "q", None]), pick.choice([1, None]), i, pick.gauss(0, 1e6)) for i in range(400)]
    made = segments_of([table_of(rows[n::4]) for n in range(4)], tmp_path)
    reader, window, gap = WindowReader(made, root=tmp_path), window_over(), timedelta(seconds=1)
    batch = reader.compute(table_of(rows), keys=("a", "b"), time="at", window=window, gap=gap)
    for i in range(0, 400, 29):
        at = START + timedelta(seconds=rows[i][2])
        one = reader.lookup({"a": rows[i][0], "b": rows[i][1]}, at, window=window, gap=gap)
        assert {k: repr(v) for k, v in one.items()} == {k: repr(v[i].as_py()) for k, v in batch.items()}


def test_a_key_called_time_can_be_looked_up(tmp_path):
    rows = pa.table({"time": [4, 5], "at": pa.array([START] * 2, STAMP)})
    made = segments_of([rows], tmp_path, keys=("time",), measures=())
    window = window_over(("time",), lengths=(timedelta(hours=1),), statistics=("count",), column=None)
    reader = WindowReader(made, root=tmp_path)
    assert reader.lookup({"time": 5}, START + timedelta(minutes=1), window=window, gap=timedelta(0)) == {
        "events_time_1h_count": 1
    }


def test_a_ratio_of_a_column_called_time_can_be_looked_up(tmp_path):
    rows = pa.table({"k": [4, 4], "time": [2.0, 4.0], "at": pa.array([START] * 2, STAMP)})
    made = segments_of([rows], tmp_path, keys=("k",), measures=("time",))
    window = window_over(("k",), lengths=(timedelta(hours=1),), statistics=("ratio",), column="time")
    reader = WindowReader(made, root=tmp_path)
    found = reader.lookup({"k": 4}, START + timedelta(minutes=1), window=window, gap=timedelta(0), value=6.0)
    assert found == {"events_k_1h_time_ratio": 2.0}


@pytest.mark.parametrize("parts", [[], [table_of([])], [table_of([("z", 9, 0, 1.0)])]])
def test_without_earlier_rows_counts_and_sums_are_0_and_the_rest_is_null(tmp_path, parts):
    found = ask(parts, table_of([("k", 1, 5, 1.0)]), tmp_path, window=window_over(lengths=LENGTHS[:1]))
    by_statistic = {name.rsplit("_", 1)[1]: values for name, values in found.items()}
    assert by_statistic == {"count": [0], "sum": [0.0], "mean": [None], "std": [None], "since": [None]} | {
        "min": [None],
        "max": [None],
    }


def test_types_do_not_depend_on_what_was_found(tmp_path):
    window, rows = window_over(), table_of([("k", 1, 5, 1)], measure=pa.int64())
    full = WindowReader(segments_of([rows], tmp_path), root=tmp_path)
    none = WindowReader([], root=tmp_path)
    asked = table_of([("k", 1, 6, 1)], measure=pa.int64())
    for question in (asked, asked.slice(0, 0)):
        types = [
            {
                k: v.type
                for k, v in r.compute(question, keys=("a", "b"), time="at", window=window, gap=LENGTHS[0]).items()
            }
            for r in (full, none)
        ]
        assert types[0] == types[1]
        assert set(types[0].values()) == {pa.int64(), pa.float64()}


def test_only_segments_in_reach_are_opened(tmp_path):
    parts = [table_of([("k", 1, 100 * n, 1.0)]) for n in range(4)]
    made = segments_of(parts, tmp_path)
    for ref in (made[0], made[3]):
        (tmp_path / ref.path).unlink()
    window = window_over(lengths=(timedelta(seconds=150),), statistics=("count",))
    asked = table_of([("k", 1, 210, 0.0), ("k", 1, 240, 0.0)])
    reader = WindowReader(made, root=tmp_path)
    found = reader.compute(asked, keys=("a", "b"), time="at", window=window, gap=timedelta(0))
    assert found["events_a_b_2m30s_count"].to_pylist() == [2, 2]
    with pytest.raises(TableError, match=r"p0.s\.arrow cannot be read"):
        reader.compute(table_of([("k", 1, 20, 0.0)]), keys=("a", "b"), time="at", window=window, gap=timedelta(0))


def test_labels_are_measured_by_value_along_known_at(tmp_path):
    window = WindowSpec(
        over="labels", keys=("a",), lengths=(timedelta(hours=1),), statistics=("rate", "count", "std", "since")
    )
    labels = pa.table(
        {
            "a": ["k"] * 4,
            "known_at": pa.array([START + timedelta(minutes=m) for m in (0, 10, 20, 59)], STAMP),
            "value": [True, False, True, True],
        }
    )
    (plan,) = segment_plans(FeaturesSpec(windows=(window,)), over="labels")
    assert (plan.keys, plan.measures, plan.squares) == (("a",), ("value",), ("value",))
    ref = build_segment(
        labels, keys=plan.keys, time="known_at", measures=plan.measures, path=tmp_path / "l", squares=plan.squares
    )
    rows = pa.table({"a": ["k"], "when": pa.array([START + timedelta(minutes=90)], STAMP)})
    found = WindowReader([ref], root=tmp_path).compute(
        rows, keys=("a",), time="when", window=window, gap=timedelta(minutes=30)
    )
    # (30 min, 60 min] back from 60: all but the one at 0, which the open end leaves out
    assert found["labels_a_1h_rate"].to_pylist() == [pytest.approx(2 / 3, rel=1e-15)]
    assert found["labels_a_1h_count"].to_pylist() == [3]
    assert found["labels_a_1h_since"].to_pylist() == [31 * 60.0]
    assert found["labels_a_1h_std"].to_pylist() == [pytest.approx(math.sqrt(1 / 3), rel=1e-15)]


def test_windows_over_one_key_share_a_segment():
    windows = (
        window_over(("a",), statistics=("mean",), column="x"),
        window_over(("a",), lengths=(timedelta(days=2),), statistics=("std", "max"), column="y"),
        window_over(("a",), statistics=("max", "min"), column="y"),
        window_over(("a",), statistics=("min",), column="z"),
        window_over(("a", "b"), statistics=("count",), column=None),
        WindowSpec(over="labels", keys=("a",), lengths=LENGTHS, statistics=("count",)),
    )
    features = FeaturesSpec(windows=windows)
    plans = segment_plans(features, over="events")
    assert [(p.keys, p.measures, p.squares) for p in plans] == [(("a",), ("x", "y", "z"), ("y",)), (("a", "b"), (), ())]
    assert [p.extremes for p in plans] == [{"y": ("min", "max"), "z": ("min",)}, {}]
    assert [(p.keys, p.measures) for p in segment_plans(features, over="labels")] == [(("a",), ())]


def test_a_row_without_a_time_is_refused_when_built_and_when_asked(tmp_path):
    rows = pa.table({"a": ["k", "l"], "at": pa.array([START, None], STAMP)})
    with pytest.raises(SourceError, match="1 of 2 rows have no at"):
        build_segment(rows, keys=("a",), time="at", measures=(), path=tmp_path / "s")
    assert not list(tmp_path.iterdir())
    window = window_over(("a",), statistics=("count",), column=None)
    with pytest.raises(SourceError, match="1 of 2 rows have no at"):
        WindowReader([], root=tmp_path).compute(rows, keys=("a",), time="at", window=window, gap=timedelta(0))


@pytest.mark.parametrize("keys", [97, 60_000])
@pytest.mark.parametrize("statistics", [("count", "sum", "mean", "std", "since"), STATISTICS, BOTH])
def test_memory_of_a_batch_stays_within_its_estimate(tmp_path, statistics, keys):
    import tracemalloc

    rows = table_of([(str(i % keys), i % 5, i // 3, i / 7) for i in range(60_000)])
    reader = WindowReader(segments_of([rows], tmp_path), root=tmp_path)
    question, window = rows.slice(10_000, 50_000), window_over(lengths=LENGTHS, statistics=statistics)
    reader.compute(question.slice(0, 5), keys=("a", "b"), time="at", window=window, gap=timedelta(0))
    tracemalloc.start()
    before = pa.total_allocated_bytes()
    found = reader.compute(question, keys=("a", "b"), time="at", window=window, gap=timedelta(0))
    peak = tracemalloc.get_traced_memory()[1] + pa.total_allocated_bytes() - before
    tracemalloc.stop()
    assert len(found) == len(window.names())
    estimate = 50_000 * window_bytes_per_row(window) + window_block_bytes(window, rows=50_000, threads=1)
    assert 0.25 * estimate < peak <= estimate
