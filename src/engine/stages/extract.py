"""Extract: new rows of the source into ``raw``, new label records into ``labels``, what does not fit into
``quarantine``.

A range is planned here; reading it is ``sources/reading.py``, and taking out what the table has already
``sources/settling.py``. The position belongs to the commit that holds the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import pyarrow as pa

from engine.batching import Table
from engine.errors import SourceError
from engine.layout import largest_row_bytes
from engine.memory.disk import require_room
from engine.memory.projection import Projection
from engine.refs import ChunkRef, Task, TaskResult
from engine.sources import Seen, Source, Window
from engine.sources.admission import QUARANTINE_SCHEMA, table_schema
from engine.sources.check import open_feed
from engine.sources.contracts import Contract, first_contract, renewed
from engine.sources.footprints import project_reading, project_settling
from engine.sources.hours import Hours, hours_with, hours_without
from engine.sources.known_rows import spilled_bytes
from engine.sources.protocol import Extent
from engine.sources.seen_files import SCHEMA as FILES_SCHEMA
from engine.sources.seen_files import files_table, seen_files, write_files
from engine.spec import FILE_KEY, PipelineSpec
from engine.stage import Forecast, Outcome, Plan, StageContext
from engine.units import format_time, parse_time

SLICE_ROWS = 10_000_000
"""Rows of one commit, at most: a first load of a year goes in commits of bounded size."""

_SPILLED = "what joins spill of a slice"
_EVER = datetime(9999, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class ExtractStage:
    """One of the two extractions of a pipeline: its rows or its label records.

    With ``since`` and ``until`` it is a backfill: what the source shows between these cursors is read again, and what
    the table lacks of it is added. The watermark stays where it is.
    """

    what: Literal["raw", "labels"]
    since: datetime | None = None
    until: datetime | None = None
    name: str = "extract"

    def app(self, context: StageContext) -> str:
        """Return the application id of the table's commits."""
        del context
        return f"extract:{self.what}"

    def primary(self, context: StageContext) -> Table:
        """Return the table that the rows go to."""
        return context.workspace.table(self.what)

    def next_plan(self, context: StageContext) -> Mapping[str, Any] | None:
        """Return the next range: what is new, with a lag what may have come late, or the next part of a backfill."""
        last = last_record(context, self.what)
        window = _next_window(self, context, last)
        if window is None:
            return None
        n = self.primary(context).transaction(self.app(context))
        seen = Seen(
            position=window.position,
            files=lambda: seen_files(context.workspace, self.what, through_n=n),
        )
        asked = Window(until=window.until, since=window.since, limit_rows=SLICE_ROWS)
        with open_feed(context.spec, self.what, types=_types(last)) as source:
            bounds = source.next_range(seen, asked)
            if bounds is None:
                if last is None:
                    _explain_nothing(context, source, self.what)
                return None
        return {
            "range": dict(bounds),
            "kind": window.kind,
            "since": None if window.since is None else format_time(window.since),
            "until": format_time(window.until),
            "asked": window.asked,
        }

    def phase(
        self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]
    ) -> Sequence[tuple[Task, Projection]]:
        """Return the task that reads the range; then, where the table may hold some of it, the one that settles it."""
        if not done:
            return (self._reading(context, plan),)
        if len(done) > 1:
            return ()
        task = self._settling(context, plan, done[0][0])
        return () if task is None else (task,)

    def finish(self, context: StageContext, plan: Plan, done: Sequence[Sequence[TaskResult]]) -> Outcome:
        """Record the new position; publish files and quarantine first, then the table."""
        read = done[0][0].outputs
        settled = done[1][0].outputs if len(done) > 1 else None
        chunks = _refs((settled or read)["chunks"])
        bad = _refs((settled or read)["quarantine"])
        contract = Contract.from_json(read["contract"])
        table, quarantine = self.primary(context), context.workspace.table("quarantine")
        schema = table_schema(context.spec, self.what, contract.stored)
        files = write_files(context.workspace, self.what, n=plan.n, files=read["files"]) if read["files"] else []
        app, rows = self.app(context), done[-1][0].rows_out

        def publish() -> None:
            if read["files"]:
                side = files_table(context.workspace, self.what)
                side.commit(app=f"{app}:files", n=plan.n, schema=FILES_SCHEMA, add=files)
            quarantine.commit(
                app=f"{app}:quarantine",
                n=plan.n,
                schema=QUARANTINE_SCHEMA,
                add=bad,
                remove=settled["quarantine_remove"] if settled else (),
            )
            table.commit(
                app=app,
                n=plan.n,
                schema=schema,
                add=chunks,
                remove=settled["remove"] if settled else (),
                retyped=bool(settled and settled["retyped"]),
            )

        record = {
            **_progress(plan, read, last_record(context, self.what)),
            "contract": read["contract"],
            "rows": rows,
            "memory_bytes": sum(ref.memory_bytes for ref in chunks),
            "largest_row_bytes": max(
                [largest_row_bytes(context.workspace, app), *(ref.largest_row_bytes for ref in chunks)]
            ),
            **_touched(read, settled),
        }
        outputs = {
            "rows": rows,
            "table": self.what,
            "position": record["position"],
            "kind": plan.bounds["kind"],
            "known_rows": settled["dropped_rows"] if settled else 0,
            **({"files": read["counts"]} if read["counts"] else {}),
        }
        quarantined = done[-1][0].rows_quarantined
        return Outcome(outputs=outputs, record=record, publish=publish, rows_out=rows, rows_quarantined=quarantined)

    def _reading(self, context: StageContext, plan: Plan) -> tuple[Task, Projection]:
        last = last_record(context, self.what)
        with open_feed(context.spec, self.what, types=_types(last)) as source:
            contract = _contract(context.spec, self.what, last, source.schemas(plan.bounds["range"]))
            extent = source.extent(plan.bounds["range"], batch_bytes=context.budget.batch_bytes)
        inputs = {
            "range": plan.bounds["range"],
            "until": plan.bounds["until"],
            "what": self.what,
            "n": plan.n,
            "contract": contract.to_json(),
            "spec": context.spec_hash(),
        }
        task = Task(self.name, f"{self.what}.{plan.n}", "engine.sources.reading:run", inputs)
        if last is not None and last["rows"] and extent.row_bytes:
            extent = replace(extent, row_bytes=max(extent.row_bytes, last["memory_bytes"] / last["rows"]))
        reserved = context.learned.reserved_bytes(self.name)
        return task, project_reading(
            reserved, context.budget, len(contract.stored), extent, is_files=_is_files(context.spec, self.what)
        )

    def _settling(self, context: StageContext, plan: Plan, read: TaskResult) -> tuple[Task, Projection] | None:
        source = context.spec.source
        contract = Contract.from_json(read.outputs["contract"])
        # Older rows go only for files that the slice came to: it may have ended before the others.
        came = {file["name"] for file in read.outputs["files"]}
        gone = plan.bounds["range"].get("replaces", ()) if self.what == "raw" else ()
        replaces = [name for name in gone if name in came]
        again = plan.bounds["kind"] != "new"
        made_key = source.is_files and self.what == "raw" and source.key == FILE_KEY
        identify = not made_key and (again or _is_files(context.spec, self.what) or source.on_conflict != "newest")
        schema = table_schema(context.spec, self.what, contract.stored)
        if not (identify or again or replaces or self.primary(context).is_retyped_by(schema)):
            return None
        inputs = {
            "what": self.what,
            "n": plan.n,
            "contract": read.outputs["contract"],
            "chunks": read.outputs["chunks"],
            "quarantine": read.outputs["quarantine"],
            "identify": identify,
            "replaces": replaces,
            "again": [plan.bounds["since"], plan.bounds["until"]] if plan.bounds["kind"] == "backfill" else None,
            "spec": context.spec_hash(),
            "imports": ["duckdb"],
        }
        chunks = _refs(read.outputs["chunks"])
        before = largest_row_bytes(context.workspace, self.app(context))
        largest = max([before, *(ref.largest_row_bytes for ref in chunks)])
        rows = sum(ref.rows for ref in chunks)
        projection = project_settling(context, rows=rows, largest=largest)
        inputs["join_bytes"] = projection.terms["joins"]
        needed = spilled_bytes(rows, limit_bytes=projection.terms["joins"])
        require_room(context.workspace.scratch, needed, context.budget.disk_bytes, what=_SPILLED)
        return Task("extract.settle", f"{self.what}.{plan.n}", "engine.sources.settling:run", inputs), projection


def forecast(context: StageContext) -> list[Forecast]:
    """Return what reading a slice of rows takes, and settling one where that is needed.

    Raises
    ------
    SourceError
        Nothing was extracted yet, and the source cannot be reached for its columns.
    """
    last = last_record(context, "raw")
    if last is None:
        with open_feed(context.spec, "raw") as source:
            columns = len(source.schema())
    else:
        columns = len(Contract.from_json(last["contract"]).stored)
    reserved, is_files = context.learned.reserved_bytes("extract"), context.spec.source.is_files
    reading = project_reading(reserved, context.budget, columns, Extent(), is_files=is_files)
    rows = SLICE_ROWS
    found = [Forecast(reading, rows)]
    source_spec = context.spec.source
    if source_spec.lag or source_spec.is_files or source_spec.on_conflict != "newest":
        projection = project_settling(context, rows=rows)
        known = min(rows, context.workspace.table("raw").rows())  # of a table that is small a slice is, too
        disk = spilled_bytes(known, limit_bytes=projection.terms["joins"])
        found.append(Forecast(projection, rows, disk_bytes=disk, on_disk=_SPILLED))
    return found


@dataclass(frozen=True)
class _NextWindow:
    """What the next slice may read, and why."""

    kind: str  # new, again (from the watermark less the lag), backfill
    position: Mapping[str, Any] | None
    since: datetime | None
    until: datetime
    asked: Mapping[str, Any]  # what names the run: slices of one run share it


def last_record(context: StageContext, what: str) -> Mapping[str, Any] | None:
    """Return what the last commit of ``raw`` or ``labels`` recorded, or None before the first."""
    n = context.workspace.table(what).transaction(f"extract:{what}")
    return context.workspace.journal.commit(f"extract:{what}", n) if n else None


def _next_window(stage: ExtractStage, context: StageContext, last: Mapping[str, Any] | None) -> _NextWindow | None:
    asked = {
        "as_of": format_time(context.as_of),
        "since": None if stage.since is None else format_time(stage.since),
        "until": None if stage.until is None else format_time(stage.until),
    }
    until = context.as_of if stage.until is None else min(stage.until, context.as_of)
    going_on = last is not None and last["asked"] == asked
    if stage.since is not None or stage.until is not None:
        since = stage.since or datetime(1, 1, 1, tzinfo=UTC)
        if going_on and last is not None:
            return _NextWindow("backfill", last["scan"], since, until, asked) if last["more"] else None
        return _NextWindow("backfill", None, since, until, asked)
    lag = _lag(context.spec, stage.what)
    if last is None or not lag or last["watermark"] is None:
        return _NextWindow("new", last["position"] if last else None, None, until, asked)
    if going_on:
        if not last["more"]:
            return None
        start = None if last["kind"] == "new" else parse_time(last["since"])
        return _NextWindow(last["kind"], last["scan"], start, until, asked)
    if last["loading"]:  # a first load goes on where it was cut off: nothing of it is late yet
        return _NextWindow("new", last["position"], None, until, asked)
    since = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=last["watermark"]) - lag
    return _NextWindow("again", None, since, until, asked)


def _progress(plan: Plan, read: Mapping[str, Any], last: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return how far the source has been read: the part of the record that the next plan goes on from."""
    kind, before = plan.bounds["kind"], (last or {})
    watermark, position = before.get("watermark"), before.get("position")
    newest = read["newest"]
    if kind != "backfill" and newest is not None and (watermark is None or newest >= watermark):
        watermark, position = newest, read["position"]
    elif kind == "new":
        position = read["position"]
    return {
        "kind": kind,
        "asked": plan.bounds["asked"],
        "since": plan.bounds["since"],
        "scan": read["position"],
        "more": read["more"],
        "loading": read["more"] if kind == "new" else bool(before.get("loading")),
        "position": position,
        "watermark": watermark,
    }


def _touched(read: Mapping[str, Any], settled: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return which hours of event time hold rows that were added or removed."""
    read_hours = Hours.from_json(read["hours"])
    hours, (low, high) = read_hours.by_hour(), read_hours.extent
    if settled is not None:
        dropped, removed = (Hours.from_json(settled[name]) for name in ("dropped", "removed"))
        hours = hours_with(hours_without(hours, dropped.by_hour()), removed.by_hour())
        low = min((value for value in (low, removed.extent[0]) if value is not None), default=None)
        high = max((value for value in (high, removed.extent[1]) if value is not None), default=None)
    return {"hours": hours, "event_minimum": low, "event_maximum": high}


def _contract(
    spec: PipelineSpec, what: str, last: Mapping[str, Any] | None, found: Sequence[tuple[str, pa.Schema]]
) -> Contract:
    section = spec.source if what == "raw" else spec.labels
    key, cursor = section.key, spec.source.cursor if what == "raw" else spec.labels.labelled_at
    if last is None:
        return first_contract(found, key=key, cursor=cursor)
    known = Contract.from_json(last["contract"])
    contract, _ = renewed(known, found, key=key, cursor=cursor, allow=spec.source.allow)
    return contract


def _types(last: Mapping[str, Any] | None) -> pa.Schema | None:
    return None if last is None else Contract.from_json(last["contract"]).stored


def _lag(spec: PipelineSpec, what: str) -> timedelta:
    """Return how far to look back; a listing of files misses none, however late it is."""
    if _is_files(spec, what):
        return timedelta(0)
    return spec.source.lag if what == "raw" else spec.labels.lag


def _is_files(spec: PipelineSpec, what: str) -> bool:
    return spec.source.is_files if what == "raw" else spec.labels_are_files


def _refs(values: Sequence[Mapping[str, Any]]) -> list[ChunkRef]:
    return [ChunkRef.from_json(value) for value in values]


def _explain_nothing(context: StageContext, source: Source, what: str) -> None:
    """Raise when the very first extraction finds no row: an empty table is never what was meant."""
    section = context.spec.source if what == "raw" else context.spec.labels
    name = f"table {section.table!r}" if section.table else "the source of files"
    if source.next_range(Seen(), Window(until=_EVER, limit_rows=1)) is not None:
        message = f"{name} has no row up to {format_time(context.as_of)}"
        raise SourceError(message, hint="its first row is later: give a later --as-of")
    if what == "raw":
        raise SourceError(f"{name} is empty", hint="is this the right place, and has it been filled?")
