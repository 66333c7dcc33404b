"""What only the source can tell about a pipeline file: whether the columns that it names are there, with a usable type.

Values that tell the label are looked for in ``leaks.py``; what is wrong in the file itself is found by ``specfile.py``.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pyarrow as pa

from engine.errors import SpecError
from engine.sources.findings import Finding
from engine.sources.leaks import check_leaks
from engine.sources.opening import open_source
from engine.sources.protocol import Source
from engine.spec import PipelineSpec
from engine.usercode import own_file

__all__ = ["Finding", "check_leaks", "check_pipeline", "check_schema", "open_feed", "open_labels", "open_rows"]

Transform = Callable[[pa.Table], pa.Table]
_OF_ANY_TYPE = {"count", "since", "distinct"}  # statistics that measure no column, or count its values
_SHOWN_NAMES = 40


def check_pipeline(
    spec: PipelineSpec, *, directory: Path, sample_rows: int = 100_000, transform: Transform | None = None
) -> tuple[Finding, ...]:
    """Return what is wrong or suspect about a pipeline, reaching its source: errors first.

    Parameters
    ----------
    spec
        The pipeline.
    directory
        Where the module of ``features.transform`` lies: the pipeline file's directory.
    sample_rows
        Labelled rows in which to look for leaks.
    transform
        That function, on tables. Without it, any feature that is not in the source may be one of the transform's.

    Raises
    ------
    SourceError
        The source cannot be reached, or lacks a table, the key or the cursor.
    """
    with open_rows(spec) as rows, open_labels(spec) as labels:
        found = [*_transform_findings(spec, directory)]
        found += check_schema(spec, rows.schema(), labels.schema(), transform=transform)
        if not any(finding.severity == "error" for finding in found):
            found += check_leaks(spec, rows, labels, sample_rows=sample_rows, transform=transform)
    order = ("error", "warning", "info")
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def open_feed(spec: PipelineSpec, what: str, *, types: pa.Schema | None = None) -> Source:
    """Return the source of what goes to ``raw`` or to ``labels``."""
    return open_rows(spec, types=types) if what == "raw" else open_labels(spec, types=types)


def open_rows(spec: PipelineSpec, *, types: pa.Schema | None = None) -> Source:
    """Return the source of a pipeline's rows; ``types`` are those of its contract, for files without any."""
    source = spec.source
    return open_source(
        source.uri,
        feed=source,
        table=source.table,
        key=source.key,
        cursor=source.cursor,
        times=(spec.event_time,),
        types=types,
        max_value_bytes=source.max_row_bytes,
    )


def open_labels(spec: PipelineSpec, *, types: pa.Schema | None = None) -> Source:
    """Return the source of a pipeline's labels: key, value, labelled_at."""
    labels = spec.labels
    return open_source(
        labels.uri or spec.source.uri,
        feed=labels if labels.uri else spec.source,
        table=labels.table,
        key=labels.key,
        cursor=labels.labelled_at,
        columns=(labels.key, labels.value, labels.labelled_at),
        types=types,
        max_value_bytes=spec.source.max_row_bytes,
    )


def check_schema(
    spec: PipelineSpec, source_schema: pa.Schema, label_schema: pa.Schema, *, transform: Transform | None = None
) -> tuple[Finding, ...]:
    """Return a finding for each column that is missing, or of a type that its use does not allow.

    Parameters
    ----------
    spec
        The pipeline.
    source_schema, label_schema
        As ``Source.schema`` gives them.
    transform
        ``features.transform``; it is called on a table without rows to learn its columns.
    """
    schema, complete, found = source_schema, spec.features.transform is None, list[Finding]()
    if transform is not None:
        try:
            schema, complete = transform(source_schema.empty_table()).schema, True
        except SpecError as error:
            found.append(Finding("error", "features.transform", error.message, error.hint))
    found += _columns(spec, source_schema, schema, complete=complete)
    found += _labels(spec, source_schema, label_schema)
    return tuple(found)


def _columns(spec: PipelineSpec, source: pa.Schema, schema: pa.Schema, *, complete: bool) -> Iterator[Finding]:
    """Check the names against the source's columns, or those after the transform; not ``complete``: as far as known."""
    features, names = spec.features, schema.names
    if spec.event_time not in source.names:
        yield _missing("event_time", spec.event_time, source.names)
    elif not pa.types.is_timestamp(source.field(spec.event_time).type):
        yield Finding("error", "event_time", f"{spec.event_time!r} is {source.field(spec.event_time).type}, not a time")
    for column in spec.columns:
        if column not in source.names:
            yield _missing(f"columns.{column}", column, source.names)
    if spec.baseline is not None:
        if spec.baseline not in source.names:
            yield _missing("baseline", spec.baseline, source.names)
        elif not _is_number(source.field(spec.baseline).type):
            yield Finding("error", "baseline", f"{spec.baseline!r} is {source.field(spec.baseline).type}, not a score")
    uses = [("features.numeric", name) for name in features.numeric]
    uses += [("features.categorical", name) for name in features.categorical]
    for at, window in enumerate(features.windows):
        uses += [(f"features.windows[{at}].keys", name) for name in window.keys]
        uses += [(f"features.windows[{at}].column", window.column)] if window.column else []
    measured = {window.column for window in features.windows if set(window.statistics) - _OF_ANY_TYPE}
    for where, name in uses:
        if name in names:
            numeric = where.endswith(".numeric") or (where.endswith(".column") and name in measured)
            yield from _use(where, name, schema.field(name).type, numeric=numeric)
        elif complete:
            yield _missing(where, name, names)
    made = list(dict.fromkeys(name for _, name in uses if name not in names))
    if made and not complete:
        near = ((name, difflib.get_close_matches(name, names, n=1, cutoff=0.8)) for name in made)
        meant = "; ".join(f"{name!r}: did you mean {found[0]!r}?" for name, found in near if found)
        message = f"it has to make what is not in the source: {', '.join(made)}"
        yield Finding("info", "features.transform", message, meant)
    for where, name in uses[: len(features.numeric) + len(features.categorical)]:
        if name == spec.source.key:
            yield Finding(
                "warning",
                where,
                f"{name!r} is the key: it tells rows apart and says nothing of new ones",
                "leave it out",
            )
        if name == spec.labels.value and spec.labels.table == spec.source.table and spec.labels.uri is None:
            yield Finding("error", where, f"{name!r} is the label itself", "leave it out")


def _use(where: str, name: str, kind: pa.DataType, *, numeric: bool) -> Iterator[Finding]:
    if numeric and not (_is_number(kind) or pa.types.is_boolean(kind)):
        hint = "make it a categorical feature, or a number of it in features.transform"
        yield Finding("error", where, f"{name!r} is {kind}, not a number", hint)
    elif where.endswith((".column", ".keys")) and pa.types.is_nested(kind):
        yield Finding("error", where, f"{name!r} is {kind}, which cannot be compared", "make a column of a part of it")
    if where.endswith((".categorical", ".keys")) and (pa.types.is_floating(kind) or pa.types.is_timestamp(kind)):
        hint = "make it a numeric feature, or groups of it in features.transform"
        yield Finding("warning", where, f"{name!r} is {kind}: nearly every value is a category of its own", hint)


def _labels(spec: PipelineSpec, source: pa.Schema, schema: pa.Schema) -> Iterator[Finding]:
    labels = spec.labels
    value, key = (schema.field(name).type for name in (labels.value, labels.key))
    if not (_is_number(value) or pa.types.is_boolean(value)):
        yield Finding("error", "labels.value", f"{labels.value!r} is {value}; allowed: boolean, or the numbers 0 and 1")
    rows_key = source.field(spec.source.key).type
    if pa.types.is_integer(key) != pa.types.is_integer(rows_key):
        message = f"{labels.key!r} is {key}, but the key of the rows, {spec.source.key!r}, is {rows_key}"
        yield Finding("error", "labels.key", message, "no label would find its row: read a view that casts one of them")


def _missing(where: str, name: str, known: Collection[str]) -> Finding:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean {near[0]!r}? " if near else ""
    names = sorted(known)
    shown = ", ".join(names[:_SHOWN_NAMES]) + (", ..." if len(names) > _SHOWN_NAMES else "")
    return Finding("error", where, f"there is no column {name!r}", f"{meant}columns: {shown}")


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))


def _transform_findings(spec: PipelineSpec, directory: Path) -> Iterator[Finding]:
    if spec.features.transform is None:
        return
    module = spec.features.transform.partition(":")[0]
    file = own_file(module, directory=directory)
    # Only the first part: looking for a module in a package imports the package.
    if not file.is_file() and importlib.util.find_spec(module.partition(".")[0]) is None:
        yield Finding(
            "error",
            "features.transform",
            f"there is no module {module!r}",
            f"put it beside the pipeline file, as {file}",
        )
