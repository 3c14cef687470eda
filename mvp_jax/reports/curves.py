"""Methods against sparsity and against what they cost, as pictures."""

import os
from collections.abc import Sequence

import numpy as np

from mvp_jax.reports import plots
from mvp_jax.storage import records


def _chosen(rows: Sequence[records.Row], ours: str, highlight: Sequence[str] | None, most: int = 5) -> list[str]:
    """Methods in colour, ours first; by default the most accurate on average over ratios."""
    methods = sorted({str(r["method"]) for r in rows})
    if highlight is None:
        mean = {m: np.mean([float(r["accuracy"]) for r in rows if r["method"] == m]) for m in methods}
        highlight = sorted((m for m in methods if m != ours), key=lambda m: -mean[m])[:most]
    unknown = sorted(set(highlight) - set(methods))
    if unknown:
        raise ValueError(f"no rows of {unknown} to highlight; there are {methods}")
    return [*([ours] if ours in methods else []), *highlight][: len(plots.COLOURS)]


def _style(method: str, chosen: Sequence[str]) -> tuple[str, str]:
    """Colour and marker; grey for methods that are not in colour."""
    if method not in chosen:
        return plots.GREY, "."
    k = chosen.index(method)
    return plots.COLOURS[k], plots.MARKERS[k]


def _of(rows: Sequence[records.Row], split: str) -> list[records.Row]:
    found = [r for r in rows if r["split"] == split]
    if not found:
        raise ValueError(f"no rows of split {split!r} to draw; there are {sorted({str(r['split']) for r in rows})}")
    return found


def plot_accuracy_against_sparsity(
    rows: Sequence[records.Row],
    path: str | os.PathLike[str],
    *,
    ours: str = "isp",
    highlight: Sequence[str] | None = None,
    split: str = "test",
    chance: float | None = None,
    title: str = "Accuracy against sparsity",
) -> None:
    """Draws accuracy against sparsity, a line for each method.

    A line is the mean over seeds of the mean over targets, its band the standard deviation over seeds.

    Args:
        rows: results, as `records.Row` describes them; those at ratio 0 are drawn as a level (the unpruned model).
        path: where the picture is written; the suffix chooses the format.
        ours: the method whose line is drawn thickest.
        highlight: up to 5 other methods to colour; the rest is grey. `None`: the most accurate on average.
        split: the split whose accuracies are drawn, such as `test`.
        chance: the accuracy of guessing, 0 to 1, drawn as a dashed line.
        title: the text above the picture.

    Raises:
        ValueError: if no row has this split, or a highlighted method is not there.
    """
    rows = _of(rows, split)
    pruned = [r for r in rows if r["ratio"] > 0] or rows
    chosen = _chosen(pruned, ours, highlight)
    methods = sorted({str(r["method"]) for r in pruned}, key=lambda m: -chosen.index(m) if m in chosen else -99)
    height = max(4.2, 0.155 * len(methods) + 1.4)
    figure = plots.make_figure(5.2 + 0.075 * max(map(len, methods)), height)
    axes = figure.subplots()
    ratios = sorted({float(r["ratio"]) for r in pruned})
    ends = []
    for method in methods:
        here = [r for r in pruned if r["method"] == method]
        own = sorted({float(r["ratio"]) for r in here})
        seeds = [100 * records.by_seed([r for r in here if r["ratio"] == s]) for s in own]
        mean = np.array([a.mean() for a in seeds])
        (colour, marker), grey = _style(method, chosen), method not in chosen
        width = 2.6 if method == ours else 0.9 if grey else 1.5
        x = [ratios.index(s) for s in own]
        axes.plot(x, mean, color=colour, marker=marker, markersize=3 if grey else 5, linewidth=width)
        if not grey and min(len(a) for a in seeds) > 1:
            sd = np.array([a.std(ddof=1) for a in seeds])
            axes.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
        ends.append((x[-1], float(mean[-1]), method, colour, method == ours))
    axes.set_xticks(range(len(ratios)), [f"{100 * s:g} %" for s in ratios])
    axes.set_xlabel("pruned")
    axes.set_ylabel(f"{split} accuracy, %")
    whole = [float(r["accuracy"]) for r in rows if r["ratio"] == 0]
    if whole:
        axes.axhline(100 * np.mean(whole), color="black", linewidth=0.8)
        axes.annotate("unpruned", (0, 100 * np.mean(whole)), textcoords="offset points", xytext=(2, 3), fontsize=8)
    if chance is not None:
        axes.axhline(100 * chance, color=plots.GREY, linewidth=0.8, linestyle="--")
    plots.tidy(axes)
    axes.set_title(title, fontsize=10, loc="left")
    plots.name_lines(axes, ends, height)
    plots.save(figure, path)


def plot_accuracy_against_cost(
    rows: Sequence[records.Row],
    path: str | os.PathLike[str],
    *,
    ours: str = "isp",
    highlight: Sequence[str] | None = None,
    split: str = "test",
    cost: str = "cost_flops",
    label: str = "FLOPs of training (forward and backward)",
    title: str = "Accuracy against what it cost",
) -> None:
    """Draws accuracy against cost: a panel for each sparsity, a point for each method.

    A line joins the methods that no cheaper one beats.

    Args:
        rows: results, as `records.Row` describes them.
        path: where the picture is written; the suffix chooses the format.
        ours: the method whose point is drawn largest.
        highlight: up to 5 other methods to colour; the rest is grey. `None`: the most accurate on average.
        split: the split whose accuracies are drawn, such as `test`.
        cost: the column of `rows` that holds the cost.
        label: the text at the axis of costs.
        title: the text above the panels.

    Raises:
        ValueError: if no row has this split and a cost, or a highlighted method is not there.
    """
    from matplotlib import ticker

    rows = [r for r in _of(rows, split) if r["ratio"] > 0 and r.get(cost)]
    if not rows:
        raise ValueError(f"no rows of pruned models have a {cost!r} to draw")
    chosen = _chosen(rows, ours, highlight)
    ratios = sorted({float(r["ratio"]) for r in rows})
    methods = sorted({str(r["method"]) for r in rows})
    height = max(4.2, 0.155 * len(methods) + 1.4)
    figure = plots.make_figure(len(ratios) * (3.4 + 0.075 * max(map(len, methods))), height)
    panels = figure.subplots(1, len(ratios), squeeze=False)[0]
    for panel, ratio in zip(panels, ratios, strict=True):
        points = []
        for method in methods:
            here = [r for r in rows if r["method"] == method and r["ratio"] == ratio]
            if here:
                spent = float(np.mean([float(r[cost]) for r in here]))
                points.append((spent, 100 * float(records.by_seed(here).mean()), method))
        best, front = -np.inf, []
        for x, y, _ in sorted(points, key=lambda p: (p[0], -p[1])):
            if y > best:
                best = y
                front.append((x, y))
        panel.step(*zip(*front, strict=True), where="post", color="#cccccc", linewidth=1.2, zorder=1)
        for x, y, method in points:
            colour, marker = _style(method, chosen)
            size = 70 if method == ours else 36 if method in chosen else 30
            panel.scatter([x], [y], s=size, color=colour, marker=marker, zorder=3)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter(ticker.EngFormatter(sep=" "))
        panel.xaxis.set_minor_formatter(ticker.NullFormatter())
        panel.set_xlabel(label, fontsize=8)
        panel.set_title(f"{100 * ratio:g} % pruned", fontsize=9)
        plots.tidy(panel)
        ends = [(x, y, m, _style(m, chosen)[0], m == ours) for x, y, m in points]
        plots.name_lines(panel, ends, height, size=7)
    panels[0].set_ylabel(f"{split} accuracy, %")
    figure.suptitle(title, fontsize=10, x=0.01, ha="left")
    plots.save(figure, path)
