"""NDJSON: a block of lines as columns of text or of their own types, and which lines are none."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.json

from engine.sources.files.delimited import Texts, Unreadable
from engine.sources.protocol import LONGEST_VALUE

_OWN = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)


def names_of(block: bytes, *, lines: int = 10_000) -> list[str]:
    """Return the keys of the first lines, in the order in which they come."""
    names: dict[str, None] = {}
    for line in block.split(b"\n", lines)[:lines]:
        value = _object(line)
        names |= dict.fromkeys(value or ())
    return list(names)


def parse(block: bytes, schema: pa.Schema) -> Texts:
    """Return a block of lines with the schema's numbers and booleans as they are, and the rest as text.

    Arrow reads the block at once; one that holds another type anywhere is read again line by line.
    """
    import polars as pl

    wanted = pa.schema([(f.name, f.type if any(is_one(f.type) for is_one in _OWN) else pa.string()) for f in schema])
    options = pa.json.ParseOptions(explicit_schema=wanted, unexpected_field_behavior="ignore")
    reading = pa.json.ReadOptions(use_threads=False, block_size=max(len(block) + 1, 2**20))
    try:
        block.decode()  # Arrow does not look at what is within strings
        table = pa.json.read_json(io.BytesIO(block), read_options=reading, parse_options=options)
        frame = pl.DataFrame(table.select(wanted.names))
    except (pa.ArrowException, IndexError, UnicodeDecodeError):
        return _one_by_one(block, wanted)
    return Texts(frame, records=frame.height)


def _one_by_one(block: bytes, wanted: pa.Schema) -> Texts:
    """Return everything as text: what is none of its type is then found as in CSV."""
    import polars as pl

    rows: list[dict[str, Any]] = []
    numbers: list[int] = []
    unreadable: list[Unreadable] = []
    record = -1
    for line in block.split(b"\n"):
        if not line.strip():
            continue
        record += 1
        value = _object(line)
        if value is None:
            unreadable.append(Unreadable(record, "it is no JSON object", line.decode(errors="replace")[:LONGEST_VALUE]))
            continue
        numbers.append(record)
        rows.append(value)
    columns = {name: [_text(row.get(name)) for row in rows] for name in wanted.names}
    frame = pl.DataFrame(columns, schema=dict.fromkeys(wanted.names, pl.String))
    return Texts(frame, numbers, unreadable, record + 1)


def as_texts(block: bytes, names: Sequence[str]) -> Texts:
    """Return lines as columns of text, to guess their types from."""
    return _one_by_one(block, pa.schema([(name, pa.string()) for name in names]))


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line) if line.strip() else None
    except ValueError:  # also what is no UTF-8
        return None
    return value if isinstance(value, dict) else None


def _text(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value)
