"""A small company: two months of one airport's real flights in SQLite, and a pipeline over them."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.batching import Workspace, read_batches
from engine.refs import StageReport
from engine.spec import PipelineSpec
from engine.specfile import load_spec
from engine.stage import Stage, StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.prepare import PrepareStage
from headrace.operations import build_operations_database

PIPELINES = Path(__file__).parents[3] / "pipelines"


@pytest.fixture(scope="session")
def flights_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("operations") / "operations.db"
    build_operations_database(path, months=[1, 2], origins=["LGA"])
    return path


@dataclass
class World:
    """A pipeline file of its own, its database and workspace."""

    directory: Path

    @property
    def pipeline(self) -> Path:
        return self.directory / "flights.yaml"

    @property
    def database(self) -> Path:
        return self.directory / "operations.db"

    @property
    def spec(self) -> PipelineSpec:
        return load_spec(self.pipeline, environ={})

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.spec.workspace)

    def edit(self, **changes: Any) -> None:
        value = yaml.safe_load(self.pipeline.read_text()) | changes
        self.pipeline.write_text(yaml.safe_dump(value, sort_keys=False))

    def context(self, as_of: datetime) -> StageContext:
        return StageContext.of(self.spec, directory=self.directory, as_of=as_of)

    def run(self, stage: Stage, as_of: datetime) -> StageReport:
        return run_stage(stage, self.context(as_of))

    def prepare(self, *clocks: datetime) -> None:
        for clock in clocks:
            for stage in (ExtractStage("raw"), ExtractStage("labels"), PrepareStage()):
                self.run(stage, clock)

    def rows(self, table: str) -> list[dict[str, Any]]:
        chunks = self.workspace.table(table).chunks()
        rows = [row for batch in read_batches([chunk.path for chunk in chunks]) for row in batch.to_pylist()]
        return sorted(rows, key=lambda row: str(row.get("key", row)))

    def prepared(self) -> list[dict[str, Any]]:
        return self.rows(f"prepared/{self.spec.feature_set}")


@pytest.fixture
def world(tmp_path: Path, flights_database: Path) -> World:
    shutil.copy(flights_database, tmp_path / "operations.db")
    shutil.copy(PIPELINES / "flights.py", tmp_path / "flights.py")
    value = yaml.safe_load((PIPELINES / "flights.yaml").read_text())
    value["workspace"] = str(tmp_path / "workspace")
    value["source"]["uri"] = f"sqlite:///{tmp_path / 'operations.db'}"
    value["split"] = {"validation": "7d", "calibration": "7d", "gap": "1d"}
    value["learner"]["parameters"]["num_trees"] = 20
    made = World(tmp_path)
    made.pipeline.write_text(yaml.safe_dump(value, sort_keys=False))
    return made


JANUARY, FEBRUARY, MARCH = (datetime(2013, month, 1, 6, tzinfo=UTC) for month in (1, 2, 3))
