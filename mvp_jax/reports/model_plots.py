"""Pictures of a model: how sensitive its groups are, what is coupled, and what it costs before and after pruning."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.reports import plots


def plot_sensitivity(
    curves: Mapping[str, Any],
    ratios: Sequence[float],
    path: str | os.PathLike[str],
    *,
    quantity: str = "accuracy",
    title: str = "Sensitivity of each group alone, without fine-tuning",
) -> None:
    """Draws a metric against the ratio of units removed, a line for each group; a heat map for more than 12 groups.

    Args:
        curves: `{group: [R]}`, as `sensitivity.curves` returns them, from input to output: the deeper, the darker.
        ratios: the `R` ratios that `sensitivity.curves` was given.
        path: where the picture is written; the suffix chooses the format.
        quantity: what the metric is, with its split and unit, for the axis.
        title: the text above it.

    Raises:
        ValueError: if there are no curves, or they do not fit the ratios.
    """
    if not curves or np.ndim(ratios) != 1 or any(np.shape(v) != (len(ratios),) for v in curves.values()):
        shapes = {name: np.shape(v) for name, v in curves.items()}
        raise ValueError(f"curves of shapes {shapes} at ratios {ratios!r}; give at least one, with a value a ratio")
    from matplotlib import colormaps

    order = np.argsort(ratios, kind="stable")
    x = 100 * np.asarray(ratios, float)[order]
    values = np.array([np.asarray(v, float)[order] for v in curves.values()])
    names = list(curves)
    longest = max(map(len, names))
    height = 4.6 if len(names) <= 12 else 1.6 + 0.17 * len(names)
    figure = plots.make_figure(max(5.2, 0.42 * min(len(x), 12) + 1.5) + 0.075 * longest, height)
    figure.get_layout_engine().set(w_pad=0.1)  # names beside the axes are measured a little too short
    axes = figure.subplots()
    if len(names) <= 12:
        ends: list[tuple[float, float, str, Any, bool]] = []
        for k, (name, line) in enumerate(zip(names, values, strict=True)):
            shade = colormaps["viridis"](0.1 + 0.75 * (1 - (k + 0.5) / len(names)))
            axes.plot(x, line, color=shade, marker=plots.MARKERS[k % len(plots.MARKERS)], markersize=4.5, linewidth=1.6)
            known = np.flatnonzero(np.isfinite(line))
            if len(known):
                ends.append((x[known[-1]], line[known[-1]], name, shade, False))
        if x[0] == 0:
            axes.axhline(values[0, 0], color="black", linewidth=0.8, linestyle="--")
            axes.annotate(
                "dense",
                (0.98, values[0, 0]),
                xycoords=("axes fraction", "data"),
                xytext=(0, 3),
                textcoords="offset points",
                fontsize=8,
                va="bottom",
                ha="right",
            )
        axes.set_xticks(x if len(x) <= 12 else x[:: -(-len(x) // 12)])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(quantity)
        plots.tidy(axes)
        if ends:
            plots.name_lines(axes, ends, height - 1.4)
    else:
        image = axes.imshow(values, cmap="viridis", aspect="auto", interpolation="nearest")
        shown = range(0, len(x), -(-len(x) // 12))
        axes.set_xticks(shown, [f"{x[i]:g}" for i in shown])
        axes.set_yticks(range(len(names)), names, fontsize=8)
        axes.set_ylabel("group, from input to output")
        figure.colorbar(image, label=quantity)
        if x[0] == 0:
            figure.supxlabel(f"{quantity} of the dense model: {values[0, 0]:.4g}", fontsize=8, color="#5f5f5f")
    axes.set_xlabel("units of the group removed, %")
    figure.suptitle(title, fontsize=12, fontweight="bold")
    plots.save(figure, path)


def plot_coupling(explanation: Any, path: str | os.PathLike[str], *, title: str = "What is cut together") -> None:
    """Draws which arrays make (filled dots) and read (open dots) the units of which group.

    Args:
        explanation: what `graph.explain` returned; arrays that no group touches are left out.
        path: where the picture is written; the suffix chooses the format.
        title: the text above it.

    Raises:
        ValueError: if there is no group.
    """
    if not explanation.rows:
        raise ValueError("no groups to draw; print(explanation) says what is frozen and why")
    touched = {a.rpartition("[")[0] for row in explanation.rows for a in (*row.makes, *row.reads)}
    arrays = {a: y for y, a in enumerate(a for a in explanation.arrays if a in touched)}
    names = [f"{row.name} ({row.size})" for row in explanation.rows]
    room = 0.075 * max(map(len, arrays))
    figure = plots.make_figure(room + 1.2 + 0.26 * len(names), 1.2 + 0.075 * max(map(len, names)) + 0.19 * len(arrays))
    axes = figure.subplots()
    for x, row in enumerate(explanation.rows):
        colour = plots.COLOURS[x % len(plots.COLOURS)]
        ys = [arrays[a.rpartition("[")[0]] for a in (*row.makes, *row.reads)]
        axes.plot([x, x], [min(ys), max(ys)], color=colour, linewidth=1, alpha=0.5)
        for kind, filled in ((row.makes, True), (row.reads, False)):
            y = [arrays[a.rpartition("[")[0]] for a in kind]
            axes.plot([x] * len(y), y, "o", color=colour, markersize=6, markerfacecolor=colour if filled else "white")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(arrays)), list(arrays), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("group (units); filled: makes its units, open: reads them", fontsize=8)
    plots.tidy(axes)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    plots.save(figure, path)


_QUANTITIES = (
    ("params", "parameters"),
    ("flops", "FLOPs an example"),
    ("latency_ms", "latency, ms"),
    ("bytes", "bytes of arrays"),
)


def plot_cost(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str = "Cost before and after pruning"
) -> None:
    """Draws the costs of several models as bars, with their amounts and their shares of the first model's.

    Args:
        rows: a dict for each model with `name` and any of `params`, `flops`, `latency_ms`, `bytes`; the dense model
            first. What some rows lack is not drawn.
        path: where the picture is written; the suffix chooses the format.
        title: the text above it.

    Raises:
        ValueError: if there are no rows, or they share no quantity.
    """
    shown = [q for q in _QUANTITIES if rows and all(r.get(q[0]) is not None for r in rows)]
    if not shown:
        raise ValueError(f"nothing to draw: each row needs a name and any of {[q[0] for q in _QUANTITIES]}")

    def amount(value: float) -> str:
        for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
        return f"{value:.3g}"

    names = [str(r["name"]) for r in rows]
    figure = plots.make_figure(2.6 * len(shown) + 0.07 * max(map(len, names)), 1.5 + 0.42 * len(rows))
    for k, (panel, (key, label)) in enumerate(
        zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)
    ):
        values = np.array([float(r[key]) for r in rows])
        panel.barh(range(len(rows)), values, color=[plots.GREY] + [plots.COLOURS[0]] * (len(rows) - 1), height=0.66)
        for y, value in enumerate(values):
            share = "" if y == 0 or not values[0] else f" ({100 * value / values[0]:.0f} %)"
            panel.annotate(
                amount(value) + share, (value, y), xytext=(3, 0), textcoords="offset points", va="center", fontsize=8
            )
        panel.set_xlim(0, 1.55 * max(float(values.max()), 1e-30))
        panel.set_xticks([])
        panel.set_yticks(range(len(rows)), names if k == 0 else [""] * len(rows))
        panel.invert_yaxis()
        panel.spines[["top", "right", "bottom"]].set_visible(False)
        panel.set_title(label, fontsize=10)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    plots.save(figure, path)
