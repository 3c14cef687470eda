"""Draws the pictures of docs/ideas.md.

    python benchmarks/ideas_pictures.py [--out docs/ideas]

The masks, the votes and the elected units are computed by the library from random numbers. Nothing is trained here.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import prune, vote
from mvp_jax.reports import plots

BLUE, ORANGE, GREEN = plots.COLOURS[:3]
GONE = "#eeeeee"
PICTURES = Path(__file__).parents[1] / "docs" / "ideas"


def blank(left: float, right: float, bottom: float, top: float) -> tuple[Any, Any]:
    """A figure as wide as a page, and axes without lines or ticks that fill it; both axes have the same unit."""
    figure = plots.make_figure(plots.WIDTH, plots.WIDTH * (top - bottom) / (right - left))
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set_xlim(left, right)
    axes.set_ylim(bottom, top)
    return figure, axes


def cells(axes: Any, colours: np.ndarray, left: float, top: float) -> None:
    """Draws a matrix of colours as squares; `left` and `top` are its upper left corner."""
    for (i, j), colour in np.ndenumerate(colours):
        axes.add_patch(rectangle(left + j, top - i - 1, colour))


def rectangle(x: float, y: float, colour: str) -> Any:
    """A square of the side 1."""
    from matplotlib.patches import Rectangle

    return Rectangle((x, y), 1, 1, facecolor=colour, edgecolor="white", linewidth=1.5)


def text(axes: Any, x: float, y: float, words: str, **how: Any) -> None:
    """Writes words at a place, in the middle of it."""
    axes.text(x, y, words, **({"ha": "center", "va": "center", "fontsize": 9} | how))


def matrices(axes: Any, left: float, up: np.ndarray, down: np.ndarray, words: tuple[str, str]) -> None:
    """Draws the kernels of two layers, one below the other, with their names, a title above and a note below."""
    title, note = words
    cells(axes, up, left, 4)
    cells(axes, down, left, -1)
    text(axes, left + 4, 5.2, title, fontsize=10, fontweight="bold")
    text(axes, left - 0.3, 2, f"up\n{up.shape[0]} × {up.shape[1]}", ha="right")
    text(axes, left - 0.3, -1 - down.shape[0] / 2, f"down\n{down.shape[0]} × {down.shape[1]}", ha="right")
    text(axes, left + 4, -9.8, note, va="top", fontsize=plots.SMALL)


def draw_spaces(path: Path) -> None:
    """A mask of weights, a mask of units, and the arrays without the units."""
    figure, axes = blank(-3.4, 38.4, -12.4, 6.2)
    shapes = (4, 8), (8, 3)
    scores = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate(shapes)]
    best = [np.asarray(m) for m in prune.across_tree([jnp.abs(s) for s in scores], 28)]
    up, down = (np.where(m, BLUE, GONE) for m in best)
    note = "one boolean for each weight;\nthe arrays keep their shapes\n(masked model)"
    matrices(axes, 0, up, down, ("a mask of weights", note))

    kept = np.array([True, False, True, True, False, False, True, True])
    up, down = np.where(kept, ORANGE, GONE)[None].repeat(4, 0), np.where(kept, ORANGE, GONE)[:, None].repeat(3, 1)
    note = "one boolean for each neuron, which is\na column of up and a row of down\n(masked model)"
    matrices(axes, 13.5, up, down, ("a mask of units", note))

    note = "the arrays without those neurons;\nthe outputs of the masked model\n(slim model)"
    matrices(axes, 29, up[:, kept], down[kept], ("the units removed", note))
    axes.annotate("", (25.9, 2), (22.3, 2), arrowprops={"arrowstyle": "-|>", "color": plots.BLACK})
    plots.save(figure, path)


def draw_vote(path: Path) -> None:
    """Ballots of five neighbours over the filters of a layer, how many keep each, and the filters that are elected."""
    ranks = np.random.default_rng(4).normal(size=(5, 12)) + 1.2 * np.random.default_rng(9).normal(size=12)
    ballots = prune.by_leaf({str(i): jnp.asarray(r) for i, r in enumerate(ranks)}, 6)
    stacked = {"layer": jnp.stack([ballots[str(i)] for i in range(5)])}
    support = np.asarray(vote.support(stacked)["layer"])
    elected = np.asarray(vote.elect(stacked, {"layer": 6}, scope="leaf")["layer"])

    figure, axes = blank(-8.2, 12.6, -0.2, 10)
    text(axes, 6, 9.5, "the twelve filters of one layer")
    cells(axes, np.where(np.asarray(stacked["layer"]), BLUE, GONE), 0, 9)
    for i in range(5):
        text(axes, -0.3, 8.5 - i, ("nearest task keeps", "2nd", "3rd", "4th", "5th nearest task keeps")[i], ha="right")
    text(axes, -0.3, 3.4, "votes", ha="right")
    cells(axes, np.where(elected, ORANGE, GONE)[None], 0, 2.6)
    text(axes, -0.3, 2.1, "elected: the six with most votes", ha="right", fontweight="bold")
    text(axes, -0.3, 0.7, "the filter starts from the mean\nweights of so many tasks", ha="right")
    for j, share in enumerate(support):
        text(axes, j + 0.5, 3.4, f"{round(5 * share)}")
        if elected[j]:
            text(axes, j + 0.5, 0.7, f"{round(5 * share)}", color=plots.ink(ORANGE), fontweight="bold")
    plots.save(figure, path)


def draw_members(path: Path) -> None:
    """Members as a leading axis of every array of one tree, moved by one program."""
    figure, axes = blank(-9.6, 27.4, -1.8, 9.4)
    colours = (BLUE, ORANGE, GREEN, plots.COLOURS[3])
    rates = ("0.01", "0.02", "0.05", "0.1")
    parts = ("kernel\n[4, 4]", 4.6, 4), ("bias\n[4, 2]", 9.6, 2), ("step\n[4]", 12.6, 1)
    for k, colour in enumerate(colours):
        y = 6 - 2 * k
        text(axes, 4.2, y + 0.5, f"member {k}: rate {rates[k]}, its own key and data", ha="right")
        for name, left, width in parts:
            cells(axes, np.full((1, width), colour), left, y + 1)
            if not k:
                text(axes, left + width / 2, 8.3, name)
    axes.annotate("", (17.4, 3.5), (14.2, 3.5), arrowprops={"arrowstyle": "-|>", "color": plots.BLACK})
    text(axes, 15.8, 3.9, "a vote,\nor a mean", fontsize=plots.SMALL, va="bottom")
    for _, left, width in parts:
        cells(axes, np.full((1, width), "#333333"), left + 13.2, 4)
    text(axes, 9.1, -1.0, "one compiled program trains all four", fontweight="bold")
    plots.save(figure, path)


def main() -> None:
    """Writes the three pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=PICTURES)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    draw_spaces(out / "two_spaces.png")
    draw_vote(out / "vote.png")
    draw_members(out / "members.png")


if __name__ == "__main__":
    main()
