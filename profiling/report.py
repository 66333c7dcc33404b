"""One HTML page of a recording: the timeline of measured bytes against the budget, batches, chunks, pressure, four
figures.

Self-contained: inline SVG and CSS, no script, nothing loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from engine.units import format_bytes
from profiling.recorder import TaskRecording

_WIDTH, _HEIGHT = 1040, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 18, 44
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
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; min-width:
130px; }
.card b { display: block; font-size: 20px; } .card span { color: var(--soft); font-size: 13px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; } th { text-align: left; color: var(--soft);
  font-weight: 500; } th, td { padding: 5px 10px 5px 0; border-bottom: 1px solid var(--line); }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } .killed { color: var(--budget); font-weight:
600; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font-size: 12px; }
.grid { stroke: var(--line); } .area { fill: var(--area); fill-opacity: .16; } .curve { fill: none; stroke: var(--area);
  stroke-width: 1.8; } .budget { stroke: var(--budget); stroke-width: 1.6; } .projected { stroke: var(--projected);
  stroke-dasharray: 6 4; } .reserved { stroke: var(--reserved); stroke-dasharray: 2 4; } .batch { fill: var(--good); }
.chunk { fill: var(--projected); } .pressure { fill: var(--budget); } svg text.budget-text { fill: var(--budget); }
svg text.projected-text { fill: var(--projected); } a { color: var(--area); }
"""


def render(
    tasks: Sequence[TaskRecording], *, title: str, flame_graphs: Mapping[tuple[str, str], str] | None = None
) -> str:
    """Return the page.

    Parameters
    ----------
    tasks
        Of a recording.
    title
        The pipeline's name.
    flame_graphs
        By (stage, task), the name of a file beside the page.
    """
    links = flame_graphs or {}
    peak = max(tasks, key=lambda task: task.peak[1], default=None)
    parts = [f"<h1>Memory of {escape(title)}</h1>"]
    if peak is None:
        parts.append("<p>No task ran.</p>")
    else:
        parts.append(_summary(tasks, peak))
        parts.append(_table(tasks, links))
        parts += [_section(task, links.get((task.stage, task.task))) for task in tasks]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Memory of {escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n"
    )


def _summary(tasks: Sequence[TaskRecording], peak: TaskRecording) -> str:
    within = all(task.outcome != "killed" for task in tasks)
    verdict = "No task passed its budget." if within else "A task was stopped at its budget."
    cards = "".join(
        f'<div class="card"><span>{name}</span><b>{format_bytes(size) if size else "&ndash;"}</b></div>'
        for name, size in (
            ("allowed", peak.allowed_bytes),
            ("reserved", peak.reserved_bytes),
            ("projected", peak.projected_bytes),
            ("measured", peak.peak[1]),
        )
    )
    return (
        f"<p>{verdict} The highest: {escape(peak.stage)} {escape(peak.task)}, {format_bytes(peak.peak[1])} after "
        f"{peak.peak[0] - peak.began:.1f} s, enforced by {escape(peak.enforced_by)}. Measured is the anonymous and shared "
        "memory of the task's process tree, with swap; mapped files are not counted, memray's own memory is.</p>"
        f'<div class="cards">{cards}</div>'
    )


def _table(tasks: Sequence[TaskRecording], links: Mapping[tuple[str, str], str]) -> str:
    rows = "".join(
        f"<tr><td>{escape(task.stage)}</td><td>{escape(task.task)}</td>"
        f"<td{' class=killed' if task.outcome != 'ok' else ''}>{escape(task.outcome)}</td>"
        f'<td class="n">{task.seconds:.1f}</td><td class="n">{len(task.batches)}</td>'
        f'<td class="n">{format_bytes(task.projected_bytes) if task.projected_bytes else ""}</td>'
        f'<td class="n">{format_bytes(task.peak[1])}</td><td class="n">{format_bytes(task.allowed_bytes)}</td>'
        f"<td>{_link(links.get((task.stage, task.task)))}</td></tr>"
        for task in tasks
    )
    return (
        "<table><thead><tr><th>stage</th><th>task</th><th>outcome</th><th class=n>seconds</th><th class=n>batches</th>"
        "<th class=n>projected</th><th class=n>measured</th><th class=n>allowed</th><th></th></tr></thead>"
        f"<tbody>{rows}</tbody></table>"
    )


def _link(name: str | None) -> str:
    return f'<a href="{escape(name, quote=True)}">flame graph</a>' if name else ""


def _section(task: TaskRecording, link: str | None) -> str:
    note = f" &middot; {_link(link)}" if link else ""
    legend = (
        f"{len(task.batches)} batches (green marks), {len(task.chunks)} chunks written (amber), "
        f"{len(task.pressures)} changes of pressure (red)"
    )
    return f"<h2>{escape(task.stage)} {escape(task.task)}{note}</h2>{_plot(task)}<p>{legend}</p>"


def _plot(task: TaskRecording) -> str:
    top = max(task.allowed_bytes, task.peak[1], task.projected_bytes, 1) * 1.08
    length = max(task.seconds, 0.05)

    def x(when: float) -> float:
        return _LEFT + (when - task.began) / length * (_WIDTH - _LEFT - _RIGHT)

    def y(size: float) -> float:
        return _HEIGHT - _BOTTOM - size / top * (_HEIGHT - _TOP - _BOTTOM)

    out = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="measured bytes over time">']
    for step in range(5):
        size = top * step / 4
        out.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(size):.1f}" y2="{y(size):.1f}"/>')
        out.append(f'<text x="{_LEFT - 8}" y="{y(size) + 4:.1f}" text-anchor="end">{format_bytes(size)}</text>')
        when = task.began + length * step / 4
        out.append(f'<text x="{x(when):.1f}" y="{_HEIGHT - 24}" text-anchor="middle">{length * step / 4:.1f} s</text>')
    if task.samples:
        line = " ".join(f"{x(when):.1f},{y(size):.1f}" for when, size in task.samples)
        first, last = x(task.samples[0][0]), x(task.samples[-1][0])
        out.append(f'<polygon class="area" points="{first:.1f},{y(0):.1f} {line} {last:.1f},{y(0):.1f}"/>')
        out.append(f'<polyline class="curve" points="{line}"/>')
    lines = {"budget": task.allowed_bytes, "projected": task.projected_bytes, "reserved": task.reserved_bytes}
    for name, size in lines.items():
        if size:
            title = f"<title>{name} {format_bytes(size)}</title>"
            ends = f'x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y(size):.1f}" y2="{y(size):.1f}"'
            out.append(
                f'<line class="{name}" {ends}>{title}</line>'
                f'<text class="{name}-text" x="{_WIDTH - _RIGHT}" y="{y(size) - 5:.1f}" text-anchor="end">'
                f"{name} {format_bytes(size)}</text>"
            )
    for when, rows, size in task.batches:
        text = f"<title>{rows:,} rows, {format_bytes(size)}</title>"
        out.append(f'<rect class="batch" x="{x(when):.1f}" y="{_HEIGHT - 14}" width="2" height="6">{text}</rect>')
    for when, path, rows in task.chunks:
        text = f"<title>{escape(path)}: {rows:,} rows</title>"
        out.append(f'<rect class="chunk" x="{x(when):.1f}" y="{_HEIGHT - 14}" width="3" height="10">{text}</rect>')
    for when, level in task.pressures:
        text = f"<title>pressure: {escape(level)}</title>"
        out.append(f'<circle class="pressure" cx="{x(when):.1f}" cy="{_HEIGHT - 38}" r="4">{text}</circle>')
    out.append("</svg>")
    return "".join(out)
