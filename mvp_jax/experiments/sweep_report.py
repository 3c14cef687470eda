"""What a sweep writes of its summary: a table as CSV and Markdown, and a picture."""

import collections
import csv
import io
import json
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from mvp_jax.methods import registry
from mvp_jax.reports import curves, plots
from mvp_jax.storage import files, records


def write(rows: Sequence[Mapping[str, Any]], folder: str | os.PathLike[str]) -> None:
    """Writes the rows that `sweep.summarise` returns into a folder: `summary.csv`, `summary.md` and `summary.png`."""
    folder, names = files.path(folder), list(rows[0])
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([_cell(row[name]) for name in names] for row in rows)
    records.write_text(folder / "summary.csv", text.getvalue())
    records.write_text(folder / "summary.md", to_markdown(rows))
    plot(rows, folder / "summary.png")


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else value


def to_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns the rows that `sweep.summarise` returns as a Markdown table, in percent, chosen rows in bold."""
    titles = registry.titles()

    def text(name: str, value: Any) -> str:
        if value is None or (isinstance(value, float) and math.isnan(value)):
            return ""
        if name == "method":
            return titles.get(value, str(value))
        if name in ("valid", "sd", "test", "test_sd"):
            return f"{100 * value:.1f}"
        return f"{value:g}" if isinstance(value, float) else str(_cell(value))

    names = [n for n in rows[0] if n != "chosen" and any(text(n, row[n]) for row in rows)]
    lines = [[text(name, row[name]) for name in names] for row in rows]
    lines = [
        [
            f"**{t}**" if row["chosen"] and name in ("valid", "test") and t else t
            for name, t in zip(names, line, strict=True)
        ]
        for row, line in zip(rows, lines, strict=True)
    ]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (names, ["--"] * len(names), *lines))
    removed = records.share_name(rows)
    methods = dict.fromkeys(str(row["method"]) for row in rows)
    named = "; ".join(f"{titles[m]}: `{m}`" for m in methods if m in titles)
    return (
        f"{table}\n\nAccuracies in percent: means over targets and seeds, and their spread (`sd`, `test_sd`: standard "
        "deviation) over seeds. `valid` is on validation data; `test` is given only for the setting with the best "
        f"`valid` of a method and {removed}, in bold.\n"
        + (f"\nThe methods' names in a config: {named}.\n" if named else "")
    )


def plot(rows: Sequence[Mapping[str, Any]], path: str | os.PathLike[str], *, most: int = 5) -> None:
    """Draws validation accuracy against the first setting, at the best of the others, and writes the picture.

    There is a line for each of the `most` methods of highest accuracy, at the highest ratio or sparsity in the rows.
    """
    removed = records.share_name(rows)
    setting = next((n for n in rows[0] if n not in ("method", removed)), "steps")
    ratio = max(row[removed] for row in rows)
    here = [row for row in rows if row[removed] == ratio]
    hardest = {json.dumps(r[setting]) for r in here} == {json.dumps(r[setting]) for r in rows}
    here = here if hardest else list(rows)  # if the setting is the ratio itself, all ratios are shown
    places = sorted(
        {json.dumps(row[setting]) for row in here}, key=lambda v: (isinstance(json.loads(v), str), _order(v))
    )
    best: dict[str, dict[str, Mapping[str, Any]]] = collections.defaultdict(dict)
    for row in here:
        at = json.dumps(row[setting])
        if at not in best[row["method"]] or row["valid"] > best[row["method"]][at]["valid"]:
            best[row["method"]][at] = row
    methods = sorted(best, key=lambda m: -max(r["valid"] for r in best[m].values()))[:most]
    figure = plots.make_figure(plots.WIDTH, 4.2)
    axes = figure.add_subplot()
    for i, method in enumerate(methods):
        found = [(x, best[method][at]) for x, at in enumerate(places) if at in best[method]]
        axes.errorbar(
            [x + 0.03 * (i - (len(methods) - 1) / 2) for x, _ in found],
            [100 * r["valid"] for _, r in found],
            yerr=[100 * (r["sd"] or 0.0) if r["seeds"] >= curves.FEWEST_SEEDS else 0.0 for _, r in found],
            color=plots.COLOURS[i],
            marker=plots.MARKERS[i],
            markersize=4,
            linewidth=1.2,
            capsize=2,
            label=registry.titles().get(method, method),
        )
    axes.set_xticks(range(len(places)), [str(_cell(json.loads(v))) for v in places])
    axes.set_xlabel(setting)
    axes.set_ylabel("validation accuracy (%)")
    pruned = f", {ratio:.0%} pruned" if hardest else ""
    plots.tidy(axes)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=plots.SMALL)
    plots.head(figure, f"Validation accuracy against {setting}{pruned}")
    plots.foot(figure, ["the best over the other settings", "bars: standard deviation over seeds, of at least 3"])
    plots.save(figure, path)


def _order(text: str) -> Any:
    value = json.loads(text)
    return (0, value, "") if isinstance(value, int | float) else (1, 0, text)
