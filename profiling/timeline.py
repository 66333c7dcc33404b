"""The SVG of one task: measured bytes over time against its lines, and lanes of marks. The page around it is
``report.py``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape

from engine.units import format_bytes
from profiling.recorder import TaskRecording

_WIDTH, _LEFT, _RIGHT, _TOP = 1040, 78, 150, 26
_PLOT = 230  # height of the plot itself
_LANE = 18
_LABEL = 15  # two labels closer than this would overlap
_MIB = 1024**2


def timeline(task: TaskRecording) -> str:
    """Return an inline SVG; times are seconds since the task began, every mark has a tooltip."""
    lanes = [lane for lane in _lanes(task) if lane[1]]
    height = _TOP + _PLOT + 42 + _LANE * len(lanes)
    ticks = _ticks(max(task.allowed_bytes, task.peak[1], task.projected_bytes))
    span = max(task.seconds, 0.05)

    def x(when: float) -> float:
        return _LEFT + min(max(when - task.began, 0.0) / span, 1.0) * (_WIDTH - _LEFT - _RIGHT)

    def y(size: float) -> float:
        return _TOP + _PLOT * (1 - size / ticks[-1])

    label = f"{task.stage} {task.task}: measured bytes over time"
    out = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(label, quote=True)}">']
    out.append(f'<text x="{_LEFT}" y="{_TOP - 12}">memory</text>')
    for size in ticks:
        out.append(_across("grid", y(size)))
        out.append(f'<text x="{_LEFT - 8}" y="{y(size) + 4:.1f}" text-anchor="end">{format_bytes(size)}</text>')
    for step in range(6):
        when = task.began + span * step / 5
        text = f"{span * step / 5:.{2 if span < 2 else 1}f} s"
        out.append(f'<text x="{x(when):.1f}" y="{_TOP + _PLOT + 18}" text-anchor="middle">{text}</text>')
    if task.samples:
        line = " ".join(f"{x(when):.1f},{y(size):.1f}" for when, size in task.samples)
        first, last = x(task.samples[0][0]), x(task.samples[-1][0])
        out.append(f'<polygon class="area" points="{first:.1f},{y(0):.1f} {line} {last:.1f},{y(0):.1f}"/>')
        out.append(f'<polyline class="curve" points="{line}"/>')
    lines = {"budget": task.allowed_bytes, "projected": task.projected_bytes, "reserved": task.reserved_bytes}
    shown = {name: size for name, size in lines.items() if size}
    at = _spread({name: y(size) for name, size in shown.items()})
    for name, size in shown.items():
        out.append(_across(name, y(size)))
        out.append(
            f'<text class="{name}" x="{_WIDTH - _RIGHT + 8}" y="{at[name] + 4:.1f}">{name} {format_bytes(size)}</text>'
        )
    out += _peak(task, x(task.peak[0]), y(task.peak[1]))
    for number, (name, marks) in enumerate(lanes):
        top = _TOP + _PLOT + 34 + _LANE * number
        out.append(f'<text x="{_LEFT - 8}" y="{top + 9}" text-anchor="end">{name}</text>')
        for when, text in marks:
            tip = f"<title>{escape(text)}, at {when - task.began:.1f} s</title>"
            out.append(f'<rect class="{name}" x="{x(when) - 1:.1f}" y="{top}" width="2.4" height="10">{tip}</rect>')
    out.append("</svg>")
    return "".join(out)


def _lanes(task: TaskRecording) -> Iterator[tuple[str, Sequence[tuple[float, str]]]]:
    yield "batches", [(when, f"{rows:,} rows, {format_bytes(size)}") for when, rows, size in task.batches]
    yield "chunks", [(when, f"{path}: {rows:,} rows") for when, path, rows in task.chunks]
    yield "pressure", [(when, f"pressure: {level}") for when, level in task.pressures]


def _peak(task: TaskRecording, x: float, y: float) -> list[str]:
    if not task.samples:
        return []
    text = f"peak {format_bytes(task.peak[1])} at {task.peak[0] - task.began:.1f} s"
    anchor = "start" if x < _WIDTH / 2 else "end"
    return [
        f'<circle class="peak" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{text}</title></circle>',
        f'<text class="peak" x="{x:.1f}" y="{y - 9:.1f}" text-anchor="{anchor}">{text}</text>',
    ]


def _across(name: str, y: float) -> str:
    return f'<line class="{name}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _ticks(highest: int) -> list[int]:
    """Return four to nine round sizes from zero to above ``highest``: powers of two of a MiB apart."""
    step = 2 ** max(0, math.ceil(math.log2(max(highest, 1) / _MIB / 6))) * _MIB
    return [step * number for number in range(math.floor(highest / step) + 2)]


def _spread(wanted: dict[str, float]) -> dict[str, float]:
    """Return heights for labels, from the top down, none on another; the lowest line keeps its own."""
    out: dict[str, float] = {}
    below = math.inf
    for name, at in sorted(wanted.items(), key=lambda item: -item[1]):
        below = out[name] = min(at, below - _LABEL)
    return out
