"""CSV: a block of records as columns of text, and which records are none. Types come after, in ``texts.py``."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from engine.sources.files.blocks import is_well_quoted
from engine.sources.protocol import LONGEST_VALUE
from engine.spec import CsvSpec

if TYPE_CHECKING:
    import polars as pl

csv.field_size_limit(2**31 - 1)  # a long text is no error: how long it may be is for the admission to say


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
    if not _is_whole(block, frame, options):
        return _one_by_one(block, names, options)
    return Texts(frame, records=frame.height)


def _is_whole(block: bytes, frame: pl.DataFrame, options: CsvSpec) -> bool:
    """Return whether every record had all its fields: Polars fills a short one, and an empty line, with nulls.

    It refuses records that are too long, so the number of delimiters tells: those between fields and those within.
    """
    import polars as pl

    if frame.width == 1 and (b"\n\n" in block or b"\n\r\n" in block or block.startswith((b"\n", b"\r\n"))):
        return False  # an empty line has as many delimiters as a record has
    within = 0
    if options.quote.encode() in block:
        if not is_well_quoted(block, options.quote.encode(), options.delimiter.encode()):
            return False
        within = frame.select(
            pl.sum_horizontal(pl.all().str.count_matches(options.delimiter, literal=True).sum())
        ).item()
    delimiter = options.delimiter.encode()
    if len(delimiter) == 1:  # five times as fast as bytes.count where there are many
        found = int(np.count_nonzero(np.frombuffer(block, np.uint8) == delimiter[0]))
    else:
        found = block.count(delimiter)
    return found == (frame.width - 1) * frame.height + within


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
