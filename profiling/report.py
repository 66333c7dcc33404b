"""One HTML page of a recording: verdict, four figures, a table of tasks, and the timeline of each (``timeline.py``).

Self-contained: inline SVG and CSS, no script, nothing loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from urllib.parse import quote

from engine.units import format_bytes
from profiling.recorder import TaskRecording
from profiling.timeline import timeline

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2733; --soft: #66727f; --line: #d9dfe6; --paper: #ffffff; --area: #2f7dd1;
  --budget: #c8372d; --projected: #b7791f; --reserved: #6b7280; --good: #1f8a4c; --card: #f5f7fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf1; --soft: #98a4b3; --line: #33404e; --paper: #131a22;
  --area: #5aa2ec; --budget: #ff7b70; --projected: #e5b053; --reserved: #9aa5b1; --good: #58c98a; --card: #1b2530; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto;
  max-width: 1100px; padding: 28px 24px 60px; }
h1 { font-size: 22px; margin: 0 0 2px; } h2 { font-size: 16px; margin: 34px 0 6px; }
p { color: var(--soft); margin: 4px 0 14px; max-width: 80ch; }
.cards { display: flex; gap: 12px; flex-wrap: wrap; margin: 18px 0; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px;
  min-width: 130px; }
.card b { display: block; font-size: 20px; } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th { text-align: left; color: var(--soft);
  font-weight: 500; } th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } .stopped { color: var(--budget);
  font-weight: 600; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .area { fill: var(--area); fill-opacity: .16; } .curve { fill: none; stroke: var(--area);
  stroke-width: 1.8; } line.budget { stroke: var(--budget); stroke-width: 1.6; } line.projected { stroke:
  var(--projected); stroke-dasharray: 6 4; } line.reserved { stroke: var(--reserved); stroke-dasharray: 2 4; }
svg text.budget { fill: var(--budget); } svg text.projected { fill: var(--projected); } .batches { fill: var(--good); }
.chunks { fill: var(--projected); } .pressure { fill: var(--budget); } circle.peak { fill: var(--area);
  stroke: var(--paper); stroke-width: 1.5; } svg text.peak { fill: var(--ink); font-weight: 600; paint-order: stroke;
  stroke: var(--paper); stroke-width: 4px; } a { color: var(--area); } code { font-size: 13px; }
"""


def render(
    tasks: Sequence[TaskRecording],
    *,
    title: str,
    flame_graphs: Mapping[int, str] | None = None,
    failures: Sequence[str] = (),
) -> str:
    """Return the page.

    Parameters
    ----------
    tasks
        Of a recording.
    title
        The pipeline's name.
    flame_graphs
        By the place of a task in ``tasks``, the name of a file beside the page.
    failures
        Why flame graphs are missing.
    """
    links = flame_graphs or {}
    peak = max(tasks, key=lambda task: task.peak[1], default=None)
    parts = [f"<h1>Memory of {escape(title)}</h1>"]
    if peak is None:
        parts.append("<p>No task ran.</p>")
    else:
        parts.append(_summary(tasks, peak))
        parts.append(_table(tasks, links))
    parts += [f'<p class="stopped">No flame graph: {escape(text)}</p>' for text in failures]
    parts += [_section(task, links.get(place)) for place, task in enumerate(tasks)]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Memory of {escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _summary(tasks: Sequence[TaskRecording], peak: TaskRecording) -> str:
    cards = "".join(
        f'<div class="card"><span>{name}</span><b>{_size(size)}</b></div>'
        for name, size in (
            ("allowed", peak.allowed_bytes),
            ("reserved", peak.reserved_bytes),
            ("projected", peak.projected_bytes),
            ("measured", peak.peak[1]),
        )
    )
    return (
        f"<p>{_verdict(tasks)} The highest was {escape(peak.stage)} {escape(peak.task)}: {format_bytes(peak.peak[1])} "
        f"after {peak.peak[0] - peak.began:.1f} s, enforced by {escape(peak.enforced_by)}.</p>"
        f'<div class="cards">{cards}</div>'
        "<p>Measured is the anonymous and shared memory of the task's process tree, with swap; mapped files are not "
        "counted. memray's own memory is, so under a profile a task measures more than without, and may pass what was "
        "projected.</p>"
    )


def _verdict(tasks: Sequence[TaskRecording]) -> str:
    outcomes = {task.outcome for task in tasks}
    if "killed" in outcomes:
        return "A task was stopped at its budget."
    if outcomes - {"ok"}:
        return "No task passed its budget; not every task came to its end."
    return "No task passed its budget."


def _table(tasks: Sequence[TaskRecording], links: Mapping[int, str]) -> str:
    rows = "".join(
        f"<tr><td>{escape(task.stage)}</td><td>{escape(task.task)}</td>{_outcome(task)}"
        f'<td class="n">{task.seconds:.1f}</td><td class="n">{len(task.batches)}</td>'
        f'<td class="n">{_size(task.reserved_bytes)}</td><td class="n">{_size(task.projected_bytes)}</td>'
        f'<td class="n">{_size(task.peak[1])}</td><td class="n">{_size(task.allowed_bytes)}</td>'
        f'<td class="n">{_link(links.get(place))}</td></tr>'
        for place, task in enumerate(tasks)
    )
    numbers = "".join(
        f'<th class="n">{name}</th>'
        for name in ("seconds", "batches", "reserved", "projected", "measured", "allowed", "")
    )
    return (
        f"<table><thead><tr><th>stage</th><th>task</th><th>outcome</th>{numbers}</tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _section(task: TaskRecording, link: str | None) -> str:
    head = f"<h2>{escape(task.stage)} {escape(task.task)}{f' &middot; {_link(link)}' if link else ''}</h2>"
    notes = "".join(f'<p class="stopped">{escape(text)}</p>' for text in task.notes)
    return f"{head}{timeline(task)}{notes}"


def _outcome(task: TaskRecording) -> str:
    return f"<td>{task.outcome}</td>" if task.outcome == "ok" else f'<td class="stopped">{escape(task.outcome)}</td>'


def _size(size: int) -> str:
    return format_bytes(size) if size else "&ndash;"


def _link(name: str | None) -> str:
    return f'<a href="{escape(quote(name), quote=True)}">flame graph</a>' if name else ""
