"""How much the units that two tasks keep overlap, against depth, as a picture."""

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mvp_jax.reports import layer_names, plots


def plot_overlap_against_depth(
    table: Sequence[Mapping[str, Any]],
    path: str | os.PathLike[str],
    *,
    binned: str = "similarity",
    title: str = "Overlap of the units that two tasks keep, against depth",
) -> None:
    """Draws the overlap of two tasks' kept units, layer by layer: a line for each bin of similarity, chance dashed.

    Layers go from the input at the top to the output at the bottom, with their names in words.

    Args:
        table: rows as `reports.overlap_table` returns them; bands are their intervals over tasks.
        path: where the picture is written; the suffix chooses the format.
        binned: by what pairs of tasks are put into bins, for the note below the picture.
        title: the text above it.

    Raises:
        ValueError: for an empty table.
    """
    if not table:
        raise ValueError("an empty table of overlaps; give at least one group and one pair of tasks")
    from matplotlib import colormaps

    groups = {r["depth"]: r["group"] for r in table}
    depths = sorted(groups)
    at = {d: y for y, d in enumerate(depths)}
    bins = sorted({r["bin"] for r in table})
    labels, shared = plots.shortened([layer_names.readable(str(groups[d])) for d in depths])
    tall, keys_tall = max(2.4, 0.24 * len(depths) + 0.6), 0.22 * (-(-(len(bins) + 1) // 2))
    figure = plots.make_figure(plots.WIDTH, tall + keys_tall + 0.8)
    axes, below = figure.subplots(2, 1, height_ratios=(tall, keys_tall))
    shades = colormaps["viridis"](np.linspace(0.78, 0.1, len(bins)))  # the darker, the more similar
    for k, (b, shade) in enumerate(zip(bins, shades, strict=True)):
        line = sorted((r for r in table if r["bin"] == b), key=lambda r: r["depth"])
        y, x = [at[r["depth"]] for r in line], [r["overlap"] for r in line]
        pairs = line[-1]["pairs"]
        called = str(line[-1]["label"])
        called = called if called[0].isalpha() else f"{binned}: {called}"
        label = f"{called}, {pairs} pair{'s' if pairs != 1 else ''}"
        axes.plot(
            x, y, color=shade, marker=plots.MARKERS[k % len(plots.MARKERS)], markersize=5, linewidth=1.6, label=label
        )
        low, high = np.array([[r["low"], r["high"]] for r in line], float).T
        axes.fill_betweenx(y, low, high, color=shade, alpha=0.15, linewidth=0)
    chance = [float(np.mean([r["chance"] for r in table if r["depth"] == d])) for d in depths]
    axes.plot(
        chance, range(len(depths)), color=plots.BLACK, linewidth=1.0, linestyle="--", label="chance (random units)"
    )
    axes.set_yticks(range(len(depths)), labels, fontsize=plots.SMALL)
    axes.set_ylim(len(depths) - 0.5, -0.5)
    axes.set_ylabel("from input to output" + (f"\n({shared})" if shared else ""))
    axes.set_xlabel("overlap of the kept units (intersection / union)")
    top = max(max(r["overlap"] for r in table), *chance, *(r["high"] for r in table if r["high"] == r["high"]))
    axes.set_xlim(0, min(1.02, 1.1 * top))
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="both", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    plots.legend(below, axes.get_legend_handles_labels()[0], columns=2)
    plots.head(figure, title)
    with_bands = any(r["low"] == r["low"] for r in table)
    bands = (
        "bands: 95 % intervals over tasks" if with_bands else "no intervals: fewer than 3 tasks or pairs in each bin"
    )
    plots.foot(figure, [f"pairs of tasks, binned by {binned}", bands])
    plots.save(figure, path)
