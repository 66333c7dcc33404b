"""A small company: two months of one airport's real flights in SQLite, and a pipeline over them. For tests."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from engine.batching import Workspace, read_batches
from engine.ledger import Ledger
from engine.refs import StageReport
from engine.spec import PipelineSpec
from engine.specfile import load_spec
from engine.stage import Stage, StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.monitor import MonitorStage
from engine.stages.prepare import PrepareStage
from engine.stages.promote import PromoteStage
from engine.stages.score import ScoreStage
from engine.stages.train import TrainStage
from engine.stages.validate import ValidateStage
from engine.units import format_time

PIPELINES = Path(__file__).parents[1] / "pipelines"


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

    def loop(self, as_of: datetime, *, retrain: bool = True) -> dict[str, StageReport]:
        """Run the whole loop once; return the report of each stage by its name."""
        self.prepare(as_of)
        reports = {stage.name: self.run(stage, as_of) for stage in (ScoreStage(), MonitorStage())}
        reasons = ("a test",) if retrain else ()
        for stage in (TrainStage(reasons=reasons), ValidateStage(), PromoteStage()):
            reports[stage.name] = self.run(stage, as_of)
        return reports

    def begun(self, as_of: datetime) -> bool:
        """Return whether a run at this clock has planned its extraction."""
        newest = self.workspace.table("raw").transaction("extract:raw") + 1
        plans = [self.workspace.journal.plan("extract:raw", n) for n in range(1, newest + 1)]
        return any(plan is not None and plan["as_of"] == format_time(as_of) for plan in plans)

    def trained(self, as_of: datetime) -> bool:
        """Return whether a training at this clock is in the ledger, or planned and not finished."""
        ledger = Ledger(self.workspace)
        if any(e.action == "trained" and e.as_of == format_time(as_of) for e in ledger.history()):
            return True
        return self.workspace.journal.plan("train", ledger.transaction("train") + 1) is not None

    def content(self) -> dict[str, list[str]]:
        """Return the rows of every table but ``runs``, sorted, without what names files and times of the wall."""
        tables = ["raw", "labels", "predictions", "metrics", "quarantine", "ledger"]
        tables += [f"{name}/{self.spec.feature_set}" for name in ("prepared", "label_events")]
        return {name: sorted(_shown(name, row) for row in self.rows(name)) for name in tables}

    def rows(self, table: str) -> list[dict[str, Any]]:
        chunks = self.workspace.table(table).chunks()
        rows = [row for batch in read_batches([chunk.path for chunk in chunks]) for row in batch.to_pylist()]
        return sorted(rows, key=lambda row: str(row.get("key", row)))

    def prepared(self) -> list[dict[str, Any]]:
        return self.rows(f"prepared/{self.spec.feature_set}")


def make_world(directory: Path, database: Path) -> World:
    """Return a world in a directory: a copy of the database, the pipeline file, and its transform."""
    directory.mkdir(parents=True, exist_ok=True)
    shutil.copy(database, directory / "operations.db")
    shutil.copy(PIPELINES / "flights.py", directory / "flights.py")
    value = yaml.safe_load((PIPELINES / "flights.yaml").read_text())
    value["workspace"] = str(directory / "workspace")
    value["source"]["uri"] = f"sqlite:///{directory / 'operations.db'}"
    value["split"] = {"validation": "7d", "calibration": "7d", "gap": "1d"}
    value["gate"] = {"floors": {}, "tolerance": 1.0}
    value["learner"]["parameters"]["num_trees"] = 20
    made = World(directory)
    made.pipeline.write_text(yaml.safe_dump(value, sort_keys=False))
    return made


def copy_world(template: World, directory: Path) -> World:
    """Return a copy of a world, workspace and all."""
    shutil.copytree(template.directory, directory)
    made = World(directory)
    source = yaml.safe_load(made.pipeline.read_text())["source"]
    made.edit(workspace=str(directory / "workspace"), source={**source, "uri": f"sqlite:///{made.database}"})
    return made


def _shown(table: str, row: dict[str, Any]) -> str:
    if table == "ledger":
        details = json.loads(row["details"])
        row = {**row, "details": {name: details[name] for name in sorted(details) if name != "bundle"}}
    return json.dumps(row, sort_keys=True, default=str)


FEBRUARY, MARCH = (datetime(2013, month, 1, 6, tzinfo=UTC) for month in (2, 3))
