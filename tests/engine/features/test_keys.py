"""Where keys lie among those of a segment, whatever their numbers."""

from __future__ import annotations

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
