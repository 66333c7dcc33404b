"""Which chunks become one: no reader at a pin can tell, the order stays, the limits hold, and it comes to an end."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from engine.batching import Chunk
from engine.batching.merging import MergeLimits, chunk_owner, find_merges, merged_prefix

LIMITS = MergeLimits(small_bytes=100, most_bytes=300, most_rows=50)


def _chunk(n: int, *, owner: str = "raw", number: int = 0, size: int = 10, rows: int = 1) -> Chunk:
    name = f"{n:08d}-{owner}-{number:04d}.parquet"
    return Chunk(path=Path(name), name=name, n=n, rows=rows, bytes=size)


def _ns(chunks: list[Chunk], **given_: object) -> list[list[int]]:
    return [[chunk.n for chunk in merge.chunks] for merge in find_merges(chunks, limits=LIMITS, **given_)]  # type: ignore[arg-type]


def test_neighbours_merge_up_to_the_limits_and_around_what_is_large() -> None:
    assert _ns([_chunk(n) for n in (1, 2, 3)]) == [[1, 2, 3]]
    assert _ns([_chunk(1), _chunk(2), _chunk(3, size=100), _chunk(4), _chunk(5)]) == [[1, 2], [4, 5]]
    assert _ns([_chunk(n, rows=20) for n in range(1, 6)]) == [[1, 2], [3, 4]]
    assert _ns([_chunk(n, size=99) for n in range(1, 6)]) == [[1, 2, 3], [4, 5]]
    assert _ns([_chunk(1)]) == _ns([]) == []


def test_a_pin_parts_what_a_reader_there_sees_from_what_it_does_not() -> None:
    chunks = [_chunk(n) for n in range(1, 7)]
    assert _ns(chunks, pins=[3]) == [[1, 2, 3], [4, 5, 6]]
    assert _ns(chunks, pins=[0, 6, 99]) == [[1, 2, 3, 4, 5, 6]]
    assert _ns(chunks, pins=[1, 5]) == [[2, 3, 4, 5]]


def test_chunks_of_one_commit_stay_together_and_writers_apart() -> None:
    same = [_chunk(1), _chunk(2, number=0), _chunk(2, number=1, size=100), _chunk(3), _chunk(4)]
    assert _ns(same) == [[3, 4]]
    two = [_chunk(1), _chunk(1, owner="labels"), _chunk(2), _chunk(7, owner="labels.settled")]
    assert [(merge.owner, [c.n for c in merge.chunks]) for merge in find_merges(two)] == [
        ("labels", [1, 7]),
        ("raw", [1, 2]),
    ]


def test_a_merged_chunk_and_a_rewritten_one_keep_their_owner() -> None:
    merged = f"{merged_prefix(7, owner='raw', plan_n=3)}-0000.parquet"
    assert chunk_owner(merged) == chunk_owner("00000007-raw.settled-0000.parquet") == "raw"
    assert chunk_owner(f"00000007-{merged.split('-', 1)[1]}.9-0000.parquet") == "raw"


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 120), st.integers(0, 60)), max_size=40),
    st.sets(st.integers(0, 31), max_size=4),
)
def test_a_reader_at_any_pin_sees_the_same_chunks_in_the_same_order(
    made: list[tuple[int, int, int]], pins: set[int]
) -> None:
    made.sort()
    chunks = [_chunk(n, number=i, size=size, rows=rows) for i, (n, size, rows) in enumerate(made)]
    held = {chunk.name: [chunk.name] for chunk in chunks}  # what each chunk of the table consists of
    live = {chunk.name: chunk for chunk in chunks}
    for plan_n in range(1, 100):
        merges = find_merges(sorted(live.values(), key=lambda c: c.name), pins=pins, limits=LIMITS)
        if not merges:
            break
        for merge in merges:
            parts = [live.pop(chunk.name) for chunk in merge.chunks]
            size = sum(chunk.bytes for chunk in parts)
            assert merge.rows <= LIMITS.most_rows
            assert size <= LIMITS.most_bytes
            name = f"{merged_prefix(merge.chunks[-1].n, owner=merge.owner, plan_n=plan_n)}-0000.parquet"
            live[name] = Chunk(path=Path(name), name=name, n=merge.chunks[-1].n, rows=merge.rows, bytes=size)
            held[name] = [part for chunk in parts for part in held[chunk.name]]
    else:
        raise AssertionError("it never came to an end")
    for reader in [*pins, 99]:  # 99: one that is yet to be planned
        seen = [part for c in sorted(live.values(), key=lambda c: c.name) if c.n <= reader for part in held[c.name]]
        assert seen == [chunk.name for chunk in chunks if chunk.n <= reader]
