"""Line charts as inline SVG, without scripts, style sheets or external references."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from types import MappingProxyType

__all__ = ["COLORS", "line_chart", "ticks"]


COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#222222", "#EE8866", "#999933", "#882255")


MOST = len(COLORS)


LEFT, RIGHT, TOP, BOTTOM, WIDTH, HEIGHT, LEGEND = 60, 12, 26, 38, 420, 260, 190


Points = Sequence[tuple[float, float]]


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`.

    Examples:
        >>> ticks(0.13, 0.9)
        [0.2, 0.4, 0.6, 0.8]
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((factor * power for factor in (1, 2, 5, 10)), key=lambda each: abs(math.log(each / rough)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(number * step, digits) for number in range(first, last + 1)]


def line_chart(
    series: Mapping[str, Points],
    *,
    title: str,
    x_label: str,
    bands: Mapping[str, tuple[Points, Points]] = MappingProxyType({}),
) -> str:
    """Return an SVG chart of the first ten `series`, name -> (x, y) pairs; "" if no point is finite.

    `bands` are the lower and upper ends of intervals, name -> (lower points, upper points), drawn behind their lines.
    The y axis is logarithmic where all values are positive and span more than a factor of 30.
    """
    drawn = {name: finite for name, points in series.items() if (finite := _finite(points))}
    left_out = len(drawn) - MOST
    drawn = dict(list(drawn.items())[:MOST])
    if not drawn:
        return ""
    edges = {name: [*_finite(low), *reversed(_finite(high))] for name, (low, high) in bands.items() if name in drawn}
    xs = [x for points in drawn.values() for x, _ in points]
    ys = [y for points in [*drawn.values(), *edges.values()] for _, y in points]
    logarithmic = min(ys) > 0 and max(ys) / min(ys) > 30
    x_axis, y_axis = _Axis(xs, (LEFT, LEFT + WIDTH)), _Axis(ys, (TOP + HEIGHT, TOP), logarithmic=logarithmic)
    parts = [f"<title>{escape(title)}</title>", _text(LEFT, 16, title, weight="bold")]
    for value in y_axis.ticks:
        at = y_axis(value)
        parts.append(f'<line x1="{LEFT}" y1="{at:.1f}" x2="{LEFT + WIDTH}" y2="{at:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, at + 4, _number(value), anchor="end"))
    for value in x_axis.ticks:
        parts.append(_text(x_axis(value), TOP + HEIGHT + 16, _number(value), anchor="middle"))
    parts.append(_text(LEFT + WIDTH / 2, TOP + HEIGHT + 32, x_label, anchor="middle"))
    parts.append(f'<rect x="{LEFT}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888888"/>')
    for number, (name, points) in enumerate(drawn.items()):
        color, height = COLORS[number], TOP + 10 + 18 * number
        places = [(x_axis(x), y_axis(y)) for x, y in points]
        if edge := " ".join(f"{x_axis(x):.1f},{y_axis(y):.1f}" for x, y in edges.get(name, [])):
            parts.append(f'<polygon points="{edge}" fill="{color}" fill-opacity="0.15"/>')
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        if len(places) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.4" fill="{color}"/>' for x, y in places]
        x = LEFT + WIDTH + RIGHT
        parts.append(f'<line x1="{x}" y1="{height}" x2="{x + 16}" y2="{height}" stroke="{color}" stroke-width="3"/>')
        parts.append(_text(x + 21, height + 4, name))
    if left_out > 0:
        parts.append(_text(LEFT + WIDTH + RIGHT, TOP + 14 + 18 * MOST, f"and {left_out} more"))
    size = (LEFT + WIDTH + RIGHT + LEGEND, TOP + HEIGHT + BOTTOM)
    head = f'<svg role="img" viewBox="0 0 {size[0]} {size[1]}" width="{size[0]}" height="{size[1]}"'
    return head + ' font-family="sans-serif" font-size="12">' + "".join(parts) + "</svg>"


def _finite(points: Points) -> list[tuple[float, float]]:
    return [point for point in points if all(map(math.isfinite, point))]


class _Axis:
    """Map from values to pixels."""

    def __init__(self, values: Sequence[float], pixels: tuple[float, float], *, logarithmic: bool = False) -> None:
        self.logarithmic, self.pixels = logarithmic, pixels
        low, high = self._scale(min(values)), self._scale(max(values))
        margin = 0.05 * (high - low) if high - low > 1e-12 * max(abs(high), 1e-300) else abs(high) * 0.1 or 1.0
        self.low, self.high = low - margin, high + margin

    def __call__(self, value: float) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])

    @property
    def ticks(self) -> list[float]:
        if not self.logarithmic:
            return ticks(self.low, self.high)
        return [10.0**power for power in range(math.ceil(self.low), math.floor(self.high) + 1)]

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def _number(value: float) -> str:
    """Return the label of a tick: 61,440 or 0.25 or 1e-05."""
    return f"{value:,.0f}" if value == round(value) and 1 <= abs(value) < 1e9 else f"{value:.6g}"


def _text(x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}">{escape(text)}</text>'
