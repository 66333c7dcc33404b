"""A table of payments in PostgreSQL whose every version is kept by a trigger, and its extraction in another process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_postgresql.dbapi

from engine.batching import Workspace, read_batches

ROOT = Path(__file__).parents[2]
_VERSION = "id, (extract(epoch FROM updated_at) * 1000000)::bigint, md5(payload)"
_TABLE = """
DROP TABLE IF EXISTS payments, every_version;
CREATE TABLE payments (id bigint PRIMARY KEY, updated_at timestamptz NOT NULL, payload text NOT NULL);
CREATE INDEX ON payments (updated_at, id);
CREATE TABLE every_version (LIKE payments);
CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO every_version SELECT NEW.*; RETURN NULL; END $$;
CREATE TRIGGER keep AFTER INSERT OR UPDATE ON payments FOR EACH ROW EXECUTE FUNCTION keep()"""

Version = tuple[int, int, str]
"""Key, cursor in microseconds since 1970, hash of the content."""


@dataclass
class Payments:
    """The table, and the workspace that it is extracted to."""

    directory: Path
    server: str  # its own URI, for the test
    uri: str  # for the extraction
    lag: str = "0s"
    workspace_path: Path | None = None

    def create(self, *, rows: int) -> None:
        """Make the table anew; a thousand rows share each cursor, so that ties lie at the border of a slice."""
        for statement in (*_TABLE.split(";\n"),):
            self.sql(statement)
        self.sql(
            "INSERT INTO payments SELECT g, timestamptz '2026-01-01' + (g / 1000) * interval '1 second', "
            f"repeat(md5(g::text), 3) FROM generate_series(1, {rows}) g"
        )
        self.sql("ANALYZE payments")

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        with (
            adbc_driver_postgresql.dbapi.connect(self.server, autocommit=True) as connection,
            connection.cursor() as work,
        ):
            work.execute(statement)
            return list(work.fetchall()) if work.description else []

    @property
    def workspace(self) -> Workspace:
        return Workspace(str(self.workspace_path or self.directory / "workspace"))

    @property
    def pipeline(self) -> Path:
        """The pipeline file; see ``write_pipeline``."""
        return self.directory / "payments.yaml"

    def write_pipeline(self) -> None:
        """Write the pipeline file for where workspace and source are now."""
        spec = {
            "pipeline": "payments",
            "workspace": str(self.workspace.root),
            "source": {"uri": self.uri, "table": "payments", "key": "id", "cursor": "updated_at", "lag": self.lag},
            "event_time": "updated_at",
            "labels": {"table": "none", "key": "id", "value": "fraud", "labelled_at": "at"},
            "features": {"numeric": ["amount"]},
            "resources": {"memory": "512MiB"},
        }
        self.pipeline.write_text(json.dumps(spec))  # which is YAML too

    def start(self, stop: str = "") -> subprocess.Popen[str]:
        """Start an extraction; see ``extraction.py`` for where it may stop."""
        self.write_pipeline()
        command = [sys.executable, "-m", "tests.faults.extraction", str(self.directory), stop]
        pipe = subprocess.PIPE
        return subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True, start_new_session=True)

    def finish(self) -> None:
        """Extract to the end; any failure fails the test."""
        with self.start() as process:
            out, _ = process.communicate(timeout=120)
        assert process.returncode == 0, out
        assert out.endswith("done\n"), out

    def raw(self) -> list[Version]:
        """Return each version in ``raw``."""
        import hashlib

        paths = [chunk.path for chunk in self.workspace.table("raw").chunks()]
        return [
            (row["id"], _microseconds(row["updated_at"]), hashlib.md5(row["payload"].encode()).hexdigest())
            for batch in read_batches(paths)
            for row in batch.to_pylist()
        ]

    def current(self) -> set[Version]:
        """Return the versions that the table shows now."""
        return {(int(a), int(b), c) for a, b, c in self.sql(f"SELECT {_VERSION} FROM payments")}

    def ever(self) -> set[Version]:
        """Return each version that was ever committed."""
        return {(int(a), int(b), c) for a, b, c in self.sql(f"SELECT {_VERSION} FROM every_version")}

    def check(self) -> None:
        """Every version that the table shows is in ``raw``, none twice, and nothing that never was."""
        raw = self.raw()
        twice = [version for version, count in Counter(one[:2] for one in raw).items() if count > 1]
        assert not twice, f"{len(twice)} versions are there twice, such as {twice[:3]}"
        found = set(raw)
        missing = self.current() - found
        assert not missing, f"{len(missing)} versions are missing, such as {sorted(missing)[:3]}"
        invented = found - self.ever()
        assert not invented, f"{len(invented)} versions never were, such as {sorted(invented)[:3]}"


def _microseconds(time: Any) -> int:
    import pyarrow as pa

    return int(pa.scalar(time, pa.timestamp("us", tz="UTC")).value)
