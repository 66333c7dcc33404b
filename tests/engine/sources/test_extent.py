"""How large a range is before it is read: counted and looked at in a database, by their footers of Parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import SecretStr

from engine.sources import Seen, Window
from engine.sources import sql as module
from engine.sources.files import FileSource
from engine.sources.files.columnar import RowGroup, uneven_bytes
from tests.engine.sources.test_contract import START, fill, opened

EVER = datetime(2100, 1, 1, tzinfo=UTC)


def _range(source: Any, *, limit: int = 10**9, until: datetime = EVER) -> Any:
    bounds = source.next_range(Seen(), Window(until=until, limit_rows=limit))
    assert bounds is not None
    return bounds


def test_the_rows_of_a_range_are_counted(database: Any) -> None:
    fill(database, [(key, key) for key in range(503)])
    with opened(database) as source:
        found = source.extent(_range(source), batch_bytes=10_007)
        assert (found.rows, found.uneven_bytes) == (503, 0)
        assert 16 <= found.row_bytes < 17
        assert source.extent(_range(source, limit=101), batch_bytes=10_007).rows == 101
        half = _range(source, until=START.replace(minute=4))
        assert source.extent(half, batch_bytes=10_007).rows == 241
        after = half | {"after": {"cursor": half["until"], "key": 240}}
        if database.kind != "sqlite":  # where a cursor is compared as it is written
            assert source.extent(after, batch_bytes=10_007).rows == 0


def test_of_many_rows_no_number_is_known(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_COUNTED_ROWS", 101)
    fill(database, [(key, key) for key in range(503)])
    with opened(database) as source:
        assert source.extent(_range(source), batch_bytes=10_007).rows is None


def test_of_large_rows_few_are_looked_at(database: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_BYTES", 200)
    fill(database, [(key, key) for key in range(503)])
    with opened(database) as source:
        bounds, scan, seen = _range(source), source.scan, list[int]()

        def watched(**arguments: Any) -> Iterator[Any]:
            for part in scan(**arguments):
                seen.append(part.rows.num_rows)
                yield part

        monkeypatch.setattr(source, "scan", watched)
        found = source.extent(bounds, batch_bytes=10_007)
    assert found.rows == 503
    assert sum(seen) in (15, 16)  # of SQLite one row is for the types
    assert 16 <= found.row_bytes < 17


def test_only_sqlite_gives_as_many_rows_as_it_is_asked_for(database: Any) -> None:
    fill(database, [(1, 1)])
    with opened(database) as source:
        rows = source.extent(_range(source), batch_bytes=10_007).batch_rows
    assert rows == (10_007 // 16 if database.kind == "sqlite" else None)


def test_the_footer_tells_which_row_group_may_hold_one_large_value(tmp_path: Path) -> None:
    texts = ["a"] * 100 + ["b" * 10_007] + ["a"] * 99 + ["a"] * 100
    numbers = pa.table({"id": range(300), "text": texts})
    pq.write_table(numbers, tmp_path / "rows.parquet", row_group_size=100, use_dictionary=False)
    with FileSource(SecretStr(str(tmp_path)), key="id") as source:
        bounds = _range(source)
        source.schemas(bounds)
        assert source.extent(bounds, batch_bytes=1).uneven_bytes in range(10_000, 10_100)
    pq.write_table(numbers.select(["id"]), tmp_path / "rows.parquet", row_group_size=100)
    with FileSource(SecretStr(str(tmp_path)), key="id") as source:
        bounds = _range(source)
        source.schemas(bounds)
        assert source.extent(bounds, batch_bytes=1).uneven_bytes == 0


@pytest.mark.parametrize(
    ("groups", "uneven"),
    [
        ([], 0),
        ([(101, 0, 0)], 0),
        ([(101, 1_300, 101 * 13)], 0),  # with nothing beside it nothing is unusual
        ([(101, 0, 101 * 13), (101, 0, 101 * 13 + 7_919)], 7_919),
        ([(101, 0, 101 * 13), (89, 0, 89 * 13 + 7_919), (101, 0, 101 * 13 + 503)], 7_919),
        ([(101, 0, 101 * 13), (7, 0, 7), (101, 0, 101 * 14)], 101),  # the last rows of a file say little
        ([(101, 10**9, 0), (101, 10**6, 0)], 0),  # numbers are of one size
    ],
)
def test_what_a_row_group_holds_beyond_the_usual_may_be_one_value(
    groups: list[tuple[int, int, int]], uneven: int
) -> None:
    assert uneven_bytes([RowGroup(0, rows, most, varying) for rows, most, varying in groups]) == uneven
