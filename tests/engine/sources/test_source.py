"""What every source keeps, databases and files alike: the contract of ``protocol.Source``."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from engine.errors import SourceError
from engine.sources import Seen, SeenFile, Source, Window, open_source
from engine.sources.contracts import first_contract

START = datetime(2020, 1, 1, tzinfo=UTC)
EVER = datetime(9000, 1, 1, tzinfo=UTC)
Row = tuple[int, datetime, str | None]
SCHEMA = pa.schema([("id", pa.int64()), ("at", pa.timestamp("us", tz="UTC")), ("v", pa.string())])


def _rows(first: int, last: int) -> list[Row]:
    return [(key, START + timedelta(seconds=key), None if key % 4 == 0 else f"v{key}") for key in range(first, last)]


def _table(rows: Sequence[Row]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(SCHEMA.names, row, strict=True)) for row in rows], schema=SCHEMA)


def _csv(rows: Sequence[Row]) -> bytes:
    lines = [f"{key},{time.isoformat()},{value or ''}" for key, time, value in rows]
    return ("id,at,v\n" + "".join(line + "\n" for line in lines)).encode()


def _ndjson(rows: Sequence[Row]) -> bytes:
    values = [{"id": key, "at": time.isoformat(), "v": value} for key, time, value in rows]
    return "".join(json.dumps(value) + "\n" for value in values).encode()


def _parquet(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(_table(rows), sink, row_group_size=max(3, len(rows) // 4))
    return sink.getvalue()


def _arrow(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, SCHEMA) as writer:
        writer.write_table(_table(rows), max_chunksize=max(4, len(rows) // 4))
    return sink.getvalue()


FILES: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "csv": _csv,
    "csv.gz": lambda rows: gzip.compress(_csv(rows)),
    "ndjson": _ndjson,
    "ndjson.zst": lambda rows: pa.compress(_ndjson(rows), codec="zstd", asbytes=True),
    "parquet": _parquet,
    "arrow": _arrow,
}
SMALL_BYTES = 2**17
KINDS = ["sqlite", "postgresql", "duckdb", *FILES, "delta"]


class Arrivals:
    """A source into which rows arrive, and what was seen of it."""

    def __init__(self, kind: str, place: Any) -> None:
        self.kind, self._place = kind, place
        self.files: dict[str, SeenFile] = {}
        self.position: Any = None
        self._count = 0
        if self.is_database:
            place.execute('CREATE TABLE t (id BIGINT PRIMARY KEY, "at" TIMESTAMP, v VARCHAR(20))')

    @property
    def is_database(self) -> bool:
        return self.kind in ("sqlite", "postgresql", "duckdb")

    def arrive(self, rows: Sequence[Row]) -> None:
        self._count += 1
        if self.is_database:
            texts = [(key, time.strftime("%Y-%m-%d %H:%M:%S.%f"), value) for key, time, value in rows]
            self._place.insert("t", texts)
        elif self.kind == "delta":
            from deltalake import write_deltalake

            write_deltalake(self._place / "t", _table(rows), mode="append")
        else:
            (self._place / f"{self._count:04d}.{self.kind}").write_bytes(FILES[self.kind](rows))

    def open(self, **more: Any) -> Source:
        if self.is_database:
            return open_source(self._place.uri, **{"table": "t", "key": "id", "cursor": "at", **more})
        uri = self._place / "t" if self.kind == "delta" else self._place
        return open_source(SecretStr(str(uri)), **{"key": "id", "cursor": "at", **more})

    def window(self, limit_rows: int) -> Window:
        return Window(until=EVER, limit_rows=limit_rows)

    def next_range(self, source: Source, *, limit_rows: int = 10**6) -> Any:
        seen = Seen(position=self.position, files=lambda: self.files)
        bounds = source.next_range(seen, self.window(limit_rows))
        return None if bounds is None else json.loads(json.dumps(bounds))

    def read(self, source: Source, bounds: Any, *, batch_bytes: int = 2**20) -> list[Row]:
        schema = first_contract(source.schemas(bounds), key="id", cursor="at").stored
        out: list[Row] = []
        for batch in source.read(bounds, schema=schema, batch_bytes=batch_bytes):
            assert batch.rows.schema.equals(schema)
            assert not batch.rejected
            out += [(row["id"], row["at"], row["v"]) for row in batch.rows.to_pylist()]
        return out

    def keep(self, source: Source) -> bool:
        """Take over where the read ended; return whether there is more."""
        ending = source.ending()
        self.position = json.loads(json.dumps(ending.position))
        self.files |= {file.name: SeenFile.from_json(json.loads(json.dumps(file.to_json()))) for file in ending.files}
        return ending.more

    def all(self, *, limit_rows: int = 10**6) -> list[Row]:
        """Read slice by slice until nothing is left, each with a source opened anew."""
        out: list[Row] = []
        for _ in range(100):
            with self.open() as source:
                bounds = self.next_range(source, limit_rows=limit_rows)
                if bounds is None:
                    return out
                out += self.read(source, bounds)
                self.keep(source)
        raise AssertionError("it never ends")


@pytest.fixture(params=KINDS)
def arrivals(request: pytest.FixtureRequest, tmp_path: Path) -> Arrivals:
    """Each kind of source in turn, empty."""
    if request.param in ("sqlite", "postgresql", "duckdb"):
        return Arrivals(request.param, request.getfixturevalue(f"{request.param}_database"))
    (tmp_path / "in").mkdir()
    return Arrivals(request.param, tmp_path / "in")


@pytest.mark.parametrize("limit_rows", [1, 4, 10**6])
def test_each_row_comes_once_and_later_ones_come_later(arrivals: Arrivals, limit_rows: int) -> None:
    arrivals.arrive(_rows(0, 11))
    assert sorted(arrivals.all(limit_rows=limit_rows)) == _rows(0, 11)
    assert arrivals.all() == []
    arrivals.arrive(_rows(11, 13))
    assert sorted(arrivals.all(limit_rows=limit_rows)) == _rows(11, 13)


def test_a_range_read_again_gives_the_same_rows_whatever_the_batches(arrivals: Arrivals) -> None:
    arrivals.arrive(_rows(0, 50))
    with arrivals.open() as source:
        bounds = arrivals.next_range(source)
        first = arrivals.read(source, bounds)
        assert not source.ending().more
    assert len(first) == 50
    with arrivals.open() as source:
        assert arrivals.read(source, bounds, batch_bytes=1) == first
        assert arrivals.next_range(source) == bounds  # nothing was kept of the reads


def test_what_is_not_finished_says_that_there_is_more(arrivals: Arrivals) -> None:
    arrivals.arrive(_rows(0, 10))
    arrivals.arrive(_rows(10, 20))
    with arrivals.open() as source:
        arrivals.read(source, arrivals.next_range(source, limit_rows=5))
        assert arrivals.keep(source)
    assert len(arrivals.all()) >= 10


def test_the_schema_is_that_of_the_head_and_of_each_part(arrivals: Arrivals) -> None:
    arrivals.arrive(_rows(0, 9))
    with arrivals.open() as source:
        schema = source.schema()
        assert schema.field("at").type == SCHEMA.field("at").type
        assert [name for name in schema.names if not name.startswith("_")] == SCHEMA.names
        head = list(source.head(limit_rows=4, batch_rows=3))
        assert all(batch.schema.equals(schema) and batch.num_rows <= 3 for batch in head)
        assert sum(batch.num_rows for batch in head) == 4
        [(where, found)] = source.schemas(arrivals.next_range(source))
        assert where
        assert found.equals(schema)


def test_a_column_that_the_source_lacks_is_null_and_one_that_is_not_wanted_is_left_out(arrivals: Arrivals) -> None:
    arrivals.arrive(_rows(1, 3))
    wanted = pa.schema([SCHEMA.field("at"), SCHEMA.field("id"), ("more", pa.float64())])
    with arrivals.open() as source:
        bounds = arrivals.next_range(source)
        rows = [row for b in source.read(bounds, schema=wanted, batch_bytes=2**20) for row in b.rows.to_pylist()]
    assert [list(row) for row in rows] == [["at", "id", "more"]] * 2
    assert sorted((row["id"], row["more"]) for row in rows) == [(1, None), (2, None)]


def test_batches_become_smaller_within_a_read_when_they_are_asked_to(arrivals: Arrivals) -> None:
    total = 24_000 if arrivals.kind == "duckdb" else 240_000  # it takes 60 us to insert a row
    for first in range(0, total, total // 6):
        arrivals.arrive(_rows(first, first + total // 6))
    rows: list[int] = []
    sizes: list[int] = []
    large = 4 if arrivals.is_database else 8  # batches: the first ones of a file are small
    with arrivals.open() as source:
        bounds, schema = arrivals.next_range(source), source.schema()
        for batch in source.read(
            bounds, schema=schema, batch_bytes=lambda: 2**20 if len(sizes) < large else SMALL_BYTES
        ):
            sizes.append(batch.rows.nbytes)
            rows += batch.rows["id"].to_pylist()
    assert sorted(rows) == list(range(total))
    assert max(sizes[16:], default=0) <= 1.25 * SMALL_BYTES
    if arrivals.kind != "duckdb":  # whose driver gives small ones anyway
        assert max(sizes[:16]) > 1.5 * SMALL_BYTES


@pytest.mark.parametrize("kind", [*FILES])
def test_a_batch_keeps_its_bound_though_the_name_of_its_file_is_longer_than_its_rows(tmp_path: Path, kind: str) -> None:
    (tmp_path / f"{'n' * 200}.{kind}").write_bytes(FILES[kind](_rows(0, 60_000)))
    with open_source(SecretStr(str(tmp_path)), key="id", cursor="at") as source:
        bounds = source.next_range(Seen(), Window(until=EVER, limit_rows=10**6))
        assert bounds is not None
        batches = list(source.read(bounds, schema=source.schema(), batch_bytes=8 * SMALL_BYTES))
    sizes = [batch.rows.nbytes for batch in batches[6:]]  # the first ones are what it is learned from
    assert sum(batch.rows.num_rows for batch in batches) == 60_000
    assert max(sizes) <= 1.25 * 8 * SMALL_BYTES
    assert sum(size > 2 * SMALL_BYTES for size in sizes) > len(sizes) / 2  # and they are not needlessly small


def test_a_value_that_the_schema_cannot_hold_is_rejected_with_its_row(arrivals: Arrivals) -> None:
    arrivals.arrive([(1, START, "12"), (2, START, "x12"), (3, START, None)])
    wanted = pa.schema([SCHEMA.field("id"), SCHEMA.field("at"), ("v", pa.int64())])
    with arrivals.open() as source:
        batches = list(source.read(arrivals.next_range(source), schema=wanted, batch_bytes=2**20))
    rows = [row for batch in batches for row in batch.rows.to_pylist()]
    assert sorted((row["id"], row["v"]) for row in rows) == [(1, 12), (3, None)]
    [rejected] = [one for batch in batches for one in batch.rejected]
    assert (rejected.key, rejected.column, rejected.value) == ("2", "v", "x12")
    assert rejected.row["id"] in (2, "2")


def test_a_missing_column_is_named_before_a_row_is_read(arrivals: Arrivals) -> None:
    arrivals.arrive(_rows(0, 2))
    with arrivals.open(key="ident") as source, pytest.raises(SourceError, match="no column 'ident'"):
        source.schema()
