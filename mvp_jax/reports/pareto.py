"""Accuracy against what it cost, as pictures with the Pareto front: the best accuracy at no more than each cost."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.reports import chosen_lines, curves, plots
from mvp_jax.storage import records

Point = tuple[float, float, str]
"""A method in the picture: `(cost, accuracy in percent, method)`."""

_FRONT = "stepped line: the Pareto front, the best accuracy that any method reaches at no more than that cost"

_KEYS = 0.6
"""The height of the legend in inches."""


def front(points: Sequence[Point]) -> list[Point]:
    """Returns the points of the Pareto front, from the cheapest: each is more accurate than all that cost no more.

    >>> front([(2.0, 70.0, "b"), (1.0, 60.0, "a"), (3.0, 65.0, "c"), (2.0, 65.0, "d")])
    [(1.0, 60.0, 'a'), (2.0, 70.0, 'b')]
    """
    best, found = -np.inf, []
    for point in sorted(points, key=lambda p: (p[0], -p[1])):
        if point[1] > best:
            best = point[1]
            found.append(point)
    return found


def plot_accuracy_against_cost(
    rows: Sequence[records.Row],
    path: str | os.PathLike[str],
    *,
    ours: str = "isp",
    names: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    highlight: Sequence[str] | None = None,
    every: bool = False,
    split: str = "test",
    cost: str = "cost_flops",
    label: str = "FLOPs of training, forward and backward",
    title: str = "Accuracy against what it cost",
) -> None:
    """Draws accuracy against cost: a panel for each sparsity, a point for each method.

    A stepped line is the Pareto front: the best accuracy that any method reaches at no more than a cost. At most seven
    methods are named, by the rule of `chosen_lines.choose` on the mean over sparsities; the others are small and grey.

    Args:
        rows: results, as `records.Row` describes them; those at sparsity 0 are not drawn.
        path: where the picture is written; the suffix chooses the format.
        ours: the method whose point is drawn largest.
        names: what the methods are called in the picture, `{method: name}`; a method without one has its own name.
        roles: what each method is in the comparison, `{method: role}`, as `chosen_lines.choose` takes it.
        highlight: up to 6 other methods to name; the rest is grey. `None`: by the rule.
        every: whether all methods are named, the grey ones too: beside the points, in a panel as wide as the picture.
        split: the split whose accuracies are drawn, such as `test`.
        cost: the column of `rows` that holds the cost.
        label: the text at the axis of costs.
        title: the text above the panels.

    Raises:
        ValueError: if no row has this split and a cost, or a highlighted method is not there.
    """
    rows = [r for r in curves.of_split(rows, split) if records.share(r) > 0 and r.get(cost)]
    if not rows:
        raise ValueError(f"no rows of pruned models have a {cost!r} to draw")
    chosen = chosen_lines.given(curves.mean_accuracies(rows), ours, roles, highlight=highlight)
    methods = sorted({str(r["method"]) for r in rows})
    styles = chosen_lines.styles(methods, chosen, ours, roles, every=every)
    shares = sorted({records.share(r) for r in rows})
    columns = 1 if every or len(shares) == 1 else 2
    lines = -(-len(shares) // columns)
    tall = max(2.6, plots.room([(names or {}).get(m, m) for m in methods]) + 0.7) if every else 2.6
    figure = plots.make_figure(plots.WIDTH, lines * tall + 0.8 + (0 if every else _KEYS))
    grid = figure.add_gridspec(lines + 1, columns, height_ratios=[tall] * lines + [1e-3 if every else _KEYS])
    for k, share in enumerate(shares):
        panel = figure.add_subplot(grid[k // columns, k % columns])
        points = _points([r for r in rows if records.share(r) == share], cost)
        _draw(panel, points, styles)
        what = "weights" if records.share_name(rows) == "sparsity" else "units"
        panel.set_title(f"{100 * share:g} % of the {what} removed", fontsize=9, loc="left")
        if k % columns == 0:
            panel.set_ylabel(curves.accuracy_label(split))
        if k + columns >= len(shares):
            panel.set_xlabel(label)
        if every:
            own = {m: plots.wrapped((names or {}).get(m, m)) for m in methods}
            ends = [(x, y, own[m], _text_colour(styles[m].colour), styles[m].ours) for x, y, m in points]
            plots.name_lines(panel, ends, tall - 0.6)
    plots.head(figure, title)
    if not every:
        keys = _keys(chosen, styles, names or {}, len(methods) > len(chosen))
        plots.legend(figure.add_subplot(grid[lines, :]), keys, columns=3)
    plots.foot(figure, ["means over targets and seeds", _FRONT])
    plots.save(figure, path)


def _points(rows: Sequence[records.Row], cost: str) -> list[Point]:
    found = []
    for method in sorted({str(r["method"]) for r in rows}):
        here = [r for r in rows if r["method"] == method]
        spent = float(np.mean([float(r[cost]) for r in here]))
        found.append((spent, 100 * float(records.by_seed(here).mean()), method))
    return found


def _text_colour(colour: str) -> str:
    return plots.GREY if colour == plots.PALE else colour


def _draw(panel: Any, points: Sequence[Point], styles: Mapping[str, chosen_lines.LineStyle]) -> None:
    from matplotlib import ticker

    steps = [(x, y) for x, y, _ in front(points)]
    # The front goes on to the right: nothing dearer that is drawn beats its last method.
    steps.append((max(x for x, *_ in points), steps[-1][1]))
    panel.step(*zip(*steps, strict=True), where="post", color=plots.GREY, linewidth=1.2, zorder=1)
    drawn = {m: k for k, m in enumerate(styles)}
    for x, y, method in sorted(points, key=lambda p: drawn[p[2]]):
        style = styles[method]
        size = 75 if style.ours else 30 if style.marker == "." else 38
        panel.scatter([x], [y], s=size, color=style.colour, marker=style.marker, zorder=3, linewidths=0)
    panel.set_xscale("log")
    low, high = (f(x for x, *_ in points) for f in (min, max))
    panel.set_xlim(low / 1.25, high * 1.25)
    panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
    panel.xaxis.set_minor_formatter(ticker.NullFormatter())
    panel.tick_params(labelsize=8)
    plots.tidy(panel)


def _keys(
    chosen: Sequence[str], styles: Mapping[str, chosen_lines.LineStyle], names: Mapping[str, str], others: bool
) -> list[Any]:
    """What a legend shows of the points in colour, the grey ones and the front."""
    from matplotlib.lines import Line2D

    def dot(colour: str, marker: str, size: float, name: str) -> Any:
        return Line2D([], [], color=colour, marker=marker, markersize=size, linestyle="", label=name)

    keys = [dot(styles[m].colour, styles[m].marker, 8 if styles[m].ours else 6, names.get(m, m)) for m in chosen]
    if others:
        keys.append(dot(plots.PALE, ".", 7, "other methods"))
    return [*keys, Line2D([], [], color=plots.GREY, linewidth=1.2, label="Pareto front")]
