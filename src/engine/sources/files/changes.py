"""What has become of files since they were last read: pure, but for the digests that it asks for."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class Changes:
    """All that is new about a listing."""

    read: Sequence[Change]
    noted: Sequence[SeenFile]  # of content that was read already: nothing to read
    counts: Mapping[str, int] = field(default_factory=dict)


def changes(
    found: Sequence[Found], seen: Mapping[str, SeenFile], content: Content, *, can_grow: Callable[[Found], bool]
) -> Changes:
    """Return what to read of ``found``, in its order.

    A file's content is only looked at where something else has its size: a digest costs a whole read.
    """
    counts: Counter[str] = Counter()
    read: list[Change] = []
    noted: list[SeenFile] = []
    by_size: dict[int, list[tuple[str, Callable[[], str]]]] = {}
    for name, known in seen.items():
        if known.offset is None and known.same_as is None and known.digest:
            by_size.setdefault(known.size, []).append((name, lambda digest=known.digest: digest))  # type: ignore[misc]
    for file in found:
        before = seen.get(file.name)
        if before is not None and (before.size, before.modified) == (file.size, file.modified):
            if before.offset is not None:
                read.append(Change(file, "rest", before.offset, before.rows, before.read_at))
            continue
        twins = [(name, digest) for name, digest in by_size.get(file.size, ())]
        twin = _twin(file, twins, content) if twins else None
        if twin == file.name and before is not None:
            noted.append(_seen(file, before, same_as=None))
            counts["same_content"] += 1
            continue
        if twin is not None and (before is None or before.same_as is not None):
            noted.append(SeenFile(file.name, file.size, file.modified, "", 0, file.modified, None, twin))
            counts["same_content"] += 1
            continue
        change = _change(file, before, content, can_grow=can_grow)
        counts[change.kind] += 1
        read.append(change)
        by_size.setdefault(file.size, []).append((file.name, lambda file=file: content.digest(file)))  # type: ignore[misc]
    names = {file.name for file in found}
    counts["gone"] = sum(name not in names for name in seen)
    return Changes(read, noted, {name: count for name, count in counts.items() if count})


def _change(file: Found, before: SeenFile | None, content: Content, *, can_grow: Callable[[Found], bool]) -> Change:
    if before is None or before.same_as is not None:
        return Change(file, "new", 0, 0, file.modified)
    later = max(file.modified, before.read_at + 1)
    whole = before.offset is None and before.digest and before.size
    if (
        whole
        and file.size > before.size
        and can_grow(file)
        and content.digest(file, before.size) == before.digest
        and content.ends_a_line(file, before.size)  # else its last line was cut off, and has been read as a row
    ):
        return Change(file, "grown", before.size, before.rows, later)
    return Change(file, "changed", 0, 0, later)


def _twin(file: Found, others: Sequence[tuple[str, Callable[[], str]]], content: Content) -> str | None:
    """Return the name of the file of the same content: its own, if it was only touched, before any other."""
    mine = content.digest(file)
    same = [name for name, digest in others if digest() == mine]
    return file.name if file.name in same else next(iter(same), None)


def _seen(file: Found, before: SeenFile, *, same_as: str | None) -> SeenFile:
    return SeenFile(
        file.name, file.size, file.modified, before.digest, before.rows, before.read_at, before.offset, same_as
    )
