"""The schema contract: what a source's columns were at first contact, and what may become of them. Pure functions.

Delta compares nothing when chunks are committed, so every range is compared here before it is read.
"""

from __future__ import annotations

import base64
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from engine.errors import SchemaChanged
from engine.sources.protocol import STAMP

_DELTA_DECIMAL_DIGITS = 38
_INT64_DIGITS = 19
_ALLOWED = {
    "dropped": "a column is no longer there: null from now on",
    "narrowed": "a column's type holds less than it did: stored as before",
    "retyped": "a column's type is another: converted where a value can be, else to quarantine",
    "key": "the key, the cursor or the key's type is another",
}
CHANGES = tuple(_ALLOWED)
"""What ``source.allow`` may name."""


@dataclass(frozen=True)
class Contract:
    """What the source declares, by column, and what identifies a version of a row."""

    key: str
    cursor: str
    declared: pa.Schema  # as the source last had it; columns that it dropped keep their type
    stored: pa.Schema  # as the table has it

    def to_json(self) -> dict[str, Any]:
        """Return a JSON-able mapping."""
        schemas = {"declared": self.declared, "stored": self.stored}
        packed = {name: base64.b64encode(schema.serialize().to_pybytes()).decode() for name, schema in schemas.items()}
        return {"key": self.key, "cursor": self.cursor, **packed}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Contract:
        """Return the contract that ``to_json`` described."""
        declared, stored = (
            pa.ipc.read_schema(pa.py_buffer(base64.b64decode(value[name]))) for name in ("declared", "stored")
        )
        return cls(value["key"], value["cursor"], declared, stored)


@dataclass(frozen=True)
class Difference:
    """One column that is not what it was."""

    column: str
    kind: str  # added, widened, dropped, narrowed, retyped or key
    was: str
    found: str
    where: str  # the table, or an example of a file


def first_contract(found: Sequence[tuple[str, pa.Schema]], *, key: str, cursor: str) -> Contract:
    """Return the contract of a source that is met for the first time.

    Raises
    ------
    SchemaChanged
        Its own parts (files) contradict one another.
    """
    schema = found[0][1].remove_metadata()
    start = Contract(key, cursor, schema, pa.schema([pa.field(f.name, stored_type(f.type)) for f in schema]))
    return renewed(start, found, key=key, cursor=cursor, allow=())[0]


def renewed(
    contract: Contract,
    found: Sequence[tuple[str, pa.Schema]],
    *,
    key: str,
    cursor: str,
    allow: Collection[str],
) -> tuple[Contract, tuple[Difference, ...]]:
    """Return the contract after a range with these schemas, and what has changed.

    A new column is added; a wider type widens. What is dropped, narrowed or retyped, and a key or cursor that is
    another, has to be in ``allow``.

    Raises
    ------
    SchemaChanged
        Something changed that is not allowed; ``details`` has ``differences``.
    """
    differences = list(_identity(contract, key=key, cursor=cursor))
    declared = {field.name: field.type for field in contract.declared}
    stored = {field.name: field.type for field in contract.stored}
    for where, schema in found:
        names = set(schema.names)
        for name, was in declared.items():
            if name not in names:
                differences.append(Difference(name, "dropped", str(was), "missing", where))
        for field in schema:
            if field.name not in declared:
                differences.append(Difference(field.name, "added", "missing", str(field.type), where))
                declared[field.name], stored[field.name] = field.type, stored_type(field.type)
                continue
            was = declared[field.name]
            if was == field.type:
                continue
            kind = "key" if field.name == key and _kind(was) != _kind(field.type) else compared(was, field.type)
            if kind == "same":
                continue
            differences.append(Difference(field.name, kind, str(was), str(field.type), where))
            declared[field.name] = field.type
            wider = stored_type(field.type)
            if kind == "widened" and compared(stored[field.name], wider) == "widened":
                stored[field.name] = wider
    refused = [one for one in differences if one.kind in _ALLOWED and one.kind not in allow]
    if refused:
        raise _error(refused)
    schema = pa.schema(list(declared.items()))
    return Contract(key, cursor, schema, pa.schema(list(stored.items()))), tuple(dict.fromkeys(differences))


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that a table keeps for a declared one: wide, so that most widening needs no rewriting.

    Integers are int64, floats float64, dates and times timestamp[us, UTC]; a decimal without a fraction that fits is
    int64. Types that Delta lacks become text.
    """
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_integer(kind) or pa.types.is_duration(kind):
        return pa.int64()
    if pa.types.is_floating(kind):
        return pa.float64()
    if pa.types.is_date(kind) or pa.types.is_timestamp(kind):
        return STAMP
    if pa.types.is_decimal(kind):
        return pa.decimal128(kind.precision, kind.scale) if kind.precision <= _DELTA_DECIMAL_DIGITS else pa.string()
    if pa.types.is_boolean(kind):
        return kind
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(stored_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(field.name, stored_type(field.type)) for field in kind])
    return pa.string()


def compared(was: pa.DataType, found: pa.DataType) -> str:
    """Return how a column's type has changed: same, widened, narrowed or retyped."""
    if was == found or _plain(was) == _plain(found):
        return "same"
    if _holds(found, was):
        return "widened"
    return "narrowed" if _holds(was, found) else "retyped"


def _identity(contract: Contract, *, key: str, cursor: str) -> list[Difference]:
    pairs = (("key", contract.key, key), ("cursor", contract.cursor, cursor))
    return [Difference(name, "key", was, found, "the pipeline file") for name, was, found in pairs if was != found]


def _holds(wide: pa.DataType, narrow: pa.DataType) -> bool:
    """Return whether every value of ``narrow`` has its place in ``wide``."""
    wide, narrow = _plain(wide), _plain(narrow)
    if pa.types.is_null(narrow):
        return True
    if pa.types.is_integer(narrow) and pa.types.is_integer(wide):
        if pa.types.is_unsigned_integer(narrow) and pa.types.is_signed_integer(wide):
            return bool(wide.bit_width > narrow.bit_width)
        return bool(
            pa.types.is_signed_integer(wide) == pa.types.is_signed_integer(narrow) and wide.bit_width > narrow.bit_width
        )
    if pa.types.is_floating(wide):
        return bool(
            pa.types.is_integer(narrow)
            or pa.types.is_decimal(narrow)
            or (pa.types.is_floating(narrow) and wide.bit_width > narrow.bit_width)
        )
    if pa.types.is_decimal(wide):
        if pa.types.is_decimal(narrow):
            whole = wide.precision - wide.scale >= narrow.precision - narrow.scale
            return bool(whole and wide.scale >= narrow.scale)
        return bool(pa.types.is_integer(narrow) and wide.precision - wide.scale >= _INT64_DIGITS)
    if pa.types.is_timestamp(wide):
        return bool(pa.types.is_date(narrow) or pa.types.is_timestamp(narrow))
    if pa.types.is_string(wide):
        return not (pa.types.is_nested(narrow) or pa.types.is_binary(narrow))
    return False


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain(kind.value_type)
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        return pa.binary()
    if pa.types.is_date(kind):
        return pa.date32()
    return STAMP if pa.types.is_timestamp(kind) else kind


def _kind(kind: pa.DataType) -> str:
    """Return what a key of this type is: numbers may widen, but 7 is not '7'."""
    stored = stored_type(kind)
    return "whole number" if pa.types.is_integer(stored) else str(stored)


def _error(refused: Sequence[Difference]) -> SchemaChanged:
    rows = [("column", "was", "is", "where"), *((d.column, d.was, d.found, d.where) for d in refused)]
    widths = [max(len(row[at]) for row in rows) for at in range(3)]
    table = "\n".join("  " + "  ".join([*(row[at].ljust(widths[at]) for at in range(3)), row[3]]) for row in rows)
    kinds = sorted({one.kind for one in refused})
    meaning = "; ".join(f"{kind}: {_ALLOWED[kind]}" for kind in kinds)
    return SchemaChanged(
        f"the source is not what it was at the last extraction; nothing of it was committed\n{table}",
        hint=f"correct the source or the pipeline file, or allow it there by source.allow: [{', '.join(kinds)}] "
        f"({meaning})",
        details={"differences": [vars(one) for one in refused]},
    )
