"""What has become of files since they were last read: pure, but for the digests that it asks for.

The rule behind it: the table holds each content that lies there once, whatever the names and the order in which they
came. How files are listed and hashed is ``listing.py`` and ``digests.py``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from engine.sources.files.listing import Found
from engine.sources.protocol import SeenFile


class Content(Protocol):
    """What tells contents apart; each question reads the file."""

    def digest(self, file: Found, size: int | None = None) -> str:
        """Return the digest of a file, or of its first bytes."""

    def ends_a_line(self, file: Found, size: int) -> bool:
        """Return whether the byte before ``size`` ends a line."""


@dataclass(frozen=True)
class Change:
    """A file to read, or to go on reading."""

    file: Found
    kind: str  # new, grown, changed, rest (of one that an earlier slice began)
    offset: int  # where to begin
    rows: int  # read of it before
    read_at: int  # microseconds: ``_read_at`` of the rows to come
    digest: str = ""  # of what was read before


@dataclass(frozen=True)
class Changes:
    """All that is new about a listing."""

    read: Sequence[Change]
    noted: Sequence[SeenFile]  # nothing to read: of content that is there already, or to be looked at again
    replaces: Sequence[str] = ()  # files whose older rows have to go
    counts: Mapping[str, int] = field(default_factory=dict)  # of what is noted, and of files that are gone


def changes(
    found: Sequence[Found],
    seen: Mapping[str, SeenFile],
    content: Content,
    *,
    can_grow: Callable[[Found], bool],
    present: Collection[str] | None = None,
) -> Changes:
    """Return what to read of ``found``, in its order.

    A file's content is only looked at where something else has its size: a digest costs a whole read.

    Parameters
    ----------
    found
        Files that may be read.
    seen
        What has been read of each name.
    content
        Answers what files hold.
    can_grow
        Whether a file of this format may be gone on with where it ended.
    present
        Names of all files, also of those that may not be read yet; by default those of ``found``.
    """
    known = {file.name: _known(file, seen.get(file.name), content, can_grow) for file in found}
    known |= _grown_together(known.values(), seen, content)
    lost = {name for name, change in known.items() if change is not None and change.kind == "changed"}
    held = _Contents(content)
    for name, one in seen.items():
        if name not in lost and one.offset is None and one.same_as is None and one.digest:
            held.add(name, one.size, one.digest)
    for file in found:
        change = known[file.name]
        if change is not None and change.kind in ("grown", "rest"):
            held.expect(file)
    counts: Counter[str] = Counter()
    read: list[Change] = []
    noted: list[SeenFile] = []
    for file in found:
        change, before = known[file.name], seen.get(file.name)
        if change is None and before is not None and before.same_as in lost:
            # It stood for a content that is about to go: from now on it stands for itself, whenever it is read.
            noted.append(replace(before, size=0, digest="", same_as=None))
            change = _new(file)
        if change is None:
            continue
        if change.kind == "touched" and before is not None:
            noted.append(replace(before, modified=file.modified))
            counts["same_content"] += 1
        elif change.kind in ("new", "changed") and (twin := held.twin(file)) is not None:
            noted.append(SeenFile(file.name, file.size, file.modified, twin[1], 0, change.read_at, None, twin[0]))
            counts["same_content"] += 1
        else:
            read.append(change)
    there = known if present is None else present
    counts["gone"] = sum(name not in there for name in seen)
    return Changes(
        read,
        noted,
        [file.name for file in found if file.name in lost],
        {name: count for name, count in counts.items() if count},
    )


def additions(
    found: Sequence[Found], seen: Mapping[str, SeenFile], *, present: Collection[str], replacing: bool
) -> Changes:
    """Return the same of a Delta table, whose names are never used again and of which equal files are meant.

    Parameters
    ----------
    replacing
        Whether rows of files that are gone have to go: without a key, a file that was merged or updated within the
        table comes under another name, with rows that nothing else tells from those that were read.
    """
    read = []
    for file in found:
        before = seen.get(file.name)
        if before is None or not before.size:
            read.append(_new(file))
        elif before.offset is not None:
            read.append(Change(file, "rest", before.offset, before.rows, before.read_at))
    gone = [file for name, file in seen.items() if name not in present and file.size]
    noted = [replace(file, size=0, rows=0, offset=None) for file in gone] if replacing else []
    return Changes(read, noted, [file.name for file in gone] if replacing else [], {"gone": len(gone)} if gone else {})


def _new(file: Found) -> Change:
    return Change(file, "new", 0, 0, file.modified)


def _known(file: Found, before: SeenFile | None, content: Content, can_grow: Callable[[Found], bool]) -> Change | None:
    """Return what has become of one file by itself; None when nothing has."""
    if before is not None and (before.size, before.modified) == (file.size, file.modified):
        if before.offset is None:
            return None
        return Change(file, "rest", before.offset, before.rows, before.read_at, before.digest)
    if before is None or before.same_as is not None or not before.size:
        return _new(file)
    later = max(file.modified, before.read_at + 1)
    changed = Change(file, "changed", 0, 0, later)
    longer = file.size > before.size and can_grow(file)
    if before.offset is not None or not before.digest or not (longer or file.size == before.size):
        return changed
    if content.digest(file, before.size) != before.digest:
        return changed
    if not longer:
        return Change(file, "touched", 0, before.rows, before.read_at)
    if not content.ends_a_line(file, before.size):  # its last line was cut off, and has been read as a row
        return changed
    return Change(file, "grown", before.size, before.rows, later, before.digest)


def _grown_together(
    known: Iterable[Change | None], seen: Mapping[str, SeenFile], content: Content
) -> Mapping[str, Change]:
    """Return files that have grown into what another holds, as changed: their rows would come twice.

    A copy that was read while it was written is one.
    """
    grown = [change for change in known if change is not None and change.kind == "grown"]
    wholes = [one for one in seen.values() if one.offset is None and one.same_as is None and one.digest]
    of_size = Counter([change.file.size for change in grown] + [one.size for one in wholes])
    contents = {(one.size, one.digest) for one in wholes}
    out = {}
    for change in grown:
        if of_size[change.file.size] < 2:
            continue
        mine = (change.file.size, content.digest(change.file))
        if mine in contents:
            out[change.file.name] = replace(change, kind="changed", offset=0, rows=0, digest="")
        contents.add(mine)
    return out


class _Contents:
    """Which contents the table has or is about to have; looked up by size first, by digest where one is the same."""

    def __init__(self, content: Content) -> None:
        self._content = content
        self._names: dict[int, dict[str, str]] = {}  # by size: the name by digest
        self._expected: dict[int, list[Found]] = {}  # by size: files to read, of which no digest was needed yet

    def add(self, name: str, size: int, digest: str) -> None:
        """Add a content of which the digest is known."""
        self._names.setdefault(size, {}).setdefault(digest, name)

    def expect(self, file: Found) -> None:
        """Add what a file holds, which the table will have."""
        self._expected.setdefault(file.size, []).append(file)

    def twin(self, file: Found) -> tuple[str, str] | None:
        """Return the name of the file of the same content, and the digest; without one this file is added."""
        size = file.size
        if size not in self._names and size not in self._expected:
            self.expect(file)
            return None
        for other in self._expected.pop(size, ()):
            self.add(other.name, size, self._content.digest(other))
        digest = self._content.digest(file)
        name = self._names.setdefault(size, {}).setdefault(digest, file.name)
        return None if name == file.name else (name, digest)
