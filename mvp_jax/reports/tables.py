"""Results as numbers to trust: paired differences, summaries and tables.

A row is one result (see `records.Row`). Targets are the independent draws; seeds of one target are repetitions,
so they are averaged first and never counted as evidence of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.table
import rich.text

from mvp_jax.storage.records import Row, by_seed, share, share_name

FEWEST_PAIRS = 3
"""The fewest pairs of which an interval is given: that of two is so wide (Student's t is 12.7) that it says nothing."""


class Paired(NamedTuple):
    """A paired difference `ours - theirs`.

    Attributes:
        mean: the mean difference over targets.
        low: the lower end of its confidence interval; `nan` for fewer than `FEWEST_PAIRS` targets.
        high: the upper end.
        n: how many pairs of (target, seed) were compared.
        targets: how many independent targets there are.
        wins: on how many targets ours is higher.
    """

    mean: float
    low: float
    high: float
    n: int
    targets: int
    wins: int


def paired(
    rows: Sequence[Row],
    ours: str,
    theirs: str,
    *,
    steps: int | None = None,
    ratio: float | None = None,
    sparsity: float | None = None,
    their_steps: int | None = None,
    split: str = "test",
    confidence: float = 0.95,
) -> Paired:
    """The difference of two methods on the same targets and seeds.

    `d_t = mean over seeds of (ours - theirs)`; the mean over targets with Student's interval over targets,
    `mean ± t(T-1) · sd(d) / √T`, if there are at least 3 targets.

    Args:
        rows: results.
        ours: the method whose advantage is asked for.
        theirs: the method that it is compared with.
        steps: the number of fine-tuning steps; `None`: whatever the rows have, if that is one number.
        ratio: the share of units pruned; `None`: whatever the rows have, if that is one number.
        sparsity: the share of weights pruned, of rows with a sparsity; `None`: whatever they have, if one number.
        their_steps: the number of fine-tuning steps of `theirs`; `None`: as many as `steps`.
        split: the split whose accuracies are compared, such as `test`.
        confidence: the confidence of the interval, 0 to 1.

    Returns:
        The difference, in the unit of `accuracy`.

    Raises:
        ValueError: if no pair is found, or several rows claim one (target, seed).

    >>> row = {"seed": 0, "ratio": 0.5, "steps": 0, "split": "test"}
    >>> ours, theirs = {"a": 0.8, "b": 0.7, "c": 0.7}, {"a": 0.7, "b": 0.5, "c": 0.6}
    >>> rows = [{**row, "method": m, "target": t, "accuracy": a}
    ...     for m, found in (("mvp", ours), ("ifp", theirs)) for t, a in found.items()]
    >>> p = paired(rows, "mvp", "ifp")
    >>> f"{p.mean:.2f} from {p.low:.2f} to {p.high:.2f}", p.targets, p.wins
    ('0.13 from -0.01 to 0.28', 3, 3)
    """
    from scipy import stats  # takes longer to load than all of this file

    shares = {k: v for k, v in (("ratio", ratio), ("sparsity", sparsity)) if v is not None}

    def accuracies(method: str, j: int | None) -> dict[tuple[Any, Any], float]:
        found: dict[tuple[Any, Any], float] = {}
        for r in rows:
            if r["method"] != method or r["split"] != split or any(r.get(k) != v for k, v in shares.items()):
                continue
            if j is not None and r["steps"] != j:
                continue
            at = (r["target"], r["seed"])
            if at in found:
                raise ValueError(
                    f"two rows of {method!r} for (target, seed) {at}; give `steps` and `{share_name(rows)}` to "
                    "choose one"
                )
            found[at] = float(r["accuracy"])
        return found

    a, b = accuracies(ours, steps), accuracies(theirs, steps if their_steps is None else their_steps)
    both = sorted(set(a) & set(b), key=str)
    if not both:
        name = share_name(rows)
        there = sorted({(str(r["method"]), share(r), r["steps"], str(r["split"])) for r in rows})
        raise ValueError(
            f"no target and seed with both {ours!r} and {theirs!r} at steps {steps}, {name} {shares.get(name)}, "
            f"split {split!r}; the rows have (method, {name}, steps, split): {there[:8]}"
        )
    by_target: dict[Any, list[float]] = {}
    for at in both:
        by_target.setdefault(at[0], []).append(a[at] - b[at])
    d = np.array([np.mean(v) for v in by_target.values()])
    mean, half = float(d.mean()), float("nan")
    if len(d) >= FEWEST_PAIRS:
        half = float(stats.t.ppf(0.5 + confidence / 2, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return Paired(mean, mean - half, mean + half, len(both), len(d), int(np.sum(d > 0)))


_COSTS = ("cost_examples", "cost_serial_steps", "cost_collectives", "params", "flops")


def summary(rows: Sequence[Row], ours: str = "mvp", *, split: str = "test") -> list[dict[str, Any]]:
    """One row for each method, ratio (or sparsity) and number of steps, the best of each comparison first.

    Args:
        rows: results.
        ours: the method that all others are compared with, at the same ratio (or sparsity) and steps.
        split: the split whose accuracies count, such as `test`.

    Returns:
        Dicts with `method`, `ratio` or `sparsity` (whichever the rows have), `steps`, `accuracy` (mean over seeds of
        the mean over targets), `sd` (of those means, over seeds; `None` for one seed), `n` (rows), `targets`,
        `seeds`, `difference`, `low`, `high`, `wins` (ours minus this one, see `paired`; `None` for ours, or where
        nothing is paired; the ends are `nan` for fewer than 3 targets), and the means of `cost_examples`,
        `cost_serial_steps`, `cost_collectives`, `params`, `flops` (`None` where unknown).

    Raises:
        ValueError: if no row has this split.
    """
    groups: dict[tuple[float, int, str], list[Row]] = {}
    for r in rows:
        if r["split"] == split:
            groups.setdefault((share(r), r["steps"], r["method"]), []).append(r)
    if not groups:
        raise ValueError(f"no rows of split {split!r}; there are {sorted({str(r['split']) for r in rows})}")

    name = share_name(rows)

    def one(amount: float, steps: int, method: str, members: list[Row]) -> dict[str, Any]:
        seeds = by_seed(members)
        difference: Paired | None = None
        if method != ours:
            mine = {(r["target"], r["seed"]) for r in groups.get((amount, steps, ours), [])}
            if mine & {(r["target"], r["seed"]) for r in members}:
                here = [*groups[amount, steps, ours], *members]
                difference = paired(here, ours, method, split=split)

        def mean(field: str) -> float | None:
            known = [float(r[field]) for r in members if r.get(field) is not None]
            return float(np.mean(known)) if known else None

        return {
            "method": method,
            name: amount,
            "steps": steps,
            "accuracy": float(seeds.mean()),
            "sd": float(seeds.std(ddof=1)) if len(seeds) > 1 else None,
            "n": len(members),
            "targets": len({r["target"] for r in members}),
            "seeds": len(seeds),
            "difference": difference and difference.mean,
            "low": difference and difference.low,
            "high": difference and difference.high,
            "wins": difference and difference.wins,
            **{field: mean(field) for field in _COSTS},
        }

    found = [one(*at, members) for at, members in groups.items()]
    return sorted(found, key=lambda r: (r[name], r["steps"], -r["accuracy"], r["method"]))


def _cells(
    rows: Sequence[Mapping[str, Any]], ours: str, strong: str, names: Mapping[str, str], value: str
) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a summary; columns of which nothing is known are left out."""
    missing = without_interval(rows)

    def points(value: float | None, sign: str = "") -> str:
        return "" if value is None or np.isnan(value) else f"{100 * value:{sign}.1f}"

    def difference(r: Mapping[str, Any]) -> str:
        if r["difference"] is None:
            return ""
        text = points(r["difference"], "+")
        if np.isnan(r["low"]):
            return text if len(missing) == 1 else f"{text} ({_targets(r['targets'])}, no interval)"
        text = strong.format(text) if r["low"] > 0 or r["high"] < 0 else text
        return f"{text} [{points(r['low'], '+')}, {points(r['high'], '+')}]"

    def short(value: float | None) -> str:
        if value is None:
            return ""
        for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
        return f"{value:.0f}"

    removed = share_name(rows)
    interval = f"({_targets(missing[0])}, no interval)" if len(missing) == 1 else "[95 %]"
    columns = {
        removed: lambda r: f"{share(r):g}",
        "steps": lambda r: str(r["steps"]),
        "method": lambda r: names.get(r["method"], str(r["method"])),
        value: lambda r: points(r["accuracy"]),
        "sd": lambda r: points(r["sd"]),
        f"{names.get(ours, ours)} − it {interval}": difference,
        "wins": lambda r: "" if r["wins"] is None else f"{r['wins']}/{r['targets']}",
        "n": lambda r: str(r["n"]),
        "examples": lambda r: short(r["cost_examples"]),
        "serial steps": lambda r: short(r.get("cost_serial_steps")),
        "collectives": lambda r: short(r.get("cost_collectives")),
        "params": lambda r: short(r["params"]),
        "FLOPs": lambda r: short(r["flops"]),
    }
    table = {name: [cell(r) for r in rows] for name, cell in columns.items()}
    table = {name: cells for name, cells in table.items() if any(cells)}
    return list(table), [list(line) for line in zip(*table.values(), strict=True)]


def _targets(number: int) -> str:
    return f"{number} target{'s' if number != 1 else ''}"


def without_interval(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Returns the numbers of targets of a summary's differences, if none of them has an interval; else nothing.

    Args:
        rows: what `summary` returned.
    """
    compared = [r for r in rows if r["difference"] is not None]
    if any(not np.isnan(r["low"]) for r in compared):
        return []
    return sorted({int(r["targets"]) for r in compared})


def to_markdown(
    rows: Sequence[Mapping[str, Any]],
    ours: str = "mvp",
    names: Mapping[str, str] | None = None,
    *,
    value: str = "accuracy %",
    explained: bool = True,
) -> str:
    """A `summary` as a Markdown table, in percent and percentage points.

    A bold difference is one whose interval leaves out 0.

    Args:
        rows: what `summary` returned.
        ours: the method that `summary` was given.
        names: what the methods are called in the table, `{method: name}`; a method without one has its own name.
        value: the heading of the column of accuracies, for another metric that stands in its place.
        explained: whether a list of what the columns mean, and one of the names, follow the table.

    Returns:
        The table, and what `explanation` returns below it.
    """
    headings, lines = _cells(rows, ours, "**{}**", names or {}, value)
    rule = [":--" if name == "method" else "--:" for name in headings]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (headings, rule, *lines)) + "\n"
    return f"{table}\n{explanation(rows, ours, names)}" if explained else table


_COLUMNS = {
    "ratio": "the share of the units that was removed",
    "sparsity": "the share of the weights that was removed",
    "steps": "steps of fine-tuning after pruning",
    "accuracy %": "mean over targets and seeds, in percent",
    "sd": "standard deviation over seeds of the mean over targets, in percentage points",
    "wins": "on how many of the targets {ours} is better",
    "n": "results, a target and a seed each",
    "examples": "training examples that went forward and backward for a target; one that went forward only is a third",
    "serial steps": "training steps that follow one another, if every member has a device of its own",
    "collectives": "how often the weights, gradients or votes of all members are put together",
    "params": "parameters that are kept",
    "FLOPs": "floating-point operations of a forward pass over one example",
}


def explanation(rows: Sequence[Mapping[str, Any]], ours: str = "mvp", names: Mapping[str, str] | None = None) -> str:
    """Returns what the columns of a summary's table mean, and how a config names its methods, as Markdown.

    Args:
        rows: what `summary` returned.
        ours: the method that `summary` was given.
        names: what the methods are called in the table, `{method: name}`; a method without one has its own name.
    """
    names = names or {}
    title = names.get(ours, ours)
    lines = []
    for heading in _cells(rows, ours, "{}", names, "accuracy %")[0]:
        if " − it" in heading:
            lines.append(f"- `{title} − it`: {_of_difference(rows, title)}")
        elif heading != "method":
            lines.append(f"- `{heading}`: {_COLUMNS[heading].format(ours=title)}")
    methods = list(dict.fromkeys(str(r["method"]) for r in rows))
    named = [f"| {names[m]} | `{m}` |" for m in methods if names.get(m, m) != m]
    legend = ["", "| method | its name in a config |", "|:--|:--|", *named] if named else []
    return "\n".join([*lines, *legend]) + "\n"


def _of_difference(rows: Sequence[Mapping[str, Any]], title: str) -> str:
    text = f"accuracy of {title} minus this method's, paired by target and seed, in percentage points"
    missing = without_interval(rows)
    few = f"an interval needs at least {FEWEST_PAIRS} targets, as targets are the independent draws and seeds are not"
    if missing:
        return f"{text}; {few}"
    return f"{text}, with its 95 % interval over targets (Student's t); bold where it leaves out 0; {few}"


def to_terminal(
    rows: Sequence[Mapping[str, Any]],
    ours: str = "mvp",
    names: Mapping[str, str] | None = None,
    *,
    title: str | None = None,
) -> rich.table.Table:
    """A `summary` as a table for `rich.print`, without its costs, a rule between comparisons.

    Args:
        rows: what `summary` returned.
        ours: the method that `summary` was given.
        names: what the methods are called in the table, `{method: name}`; a method without one has its own name.
        title: the text above the table.

    >>> row = {"target": "a", "seed": 0, "ratio": 0.5, "steps": 0, "split": "test", "method": "mvp", "accuracy": 0.5}
    >>> [c.header for c in to_terminal(summary([row])).columns]
    ['ratio', 'steps', 'method', 'accuracy %']
    """
    headings, lines = _cells(rows, ours, "[bold]{}[/bold]", names or {}, "accuracy %")
    # Only the bold marks are markup: an interval in brackets would be read as a tag.
    headings, *lines = ([cell.replace(" [", r" \[") for cell in line] for line in (headings, *lines))
    # 80 columns hold what is compared; what it cost stands in the file.
    hidden = ("n", "examples", "serial steps", "collectives", "params", "FLOPs")
    shown = [k for k, name in enumerate(headings) if name not in hidden]
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for k in shown:
        if headings[k] == "method":  # the one column that may give way
            table.add_column(headings[k], overflow="fold")
        else:
            wide = max(len(rich.text.Text.from_markup(line[k])) for line in lines)
            narrow = " (" not in headings[k]  # a heading that says why there are no intervals may be broken
            wide = max(wide, len(rich.text.Text.from_markup(headings[k]))) if narrow else max(wide, 12)
            table.add_column(headings[k], justify="right", no_wrap=narrow, min_width=wide)
    for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
        last = i + 1 == len(rows) or (share(rows[i + 1]), rows[i + 1]["steps"]) != (share(row), row["steps"])
        table.add_row(*(line[k] for k in shown), end_section=last)
    return table
