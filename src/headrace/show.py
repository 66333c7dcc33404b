"""Printing reports: for people as tables, for programs as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from engine.errors import HeadraceError, from_json
from engine.units import format_bytes, format_duration

if TYPE_CHECKING:
    from engine.ledger import Entry
    from engine.quarantine import Quarantined
    from engine.sources.check import Finding
    from engine.vacuum import VacuumReport
    from profiling.comparison import Compared
    from profiling.leaks import Leak

_OUT = Console()
_ERR = Console(stderr=True)
_WIDE = 100  # columns of a terminal that has room for what is nice to have
_PLAN_UNITS = "MiB: reserved, projected, measured, batch, disk. measured and s: the stage's last run."


def loop(report: Mapping[str, Any], *, as_json: bool) -> None:
    """Print what a flow did."""
    if as_json:
        _json(report)
        return
    table = Table("stage", "rows in", "rows out", "quarantined", "seconds", "measured", "allowed", box=None)
    for name, stage in report["stages"].items():
        memory = stage["memory"]
        table.add_row(
            name,
            f"{stage['rows_in']:,}",
            f"{stage['rows_out']:,}",
            f"{stage['rows_quarantined']:,}",
            f"{stage['seconds']:.1f}",
            format_bytes(memory["measured_bytes"]) if memory["measured_bytes"] else "",
            format_bytes(memory["allowed_bytes"]) if memory["allowed_bytes"] else "",
        )
    _OUT.print(table)
    decision = report["decision"]
    if decision is not None:
        word = "retrained" if decision["retrain"] else "not retrained"
        _OUT.print(f"{word}: {'; '.join(decision['reasons'] or decision['kept_because'])}", highlight=False)
    _OUT.print(f"champion: {version(report['champion'])}", highlight=False)


def vacuum(report: VacuumReport, *, as_json: bool) -> None:
    """Print what was deleted, or would be."""
    if as_json:
        _json(report.to_json())
        return
    table = Table("what", "files", "size", box=None)
    for kind, one in report.freed.items():
        table.add_row(kind, f"{one.files:,}", format_bytes(one.bytes))
    _OUT.print(table)
    if report.compacted is not None and report.compacted.slices:
        _OUT.print(f"merged small chunks of {report.compacted.rows_out:,} rows", highlight=False)
    word = "would free" if report.dry_run else "freed"
    keep = format_duration(report.keep)
    _OUT.print(f"{word} {format_bytes(report.bytes)}; kept what is younger than {keep}", highlight=False)


def status(value: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the state of a pipeline."""
    if as_json:
        _json(value)
        return
    champion = value["champion"]
    if champion is None:
        _OUT.print(f"{value['pipeline']}: no champion yet; headrace run trains one", highlight=False)
    else:
        metrics = champion["metrics"]
        shown = ", ".join(
            f"{name} {number(metrics.get(name))}" for name in ("average_precision", "precision", "recall", "f1")
        )
        _OUT.print(
            f"{value['pipeline']}: champion v{champion['version']} since {champion['since']}: {shown}", highlight=False
        )
    tables = Table("table", "rows", "version", "watermark", box=None)
    for name, one in value["tables"].items():
        waiting = f" ({one['waiting']:,} wait for their row)" if one.get("waiting") else ""
        tables.add_row(name, f"{one['rows']:,}", str(one["version"]), f"{one['watermark'] or ''}{waiting}")
    _OUT.print(tables)
    stages = Table("stage", "allowed", "reserved", "projected", "measured", "seconds", "as of", box=None)
    for name, one in value["stages"].items():
        sizes = [one[f"{kind}_bytes"] for kind in ("allowed", "reserved", "projected", "measured")]
        figures = [format_bytes(size) if size else "" for size in sizes]  # a promotion has no task
        stages.add_row(name, *figures, f"{one['seconds']:.1f}", one["as_of"])
    _OUT.print(stages)
    _OUT.print(f"workspace: {value['workspace']}", highlight=False)


def lookup(value: Mapping[str, Any], *, as_json: bool) -> None:
    """Print one row's features; for programs in one line, before the next row is read."""
    if as_json:
        print(json.dumps(value, default=str), flush=True)
        return
    table = Table("feature", "value", box=None)
    for name, feature in value["features"].items():
        table.add_row(escape(name), "" if feature is None else escape(str(feature)))
    _OUT.print(table)
    verdict, through = value["champion"], value["prepared_through"]
    if verdict is not None:
        word = "an alert" if verdict["alert"] else "no alert"
        _OUT.print(
            f"champion v{verdict['version']}: score {verdict['score']:.6g}, {word} "
            f"(from {verdict['threshold']:.6g} on)",
            highlight=False,
        )
    labels = "" if through["labels"] is None else f", labels through {through['labels']}"
    _OUT.print(f"prepared: rows through {through['rows']}{labels}", highlight=False)


def plan(value: Mapping[str, Any], *, as_json: bool) -> None:
    """Print the plan of a pipeline."""
    if as_json:
        _json(value)
        return
    exact = "by polling: best effort, within 10 %" if value["enforced_by"] == "polling" else "exactly"
    _OUT.print(
        f"{value['pipeline']}: {format_bytes(value['allowed_bytes'])} allowed, enforced {exact} "
        f"({value['enforced_by']}); {format_bytes(value['disk_bytes'])} of disk, {value['threads']} threads",
        highlight=False,
        soft_wrap=True,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), caption=_PLAN_UNITS, caption_justify="left")
    table.add_column("stage", no_wrap=True)
    for name in ("reserved", "projected", "measured", "batch", "of rows", "disk", "rows", "rate", "s"):
        table.add_column(name, justify="right", no_wrap=True)
    wide = _OUT.width >= _WIDE
    if wide:
        table.add_column("worst term")
    told = ""
    for one in value["stages"]:
        stage = one["stage"].partition(".")[0]
        past = stage != told  # what the last run took is known of the stage, not of its tasks
        told = stage
        table.add_row(
            one["stage"],
            _mib(one["reserved_bytes"]),
            _mib(one["projected_bytes"]),
            _mib(one["measured_bytes"]) if past else "",
            _mib(one["batch_bytes"]),
            _count(one["batch_rows"]),
            _mib(one["disk_bytes"]),
            _count(one["rows"]),
            "" if one["sampling_rate"] is None else f"{one['sampling_rate']:.2g}",
            "" if one["seconds"] is None or not past else f"{one['seconds']:.1f}",
            *([one["worst_term"]] if wide else []),
        )
    _OUT.print(table)
    for refused in (value, *value["stages"]):
        if refused["error"] is not None:
            error(from_json(refused["error"]))
    if value["smallest_budget_bytes"]:
        smallest = format_bytes(value["smallest_budget_bytes"])
        _ERR.print(f"the smallest budget that would do is {smallest}", highlight=False)


def _mib(size: int | None) -> str:
    return "" if not size else f"{size / 2**20:,.0f}" if size >= 10 * 2**20 else f"{size / 2**20:.1f}"


def _count(value: int | None) -> str:
    """Return a count in five characters at most: ``65.5k``, ``10M``."""
    if value is None:
        return ""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if value >= size:
            amount = value / size
            return f"{amount:.0f}{unit}" if amount >= 100 or amount == int(amount) else f"{amount:.1f}{unit}"
    return str(value)


def history(entries: Sequence[Entry], *, as_json: bool) -> None:
    """Print the ledger."""
    if as_json:
        _json([asdict(entry) for entry in entries])
        return
    table = Table("as of", "model", "what", "before", "why", box=None)
    for entry in entries:
        table.add_row(entry.as_of, f"v{entry.version}", entry.action, version(entry.previous), "; ".join(entry.reasons))
    _OUT.print(table)


def findings(path: Path, found: Sequence[Finding], *, as_json: bool) -> None:
    """Print what a check found."""
    if as_json:
        _json([asdict(finding) for finding in found])
        return
    for finding in found:
        _OUT.print(f"{finding.severity}: {finding.where}: {finding.message}", highlight=False, markup=False)
        if finding.hint:
            _OUT.print(f"  {finding.hint}", highlight=False, markup=False)
    errors = sum(finding.severity == "error" for finding in found)
    warnings = sum(finding.severity == "warning" for finding in found)
    _OUT.print(f"{path}: {errors} errors, {warnings} warnings", highlight=False)


def quarantine(found: Quarantined, *, pipeline: Path, as_json: bool) -> None:
    """Print what is in quarantine."""
    if as_json:
        reasons = [{"table": table, "reason": reason, "rows": rows} for table, reason, rows in found.reasons]
        _json({"rows": found.rows, "reasons": reasons, "examples": list(found.examples)})
        return
    if not found.rows:
        _OUT.print("nothing is in quarantine")
        return
    by_reason = Table("table", "rows", "reason", box=None)
    for table, reason, rows in found.reasons:
        by_reason.add_row(table, f"{rows:,}", reason)
    _OUT.print(by_reason)
    if found.examples:
        examples = Table("table", "key", "cursor", "place", "column", "value", "reason", box=None)
        for row in found.examples:
            cells = [row[name] for name in ("table", "key", "cursor", "place", "column", "value", "reason")]
            examples.add_row(*("" if cell is None else str(cell)[:60] for cell in cells))
        _OUT.print(examples)
    _OUT.print(
        f"{found.rows:,} rows; correct them in the source, or the pipeline file, then: "
        f"headrace quarantine {pipeline} --replay",
        highlight=False,
        soft_wrap=True,
    )


def profile(value: Mapping[str, Any], *, as_json: bool) -> None:
    """Print where a memory profile lies."""
    if as_json:
        _json(value)
        return
    for name, text in value.items():
        _OUT.print(f"{name}: {text}", highlight=False, markup=False, soft_wrap=True)


def comparison(rows: Sequence[Compared], *, as_json: bool) -> None:
    """Print two recordings side by side."""
    if as_json:
        _json([asdict(row) for row in rows])
        return
    table = Table("task", "peak before", "peak after", "seconds before", "seconds after", box=None)
    for row in rows:
        peaks = ["-" if size is None else format_bytes(size) for size in row.peak_bytes]
        seconds = ["-" if value is None else f"{value:.1f}" for value in row.seconds]
        table.add_row(row.name, *peaks, *seconds)
    _OUT.print(table)


def leaks(rows: Sequence[Leak], *, as_json: bool) -> None:
    """Print what was never given back."""
    if as_json:
        _json([asdict(row) for row in rows])
        return
    table = Table("bytes", "allocations", "where", box=None)
    for row in rows:
        table.add_row(format_bytes(row.bytes), f"{row.allocations:,}", row.where)
    _OUT.print(table)


def error(value: HeadraceError) -> None:
    """Print an error as one message with what to do."""
    _ERR.print(f"error: {value.message}", highlight=False, markup=False, soft_wrap=True)
    if value.hint:
        _ERR.print(f"  {value.hint}", highlight=False, markup=False, soft_wrap=True)


def number(value: float | None) -> str:
    """Return a metric for people."""
    return "-" if value is None else f"{value:.3f}"


def version(value: int) -> str:
    """Return a model version for people."""
    return f"v{value}" if value else "none"


def _json(value: Any) -> None:
    print(json.dumps(value, indent=2, default=str))
