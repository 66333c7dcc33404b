"""A segment: rows sorted by (key, time) with running sums of their measures, one mapped file, written once.

The file is Arrow IPC: one row whose columns are lists, so that arrays of different lengths are mapped without a copy.
Keys are in ``keys.py``, sums in ``measures.py``, distinct values in ``distinct_columns.py``, what is asked of them in
``window_search.py``.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from engine.batching.atomic import sync_files
from engine.errors import SourceError, TableError
from engine.features.distinct_columns import VALUES, Before, DistinctColumn, build_column, read_columns, stored
from engine.features.extremes import Which
from engine.features.keys import KeyDictionary, SortedKeys, build_dictionary, sort_keys
from engine.features.measures import MeasureLayout, build_measure

_FORMAT = 4
_BEFORE = 3  # the same, but for decimals: keys and values to count of more than 28 digits were cut
_FACTS = b"headrace.segment"
_MOST_ROWS = 2**31 - 1  # counts are int32
_WIDEST = 2**62
_FEW_WANTED = 64
_PAIRING_BYTES = 192  # of a row, while pairs of its key and a value are looked for in earlier segments


@dataclass(frozen=True)
class SegmentRef:
    """One segment file."""

    path: str  # relative to the segments' root, '/'-separated
    rows: int
    bytes: int  # on disk
    keys: tuple[str, ...]
    measures: tuple[str, ...]
    time_min: int  # microseconds since 1970 UTC; above time_max where there are no rows
    time_max: int

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> SegmentRef:
        """Return the ref that ``refs.to_json`` described."""
        return cls(**{**value, "keys": tuple(value["keys"]), "measures": tuple(value["measures"])})


@dataclass(frozen=True)
class Clock:
    """How times lie in a segment's places: as what has passed since its first one, or as ranks where that is too long.

    A place is ``(2 * key index + 1) * stride + code``, so that between two keys there is room for one that is not here.
    """

    base: int
    stride: int  # codes of times in the segment are below it
    times: npt.NDArray[np.int64] | None  # distinct and sorted: codes are ranks

    def codes(self, times: npt.NDArray[np.int64], *, after: bool) -> npt.NDArray[np.int64]:
        """Return the code of the first time not before each of ``times``, or with ``after`` later than it."""
        if self.times is not None:
            return np.searchsorted(self.times, times, side="right" if after else "left").astype(np.int64)
        codes = times - (self.base - int(after))
        return np.clip(codes, 0, self.stride, out=codes)


@dataclass(frozen=True)
class Runs:
    """Where some keys' rows lie in a segment; of a key that it lacks, where they would."""

    place: npt.NDArray[np.int64]  # of each key, to add codes of times to
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Segment:
    """An open segment; its arrays are mapped and cost no memory of the process."""

    ref: SegmentRef
    keys: KeyDictionary
    clock: Clock
    places: npt.NDArray[np.int64]  # (rows,) sorted: key and time
    bounds: npt.NDArray[np.int64]  # (keys + 1,): where each key index's rows begin
    layouts: Mapping[str, MeasureLayout]
    arrays: Mapping[str, Mapping[str, npt.NDArray[Any]]]  # by measure, by name
    distinct: Mapping[str, DistinctColumn]  # by column, where distinct values are asked of it
    counts: npt.NDArray[np.int64] | None  # of a tier (``tiers.py``): how many rows come before each of its own

    def counted(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return how many rows come before these."""
        return rows if self.counts is None else self.counts[rows]

    def runs(self, found: npt.NDArray[np.int64]) -> Runs:
        """Return the runs of key indices in ascending order, -1 for keys that are not here."""
        present = found >= 0
        known = np.where(present, found, np.maximum.accumulate(found))
        return Runs(
            place=(2 * known + 2 - present) * self.clock.stride,
            start=self.bounds[known + ~present],
            end=self.bounds[known + 1],
        )

    def position(
        self, place: npt.NDArray[np.int64], time: npt.NDArray[np.int64], *, after: bool
    ) -> npt.NDArray[np.int64]:
        """Return the first row of each run that is not before ``time``, or with ``after`` later than it.

        Of runs in ascending order, with times that ascend in each, only the rows between the first and the last answer
        are looked at.
        """
        wanted = self.clock.codes(time, after=after)
        wanted += place
        if len(wanted) < _FEW_WANTED or not (wanted[1:] >= wanted[:-1]).all():
            return np.searchsorted(self.places, wanted)
        low, high = np.searchsorted(self.places, wanted[[0, -1]])
        found = np.searchsorted(self.places[low:high], wanted)
        found += low
        return found

    def time_at(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Return the times of rows, in microseconds."""
        codes = self.places[rows] % self.clock.stride
        return codes + self.clock.base if self.clock.times is None else self.clock.times[codes]


def build_segment(
    rows: pa.Table | pa.RecordBatch,
    *,
    keys: Sequence[str],
    time: str,
    measures: Sequence[str],
    path: Path,
    root: Path | None = None,
    squares: Sequence[str] | None = None,
    extremes: Mapping[str, tuple[Which, ...]] | None = None,
    distinct: Mapping[str, Before] | None = None,
    in_order: SortedKeys | None = None,
    synced: bool = True,
) -> SegmentRef:
    """Write a segment and return its ref.

    Parameters
    ----------
    rows
        In any order; held in memory, with about ``segment_build_bytes_per_row`` more.
    keys
        Key columns of any type that is not nested; null is a key of its own.
    time
        A timestamp or date; without a zone it is taken as UTC, and what is finer than microseconds is cut off.
    measures
        Boolean, integer, float or decimal columns.
    path, root
        Where to write, and what the ref's path is relative to (default: the path's directory). A file that is there is
        replaced whole; a crash leaves the old one or the new one.
    squares
        Which measures a standard deviation may be asked of; default: all.
    extremes
        Which of min and max may be asked of a measure; default: none of any.
    distinct
        Columns whose distinct values may be counted, each with what was before; default: none.
    in_order
        The rows' keys and times as ``sort_keys`` returns them, where they are known.
    synced
        Whether to wait until it is on the disk; else that is for the caller to do before it is committed.

    Raises
    ------
    SourceError
        A row has no time.
    SpecError
        A key, a measure or a column to count is of a type that cannot be one.
    SchemaMismatch
        A column to count is of another type in an earlier segment.
    """
    table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
    if table.num_rows > _MOST_ROWS:
        raise ValueError(f"a segment holds at most {_MOST_ROWS:,} rows, not {table.num_rows:,}")
    stamps = read_times(table.column(time), name=time)
    extent = (int(stamps.min()), int(stamps.max())) if len(stamps) else (0, -1)
    sorted_keys = sort_keys(table, keys, stamps) if in_order is None else in_order
    dictionary, index = build_dictionary(sorted_keys.columns)
    sizes = np.diff(sorted_keys.starts)
    bounds = np.zeros(dictionary.size + 1, dtype=np.int64)
    bounds[index + 1] = sizes
    np.cumsum(bounds, out=bounds)
    order = sorted_keys.order
    clock, codes = _clock(stamps, keys=dictionary.size)
    places = np.repeat((2 * index + 1) * clock.stride, sizes)
    places += codes[order]
    del codes
    counted = {
        name: build_column(table, name, keys=keys, times=stamps, order=order, size=dictionary.size, before=before)
        for name, before in (distinct or {}).items()
    }
    del stamps
    squared, starts = measures if squares is None else squares, sorted_keys.starts[:-1]
    built = {
        name: build_measure(
            table.column(name),
            name=name,
            order=order,
            starts=starts,
            squares=name in squared,
            extremes=(extremes or {}).get(name, ()),
        )
        for name in measures
    }
    ref = write_segment(
        path,
        path.parent if root is None else root,
        dictionary=dictionary,
        clock=clock,
        places=places,
        bounds=bounds,
        measures=built,
        extent=extent,
        distinct=counted,
    )
    if synced:
        sync_files([path])
    return ref


def write_segment(
    path: Path,
    root: Path,
    *,
    dictionary: KeyDictionary,
    clock: Clock,
    places: npt.NDArray[np.int64],
    bounds: npt.NDArray[np.int64],
    measures: Mapping[str, tuple[MeasureLayout, Mapping[str, npt.NDArray[Any]]]],
    extent: tuple[int, int],
    distinct: Mapping[str, DistinctColumn],
    counts: npt.NDArray[np.int64] | None = None,
) -> SegmentRef:
    """Write the parts of a segment, as ``Segment`` has them, with its first and last time, and return its ref.

    Nobody waits until it is on the disk.
    """
    arrays: dict[str, pa.Array] = {"places": pa.array(places), "bounds": pa.array(bounds)}
    if clock.times is not None:
        arrays["times"] = pa.array(clock.times)
    if counts is not None:
        arrays["counts"] = pa.array(counts)
    for number, values in enumerate(dictionary.values):
        arrays[f"key.{number}"] = values
    for number, pairs in enumerate(dictionary.pairs):
        arrays[f"pairs.{number}"] = pa.array(pairs)
    layouts = {}
    for name, (layout, parts) in measures.items():
        layouts[name] = dataclasses.asdict(layout)
        arrays |= {f"measure.{name}.{part}": pa.array(values) for part, values in parts.items()}
    kinds, kept = stored(distinct)
    arrays |= kept
    facts = {
        "format": _FORMAT,
        "rows": len(places),
        "keys": dictionary.names,
        "kinds": dictionary.kinds,
        "measures": layouts,
        "distinct": kinds,
        "base": clock.base,
        "stride": clock.stride,
    }
    _write(path, arrays, facts)
    return SegmentRef(
        path=path.relative_to(root).as_posix(),
        rows=len(places),
        bytes=path.stat().st_size,
        keys=dictionary.names,
        measures=tuple(measures),
        time_min=extent[0],
        time_max=extent[1],
    )


def open_segment(ref: SegmentRef, *, root: Path) -> Segment:
    """Return a segment, mapped.

    Raises
    ------
    TableError
        The file is missing, damaged or not the one that the ref is of.
    """
    path = root / ref.path
    try:
        if path.stat().st_size != ref.bytes:
            raise OSError(f"it has {path.stat().st_size:,} bytes, not {ref.bytes:,}")
        with pa.memory_map(str(path), "rb") as file, pa.ipc.open_file(file) as reader:
            metadata, columns = reader.schema.metadata, reader.get_batch(0)
        facts = json.loads(metadata[_FACTS])
        kinds = {*facts["kinds"], *facts["distinct"].values()}
        if facts["format"] != _FORMAT and (facts["format"] != _BEFORE or "decimal" in kinds):
            raise OSError(f"it is of format {facts['format']}, and this version reads format {_FORMAT}")
        if facts["rows"] != ref.rows:
            raise OSError(f"it has {facts['rows']:,} rows, not {ref.rows:,}")
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError) as error:
        raise TableError(
            f"window segment {path} cannot be read: {str(error).splitlines()[0]}",
            hint="segments are made from the tables: prepare the pipeline anew; other committed data is intact",
        ) from error
    held = {name: columns.column(name).values for name in columns.schema.names}
    numbers = {name: array.to_numpy() for name, array in held.items() if not name.startswith(("key.", VALUES))}
    measures: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for name in facts["measures"]:
        prefix = f"measure.{name}."
        measures[name] = {key.removeprefix(prefix): part for key, part in numbers.items() if key.startswith(prefix)}
    width = len(facts["keys"])
    keys = KeyDictionary(
        names=tuple(facts["keys"]),
        kinds=tuple(facts["kinds"]),
        values=tuple(held[f"key.{number}"] for number in range(width)),
        pairs=tuple(numbers[f"pairs.{number}"] for number in range(width - 1)),
    )
    return Segment(
        ref=ref,
        keys=keys,
        clock=Clock(facts["base"], facts["stride"], numbers.get("times")),
        places=numbers["places"],
        bounds=numbers["bounds"],
        counts=numbers.get("counts"),
        layouts={name: MeasureLayout.from_json(layout) for name, layout in facts["measures"].items()},
        arrays=measures,
        distinct=read_columns(facts["distinct"], keys=keys, values=held, numbers=numbers),
    )


def read_times(column: pa.ChunkedArray, *, name: str) -> npt.NDArray[np.int64]:
    """Return a timestamp or date column in microseconds since 1970 UTC, int64 (rows,).

    Raises
    ------
    SourceError
        A row has no time, or the column is of another type.
    """
    if column.null_count:
        raise SourceError(
            f"{column.null_count:,} of {len(column):,} rows have no {name}, and a window needs a row's time",
            hint=f"fill {name} in the source, or read a view of it that leaves these rows out",
        )
    of = column.type
    if pa.types.is_date(of):
        column = column.cast(pa.timestamp("us"))
    elif not pa.types.is_timestamp(of):
        raise SourceError(f"{name} is of type {of}, not a timestamp", hint="name a timestamp column as event_time")
    elif of.unit in ("s", "ms"):
        column = column.cast(pa.timestamp("us", tz=of.tz))
    values: npt.NDArray[np.int64] = column.cast(pa.int64()).to_numpy()
    return values // 1000 if pa.types.is_timestamp(of) and of.unit == "ns" else values


def _clock(stamps: npt.NDArray[np.int64], *, keys: int) -> tuple[Clock, npt.NDArray[np.int64]]:
    """Return the clock of a segment with so many keys, and each row's code."""
    if not len(stamps):
        return Clock(0, 1, None), stamps
    base = int(stamps.min())
    stride = int(stamps.max()) - base + 1
    if 2 * (keys + 1) * stride < _WIDEST:
        return Clock(base, stride, None), stamps - base
    times, rank = np.unique(stamps, return_inverse=True)
    return Clock(0, len(times), times), rank.astype(np.int64)


def segment_bytes_per_row(measures: int, *, squares: int = 0, extremes: int = 0, distinct: int = 0) -> int:
    """Return the bytes on disk of a segment's row, keys aside, with so many float measures, squares and extremes, and
    columns whose distinct values are counted.

    Integers take 8 bytes where floats take 16, or 24 where they range widely; nulls add 4, and so does each of NaN and
    the infinities that occur. An extreme takes 12 where runs are short, 16 in a run of 2**20 rows; min and max of one
    measure share 8 of that. A column that is counted takes 4, and 40 for each pair of a key and a value, of which each
    row may have its own.
    """
    return 8 + 8 + 24 * (measures + squares) + 16 * extremes + 44 * distinct


def segment_build_bytes_per_row(
    keys: int, measures: int, *, squares: int = 0, extremes: int = 0, distinct: int = 0
) -> int:
    """Return the anonymous bytes a row at the peak of ``build_segment``, the rows themselves aside."""
    held = segment_bytes_per_row(measures, squares=squares, extremes=extremes, distinct=distinct)
    return 40 + 16 * (keys + distinct) + 72 + held + (_PAIRING_BYTES if distinct else 0)


def _write(path: Path, arrays: Mapping[str, pa.Array], facts: Mapping[str, Any]) -> None:
    columns = [
        pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values) for values in arrays.values()
    ]
    fields = [pa.field(name, column.type) for name, column in zip(arrays, columns, strict=True)]
    schema = pa.schema(fields, metadata={_FACTS: json.dumps(facts)})
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")  # no pid: the next attempt replaces what a killed one left
    try:
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
