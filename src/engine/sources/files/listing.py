"""Finding files: a path, a directory, a glob, an object store, or the live files of a Delta table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.fs
from pydantic import SecretStr

from engine.errors import SourceError, SpecError
from engine.sources.files.digests import PIECE_BYTES, Digest
from engine.sources.files.partitions import as_text
from engine.sources.scrubbing import scrub

FORMATS: Mapping[str, str] = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "csv",
    ".ndjson": "ndjson",
    ".jsonl": "ndjson",
    ".json": "ndjson",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".ipc": "arrow",
}
"""By suffix, after ``.gz`` or ``.zst`` is taken off."""

COMPRESSIONS: Mapping[str, str] = {".gz": "gzip", ".zst": "zstd"}

ALLOWED = "a path, a directory, a glob such as data/*.parquet, file://, s3://, gs://, or any scheme of fsspec"
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]+)://")
_OF_ARROW = ("file", "s3", "gs", "gcs", "hdfs", "abfs", "abfss")
_DELTA = "delta:"


@dataclass(frozen=True)
class Found:
    """A file as the listing shows it."""

    name: str  # relative to the place
    path: str  # within its file system
    size: int  # bytes
    modified: int  # microseconds since 1970 UTC
    partition: Mapping[str, Sequence[str | None]] = field(default_factory=dict)  # of a Delta table: text and type

    @property
    def format(self) -> str | None:
        """By the name's suffix, None when it is none of ours."""
        path = Path(self.name.lower())
        if path.suffix in COMPRESSIONS:
            path = path.with_suffix("")
        return FORMATS.get(path.suffix)

    @property
    def compression(self) -> str | None:
        """``gzip``, ``zstd`` or None."""
        return COMPRESSIONS.get(Path(self.name.lower()).suffix)


class Place:
    """Where files lie.

    Parameters
    ----------
    uri
        As in the pipeline file.
    format
        Overrides the suffixes; ``delta`` for a Delta table whose URI does not say so.
    """

    def __init__(self, uri: SecretStr, *, format: str | None) -> None:
        text = uri.get_secret_value()
        if not text.strip():
            raise SpecError(
                "source.uri is empty", hint=f"allowed: sqlite:///..., postgresql://..., or files: {ALLOWED}"
            )
        self.uri = uri
        self._delta = text.startswith(_DELTA) or format == "delta"
        text = text.removeprefix(_DELTA)
        self.format = "parquet" if self._delta else format
        parts = text.split("/")
        wild = next((at for at, part in enumerate(parts) if re.search(r"[*?\[]", part)), None)
        base = text if wild is None else "/".join(parts[:wild]) or "."
        self._pattern = None if wild is None else "/".join(parts[wild:])
        self.filesystem, self._base = _filesystem(base, uri)
        self._uri = base if _SCHEME.match(base) else self._base
        if isinstance(self.filesystem, pa.fs.LocalFileSystem) and (Path(self._base) / "_delta_log").is_dir():
            self._delta, self.format = True, "parquet"

    @property
    def delta_version(self) -> int | None:
        """The newest version of a Delta table; None for files."""
        return self._table().version() if self._delta else None

    @property
    def is_delta(self) -> bool:
        """Whether it is a Delta table."""
        return self._delta

    def files(self) -> tuple[list[Found], int]:
        """Return the files, oldest first, and how many were passed over (hidden, empty, of no known format).

        Raises
        ------
        SourceError
            The place cannot be listed, or is not there.
        """
        if self._delta:
            return self._delta_files(), 0
        try:
            info = self.filesystem.get_file_info(self._base)
            if info.type == pa.fs.FileType.NotFound:
                raise SourceError(
                    f"there is nothing at {self._shown()}",
                    hint="check source.uri; a relative path is taken from the directory that the command runs in",
                )
            if info.type == pa.fs.FileType.File:
                entries, base = [info], str(Path(self._base).parent)
            else:
                entries = self.filesystem.get_file_info(pa.fs.FileSelector(self._base, recursive=True))
                base = self._base
        except (OSError, pa.ArrowException) as error:
            raise SourceError(f"{self._shown()} cannot be listed: {scrub(str(error), self.uri)}") from None
        found, passed = [], 0
        matches = None if self._pattern is None else re.compile(_regex(self._pattern))
        for entry in entries:
            if entry.type != pa.fs.FileType.File:
                continue
            name = entry.path.removeprefix(base.rstrip("/") + "/")
            if matches is not None and not matches.fullmatch(name):
                continue
            file = Found(name, entry.path, int(entry.size or 0), int((entry.mtime_ns or 0) // 1_000))
            hidden = any(part.startswith((".", "_")) for part in name.split("/"))
            if hidden or not file.size or (self.format is None and file.format is None):
                passed += 1
                continue
            found.append(file)
        return sorted(found, key=lambda file: (file.modified, file.name)), passed

    def open(self, file: Found) -> pa.NativeFile:
        """Return a file open for reading at any place.

        Raises
        ------
        SourceError
            It is gone, or cannot be read.
        """
        try:
            if isinstance(self.filesystem, pa.fs.LocalFileSystem):
                return pa.OSFile(file.path, "rb")
            return self.filesystem.open_input_file(file.path)
        except (OSError, pa.ArrowException) as error:
            raise self.unreadable(file, error) from None

    def digest(self, file: Found, size: int | None = None) -> str:
        """Return the digest of a file's content, or of its first ``size`` bytes; see ``digests.py``."""
        left, found = file.size if size is None else size, Digest()
        try:
            with self.open(file) as handle:
                while left > 0 and (data := handle.read(min(PIECE_BYTES, left))):
                    found.update(data)
                    left -= len(data)
        except (OSError, pa.ArrowException) as error:
            raise self.unreadable(file, error) from None
        return found.text()

    def as_listed(self, file: Found) -> bool | None:
        """Return whether a file is still what the listing showed; None: it is gone."""
        try:
            info = self.filesystem.get_file_info(file.path)
        except (OSError, pa.ArrowException) as error:
            raise self.unreadable(file, error) from None
        if info.type == pa.fs.FileType.NotFound:
            return None
        if self._delta:
            return True  # names are never used again
        return (int(info.size or 0), int((info.mtime_ns or 0) // 1_000)) == (file.size, file.modified)

    def ends_a_line(self, file: Found, size: int) -> bool:
        """Return whether the byte before ``size`` ends a line."""
        with self.open(file) as handle:
            handle.seek(size - 1)
            return bool(handle.read(1) == b"\n")

    def unreadable(self, file: Found, error: Exception, *, where: str = "") -> SourceError:
        """Return the error that names a file, and where in it that was."""
        said = scrub(str(error), self.uri).splitlines()
        return SourceError(
            f"file {file.name} cannot be read{where}: {said[0] if said else type(error).__name__}",
            hint="is it whole? write files under another name and rename them when they are done; move a damaged one "
            "away, and run again",
        )

    def _shown(self) -> str:
        return scrub(self.uri.get_secret_value(), self.uri)

    def _table(self) -> Any:
        from deltalake import DeltaTable
        from deltalake.exceptions import DeltaError

        try:
            table = DeltaTable(self._uri)
        except (DeltaError, OSError) as error:
            raise SourceError(
                f"{self._shown()} cannot be opened as a Delta table: {scrub(str(error), self.uri)}"
            ) from None
        features = {"deletionVectors", "columnMapping"} & set(table.protocol().reader_features or ())
        if table.metadata().configuration.get("delta.columnMapping.mode", "none") != "none":
            features.add("columnMapping")
        if features:
            raise SourceError(
                f"{self._shown()} uses {', '.join(sorted(features))}, which are not read",
                hint="write it without, or export it as Parquet",
            )
        return table

    def _delta_files(self) -> list[Found]:
        table, out = self._table(), []
        kinds = {name: pa.schema(table.schema().to_arrow()).field(name).type for name in _partitions(table)}
        for action in pa.table(table.get_add_actions(flatten=True)).to_pylist():
            partition = {name: as_text(action[f"partition.{name}"], kind) for name, kind in kinds.items()}
            modified = action["modification_time"]
            out.append(
                Found(
                    name=action["path"],
                    path=f"{self._base.rstrip('/')}/{unquote(action['path'])}",
                    size=int(action["size_bytes"]),
                    modified=int(modified.timestamp() * 1_000_000)
                    if hasattr(modified, "timestamp")
                    else modified * 1_000,
                    partition=partition,
                )
            )
        return sorted(out, key=lambda file: (file.modified, file.name))


def _partitions(table: Any) -> Sequence[str]:
    return [str(name) for name in table.metadata().partition_columns]


def _filesystem(base: str, uri: SecretStr) -> tuple[pa.fs.FileSystem, str]:
    match = _SCHEME.match(base)
    if match is None:
        return pa.fs.LocalFileSystem(), str(Path(base).expanduser().absolute())
    scheme = match[1].lower()
    try:
        if scheme in _OF_ARROW:
            filesystem, path = pa.fs.FileSystem.from_uri(base)
            return filesystem, path
        import fsspec

        found, path = fsspec.core.url_to_fs(base)
        return pa.fs.PyFileSystem(pa.fs.FSSpecHandler(found)), path
    except (ValueError, ImportError, OSError, pa.ArrowException) as error:
        raise SpecError(
            f"source.uri: there is no source for {scheme!r}: {scrub(str(error), uri)}",
            hint=f"allowed: sqlite:///..., postgresql://..., adbc+driver:..., or files: {ALLOWED}",
        ) from None


def _regex(pattern: str) -> str:
    """Return a glob as a regular expression on a relative path; ``**`` crosses directories."""
    out, at = "", 0
    while at < len(pattern):
        if pattern.startswith("**/", at):
            out, at = out + "(?:[^/]+/)*", at + 3
        elif pattern.startswith("**", at):
            out, at = out + ".*", at + 2
        elif pattern[at] == "*":
            out, at = out + "[^/]*", at + 1
        elif pattern[at] == "?":
            out, at = out + "[^/]", at + 1
        elif pattern[at] == "[" and "]" in pattern[at:]:
            end = pattern.index("]", at)
            out, at = out + "[" + pattern[at + 1 : end].replace("!", "^", 1) + "]", end + 1
        else:
            out, at = out + re.escape(pattern[at]), at + 1
    return out
