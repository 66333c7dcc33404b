"""Text files in blocks of whole records, each with where it ends: resumable, and bounded in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from engine.errors import SourceError

_LONGEST_RECORD_BYTES = 256 * 2**20
_BOM = b"\xef\xbb\xbf"


def blocks(
    stream: pa.NativeFile, *, name: str, start: int, block_bytes: int, quote: bytes | None
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

    Raises
    ------
    SourceError
        A record is longer than 256 MiB: most likely a quote that is never closed.
    """
    held, offset = b"", start
    size = block_bytes
    while data := stream.read(size):
        held = held + data if held else data
        end = _last_record(held, quote)
        if end == 0:
            if len(held) > _LONGEST_RECORD_BYTES:
                raise SourceError(
                    f"file {name}: the record at byte {offset:,} does not end within 256 MiB",
                    hint="is a quote never closed, or is it another format?",
                )
            size = len(held)  # read as much again: a record that is larger than a block
            continue
        size = block_bytes
        yield held[:end], offset + end
        held, offset = held[end:], offset + end
    if held:
        yield held, offset + len(held)


def without_mark(first: bytes) -> bytes:
    """Return the first block without a byte order mark."""
    return first.removeprefix(_BOM)


def _last_record(held: bytes, quote: bytes | None) -> int:
    """Return where the last whole record ends: behind a newline before which all quotes are closed."""
    at = held.rfind(b"\n")
    if quote is None or at < 0:
        return at + 1
    odd = held.count(quote, 0, at) % 2
    while odd:
        before = held.rfind(b"\n", 0, at)
        odd = (odd + held.count(quote, before + 1, at)) % 2
        at = before
    return at + 1
