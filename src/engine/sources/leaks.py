"""Looks for columns that give the label away: a value, a null, or having a value, that is nearly only one class.

Such a column was usually written with the outcome, so it is not known when the prediction is due. On real flights a
null tail number is found only among cancelled ones, and a model that may read it looks five times as good as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from engine.sources.findings import Finding
from engine.sources.protocol import Source
from engine.spec import PipelineSpec

PURITY = 0.99
"""A value is suspect from this share of one class on."""

SUPPORT_ROWS = 30
"""Fewer rows say nothing: 30 of 30 by chance, at a rate of 2.5 %, is impossible, and at 50 % one in a billion."""

_SAMPLE_BYTES = 128 * 2**20
_SCANNED_ROWS = 20  # for each row of the sample, before giving up on finding labelled ones
_BATCH_ROWS = 2_048
_LABEL = "_headrace_label"
_DAY = "_headrace_day"
_LEAST_DAYS = 5  # a number that stands for one storm is no leak
_NEARLY_ALL_ROWS = 0.5  # a distinct value in every second row or more: nothing to group


@dataclass(frozen=True)
class _Suspect:
    """One group of rows of one column."""

    what: str
    rows: int
    share: float  # of the rare class


def check_leaks(
    spec: PipelineSpec,
    source: Source,
    labels: Source,
    *,
    sample_rows: int = 100_000,
    transform: Callable[[pa.Table], pa.Table] | None = None,
) -> tuple[Finding, ...]:
    """Return a warning for each feature's column that gives the label away, and an information for each unused one.

    Parameters
    ----------
    spec
        The pipeline.
    source, labels
        Open sources of its rows and its labels, with the columns that ``check_schema`` has found to be there.
    sample_rows
        Labelled rows to look at, from the oldest; fewer where they hold more than 128 MiB.
    transform
        ``features.transform``; its columns are looked at too.

    Returns
    -------
    tuple[Finding, ...]
        At most one for each column. A value counts from 30 rows on, if at least 99 % of them are of the rare class;
        that the common class is common is never a finding.
    """
    known, wrong = _known_labels(spec, labels, limit_rows=2 * sample_rows)
    found = []
    if wrong is not None:
        message = f"{spec.labels.value!r} holds {wrong!r}; allowed: boolean, or the numbers 0 and 1"
        found.append(Finding("warning", "labels.value", message, "such records go to quarantine"))
    rows = _sample(spec, source, known, sample_rows=sample_rows)
    positives = 0 if rows is None else int(pc.sum(rows.column(_LABEL)).as_py() or 0)
    total = 0 if rows is None else rows.num_rows
    rare = positives if 2 * positives <= total else total - positives
    if rows is None or rare < SUPPORT_ROWS:
        message = f"too few labelled rows to look for leaks: {total:,} with {rare:,} of the rarer class"
        hint = f"needed are {SUPPORT_ROWS} of it among the first {sample_rows:,}; check again when there are more"
        return (*found, Finding("info", "labels", message, hint))
    if transform is not None:
        label, day = rows.column(_LABEL), rows.column(_DAY)
        rows = transform(rows.drop_columns([_LABEL, _DAY])).append_column(_LABEL, label).append_column(_DAY, day)
    if 2 * positives > total:
        rows = rows.set_column(rows.schema.get_field_index(_LABEL), _LABEL, pc.subtract(1, rows.column(_LABEL)))
    rare_class = "positive" if 2 * positives <= total else "negative"
    used = _used(spec)
    skipped = {spec.source.key, spec.source.cursor, spec.event_time, _LABEL, _DAY}
    if spec.labels.table == spec.source.table and spec.labels.uri is None:
        skipped |= {spec.labels.value, spec.labels.labelled_at}
    for name in rows.column_names:
        if name in skipped or name in spec.after_columns:
            continue
        suspect = max(_suspects(rows, name), key=lambda one: (one.share, one.rows), default=None)
        if suspect is not None:
            found.append(_finding(name, suspect, used.get(name), rare_class, base_rate=rare / total))
    return tuple(found)


def _finding(name: str, suspect: _Suspect, where: str | None, rare_class: str, *, base_rate: float) -> Finding:
    message = (
        f"{name!r} {suspect.what} gives the label away: {suspect.share:.1%} of such rows are {rare_class} "
        f"({suspect.rows:,} rows; {base_rate:.1%} of all)"
    )
    if where is None:
        return Finding("info", name, f"{message}; no feature reads it", "leave it unused, or declare it known: after")
    hint = f"if it is written with the outcome, leave it out, or declare columns.{name}: {{known: after}}"
    return Finding("warning", where, message, hint)


def _used(spec: PipelineSpec) -> dict[str, str]:
    """Return where each column is used as a feature."""
    used: dict[str, str] = {}
    for at, window in enumerate(spec.features.windows):
        used |= dict.fromkeys(window.keys, f"features.windows[{at}].keys")
        used |= {window.column: f"features.windows[{at}].column"} if window.column else {}
    used |= dict.fromkeys(spec.features.categorical, "features.categorical")
    return used | dict.fromkeys(spec.features.numeric, "features.numeric")


def _known_labels(spec: PipelineSpec, labels: Source, *, limit_rows: int) -> tuple[dict[Any, bool], Any]:
    """Return the oldest labels by key, the last record counting, and an example of a value that is none."""
    known: dict[Any, bool] = {}
    wrong = None
    for batch in labels.head(limit_rows=limit_rows, batch_rows=_BATCH_ROWS):
        keys, values = (batch.column(name).to_pylist() for name in (spec.labels.key, spec.labels.value))
        for key, value in zip(keys, values, strict=True):
            if value is None:
                known.pop(key, None)
            elif value in (0, 1):
                known[key] = bool(value)
            else:
                wrong = value
    return known, wrong


def _sample(spec: PipelineSpec, source: Source, known: dict[Any, bool], *, sample_rows: int) -> pa.Table | None:
    """Return rows with their label as 0 and 1 and their day, or None when there are none."""
    absent_counts = spec.labels.absent == "negative"
    spare = sample_rows // 2  # rows without a label do not crowd out those with one
    kept: list[pa.RecordBatch] = []
    rows_kept = bytes_kept = 0
    limit = _SCANNED_ROWS * sample_rows
    for batch in source.head(limit_rows=limit, batch_rows=_BATCH_ROWS):
        label = [known.get(key) for key in batch.column(spec.source.key).to_pylist()]
        for at, one in enumerate(label):
            if one is None and absent_counts and spare:
                label[at] = False
                spare -= 1
        flags = pa.array(label, type=pa.bool_())
        days = pc.floor_temporal(batch.column(spec.event_time), unit="day")
        part = batch.append_column(_LABEL, flags.cast(pa.int64())).append_column(_DAY, days).filter(flags.is_valid())
        if part.num_rows:
            kept.append(part)
            rows_kept += part.num_rows
            bytes_kept += part.nbytes
        if rows_kept >= sample_rows or bytes_kept >= _SAMPLE_BYTES:
            break
    return pa.Table.from_batches(kept).slice(0, sample_rows) if kept else None


def _suspects(rows: pa.Table, name: str) -> Iterator[_Suspect]:
    """Yield the groups of rows of a column that are nearly only of the rare class, which ``_LABEL`` counts."""
    values, label = rows.column(name), rows.column(_LABEL)
    absent = pc.is_null(values, nan_is_null=True)
    nulls = int(pc.sum(absent).as_py() or 0)
    if 0 < nulls < len(values):
        for what, mask in (("being null", absent), ("having a value", pc.invert(absent))):
            count = int(pc.sum(mask).as_py())
            yield from _pure(what, count, int(pc.sum(pc.if_else(mask, label, 0)).as_py()))
    kind = values.type
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    if not (is_number or pa.types.is_boolean(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return
    if pc.count_distinct(values).as_py() > _NEARLY_ALL_ROWS * len(values):
        return
    groups = pa.table({"value": values, "label": label, "day": rows.column(_DAY)}).filter(pc.invert(absent))
    counted = groups.group_by("value").aggregate([("label", "count"), ("label", "sum"), ("day", "count_distinct")])
    enough = pc.and_(
        pc.greater_equal(counted.column("label_count"), SUPPORT_ROWS),
        pc.greater_equal(counted.column("day_count_distinct"), _LEAST_DAYS if is_number else 1),
    )
    for row in counted.filter(enough).to_pylist():
        yield from _pure(f"= {row['value']!r}", row["label_count"], row["label_sum"])


def _pure(what: str, count: int, rare: int) -> Iterator[_Suspect]:
    if count >= SUPPORT_ROWS and rare >= PURITY * count:
        yield _Suspect(what, count, rare / count)
