"""Delta tables of chunks, committed exactly once per (app, n).

The rule of every commit: open, skip when the app's transaction is already n, commit on that same handle; on a
conflict open
and look again. Writing the chunks is ``chunks.py``, reading their rows ``streams.py``.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from deltalake import CommitProperties, DeltaTable, PostCommitHookProperties, Transaction
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError
from deltalake.transaction import AddAction, RemoveAction

from engine.errors import SchemaMismatch, TableError
from engine.refs import ChunkRef, TableRef

_CONFLICTS = 20  # a conflict means that another commit went through, so this many in a row is another fault
_CHECKPOINT_EVERY = 10
"""Commits: who opens a table reads those since the last checkpoint, each for 0.2 ms and 90 KiB that stay with it."""

_CLEAN_EVERY = 50
"""Commits: looking for old log files to delete lists them all, 40 ms with 3,400 of them."""

_PROPERTIES = {"delta.checkpointInterval": str(_CHECKPOINT_EVERY), "delta.dataSkippingNumIndexedCols": "0"}
_BOUNDED = "delta.dataSkippingStatsColumns"
"""Delta's property that names the columns whose smallest and largest values readers have of each file.

Without it they are the first 32, wherever in a table its time and key are; and who opens it holds all of those.
"""


@dataclass(frozen=True)
class Chunk:
    """A live chunk of a table, with what the log knows of it."""

    path: Path  # absolute
    name: str  # relative to the table
    n: int  # the plan that wrote it
    rows: int
    bytes: int  # on disk
    minimum: Mapping[str, Any] = field(default_factory=dict)
    maximum: Mapping[str, Any] = field(default_factory=dict)

    def may_hold(self, column: str, low: Any, high: Any) -> bool:
        """Return whether a value in ``[low, high)`` may be inside; None is unbounded, missing statistics may."""
        smallest, largest = self.minimum.get(column), self.maximum.get(column)
        if smallest is None or largest is None:
            return True
        return (high is None or smallest < high) and (low is None or largest >= low)


def chunk_prefix(n: int, task: str) -> str:
    """Return how the names of a task's chunks begin; ``chunk_n`` reads n back."""
    return f"{n:08d}-{task}"


def chunk_n(name: str) -> int:
    """Return the n of the plan that wrote a chunk, from its name."""
    return int(Path(name).name.split("-", 1)[0])


class Table:
    """A Delta table in a local directory; each call sees the newest version.

    Parameters
    ----------
    stays_open
        Keep the log as it was last read, 90 KiB for each commit since a checkpoint and what its chunks' bounds take,
        and read it again only where the newest version is another.
    """

    def __init__(self, path: Path, *, name: str, stays_open: bool = False) -> None:
        self.path = path
        self.name = name
        self._stays_open = stays_open
        self._kept: _Kept | None = None

    def exists(self) -> bool:
        """Return whether anything was ever committed."""
        return DeltaTable.is_deltatable(str(self.path))

    def schema(self) -> pa.Schema | None:
        """Return the Arrow schema, or None when the table does not exist."""
        table = self._newest()
        return None if table is None else _arrow_schema(table)

    def transaction(self, app: str) -> int:
        """Return the last n that ``app`` committed, 0 if none."""
        table = self._newest()
        return 0 if table is None else int(table.transaction_version(app) or 0)

    def ref(self, app: str = "") -> TableRef:
        """Return the newest snapshot: version -1 when the table does not exist."""
        table = self._newest()
        if table is None:
            return TableRef(self.name, -1, 0)
        return TableRef(self.name, table.version(), int(table.transaction_version(app) or 0) if app else 0)

    def chunks(self, *, version: int | None = None, newest_n: int | None = None) -> list[Chunk]:
        """Return the live chunks in the order of their names (n, then task, then number).

        Parameters
        ----------
        version
            A snapshot's version; the newest by default.
        newest_n
            Leave out chunks of plans after this one: for side tables, the n of the primary table.
        """
        table = self._newest() if version is None else self._open(version)
        if table is None:
            return []
        actions = pa.table(table.get_add_actions(flatten=False)).to_pylist()
        chunks = [
            Chunk(
                path=self.path / action["path"],
                name=action["path"],
                n=chunk_n(action["path"]),
                rows=int(action["num_records"] or 0),
                bytes=int(action["size_bytes"]),
                minimum=_known(action.get("min")),
                maximum=_known(action.get("max")),
            )
            for action in actions
        ]
        chunks = [chunk for chunk in chunks if newest_n is None or chunk.n <= newest_n]
        return sorted(chunks, key=lambda chunk: chunk.name)

    def is_retyped_by(self, schema: pa.Schema) -> bool:
        """Return whether a column has another type in ``schema`` than in the table."""
        mine = self.schema()
        if mine is None:
            return False
        both = [name for name in schema.names if name in mine.names]
        return any(not same_type(mine.field(name).type, schema.field(name).type) for name in both)

    def rows(self) -> int:
        """Return the number of live rows, from the log."""
        return sum(chunk.rows for chunk in self.chunks())

    def commit(
        self,
        *,
        app: str,
        n: int,
        schema: pa.Schema,
        add: Sequence[ChunkRef] = (),
        remove: Sequence[str] = (),
        retyped: bool = False,
        data_change: bool = True,
    ) -> TableRef:
        """Make chunks part of the table, and others no longer, in one version; once for each (app, n).

        Parameters
        ----------
        app, n
            The Delta application transaction. When the table already has n, nothing is done.
        schema
            Of the added chunks. Columns that the table lacks are added first.
        add, remove
            New chunks, and the names of live ones that they replace.
        retyped
            Columns have other types than in the table: ``add`` holds every row anew, and nothing else stays.
        data_change
            False where ``add`` holds the rows of ``remove`` and no others: those who follow the log need not look.

        Raises
        ------
        SchemaMismatch
            A column has another type than in the table: Delta itself would not look.
        TableError
            The commit failed for another reason than a conflict; the table is as it was.
        """
        for _ in range(_CONFLICTS):
            table = self._open() or self._create(schema, add)
            if int(table.transaction_version(app) or 0) >= n:
                return TableRef(self.name, table.version(), int(table.transaction_version(app) or 0))
            try:
                said = table.metadata().configuration
                properties = _properties(said, add)
                if properties != said:
                    table.alter.set_table_properties(dict(properties))
                    continue  # that was a commit of its own: look again on a fresh handle
                if not retyped and self._widen(table, schema):
                    continue  # so were the new columns
                now = int(time.time() * 1000)
                actions: list[AddAction | RemoveAction] = [
                    _add_action(ref, now, data_change=data_change) for ref in add
                ]
                if remove:  # most commits only add, and what is live takes the longer to list the more of it there is
                    live = set(pa.table(table.get_add_actions(flatten=False))["path"].to_pylist())
                    actions += [RemoveAction(path, data_change, now) for path in remove if path in live]
                # Overwriting is the one way to another schema. Without retries it meets any concurrent commit as a
                # conflict, so it cannot miss one.
                table.create_write_transaction(
                    [action for action in actions if isinstance(action, AddAction)] if retyped else actions,
                    mode="overwrite" if retyped else "append",
                    schema=schema if retyped else _arrow_schema(table),
                    commit_properties=CommitProperties(
                        custom_metadata={"headrace.app": app, "headrace.n": str(n)},
                        max_commit_retries=0,
                        app_transactions=[Transaction(app, n)],
                    ),
                    post_commithook_properties=PostCommitHookProperties(
                        cleanup_expired_logs=(table.version() + 1) % _CLEAN_EVERY == 0
                    ),
                )
            except CommitFailedError:
                continue
            except (DeltaError, OSError) as error:
                raise TableError(
                    f"table {self.name}: the commit of {app} {n} failed: {error}",
                    hint="check space and permissions of the workspace, then run again: nothing was committed",
                ) from error
            table.update_incremental()
            return TableRef(self.name, table.version(), n)
        raise TableError(
            f"table {self.name}: {_CONFLICTS} commits of {app} {n} in a row met a conflict",
            hint="something else commits to this workspace without pause; let one run at a time write to it",
        )

    def _newest(self) -> DeltaTable | None:
        """Return the newest version, to be read from only: a commit takes a handle of its own."""
        kept = self._kept
        if kept is not None and kept.is_newest():
            return kept.table
        table = self._open()
        self._kept = _Kept.of(table, self.path) if table is not None and self._stays_open else None
        return table

    def _open(self, version: int | None = None) -> DeltaTable | None:
        try:
            return DeltaTable(self.path, version=version)
        except TableNotFoundError:
            return None
        except (DeltaError, OSError) as error:
            raise TableError(
                f"table {self.name} in {self.path} cannot be opened: {error}",
                hint="restore its _delta_log from a backup, or move the directory away to build the table anew",
            ) from error

    def _create(self, schema: pa.Schema, add: Sequence[ChunkRef]) -> DeltaTable:
        self.path.mkdir(parents=True, exist_ok=True)
        properties = _properties({}, add)
        try:
            return DeltaTable.create(self.path, schema, mode="ignore", name=self.name, configuration=properties)
        except (DeltaError, OSError) as error:
            raise TableError(f"table {self.name} cannot be made in {self.path}: {error}") from error

    def _widen(self, table: DeltaTable, schema: pa.Schema) -> bool:
        mine = _arrow_schema(table)
        for wanted in schema:
            index = mine.get_field_index(wanted.name)
            if index >= 0 and not same_type(mine.field(index).type, wanted.type):
                raise SchemaMismatch(
                    f"table {self.name}: column {wanted.name!r} is {mine.field(index).type}, "
                    f"the new chunk has {wanted.type}",
                    hint="give the column its old type in the source, or a new name",
                )
        new = [wanted for wanted in schema if mine.get_field_index(wanted.name) < 0]
        if not new:
            return False
        from deltalake import Schema

        table.alter.add_columns(list(Schema.from_arrow(pa.schema([f.with_nullable(True) for f in new])).fields))
        return True


@dataclass(frozen=True)
class _Kept:
    """A version as it was read, and how to tell that it is still the newest."""

    table: DeltaTable
    committed: Path  # its file in the log
    written: tuple[int, int, int]  # which file that was: a table that is made anew has a version of the same number
    following: Path  # the file that the next version will have

    @classmethod
    def of(cls, table: DeltaTable, path: Path) -> _Kept | None:
        version, log = table.version(), path / "_delta_log"
        committed, following = (log / f"{number:020d}.json" for number in (version, version + 1))
        written = _identity(committed)
        return None if written is None else cls(table, committed, written, following)

    def is_newest(self) -> bool:
        return _identity(self.committed) == self.written and not self.following.exists()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Return what tells a file from another one of its name, None where there is none."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _properties(said: Mapping[str, str], add: Sequence[ChunkRef]) -> dict[str, str]:
    """Return a table's properties after a commit: ours, and named all columns that its chunks have bounds of."""
    named = re.findall(r"`((?:[^`]|``)*)`", said.get(_BOUNDED, ""))
    names = dict.fromkeys([*named, *(name.replace("`", "``") for ref in add for name in (*ref.nulls, *ref.minimum))])
    bounded = {_BOUNDED: ",".join(f"`{name}`" for name in names)} if names else {}
    return {**said, **_PROPERTIES, **bounded}


def _known(statistics: Mapping[str, Any] | None) -> dict[str, Any]:
    return {key: value for key, value in (statistics or {}).items() if value is not None}


def _arrow_schema(table: DeltaTable) -> pa.Schema:
    return pa.schema(table.schema().to_arrow())


def same_type(mine: pa.DataType, other: pa.DataType) -> bool:
    """Return whether Delta keeps both types as one."""
    return bool(plain_type(mine) == plain_type(other))


def plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the one of several types that Delta keeps as one."""
    if pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return pa.list_(plain_type(kind.value_type))
    return kind


def _add_action(ref: ChunkRef, modified_ms: int, *, data_change: bool) -> AddAction:
    statistics = {
        "numRecords": ref.rows,
        "minValues": dict(ref.minimum),
        "maxValues": dict(ref.maximum),
        "nullCount": dict(ref.nulls),
    }
    return AddAction(ref.path, ref.bytes, {}, modified_ms, data_change, json.dumps(statistics))
