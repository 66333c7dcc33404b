"""Files of one table in every format, and a reader that takes them slice by slice. For tests of file sources."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import SecretStr

from engine.sources.contracts import first_contract
from engine.sources.files import FileSource
from engine.sources.protocol import Batch, Rejected, Seen, SeenFile, Window

EVER = datetime(9000, 1, 1, tzinfo=UTC)


Row = dict[str, Any]


def rows_between(first: int, last: int) -> list[Row]:
    return [
        {
            "id": key,
            "amount": key / 4,
            "name": None if key % 3 == 0 else f'n "{key}",\nä',
            "ok": key % 2 == 0,
            "at": datetime(2026, 1, 1, 0, key % 60, tzinfo=UTC),
        }
        for key in range(first, last)
    ]


def _text(row: Row) -> Row:
    return row | {"at": row["at"].strftime("%Y-%m-%d %H:%M:%S"), "ok": str(row["ok"]).lower()}


def csv_of(rows: Sequence[Row]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, ["id", "amount", "name", "ok", "at"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(_text(row) for row in rows)
    return out.getvalue().encode()


def ndjson_of(rows: Sequence[Row]) -> bytes:
    return b"".join(json.dumps(row | {"at": row["at"].isoformat()}).encode() + b"\n" for row in rows)


def table_of(rows: Sequence[Row]) -> pa.Table:
    stamp = pa.timestamp("us", tz="UTC")
    schema = pa.schema(
        [("id", pa.int64()), ("amount", pa.float64()), ("name", pa.string()), ("ok", pa.bool_()), ("at", stamp)]
    )
    return pa.Table.from_pylist(list(rows), schema=schema)


def parquet_of(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table_of(rows), sink, row_group_size=7)
    return sink.getvalue()


def _arrow(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_file(sink, table_of(rows).schema) as writer:
        writer.write_table(table_of(rows), max_chunksize=5)
    return sink.getvalue()


def _arrow_stream(rows: Sequence[Row]) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table_of(rows).schema) as writer:
        writer.write_table(table_of(rows), max_chunksize=5)
    return sink.getvalue()


WRITERS: dict[str, Callable[[Sequence[Row]], bytes]] = {
    "csv": csv_of,
    "csv.gz": lambda rows: gzip.compress(csv_of(rows)),
    "csv.zst": lambda rows: pa.compress(csv_of(rows), codec="zstd", asbytes=True),
    "ndjson": ndjson_of,
    "jsonl.gz": lambda rows: gzip.compress(ndjson_of(rows)),
    "parquet": parquet_of,
    "arrow": _arrow,
    "ipc": _arrow_stream,
}


class Reader:
    """Reads a source slice by slice, as the extract stage does, and keeps what it has seen."""

    def __init__(self, uri: str, *, limit_rows: int = 10**6, batch_bytes: int = 2**20, **more: Any) -> None:
        self.uri, self.limit_rows, self.batch_bytes, self.more = uri, limit_rows, batch_bytes, more
        self.files: dict[str, SeenFile] = {}
        self.rows: list[Row] = []
        self.rejected: list[Rejected] = []
        self.replaced: list[str] = []
        self.counts: list[dict[str, int]] = []
        self.slices = 0

    def run(self) -> int:
        """Read until there is nothing left; return how many rows came."""
        before = len(self.rows)
        for _ in range(200):
            source = FileSource(SecretStr(self.uri), **self.more)
            bounds = source.next_range(Seen(files=lambda: self.files), Window(until=EVER, limit_rows=self.limit_rows))
            if bounds is None:
                return len(self.rows) - before
            bounds = json.loads(json.dumps(bounds))
            contract = first_contract(source.schemas(bounds), key=source._key, cursor=source._cursor)
            for batch in source.read(bounds, schema=contract.stored, batch_bytes=self.batch_bytes):
                self._keep(batch)
            ending = source.ending()
            self.files |= {file.name: SeenFile.from_json(file.to_json()) for file in ending.files}
            self.replaced += bounds["replaces"]
            self.counts.append(dict(ending.counts))
            self.slices += 1
        raise AssertionError("it never ends")

    def _keep(self, batch: Batch) -> None:
        self.rows += batch.rows.to_pylist()
        self.rejected += batch.rejected

    def plain(self) -> list[Row]:
        return [{name: value for name, value in row.items() if not name.startswith("_")} for row in self.rows]


def range_of(source: FileSource, reader: Reader, limit_rows: int = 10**6) -> Any:
    bounds = source.next_range(Seen(files=lambda: reader.files), Window(until=EVER, limit_rows=limit_rows))
    return json.loads(json.dumps(bounds))


def read_range(source: FileSource, bounds: Any, reader: Reader) -> list[Row]:
    """Read a range of which the plan was made before, and record it."""
    schema = first_contract(source.schemas(bounds), key="_key", cursor="_read_at").stored
    rows = [row for batch in source.read(bounds, schema=schema, batch_bytes=2**20) for row in batch.rows.to_pylist()]
    reader.files |= {file.name: file for file in source.ending().files}
    return rows
