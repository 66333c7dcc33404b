"""Values that a Delta table keeps in its log instead of its files, as a plan can hold them: text and type."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

_PARTITION_TYPES = {
    str(kind): kind
    for kind in (
        pa.string(),
        *(pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.bool_(), pa.date32()),
        *(pa.timestamp("us", tz="UTC"), pa.timestamp("us")),
    )
}


def partition_value(value: Sequence[str | None]) -> pa.Scalar:
    """Return a column's one value in a file of a Delta table, of the table's type; text where that is none of ours."""
    text, kind = value
    return pa.scalar(text, pa.string()).cast(_PARTITION_TYPES.get(str(kind), pa.string()))


def as_text(value: Any, kind: pa.DataType) -> Sequence[str | None]:
    """Return a value with its type, as JSON has them."""
    return (None if value is None else pa.scalar(value).cast(pa.string()).as_py(), str(kind))
