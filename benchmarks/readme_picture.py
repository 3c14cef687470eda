"""Draws the picture of the README from the rows of results that are kept in docs/results.

    python benchmarks/readme_picture.py [--out docs/readme.png]

Two panels, a data set each: the test accuracy of pruned models after 50 steps of fine-tuning, by what they start from.
Nothing is trained here.
"""

import argparse
from pathlib import Path
from typing import Any

from mvp_jax.methods import registry
from mvp_jax.reports import plots, tables
from mvp_jax.storage import records

RESULTS = Path(__file__).parents[1] / "docs" / "results"
STEPS = 50
PANELS = (
    ("glyphs_default", "drawn characters, ResNet-8:\n87.5 % of the filters removed"),
    ("cifar10_resnet20_75", "CIFAR-100 tasks, ResNet-20 from CIFAR-10:\n75 % of the filters removed"),
)
FROM_BANK = ("mvp", "mvp_select", "copy_nearest", "vote_universal", "vote_farthest")
FROM_WEIGHTS = ("ifp_10x", "ifp", "oneshot_fisher", "oneshot_magnitude", "vote_pretrained_weights", "random_units")
COLOURS = {"bank": plots.COLOURS[0], "weights": plots.COLOURS[1]}


def draw_panel(axes: Any, rows: list[dict[str, Any]], title: str) -> None:
    """Draws a point for each method, the best on top, with the interval of its difference to Meta-Vote Pruning."""
    found = {r["method"]: r for r in tables.summary(rows) if r["steps"] == STEPS}
    shown = [m for m in found if m in (*FROM_BANK, *FROM_WEIGHTS)]  # the best first, as `summary` has them
    for place, method in enumerate(shown):
        row, ours = found[method], method == "mvp"
        colour = COLOURS["bank" if method in FROM_BANK else "weights"]
        accuracy = 100 * row["accuracy"]
        if not ours:
            half = 50 * (row["high"] - row["low"])
            axes.plot([accuracy - half, accuracy + half], [place, place], color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(accuracy, place, marker="D" if ours else "o", markersize=8 if ours else 6, color=colour)
    dense = 100 * found["dense"]["accuracy"]
    axes.axvline(dense, color=plots.BLACK, linewidth=1.2, linestyle="--")
    axes.annotate("not pruned", (dense, len(shown) - 0.55), ha="right", fontsize=plots.SMALL, xytext=(-3, 0),
                  textcoords="offset points")  # fmt: skip
    axes.set_yticks(range(len(shown)), [registry.titles()[m] for m in shown], fontsize=plots.SMALL + 1)
    for label, method in zip(axes.get_yticklabels(), shown, strict=True):
        label.set_color(plots.ink(COLOURS["bank" if method in FROM_BANK else "weights"]))
        label.set_fontweight("bold" if method == "mvp" else "normal")
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_title(title, fontsize=9, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.set_xlabel("test accuracy, %", fontsize=9)


def main() -> None:
    """Writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS.parent / "readme.png")
    out = parser.parse_args().out
    figure = plots.make_figure(9.5, 4.0)
    for axes, (folder, title) in zip(figure.subplots(1, len(PANELS)), PANELS, strict=True):
        draw_panel(axes, records.read_csv(RESULTS / folder / "results.csv"), title)
    bank, weights = (plots.ink(COLOURS[name]) for name in ("bank", "weights"))
    figure.text(0.01, 0.995, "Blue: starts from a bank of pruned models", color=bank, va="top", fontweight="bold")
    figure.text(0.42, 0.995, "Orange: starts from the pre-trained weights", color=weights, va="top", fontweight="bold")
    figure.get_layout_engine().set(rect=(0, 0, 1, 0.93))
    plots.foot(figure, [
        f"some of the methods in docs/results; means over ten few-shot targets after {STEPS} steps of fine-tuning",
        "IFP: iterative filter pruning",
        "lines: 95 % interval over targets of the paired difference to MVP",
        "the axes do not begin at 0",
    ])  # fmt: skip
    plots.save(figure, out)


if __name__ == "__main__":
    main()
