"""Results as pictures: accuracy against fine-tuning steps, overlap against depth; and the style of all pictures.

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
    """An empty figure of so many inches."""
    # Without pyplot: no window, no global list of figures, no backend to choose.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file that appears complete or not at all; the suffix chooses the format."""
    with records.replacing(path) as temporary:
        figure.savefig(temporary, dpi=160)


def tidy(axes: Any) -> None:
    """Leaves axes the left and bottom line, and a light grid for reading values."""
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
    """Draws accuracy against fine-tuning steps: a panel for each ratio, a line for each method.

    A line is the mean over seeds of the mean over targets, its band the standard deviation over seeds.

    Args:
        rows: results, as `records.Row` describes them.
        path: where the picture is written; the suffix chooses the format.
        ours: the method whose line is drawn thickest.
        highlight: up to 5 other methods to colour; the rest is grey. `None`: the most accurate at the most steps.
        split: the split whose accuracies are drawn, such as `test`.
        chance: the accuracy of guessing, 0 to 1, drawn as a dashed line.
        title: the text above the panels.

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
    ends = []
    for panel, ratio in zip(panels, ratios, strict=True):
        ends.append(_draw_methods(panel, [r for r in rows if r["ratio"] == ratio], methods, chosen, ours))
        if len(ticks) > 2:
            panel.set_xscale("symlog", linthresh=min(s for s in ticks if s > 0), linscale=0.7)
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


def _draw_methods(
    panel: Any, rows: Sequence[records.Row], methods: Sequence[str], chosen: Sequence[str], ours: str
) -> list[tuple[float, float, str, Any, bool]]:
    """Draws a line for each method, the chosen ones in colour; returns where each ends, for `name_lines`."""
    ends: list[tuple[float, float, str, Any, bool]] = []
    # Chosen lines last, ours on top of all.
    for method in sorted(methods, key=lambda m: -chosen.index(m) if m in chosen else -len(methods)):
        here = [r for r in rows if r["method"] == method]
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
        ends.append((steps[-1], float(mean[-1]), name, "#5f5f5f" if k is None else colour, method == ours))
    return ends


def plot_overlap_against_depth(
    table: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    title: str = "Overlap of the units that two tasks keep, against depth",
) -> None:
    """Draws the overlap of two tasks' kept units against depth: a line for each bin of similarity, chance dashed.

    Args:
        table: rows as `reports.overlap_table` returns them; bands are their intervals over tasks.
        path: where the picture is written; the suffix chooses the format.
        title: the text above it.

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
