"""A shop's orders in SQLite, and extraction from them in the cage. For tests of what comes in."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from engine.batching import Workspace, read_batches
from engine.refs import StageReport
from engine.spec import PipelineSpec
from engine.stage import StageContext, run_stage
from engine.stages.extract import ExtractStage

START = datetime(2026, 1, 1, tzinfo=UTC)


def at(minutes: float) -> datetime:
    """Return a moment after the shop opened."""
    return START + timedelta(minutes=minutes)


@dataclass
class Shop:
    """The table ``orders`` (id, amount, placed_at, updated_at) and ``verdicts`` (order_id, fraud, decided_at)."""

    directory: Path
    source: dict[str, Any] = field(default_factory=dict)  # of the pipeline file, over what follows
    labels: dict[str, Any] = field(default_factory=dict)
    event_time: str = "placed_at"
    features: dict[str, Any] = field(default_factory=lambda: {"numeric": ["amount"]})

    @property
    def database(self) -> Path:
        return self.directory / "shop.db"

    @property
    def spec(self) -> PipelineSpec:
        uri = f"sqlite:///{self.database}"
        source = {"uri": uri, "table": "orders", "key": "id", "cursor": "updated_at"}
        labels = {"table": "verdicts", "key": "order_id", "value": "fraud", "labelled_at": "decided_at", "uri": uri}
        return PipelineSpec.model_validate(
            {
                "pipeline": "shop",
                "workspace": str(self.directory / "workspace"),
                "source": source | self.source,
                "event_time": self.event_time,
                "labels": labels | self.labels,
                "features": self.features,
                "resources": {"memory": "512MiB"},
            }
        )

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.spec.workspace)

    def sql(self, *statements: str, values: Sequence[Sequence[Any]] = ()) -> None:
        connection = sqlite3.connect(self.database)
        for statement in statements:
            if values:
                connection.executemany(statement, values)
            else:
                connection.execute(statement)
        connection.commit()
        connection.close()

    def open(self) -> Shop:
        """Make the tables."""
        self.sql(
            "CREATE TABLE orders (id INTEGER PRIMARY KEY, amount INTEGER, placed_at TIMESTAMP, updated_at TIMESTAMP)",
            "CREATE TABLE verdicts (order_id INTEGER, fraud INTEGER, decided_at TIMESTAMP)",
        )
        return self

    def order(self, *orders: tuple[int, Any, float]) -> None:
        """Insert or update orders: (id, amount, minute of the update)."""
        rows = [(key, amount, _text(at(key)), _text(at(minute))) for key, amount, minute in orders]
        self.sql("INSERT OR REPLACE INTO orders VALUES (?, ?, ?, ?)", values=rows)

    def context(self, minute: float) -> StageContext:
        return StageContext.of(self.spec, directory=self.directory, as_of=at(minute))

    def extract(self, minute: float, what: Any = "raw", **window: Any) -> StageReport:
        return run_stage(ExtractStage(what, **window), self.context(minute))

    def rows(self, table: str = "raw") -> list[dict[str, Any]]:
        paths = [chunk.path for chunk in self.workspace.table(table).chunks()]
        schema = self.workspace.table(table).schema()
        columns = None if schema is None else schema.names
        return [row for batch in read_batches(paths, columns=columns, schema=schema) for row in batch.to_pylist()]

    def versions(self) -> list[tuple[int, Any]]:
        """Return (id, amount) of each version in ``raw``, in its order."""
        return [(row["id"], row["amount"]) for row in self.rows()]


def _text(time: datetime) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S.%f")
