"""Tables that are small on disk and large in memory, or broken: each a directory of files, written by batches.

All have ``id``, ``at`` (the event time), ``customer`` and ``x``; what is hostile comes beside. Labels say which rows
were positive. What the stages make of them is ``hostile_matrix.py``.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import csv

STAMP = pa.timestamp("us", tz="UTC")
START = 1_767_225_600_000_000  # 2026-01-01, microseconds
SPAN = 60 * 86_400_000_000  # of event time, whatever the number of rows
_BATCH = 50_000
_MIB = 2**20
_Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Hostile:
    """One table: how it is written at a scale (1: as hostile as meant), and what the pipeline file says of it."""

    write: Callable[[Path, float], int]  # returns rows
    features: Mapping[str, Any] = field(default_factory=lambda: {"numeric": ["x"]})
    key: Callable[[_Numbers], pa.Array] = pa.array  # of a row, as its label has it, too

    def write_labels(self, directory: Path, rows: int) -> None:
        """Write a label for every row, known an hour after it: positive more often where ``x`` is large."""
        directory.mkdir()
        key = self.key(np.empty(0, np.int64)).type
        schema = pa.schema([("id", key), ("good", pa.bool_()), ("known_at", STAMP)])
        with pq.ParquetWriter(directory / "labels.parquet", schema) as writer:
            for low, count in _parts(rows):
                columns = base(low, count, total=rows)
                numbers = columns["id"].to_numpy()
                good = pa.array(numbers * 40_503 % 65_537 / 65_537.0 < 0.05 + 0.25 * columns["x"].to_numpy())
                known = pa.array(columns["at"].cast(pa.int64()).to_numpy() + 3_600_000_000).cast(STAMP)
                writer.write_table(pa.table([self.key(numbers), good, known], schema=schema))


def base(low: int, rows: int, *, total: int, customers: int = 1_000) -> dict[str, pa.Array]:
    """Return the columns of rows ``low`` to ``low + rows``: the same whatever the batches are."""
    number = np.arange(low, low + rows, dtype=np.int64)
    noise = (number * 2_654_435_761 % 1_000_003) / 1_000_003.0
    return {
        "id": pa.array(number),
        "at": pa.array(START + number * (SPAN // max(1, total)), pa.int64()).cast(STAMP),
        "customer": pa.array(number * 7_919 % customers),
        "x": pa.array(noise),
    }


def _parts(rows: int, batch: int = _BATCH) -> Iterator[tuple[int, int]]:
    for low in range(0, rows, batch):
        yield low, min(batch, rows - low)


def _write(
    path: Path,
    rows: int,
    more: Callable[[_Numbers], Mapping[str, pa.Array]],
    *,
    one_group: bool = False,
    batch: int = _BATCH,
    customers: int = 1_000,
) -> int:
    tables = (
        pa.table({**columns, **more(columns["id"].to_numpy())})
        for columns in (base(low, count, total=rows, customers=customers) for low, count in _parts(rows, batch))
    )
    first = next(tables)
    if not one_group:
        with pq.ParquetWriter(path, first.schema, compression="zstd") as writer:
            for table in itertools.chain([first], tables):
                writer.write_table(table)
        return rows
    # A row group is written from one table, so that is mapped from a file: no process holds it.
    whole = path.with_suffix(".arrow.tmp")
    with pa.OSFile(str(whole), "wb") as sink, pa.ipc.new_file(sink, first.schema) as stream:
        for table in itertools.chain([first], tables):
            stream.write_table(table)
    with pa.memory_map(str(whole)) as source:
        pq.write_table(pa.ipc.open_file(source).read_all(), path, compression="zstd", row_group_size=rows)
    whole.unlink()
    return rows


def ordinary(directory: Path, scale: float) -> int:
    """Write rows as most tables have them."""
    return _write(directory / "rows.parquet", int(2_000_000 * scale), lambda n: {"town": _texts(n % 1_200, "town ")})


def one_row_group(directory: Path, scale: float) -> int:
    """Write 3 GB, decoded, in one row group."""
    rows = int(12_000_000 * scale)
    return _write(
        directory / "rows.parquet",
        rows,
        lambda n: {f"v{i}": pa.array((n + i) % 1_000 * 0.5) for i in range(28)},
        one_group=True,
    )


def hidden(directory: Path, scale: float) -> int:
    """Write constant texts that decode to 2 GB out of two megabytes: few rows, since other columns do not repeat."""
    value = pa.array(["y" * 20_000])
    rows = int(100_000 * scale)
    return _write(
        directory / "rows.parquet",
        rows,
        lambda n: {
            "text": pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(n), np.int32)), value).cast(pa.string())
        },
        batch=20_000,
    )


def fat_rows(directory: Path, scale: float) -> int:
    """Write a burst of rows of a megabyte and, at the end of the file, one of 200, among rows of 100 bytes."""
    rows = int(1_000_000 * scale)
    burst = rows // 2

    def texts(numbers: _Numbers) -> Mapping[str, pa.Array]:
        out = ["t" * 60] * len(numbers)
        for at, number in enumerate(numbers):
            if burst <= number < burst + 200:
                out[at] = chr(97 + int(number) % 26) * _MIB
            elif number == rows - 1:
                out[at] = "z" * int(200 * _MIB * min(1.0, scale * 20))
        return {"text": pa.array(out)}

    return _write(directory / "rows.parquet", rows, texts, batch=10_000)


def wide(directory: Path, scale: float) -> int:
    """Write 2,000 columns beside."""

    def columns(n: _Numbers) -> Mapping[str, pa.Array]:
        return {f"c{i}": pa.array((n % 97) * 0.5 + i) for i in range(2_000)}

    return _write(directory / "rows.parquet", int(100_000 * scale), columns, batch=5_000)


def nested(directory: Path, scale: float) -> int:
    """Write list and struct columns."""

    def columns(n: _Numbers) -> Mapping[str, pa.Array]:
        lists = pa.ListArray.from_arrays(np.arange(len(n) + 1, dtype=np.int32) * 20, np.repeat(n, 20))
        return {
            "items": lists,
            "address": pa.StructArray.from_arrays([pa.array(n), _texts(n % 50, "t")], ["zip", "town"]),
        }

    return _write(directory / "rows.parquet", int(1_000_000 * scale), columns)


def distinct(directory: Path, scale: float) -> int:
    """Write a text that is another one in each of 50 million rows."""
    return _write(directory / "rows.parquet", int(50_000_000 * scale), lambda n: {"reference": _texts(n, "reference-")})


def hot_key(directory: Path, scale: float) -> int:
    """Write a customer who owns 99 % of the rows."""

    def columns(n: _Numbers) -> Mapping[str, pa.Array]:
        return {"customer": pa.array(np.where(n % 100 == 0, n % 1_000, 7))}

    return _write(directory / "rows.parquet", int(5_000_000 * scale), columns)


def nulls(directory: Path, scale: float) -> int:
    """Write features without a value."""

    def columns(n: _Numbers) -> Mapping[str, pa.Array]:
        return {"x": pa.nulls(len(n), pa.float64()), "town": pa.nulls(len(n), pa.string())}

    return _write(directory / "rows.parquet", int(2_000_000 * scale), columns)


def zero_rows(directory: Path, scale: float) -> int:
    """Write a file with columns and no row."""
    del scale
    pq.write_table(pa.table(base(0, 0, total=1)), directory / "rows.parquet")
    return 0


def truncated(directory: Path, scale: float) -> int:
    """Write a file that ends in the middle of its last row group."""
    rows = _write(directory / "rows.parquet", int(1_000_000 * scale), lambda n: {})
    path = directory / "rows.parquet"
    metadata = pq.read_metadata(path)
    last = metadata.row_group(metadata.num_row_groups - 1).column(0)
    with open(path, "r+b") as handle:
        handle.truncate(last.data_page_offset + last.total_compressed_size // 2)
    return rows


def damaged(directory: Path, scale: float) -> int:
    """Write a file of which the last row group is zeroes, under a footer that says it is there."""
    rows = _write(directory / "rows.parquet", int(1_000_000 * scale), lambda n: {})
    path = directory / "rows.parquet"
    metadata = pq.read_metadata(path)
    last = metadata.row_group(metadata.num_row_groups - 1).column(0)
    start, footer = last.dictionary_page_offset or last.data_page_offset, metadata.serialized_size + 8
    content = bytearray(path.read_bytes())
    content[start:-footer] = bytes(len(content) - footer - start)
    path.write_bytes(content)
    return rows


def tiny_files(directory: Path, scale: float) -> int:
    """Write 20,000 files of ten rows each."""
    files = int(20_000 * scale)
    for number in range(files):
        pq.write_table(pa.table(base(number * 10, 10, total=files * 10)), directory / f"{number:06d}.parquet")
    return files * 10


def booleans(directory: Path, scale: float) -> int:
    """Write 200 columns of one bit a value, of which encoders and learners make numbers."""

    def columns(n: _Numbers) -> Mapping[str, pa.Array]:
        return {f"b{i}": pa.array((n * (2 * i + 1)) % 65_537 % 7 == 0) for i in range(200)}

    return _write(directory / "rows.parquet", int(1_000_000 * scale), columns)


def narrow_text(directory: Path, scale: float) -> int:
    """Write text of which each value is a digit, in a file whose name is much longer than its rows."""
    rows = int(4_000_000 * scale)
    first = pa.table({**base(0, 0, total=1), **_digits(np.empty(0, np.int64))})
    with csv.CSVWriter(directory / f"{'n' * 200}.csv", first.schema) as writer:
        for low, count in _parts(rows):
            columns = base(low, count, total=rows)
            writer.write_table(pa.table({**columns, **_digits(columns["id"].to_numpy())}))
    return rows


def long_keys(directory: Path, scale: float) -> int:
    """Write keys of 300 letters, of rows and, of windows, of customers."""

    def columns(n: _Numbers) -> Mapping[str, pa.Array]:
        return {"id": _long(n), "customer": _long(n * 7_919 % 200_000)}

    return _write(directory / "rows.parquet", int(1_000_000 * scale), columns, batch=20_000)


def _long(numbers: _Numbers) -> pa.Array:
    return _texts(numbers, "k" * 290)


def _digits(numbers: _Numbers) -> dict[str, pa.Array]:
    return {f"d{i}": pa.array((numbers + i) % 7) for i in range(20)}


def _texts(numbers: _Numbers, prefix: str) -> pa.Array:
    return pa.array(np.char.add(prefix, numbers.astype(str)).tolist(), pa.string())


_WINDOWS = [{"keys": ["customer"], "over": "events", "lengths": ["7d"], "statistics": ["count"]}]

TABLES: dict[str, Hostile] = {
    "ordinary": Hostile(ordinary, {"numeric": ["x"], "categorical": ["town"]}),
    "ordinary with windows": Hostile(ordinary, {"numeric": ["x"], "categorical": ["town"], "windows": _WINDOWS}),
    "one row group": Hostile(one_row_group, {"numeric": ["x", "v0", "v27"]}),
    "hidden size": Hostile(hidden, {"numeric": ["x"], "categorical": ["text"]}),
    "fat rows": Hostile(fat_rows, {"numeric": ["x"], "categorical": ["text"]}),
    "2,000 columns": Hostile(wide, {"numeric": ["x", *(f"c{i}" for i in range(0, 2_000, 100))]}),
    "lists and structs": Hostile(nested),
    "distinct texts": Hostile(distinct, {"numeric": ["x"], "categorical": ["reference"]}),
    "hot key": Hostile(hot_key, {"numeric": ["x"], "windows": _WINDOWS}),
    "all nulls": Hostile(nulls, {"numeric": ["x"], "categorical": ["town"]}),
    "zero rows": Hostile(zero_rows),
    "damaged row group": Hostile(damaged),
    "truncated": Hostile(truncated),
    "tiny files": Hostile(tiny_files),
    "200 booleans": Hostile(booleans, {"numeric": ["x", *(f"b{i}" for i in range(200))]}),
    "narrow text": Hostile(narrow_text, {"numeric": ["x", "d0"]}),
    "long keys": Hostile(
        long_keys,
        {"numeric": ["x"], "windows": [*_WINDOWS, {**_WINDOWS[0], "over": "labels", "statistics": ["count", "rate"]}]},
        _long,
    ),
}


def pipeline(name: str, directory: Path, *, memory: str) -> dict[str, Any]:
    """Return the pipeline file for a table that lies in ``directory / "rows"``, with its labels beside."""
    return json.loads(  # type: ignore[no-any-return]
        json.dumps(
            {
                "pipeline": "hostile",
                "workspace": str(directory / "workspace"),
                "source": {
                    "uri": str(directory / "rows"),
                    "key": "id",
                    "cursor": "at",
                    "max_row_bytes": "4MiB",
                    "max_quarantine_share": 0.01,
                },
                "event_time": "at",
                "labels": {"uri": str(directory / "labels"), "key": "id", "value": "good", "labelled_at": "known_at"},
                "features": TABLES[name].features,
                "split": {"validation": "10d", "calibration": "5d", "gap": "1d"},
                "resources": {"memory": memory},
            }
        )
    )
