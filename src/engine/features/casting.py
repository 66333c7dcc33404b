"""Arrow columns as float32 and as the texts by which categories are known; other types are refused by name."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import SpecError

LONGEST_CATEGORY_BYTES = 512
_SHOWN = 64  # characters of a longer one


def as_float32(array: pa.Array, *, name: str) -> npt.NDArray[np.float32]:
    """Return a boolean, integer, float, decimal or date (days since 1970) column, float32 (rows,), with null as NaN.

    Raises
    ------
    SpecError
        It is of another type; names it.
    """
    of = array.type
    if pa.types.is_boolean(of):
        numbers = array.cast(pa.uint8())
    elif pa.types.is_date(of):
        numbers = array.cast(pa.date32()).cast(pa.int32())
    elif pa.types.is_decimal(of) or pa.types.is_null(of):
        numbers = array.cast(pa.float64())
    elif pa.types.is_integer(of) or pa.types.is_floating(of):
        numbers = array
    else:
        raise SpecError(
            f"features.numeric: column {name!r} is of type {of}, not a number",
            hint="list it under categorical, or turn it into a number in the transform",
        )
    missing = numbers.is_null().to_numpy(zero_copy_only=False)
    plain = pc.fill_null(numbers, np.float16(0) if pa.types.is_float16(numbers.type) else 0)
    with np.errstate(over="ignore"):  # beyond float32 is infinite, which learners take
        out: npt.NDArray[np.float32] = plain.to_numpy(zero_copy_only=False).astype(np.float32)
    out[missing] = np.nan
    return out


def as_texts(array: pa.Array, *, name: str) -> pa.Array:
    """Return a column as large_string, one text a value, with null (and NaN) as null.

    A text of more than 512 bytes is its first 64 characters and a digest: a category is told from others by it as well,
    and some thousands of them fit any budget.

    Raises
    ------
    SpecError
        It is not text, boolean, a number or a date; names it.
    """
    if pa.types.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    of = array.type
    if pa.types.is_floating(of):
        array = pc.if_else(pc.is_nan(array), pa.scalar(None, of), array)
    known = (
        pa.types.is_string(of)
        or pa.types.is_large_string(of)
        or pa.types.is_string_view(of)
        or pa.types.is_boolean(of)
        or pa.types.is_integer(of)
        or pa.types.is_floating(of)
        or pa.types.is_decimal(of)
        or pa.types.is_date(of)
        or pa.types.is_null(of)
    )
    if not known:
        raise SpecError(
            f"features.categorical: column {name!r} is of type {of}, which cannot be a category",
            hint="turn it into text, a number or a date in the transform",
        )
    return _shortened(array.cast(pa.large_string()))


def _shortened(texts: pa.Array) -> pa.Array:
    sizes = pc.binary_length(texts)
    if (pc.max(sizes).as_py() or 0) <= LONGEST_CATEGORY_BYTES:
        return texts
    long = pc.fill_null(pc.greater(sizes, LONGEST_CATEGORY_BYTES), False)
    short = [_digest(texts[at].as_py()) for at in pc.indices_nonzero(long).to_pylist()]  # one at a time: they are long
    return pc.replace_with_mask(texts, long, pa.array(short, pa.large_string()))


def _digest(text: str) -> str:
    return f"{text[:_SHOWN]}… {hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}"
