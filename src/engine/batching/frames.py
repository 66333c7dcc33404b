"""Between Polars frames and the Arrow types that tables keep: plain strings, UTC microseconds."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pyarrow as pa

if TYPE_CHECKING:
    import polars as pl


def to_arrow(frame: pl.DataFrame, schema: pa.Schema | None = None) -> pa.Table:
    """Return a frame as an Arrow table of the types in ``schema``, or with Polars' large strings made plain."""
    import polars as pl

    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    wanted = schema if schema is not None else pa.schema([_plain(field) for field in table.schema])
    return table.select(wanted.names).cast(wanted)


def taken(rows: pl.DataFrame, *, of: int) -> pl.DataFrame:
    """Return rows that were taken out of ``of`` others, with texts of their own where they are few.

    What Polars takes out of a frame shares its buffers: one row keeps all texts of a batch.
    """
    import polars as pl

    texts = any(kind in (pl.String, pl.Binary) for kind in rows.dtypes)
    if not texts or 2 * rows.height >= of:
        return rows
    return pl.DataFrame(rows.to_arrow(compat_level=pl.CompatLevel.oldest()))


def _plain(field: pa.Field) -> pa.Field:
    if pa.types.is_large_string(field.type) or pa.types.is_string_view(field.type):
        return field.with_type(pa.string())
    if pa.types.is_large_binary(field.type):
        return field.with_type(pa.binary())
    if pa.types.is_dictionary(field.type):
        return field.with_type(pa.string())
    if pa.types.is_uint64(field.type) or pa.types.is_uint32(field.type):
        return field.with_type(pa.int64())
    if pa.types.is_uint16(field.type) or pa.types.is_uint8(field.type):
        return field.with_type(pa.int32())
    return field
