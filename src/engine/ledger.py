"""The ``ledger`` table: each candidate trained, verdict given, promotion and rollback, with its reason.

It says which model is champion; the registry's aliases follow it (``registry.py``).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import pyarrow as pa

from engine.batching import ChunkWriter, Table, Workspace, read_batches
from engine.batching.tables import chunk_prefix

Action = Literal["trained", "passed", "failed", "promoted", "kept", "rolled back"]

_SCHEMA = pa.schema(
    [
        pa.field("app", pa.string()),
        pa.field("n", pa.int64()),
        pa.field("as_of", pa.string()),
        pa.field("action", pa.string()),
        pa.field("version", pa.int64()),
        pa.field("previous", pa.int64()),
        pa.field("reasons", pa.string()),  # JSON list
        pa.field("details", pa.string()),  # JSON object
    ]
)


@dataclass(frozen=True)
class Entry:
    """One line of the ledger."""

    app: str
    n: int
    as_of: str
    action: Action
    version: int  # of the model that the line is about
    previous: int = 0  # the champion before, 0 if none
    reasons: tuple[str, ...] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


class Ledger:
    """Reads and extends the ledger of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self.table: Table = workspace.table("ledger")

    def transaction(self, app: str) -> int:
        """Return the last n that ``app`` entered."""
        return self.table.transaction(app)

    def enter(self, entry: Entry) -> None:
        """Add one line, once for each (app, n)."""
        row = asdict(entry)
        row["reasons"] = json.dumps(list(entry.reasons))
        row["details"] = json.dumps(dict(entry.details), sort_keys=True, default=str)
        batch = pa.RecordBatch.from_pylist([row], schema=_SCHEMA)
        prefix = chunk_prefix(entry.n, entry.app.replace(":", "_"))
        with ChunkWriter(self.table.path, prefix=prefix, schema=_SCHEMA) as writer:
            writer.write(batch)
        self.table.commit(app=entry.app, n=entry.n, schema=_SCHEMA, add=writer.chunks)

    def history(self) -> tuple[Entry, ...]:
        """Return all lines, oldest first."""
        rows: list[dict[str, Any]] = []
        for batch in read_batches([chunk.path for chunk in self.table.chunks()]):
            rows += batch.to_pylist()
        entries = [
            Entry(**{**row, "reasons": tuple(json.loads(row["reasons"])), "details": json.loads(row["details"])})
            for row in rows
        ]
        order = {action: index for index, action in enumerate(("trained", "passed", "failed", "promoted", "kept"))}
        return tuple(sorted(entries, key=lambda e: (e.as_of, order.get(e.action, 9), e.n)))

    def champion(self) -> Entry | None:
        """Return the line that made today's champion, or None."""
        return champion_of(self.history())


def champion_of(history: Sequence[Entry]) -> Entry | None:
    """Return the last promotion or rollback: its version is the champion."""
    moves = [entry for entry in history if entry.action in ("promoted", "rolled back")]
    return max(moves, key=lambda e: e.n) if moves else None


def trained(history: Sequence[Entry], version: int) -> Entry | None:
    """Return the line of a version's training, whose details are its facts."""
    return next((entry for entry in history if entry.action == "trained" and entry.version == version), None)


def last_trained(history: Sequence[Entry]) -> Entry | None:
    """Return the line of the newest candidate, whatever became of it."""
    mine = [entry for entry in history if entry.action == "trained"]
    return max(mine, key=lambda e: e.n) if mine else None


def positive_share(facts: Mapping[str, Any]) -> float:
    """Return the base rate of a training, from its entry's details.

    Its negatives stand for as many more as the sampling left out.
    """
    positives, kept = int(facts["positives"]), int(facts["rows"])
    seen = positives + (kept - positives) / float(facts["sampling_rate"])
    return positives / seen if seen else 0.0
