"""Finds the rows of a slice that a table has already: exact joins by DuckDB, in bounded memory, spilling to scratch (in
the cage).

What is done with them is ``settling.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from engine.batching import Chunk, Table, read_batches
from engine.errors import KeyConflict
from engine.refs import ChunkRef
from engine.spec import FILE
from engine.units import parse_time

_SHOWN_KEYS = 5
_COPIED_BYTES = 2**20
_JOIN_SHARE = 0.5  # of what the budget leaves after the process itself
_JOIN_ROW_BYTES = 160  # key, cursor, file and number of a row while versions are numbered: 130 to 150 measured
_MOST_JOINED_COLUMNS = 32
"""DuckDB holds the footers of all files that it reads, two kilobytes for each column of each row group: 400 MiB for
100,000 rows of 2,000 columns. Of wider tables it reads files that have what is joined and nothing else.
"""
_JOIN_BASE_BYTES, _LEAST_JOIN_BYTES = 24 * 2**20, 40 * 2**20
_SPILLED_ROW_BYTES = 64  # of a row of the slice, on disk: 47 to 52 measured


def join_bytes(rows: int, *, free_bytes: int) -> int:
    """Return what joins may take for a slice of so many rows; what does not fit is spilled to scratch."""
    return max(_LEAST_JOIN_BYTES, min(int(_JOIN_SHARE * free_bytes), _wanted_bytes(rows)))


def spilled_bytes(rows: int, *, limit_bytes: int) -> int:
    """Return what joins of a slice of so many rows may write to scratch, 0 where they keep their limit without."""
    return rows * _SPILLED_ROW_BYTES if _wanted_bytes(rows) > limit_bytes else 0


def _wanted_bytes(rows: int) -> int:
    return _JOIN_BASE_BYTES + rows * _JOIN_ROW_BYTES


class Joins:
    """A DuckDB of our own: bounded memory, its own directory to spill to."""

    def __init__(self, directory: Path, *, limit_bytes: int, threads: int) -> None:
        import duckdb

        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self._connection = duckdb.connect(
            config={
                "memory_limit": f"{limit_bytes}B",
                "threads": threads,
                "temp_directory": str(directory),
                "preserve_insertion_order": False,
                "autoload_known_extensions": False,
                "autoinstall_known_extensions": False,
            }
        )

    def __enter__(self) -> Joins:
        return self

    def __exit__(self, *error: object) -> None:
        import shutil

        self._connection.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # scratch: what stays, the next run or vacuum removes

    def batches(self, sql: str, values: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query."""
        reader: Any = self._connection.sql(sql, params=dict(values)).to_arrow_reader(16_384)
        yield from reader


class Places:
    """Numbers of rows by file: eight bytes each, since a file that comes a second time has nothing but known rows."""

    def __init__(self) -> None:
        self._found: dict[str, list[np.ndarray]] = {}

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows of ``f``, the path of a file, and ``r``, the number of a row in it."""
        files = batch.column("f").dictionary_encode()
        numbers = batch.column("r").to_numpy(zero_copy_only=False)
        for index, path in enumerate(files.dictionary.to_pylist()):
            of_file = numbers[files.indices.to_numpy(zero_copy_only=False) == index]
            self._found.setdefault(Path(path).name, []).append(of_file)

    def of(self, file: str) -> np.ndarray:
        """Return the sorted numbers of a file's rows; shape (rows,), int64."""
        return np.unique(np.concatenate(self._found.get(file, [np.empty(0, np.int64)])))


@dataclass(frozen=True)
class KnownRows:
    """Finds rows of new chunks that the table has already."""

    joins: Joins
    table: Table
    new: Sequence[ChunkRef]
    live: Sequence[Chunk]
    key: str
    cursor: str
    gone: Sequence[str]  # files whose rows are taken out

    def places(self, rule: str, *, identify: bool) -> Places:
        """Return, by new chunk, the numbers of the rows to leave out.

        Parameters
        ----------
        rule
            ``newest``: a version is its key and cursor, and one that is there is left out; ``keep_first``: a key that
            is there is; ``fail``: another version of a key raises.
        identify
            False where the key is made of file and row, and nothing can be there already.
        """
        out = Places()
        if not self.new or not identify:
            return out
        values = {"new": self._joined([self.table.path / ref.path for ref in self.new])}
        same = "o.k = n.k" if rule == "keep_first" else "o.k = n.k AND o.c = n.c"
        first = "k" if rule == "keep_first" else "k, c"
        self._collect(
            f"WITH n AS ({self._rows('$new')}) SELECT f, r FROM "
            f"(SELECT f, r, row_number() OVER (PARTITION BY {first} ORDER BY c, f, r) AS i FROM n) WHERE i > 1",
            values,
            out,
        )
        old = self._overlapping(by_key=rule != "newest")
        if not old:
            return out
        values["old"] = self._joined(old)
        gone = ""
        if self.gone:  # rows of files that are read anew make room for these, so they are not known
            values["gone"] = list(self.gone)
            gone = f' WHERE NOT list_contains($gone, "{FILE}")'
        tables = f"WITH n AS ({self._rows('$new')}), o AS ({self._rows('$old')}{gone})"
        if rule == "fail":
            self._refuse(tables, values)
        self._collect(f"{tables} SELECT f, r FROM n WHERE EXISTS (SELECT 1 FROM o WHERE {same})", values, out)
        return out

    def _rows(self, files: str) -> str:
        key, cursor = (f'"{name.replace(chr(34), chr(34) * 2)}"' for name in (self.key, self.cursor))
        return (
            f"SELECT {key} AS k, {cursor} AS c, filename AS f, file_row_number AS r "
            f"FROM read_parquet({files}, filename = true, file_row_number = true, union_by_name = true)"
        )

    def _joined(self, paths: Sequence[Path]) -> list[str]:
        """Return files with the names and rows of some chunks, and with their columns where those are few."""
        if len(pq.read_schema(self.table.path / self.new[0].path)) <= _MOST_JOINED_COLUMNS:
            return [str(path) for path in paths]
        names = (self.key, self.cursor, *([FILE] if self.gone else []))
        for path in paths:
            found = pq.read_schema(path)
            kept = pa.schema([found.field(name) for name in dict.fromkeys(names) if name in found.names])
            with pq.ParquetWriter(self.joins.directory / path.name, kept) as writer:
                for batch in read_batches([path], columns=kept.names, batch_bytes=_COPIED_BYTES):
                    writer.write_batch(batch)
        return [str(self.joins.directory / path.name) for path in paths]

    def _overlapping(self, *, by_key: bool) -> list[Path]:
        column = self.key if by_key else self.cursor
        lows = [ref.minimum.get(column) for ref in self.new]
        highs = [ref.maximum.get(column) for ref in self.new]
        if None in lows or None in highs:
            return [chunk.path for chunk in self.live]
        low: Any = min(lows)  # type: ignore[type-var]
        high: Any = max(highs)  # type: ignore[type-var]
        if not by_key:
            low, high = parse_time(low), parse_time(high)
        return [
            chunk.path
            for chunk in self.live
            if chunk.may_hold(column, low, None)
            and (chunk.minimum.get(column) is None or chunk.minimum[column] <= high)
        ]

    def _refuse(self, tables: str, values: Mapping[str, Any]) -> None:
        sql = f"{tables} SELECT DISTINCT n.k::text AS k FROM n JOIN o ON o.k = n.k AND o.c <> n.c LIMIT {_SHOWN_KEYS}"
        keys = [row["k"] for batch in self.joins.batches(sql, values) for row in batch.to_pylist()]
        if keys:
            raise KeyConflict(
                f"keys came again with another cursor: {', '.join(sorted(keys))}; nothing of this slice was committed",
                hint="source.on_conflict is fail: correct the source, or choose newest or keep_first",
                details={"keys": sorted(keys)},
            )

    def _collect(self, sql: str, values: Mapping[str, Any], out: Places) -> None:
        for batch in self.joins.batches(sql, values):
            out.add(batch)
