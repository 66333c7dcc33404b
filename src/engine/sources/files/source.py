"""Files as a source: what a slice reads of them, and what became of each.

Which are new is ``changes.py``; how each format is read ``columnar.py`` and ``text_reader.py``.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import SecretStr

from engine.batching.streams import BatchBytes
from engine.errors import SourceError, SourceSchemaError
from engine.sources.casting import cast_rows
from engine.sources.dialects import nearest
from engine.sources.files.changes import Change, Changes, additions, changes
from engine.sources.files.columnar import (
    RowGroup,
    columnar_rows,
    columnar_schema,
    read_columnar,
    row_groups,
    standing,
    uneven_bytes,
)
from engine.sources.files.listing import Found, Place
from engine.sources.files.text_reader import COPIES_OF_A_BLOCK, ROW, TextReader
from engine.sources.files.texts import NAMED, guessed
from engine.sources.growth import Growth
from engine.sources.protocol import STAMP, Batch, Ending, Extent, Seen, SeenFile, Standing, Window
from engine.spec import FILE, FILE_KEY, READ_AT, CsvSpec
from engine.units import format_time

if TYPE_CHECKING:
    import polars as pl

_BLOCK_BYTES = 8 * 2**20
_TINY_BYTES = 2**16
_MOST_FILES = 5_000  # of one slice
_EVER = datetime(9999, 1, 1, tzinfo=UTC)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_OWN = (FILE, READ_AT, FILE_KEY)


@dataclass
class _Progress:
    """How far the files of a range have been read."""

    files: list[SeenFile]
    counts: Counter[str]
    more: bool = False
    scan: Mapping[str, Any] | None = None  # of files that are read again: behind which one


class FileSource:
    """Files; see ``protocol.Source``.

    Parameters
    ----------
    uri
        A path, directory, glob, object store or Delta table.
    key, cursor
        Columns; ``_key`` (file and row) and ``_read_at`` where the files have none.
    columns
        To read; all by default.
    format
        Of all files; by their suffix without it.
    csv
        How CSV is written.
    types, named
        Of columns in CSV and NDJSON: the contract's, and those that the pipeline file names. Others are guessed.
    """

    def __init__(
        self,
        uri: SecretStr,
        *,
        key: str = FILE_KEY,
        cursor: str = READ_AT,
        columns: Sequence[str] | None = None,
        times: Sequence[str] = (),
        format: str | None = None,
        csv: CsvSpec | None = None,
        types: pa.Schema | None = None,
        named: Mapping[str, str] | None = None,
    ) -> None:
        self._place = Place(uri, format=format)
        self._key, self._cursor = key, cursor
        self._wanted = columns
        self._csv = csv or CsvSpec()
        self._types = {} if types is None else {field.name: field.type for field in types}
        self._types |= {name: NAMED[kind] for name, kind in (named or {}).items()}
        self._times = times
        self._guessed: dict[str, pa.DataType] = {}
        self._footers: dict[str, Sequence[RowGroup]] = {}  # by name, of the files whose schema was asked for
        self._progress = _Progress([], Counter())
        self._mark: Mapping[str, Any] = {}
        self._at = Standing("the first file")

    def __enter__(self) -> Self:
        """Return itself; nothing stays open between calls."""
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        """Do nothing."""

    def schema(self) -> pa.Schema:
        """Return the columns of the newest file."""
        found, _ = self._place.files()
        if not found:
            raise SourceError("there is no file to read", hint="check source.uri, and source.format for other suffixes")
        return self._schema_of(found[-1])

    def head(self, *, limit_rows: int, batch_rows: int) -> Iterator[pa.RecordBatch]:
        """Yield rows of the oldest files."""
        bounds = self.next_range(Seen(), Window(until=_EVER, limit_rows=limit_rows))
        if bounds is None:
            return
        schema, left = self.schema(), limit_rows
        for batch in self.read(bounds, schema=schema, batch_bytes=_BLOCK_BYTES):
            rows = batch.rows.slice(0, left)
            for at in range(0, rows.num_rows, batch_rows):
                yield rows.slice(at, batch_rows)
            left -= rows.num_rows
            if left <= 0:
                return

    def next_range(self, seen: Seen, window: Window) -> Mapping[str, Any] | None:
        """Return files that are new, have grown or changed; with ``since`` those read since then, again."""
        until = (window.until - _EPOCH) // (_EPOCH.resolution)
        listed, passed = self._place.files()
        found = [file for file in listed if file.modified <= until]
        version = self._place.delta_version
        shared = {"limit_rows": window.limit_rows, "until": format_time(window.until), "version": version}
        if window.since is not None:
            return self._again(found, seen, window, shared)
        new = self._changes(found, seen.files(), present={file.name for file in listed})
        counts = {**new.counts, **({"skipped": passed} if passed else {})}
        if not new.read and not new.noted:
            return None
        kept = new.read[:_MOST_FILES]
        left_out = {change.file.name for change in new.read[_MOST_FILES:]}
        return {
            **shared,
            "files": [_entry(change) for change in kept],
            "left": bool(left_out),
            "noted": [file.to_json() for file in new.noted],
            "replaces": [name for name in new.replaces if name not in left_out],
            "counts": counts,
        }

    def schemas(self, bounds: Mapping[str, Any]) -> Sequence[tuple[str, pa.Schema]]:
        """Return the distinct schemas of the range's files."""
        out: list[tuple[str, pa.Schema]] = []
        for entry in bounds["files"]:
            file = _found(entry)
            if self._place.as_listed(file) is None:
                continue
            schema = self._schema_of(file)
            if all(not schema.equals(other) for _, other in out):
                out.append((file.name, schema))
        if not out and self._types:  # nothing to read, only something to note
            out.append(("", pa.schema(list(self._types.items()))))
        return out or [("", self.schema())]

    def extent(self, bounds: Mapping[str, Any], *, batch_bytes: int) -> Extent:
        """Return what the footers of Parquet tell, once ``schemas`` has read them."""
        del batch_bytes
        names = [entry["name"] for entry in bounds["files"]]
        return Extent(uneven_bytes=uneven_bytes([group for name in names for group in self._footers.get(name, ())]))

    def read(self, bounds: Mapping[str, Any], *, schema: pa.Schema, batch_bytes: BatchBytes) -> Iterator[Batch]:
        """Yield the rows of the range's files, one file after another."""
        progress = _Progress([SeenFile.from_json(one) for one in bounds["noted"]], Counter(bounds["counts"]))
        self._progress = progress
        growth = Growth(batch_bytes)
        left = int(bounds["limit_rows"])
        entries = bounds["files"]
        for at, entry in enumerate(entries):
            if left <= 0:
                progress.more = True
                break
            file, start = _found(entry), int(entry["offset"])
            if self._place.as_listed(file) is None:  # moved away since the plan was made: perhaps because it is damaged
                progress.counts["gone"] += 1
                progress.more = progress.more or (at == len(entries) - 1 and bool(bounds["left"]))
                continue
            rows, offset, whole, digest = int(entry["rows"]), start, True, str(entry["digest"])
            groups = self._row_groups(file)
            self._at = _standing(file, rows, groups)
            parts = self._parts(file, start, rows, schema, growth.source_bytes, digest)
            for part, size, offset, records, digest in parts:
                first, rows, left = rows, rows + records, left - records
                self._at = _standing(file, rows, groups)
                self._mark = {
                    "entry": at,
                    "resume": {"offset": offset, "rows": rows, "digest": digest},
                    "left": left,
                    "files": len(progress.files),
                    "counts": dict(progress.counts),
                }
                finished = self._finished(part, file, first, records, int(entry["read_at"]), schema)
                growth.saw(size, finished.rows.nbytes)
                yield finished
                if left <= 0:
                    whole = not self._has_more(file, offset)
                    break
            progress.files.append(
                SeenFile(
                    name=file.name,
                    size=file.size,
                    modified=file.modified,
                    digest=self._digest(file, digest, offset, whole=whole),
                    rows=rows,
                    read_at=int(entry["read_at"]),
                    offset=None if whole else offset,
                )
            )
            if entry["kind"] != "rest":
                progress.counts[entry["kind"]] += 1
            progress.scan = {
                **({"version": bounds["version"]} if bounds["version"] is not None else {}),
                "modified": file.modified,
                "name": file.name,
                "offset": None if whole else offset,
                "rows": rows,
            }
            progress.more = progress.more or not whole or (at == len(entries) - 1 and bool(bounds["left"]))

    def mark(self) -> Mapping[str, Any]:
        """Return the file that is being read, and the offset behind the last batch."""
        return self._mark

    def place(self) -> Standing:
        """Return the file that is being read, and the row that comes next; of Parquet also its row group."""
        return self._at

    def rest(self, bounds: Mapping[str, Any], mark: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the rest of the file, and the files after it; what is known of those before it is noted."""
        current, *others = bounds["files"][int(mark["entry"]) :]
        return {
            **bounds,
            "files": [{**current, **mark["resume"]}, *others],
            "limit_rows": max(1, int(mark["left"])),  # at 0 the file would not be read to the end that it has come to
            "noted": [file.to_json() for file in self._progress.files[: int(mark["files"])]],
            "counts": mark["counts"],
        }

    def ending(self) -> Ending:
        """Return what became of the files of the last read."""
        progress = self._progress
        return Ending(
            position=progress.scan, more=progress.more, files=tuple(progress.files), counts=dict(progress.counts)
        )

    # --- planning -------------------------------------------------------------------------------------------------

    def _again(
        self, found: Sequence[Found], seen: Seen, window: Window, shared: Mapping[str, Any]
    ) -> Mapping[str, Any] | None:
        """Return files that were read since a time, to be read anew: their rows take the place of the old ones."""
        since = (window.since - _EPOCH) // _EPOCH.resolution if window.since is not None else 0
        known = seen.files()
        behind = seen.position
        entries, replaces = [], []
        for file in found:
            before = known.get(file.name)
            if before is None or before.same_as is not None or before.read_at < since:
                continue
            place = (file.modified, file.name)
            offset = rows = 0
            if behind is not None:
                done = (behind["modified"], behind["name"])
                if place < done or (place == done and behind["offset"] is None):
                    continue
                if place == done:
                    offset, rows = int(behind["offset"]), int(behind["rows"])
            change = Change(file, "again", offset, rows, before.read_at)
            entries.append(_entry(change))
            if not offset:
                replaces.append(file.name)
        if not entries:
            return None
        kept = entries[:_MOST_FILES]
        names = {entry["name"] for entry in kept}
        return {
            **shared,
            "files": kept,
            "left": len(entries) > len(kept),
            "noted": [],
            "replaces": [name for name in replaces if name in names],
            "counts": {},
        }

    def _changes(self, found: Sequence[Found], seen: Mapping[str, SeenFile], *, present: Collection[str]) -> Changes:
        if self._place.is_delta:
            return additions(found, seen, present=present, replacing=self._key == FILE_KEY)
        return changes(found, seen, self._place, can_grow=self._can_grow, present=present)

    def _can_grow(self, file: Found) -> bool:
        return self._format(file) in ("csv", "ndjson") and file.compression is None

    def _reader(self, file: Found) -> TextReader:
        return TextReader(self._place, format=self._format(file), csv=self._csv, key=self._key)

    def _format(self, file: Found) -> str:
        return self._place.format or file.format or "parquet"

    # --- schemas --------------------------------------------------------------------------------------------------

    def _schema_of(self, file: Found) -> pa.Schema:
        own = self._own_schema(file)
        taken = [name for name in (FILE, READ_AT, FILE_KEY) if name in own.names]
        if taken:
            raise SourceSchemaError(
                f"file {file.name} has a column {taken[0]!r}, which is the name of one that every file is given",
                hint="rename it in the file",
            )
        for name in (self._key, self._cursor, *(self._wanted or ())):
            if name not in own.names and name not in _OWN:
                hint = nearest(name, own.names, what="columns")
                raise SourceSchemaError(f"file {file.name} has no column {name!r}", hint=hint)
        kept = {*self._wanted, self._key, self._cursor} if self._wanted is not None else set(own.names)
        fields = [field for field in own if field.name in kept]
        system = [pa.field(FILE, pa.string()), pa.field(READ_AT, STAMP)]
        if self._key == FILE_KEY:
            system.append(pa.field(FILE_KEY, pa.string()))
        schema = pa.schema([*fields, *system])
        if not pa.types.is_timestamp(schema.field(self._cursor).type):
            raise SourceSchemaError(
                f"file {file.name}: the cursor {self._cursor!r} is {schema.field(self._cursor).type}, not a time",
                hint="name a column of times, or leave source.cursor out: rows are then known by when they were read",
            )
        return schema

    def _own_schema(self, file: Found) -> pa.Schema:
        format = self._format(file)
        if format in ("parquet", "arrow"):
            schema, self._footers[file.name] = columnar_schema(self._place, file, format=format)
            return schema
        names, sample = self._reader(file).sample(file)
        if all(name in self._types for name in names):
            return pa.schema([(name, self._types[name]) for name in names])
        texts = sample()
        return pa.schema([(name, self._type_of(name, texts[name])) for name in names])

    def _type_of(self, name: str, sample: pl.Series) -> pa.DataType:
        """Return the type of a column of text: the contract's, the named, that of an earlier file, or a guess."""
        if name in self._types:
            return self._types[name]
        if name not in self._guessed:
            self._guessed[name] = STAMP if name in self._times else guessed(sample.to_arrow().cast(pa.string()))
        return self._guessed[name]

    # --- reading --------------------------------------------------------------------------------------------------

    def _parts(
        self, file: Found, start: int, rows: int, schema: pa.Schema, batch_bytes: BatchBytes, digest: str
    ) -> Iterator[tuple[Batch, int, int, int, str]]:
        """Yield batches, with what each was bounded by in bytes, the offset behind it, how many records it came from,
        and the digest up to the offset.

        The digest is empty where bytes are not read in order.
        """
        format = self._format(file)
        if format in ("parquet", "arrow"):
            for raw, size, offset in read_columnar(
                self._place, file, format=format, start=start, batch_bytes=batch_bytes
            ):
                yield Batch(raw), size, offset, raw.num_rows, ""
            return
        own = pa.schema([(field.name, field.type) for field in schema if field.name not in _OWN])
        at, reader = start, self._reader(file)
        parts = reader.parts(file, own, start=start, rows=rows, batch_bytes=batch_bytes, digest=digest)
        for part, offset, records, so_far in parts:
            yield part, (offset - at) * COPIES_OF_A_BLOCK, offset, records, so_far
            at = offset

    def _digest(self, file: Found, read: str, offset: int, *, whole: bool) -> str:
        """Return the digest of what was read of a file; empty when it was not the file that the listing showed."""
        text = file.compression is None and self._format(file) in ("csv", "ndjson")
        if not whole or (text and read and offset == file.size):
            return read if text else ""
        if self._place.is_delta:
            return ""  # a name stands for its content
        digest = self._place.digest(file)
        return digest if self._place.as_listed(file) else ""

    def _finished(self, part: Batch, file: Found, first: int, records: int, read_at: int, schema: pa.Schema) -> Batch:
        """Return a batch with the columns that every file has, and the schema's types."""
        rows = part.rows
        if ROW in rows.schema.names:
            numbers = rows.column(ROW)
            rows = rows.drop_columns([ROW])
        else:
            numbers = pa.array(np.arange(first, first + records))
        count = rows.num_rows
        rows = rows.append_column(FILE, pa.repeat(pa.scalar(file.name, pa.string()), count))
        rows = rows.append_column(READ_AT, pa.repeat(pa.scalar(read_at, pa.int64()).cast(STAMP), count))
        if self._key == FILE_KEY:
            keys = pc.binary_join_element_wise(file.name, numbers.cast(pa.string()), "#")
            rows = rows.append_column(FILE_KEY, keys)
        cast, wrong = cast_rows(rows, schema, key=self._key, cursor=self._cursor)
        stamp = _EPOCH + read_at * _EPOCH.resolution
        rejected = [
            # By when the file was read, whatever the cursor: that is how it is found again.
            dataclasses.replace(one, cursor=stamp, place=one.place or file.name)
            for one in (*part.rejected, *wrong)
        ]
        return Batch(cast, rejected)

    def _row_groups(self, file: Found) -> Sequence[RowGroup]:
        """Return the row groups of a Parquet file that is not tiny."""
        if self._format(file) != "parquet" or file.size < _TINY_BYTES:
            return ()
        return row_groups(self._place, file)

    def _has_more(self, file: Found, offset: int) -> bool:
        """Return whether a file goes on behind an offset."""
        if self._format(file) == "parquet":
            return offset < columnar_rows(self._place, file)
        if self._format(file) == "arrow" or file.compression is not None:
            return True  # only reading on tells: at worst the next slice finds its end
        return offset < file.size


def _standing(file: Found, row: int, groups: Sequence[RowGroup]) -> Standing:
    here = standing(row, groups)
    return Standing(f"file {file.name} {here.text}", here.column_bytes)


def _entry(change: Change) -> dict[str, Any]:
    file = change.file
    return {
        "name": file.name,
        "path": file.path,
        "size": file.size,
        "modified": file.modified,
        "partition": dict(file.partition),
        "kind": change.kind,
        "offset": change.offset,
        "rows": change.rows,
        "read_at": change.read_at,
        "digest": change.digest,
    }


def _found(entry: Mapping[str, Any]) -> Found:
    return Found(entry["name"], entry["path"], entry["size"], entry["modified"], entry["partition"])
