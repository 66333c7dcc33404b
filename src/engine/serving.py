"""One row's features, as prepare would write them, for programs that serve rows one by one; and the champion's score.

Nothing is written but tiers, and no lock is held. Rows by the million are prepare's and score's: ``stages/``.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from numbers import Integral
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from engine.batching import Workspace, read_batches
from engine.bundle import Bundle, spec_for
from engine.errors import HeadraceError, RowError
from engine.features.row_slices import prepared_rows, time_of
from engine.features.segments import SegmentRef, read_times
from engine.features.transform import transform_of
from engine.features.windows import WindowReader
from engine.ledger import Ledger, champion_of, trained
from engine.preparing.state import State
from engine.preparing.windowed_rows import LiveSegments
from engine.spec import PipelineSpec
from engine.stage import StageContext
from engine.units import parse_time

_SHOWN = 60  # characters of a value that is of another type


@dataclass(frozen=True)
class PreparedThrough:
    """How fresh the segments are: what came later is in no window."""

    rows: datetime | None  # the newest event time that is prepared
    labels: datetime | None  # when the newest label record became known; None: there are none


class RowFeatures:
    """A pipeline's features of single rows, from the segments that were there when it was opened.

    Parameters
    ----------
    context
        Of the pipeline; its clock is not looked at.
    live
        What is prepared.
    tiers
        Where tiers of segments go, which many lookups are then searched in; removed by ``close``.

    Notes
    -----
    Several threads may ask at once. Segments are opened when a row's windows reach them, and stay mapped. What is
    prepared after ``open`` is not seen: open again to see it, and after a week in any case, since ``headrace vacuum``
    deletes segments that have been replaced.
    """

    def __init__(self, context: StageContext, live: LiveSegments, tiers: TemporaryDirectory[str]) -> None:
        spec = context.spec
        schema = context.workspace.table("raw").schema()
        if schema is None:
            raise LookupError("raw has no schema though rows of it are prepared")
        self._spec, self._workspace, self._live, self._tiers = spec, context.workspace, live, tiers
        self._raw = pa.schema([field for field in schema if field.name not in spec.after_columns])
        types = State.of(context).record.get("row_types")
        self._transform = transform_of(spec, directory=context.directory, types=types)
        self._needed = _needed(spec)
        self._readers: dict[tuple[str, tuple[str, ...]], WindowReader] = {}
        for name in dict.fromkeys((window.over, window.keys) for window in spec.features.windows):
            own = Path(tiers.name) / str(len(self._readers))
            own.mkdir()
            self._readers[name] = WindowReader([], root=context.workspace.segments, scratch=own)
        self._lock = Lock()
        self._known: set[str] = set()  # paths of the readers' segments
        self._since: int | None = None  # they are all that windows of rows from here on reach

    @classmethod
    def open(cls, context: StageContext, *, scratch: Path | None = None) -> RowFeatures:
        """Return the features of the context's pipeline as it is prepared now; to be closed, or used with ``with``.

        Parameters
        ----------
        scratch
            Directory for tiers; default: that of the system (``TMPDIR``). Not the workspace's, which is emptied.

        Raises
        ------
        SpecError
            The transform is not there, or its code is another than rows are prepared by.
        HeadraceError
            No rows are prepared.
        """
        live = LiveSegments.of(context)
        if not live.spans:
            raise HeadraceError(
                f"{context.spec.pipeline}: no rows are prepared for these features in {context.workspace.root}",
                hint="headrace run prepares them",
            )
        tiers = TemporaryDirectory(prefix="headrace-tiers-", dir=scratch)
        try:
            return cls(context, live, tiers)
        except BaseException:
            tiers.cleanup()
            raise

    def close(self) -> None:
        """Remove the tiers; no row may be asked for after that."""
        self._tiers.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def prepared_through(self) -> PreparedThrough:
        """How fresh the segments are."""
        known = [chunk.maximum["known_at"] for chunk in self._live.labels if "known_at" in chunk.maximum]
        newest = time_of(max(span.high for span, _ in self._live.spans) - 1)
        return PreparedThrough(newest, parse_time(max(known)) if known else None)

    def features(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Return all features of a row by name: numeric, categorical, windows, in the file's order.

        Parameters and errors are those of ``prepared``.
        """
        found = self.prepared(row)
        return {name: found.column(name)[0].as_py() for name in self._spec.features.names()}

    def prepared(self, row: Mapping[str, Any]) -> pa.Table:
        """Return a row as prepare would write it, to the bit: a table of one row, which a bundle can score.

        Parameters
        ----------
        row
            Values by column of ``raw``: the event time, the columns of features, the keys of windows, the columns of
            ratios, and what the transform reads. Times may be ISO 8601 text; without a zone they are UTC. The row's own
            key may be left out, and other columns are not looked at.

        Raises
        ------
        RowError
            A column is missing, or has a value of another type than in ``raw``.
        SpecError
            The transform fails.
        TableError
            A segment is missing or damaged.
        """
        rows = self._transform(self._given(row))
        missing = [name for name in self._needed if name not in rows.column_names]
        if missing:
            raise self._lacks(missing, row)
        of_row = self._spec.event_time
        if rows.column(of_row).null_count:
            raise RowError(f"the row has no {of_row}, its event time", hint="a window needs a row's time")
        self._reach(int(read_times(rows.column(of_row), name=of_row)[0]))
        for name in (self._spec.source.key, self._spec.baseline):  # no feature is made of them
            if name is not None and name not in rows.column_names:
                rows = rows.append_column(name, pa.nulls(1, _type_of(self._raw, name)))
        return prepared_rows(rows, self._spec, self._readers)

    def stored(self, key: Any) -> dict[str, Any]:
        """Return the newest version of a row of ``raw``, to be looked up; reads the chunks that may hold it.

        Parameters
        ----------
        key
            The row's, or as text.

        Raises
        ------
        RowError
            There is no such row.
        """
        name, cursor = self._spec.source.key, self._spec.source.cursor
        try:
            wanted = pa.scalar(key).cast(self._raw.field(name).type)
        except pa.ArrowException:
            raise RowError(f"{name} is {self._raw.field(name).type}, and {_short(key)} is none") from None
        value = wanted.as_py()
        chunks = [chunk for chunk in self._workspace.table("raw").chunks() if chunk.may_hold(name, value, None)]
        paths = [chunk.path for chunk in chunks if name not in chunk.minimum or chunk.minimum[name] <= value]
        newest: dict[str, Any] | None = None
        for batch in read_batches(paths, columns=self._raw.names, schema=self._raw):
            for row in batch.filter(pc.equal(batch.column(name), wanted)).to_pylist():
                if newest is None or row[cursor] >= newest[cursor]:
                    newest = row
        if newest is None:
            raise RowError(
                f"there is no row with {name} {_short(value)} in raw", hint="headrace extract reads new rows"
            )
        return newest

    def _given(self, row: Mapping[str, Any]) -> pa.Table:
        """Return a row with the types of ``raw``, without what it does not need."""
        missing = [name for name in self._needed if name in self._raw.names and name not in row]
        if missing:
            raise self._lacks(missing, row)
        wanted = {*self._needed, self._spec.source.key, self._spec.baseline}
        fields = [
            field
            for field in self._raw
            if field.name in row and (field.name in wanted or self._spec.features.transform is not None)
        ]
        return pa.table([_array(row[field.name], field) for field in fields], schema=pa.schema(fields))

    def _lacks(self, missing: list[str], row: Mapping[str, Any]) -> RowError:
        others = [str(name) for name in row if name not in self._raw.names]
        close = difflib.get_close_matches(missing[0], others, n=1)
        return RowError(
            f"the row lacks {', '.join(missing)}",
            hint=f"{missing[0]}: did you mean {close[0]!r}?" if close else "give null where a value is not known",
            details={"missing": missing},
        )

    def _reach(self, time: int) -> None:
        """Let the readers know the segments that windows of a row at ``time`` may overlap."""
        with self._lock:
            if not self._readers or (self._since is not None and time >= self._since):
                return
            found = self._live.in_reach(time, None if self._since is None else self._since - self._live.back)
            for (over, keys), reader in self._readers.items():
                refs = [SegmentRef.from_json(value) for value in found[over]]
                reader.extend([ref for ref in refs if ref.keys == keys and ref.path not in self._known])
            self._known |= {value["path"] for refs in found.values() for value in refs}
            self._since = time


@dataclass(frozen=True)
class Verdict:
    """What a model says of a row."""

    score: float  # calibrated probability
    alert: bool  # score at or above the decision threshold


@dataclass(frozen=True)
class Champion:
    """The model in use, loaded."""

    version: int
    bundle: Bundle

    @classmethod
    def of(cls, workspace: Workspace) -> Champion | None:
        """Return the champion of a workspace, None before the first.

        Raises
        ------
        RegistryError
            Its bundle is missing.
        """
        history = Ledger(workspace).history()
        champion = champion_of(history)
        facts = None if champion is None else trained(history, champion.version)
        if champion is None or facts is None:
            return None
        return cls(champion.version, Bundle.load(workspace.root / facts.details["bundle"]))

    def spec(self, spec: PipelineSpec) -> PipelineSpec:
        """Return the pipeline as the model knows it: its features are not those of a file that was edited since."""
        return spec_for(self.bundle, spec)

    def verdict(self, prepared: pa.Table) -> Verdict:
        """Return what it says of a row that ``RowFeatures.prepared`` returned."""
        score = float(self.bundle.score(prepared)[0])
        return Verdict(score, score >= self.bundle.threshold)


def _needed(spec: PipelineSpec) -> list[str]:
    """Return the columns without which a row's features cannot be made."""
    features = spec.features
    names = [spec.event_time, *features.numeric, *features.categorical]
    for window in features.windows:
        names += window.keys
        names += [window.column] if window.column is not None and "ratio" in window.statistics else []
    return list(dict.fromkeys(names))


def _type_of(schema: pa.Schema, name: str) -> pa.DataType:
    return schema.field(name).type if name in schema.names else pa.null()


def _array(value: Any, field: pa.Field) -> pa.Array:
    """Return a value as ``raw`` would have it, in an array of its own."""
    try:
        return pa.array([_plain(value, field.type)], field.type)
    except (pa.ArrowException, TypeError, ValueError, ArithmeticError):
        raise RowError(
            f"{field.name} is {_short(value)}, and of type {field.type} in raw",
            hint="give it as the source does; times as ISO 8601 text",
        ) from None


def _plain(value: Any, kind: pa.DataType) -> Any:
    """Return a value as Arrow takes it for a type: JSON has no times and no decimals, and 5 for 5.0."""
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) and not pa.types.is_boolean(kind):
        raise TypeError
    if pa.types.is_timestamp(kind):
        if isinstance(value, date) and not isinstance(value, datetime):
            value = datetime.combine(value, time(), tzinfo=UTC)
        if not isinstance(value, str | datetime):
            raise TypeError
        return parse_time(value)
    if pa.types.is_date(kind):
        return value if isinstance(value, date) else date.fromisoformat(value)
    if pa.types.is_integer(kind):
        if value != int(value):  # Arrow would cut 1.5
            raise ValueError
        return int(value)
    if pa.types.is_decimal(kind):
        return Decimal(repr(float(value))) if isinstance(value, float) else Decimal(value)
    if pa.types.is_floating(kind) and isinstance(value, Integral | Decimal):
        return float(value)  # rounded as extraction does
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
