"""Which files are new, grown, changed or known: whatever happens to them, no row is lost and none comes twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.sources.files.changes import Changes, additions, changes
from engine.sources.files.digests import PIECE_BYTES, Digest
from engine.sources.files.listing import Found
from engine.sources.protocol import SeenFile


@dataclass
class Disk:
    """Files of numbered lines, as a listing and as content."""

    files: dict[str, tuple[list[int], int]] = field(default_factory=dict)  # by name: lines, modified
    clock: int = 0
    line: int = 1_000
    asked: Counter[str] = field(default_factory=Counter)

    def lines(self, count: int) -> list[int]:
        self.line += count
        return list(range(self.line - count, self.line))

    def write(self, name: str, lines: Sequence[int]) -> None:
        self.clock += 1
        self.files[name] = ([*lines], self.clock)

    def found(self) -> list[Found]:
        listed = [Found(name, name, 5 * len(lines), at) for name, (lines, at) in self.files.items()]
        return sorted(listed, key=lambda file: (file.modified, file.name))

    def digest(self, file: Found, size: int | None = None) -> str:
        self.asked[file.name] += 1
        lines = self.files[file.name][0]
        return str(lines if size is None else lines[: size // 5])

    def ends_a_line(self, file: Found, size: int) -> bool:
        return size % 5 == 0 and size <= file.size


@dataclass
class Stage:
    """Commits slices of at most so many files, as the extract stage does."""

    disk: Disk
    files_a_slice: int = 10**6
    seen: dict[str, SeenFile] = field(default_factory=dict)
    table: dict[str, list[int]] = field(default_factory=dict)

    def run(self) -> list[Changes]:
        out = []
        while True:
            new = changes(self.disk.found(), self.seen, self.disk, can_grow=lambda file: True)
            if not new.read and not new.noted:
                return out
            out.append(new)
            assert len(out) < 50
            came = {file.name: file for file in new.noted}
            taken = new.read[: self.files_a_slice]
            for change in taken:
                name, size = change.file.name, change.file.size
                digest = str(self.disk.files[name][0])
                came[name] = SeenFile(name, size, change.file.modified, digest, size // 5, change.read_at)
            for name in new.replaces:
                if name in came:
                    self.table.pop(name, None)
            for change in taken:
                self.table.setdefault(change.file.name, []).extend(
                    self.disk.files[change.file.name][0][change.offset // 5 :]
                )
            self.seen |= came

    def rows(self) -> Counter[int]:
        return Counter(line for lines in self.table.values() for line in lines)


NAMES = st.sampled_from(["a", "b", "c", "d"])
STEPS = st.one_of(
    st.tuples(st.just("write"), NAMES, st.integers(1, 3)),
    st.tuples(st.just("append"), NAMES, st.integers(1, 2)),
    st.tuples(st.just("copy"), NAMES, NAMES),
    st.tuples(st.just("swap"), NAMES, NAMES),
    st.tuples(st.just("touch"), NAMES, NAMES),
    st.tuples(st.just("run"), NAMES, st.integers(1, 3)),
)


@settings(max_examples=400, deadline=None)
@given(steps=st.lists(STEPS, max_size=25), files_a_slice=st.integers(1, 3))
def test_the_table_holds_what_lies_there_whatever_was_done_to_the_files(
    steps: list[tuple[str, str, str | int]], files_a_slice: int
) -> None:
    disk = Disk()
    stage = Stage(disk, files_a_slice)
    for what, name, other in [*steps, ("run", "a", 1)]:
        lines = disk.files.get(name, ([], 0))[0]
        if what == "run":
            stage.run()
            contents = {tuple(lines) for lines, _ in disk.files.values()}
            most = Counter(line for content in contents for line in content)
            rows = stage.rows()
            assert set(rows) == set(most)
            assert all(count <= most[line] for line, count in rows.items())
        elif what == "write" and isinstance(other, int):
            disk.write(name, disk.lines(other))
        elif what == "append" and isinstance(other, int):
            disk.write(name, [*lines, *disk.lines(other)])
        elif what == "touch" and lines:
            disk.write(name, lines)
        elif what == "copy" and lines and isinstance(other, str):
            disk.write(other, lines)
        elif what == "swap" and isinstance(other, str) and other in disk.files and lines:
            disk.files[name], disk.files[other] = disk.files[other], disk.files[name]  # renamed: with their dates


def test_a_log_that_is_rotated_loses_no_row_and_doubles_none() -> None:
    disk = Disk()
    stage = Stage(disk)
    everything: list[int] = []
    for _ in range(5):
        for number in (3, 2, 1):
            if (older := f"log.{number - 1}" if number > 1 else "log") in disk.files:
                disk.files[f"log.{number}"] = disk.files.pop(older)
        lines = disk.lines(3)
        disk.write("log", lines)
        everything += lines
        stage.run()
        assert dict.fromkeys(everything[-12:], 1).items() <= dict(stage.rows()).items()


def test_each_file_is_hashed_once_however_many_have_its_size() -> None:
    disk = Disk()
    for number in range(2_000):
        disk.write(f"{number:04d}", disk.lines(1))
    stage = Stage(disk)
    stage.run()
    assert max(disk.asked.values()) == 1
    disk.asked.clear()
    disk.write("one more", disk.lines(1))
    stage.run()
    assert disk.asked == {"one more": 1}


def test_files_that_are_gone_or_may_not_be_read_yet_are_told_apart() -> None:
    disk = Disk()
    disk.write("a", [1])
    disk.write("b", [2])
    stage = Stage(disk)
    stage.run()
    del disk.files["a"]
    disk.write("c", [3])
    found = [file for file in disk.found() if file.name == "c"]  # b is later than the clock
    new = changes(found, stage.seen, disk, can_grow=lambda file: True, present={"b", "c"})
    assert new.counts == {"gone": 1}
    assert [change.file.name for change in new.read] == ["c"]


@pytest.mark.parametrize("replacing", [True, False])
def test_a_merged_delta_file_takes_the_place_of_its_parts_where_rows_have_no_key(replacing: bool) -> None:
    def listed(*names: str) -> list[Found]:
        return [Found(name, name, 10, at) for at, name in enumerate(names)]

    def record(new: Changes, seen: Mapping[str, SeenFile]) -> dict[str, SeenFile]:
        read = [SeenFile(c.file.name, c.file.size, c.file.modified, "", 1, c.read_at) for c in new.read]
        return {**seen, **{file.name: file for file in (*new.noted, *read)}}

    first = additions(listed("p", "q"), {}, present={"p", "q"}, replacing=replacing)
    seen = record(first, {})
    merged = additions(listed("m"), seen, present={"m"}, replacing=replacing)
    assert [change.file.name for change in merged.read] == ["m"]
    assert list(merged.replaces) == (["p", "q"] if replacing else [])
    again = additions(listed("m"), record(merged, seen), present={"m"}, replacing=replacing)
    assert [*again.read, *again.noted, *again.replaces] == []


@settings(max_examples=30, deadline=None)
@given(cuts=st.lists(st.integers(0, 2 * PIECE_BYTES + 3), max_size=3))
def test_a_digest_can_be_gone_on_with_at_any_byte(cuts: list[int]) -> None:
    whole = bytes(range(256)) * (2 * PIECE_BYTES // 256) + b"end"
    text, at = "", 0
    for cut in [*sorted(cuts), len(whole)]:
        digest = Digest(text, at=at)
        digest.update(whole[at - Digest.behind(at) : at])
        digest.update(whole[at:cut])
        text, at = digest.text(), cut
        once = Digest()
        once.update(whole[:cut])
        assert text == once.text()
