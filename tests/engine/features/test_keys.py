"""Where keys lie among those of a segment, whatever their numbers."""

from __future__ import annotations

from decimal import Decimal

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from engine.features.keys import build_dictionary, sort_keys

NEAR = st.integers(-40, 40)
NUMBERS = st.one_of(NEAR, st.integers(-(2**63), 2**63 - 1), st.sampled_from([-(2**63), 2**63 - 1]))


@given(st.lists(st.none() | NUMBERS, max_size=40), st.lists(st.none() | NUMBERS, max_size=40))
def test_each_number_is_found_where_it_is_and_no_other_is(known: list[int | None], wanted: list[int | None]) -> None:
    """Dense numbers are looked up in a table, others searched for."""
    columns = [
        sort_keys(
            pa.table({"key": pa.array(values, pa.int64())}), ["key"], np.zeros(len(values), dtype=np.int64)
        ).columns
        for values in (known, wanted)
    ]
    dictionary, _ = build_dictionary(columns[0])
    order = {value: code for code, value in enumerate([None, *sorted({v for v in known if v is not None})])}
    found = dictionary.find(columns[1])
    distinct = [None] if None in wanted else []
    distinct += sorted({value for value in wanted if value is not None})
    assert found.tolist() == [order.get(value, -1) for value in distinct]


def test_decimals_of_any_length_are_keys_of_their_own() -> None:
    near = [Decimal("1" + "0" * 36 + digit) for digit in "123"]
    for kind, values in (
        (pa.decimal128(38, 0), near),
        (pa.decimal128(38, 10), [Decimal(f"{value:f}"[:-10] + "." + f"{value:f}"[-10:]) for value in near]),
        (pa.decimal256(76, 38), [Decimal("7" * 38 + "." + "3" * 37 + digit) for digit in "123"]),
    ):
        table = pa.table({"key": pa.array([*values, values[0]], kind)})
        found = sort_keys(table, ["key"], np.zeros(4, dtype=np.int64))
        assert found.size == 3, kind
