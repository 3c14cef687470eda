"""Results as pictures: accuracy against fine-tuning steps, overlap against depth, sensitivity, cost.

Colours are Okabe and Ito's, told apart by every kind of sight; each line also has a marker and its name beside it.
"""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.storage import records

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
GREY = "#8c8c8c"


def make_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    # Without pyplot: no window, no global list of figures, no backend to choose.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure at once; the suffix chooses the format."""
    with records.replacing(path) as temporary:
        figure.savefig(temporary, dpi=160)


def tidy(axes: Any) -> None:
    """Only the axes and lines that help to read."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels, each near where it is wanted, at least `gap` apart, inside `[low, high]` if they fit.

    >>> spread([0.5, 0.5, 0.0], 0.2, 0.0, 1.0)
    [0.4, 0.6, 0.0]
    """
    order = np.argsort(wanted, kind="stable")
    clusters: list[tuple[float, int]] = []  # centre and number of labels
    for value in np.asarray(wanted, float)[order]:
        clusters.append((float(value), 1))
        while True:
            centre, n = clusters[-1]
            half = (n - 1) * gap / 2
            centre = min(max(centre, low + half), max(high - half, low + half))
            clusters[-1] = (centre, n)
            if len(clusters) == 1 or centre - half - clusters[-2][0] - (clusters[-2][1] - 1) * gap / 2 >= gap - 1e-12:
                break
            below, m = clusters[-2]
            clusters[-2:] = [((below * m + centre * n) / (m + n), m + n)]
    places = [centre + (k - (n - 1) / 2) * gap for centre, n in clusters for k in range(n)]
    found = np.empty(len(places))
    found[order] = places
    return [round(float(p), 12) for p in found]


def name_lines(axes: Any, ends: Sequence[tuple[float, float, str, Any, bool]], height: float, size: float = 8) -> None:
    """Writes each line's name right of the axes: (x, y, name, colour, bold) of its last point; height in inches."""
    low, high = axes.get_ylim()
    tall = 1 + max(name.count("\n") for *_, name, _, _ in ends)
    gap = (high - low) * 1.25 * tall * size / 72 / height
    places = spread([y for _, y, *_ in ends], gap, low, high)
    for (x, y, name, colour, bold), place in zip(ends, places, strict=True):
        axes.annotate(
            name,
            xy=(x, y),
            xytext=(1.06, place),
            xycoords="data",
            textcoords=("axes fraction", "data"),
            va="center",
            fontsize=size,
            color=colour,
            fontweight="bold" if bold else "normal",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.6,
                "alpha": 0.7,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def plot_accuracy_against_steps(
    rows: Sequence[records.Row],
    path: str | os.PathLike[str],
    *,
    ours: str = "mvp",
    highlight: Sequence[str] | None = None,
    split: str = "test",
    chance: float | None = None,
    title: str = "Accuracy of the pruned model against fine-tuning steps",
) -> None:
    """One line a method, one panel a ratio; the band is the standard deviation over seeds of the mean over targets.

    Args:
        rows: results.
        path: the picture; its suffix chooses the format.
        ours: drawn thickest.
        highlight: up to 5 other methods to colour (default: the most accurate at the most steps); the rest is grey.
        split: which examples.
        chance: the accuracy of guessing, drawn dashed.
        title: above the panels.

    Raises:
        ValueError: if no row has this split, or a highlighted method is not there.
    """
    rows = [r for r in rows if r["split"] == split]
    if not rows:
        raise ValueError(f"no rows of split {split!r} to draw")
    methods = sorted({r["method"] for r in rows})
    last = max(r["steps"] for r in rows if r["method"] == ours or ours not in methods)
    final = {m: [r["accuracy"] for r in rows if r["method"] == m and r["steps"] == last] for m in methods}
    others = sorted((m for m in methods if m != ours and final[m]), key=lambda m: -float(np.mean(final[m])))
    chosen = [*([ours] if ours in methods else []), *(others if highlight is None else highlight)][: len(COLOURS)]
    unknown = sorted(set(chosen) - set(methods))
    if unknown:
        raise ValueError(f"no rows of {unknown} to highlight; there are {methods}")

    ratios = sorted({r["ratio"] for r in rows})
    longest = max(len(m) for m in methods)
    height = max(4.2, 0.155 * len(methods) + 1.6)
    figure = make_figure(len(ratios) * (3.9 + 0.075 * longest), height)
    panels = figure.subplots(1, len(ratios), squeeze=False, sharey=True)[0]
    ticks = sorted({r["steps"] for r in rows})
    positive = [s for s in ticks if s > 0]
    ends: list[list[tuple[float, float, str, Any, bool]]] = []
    for panel, ratio in zip(panels, ratios, strict=True):
        ends.append([])
        # Chosen lines last, ours on top of all.
        for method in sorted(methods, key=lambda m: -chosen.index(m) if m in chosen else -len(methods)):
            here = [r for r in rows if r["method"] == method and r["ratio"] == ratio]
            steps = sorted({r["steps"] for r in here})
            if not steps:
                continue
            seeds = [100 * records.by_seed([r for r in here if r["steps"] == s]) for s in steps]
            mean = np.array([a.mean() for a in seeds])
            k = chosen.index(method) if method in chosen else None
            colour, marker = (GREY, ".") if k is None else (COLOURS[k], MARKERS[k])
            width = 2.6 if method == ours else 0.9 if k is None else 1.5
            panel.plot(steps, mean, color=colour, marker=marker, markersize=3 if k is None else 5, linewidth=width)
            if k is not None and min(len(a) for a in seeds) > 1:
                sd = np.array([a.std(ddof=1) for a in seeds])
                panel.fill_between(steps, mean - sd, mean + sd, color=colour, alpha=0.15, linewidth=0)
            name = f"{method}  {mean[-1]:.1f}"
            ends[-1].append((steps[-1], float(mean[-1]), name, "#5f5f5f" if k is None else colour, method == ours))
        if len(ticks) > 2:
            panel.set_xscale("symlog", linthresh=min(positive), linscale=0.7)
        panel.set_xticks(ticks, [str(s) for s in ticks])
        panel.minorticks_off()
        tidy(panel)
        panel.set_xlabel("fine-tuning steps" + (", log scale" if len(ticks) > 2 else ""))
        panel.set_title(f"{100 * ratio:g} % of the units pruned", fontsize=10)
    panels[0].set_ylabel(f"{split} accuracy, % (mean over targets)")
    low, high = panels[0].get_ylim()
    guess = None if chance is None else 100 * chance
    seen = guess is not None and guess > low - 0.1 * (high - low)  # far below, it would only squeeze the lines
    for panel, lines in zip(panels, ends, strict=True):  # only now are the shared limits known
        if seen:
            panel.axhline(guess, color="black", linewidth=0.8, linestyle="--")
            panel.annotate("chance", (0.02, guess), xycoords=("axes fraction", "data"), fontsize=8, va="bottom")
        name_lines(panel, lines, height - 1.4)
    notes = [f"{split} accuracy at the last step beside each name"]
    notes += ["bands: sd over seeds"] if len({r["seed"] for r in rows}) > 1 else []
    notes += [f"chance: {guess:.3g} %"] if guess is not None and not seen else []
    figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.supxlabel("; ".join(notes), fontsize=8, color="#5f5f5f")
    save(figure, path)


def plot_overlap_against_depth(
    table: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "Overlap of the units that two tasks keep, against depth",
) -> None:
    """One line a similarity bin, with its interval over tasks; chance dashed.

    Args:
        table: rows from `reports.overlap_table`.
        path: the picture.
        title: above it.

    Raises:
        ValueError: for an empty table.
    """
    if not table:
        raise ValueError("an empty table of overlaps; give at least one group and one pair of tasks")
    from matplotlib import colormaps

    groups = {r["depth"]: r["group"] for r in table}
    depths = sorted(groups)
    at = {d: x for x, d in enumerate(depths)}
    bins = sorted({r["bin"] for r in table})
    longest = max(len(r["label"]) for r in table)
    width, height = max(4.5, 0.42 * len(depths) + 1.5) + 0.075 * longest, 4.6
    figure = make_figure(width, height)
    axes = figure.subplots()
    shades = colormaps["viridis"](np.linspace(0.78, 0.1, len(bins)))  # the darker, the more similar
    ends: list[tuple[float, float, str, Any, bool]] = []
    for k, (b, shade) in enumerate(zip(bins, shades, strict=True)):
        line = sorted((r for r in table if r["bin"] == b), key=lambda r: r["depth"])
        x, y = [at[r["depth"]] for r in line], [r["overlap"] for r in line]
        axes.plot(x, y, color=shade, marker=MARKERS[k % len(MARKERS)], markersize=5, linewidth=1.8)
        low, high = np.array([[r["low"], r["high"]] for r in line], float).T
        axes.fill_between(x, low, high, color=shade, alpha=0.15, linewidth=0)
        ends.append((x[-1], y[-1], f"{line[-1]['label']}\n{line[-1]['pairs']} pairs", shade, k == len(bins) - 1))
    chance = [float(np.mean([r["chance"] for r in table if r["depth"] == d])) for d in depths]
    axes.plot(range(len(depths)), chance, color="black", linewidth=1.0, linestyle="--")
    ends.append((len(depths) - 1, chance[-1], "chance (random units)", "black", False))
    every = max(1, -(-len(depths) // 24))
    axes.set_xticks(range(0, len(depths), every), [groups[d] for d in depths[::every]], rotation=45, ha="right")
    axes.tick_params(axis="x", labelsize=8)
    axes.set_xlabel("group of units, from input to output")
    axes.set_ylabel("overlap of kept units (intersection / union)")
    top = max(max(r["overlap"] for r in table), *chance, *(r["high"] for r in table if r["high"] == r["high"]))
    axes.set_ylim(0, min(1.02, 1.1 * top))
    tidy(axes)
    name_lines(axes, ends, height - 2.0)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    figure.supxlabel("pairs of tasks binned by similarity; bands: 95 %, tasks as units", fontsize=8, color="#5f5f5f")
    save(figure, path)


def plot_sensitivity(
    curves: Mapping[str, Any],
    ratios: Sequence[float],
    path: str | os.PathLike[str],
    *,
    quantity: str = "accuracy",
    title: str = "Sensitivity of each group alone, without fine-tuning",
) -> None:
    """One line a group against the share of its units removed; a heat map for more than 12 groups.

    Args:
        curves: `{group: [R]}` from `sensitivity.curves`, from input to output: the deeper, the darker the line.
        ratios: as given there, `R` of them.
        path: the picture.
        quantity: what the metric is, with its split and unit.
        title: above it.

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
    figure = make_figure(max(5.2, 0.42 * min(len(x), 12) + 1.5) + 0.075 * longest, height)
    figure.get_layout_engine().set(w_pad=0.1)  # names beside the axes are measured a little too short
    axes = figure.subplots()
    if len(names) <= 12:
        ends: list[tuple[float, float, str, Any, bool]] = []
        for k, (name, line) in enumerate(zip(names, values, strict=True)):
            shade = colormaps["viridis"](0.1 + 0.75 * (1 - (k + 0.5) / len(names)))
            axes.plot(x, line, color=shade, marker=MARKERS[k % len(MARKERS)], markersize=4.5, linewidth=1.6)
            known = np.flatnonzero(np.isfinite(line))
            if len(known):
                ends.append((x[known[-1]], line[known[-1]], name, shade, False))
        if x[0] == 0:
            axes.axhline(values[0, 0], color="black", linewidth=0.8, linestyle="--")
            axes.annotate("dense", (0.98, values[0, 0]), xycoords=("axes fraction", "data"), xytext=(0, 3),
                          textcoords="offset points", fontsize=8, va="bottom", ha="right")  # fmt: skip
        axes.set_xticks(x if len(x) <= 12 else x[:: -(-len(x) // 12)])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_ylabel(quantity)
        tidy(axes)
        if ends:
            name_lines(axes, ends, height - 1.4)
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
    save(figure, path)


def plot_coupling(explanation: Any, path: str | os.PathLike[str], *, title: str = "What is cut together") -> None:
    """Which arrays make (filled) and read (open) the units of which group; arrays that no group touches are left out.

    Args:
        explanation: from `graph.explain`.
        path: the picture.
        title: above it.

    Raises:
        ValueError: if there is no group.
    """
    if not explanation.rows:
        raise ValueError("no groups to draw; print(explanation) says what is frozen and why")
    touched = {a.rpartition("[")[0] for row in explanation.rows for a in (*row.makes, *row.reads)}
    arrays = {a: y for y, a in enumerate(a for a in explanation.arrays if a in touched)}
    names = [f"{row.name} ({row.size})" for row in explanation.rows]
    room = 0.075 * max(map(len, arrays))
    figure = make_figure(room + 1.2 + 0.26 * len(names), 1.2 + 0.075 * max(map(len, names)) + 0.19 * len(arrays))
    axes = figure.subplots()
    for x, row in enumerate(explanation.rows):
        colour = COLOURS[x % len(COLOURS)]
        ys = [arrays[a.rpartition("[")[0]] for a in (*row.makes, *row.reads)]
        axes.plot([x, x], [min(ys), max(ys)], color=colour, linewidth=1, alpha=0.5)
        for kind, filled in ((row.makes, True), (row.reads, False)):
            y = [arrays[a.rpartition("[")[0]] for a in kind]
            axes.plot([x] * len(y), y, "o", color=colour, markersize=6, markerfacecolor=colour if filled else "white")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=8)
    axes.set_yticks(range(len(arrays)), list(arrays), fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("group (units); filled: makes its units, open: reads them", fontsize=8)
    tidy(axes)
    figure.suptitle(title, fontsize=12, fontweight="bold")
    save(figure, path)


_QUANTITIES = (
    ("params", "parameters"),
    ("flops", "FLOPs an example"),
    ("latency_ms", "latency, ms"),
    ("bytes", "bytes of arrays"),
)


def plot_cost(
    rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, title: str = "Cost before and after pruning"
) -> None:
    """Bars for each quantity, with its amount and its share of the first row's.

    Args:
        rows: dicts with `name` and any of `params`, `flops`, `latency_ms`, `bytes`; the dense model first.
        path: the picture.
        title: above it.

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
    figure = make_figure(2.6 * len(shown) + 0.07 * max(map(len, names)), 1.5 + 0.42 * len(rows))
    for k, (panel, (key, label)) in enumerate(
        zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True)
    ):
        values = np.array([float(r[key]) for r in rows])
        panel.barh(range(len(rows)), values, color=[GREY] + [COLOURS[0]] * (len(rows) - 1), height=0.66)
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
    save(figure, path)


__all__ = [
    "plot_accuracy_against_steps",
    "plot_coupling",
    "plot_cost",
    "plot_overlap_against_depth",
    "plot_sensitivity",
    "spread",
]
