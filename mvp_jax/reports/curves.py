"""Accuracy against fine-tuning steps and against sparsity, as pictures of which at most seven lines are named."""

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.reports import chosen_lines, plots
from mvp_jax.storage import records

FEWEST_SEEDS = 3
"""The fewest seeds for whose accuracies a band is drawn: the spread of two numbers says next to nothing."""


class MethodLine(NamedTuple):
    """The line of one method in a picture.

    Attributes:
        method: the method's name.
        x: where its points are, in the picture's coordinates.
        mean: accuracy in percent at each point: the mean over seeds of the mean over targets.
        sd: the standard deviation over seeds at each point, in percentage points; `None`: of fewer than `FEWEST_SEEDS`.
    """

    method: str
    x: Sequence[float]
    mean: np.ndarray
    sd: np.ndarray | None


def of_split(rows: Sequence[records.Row], split: str) -> list[records.Row]:
    """Returns the rows of a split.

    Raises:
        ValueError: if there are none.
    """
    found = [r for r in rows if r["split"] == split]
    if not found:
        raise ValueError(f"no rows of split {split!r} to draw; there are {sorted({str(r['split']) for r in rows})}")
    return found


def mean_accuracies(rows: Iterable[records.Row]) -> dict[str, float]:
    """Returns the mean accuracy of every method, `{method: accuracy}`.

    >>> mean_accuracies([{"method": "mvp", "accuracy": 0.5}, {"method": "mvp", "accuracy": 0.75}])
    {'mvp': 0.625}
    """
    found: dict[str, list[float]] = {}
    for row in rows:
        found.setdefault(str(row["method"]), []).append(float(row["accuracy"]))
    return {method: float(np.mean(values)) for method, values in found.items()}


def accuracy_label(split: str) -> str:
    """Returns the text at an axis of accuracies in percent.

    >>> accuracy_label("valid")
    'validation accuracy, %'
    """
    return f"{'validation' if split == 'valid' else split} accuracy, %"


def _line(method: str, rows: Sequence[records.Row], places: Mapping[Any, float], at: Any) -> MethodLine:
    """The line of a method; `at(row)` says at which of the places a row belongs."""
    own = sorted({at(r) for r in rows})
    seeds = [100 * records.by_seed([r for r in rows if at(r) == place]) for place in own]
    enough = min(map(len, seeds)) >= FEWEST_SEEDS
    return MethodLine(
        method,
        [places[place] for place in own],
        np.array([values.mean() for values in seeds]),
        np.array([values.std(ddof=1) for values in seeds]) if enough else None,
    )


def _draw(
    axes: Any, lines: Mapping[str, MethodLine], styles: Mapping[str, chosen_lines.LineStyle], names: Mapping[str, str]
) -> list[tuple[float, float, str, Any, bool]]:
    """Draws the lines; returns where those with a name end, for `plots.name_lines`."""
    ends: list[tuple[float, float, str, Any, bool]] = []
    for method, style in styles.items():
        if method not in lines:
            continue
        x, mean, sd = lines[method][1:]
        size = 5 if style.marker != "." else 3
        axes.plot(x, mean, color=style.colour, marker=style.marker, markersize=size, linewidth=style.width)
        if style.ours and sd is not None:
            axes.fill_between(x, mean - sd, mean + sd, color=style.colour, alpha=0.15, linewidth=0)
        if style.named:
            name = plots.wrapped(f"{names.get(method, method)}  {mean[-1]:.1f}", _BESIDE)
            colour = plots.GREY if style.colour == plots.PALE else style.colour
            ends.append((x[-1], float(mean[-1]), name, colour, style.ours))
    return ends


_BESIDE = 34
"""How many characters of a name and an accuracy stand in a line beside a picture."""


def _room(methods: Iterable[str], names: Mapping[str, str]) -> float:
    return plots.room([f"{names.get(m, m)}  99.9" for m in methods], _BESIDE)


def _limits(lines: Iterable[MethodLine], named: Iterable[str], levels: Sequence[float] = ()) -> tuple[float, float]:
    """The range of accuracies of the named lines, their bands and levels, with a margin."""
    values = list(levels)
    wanted = set(named)
    for line in lines:
        if line.method in wanted:
            sd = 0.0 if line.sd is None else line.sd
            values += [*(line.mean - sd), *(line.mean + sd)]
    low, high = min(values), max(values)
    margin = 0.06 * max(high - low, 1.0)
    return low - margin, high + margin


def _chance(axes: Any, limits: tuple[float, float], chance: float | None) -> list[str]:
    """Draws the accuracy of guessing if it is in view or nearly so; returns a note if it is not."""
    low, high = limits
    guess = None if chance is None else 100 * chance
    seen = guess is not None and guess > low - 0.15 * (high - low)  # far below, it would only squeeze the lines
    axes.set_ylim(min(low, guess - 0.04 * (high - low)) if seen and guess is not None else low, high)
    if guess is None:
        return []
    if not seen:
        return [f"chance: {guess:.3g} %, below the picture"]
    axes.axhline(guess, color=plots.NOTE, linewidth=0.9, linestyle="--")
    axes.annotate(
        f"chance: {guess:.3g} %",
        (0.02, guess),
        xycoords=("axes fraction", "data"),
        xytext=(0, 2),
        textcoords="offset points",
        fontsize=plots.SMALL,
        color=plots.NOTE,
        va="bottom",
    )
    return []


def _notes(
    lines: Sequence[MethodLine],
    styles: Mapping[str, chosen_lines.LineStyle],
    names: Mapping[str, str],
    low: float,
) -> list[str]:
    """What the reader must know of bands and grey lines."""
    notes = []
    banded = next((line.method for line in lines if styles[line.method].ours and line.sd is not None), None)
    if banded is not None:
        notes.append(f"band: standard deviation over seeds, of {names.get(banded, banded)}")
    grey = {m for m, style in styles.items() if not style.named}
    if grey:
        below = {line.method for line in lines if line.method in grey and line.mean.max() < low}
        unseen = f", {len(below)} of them below the picture" if below else ""
        notes.append(f"thin grey: the {len(grey)} other method{'s' if len(grey) > 1 else ''}{unseen}")
    return notes


def plot_accuracy_against_steps(
    rows: Sequence[records.Row],
    path: str | os.PathLike[str],
    *,
    ours: str = "mvp",
    names: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    highlight: Sequence[str] | None = None,
    every: bool = False,
    split: str = "test",
    chance: float | None = None,
    title: str = "Accuracy of the pruned model against fine-tuning steps",
) -> None:
    """Draws accuracy against fine-tuning steps: a panel for each ratio, a line for each method.

    A line is the mean over seeds of the mean over targets; the accuracy at its end stands beside its name. At most
    seven methods are named, by the rule of `chosen_lines.choose` on the accuracies at the most steps; the others are
    thin and grey, and the axis is as long as the named lines need.

    Args:
        rows: results, as `records.Row` describes them.
        path: where the picture is written; the suffix chooses the format.
        ours: the method whose line is drawn thickest.
        names: what the methods are called in the picture, `{method: name}`; a method without one has its own name.
        roles: what each method is in the comparison, `{method: role}`, as `chosen_lines.choose` takes it.
        highlight: up to 6 other methods to name; the rest is grey. `None`: by the rule.
        every: whether all methods are named, the grey ones too.
        split: the split whose accuracies are drawn, such as `test`.
        chance: the accuracy of guessing, 0 to 1, drawn as a dashed line if in view.
        title: the text above the panels.

    Raises:
        ValueError: if no row has this split, or a highlighted method is not there.
    """
    rows, names = of_split(rows, split), names or {}
    methods = sorted({str(r["method"]) for r in rows})
    last = max(r["steps"] for r in rows if r["method"] == ours or ours not in methods)
    final = mean_accuracies(r for r in rows if r["steps"] == last)
    accuracies = {m: final.get(m, -1.0) for m in methods}
    chosen = chosen_lines.given(accuracies, ours, roles, highlight=highlight)
    styles = chosen_lines.styles(methods, chosen, ours, roles, every=every)
    ratios = sorted({records.share(r) for r in rows})
    ticks = sorted({r["steps"] for r in rows})
    tall = max(3.2, _room(methods if every else chosen, names) + 0.5)
    figure = plots.make_figure(plots.WIDTH, len(ratios) * tall + 1.0)
    panels = figure.subplots(len(ratios), 1, squeeze=False, sharex=True)[:, 0]
    notes: list[str] = []
    for panel, ratio in zip(panels, ratios, strict=True):
        here = [r for r in rows if records.share(r) == ratio]
        lines = {
            m: _line(m, own, {s: s for s in ticks}, lambda r: r["steps"])
            for m in methods
            if (own := [r for r in here if r["method"] == m])
        }
        ends = _draw(panel, lines, styles, names)
        low, high = _limits(lines.values(), methods if every else chosen)
        notes += _chance(panel, (low, high), chance) + _notes(list(lines.values()), styles, names, low)
        if len(ticks) > 2:
            panel.set_xscale("symlog", linthresh=min(s for s in ticks if s > 0), linscale=0.7)
        panel.set_xticks(ticks, [str(s) for s in ticks])
        panel.minorticks_off()
        panel.set_ylabel(accuracy_label(split))
        panel.set_title(f"{100 * ratio:g} % of the units pruned", fontsize=9, loc="left")
        plots.tidy(panel)
        plots.name_lines(panel, ends, tall - 0.4)
    panels[-1].set_xlabel("fine-tuning steps" + (", log scale" if len(ticks) > 2 else ""))
    plots.head(figure, title)
    plots.foot(
        figure, ["means over targets and seeds; beside each name the accuracy at its last step", *dict.fromkeys(notes)]
    )
    plots.save(figure, path)


def plot_accuracy_against_sparsity(
    rows: Sequence[records.Row],
    path: str | os.PathLike[str],
    *,
    ours: str = "isp",
    names: Mapping[str, str] | None = None,
    roles: Mapping[str, str] | None = None,
    highlight: Sequence[str] | None = None,
    every: bool = False,
    split: str = "test",
    chance: float | None = None,
    title: str = "Accuracy against sparsity",
) -> None:
    """Draws accuracy against sparsity, a line for each method, and the unpruned model as a level.

    A line is the mean over seeds of the mean over targets; the accuracy at its end stands beside its name. At most
    seven lines are named, the level among them, by the rule of `chosen_lines.choose` on the mean over sparsities; the
    others are thin and grey, and the axis is as long as the named lines need.

    Args:
        rows: results, as `records.Row` describes them; those at sparsity 0 are drawn as a level (the unpruned model).
        path: where the picture is written; the suffix chooses the format.
        ours: the method whose line is drawn thickest.
        names: what the methods are called in the picture, `{method: name}`; a method without one has its own name.
        roles: what each method is in the comparison, `{method: role}`, as `chosen_lines.choose` takes it.
        highlight: up to 5 other methods to name; the rest is grey. `None`: by the rule.
        every: whether all methods are named, the grey ones too.
        split: the split whose accuracies are drawn, such as `test`.
        chance: the accuracy of guessing, 0 to 1, drawn as a dashed line if in view.
        title: the text above the picture.

    Raises:
        ValueError: if no row has this split, or a highlighted method is not there.
    """
    rows, names = of_split(rows, split), names or {}
    pruned = [r for r in rows if records.share(r) > 0] or rows
    whole = [r for r in rows if records.share(r) == 0] if pruned is not rows else []
    chosen = chosen_lines.given(
        mean_accuracies(pruned), ours, roles, highlight=highlight, most=chosen_lines.MOST - bool(whole)
    )
    methods = sorted({str(r["method"]) for r in pruned})
    styles = chosen_lines.styles(methods, chosen, ours, roles, every=every)
    sparsities = sorted({records.share(r) for r in pruned})
    places = {s: float(x) for x, s in enumerate(sparsities)}
    lines = {m: _line(m, [r for r in pruned if r["method"] == m], places, records.share) for m in methods}
    tall = max(3.4, _room([*(methods if every else chosen), *mean_accuracies(whole)], names) + 0.5)
    figure = plots.make_figure(plots.WIDTH, tall + 1.0)
    axes = figure.subplots()
    ends = _draw(axes, lines, styles, names)
    level = [100 * value for value in mean_accuracies(whole).values()]
    for method, value in zip(mean_accuracies(whole), level, strict=True):
        axes.axhline(value, color=plots.BLACK, linewidth=1.2)
        label = plots.wrapped(f"{names.get(method, method)}  {value:.1f}", _BESIDE)
        ends.append((len(sparsities) - 1.0, value, label, plots.BLACK, False))
    low, high = _limits(lines.values(), methods if every else chosen, level)
    notes = _chance(axes, (low, high), chance) + _notes(list(lines.values()), styles, names, low)
    shares = [f"{100 * s:g} %" for s in sparsities]
    axes.set_xticks(range(len(shares)), shares)
    axes.set_xlabel(f"{'weights' if records.share_name(rows) == 'sparsity' else 'units'} removed, not to scale")
    axes.set_ylabel(accuracy_label(split))
    plots.tidy(axes)
    plots.name_lines(axes, ends, tall - 0.4)
    plots.head(figure, title)
    plots.foot(figure, [f"means over targets and seeds; beside each name the accuracy at {shares[-1]}", *notes])
    plots.save(figure, path)
