"""Each stage on each hostile table under three budgets: within, refused, or a typed error; written to docs/memory.md.

All of it takes hours: what was run of it before stays in the table, until the same cell is run again.

``python -m benchmarks.hostile_matrix [--scale S] [--table NAME] [--memory 256MiB] [--seconds 1200]``
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.hostile import SPAN, START, TABLES, pipeline
from benchmarks.results import Contender, write_results
from engine.errors import HeadraceError, MemoryBudgetExceeded, PlanRefused, TaskCrashed
from engine.events import TaskEnded
from engine.spec import PipelineSpec
from engine.stage import Stage, StageContext, run_stage
from engine.stages.extract import ExtractStage
from engine.stages.monitor import MonitorStage
from engine.stages.prepare import PrepareStage
from engine.stages.promote import PromoteStage
from engine.stages.score import ScoreStage
from engine.stages.train import TrainStage
from engine.stages.validate import ValidateStage

BUDGETS = ("256MiB", "512MiB", "1024MiB")
STAGES = ("extract", "prepare", "train", "validate", "score", "monitor")
_BEGIN, _END = "<!-- hostile:begin -->", "<!-- hostile:end -->"
_ROW = re.compile(r"\| (?P<name>.*?)(?: \(at .*?\))? \| (?P<memory>\d+MiB) \|")
_REASON = re.compile(r"- (?P<name>.*), (?P<memory>\d+MiB), \w+: ")
_MIB = 2**20
_LEARNED = datetime.fromtimestamp((START + 3 * SPAN // 4) / 1e6, UTC)
_LEAST_SHARE = 0.6  # of ordinary data's projection


@dataclass(frozen=True)
class Cell:
    """What a stage made of a table under a budget."""

    stage: str
    outcome: str  # ok, quarantine, refused, budget, error, crash, hang, nothing
    text: str = ""
    measured_bytes: int = 0
    projected_bytes: int = 0
    allowed_bytes: int = 0
    seconds: float = 0.0
    rows: int = 0
    share: float = 0.0  # measured of projected, the largest of the stage's tasks

    def broken(self, name: str) -> str:
        """Return which promise this breaks, empty where it breaks none."""
        if self.outcome in ("refused", "budget", "error", "nothing"):
            return ""
        if self.outcome not in ("ok", "quarantine"):
            return self.outcome
        if self.measured_bytes > self.allowed_bytes:
            return "over the budget"
        if self.share > 1.0:
            return "over its projection"
        return "under 0.6 of its projection" if name.startswith("ordinary") and self.share < _LEAST_SHARE else ""

    def shown(self) -> str:
        """Return the cell as the table in the documentation has it."""
        if self.outcome in ("ok", "quarantine"):
            kept = " (quarantine)" if self.outcome == "quarantine" else ""
            return f"{self.measured_bytes / _MIB:.0f} · {self.share:.2f}{kept}"
        words = {"nothing": "nothing to do", "refused": "refused", "budget": "budget error", "error": "typed error"}
        return words.get(self.outcome, f"**{self.outcome}**")


def main() -> None:
    """Run all cells that are asked for, print them, and write JSON and the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--table", choices=TABLES)
    parser.add_argument("--memory", choices=BUDGETS)
    parser.add_argument("--seconds", type=float, default=3600.0, help="of one table under one budget")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        for cell in run_cells(given.table, given.inside, memory=given.memory):
            print(json.dumps(cell.__dict__), flush=True)
        return
    found: dict[str, dict[str, list[Cell]]] = {}
    for name in [given.table] if given.table else TABLES:
        with tempfile.TemporaryDirectory(dir=os.environ.get("HEADRACE_BENCH_DIR", ".")) as scratch:
            directory = Path(scratch).absolute()
            (directory / "rows").mkdir()
            rows = TABLES[name].write(directory / "rows", given.scale)
            TABLES[name].write_labels(directory / "labels", rows)
            for memory in [given.memory] if given.memory else BUDGETS:
                cells = _run(name, directory, memory=memory, seconds=given.seconds)
                found.setdefault(name, {})[memory] = cells
                for cell in cells:
                    print(f"{name} | {memory} | {cell.stage}: {cell.shown()} {cell.text[:240]}", flush=True)
                shutil.rmtree(directory / "workspace", ignore_errors=True)
    contenders = {
        f"{name} {memory} {cell.stage}": Contender(
            cell.seconds,
            cell.measured_bytes,
            cell.outcome,
            cell.rows,
            {"projected_bytes": cell.projected_bytes, "share": cell.share},
        )
        for name, budgets in found.items()
        for memory, cells in budgets.items()
        for cell in cells
    }
    print(f"wrote {write_results('hostile_matrix', contenders)}")
    _document(found, scale=given.scale)
    bad = [
        (f"{name} {memory} {cell.stage}: {cell.broken(name)} {cell.text}")
        for name, budgets in found.items()
        for memory, cells in budgets.items()
        for cell in cells
        if cell.broken(name)
    ]
    for line in bad:
        print(f"NOT HELD: {line}")
    sys.exit(1 if bad else 0)


def _run(name: str, directory: Path, *, memory: str, seconds: float) -> list[Cell]:
    """Run one table under one budget in a process of its own, which is ended when it takes too long."""
    command = [sys.executable, "-m", "benchmarks.hostile_matrix", "--table", name, "--memory", memory, "--inside"]
    cells: list[Cell] = []
    with subprocess.Popen([*command, str(directory)], stdout=subprocess.PIPE, text=True) as process:
        try:
            out, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            out, _ = process.communicate()
            cells = [Cell("after what is shown", "hang", f"no end after {seconds:.0f} s")]
    if process.returncode and not cells:
        cells = [Cell("after what is shown", "crash", f"the runner ended with exit code {process.returncode}")]
    return [*(Cell(**json.loads(line)) for line in out.splitlines() if line.startswith("{")), *cells]


def run_cells(name: str, directory: Path, *, memory: str) -> Iterator[Cell]:
    """Yield what each stage made of a table under a budget, up to the one that refused it or ended with an error."""
    spec = PipelineSpec.model_validate(pipeline(name, directory, memory=memory))
    shares: list[float] = []

    def watch(event: object) -> None:
        if isinstance(event, TaskEnded) and event.outcome == "ok" and event.projected_bytes:
            shares.append(event.measured_bytes / event.projected_bytes)

    now = StageContext.of(spec, directory=directory, hook=watch)
    # The model is learned from three quarters of the time, so that a quarter of the rows is there to be scored.
    then = StageContext.of(spec, directory=directory, hook=watch, as_of=_LEARNED)
    steps: Sequence[tuple[str, Stage, StageContext]] = (
        ("extract", ExtractStage("raw"), now),
        ("labels", ExtractStage("labels"), now),
        ("prepare", PrepareStage(), now),
        ("train", TrainStage(("the table is new",)), then),
        ("validate", ValidateStage(), then),
        ("promote", PromoteStage(), then),
        ("score", ScoreStage(), now),
        ("monitor", MonitorStage(), now),
    )
    for stage, step, context in steps:
        started = time.monotonic()
        shares.clear()
        try:
            report = run_stage(step, context)
        except HeadraceError as error:
            yield Cell(stage, _kind(error), str(error), seconds=round(time.monotonic() - started, 1))
            return
        memory_of = report.memory
        if stage not in STAGES:
            continue
        yield Cell(
            stage,
            "quarantine" if report.rows_quarantined else "ok" if report.slices else "nothing",
            "",
            memory_of.measured_bytes,
            memory_of.projected_bytes,
            context.budget.allowed_bytes,
            round(time.monotonic() - started, 1),
            report.rows_out,
            max(shares, default=0.0),
        )


def _kind(error: HeadraceError) -> str:
    if isinstance(error, PlanRefused):
        return "refused"
    if isinstance(error, MemoryBudgetExceeded):
        return "budget"
    return "crash" if isinstance(error, TaskCrashed) else "error"


def _document(found: dict[str, dict[str, list[Cell]]], *, scale: float) -> None:
    """Put these cells into the table in docs/memory.md, and the reasons of those that ended early below it."""
    path = Path(__file__).parents[1] / "docs" / "memory.md"
    before, rest = path.read_text().split(_BEGIN)
    block, after = rest.split(_END)
    run = {(name, memory) for name, budgets in found.items() for memory in budgets}
    rows: dict[tuple[str, str], str] = {}
    reasons: dict[tuple[str, str], list[str]] = {}
    for line in block.splitlines():
        kept = _ROW.match(line) or _REASON.match(line)
        if kept is None or (kept["name"], kept["memory"]) in run:
            continue
        if line.startswith("|"):
            rows[kept["name"], kept["memory"]] = line
        else:
            reasons.setdefault((kept["name"], kept["memory"]), []).append(line)
    for name, memory in run:
        cells = found[name][memory]
        title = name if scale == 1.0 else f"{name} (at {scale:g} of its size)"
        by_stage = {cell.stage: cell.shown() for cell in cells}
        shown = " | ".join(by_stage.get(stage, "not reached") for stage in STAGES)
        rows[name, memory] = f"| {title} | {memory} | {shown} |"
        said = [f"- {name}, {memory}, {cell.stage}: {cell.text.splitlines()[0]}" for cell in cells if cell.text]
        reasons[name, memory] = said
    order = [(name, memory) for name in TABLES for memory in BUDGETS]
    lines = ["", "| table | budget | " + " | ".join(STAGES) + " |", "|---" * (len(STAGES) + 2) + "|"]
    lines += [rows[cell] for cell in order if cell in rows]
    lines += ["", *(line for cell in order for line in reasons.get(cell, ()))]
    path.write_text(before + _BEGIN + "\n".join(lines) + "\n\n" + _END + after)
    print(f"wrote {path.name}")


if __name__ == "__main__":
    main()
