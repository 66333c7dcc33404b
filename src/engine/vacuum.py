"""Deletes what a workspace no longer needs: old chunks, logs, plans, segments, and what killed runs left.

Kept are all that a live version of a table, a snapshot younger than ``keep``, a plan that is not committed, or a record
of how far a stage is needs. ``commits`` stays whole: prepare reads all of it for a new feature set, and ``runs`` is
rebuilt from it. ``bundles``, ``registry`` and ``profiles`` are not looked at.
"""

from __future__ import annotations

import json
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from engine.batching import Table, Workspace, read_batches
from engine.batching.retention import trim_log, unneeded_chunks
from engine.batching.tables import chunk_n
from engine.layout import feature_sets, label_events_table, pending_plan, prepared_app, prepared_table, primary_table
from engine.refs import StageReport
from engine.stage import Execute, StageContext, in_a_loop
from engine.upkeep import compact_tables

_LEAST = 8  # chunks that a table has to lose for a compaction to be worth a process
_NAMED = re.compile(r'[^"/\\]+\.(?:parquet|arrow)')
_SEGMENT = re.compile(r"(?:events-(\d{8})-(\d{4})|labels-(\d{8}))-")
_SPAN = re.compile(r"(\d{8})-rows\.(\d{4})-")


@dataclass
class Freed:
    """Files of one kind that were deleted, or would be."""

    files: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class VacuumReport:
    """What was deleted, by kind; with ``dry_run`` what would be, and nothing was changed."""

    keep: timedelta  # as asked, or the longest slice that ever ran if that is longer
    dry_run: bool
    freed: dict[str, Freed] = field(default_factory=dict)  # chunks, logs, plans, segments, leftovers
    compacted: StageReport | None = None  # None in a dry run

    @property
    def bytes(self) -> int:
        """All that was freed."""
        return sum(one.bytes for one in self.freed.values())

    def to_json(self) -> dict[str, Any]:
        """Return it for programs."""
        return {
            "dry_run": self.dry_run,
            "keep_seconds": self.keep.total_seconds(),
            "bytes": self.bytes,
            "freed": {kind: {"files": one.files, "bytes": one.bytes} for kind, one in self.freed.items()},
            "compactions": 0 if self.compacted is None else self.compacted.slices,
        }


def vacuum(
    context: StageContext, *, keep: timedelta, dry_run: bool = False, execute: Execute = in_a_loop
) -> VacuumReport:
    """Compact tables, cut their logs, and delete what is older than ``keep`` and needed by nothing.

    The caller holds the pipeline's lock: without it, what a run in progress has written looks like leftovers. Killed
    at any moment it leaves tables whole, and the next call goes on.

    Parameters
    ----------
    keep
        Readers that hold no lock, and snapshots, have so long. It is at least as long as the longest slice that ran.
    dry_run
        Only say what would be deleted. What compaction would set free is not in it: that is young.

    Raises
    ------
    HeadraceError
        A table cannot be read or compacted; no live chunk is ever touched.
    """
    workspace = context.workspace
    workspace.prepare()
    keep = max(keep, _longest_slice(workspace))
    compacted = None if dry_run else compact_tables(context, least=_LEAST, execute=execute)
    sweep = _Sweep(workspace, keep=keep, dry_run=dry_run)
    sweep.chunks()
    sweep.segments()
    sweep.plans()
    sweep.leftovers()
    return VacuumReport(keep=keep, dry_run=dry_run, freed=sweep.freed, compacted=compacted)


class _Sweep:
    """One pass over a workspace."""

    def __init__(self, workspace: Workspace, *, keep: timedelta, dry_run: bool) -> None:
        self._workspace = workspace
        self._keep = keep
        self._dry_run = dry_run
        self._before = time.time() - keep.total_seconds()
        journal = workspace.journal
        self._committed = {app: primary_table(workspace, app).transaction(app) for app in journal.apps()}
        pending = {app: pending_plan(workspace, app) for app in self._committed}
        self._resumable = any(plan is not None for plan in pending.values())
        # Tasks that have run are not run again when their plan is resumed: what they wrote is known only to their
        # records.
        texts = [path.read_text() for path in journal.tasks()] + [json.dumps(plan) for plan in pending.values()]
        self._named = {match for text in texts for match in _NAMED.findall(text)}
        self.freed = {kind: Freed() for kind in ("chunks", "logs", "plans", "segments", "leftovers")}

    def chunks(self) -> None:
        """Delete chunks that left their table, and the parts of its log that only they need."""
        for table in _tables(self._workspace):
            for name in unneeded_chunks(table, keep=self._keep):
                if Path(name).name not in self._named:
                    self._delete(table.path / name, "chunks")
            if not self._dry_run:
                log = table.path / "_delta_log"
                before = _sizes(log)
                trim_log(table, keep=self._keep)
                after = _sizes(log)
                gone = before.keys() - after.keys()
                self.freed["logs"].files += len(gone)
                self.freed["logs"].bytes += sum(before[entry] for entry in gone)

    def segments(self) -> None:
        """Delete the segments of spans, and of label records, whose chunks are deleted: they were made anew since."""
        for feature_set in feature_sets(self._workspace):
            committed = self._committed[prepared_app(feature_set)]
            rows = self._chunks(prepared_table(self._workspace, feature_set))
            spans = {span.groups() for span in map(_SPAN.match, rows) if span is not None}
            labels = {chunk_n(name) for name in self._chunks(label_events_table(self._workspace, feature_set))}
            for path in _files(self._workspace.segments / feature_set):
                match = _SEGMENT.match(path.name)
                if match is None or int(match[1] or match[3]) > committed:
                    continue
                if (match[1], match[2]) not in spans and (match[3] is None or int(match[3]) not in labels):
                    self._delete_old(path, "segments")

    def plans(self) -> None:
        """Delete the plans of slices that are committed; n is never planned again."""
        for app, committed in self._committed.items():
            for n, path in self._workspace.journal.plans(app):
                if n <= committed:
                    self._delete_old(path, "plans")

    def leftovers(self) -> None:
        """Delete what killed runs left beside the tables."""
        for feature_set in feature_sets(self._workspace):
            app = prepared_app(feature_set)
            committed = self._committed[app]
            record = (self._workspace.journal.commit(app, committed) if committed else None) or {}
            waiting = set(record.get("pending", []))  # labels whose row has not come
            for part in ("pending", "slices"):
                for path in _files(self._workspace.root / part / feature_set):
                    ours = re.match(r"\d{8}", path.name) is not None
                    if ours and path.name not in waiting and chunk_n(path.stem) <= committed:
                        self._delete_old(path, "leftovers")
        for path in sorted(self._workspace.root.glob("caches/[0-9]*")):  # of trainings, by their n
            if int(path.name) <= self._committed.get("train", 0):
                self._delete_old(path, "leftovers")
        for temporary in self._workspace.unfinished():
            self._delete_old(temporary, "leftovers")
        if self._resumable:
            return
        for path in self._workspace.journal.tasks():
            self._delete_old(path, "leftovers")
        for path in sorted(self._workspace.scratch.iterdir()):
            self._delete_old(path, "leftovers")

    def _chunks(self, table: Table) -> set[str]:
        """Return the names of chunks that are there after this pass, live or not yet deleted."""
        names = {path.name for path in _files(table.path) if path.suffix == ".parquet" and path.name[0] != "."}
        if self._dry_run and table.exists():
            names -= {name for name in unneeded_chunks(table, keep=self._keep) if Path(name).name not in self._named}
        return names

    def _delete_old(self, path: Path, kind: str) -> None:
        if path.name not in self._named and path.lstat().st_mtime < self._before:
            self._delete(path, kind)

    def _delete(self, path: Path, kind: str) -> None:
        parts = [path, *path.rglob("*")] if path.is_dir() and not path.is_symlink() else [path]
        sizes = [part.lstat().st_size for part in parts if not part.is_dir()]
        self.freed[kind].files += len(sizes)
        self.freed[kind].bytes += sum(sizes)
        if self._dry_run:
            return
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _longest_slice(workspace: Workspace) -> timedelta:
    paths: Iterable[Path] = [chunk.path for chunk in workspace.table("runs").chunks()]
    longest = [pc.max(batch.column("seconds")).as_py() for batch in read_batches([*paths], columns=["seconds"])]
    return timedelta(seconds=max(longest, default=0.0) or 0.0)


def _tables(workspace: Workspace) -> list[Table]:
    root = workspace.root / "tables"
    places = [log.parent for log in root.glob("*/_delta_log")] + [log.parent for log in root.glob("*/*/_delta_log")]
    return [workspace.table(place.relative_to(root).as_posix()) for place in sorted(places)]


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in sorted(directory.glob("*")) if path.is_file())


def _sizes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in _files(directory)}
