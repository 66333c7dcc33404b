"""CSV and NDJSON files read as batches: opened, cut into blocks, hashed, and parsed by threads while the next are read.

How a block is parsed is ``delimited.py`` and ``ndjson.py``; how text becomes values ``texts.py``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.batching.streams import BatchBytes, bound
from engine.errors import SourceSchemaError
from engine.sources.casting import reject
from engine.sources.files import delimited, ndjson
from engine.sources.files.blocks import blocks, without_mark
from engine.sources.files.delimited import Texts
from engine.sources.files.digests import Digest
from engine.sources.files.listing import Found, Place
from engine.sources.files.texts import typed_frame
from engine.sources.protocol import Batch, Rejected
from engine.spec import CsvSpec

if TYPE_CHECKING:
    import polars as pl

ROW = "_headrace_row"
"""The column with the number of a row in its file."""

_SAMPLE_BYTES = 2**20  # from which types are guessed
_BLOCK_BYTES = 8 * 2**20
_PARSING = 2  # blocks of text at once: reading and writing leave a core and a half

COPIES_OF_A_BLOCK = 1 + _PARSING
"""It grows as it is parsed: bytes, columns of text, columns of types; and some are on their way."""

_Behind = tuple[int, str]  # the offset behind a block, and the digest of all before it


@dataclass(frozen=True)
class _Parsed:
    """A block of text as rows."""

    rows: pa.RecordBatch
    numbers: npt.NDArray[np.int64]  # of each row in its block
    rejected: Sequence[tuple[int, Rejected]]  # with the number in its block
    records: int


class TextReader:
    """Reads files of one format.

    Parameters
    ----------
    place
        Where they lie.
    format
        ``csv`` or ``ndjson``.
    csv
        How CSV is written.
    key
        The column that names a row which is set apart.
    """

    def __init__(self, place: Place, *, format: str, csv: CsvSpec, key: str) -> None:
        self._place, self._format, self._csv, self._key = place, format, csv, key

    def _header(self, file: Found, first: bytes) -> tuple[Sequence[str], int]:
        names, size = delimited.header_of(first, self._csv)
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise SourceSchemaError(
                f"file {file.name} has more than one column {twice[0]!r}", hint="give each column a name of its own"
            )
        return names, size

    def _first_block(self, file: Found) -> bytes:
        with self._open(file, 0) as stream:
            for block, _ in self._blocks(stream, file, 0, _SAMPLE_BYTES):
                return without_mark(block)
        return b""

    def sample(self, file: Found) -> tuple[Sequence[str], Callable[[], pl.DataFrame]]:
        """Return the names of a file's columns, and a function that returns its first rows as text."""
        first = self._first_block(file)
        if self._format == "ndjson":
            found = ndjson.names_of(first)
            return found, lambda: ndjson.as_texts(first, found).frame
        names, size = self._header(file, first)
        return names, lambda: delimited.parse(first[size:], names, self._csv).frame

    def parts(
        self, file: Found, own: pa.Schema, *, start: int, rows: int, batch_bytes: BatchBytes, digest: str
    ) -> Iterator[tuple[Batch, int, int, str]]:
        """Yield batches, the offset behind each, how many records it came from, and the digest up to the offset.

        Parameters
        ----------
        own
            Types of the file's columns. Batches have the column ``ROW`` beside them.
        start, rows, digest
            Offset to begin at, how many records lie before it, and the digest up to there. Where that is not known
            (it is empty, or the file is compressed) no digest is known of what follows either.
        """
        csv = self._format == "csv"
        names, header_bytes = self._header(file, self._first_block(file)) if csv else ((), 0)

        def size() -> int:
            return max(64 * 1024, min(_BLOCK_BYTES, bound(batch_bytes) // COPIES_OF_A_BLOCK))

        def parse(block: bytes) -> _Parsed:
            texts = delimited.parse(block, names, self._csv) if csv else ndjson.parse(block, own)
            return self._typed(texts, own)

        with self._open(file, start) as stream:
            so_far = self._digest_so_far(file, start, digest)
            at = rows
            texts = self._text_blocks(stream, file, start, size, header_bytes, so_far)
            for parsed, (offset, digest) in _in_order(texts, parse):
                yield self._numbered(parsed, file, at), offset, parsed.records, digest
                at += parsed.records

    def _text_blocks(
        self, stream: pa.NativeFile, file: Found, start: int, size: BatchBytes, header_bytes: int, so_far: Digest | None
    ) -> Iterator[tuple[bytes, tuple[int, str]]]:
        for block, offset in self._blocks(stream, file, start, size):
            if so_far is not None:
                so_far.update(block)
            body = without_mark(block)[header_bytes:] if offset == len(block) else block
            yield body, (offset, so_far.text() if so_far is not None else "")

    def _digest_so_far(self, file: Found, start: int, before: str) -> Digest | None:
        """Return the digest of what lies before ``start``, to go on with; None where that is not known."""
        if file.compression is not None or (start and not before):
            return None
        digest = Digest(before, at=start)
        if start:
            behind = Digest.behind(start)
            with self._open(file, start - behind) as stream:
                digest.update(stream.read(behind))
        return digest

    def _typed(self, texts: Texts, own: pa.Schema) -> _Parsed:
        """Return columns of text as the schema's types, and the rows apart that are none of them."""
        rows, wrong = typed_frame(texts.frame, own)
        count = texts.frame.height
        numbers = np.arange(count) if texts.rows is None else np.array(texts.rows, dtype=np.int64)
        rejected = [
            (one.row, Rejected(reason=one.reason, value=one.text, row={"text": one.text})) for one in texts.unreadable
        ]
        for at, name in sorted(wrong.items()):
            reason = f"it is no {own.field(name).type}"
            one_row = texts.frame.slice(at, 1).to_arrow().combine_chunks().to_batches()[0]
            rejected.append((int(numbers[at]), reject(one_row, 0, name, reason, key=self._key, cursor="")))
        if wrong:
            mask = np.ones(count, dtype=bool)
            mask[list(wrong)] = False
            rows, numbers = rows.filter(pa.array(mask)), numbers[mask]
        return _Parsed(rows, numbers, rejected, texts.records)

    def _numbered(self, parsed: _Parsed, file: Found, first: int) -> Batch:
        """Return a block's rows with their numbers in the file, and those set apart with where they are."""
        rejected = []
        for row, one in parsed.rejected:
            place = f"{file.name}#{first + row}"
            rejected.append(dataclasses.replace(one, key=one.key or place, place=place))
        return Batch(parsed.rows.append_column(ROW, pa.array(parsed.numbers + first)), rejected)

    def _open(self, file: Found, start: int) -> pa.NativeFile:
        handle = self._place.open(file)
        try:
            if file.compression is None:
                handle.seek(start)
                return handle
            stream = pa.CompressedInputStream(handle, file.compression)
            left = start
            while left > 0 and (data := stream.read(min(_BLOCK_BYTES, left))):
                left -= len(data)
            return stream
        except (OSError, pa.ArrowException) as error:
            raise self._place.unreadable(file, error) from None

    def _blocks(self, stream: pa.NativeFile, file: Found, start: int, size: BatchBytes) -> Iterator[tuple[bytes, int]]:
        quote = self._csv.quote.encode() if self._format == "csv" else None
        try:
            yield from blocks(
                stream,
                name=file.name,
                start=start,
                block_bytes=size,
                quote=quote,
                delimiter=self._csv.delimiter.encode(),
                end=file.size if file.compression is None else None,
            )
        except (OSError, pa.ArrowException) as error:
            raise self._place.unreadable(file, error) from None


def _in_order(
    blocks_of: Iterator[tuple[bytes, _Behind]], parse: Callable[[bytes], _Parsed]
) -> Iterator[tuple[_Parsed, _Behind]]:
    """Yield each block parsed, in order, while threads parse the next ones."""
    with ThreadPoolExecutor(_PARSING, thread_name_prefix="headrace-parser") as pool:
        ahead: deque[tuple[Future[_Parsed], _Behind]] = deque()
        try:
            for block, behind in blocks_of:
                ahead.append((pool.submit(parse, block), behind))
                if len(ahead) > _PARSING:
                    future, behind = ahead.popleft()
                    yield future.result(), behind
            while ahead:
                future, behind = ahead.popleft()
                yield future.result(), behind
        finally:
            for future, _ in ahead:
                future.cancel()
