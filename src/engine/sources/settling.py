"""The task that makes a slice fit what the table has (in the cage): versions that are there already are taken out, rows
of files that were replaced are taken from older chunks, and columns that became wider are rewritten.

Reading the slice is ``reading.py``. Joins are DuckDB's, within what the budget leaves it, spilling to scratch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from engine.batching import Chunk, ChunkWriter, Table, read_batches
from engine.batching.tables import chunk_n, chunk_prefix
from engine.errors import KeyConflict
from engine.layout import chunk_writer
from engine.memory.scope import Scope
from engine.refs import ChunkRef, Task, TaskResult, to_json
from engine.sources.admission import QUARANTINE_SCHEMA, table_schema
from engine.sources.contracts import Contract
from engine.sources.hours import Hours
from engine.spec import FILE, PipelineSpec
from engine.stage import ChildContext
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


def join_bytes(rows: int, *, free_bytes: int) -> int:
    """Return what joins may take for a slice of so many rows; what does not fit is spilled to scratch."""
    wanted = _JOIN_BASE_BYTES + rows * _JOIN_ROW_BYTES
    return max(_LEAST_JOIN_BYTES, min(int(_JOIN_SHARE * free_bytes), wanted))


def run(task: Task, scope: Scope) -> TaskResult:
    """Settle one slice; see ``stages/extract.py`` for its inputs."""
    context = ChildContext.of(scope.context)
    spec, what, n = context.spec, str(task.inputs["what"]), int(task.inputs["n"])
    contract = Contract.from_json(task.inputs["contract"])
    schema = table_schema(spec, what, contract.stored)
    table, quarantine = context.workspace.table(what), context.workspace.table("quarantine")
    key, cursor = (spec.source.key, spec.source.cursor) if what == "raw" else ("key", "labelled_at")
    new = [ChunkRef.from_json(value) for value in task.inputs["chunks"]]
    live = [chunk for chunk in table.chunks() if chunk.n < n]
    rule = spec.source.on_conflict if what == "raw" else "newest"  # corrections of labels are further records
    scratch = context.workspace.scratch / f"duckdb-{scope.task}"
    with _Joins(scratch, limit_bytes=int(task.inputs["join_bytes"]), threads=scope.budget.threads) as joins:
        known = _Known(joins, table, new=new, live=live, key=key, cursor=cursor, gone=task.inputs["replaces"])
        drop = known.places(rule, identify=bool(task.inputs["identify"]))
        writer = chunk_writer(spec, table, prefix=chunk_prefix(n, f"{what}.settled"), schema=schema)
        dropped = Hours()
        event_time = spec.event_time if what == "raw" else None
        chunks = list(_without(table, new, drop, writer, dropped=dropped, event_time=event_time, scope=scope))
        bad, gone = _quarantine(joins, quarantine, task.inputs, what=what, n=n, scope=scope)
    removed = Hours()
    rewritten, replaced = _rewrite(
        table,
        live,
        schema=schema,
        n=n,
        files=task.inputs["replaces"],
        removed=removed,
        spec=spec,
        scope=scope,
    )
    return TaskResult(
        task=task.name,
        outputs={
            "chunks": [to_json(ref) for ref in [*chunks, *rewritten]],
            "remove": replaced,
            "retyped": table.is_retyped_by(schema),
            "dropped_rows": sum(ref.rows for ref in new) - sum(ref.rows for ref in chunks),
            "dropped": dropped.to_json(),
            "removed": removed.to_json(),
            "quarantine": [to_json(ref) for ref in bad],
            "quarantine_remove": gone,
        },
        rows_out=sum(ref.rows for ref in chunks),
        rows_quarantined=sum(ref.rows for ref in bad if chunk_n(ref.path) == n),
    )


class _Joins:
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

    def __enter__(self) -> _Joins:
        return self

    def __exit__(self, *error: object) -> None:
        import shutil

        self._connection.close()
        shutil.rmtree(self.directory, ignore_errors=True)  # scratch: what stays, the next run or vacuum removes

    def batches(self, sql: str, values: Mapping[str, Any]) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a query."""
        reader: Any = self._connection.execute(sql, dict(values)).to_arrow_reader(16_384)
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
class _Known:
    """Finds rows of new chunks that the table has already."""

    joins: _Joins
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


def _without(
    table: Table,
    new: Sequence[ChunkRef],
    drop: Places,
    writer: ChunkWriter,
    *,
    dropped: Hours,
    event_time: str | None,
    scope: Scope,
) -> Iterator[ChunkRef]:
    """Yield the slice's chunks; those with rows to leave out are written again."""
    with writer:
        for ref in new:
            places = drop.of(Path(ref.path).name)
            if not len(places):
                yield ref
                continue
            start = 0
            for batch in read_batches([table.path / ref.path], batch_bytes=scope.budget.batch_bytes):
                first, last = np.searchsorted(places, (start, start + batch.num_rows))
                mask = np.ones(batch.num_rows, dtype=bool)
                mask[places[first:last] - start] = False
                keep, start = pa.array(mask), start + batch.num_rows
                writer.write(batch.filter(keep))
                if event_time is not None:
                    dropped.add(batch.filter(pc.invert(keep)).column(event_time))
                scope.batch_done(batch.num_rows, batch.nbytes)
    yield from writer.chunks


def _rewrite(
    table: Table,
    live: Sequence[Chunk],
    *,
    schema: pa.Schema,
    n: int,
    files: Sequence[str],
    removed: Hours,
    spec: PipelineSpec,
    scope: Scope,
) -> tuple[list[ChunkRef], list[str]]:
    """Write older chunks again without the rows of ``files``, or with the table's new types; return new and old ones.

    A rewritten chunk keeps its n, so that a plan which reads the table up to an earlier n still finds the rows.
    """
    retyped, gone = table.is_retyped_by(schema), pa.array(files, pa.string())
    written: list[ChunkRef] = []
    replaced: list[str] = []
    for chunk in live:
        if not retyped and not any(_may_hold(chunk, file) for file in files):
            continue
        replaced.append(chunk.name)
        kept = pa.schema([schema.field(name) for name in pq.read_schema(chunk.path).names if name in schema.names])
        prefix = chunk_prefix(chunk.n, f"{table.name}.rewritten.{n}.{len(replaced)}")
        with chunk_writer(spec, table, prefix=prefix, schema=kept) as writer:
            for batch in read_batches([chunk.path], columns=kept.names, batch_bytes=scope.budget.batch_bytes):
                scope.governor.wait()
                if files and FILE in kept.names:
                    of_gone = pc.is_in(batch.column(FILE), value_set=gone)
                    if table.name == "raw":
                        removed.add(batch.filter(of_gone).column(spec.event_time))
                    batch = batch.filter(pc.invert(of_gone))
                writer.write(batch.cast(kept))
                scope.batch_done(batch.num_rows, batch.nbytes)
        written += writer.chunks
    return written, replaced


def _may_hold(chunk: Chunk, file: str) -> bool:
    low, high = chunk.minimum.get(FILE), chunk.maximum.get(FILE)
    return low is None or high is None or low <= file <= high


def _quarantine(
    joins: _Joins, quarantine: Table, inputs: Mapping[str, Any], *, what: str, n: int, scope: Scope
) -> tuple[list[ChunkRef], list[str]]:
    """Return the slice's quarantine without rows that are there already, and the older chunks that it replaces.

    Rows are read again on purpose when a window is (``again``: a backfill or replay): what was in quarantine of it is
    then replaced by what is still wrong.
    """
    new = [ChunkRef.from_json(value) for value in inputs["quarantine"]]
    live = [chunk for chunk in quarantine.chunks() if chunk.n < n]
    written: list[ChunkRef] = []
    replaced: list[str] = []
    if inputs["again"] is not None:
        low, high = (pa.scalar(parse_time(value), pa.timestamp("us", tz="UTC")) for value in inputs["again"])
        for at, chunk in enumerate(live):
            prefix = chunk_prefix(chunk.n, f"{what}.rewritten.{n}.{at}")
            taken = 0
            with ChunkWriter(quarantine.path, prefix=prefix, schema=QUARANTINE_SCHEMA) as writer:
                for batch in read_batches([chunk.path], batch_bytes=scope.budget.batch_bytes):
                    cursor = batch.column("cursor")
                    inside = pc.and_(pc.greater_equal(cursor, low), pc.less_equal(cursor, high))
                    mine = pc.and_(pc.equal(batch.column("table"), what), pc.fill_null(inside, False))
                    taken += pc.sum(mine).as_py() or 0
                    writer.write(batch.filter(pc.invert(mine)))
            if taken:
                written += writer.chunks
                replaced.append(chunk.name)
        return [*new, *written], replaced
    if not new or not live:
        return new, []
    sql = (
        "SELECT n.filename AS f, n.file_row_number AS r FROM "
        "read_parquet($new, filename = true, file_row_number = true) n "
        'WHERE EXISTS (SELECT 1 FROM read_parquet($old) o WHERE o."table" = n."table" '
        "AND o.key IS NOT DISTINCT FROM n.key AND o.cursor IS NOT DISTINCT FROM n.cursor "
        "AND o.place IS NOT DISTINCT FROM n.place AND o.reason = n.reason)"
    )
    values = {
        "new": [str(quarantine.path / ref.path) for ref in new],
        "old": [str(chunk.path) for chunk in live],
    }
    drop = Places()
    for batch in joins.batches(sql, values):
        drop.add(batch)
    writer = ChunkWriter(quarantine.path, prefix=chunk_prefix(n, f"{what}.settled"), schema=QUARANTINE_SCHEMA)
    return list(_without(quarantine, new, drop, writer, dropped=Hours(), event_time=None, scope=scope)), []
