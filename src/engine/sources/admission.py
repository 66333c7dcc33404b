"""Which rows a table takes, and what becomes of the others: one row each in ``quarantine``, with what finds it again.

What a source itself could not read is rejected in ``sql.py`` and ``files/``; here is what only the pipeline can tell.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.errors import QuarantineExceeded
from engine.sources.casting import reject
from engine.sources.hours import Hours
from engine.sources.protocol import Batch, Rejected
from engine.spec import READ_AT, PipelineSpec
from engine.units import format_bytes

QUARANTINE_SCHEMA = pa.schema(
    [
        pa.field("table", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("key", pa.string()),
        pa.field("cursor", pa.timestamp("us", tz="UTC")),
        pa.field("place", pa.string()),  # file and row
        pa.field("reason", pa.string()),
        pa.field("column", pa.string()),
        pa.field("value", pa.string()),  # as it came, cut at 256 characters
        pa.field("row", pa.string()),  # JSON, cut at 4 KiB
        pa.field("as_of", pa.string()),  # of the run
    ]
)
_LONGEST_ROW = 4096
_MOST_REASONS = 20  # told apart in an error


class Admission:
    """Splits batches into what the table takes and rows of ``quarantine``.

    Parameters
    ----------
    what
        ``raw`` or ``labels``.
    n, as_of
        Of the plan, for the quarantined rows.
    """

    def __init__(self, spec: PipelineSpec, *, what: str, n: int, as_of: str) -> None:
        self._spec = spec
        self._what = what
        self._n = n
        self._as_of = as_of
        self._reasons: Counter[str] = Counter()
        self._rows = 0
        self._newest: int | None = None
        if what == "raw":
            self._key, self._cursor = spec.source.key, spec.source.cursor
            self._needed = {self._key: "key", self._cursor: "cursor", spec.event_time: "event time"}
        else:
            self._key, self._cursor = spec.labels.key, spec.labels.labelled_at
            self._needed = {self._key: "key", self._cursor: "labelled_at"}
        is_files = spec.source.is_files if what == "raw" else spec.labels_are_files
        self._found_by = READ_AT if is_files else self._cursor  # what a row is found by when it is read again
        self.hours = Hours()

    def to_json(self) -> dict[str, Any]:
        """Return what was seen so far, for another try that goes on from here."""
        return {
            "reasons": dict(self._reasons),
            "rows": self._rows,
            "newest": self._newest,
            "hours": self.hours.to_json(),
        }

    def go_on(self, value: Mapping[str, Any]) -> None:
        """Go on from what ``to_json`` described."""
        self._reasons = Counter(value["reasons"])
        self._rows, self._newest = int(value["rows"]), value["newest"]
        self.hours = Hours.from_json(value["hours"])

    def split(self, batch: Batch) -> tuple[pa.RecordBatch, pa.RecordBatch]:
        """Return the rows for the table, and those for ``quarantine``."""
        rows = batch.rows
        self._rows += rows.num_rows + len(batch.rejected)
        self._follow(rows.column(self._cursor), batch.rejected)
        found: dict[int, Rejected] = {}
        for mask, column, reason in self._tests(rows):
            for at in pc.indices_nonzero(pc.fill_null(mask, False)).to_pylist():
                if at not in found:
                    found[at] = reject(rows, at, column, reason, key=self._key, cursor=self._found_by)
        if found:
            rows = rows.filter(pa.array([at not in found for at in range(rows.num_rows)]))
        if self._what == "labels":
            rows = _as_labels(rows, self._spec)
        else:
            self.hours.add(rows.column(self._spec.event_time))
        return rows, self._quarantined([*batch.rejected, *(found[at] for at in sorted(found))])

    @property
    def newest(self) -> int | None:
        """The newest cursor of all rows, also of those in quarantine; microseconds since 1970."""
        return self._newest

    def require_few_rejected(self) -> None:
        """Stop a slice that holds too many rows that do not fit.

        Raises
        ------
        QuarantineExceeded
            Their share is above ``source.max_quarantine_share``.
        """
        rejected, allowed = sum(self._reasons.values()), self._spec.source.max_quarantine_share
        if not rejected or rejected <= allowed * self._rows:
            return
        shown = self._reasons.most_common(_MOST_REASONS)
        lines = "\n".join(f"  {count:,} rows: {reason}" for reason, count in shown)
        raise QuarantineExceeded(
            f"{rejected:,} of {self._rows:,} new rows of {self._what} do not fit ({rejected / self._rows:.1%}; "
            f"max_quarantine_share allows {allowed:.1%}); nothing of them was committed\n{lines}",
            hint="correct them in the source and run again, or raise source.max_quarantine_share to set them aside",
            details={"rejected": rejected, "rows": self._rows, "reasons": dict(shown)},
        )

    def _follow(self, cursors: pa.Array, rejected: Iterable[Rejected]) -> None:
        newest = pc.max(cursors.cast(pa.int64())).as_py() if pa.types.is_timestamp(cursors.type) else None
        known = [newest, self._newest, *(_microseconds(one) for one in rejected)]
        self._newest = max((value for value in known if value is not None), default=None)

    def _tests(self, rows: pa.RecordBatch) -> Iterable[tuple[pa.Array, str | None, str]]:
        """Yield where rows do not fit, with the column and the reason."""
        for name, meaning in self._needed.items():
            column = rows.column(name)
            if column.null_count:
                yield pc.is_null(column), name, f"the {meaning} is null"
        largest = self._spec.source.max_row_bytes
        if rows.nbytes > largest:
            yield pc.greater(_row_bytes(rows), largest), None, f"larger than max_row_bytes ({format_bytes(largest)})"
        if self._what == "labels":
            value = rows.column(self._spec.labels.value)
            if not pa.types.is_boolean(value.type):
                number = value.cast(pa.float64(), safe=False)
                neither = pc.invert(pc.or_(pc.equal(number, 0.0), pc.equal(number, 1.0)))
                yield neither, self._spec.labels.value, "it is neither 0 nor 1"

    def _quarantined(self, rejected: Sequence[Rejected]) -> pa.RecordBatch:
        self._reasons.update(one.reason for one in rejected)
        rows = [
            {
                "table": self._what,
                "n": self._n,
                "key": one.key,
                "cursor": one.cursor,
                "place": one.place,
                "reason": one.reason,
                "column": one.column,
                "value": one.value,
                "row": json.dumps(dict(one.row), default=str)[:_LONGEST_ROW],
                "as_of": self._as_of,
            }
            for one in rejected
        ]
        return pa.RecordBatch.from_pylist(rows, schema=QUARANTINE_SCHEMA)


def table_schema(spec: PipelineSpec, what: str, stored: pa.Schema) -> pa.Schema:
    """Return the schema of ``raw`` or ``labels``, from that which the contract stores."""
    if what == "raw":
        return stored
    key, stamp = stored.field(spec.labels.key).type, pa.timestamp("us", tz="UTC")
    return pa.schema([pa.field("key", key), pa.field("value", pa.bool_()), pa.field("labelled_at", stamp)])


def _microseconds(one: Rejected) -> int | None:
    return None if one.cursor is None else pa.scalar(one.cursor, pa.timestamp("us", tz="UTC")).value


def _as_labels(rows: pa.RecordBatch, spec: PipelineSpec) -> pa.RecordBatch:
    """Return key, value as boolean, labelled_at; a null value withdraws a label."""
    labels = spec.labels
    value = rows.column(labels.value)
    flags = value if pa.types.is_boolean(value.type) else pc.equal(value.cast(pa.float64(), safe=False), 1.0)
    columns = [rows.column(labels.key), flags, rows.column(labels.labelled_at)]
    return pa.RecordBatch.from_arrays(columns, names=["key", "value", "labelled_at"])


def _row_bytes(rows: pa.RecordBatch) -> pa.Array:
    total = pa.array([8 * rows.num_columns] * rows.num_rows, type=pa.int64())
    for column in rows.columns:
        if pa.types.is_string(column.type) or pa.types.is_binary(column.type) or pa.types.is_large_string(column.type):
            total = pc.add(total, pc.fill_null(pc.binary_length(column).cast(pa.int64()), 0))
    return total
