"""The pipeline file as frozen values. Reading the file, its errors and ``${VAR}`` are in ``specfile.py``.

One pydantic model a section; unknown keys are refused. Checks that need only the file are here; those that need the
source's schema are in ``sources/``.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    SecretStr,
    model_validator,
)

from engine.errors import SpecError
from engine.refs import content_hash
from engine.units import format_duration, parse_bytes, parse_duration

Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0)]
_LEAST_MEMORY = 2**20  # less is a unit that was forgotten


def _parse_memory(value: Any) -> int | str:
    if value == "auto":
        return "auto"
    size = parse_bytes(value)
    if size <= 0:
        raise ValueError("it should be greater than 0")
    if size < _LEAST_MEMORY:
        raise ValueError(f"{size} bytes hold no interpreter; write a unit, for example 512MiB")
    return size


Memory = Annotated[int | Literal["auto"], PlainValidator(_parse_memory)]
Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str),
]
Uri = Annotated[SecretStr, PlainSerializer(lambda value: value.get_secret_value(), when_used="json")]
"""A connection string: never shown (``repr`` masks it), kept in the JSON that crosses the child's pipe."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_\-]*$", max_length=64)]
Share = Annotated[float, Field(ge=0.0, le=1.0)]


FILE, READ_AT, FILE_KEY = "_file", "_read_at", "_key"
"""Columns that rows of files have beside their own: the file's name, when that version of it was read, and, where the
pipeline names no key, file and row number."""


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


DATABASES = ("sqlite://", "postgresql://", "postgres://", "adbc+")
"""How the URI of a database begins; every other URI names files."""


class CsvSpec(_Section):
    """How CSV files are written."""

    delimiter: str = Field(",", min_length=1, max_length=1)
    quote: str = Field('"', min_length=1, max_length=1)
    header: bool = Field(True, description="the first line names the columns; else they are column_1, column_2, ...")
    nulls: tuple[str, ...] = Field((), description="texts that mean null, beside an empty field")


class _FeedSpec(_Section):
    """What rows and labels have in common: where they come from, and how late they may be."""

    format: Literal["parquet", "csv", "ndjson", "arrow", "delta"] | None = Field(
        None, description="of files; default: by their suffix"
    )
    csv: CsvSpec = CsvSpec()
    types: dict[str, Literal["integer", "float", "boolean", "time", "text"]] = Field(
        default_factory=dict, description="of columns in CSV and NDJSON files; default: as their first rows look"
    )
    lag: Duration = Field(
        timedelta(0), description="how far behind the watermark rows are read again, for those that came late"
    )


class SourceSpec(_FeedSpec):
    """Where the rows come from."""

    uri: Uri = Field(
        description="sqlite:///path/to.db, postgresql://user@host/database, adbc+driver:..., or files: a path, a glob, "
        "a directory, an object store's URI, a Delta table"
    )
    table: str = Field(description="table or view; schema.table where the database has schemas")  # files: none
    key: str = Field(description="the column that identifies a row")  # of files by default file and row
    cursor: str = Field(
        description="a timestamp that grows with every insert and update of a row"
    )  # of files: _read_at
    on_conflict: Literal["newest", "keep_first", "fail"] = Field(
        "newest", description="what becomes of a row whose key has come before: the newest by cursor counts, or ..."
    )
    max_row_bytes: Bytes = Field(16 * 2**20, description="a row larger than this goes to quarantine")
    max_quarantine_share: Share = Field(
        0.5, description="of the rows of a slice; above it the run stops before it commits"
    )
    allow: tuple[Literal["dropped", "narrowed", "retyped", "key"], ...] = Field(
        (), description="changes of the source's schema that are not to stop a run"
    )

    @property
    def is_files(self) -> bool:
        """Whether the rows come from files."""
        return not self.uri.get_secret_value().startswith(DATABASES)

    @model_validator(mode="before")
    @classmethod
    def _for_files(cls, value: Any) -> Any:
        """Fill in what only files may leave out."""
        uri = value.get("uri") if isinstance(value, dict) else None
        text = uri.get_secret_value() if isinstance(uri, SecretStr) else uri
        if not isinstance(text, str) or text.startswith(DATABASES):
            return value
        filled = {"table": "", "key": FILE_KEY, "cursor": READ_AT}
        return {**value, **{name: default for name, default in filled.items() if not value.get(name)}}


class LabelsSpec(_FeedSpec):
    """Where the labels come from, and when they are known."""

    table: str = Field("", description="table or view; none for files")
    uri: Uri | None = Field(None, description="default: that of the source, with its format")
    key: str = Field(description="the key of the row that the label is of")
    value: str = Field(description="the label: boolean, or 0 and 1; null withdraws a label")
    labelled_at: str = Field(description="when the label was written: the cursor of this source; of files _read_at")
    delay: Duration = Field(timedelta(0), description="a label counts at event time + delay at the earliest")
    absent: Literal["negative", "unknown"] = Field(
        "unknown", description="what a row without a label is, once its delay has passed"
    )


class ColumnSpec(_Section):
    """When a column's value becomes known."""

    known: Literal["at_event", "after"] = "at_event"


PREPARED_COLUMNS = frozenset({"key", "event_time", "baseline", "_label"})
"""What a prepared row, or a labelled one, has beside its features."""

LABEL_EVENT_COLUMNS = frozenset({"key", "event_time", "known_at", "labelled_at", "value"})
"""What each row of ``label_events`` has beside the keys of its windows."""


class WindowSpec(_Section):
    """Statistics of earlier rows, or of earlier labels, with the same key.

    One feature for each statistic and length, named ``<over>_<keys>_<length>_<statistic>``
    (``labels_origin_dest_3h_rate``),
    with ``_<column>`` before the statistic for events: ``events_origin_3h_distance_mean``.
    """

    over: Literal["events", "labels"]
    keys: tuple[str, ...] = Field(min_length=1)
    lengths: tuple[Duration, ...] = Field(min_length=1)
    statistics: tuple[
        Literal["count", "sum", "mean", "std", "rate", "since", "ratio", "min", "max", "distinct"], ...
    ] = Field(min_length=1)
    column: str | None = Field(None, description="the measured column; not for labels, nor for count and since")
    gap: Duration | None = Field(None, description="default: features.gap")
    null_keys: Literal["own", "exclude"] = Field(
        "own", description="rows without a key see one another (own), or see nothing (exclude)"
    )
    same_instant: bool = Field(False, description="with gap 0: the row itself and others at its instant count, too")

    @model_validator(mode="after")
    def _measure_fits(self) -> Self:
        extremes = {"min", "max"} & set(self.statistics)
        measured = extremes | ({"sum", "mean", "std", "ratio", "distinct"} & set(self.statistics))
        if self.over == "events" and "rate" in self.statistics and self.column is None:
            raise ValueError("a rate of events needs a boolean column")
        if self.over == "events" and measured and self.column is None:
            raise ValueError(f"{', '.join(sorted(measured))} of events need a column")
        if self.over == "labels" and self.column is not None:
            raise ValueError("a window over labels measures the label; leave column out")
        if self.over == "labels" and "ratio" in self.statistics:
            raise ValueError("a ratio is of the row's own value, and its label is not known yet; use rate")
        if self.over == "labels" and extremes:
            names = " and no ".join(sorted(extremes, reverse=True))
            raise ValueError(f"a window over labels has no {names}: a label is true or false; use rate")
        if self.over == "labels" and "distinct" in self.statistics:
            raise ValueError("a window over labels has no distinct: a label is true or false; use count and rate")
        if self.over == "labels" and self.same_instant:
            raise ValueError("same_instant is for events: a label known at once would be its own target")
        own = sorted(LABEL_EVENT_COLUMNS & set(self.keys))
        if self.over == "labels" and own:
            raise ValueError(f"a window over labels has no key {own[0]!r}: label records have a column of that name")
        if any(length <= timedelta(0) for length in self.lengths):
            raise ValueError("a window's length is longer than 0")
        return self

    def names(self) -> tuple[tuple[timedelta, str, str], ...]:
        """Return (length, statistic, feature name) for each feature; ``since`` has one, for the longest length."""
        prefix = "_".join((self.over, *self.keys))
        measure = f"_{self.column}" if self.column else ""
        out = []
        for length in self.lengths:
            for statistic in self.statistics:
                if statistic == "since" and length != max(self.lengths):
                    continue
                middle = measure if statistic not in ("count", "since") else ""
                out.append((length, statistic, f"{prefix}_{format_duration(length)}{middle}_{statistic}"))
        return tuple(out)


class FeaturesSpec(_Section):
    """What the model sees."""

    numeric: tuple[str, ...] = ()
    categorical: tuple[str, ...] = ()
    gap: Duration = Field(timedelta(0), description="how long before a row's event time its windows end")
    windows: tuple[WindowSpec, ...] = ()
    transform: str | None = Field(
        None,
        pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$",
        description="module:function on a polars LazyFrame, row-wise; it may add columns",
    )

    def gap_of(self, window: WindowSpec) -> timedelta:
        """Return the gap that ``window`` uses."""
        return self.gap if window.gap is None else window.gap

    def window_names(self) -> tuple[str, ...]:
        """Return the names of all window features, in the file's order."""
        return tuple(name for window in self.windows for _, _, name in window.names())

    def names(self) -> tuple[str, ...]:
        """Return the names of all features: numeric, categorical, windows."""
        return (*self.numeric, *self.categorical, *self.window_names())


class LearnerSpec(_Section):
    """Which learner, with its own parameters."""

    kind: Literal["lightgbm", "sgd"] = "lightgbm"
    parameters: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    sampling_rate: float | None = Field(
        None, gt=0.0, le=1.0, description="share of negatives kept; default: the largest that fits the budget"
    )


class SplitSpec(_Section):
    """Time split: train | gap | calibration | validation | training's cut-off."""

    validation: Duration = Field(timedelta(days=30), description="the last span, for the gate")
    calibration: Duration = Field(timedelta(days=14), description="the span before it, for calibration and threshold")
    gap: Duration | None = Field(None, description="default: labels.delay")
    history: Duration | None = Field(None, description="how far back training reads; default: all")


class GateSpec(_Section):
    """What a candidate must show to become the challenger, on rows that neither it nor the champion has seen."""

    floors: dict[Literal["average_precision", "roc_auc", "precision", "recall", "f1", "lift"], float] = Field(
        default_factory=dict, description="absolute; lift is average precision over the base rate"
    )
    min_gain: float | None = Field(
        None, description="least gain in average precision over the champion; default: none, tolerance alone decides"
    )
    confidence: float = Field(
        0.8, gt=0.5, lt=1.0, description="of the paired bootstrap interval whose lower end must not be below -tolerance"
    )
    tolerance: float = Field(0.02, ge=0.0, description="how much average precision may fall, for a fresher model")
    bootstraps: int = Field(200, ge=20, le=10_000)


class OperatingPointSpec(_Section):
    """How the decision threshold is chosen: exactly one of these."""

    precision: Share | None = None
    recall: Share | None = None
    alert_rate: Share | None = Field(None, description="share of rows that raise an alert")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.precision, self.recall, self.alert_rate)) != 1:
            raise ValueError("give exactly one of precision, recall, alert_rate")
        return self


class ResourcesSpec(_Section):
    """What a run may take."""

    memory: Memory = Field(
        "auto", description="of a task's process tree; auto: two fifths of the host's or the container's"
    )
    disk: Bytes = 20 * 2**30
    threads: int = Field(2, ge=1, le=256)


class TriggersSpec(_Section):
    """When the model is trained again; each that holds is a recorded reason."""

    every: Duration | None = Field(None, description="time since the champion's training cut-off")
    new_rows: float | None = Field(None, gt=0.0, description="share of the rows it was trained on")
    new_labels: int | None = Field(None, gt=0, description="label records since it was trained")
    drift: float | None = Field(None, gt=0.0, description="largest population stability index of a feature")
    code: bool = Field(True, description="features, the code of their transform, or learner changed")


class PipelineSpec(_Section):
    """One model's lifecycle: ``pipelines/<name>.yaml``."""

    pipeline: Name
    workspace: str = Field(description="directory under which the pipeline's tables live")
    source: SourceSpec
    event_time: str = Field(description="when the thing that is predicted happens")
    labels: LabelsSpec
    columns: dict[str, ColumnSpec] = Field(default_factory=dict)
    baseline: str | None = Field(None, description="score column of the model in use before: champion number zero")
    features: FeaturesSpec
    learner: LearnerSpec = LearnerSpec()
    split: SplitSpec = SplitSpec()
    gate: GateSpec = GateSpec()
    operating_point: OperatingPointSpec = OperatingPointSpec(alert_rate=0.02)
    resources: ResourcesSpec = ResourcesSpec()
    triggers: TriggersSpec = TriggersSpec()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        after = {name for name, column in self.columns.items() if column.known == "after"}
        used = {*self.features.numeric, *self.features.categorical}
        for name in sorted(used & after):
            raise ValueError(f"features: {name!r} is known only after the event, so no feature may read it")
        for window in self.features.windows:
            if window.over == "events" and window.column in after:
                raise ValueError(f"features.windows: {window.column!r} is known only after the event")
            for key in window.keys:
                if key in after:
                    raise ValueError(f"features.windows: key {key!r} is known only after the event")
        names = self.features.names()
        own = {"key": self.source.key, "event_time": self.event_time, "baseline": self.baseline}
        for name in names:
            if name in PREPARED_COLUMNS and name != own.get(name):
                raise ValueError(
                    f"features: prepared rows have a column of their own called {name!r}; "
                    "give the feature another name in a transform, or in the source"
                )
            if names.count(name) > 1:
                raise ValueError(f"features: {name!r} is named twice")
        if not names:
            raise ValueError("features: there are none")
        return self

    def with_memory(self, text: str) -> Self:
        """Return the pipeline with another budget, such as ``300MiB`` or ``auto``.

        Raises
        ------
        SpecError
            It is no size.
        """
        try:
            memory = _parse_memory(text)
        except ValueError as error:
            raise SpecError(f"memory: {error}", hint="or auto: two fifths of what this host has") from None
        resources = self.resources.model_copy(update={"memory": memory})
        return self.model_copy(update={"resources": resources})

    @property
    def labels_are_files(self) -> bool:
        """Whether the labels come from files."""
        uri = self.labels.uri
        return self.source.is_files if uri is None else not uri.get_secret_value().startswith(DATABASES)

    @property
    def after_columns(self) -> tuple[str, ...]:
        """Names of the columns that are known only after the event."""
        return tuple(sorted(name for name, column in self.columns.items() if column.known == "after"))

    @property
    def feature_set(self) -> str:
        """The hash that names what ``prepared`` holds: features, event time, labels' delay, baseline."""
        return content_hash(
            {
                # A choice at its default says nothing, so that a version which adds one prepares nothing anew.
                "features": self.features.model_dump(mode="json", exclude_defaults=True),
                "event_time": self.event_time,
                "delay": format_duration(self.labels.delay),
                "after": self.after_columns,
                "baseline": self.baseline,
            }
        )

    @property
    def split_gap(self) -> timedelta:
        """The gap between training and what it is measured on."""
        return self.labels.delay if self.split.gap is None else self.split.gap
