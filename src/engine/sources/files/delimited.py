"""CSV: a block of records as columns of text, and which records are none. Types come after, in ``texts.py``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from engine.sources.protocol import LONGEST_VALUE
from engine.spec import CsvSpec

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True)
class Unreadable:
    """A record that has no place in the columns."""

    row: int  # in its block
    reason: str
    text: str  # its beginning


@dataclass(frozen=True)
class Texts:
    """A block as columns of text, and the records beside them that do not fit."""

    frame: pl.DataFrame  # all text, but numbers and booleans of NDJSON
    rows: Sequence[int] | None = None  # the number in its block of each row; None: all, in order
    unreadable: Sequence[Unreadable] = ()
    records: int = 0  # all of the block


def header_of(first: bytes, options: CsvSpec) -> tuple[list[str], int]:
    """Return the names of the columns, and the bytes that the header takes.

    ``first`` begins with the first record and holds all of it.
    """
    text = io.StringIO(first.decode("utf-8", errors="replace"), newline="")
    reader = csv.reader(text, delimiter=options.delimiter, quotechar=options.quote)
    record = next(reader, [])
    if not options.header:
        return [f"column_{at + 1}" for at in range(len(record))], 0
    names = [name.strip() or f"column_{at + 1}" for at, name in enumerate(record)]
    lines = first.split(b"\n", reader.line_num)
    return names, min(len(first), sum(len(line) + 1 for line in lines[: reader.line_num]))


def parse(block: bytes, names: Sequence[str], options: CsvSpec) -> Texts:
    """Return a block of whole records; a record with another number of fields, or no UTF-8, is set apart.

    Polars reads the block at once; one that it refuses is read again record by record.
    """
    import polars as pl

    try:
        frame = pl.read_csv(
            block,
            has_header=False,
            schema=dict.fromkeys(names, pl.String),
            separator=options.delimiter,
            quote_char=options.quote,
            null_values=["", *options.nulls],
            raise_if_empty=False,
            extra_columns="raise",
        )
    except (pl.exceptions.PolarsError, UnicodeDecodeError):
        return _one_by_one(block, names, options)
    if frame.height and names and frame[names[-1]].null_count():
        # Polars fills a record that is too short: where the last field is null, it is looked at again.
        short = options.delimiter.encode()
        if any(line.count(short) + 1 < len(names) for line in block.rstrip(b"\r\n").split(b"\n")):
            return _one_by_one(block, names, options)
    return Texts(frame, records=frame.height)


def _one_by_one(block: bytes, names: Sequence[str], options: CsvSpec) -> Texts:
    import polars as pl

    nulls = {"", *options.nulls}
    text = io.StringIO(block.decode("utf-8", errors="surrogateescape"), newline="")
    rows: list[list[str | None]] = []
    numbers: list[int] = []
    unreadable: list[Unreadable] = []
    record = -1
    for fields in csv.reader(text, delimiter=options.delimiter, quotechar=options.quote):
        if not fields:
            continue  # an empty line
        record += 1
        joined = options.delimiter.join(fields)
        if len(fields) != len(names):
            reason = f"{len(fields)} fields where {len(names)} are due"
        elif any("\udc80" <= letter <= "\udcff" for letter in joined):
            reason = "it is no UTF-8"
        else:
            numbers.append(record)
            rows.append([None if field in nulls else field for field in fields])
            continue
        shown = joined.encode("utf-8", errors="replace").decode()[:LONGEST_VALUE]
        unreadable.append(Unreadable(record, reason, shown))
    columns = {name: [row[at] for row in rows] for at, name in enumerate(names)}
    return Texts(pl.DataFrame(columns, schema=dict.fromkeys(names, pl.String)), numbers, unreadable, record + 1)
