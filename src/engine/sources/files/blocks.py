"""Text files in blocks of whole records, each with where it ends: resumable, and bounded in memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from engine.batching.streams import BatchBytes, bound
from engine.errors import SourceError

_LEAST_LONGEST_BYTES = 32 * 2**20
_BOM = b"\xef\xbb\xbf"


def blocks(
    stream: pa.NativeFile,
    *,
    name: str,
    start: int,
    block_bytes: BatchBytes,
    quote: bytes | None,
    delimiter: bytes = b",",
    end: int | None = None,
) -> Iterator[tuple[bytes, int]]:
    """Yield whole records, about ``block_bytes`` at a time, and the offset behind them.

    Parameters
    ----------
    stream
        Open at ``start``; of a compressed file the uncompressed bytes.
    name
        What errors call the file.
    start
        Offset of the first record.
    quote
        Character between two of which a newline belongs to a field; None where none does.
    delimiter
        Between fields, where there are quotes.
    end
        Offset where to stop, though the file may have grown behind it since it was listed; None: at its end.

    Raises
    ------
    SourceError
        A record is longer than 32 MiB and than eight blocks: most likely a quote that is never closed.
    """
    held, offset = b"", start
    size = bound(block_bytes)
    longest = max(_LEAST_LONGEST_BYTES, 8 * size)
    while data := stream.read(size if end is None else min(size, end - offset - len(held))):
        held = held + data if held else data
        cut = _last_record(held, quote)
        block = held[:cut]
        if quote is not None and (cut == 0 or not is_well_quoted(block, quote, delimiter)):
            cut = _last_plain_record(held, quote, delimiter)
            block = held[:cut]
        if cut == 0:
            if len(held) > longest:
                raise SourceError(
                    f"file {name}: the record at byte {offset:,} does not end within {longest // 2**20} MiB",
                    hint="is a quote never closed, or is it another format?",
                )
            size = len(held)  # read as much again: a record that is larger than a block
            continue
        size = bound(block_bytes)
        yield block, offset + cut
        held, offset = held[cut:], offset + cut
    if held:
        yield held, offset + len(held)


def without_mark(first: bytes) -> bytes:
    """Return the first block without a byte order mark."""
    return first.removeprefix(_BOM)


def is_well_quoted(block: bytes, quote: bytes, delimiter: bytes) -> bool:
    """Return whether every quote opens or closes a field, or stands with another for one quote.

    Where one is a mere character (5" pipe), it does not come in a pair, and Polars cuts off what it takes for behind a
    field.
    """
    if quote not in block:
        return True
    if len(quote) > 1 or len(delimiter) > 1:
        return False
    letters = np.frombuffer(b"\n" + block + b"\n", np.uint8)
    places = np.flatnonzero(letters == quote[0])
    if len(places) % 2:
        return False
    before, behind = letters[places[0::2] - 1], letters[places[1::2] + 1]
    opens = np.isin(before, np.frombuffer(delimiter + quote + b"\n", np.uint8))
    closes = np.isin(behind, np.frombuffer(delimiter + quote + b"\r\n", np.uint8))
    return bool(opens.all() and closes.all())


def _last_record(held: bytes, quote: bytes | None) -> int:
    """Return where the last whole record ends: behind a newline before which all quotes are closed."""
    at = held.rfind(b"\n")
    if quote is None or at < 0:
        return at + 1
    odd = held.count(quote, 0, at) % 2
    while odd:  # no newline between the last quote and here is outside of one
        last = held.rfind(quote, 0, at)
        at = held.rfind(b"\n", 0, last)
        odd = (odd + held.count(quote, at + 1, last + 1)) % 2
    return at + 1


def _last_plain_record(held: bytes, quote: bytes, delimiter: bytes) -> int:
    """Return the same where quotes do not come in pairs: field by field, a quote within a field being a character."""
    q, d = re.escape(quote), re.escape(delimiter)
    field = re.compile(b"(?:%b[^%b]*+(?:%b%b[^%b]*+)*+%b|(?!%b))[^%b\n]*+(?:%b|(\n))" % (q, q, q, q, q, q, q, d, d))
    end = at = 0
    while (found := field.match(held, at)) is not None:
        at = found.end()
        if found[1]:
            end = at
    return end
