"""Small charts as SVG to stand inside a page: lines, intervals and trials, drawn with the page's own colours and fonts.

A chart has no text but words and numbers, takes its colours from classes (`s0` to `s5`, see `report_style`), so that it
follows the page into the dark, and tells lines apart by marker and dash as well as by colour. The same input gives the
same bytes.
"""

import html
import math
from collections.abc import Sequence
from typing import NamedTuple

from mvp_jax.reports import plots, report_numbers

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 66, 12, 38
_POINTS = 160


class ChartLine(NamedTuple):
    """A line of a chart.

    Attributes:
        name: what stands at its end.
        style: from 0 to 5, which colour, dash and marker it has.
        points: places `(x, y)` in the order of x; those with a number that is not finite are left out.
    """

    name: str
    style: int
    points: tuple[tuple[float, float], ...]


class ChartInterval(NamedTuple):
    """A value with its interval.

    Attributes:
        name: what stands left of it.
        style: from 0 to 5, which colour and marker it has.
        value: the value.
        low: the lower end of its interval; `None`: no interval is drawn.
        high: the upper end of its interval.
        text: what stands right of it.
    """

    name: str
    style: int
    value: float
    low: float | None
    high: float | None
    text: str


def drawable(value: float) -> bool:
    """Whether a number can be drawn: it is finite, and so are differences of such numbers."""
    return abs(value) < 1e100


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Returns round numbers from about `low` to about `high`, at most `most` of them, inside.

    >>> ticks(0, 1000), ticks(0.91, 0.94, 4)
    ([0.0, 250.0, 500.0, 750.0, 1000.0], [0.91, 0.92, 0.93, 0.94])
    >>> ticks(0, 3, whole=True)
    [0.0, 1.0, 2.0, 3.0]
    """
    if not high > low:
        return [low]
    exponent = math.floor(math.log10((high - low) / most))
    for power in (exponent, exponent + 1, exponent + 2):
        for factor in (1, 2, 2.5, 5):
            step = factor * 10.0**power
            if whole and step % 1:
                continue
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most:
                return [round(k * step, 12) for k in range(first, last + 1)]
    return [low, high]


def line_chart(
    lines: Sequence[ChartLine], *, width: int = 380, height: int = 236, x_label: str, y_label: str, alt: str
) -> str:
    """Returns a chart of lines as an `svg` element, each with its name at its end.

    Args:
        lines: at least one with a point; the names of the lines are shortened to fit.
        width: in the units of the chart, which are pixels where there is room.
        height: in the same units.
        x_label: what is below.
        y_label: what is above.
        alt: what the chart shows, for those who cannot see it.
    """
    shown = [line._replace(points=_finite(line.points)) for line in lines]
    shown = [line for line in shown if line.points]
    xs = [x for line in shown for x, _ in line.points]
    ys = [y for line in shown for _, y in line.points]
    frame = _Frame(_padded(xs, 0.0), _padded(ys, 0.06), width, height, _RIGHT)
    parts = [frame.axes(x_label, y_label, whole=all(x == int(x) for x in xs))]
    places = plots.spread([frame.y(line.points[-1][1]) for line in shown], 13, _TOP, height - _BOTTOM)
    for line, place in zip(shown, places, strict=True):
        points = _thinned(line.points)
        path = " ".join(f"{frame.x(x):.1f},{frame.y(y):.1f}" for x, y in points)
        parts.append(f'<polyline class="line s{line.style % 6}" points="{path}"/>')
        if len(points) <= 24:
            parts.extend(_marker(line.style, frame.x(x), frame.y(y)) for x, y in points)
        else:
            parts.append(_marker(line.style, frame.x(points[-1][0]), frame.y(points[-1][1])))
        end = width - _RIGHT + 9
        parts.append(_text(end, place + 4, _short(line.name, 9), f"name s{line.style % 6}", "start"))
    return _svg(width, height, alt, parts)


def trial_chart(
    trials: Sequence[tuple[float, float, bool]],
    target: float | None,
    *,
    width: int = 380,
    height: int = 236,
    x_label: str,
    y_label: str,
    alt: str,
) -> str:
    """Returns the trials of a search as an `svg` element: filled where good enough, a cross where not.

    Args:
        trials: of each the amount, the score and whether it was good enough.
        target: the score that was needed, a dashed line; `None`: no line.
        width: in the units of the chart, which are pixels where there is room.
        height: in the same units.
        x_label: what is below.
        y_label: what is above.
        alt: what the chart shows, for those who cannot see it.
    """
    known = [t for t in trials if drawable(t[0]) and drawable(t[1])]
    heights = [t[1] for t in known] + ([target] if target is not None and drawable(target) else [])
    frame = _Frame(_padded([t[0] for t in known], 0.06), _padded(heights, 0.1), width, height, _RIGHT)
    parts = [frame.axes(x_label, y_label)]
    if target is not None and drawable(target):
        y = frame.y(target)
        parts.append(f'<line class="target" x1="{_LEFT}" x2="{width - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(_text(width - _RIGHT + 5, y + 4, "needed", "name", "start"))
    for amount, value, enough in known:
        x, y = frame.x(amount), frame.y(value)
        if enough:
            parts.append(f'<circle class="dot s1" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        else:
            arms = f"M{x - 4:.1f} {y - 4:.1f}l8 8M{x - 4:.1f} {y + 4:.1f}l8 -8"
            parts.append(f'<path class="cross s2" d="{arms}"/>')
    return _svg(width, height, alt, parts)


def interval_chart(rows: Sequence[ChartInterval], *, zero: bool, digits: int, alt: str, width: int = 380) -> str:
    """Returns values with their intervals below each other on one scale, as an `svg` element.

    Args:
        rows: at least one with a finite value.
        zero: whether a line is drawn at 0, for differences.
        digits: the decimals of the numbers along the scale.
        alt: what the chart shows, for those who cannot see it.
        width: in the units of the chart, which are pixels where there is room.
    """
    known = [r for r in rows if drawable(r.value)]
    ends = [v for r in known for v in (r.value, r.low, r.high) if v is not None and drawable(v)]
    names, texts = max(len(_short(r.name, 11)) for r in known), max(len(r.text) for r in known)
    left, right, gap, top = 14 + 7 * names, min(14 + 6.3 * texts, 0.45 * width), 26, 6
    bottom = top + gap * len(known)
    low, high = _padded([*ends, *([0.0] if zero else [])], 0.06)

    def at(value: float) -> float:
        return left + (value - low) / (high - low) * (width - left - right)

    parts = []
    for tick in ticks(low, high, 4):
        x = at(tick)
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{bottom}"/>')
        parts.append(_text(x, bottom + 15, report_numbers.number(tick, digits), "tick", "middle"))
    if zero:
        parts.append(f'<line class="target" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="{top}" y2="{bottom}"/>')
    for k, row in enumerate(known):
        y = top + gap * (k + 0.5)
        parts.append(_text(left - 8, y + 4, _short(row.name, 11), "name", "end"))
        if row.low is not None and row.high is not None and drawable(row.low) and drawable(row.high):
            a, b = at(row.low), at(row.high)
            bar = f"M{a:.1f} {y}H{b:.1f}M{a:.1f} {y - 4}v8M{b:.1f} {y - 4}v8"
            parts.append(f'<path class="interval s{row.style % 6}" d="{bar}"/>')
        parts.append(_marker(row.style, at(row.value), y))
        parts.append(_text(width, y + 4, row.text, "tick", "end"))
    return _svg(width, bottom + 22, alt, parts)


class _Frame:
    """Two scales and the place of the axes."""

    def __init__(
        self, across: tuple[float, float], along: tuple[float, float], width: int, height: int, right: int
    ) -> None:
        self.across, self.along = across, along
        self.width, self.height, self.right = width, height, right

    def x(self, value: float) -> float:
        low, high = self.across
        return _LEFT + (value - low) / (high - low) * (self.width - _LEFT - self.right)

    def y(self, value: float) -> float:
        low, high = self.along
        return self.height - _BOTTOM - (value - low) / (high - low) * (self.height - _TOP - _BOTTOM - 12)

    def axes(self, x_label: str, y_label: str, *, whole: bool = False) -> str:
        end, floor = self.width - self.right, self.height - _BOTTOM
        parts = []
        for tick, words in _labelled(ticks(*self.along)):
            y = self.y(tick)
            parts.append(f'<line class="grid" x1="{_LEFT}" x2="{end}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(_text(_LEFT - 6, y + 4, words, "tick", "end"))
        for tick, words in _labelled(ticks(*self.across, 5, whole=whole)):
            parts.append(_text(self.x(tick), floor + 15, words, "tick", "middle"))
        parts.append(f'<line class="axis" x1="{_LEFT}" x2="{end}" y1="{floor}" y2="{floor}"/>')
        parts.append(_text((_LEFT + end) / 2, self.height - 5, x_label, "label", "middle"))
        parts.append(_text(2, 11, y_label, "label", "start"))
        return "".join(parts)


def _labelled(values: Sequence[float]) -> list[tuple[float, str]]:
    """Numbers with their words: all with as many decimals, or with three digits where they are far from 1."""
    largest = max(map(abs, values))
    if largest and not 1e-3 <= largest < 1e6:
        return [(v, f"{v:.3g}".replace("-", "−")) for v in values]
    digits = max(len(f"{v:.6f}".rstrip("0").partition(".")[2]) for v in values)
    return [(v, f"{v:,.{digits}f}".replace("-", "−")) for v in values]


def _finite(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple((x, y) for x, y in points if drawable(x) and drawable(y))


def _thinned(points: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    """At most `_POINTS` of the points, evenly spread, the last among them."""
    if len(points) <= _POINTS:
        return points
    return tuple(points[round(k * (len(points) - 1) / (_POINTS - 1))] for k in range(_POINTS))


def _padded(values: Sequence[float], share: float) -> tuple[float, float]:
    """The range of values with some room, never empty."""
    low, high = (min(values), max(values)) if values else (0.0, 1.0)
    room = (high - low) * share
    if high - low <= 1e-12 * max(1.0, abs(high), abs(low)):
        room = 0.5 * abs(high) or 1.0
    return low - room, high + room


def _marker(style: int, x: float, y: float) -> str:
    which = style % 6
    if which in (0, 4):
        return f'<circle class="dot s{which}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"/>'
    if which in (1, 5):
        return f'<rect class="dot s{which}" x="{x - 3:.1f}" y="{y - 3:.1f}" width="6" height="6"/>'
    corners = f"M{x:.1f} {y - 4:.1f}l4 7h-8z" if which == 2 else f"M{x:.1f} {y - 4.4:.1f}l4.4 4.4l-4.4 4.4l-4.4 -4.4z"
    return f'<path class="dot s{which}" d="{corners}"/>'


def _text(x: float, y: float, words: str, kind: str, anchor: str) -> str:
    return f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{html.escape(words)}</text>'


def _short(name: str, limit: int) -> str:
    flat = report_numbers.clean(name, 200)
    return flat if len(flat) <= limit else flat[: limit - 1] + "…"


def _svg(width: int, height: int, alt: str, parts: Sequence[str]) -> str:
    label = html.escape(report_numbers.clean(alt, 600))
    body = "".join(parts)
    return (
        f'<svg class="chart" viewBox="0 0 {width} {height}" style="max-width:{width}px" role="img" '
        f'aria-label="{label}">{body}</svg>'
    )


__all__ = ["ChartInterval", "ChartLine", "drawable", "interval_chart", "line_chart", "ticks", "trial_chart"]
