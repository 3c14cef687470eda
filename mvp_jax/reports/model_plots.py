"""Pictures of a model: how sensitive its groups are, what is coupled, and what it costs before and after pruning."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.reports import layer_names, plots


def plot_sensitivity(
    curves: Mapping[str, Any],
    ratios: Sequence[float],
    path: str | os.PathLike[str],
    *,
    quantity: str = "accuracy",
    title: str = "Sensitivity of each group alone, without fine-tuning",
) -> None:
    """Draws a metric against the ratio of units removed, a line for each group; a heat map for more than 12 groups.

    Groups have their names in words.

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
    names, shared = plots.shortened([layer_names.readable(name) for name in curves])
    notes = [f"all groups: {shared}"] if shared else []
    height = 4.6 if len(names) <= 12 else 1.8 + 0.17 * len(names)
    figure = plots.make_figure(plots.WIDTH, height)
    axes = figure.subplots()
    if len(names) <= 12:
        ends: list[tuple[float, float, str, Any, bool]] = []
        for k, (name, line) in enumerate(zip(names, values, strict=True)):
            shade = colormaps["viridis"](0.1 + 0.75 * (1 - (k + 0.5) / len(names)))
            axes.plot(x, line, color=shade, marker=plots.MARKERS[k % len(plots.MARKERS)], markersize=4.5, linewidth=1.6)
            known = np.flatnonzero(np.isfinite(line))
            if len(known):
                ends.append((x[known[-1]], line[known[-1]], plots.wrapped(name), shade, False))
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
            notes.append(f"{quantity} of the dense model: {values[0, 0]:.4g}")
    axes.set_xlabel("units of the group removed, %")
    plots.head(figure, title)
    if notes:
        plots.foot(figure, notes)
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
    names = [f"{x}: {layer_names.readable(row.name)}, {row.size} units" for x, row in enumerate(explanation.rows, 1)]
    height = 1.4 + 0.19 * max(len(arrays), len(names))
    figure = plots.make_figure(max(plots.WIDTH, 4.6 + 0.22 * len(names)), height)
    axes = figure.subplots()
    listed: list[tuple[str, Any]] = []
    for x, row in enumerate(explanation.rows, 1):
        colour = plots.COLOURS[x % len(plots.COLOURS)]
        ys = [arrays[a.rpartition("[")[0]] for a in (*row.makes, *row.reads)]
        axes.plot([x, x], [min(ys), max(ys)], color=colour, linewidth=1, alpha=0.5)
        for kind, filled in ((row.makes, True), (row.reads, False)):
            y = [arrays[a.rpartition("[")[0]] for a in kind]
            axes.plot([x] * len(y), y, "o", color=colour, markersize=6, markerfacecolor=colour if filled else "white")
        listed.append((names[x - 1], colour))
    axes.set_xticks(range(1, len(names) + 1))
    axes.set_yticks(range(len(arrays)), list(map(layer_names.readable, arrays)), fontsize=8)
    axes.set_ylim(len(arrays) - 0.5, -0.5)
    axes.set_xlim(0.5, len(names) + 0.5)
    axes.set_xlabel("number of the group")
    plots.tidy(axes)
    plots.list_names(axes, listed, height - 1.4)
    plots.head(figure, title)
    plots.foot(figure, ["filled dots: arrays that make the group's units; open dots: arrays that read them"])
    plots.save(figure, path)


_QUANTITIES = (
    ("params", "parameters"),
    ("flops", "FLOPs an example"),
    ("bytes", "bytes of arrays"),
    ("latency_ms", "latency, ms"),
)


def plot_cost(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str = "Cost before and after pruning"
) -> None:
    """Draws the costs of several models as bars, with their amounts and their shares of the first model's.

    A latency has its quartiles as a black line across the end of its bar, and a share only if `latency_clear` is true.

    Args:
        rows: a dict for each model with `name` and any of `params`, `flops`, `bytes` and `latency_ms`, the dense model
            first. What some rows lack is not drawn. With `latency_ms` (the median) may stand `latency_quartiles_ms`
            (lower and upper) and `latency_clear` (whether it is clearly above or below the first model's).
        path: where the picture is written; the suffix chooses the format.
        title: the text above it.

    Raises:
        ValueError: if there are no rows, or they share no quantity.
    """
    shown = [q for q in _QUANTITIES if rows and all(r.get(q[0]) is not None for r in rows)]
    if not shown:
        raise ValueError(f"nothing to draw: each row needs a name and any of {[q[0] for q in _QUANTITIES]}")
    columns = min(2, len(shown))
    lines = -(-len(shown) // columns)
    figure = plots.make_figure(plots.WIDTH, 0.9 + lines * (0.5 + 0.34 * len(rows)))
    grid = figure.subplots(lines, columns, squeeze=False)
    for panel in grid.flat[len(shown) :]:
        panel.set_visible(False)
    for k, (key, label) in enumerate(shown):
        _bars(grid.flat[k], rows, key, named=k % columns == 0)
        grid.flat[k].set_title(label, fontsize=9, loc="left")
    plots.head(figure, title)
    if shown[-1][0] == "latency_ms":
        plots.foot(figure, [_of_latency(rows)])
    plots.save(figure, path)


def _bars(panel: Any, rows: Sequence[Mapping[str, Any]], key: str, *, named: bool) -> None:
    values = np.array([float(r[key]) for r in rows])
    ends = values.copy()
    panel.barh(range(len(rows)), values, color=[plots.GREY] + [plots.COLOURS[0]] * (len(rows) - 1), height=0.66)
    for y, row in enumerate(rows):
        share = f" ({100 * values[y] / values[0]:.0f} %)" if y and values[0] else ""
        text = _amount(values[y]) + share
        quartiles = row.get("latency_quartiles_ms") if key == "latency_ms" else None
        if key == "latency_ms" and not row.get("latency_clear"):
            text = _amount(values[y])  # a share would claim a difference that was not measured
        if quartiles:
            ends[y] = quartiles[1]
            panel.plot(quartiles, [y, y], color=plots.BLACK, linewidth=1.4, marker="|", markersize=7)
            text += f" [{_amount(quartiles[0])}, {_amount(quartiles[1])}]"
        panel.annotate(text, (ends[y], y), xytext=(4, 0), textcoords="offset points", va="center", fontsize=plots.SMALL)
    panel.set_xlim(0, 1.75 * max(float(ends.max()), 1e-30))
    panel.set_xticks([])
    panel.set_yticks(range(len(rows)), [str(r["name"]) for r in rows] if named else [""] * len(rows), fontsize=9)
    panel.invert_yaxis()
    panel.spines[["top", "right", "bottom"]].set_visible(False)


def _amount(value: float) -> str:
    for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def _of_latency(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the reader must know of the latencies."""
    if not all(r.get("latency_quartiles_ms") for r in rows):
        return "latency: a single number each, whose spread was not measured, so nothing is claimed of it"
    unclear = [str(r["name"]) for r in rows[1:] if not r.get("latency_clear")]
    text = f"latency: median and, in brackets, quartiles; no share of {rows[0]['name']}'s"
    if unclear:
        return f"{text} for {', '.join(unclear)}: the quartiles overlap, or the machine was busy"
    return "latency: median and, in brackets, quartiles"
