"""The style of all pictures: their width, colours, axes, and names beside lines.

Colours are Okabe and Ito's, told apart by every kind of sight, and black; each line also has a marker and its name
beside it. Pictures are as wide as a page of text or a notebook's cell, and no text is below 8 points.
"""

import os
import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np

from mvp_jax.storage import records

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
BLACK = "#000000"
GREY = "#8c8c8c"
PALE = "#bdbdbd"
"""The colour of lines without a name."""
NOTE = "#5f5f5f"
"""The colour of notes below a picture."""

WIDTH = 7.5
"""The width of a picture in inches."""

SMALL = 8
"""The size of the smallest text, in points."""


def make_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches."""
    # Without pyplot: no window, no global list of figures, no backend to choose.
    from matplotlib.figure import Figure

    figure: Any = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08)  # names beside the axes are measured a little too short
    return figure


def head(figure: Any, title: str) -> None:
    """Writes a figure's title at its upper left, in lines that fit its width."""
    wide = int(figure.get_figwidth() * 10.5)
    text = "\n".join(textwrap.wrap(title, wide))
    figure.suptitle(text, fontsize=11, fontweight="bold", x=0.01, ha="left")


def foot(figure: Any, notes: Sequence[str]) -> None:
    """Writes notes below a figure, one after the other, in lines that fit its width."""
    wide = int(figure.get_figwidth() * 15.5)
    text = "\n".join(textwrap.wrap("; ".join(notes), wide))
    figure.supxlabel(text, fontsize=SMALL, color=NOTE, x=0.01, ha="left")


def legend(axes: Any, keys: Sequence[Any], *, columns: int) -> None:
    """Fills axes of their own with a legend, so that it takes no room from the data and overlaps nothing."""
    axes.axis("off")
    axes.legend(handles=keys, loc="center left", ncols=columns, fontsize=SMALL, frameon=False, borderaxespad=0)


def ink(colour: Any) -> tuple[float, float, float]:
    """Returns a colour dark enough for small text on white: of the same hue, with a contrast of at least 4.2.

    The contrast is that of the Web Content Accessibility Guidelines, `1.05 / (luminance + 0.05)`.

    >>> [round(part, 2) for part in ink("#56B4E9")]
    [0.24, 0.51, 0.67]
    >>> [round(part, 2) for part in ink("#000000")]
    [0.0, 0.0, 0.0]
    """
    from matplotlib.colors import to_rgb

    linear = np.array([c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)])
    luminance = float(linear @ (0.2126, 0.7152, 0.0722))
    linear *= min(1.0, 0.2 / max(luminance, 1e-9))
    red, green, blue = (float(12.92 * c if c <= 0.0031308 else 1.055 * c ** (1 / 2.4) - 0.055) for c in linear)
    return red, green, blue


def wrapped(name: str, width: int = 30) -> str:
    """Returns a name in lines of at most `width` characters, for the space beside a picture.

    >>> wrapped("a copy of the nearest entry of the bank").splitlines()
    ['a copy of the nearest entry of', 'the bank']
    """
    return "\n".join(textwrap.wrap(name, width)) or name


def save(figure: Any, path: str | os.PathLike[str]) -> None:
    """Writes a figure to a file that appears complete or not at all; the suffix chooses the format."""
    with records.replacing(path) as temporary:
        figure.savefig(temporary, dpi=160)


def tidy(axes: Any) -> None:
    """Leaves axes the left and bottom line, and a light grid for reading values."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)


def shortened(names: Sequence[str]) -> tuple[list[str], str]:
    """Returns names without the last part that all of them share, and that part; parts are joined by ", ".

    >>> shortened(["stage 1, block 1, convolution 1", "stage 1, block 2, convolution 1"])
    (['stage 1, block 1', 'stage 1, block 2'], 'convolution 1')
    >>> shortened(["layer 1, MLP", "layer 1, attention"])
    (['layer 1, MLP', 'layer 1, attention'], '')
    """
    heads, _, tails = zip(*(name.rpartition(", ") for name in names), strict=True)
    if len(set(tails)) == 1 and len(set(heads)) == len(heads) > 1:
        return list(heads), tails[0]
    return list(names), ""


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


def room(names: Sequence[str], width: int = 30) -> float:
    """Returns the height in inches that names beside axes need, the longest in lines of `width` characters.

    >>> room(["a", "b"]) < room(["a", "b b b b b b b b b b b b b b b b b b"])
    True
    """
    tall = max((1 + wrapped(name, width).count("\n") for name in names), default=0)
    return len(names) * 1.25 * tall * SMALL / 72


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
            color=ink(colour),
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


def list_names(axes: Any, names: Sequence[tuple[str, Any]], height: float) -> None:
    """Lists names, `(name, colour)`, right of axes whose values grow downwards, from the top; height in inches."""
    low, high = sorted(axes.get_ylim())
    gap = (high - low) * 1.25 * SMALL / 72 / height
    for k, (name, colour) in enumerate(names):
        at = (1.03, low + (k + 0.5) * gap)
        axes.annotate(
            name,
            at,
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=SMALL,
            color=ink(colour),
            annotation_clip=False,
        )
