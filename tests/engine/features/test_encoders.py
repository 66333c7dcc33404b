"""Encoders: fitted the same whatever the batches, and what each type becomes."""

import json
import math
import random
from datetime import date
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import SchemaMismatch, SpecError
from engine.features import encoders
from engine.features.encoders import EncoderBuilder, FeatureEncoder


def fitted(table, *, rows, **options):
    builder = EncoderBuilder(**options)
    for start in range(0, table.num_rows, rows):
        builder.update(table.slice(start, rows))
    return builder.finish()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.none() | st.floats(width=32) | st.sampled_from([1e6, 1e6 + 1, 3e38]),
            st.none() | st.sampled_from("abcde"),
        ),
        min_size=1,
        max_size=60,
    ),
    st.integers(1, 60),
)
def test_the_encoder_does_not_depend_on_batches_and_its_figures_are_exact(rows, size):
    numbers = pa.array([n for n, _ in rows], pa.float32())
    table = pa.table({"n": numbers, "c": pa.array([c for _, c in rows], pa.string())})
    options = {"numeric": ["n"], "categorical": ["c"], "max_categories": 3}
    whole = fitted(table, rows=len(rows), **options)
    assert fitted(table, rows=size, **options) == whole
    assert FeatureEncoder.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    exact = [Fraction(n) for n in numbers.to_pylist() if n is not None and math.isfinite(n)]
    (seen,) = whole.numeric
    assert seen.present == len(exact)
    if exact:
        mean = sum(exact) / len(exact)
        variance = sum((n - mean) ** 2 for n in exact) / len(exact)
        # The sum is rounded once, and its quotient once more.
        assert abs(Fraction(seen.mean) - mean) <= 2 * Fraction(math.ulp(float(mean)))
        assert seen.std**2 == pytest.approx(float(variance), rel=1e-14, abs=1e-280)
        assert (seen.minimum, seen.maximum) == (float(min(exact)), float(max(exact)))
    else:
        assert whole.numeric_stats == {0: (0.0, 0.0)}


def test_codes_rank_by_frequency_then_text_and_the_rest_share_the_last():
    table = pa.table({"c": ["b", "a", "c", "c", "b", "z", None, "y", "x"]})
    encoder = fitted(table, rows=4, numeric=[], categorical=["c"], max_categories=3)
    assert encoder.categorical[0].values == ("b", "c", "a")
    assert encoder.cardinalities == (4,)
    codes = encoder.transform(pa.table({"c": ["a", "b", "c", "x", "never seen", None]}))[:, 0]
    np.testing.assert_array_equal(codes, np.array([2, 0, 1, 3, 3, np.nan], dtype=np.float32))


def test_each_type_becomes_its_number_and_null_becomes_nan():
    table = pa.table(
        {
            "boolean": [True, None],
            "integer": pa.array([2**24 + 1, None], pa.int64()),
            "small": pa.array([200, None], pa.uint8()),
            "float": [0.1, None],
            "huge": [1e300, None],
            "decimal": pa.array([Decimal("1.25"), None]),
            "date": pa.array([date(1970, 1, 11), None]),
            "empty": pa.nulls(2),
        }
    )
    encoder = EncoderBuilder(numeric=table.column_names, categorical=[]).update(table).finish()
    matrix = encoder.transform(table)
    assert matrix.dtype == np.float32
    assert matrix.flags.c_contiguous
    expected = [1, 2**24, 200, np.float32(0.1), np.inf, 1.25, 10, np.nan]
    np.testing.assert_array_equal(matrix, np.array([expected, [np.nan] * 8], dtype=np.float32))


def test_categories_of_any_type_are_known_by_their_text():
    table = pa.table(
        {
            "integer": pa.array([7, 7, None], pa.int16()),
            "boolean": [True, True, None],
            "date": pa.array([date(2013, 1, 1)] * 2 + [None]),
            "dictionary": pa.array(["u", "u", None]).dictionary_encode(),
            "float": [1.0, 1.0, math.nan],
            "empty": pa.nulls(3),
        }
    )
    encoder = EncoderBuilder(numeric=[], categorical=table.column_names).update(table).finish()
    assert [feature.values for feature in encoder.categorical] == [
        ("7",),
        ("true",),
        ("2013-01-01",),
        ("u",),
        ("1",),
        (),
    ]
    codes = encoder.transform(table.set_column(0, "integer", table.column("integer").cast(pa.int64())))
    np.testing.assert_array_equal(codes[0], [0, 0, 0, 0, 0, np.nan])
    assert np.isnan(codes[2]).all()


def test_columns_are_numbers_then_categories_with_matching_indices():
    table = pa.table({"c": ["x"], "n": [1.0], "d": ["y"], "m": [2]})
    encoder = EncoderBuilder(numeric=["n", "m"], categorical=["c", "d"]).update(table).finish()
    assert encoder.feature_names == ("n", "m", "c", "d")
    assert encoder.categorical_indices == (2, 3)
    assert encoder.numeric_stats == {0: (1.0, 0.0), 1: (2.0, 0.0)}
    assert encoder.transform(table.slice(0, 0)).shape == (0, 4)


def test_a_column_of_many_categories_is_pruned_the_same_whatever_the_batches(monkeypatch):
    monkeypatch.setattr(encoders, "_BLOCK_ROWS", 500)
    pick = random.Random(2)
    values = [pick.choice(["hot", "warm"]) if i % 3 == 0 else f"rare {i}" for i in range(6000)]
    table, options = pa.table({"c": values}), {"numeric": [], "categorical": ["c"], "max_categories": 10}
    found = [fitted(table, rows=rows, **options) for rows in (1, 77, 500, 6000)]
    assert found[1:] == found[:1] * 3
    assert set(found[0].categorical[0].values[:2]) == {"hot", "warm"}
    assert not found[0].categorical[0].exact
    builder = EncoderBuilder(**options).update(table.slice(0, 5500))
    assert len(builder._categories[0]._counts) <= 8 * 10


def test_long_texts_are_categories_of_their_own_and_are_kept_short():
    texts = ["a" * 10_000, "a" * 10_001, "b" * 512, None, "a" * 10_000, "é" * 257]
    table = pa.table({"text": texts})
    encoder = EncoderBuilder(numeric=[], categorical=["text"]).update(table).finish()
    codes = encoder.transform(table)[:, 0]
    assert codes[0] == codes[4]
    assert len({codes[0], codes[1], codes[2], codes[5]}) == 4
    assert len(json.dumps(encoder.to_json())) < 2_000
    assert (
        FeatureEncoder.from_json(encoder.to_json()).transform(table)[:, 0][[0, 1, 2, 4, 5]] == codes[[0, 1, 2, 4, 5]]
    ).all()


def test_a_timestamp_is_not_a_number_and_a_list_not_a_category():
    table = pa.table({"t": pa.array([0], pa.timestamp("us")), "l": [[1]]})
    with pytest.raises(SpecError, match="'t' is of type timestamp"):
        EncoderBuilder(numeric=["t"], categorical=[]).update(table)
    with pytest.raises(SpecError, match="'l' is of type list"):
        EncoderBuilder(numeric=[], categorical=["l"]).update(table)


def test_a_missing_column_and_another_format_are_typed_errors():
    encoder = EncoderBuilder(numeric=["n"], categorical=[]).finish()
    with pytest.raises(SchemaMismatch, match="'n' is not among"):
        encoder.transform(pa.table({"m": [1]}))
    with pytest.raises(SchemaMismatch, match="format 99"):
        FeatureEncoder.from_json({**encoder.to_json(), "format": 99})
    with pytest.raises(ValueError, match="max_categories"):
        EncoderBuilder(numeric=[], categorical=[], max_categories=2**24)
