"""What growth and a budget cost: the flights pipeline on 1, 4, 16 and 64 times its rows, and 8 GiB beside 512 MiB.

Rows are the flights of 2013 again and again, 371 days later each time: weekdays and keys stay, and no two years meet.
``python -m benchmarks.memory [--factors 1,4,16,64] [--price-factor 4] [--only scale|price] [--memory 512MiB]``
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from benchmarks.growth_chart import draw_growth
from benchmarks.results import Contender, write_results
from engine.batching import Workspace, read_batches
from engine.refs import StageReport
from engine.spec import GateSpec, PipelineSpec
from engine.specfile import load_spec
from engine.stage import Stage, StageContext, run_stage
from engine.units import format_bytes, parse_bytes

PIPELINES = Path(__file__).parents[1] / "pipelines"
PRICE = ("8GiB", "512MiB")
PRICE_RATE = 0.5  # of negatives, one for both: what a larger budget would buy in rows is not its price
_YEAR = timedelta(days=371)
_FIRST = datetime(2013, 1, 1, tzinfo=UTC)
_TABLES = ("raw", "labels", "predictions", "metrics", "quarantine", "ledger")
_MOST_EXPONENT, _MOST_PEAK, _MOST_PRICE = 1.05, 1.10, 1.3


@dataclass
class Cost:
    """What one stage took, over all its runs."""

    seconds: float = 0.0
    peak_bytes: int = 0
    projected_bytes: int = 0  # of the run with that peak
    rows: int = 0
    slices: int = 0

    def add(self, report: StageReport) -> None:
        """Count another run of the stage."""
        self.seconds = round(self.seconds + report.seconds, 3)
        self.rows, self.slices = self.rows + report.rows_in, self.slices + report.slices
        if report.memory.measured_bytes > self.peak_bytes:
            self.peak_bytes, self.projected_bytes = report.memory.measured_bytes, report.memory.projected_bytes


@dataclass
class Run:
    """One workspace, driven through two clocks: a model is trained on the first half, the second is scored with it."""

    spec: PipelineSpec
    factor: int
    rows: int = 0
    costs: dict[str, Cost] = field(default_factory=dict)

    def steps(self) -> Sequence[tuple[Stage, datetime]]:
        """Return the stages with their clocks, in order."""
        from engine.stages.extract import ExtractStage
        from engine.stages.monitor import MonitorStage
        from engine.stages.prepare import PrepareStage
        from engine.stages.promote import PromoteStage
        from engine.stages.score import ScoreStage
        from engine.stages.train import TrainStage
        from engine.stages.validate import ValidateStage

        middle, end = _FIRST + self.factor * _YEAR / 2, _FIRST + self.factor * _YEAR + timedelta(days=7)
        loaded: tuple[Stage, ...] = (ExtractStage("raw"), ExtractStage("labels"), PrepareStage())
        learned: tuple[Stage, ...] = (TrainStage(reasons=("a benchmark",)), ValidateStage(), PromoteStage())
        used: tuple[Stage, ...] = (ScoreStage(), MonitorStage())
        return [(s, middle) for s in (*loaded, *learned)] + [(s, end) for s in (*loaded, *used)]

    def step(self, stage: Stage, as_of: datetime) -> None:
        """Run one stage and count what it took."""
        context = StageContext.of(self.spec, directory=PIPELINES, as_of=as_of)
        report = run_stage(stage, context)
        self.costs.setdefault(stage.name, Cost()).add(report)
        self.rows = context.workspace.table("raw").rows()

    @property
    def seconds(self) -> float:
        """Of all stages."""
        return round(sum(cost.seconds for cost in self.costs.values()), 2)

    @property
    def peak_bytes(self) -> int:
        """Of any task."""
        return max(cost.peak_bytes for cost in self.costs.values())

    def contender(self, **figures: Any) -> Contender:
        """Return the run for the table of results."""
        stages = {name: vars(cost) for name, cost in self.costs.items()}
        return Contender(self.seconds, self.peak_bytes, "ok", self.rows, {**figures, "stages": stages})


def main() -> None:
    """Run what is asked for and write ``benchmarks/results/memory.json`` and ``memory.svg``; exit 1 beyond a bound."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--factors", default="1,4,16,64", type=lambda text: [int(word) for word in text.split(",")])
    parser.add_argument("--price-factor", default=4, type=int)
    parser.add_argument("--only", choices=("scale", "price"))
    parser.add_argument("--memory", default="512MiB")
    given = parser.parse_args()
    contenders: dict[str, Contender] = {}
    beyond: list[str] = []
    with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
        if given.only != "price":
            found, beyond = scale(Path(scratch).absolute(), factors=given.factors, memory=given.memory)
            contenders |= found
        if given.only != "scale":
            found, more = price(Path(scratch).absolute(), factor=given.price_factor)
            contenders, beyond = contenders | found, beyond + more
    print(f"wrote {write_results('memory', contenders)}")
    for text in beyond:
        print(f"beyond its bound: {text}")
    sys.exit(1 if beyond else 0)


def scale(scratch: Path, *, factors: Sequence[int], memory: str) -> tuple[dict[str, Contender], list[str]]:
    """Run the pipeline at each factor under one budget; return the runs, and which bounds they passed."""
    runs = []
    for factor in factors:
        home = scratch / f"{factor}x"
        run = Run(pipeline(home, memory=memory), factor)
        build(home, factor=factor)
        for stage, as_of in run.steps():
            run.step(stage, as_of)
        _say(f"{factor}x", run)
        runs.append(run)
        _empty(home)
    exponents = {"all": exponent([(run.rows, run.seconds) for run in runs])}
    exponents |= {
        name: exponent([(run.rows, run.costs[name].seconds) for run in runs])
        for name in runs[0].costs
        if all(run.costs[name].seconds for run in runs)
    }
    print("seconds grow with rows to the power of", ", ".join(f"{name} {e:.2f}" for name, e in exponents.items()))
    chart = Path(__file__).parent / "results" / "memory.svg"
    chart.parent.mkdir(exist_ok=True)
    peaks = {name: [(run.rows, run.costs[name].peak_bytes) for run in runs] for name in runs[0].costs}
    times = [(run.rows, run.seconds) for run in runs]
    chart.write_text(draw_growth(times, exponent=exponents["all"], peaks=peaks, allowed_bytes=parse_bytes(memory)))
    print(f"wrote {chart}")
    contenders = {f"{run.factor}x": run.contender() for run in runs}
    last = runs[-1]
    contenders[f"{last.factor}x"] = last.contender(exponents=exponents, exponent=exponents["all"])
    return contenders, _beyond(runs, exponents["all"])


def _beyond(runs: Sequence[Run], grown: float) -> list[str]:
    beyond = [f"exponent {grown:.3f} > {_MOST_EXPONENT}"] if grown > _MOST_EXPONENT else []
    base = next((run for run in runs if run.factor == 4), runs[0])
    for name, cost in runs[-1].costs.items():
        ratio = cost.peak_bytes / max(1, base.costs[name].peak_bytes)
        if name != "train" and ratio > _MOST_PEAK:
            beyond.append(f"peak of {name} at {runs[-1].factor}x is {ratio:.2f} of that at {base.factor}x")
    return beyond


def price(scratch: Path, *, factor: int) -> tuple[dict[str, Contender], list[str]]:
    """Run the same work under both budgets, stage by stage in turn; every table must hold the same."""
    home = scratch / "price"
    build(home, factor=factor)
    runs = {memory: Run(pipeline(home, memory=memory, rate=PRICE_RATE), factor) for memory in PRICE}
    steps = {memory: run.steps() for memory, run in runs.items()}
    for index in range(len(steps[PRICE[0]])):
        for memory in PRICE if index % 2 else PRICE[::-1]:  # neither always finds the file warm
            runs[memory].step(*steps[memory][index])
    hashes = {memory: content(run.spec) for memory, run in runs.items()}
    for memory, run in runs.items():
        _say(memory, run)
    wide, narrow = runs[PRICE[0]], runs[PRICE[1]]
    ratio = narrow.seconds / wide.seconds
    different = [table for table, value in hashes[PRICE[0]].items() if hashes[PRICE[1]].get(table) != value]
    by_stage = {
        name: round(cost.seconds / max(0.01, wide.costs[name].seconds), 2) for name, cost in narrow.costs.items()
    }
    print(f"{PRICE[1]} takes {ratio:.2f} of the time of {PRICE[0]}; by stage {by_stage}")
    print(f"tables that differ: {', '.join(different) or 'none'}")
    beyond = [f"{PRICE[1]} takes {ratio:.2f} times as long as {PRICE[0]}"] if ratio > _MOST_PRICE else []
    beyond += [f"table {table} differs" for table in different]
    return {
        f"budget_{PRICE[0]}": wide.contender(content=hashes[PRICE[0]]),
        f"budget_{PRICE[1]}": narrow.contender(price=round(ratio, 3), by_stage=by_stage, content=hashes[PRICE[1]]),
    }, beyond


def build(home: Path, *, factor: int) -> None:
    """Write the operations database with ``factor`` years of flights."""
    from headrace.operations import build_operations_database

    path, started = home / "operations.db", time.monotonic()
    home.mkdir(parents=True, exist_ok=True)
    build_operations_database(path)
    connection = sqlite3.connect(path)
    try:
        connection.execute("PRAGMA journal_mode = OFF")
        connection.execute("PRAGMA synchronous = OFF")
        for table, times in (("flights", ("scheduled_departure", "updated_at")), ("outcomes", ("labelled_at",))):
            (rows,) = connection.execute(f"SELECT max(flight_id) FROM {table}").fetchone()
            names = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            shown = {"flight_id": "flight_id + :rows * :year"} | {name: f"datetime({name}, :days)" for name in times}
            columns = ", ".join(shown.get(name, name) for name in names)
            query = f"INSERT INTO {table} SELECT {columns} FROM {table} WHERE flight_id <= :rows"
            for year in range(1, factor):
                connection.execute(query, {"rows": rows, "year": year, "days": f"+{year * _YEAR.days} days"})
        connection.commit()
    finally:
        connection.close()
    print(
        f"{factor}x: database of {format_bytes(path.stat().st_size)} in {time.monotonic() - started:.0f} s", flush=True
    )


def pipeline(home: Path, *, memory: str, rate: float | None = None) -> PipelineSpec:
    """Return the flights pipeline over a database of its own; its gate lets every model through."""
    spec = load_spec(PIPELINES / "flights.yaml", environ={"HEADRACE_HOME": str(home)}).with_memory(memory)
    return spec.model_copy(
        update={
            "workspace": str(home / f"workspace-{memory}"),
            "gate": GateSpec(floors={}, tolerance=1.0),
            "learner": spec.learner.model_copy(update={"sampling_rate": rate}),
            "resources": spec.resources.model_copy(update={"disk": 60 * 2**30}),
        }
    )


def content(spec: PipelineSpec) -> dict[str, str]:
    """Return, by table, rows and a hash of them that depends neither on their order nor on how files are cut."""
    workspace = Workspace(spec.workspace)
    names = [*_TABLES, *(f"{name}/{spec.feature_set}" for name in ("prepared", "label_events"))]
    return {name.split("/")[0]: _hash(workspace, name) for name in names}


def _hash(workspace: Workspace, table: str) -> str:
    import polars as pl

    rows = total = 0
    for batch in read_batches([chunk.path for chunk in workspace.table(table).chunks()]):
        rows += batch.num_rows
        if table == "ledger":  # its details name a bundle's directory
            hashes = [int.from_bytes(_digest(row)) for row in batch.to_pylist()]
            total += sum(hashes)
        else:
            frame = pl.DataFrame(batch)
            total += int(frame.select(sorted(frame.columns)).hash_rows(seed=0).cast(pl.Int128).sum())
    return f"{rows}:{total % 2**64:016x}"


def _digest(row: Mapping[str, Any]) -> bytes:
    details = {name: value for name, value in json.loads(row["details"]).items() if name != "bundle"}
    text = json.dumps({**row, "details": details}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).digest()[:8]


def exponent(points: Sequence[tuple[float, float]]) -> float:
    """Return the slope of the least-squares line through the logarithms; NaN with fewer than two points."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    if len(logs) < 2:
        return math.nan
    mean_x, mean_y = (sum(one[i] for one in logs) / len(logs) for i in (0, 1))
    return sum((x - mean_x) * (y - mean_y) for x, y in logs) / sum((x - mean_x) ** 2 for x, _ in logs)


def _say(name: str, run: Run) -> None:
    print(f"{name}: {run.rows:,} rows, {run.seconds:.1f} s, {format_bytes(run.peak_bytes)}")
    for stage, cost in run.costs.items():
        print(
            f"  {stage:9} {cost.seconds:8.1f} s  peak {format_bytes(cost.peak_bytes):>9} "
            f"of {format_bytes(cost.projected_bytes)} projected, {cost.slices} slices",
            flush=True,
        )


def _empty(home: Path) -> None:
    import shutil

    shutil.rmtree(home)


if __name__ == "__main__":
    main()
