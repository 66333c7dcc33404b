"""The SVG of growth: seconds over rows with the fitted line, and the peak of each stage, both on logarithmic rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from engine.units import format_bytes

_WIDTH, _HEIGHT, _LEFT, _TOP, _PANEL, _GAP = 1080, 380, 80, 40, 380, 170
_PLOT = 280
_COLORS = ("#2f7dd1", "#c8372d", "#1f8a4c", "#b7791f", "#7b52ab", "#0f8b8d", "#a0522d", "#6b7280")
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#66727f}.title{font-size:14px;fill:#1d2733}.grid{stroke:#d9dfe6}"
    ".fit{stroke:#66727f;stroke-dasharray:6 4}.budget{stroke:#c8372d;stroke-width:1.6}"
)


def draw_growth(
    seconds: Sequence[tuple[float, float]],
    *,
    exponent: float,
    peaks: Mapping[str, Sequence[tuple[float, float]]],
    allowed_bytes: int,
) -> str:
    """Return the chart.

    Parameters
    ----------
    seconds
        Pairs of rows and seconds.
    exponent
        Slope of their log-log fit, drawn through their mean.
    peaks
        By stage, pairs of rows and measured bytes.
    allowed_bytes
        The budget, drawn across.
    """
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">']
    out.append(f'<style>{_STYLE}</style><rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>')
    out += _seconds(seconds, exponent)
    out += _peaks(peaks, allowed_bytes)
    out.append("</svg>\n")
    return "\n".join(out)


def _seconds(points: Sequence[tuple[float, float]], exponent: float) -> list[str]:
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = 10 ** math.floor(math.log10(min(ys))), 10 ** math.ceil(math.log10(max(ys) * 1.01))

    def y(value: float) -> float:
        return _TOP + _PLOT * (1 - math.log(value / low) / math.log(high / low))

    out = [_text(_LEFT, _TOP - 16, f"seconds of all stages, rows to the power of {exponent:.2f}", kind="title")]
    value = low
    while value <= high:
        out += [_across(_LEFT, y(value)), _text(_LEFT - 8, y(value) + 4, f"{value:g} s", anchor="end")]
        value *= 10
    out += _rows(_LEFT, xs)
    if len(points) > 1:
        middle = (math.exp(sum(map(math.log, xs)) / len(xs)), math.exp(sum(map(math.log, ys)) / len(ys)))
        ends = [(at, middle[1] * (at / middle[0]) ** exponent) for at in (min(xs), max(xs))]
        (x1, y1), (x2, y2) = ((_x(_LEFT, xs, at), y(value)) for at, value in ends)
        out.append(f'<line class="fit" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')
    for at, value in points:
        tip = f"<title>{at:,} rows: {value:.1f} s</title>"
        out.append(
            f'<circle cx="{_x(_LEFT, xs, at):.1f}" cy="{y(value):.1f}" r="4.5" fill="{_COLORS[0]}">{tip}</circle>'
        )
    return out


def _peaks(peaks: Mapping[str, Sequence[tuple[float, float]]], allowed_bytes: int) -> list[str]:
    left = _LEFT + _PANEL + _GAP
    xs = sorted({x for points in peaks.values() for x, _ in points})
    top = allowed_bytes * 1.1

    def y(value: float) -> float:
        return _TOP + _PLOT * (1 - value / top)

    out = [_text(left, _TOP - 16, "peak of each stage, measured", kind="title")]
    for step in range(5):
        size = allowed_bytes * step // 4
        out += [_across(left, y(size)), _text(left - 8, y(size) + 4, format_bytes(size), anchor="end")]
    out.append(_across(left, y(allowed_bytes), kind="budget"))
    out.append(_text(left + 4, y(allowed_bytes) - 5, f"budget {format_bytes(allowed_bytes)}"))
    out += _rows(left, xs)
    below = math.inf
    ends = sorted(peaks.items(), key=lambda item: item[1][-1][1])
    for number, (name, points) in enumerate(ends):
        color = _COLORS[number % len(_COLORS)]
        line = " ".join(f"{_x(left, xs, at):.1f},{y(value):.1f}" for at, value in points)
        out.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.8"/>')
        for at, value in points:
            tip = f"<title>{escape(name)}, {at:,} rows: {format_bytes(int(value))}</title>"
            place = f'cx="{_x(left, xs, at):.1f}" cy="{y(value):.1f}"'
            out.append(f'<circle {place} r="3.5" fill="{color}">{tip}</circle>')
        below = min(y(points[-1][1]) + 4, below - 14)
        out.append(f'<text x="{left + _PANEL + 10}" y="{below:.1f}" style="fill:{color}">{escape(name)}</text>')
    return out


def _x(left: int, xs: Sequence[float], at: float) -> float:
    low, high = min(xs), max(xs)
    share = math.log(at / low) / math.log(high / low) if high > low else 0.5
    return left + 14 + share * (_PANEL - 28)


def _rows(left: int, xs: Sequence[float]) -> list[str]:
    return [
        _text(
            _x(left, xs, at), _TOP + _PLOT + 20, f"{at / 1e6:.3g} M rows" if at >= 1e5 else f"{at:g}", anchor="middle"
        )
        for at in sorted(set(xs))
    ]


def _across(left: int, y: float, *, kind: str = "grid") -> str:
    return f'<line class="{kind}" x1="{left}" x2="{left + _PANEL}" y1="{y:.1f}" y2="{y:.1f}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
