"""Results as numbers to trust: paired differences, summaries, tables, and how much the kept units overlap.

A row is one result (see `records.Row`). Targets are the independent draws; seeds of one target are repetitions,
so they are averaged first and never counted as evidence of their own.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import rich.box
import rich.table
import rich.text

from mvp_jax.storage.records import Row, by_seed


class Paired(NamedTuple):
    """A paired difference `ours - theirs`.

    Attributes:
        mean: the mean difference over targets.
        low: the lower end of its confidence interval; `nan` for a single target.
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
    their_steps: int | None = None,
    split: str = "test",
    confidence: float = 0.95,
) -> Paired:
    """The difference of two methods on the same targets and seeds.

    `d_t = mean over seeds of (ours - theirs)`; the mean over targets with Student's interval over targets,
    `mean ± t(T-1) · sd(d) / √T`.

    Args:
        rows: results.
        ours: the method whose advantage is asked for.
        theirs: the method that it is compared with.
        steps: the number of fine-tuning steps; `None`: whatever the rows have, if that is one number.
        ratio: the share of units pruned; `None`: whatever the rows have, if that is one number.
        their_steps: the number of fine-tuning steps of `theirs`; `None`: as many as `steps`.
        split: the split whose accuracies are compared, such as `test`.
        confidence: the confidence of the interval, 0 to 1.

    Returns:
        The difference, in the unit of `accuracy`.

    Raises:
        ValueError: if no pair is found, or several rows claim one (target, seed).

    >>> row = {"seed": 0, "ratio": 0.5, "steps": 0, "split": "test"}
    >>> rows = [{**row, "method": m, "target": t, "accuracy": a} for m, t, a in [
    ...     ("mvp", "a", 0.8), ("mvp", "b", 0.7), ("ifp", "a", 0.7), ("ifp", "b", 0.5)]]
    >>> p = paired(rows, "mvp", "ifp")
    >>> f"{p.mean:.2f} from {p.low:.2f} to {p.high:.2f}", p.targets, p.wins
    ('0.15 from -0.49 to 0.79', 2, 2)
    """
    from scipy import stats  # takes longer to load than all of this file

    def accuracies(method: str, j: int | None) -> dict[tuple[Any, Any], float]:
        found: dict[tuple[Any, Any], float] = {}
        for r in rows:
            if r["method"] != method or r["split"] != split or (ratio is not None and r["ratio"] != ratio):
                continue
            if j is not None and r["steps"] != j:
                continue
            at = (r["target"], r["seed"])
            if at in found:
                raise ValueError(
                    f"two rows of {method!r} for (target, seed) {at}; give `steps` and `ratio` to choose one"
                )
            found[at] = float(r["accuracy"])
        return found

    a, b = accuracies(ours, steps), accuracies(theirs, steps if their_steps is None else their_steps)
    both = sorted(set(a) & set(b), key=str)
    if not both:
        there = sorted({(str(r["method"]), r["ratio"], r["steps"], str(r["split"])) for r in rows})
        raise ValueError(
            f"no target and seed with both {ours!r} and {theirs!r} at steps {steps}, ratio {ratio}, split {split!r}; "
            f"the rows have (method, ratio, steps, split): {there[:8]}"
        )
    by_target: dict[Any, list[float]] = {}
    for at in both:
        by_target.setdefault(at[0], []).append(a[at] - b[at])
    d = np.array([np.mean(v) for v in by_target.values()])
    mean, half = float(d.mean()), float("nan")
    if len(d) > 1:
        half = float(stats.t.ppf(0.5 + confidence / 2, len(d) - 1) * d.std(ddof=1) / np.sqrt(len(d)))
    return Paired(mean, mean - half, mean + half, len(both), len(d), int(np.sum(d > 0)))


def summary(rows: Sequence[Row], ours: str = "mvp", *, split: str = "test") -> list[dict[str, Any]]:
    """One row for each method, ratio and number of steps, the best of each comparison first.

    Args:
        rows: results.
        ours: the method that all others are compared with, at the same ratio and steps.
        split: the split whose accuracies count, such as `test`.

    Returns:
        Dicts with `method`, `ratio`, `steps`, `accuracy` (mean over seeds of the mean over targets), `sd` (of those
        means, over seeds; `None` for one seed), `n` (rows), `targets`, `seeds`, `difference`, `low`, `high`, `wins`
        (ours minus this one, see `paired`; `None` for ours, or where nothing is paired), and the means of
        `cost_examples`, `params`, `flops` (`None` where unknown).

    Raises:
        ValueError: if no row has this split.
    """
    groups: dict[tuple[float, int, str], list[Row]] = {}
    for r in rows:
        if r["split"] == split:
            groups.setdefault((r["ratio"], r["steps"], r["method"]), []).append(r)
    if not groups:
        raise ValueError(f"no rows of split {split!r}; there are {sorted({str(r['split']) for r in rows})}")

    def one(ratio: float, steps: int, method: str, members: list[Row]) -> dict[str, Any]:
        seeds = by_seed(members)
        difference: Paired | None = None
        if method != ours:
            mine = {(r["target"], r["seed"]) for r in groups.get((ratio, steps, ours), [])}
            if mine & {(r["target"], r["seed"]) for r in members}:
                difference = paired(rows, ours, method, steps=steps, ratio=ratio, split=split)

        def mean(field: str) -> float | None:
            known = [float(r[field]) for r in members if r.get(field) is not None]
            return float(np.mean(known)) if known else None

        return {
            "method": method,
            "ratio": ratio,
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
            **{field: mean(field) for field in ("cost_examples", "params", "flops")},
        }

    found = [one(*at, members) for at, members in groups.items()]
    return sorted(found, key=lambda r: (r["ratio"], r["steps"], -r["accuracy"], r["method"]))


def _cells(rows: Sequence[Mapping[str, Any]], ours: str, strong: str) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of a summary; columns of which nothing is known are left out."""

    def points(value: float | None, sign: str = "") -> str:
        return "" if value is None or np.isnan(value) else f"{100 * value:{sign}.1f}"

    def difference(r: Mapping[str, Any]) -> str:
        if r["difference"] is None:
            return ""
        text = points(r["difference"], "+")
        text = strong.format(text) if r["low"] > 0 or r["high"] < 0 else text
        return f"{text} [{points(r['low'], '+')}, {points(r['high'], '+')}]" if np.isfinite(r["low"]) else text

    def short(value: float | None) -> str:
        if value is None:
            return ""
        for size, letter in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
            if value >= size:
                return f"{value / size:.3g}{letter}"
        return f"{value:.0f}"

    columns = {
        "ratio": lambda r: f"{r['ratio']:g}",
        "steps": lambda r: str(r["steps"]),
        "method": lambda r: str(r["method"]),
        "accuracy %": lambda r: points(r["accuracy"]),
        "sd": lambda r: points(r["sd"]),
        f"{ours} − it [95 %]": difference,
        "wins": lambda r: "" if r["wins"] is None else f"{r['wins']}/{r['targets']}",
        "n": lambda r: str(r["n"]),
        "examples": lambda r: short(r["cost_examples"]),
        "params": lambda r: short(r["params"]),
        "FLOPs": lambda r: short(r["flops"]),
    }
    table = {name: [cell(r) for r in rows] for name, cell in columns.items()}
    table = {name: cells for name, cells in table.items() if any(cells)}
    return list(table), [list(line) for line in zip(*table.values(), strict=True)]


def to_markdown(rows: Sequence[Mapping[str, Any]], ours: str = "mvp") -> str:
    """A `summary` as a Markdown table, in percent and percentage points.

    A bold difference is one whose interval leaves out 0.

    Args:
        rows: what `summary` returned.
        ours: the method that `summary` was given.

    Returns:
        The table and a sentence that explains its columns.
    """
    names, lines = _cells(rows, ours, "**{}**")
    rule = [":--" if name == "method" else "--:" for name in names]
    table = "\n".join("| " + " | ".join(line) + " |" for line in (names, rule, *lines))
    return (
        f"{table}\n\nAccuracy is the mean over targets and seeds, `sd` its spread over seeds. Differences are paired "
        "by target and seed, in percentage points, with an interval over targets; bold where it leaves out 0. "
        "`n` counts results.\n"
    )


def to_terminal(rows: Sequence[Mapping[str, Any]], ours: str = "mvp", *, title: str | None = None) -> rich.table.Table:
    """A `summary` as a table for `rich.print`, without its costs, a rule between comparisons.

    >>> row = {"target": "a", "seed": 0, "ratio": 0.5, "steps": 0, "split": "test", "method": "mvp", "accuracy": 0.5}
    >>> [c.header for c in to_terminal(summary([row])).columns]
    ['ratio', 'steps', 'method', 'accuracy %']
    """
    names, lines = _cells(rows, ours, "[bold]{}[/bold]")
    # Only the bold marks are markup: an interval in brackets would be read as a tag.
    names, *lines = ([cell.replace(" [", r" \[") for cell in line] for line in (names, *lines))
    # 80 columns hold what is compared; what it cost stands in the file.
    shown = [k for k, name in enumerate(names) if name not in ("n", "examples", "params", "FLOPs")]
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for k in shown:
        if names[k] == "method":  # the one column that may give way
            table.add_column(names[k], overflow="fold")
        else:
            wide = max(len(rich.text.Text.from_markup(cells[k])) for cells in [names, *lines])
            table.add_column(names[k], justify="right", no_wrap=True, min_width=wide)
    for i, (row, line) in enumerate(zip(rows, lines, strict=True)):
        last = i + 1 == len(rows) or (rows[i + 1]["ratio"], rows[i + 1]["steps"]) != (row["ratio"], row["steps"])
        table.add_row(*(line[k] for k in shown), end_section=last)
    return table


def overlap_table(
    units_by_task: Mapping[str, Any],
    similarity: Any,
    bins: int | Sequence[float] = 3,
    *,
    order: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """How much the kept units of two tasks overlap, by depth and by how similar the tasks are.

    `|Ω_i ∩ Ω_j| / |Ω_i ∪ Ω_j|` for every pair of tasks. The interval is a jackknife over *tasks* (each task is
    left out with all of its pairs), because pairs that share a task are not independent. `chance` is the expected
    overlap of random sets of the same sizes: `E[X / (a + b - X)]`, `X` hypergeometric.

    Args:
        units_by_task: `{group: bool[T, C]}`.
        similarity: `[T, T]`, higher = nearer; an asymmetric one counts as the mean of both directions.
        bins: how many bins with equally many pairs, or the similarities that part them (a pair on a border
            belongs to the bin above).
        order: the groups from the input to the output (default: as in the mapping).

    Returns:
        Rows `group`, `depth` (from 0), `units`, `bin` (from 0, the least similar), `label`, `overlap` (mean), `sd`
        (over pairs), `low`, `high` (95 %), `pairs`, `chance`.

    Raises:
        ValueError: for shapes that do not fit, or fewer than 2 tasks.

    >>> rows = overlap_table({"fc": np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1]], bool)}, np.eye(3), 1)
    >>> rows[0]["pairs"], f"{rows[0]['overlap']:.3f}", f"{rows[0]['chance']:.3f}"
    (3, '0.556', '0.556')

    Reference: Zhao et al., "Learning to Prune by Meta-Vote", 2023, arXiv:2301.11560, section 3.
    """
    kept = {name: np.asarray(u, bool) for name, u in units_by_task.items()}
    names = list(order) if order is not None else list(kept)
    near = np.asarray(similarity, float)
    t = near.shape[0]
    if near.shape != (t, t) or t < 2 or not kept or any(u.ndim != 2 or len(u) != t for u in kept.values()):
        raise ValueError(
            f"units of shapes { {n: u.shape for n, u in kept.items()} } and similarity of shape {near.shape}; "
            "give [T, C] for each group and [T, T], with at least 2 tasks"
        )
    if set(names) != set(kept):
        raise ValueError(f"`order` differs from the groups: {sorted(set(names) ^ set(kept))}")
    i, j = np.triu_indices(t, 1)
    pair_similarity = (near + near.T)[i, j] / 2
    cuts = np.quantile(pair_similarity, np.arange(1, bins) / bins) if isinstance(bins, int) else np.asarray(bins, float)
    place = np.digitize(pair_similarity, np.unique(cuts))
    present = np.unique(place)
    words = {2: ["less similar", "more similar"], 3: ["least similar", "middle", "most similar"]}.get(len(present))

    found = []
    for depth, name in enumerate(names):
        u = kept[name]
        both, sizes = u.astype(np.int64) @ u.T.astype(np.int64), u.sum(1)
        union = sizes[:, None] + sizes[None, :] - both
        iou = np.where(union > 0, both / np.maximum(union, 1), 1.0)[i, j]
        chance = _chance(sizes[i], sizes[j], u.shape[1])
        for rank, b in enumerate(present):
            inside = place == b
            mean, half = _jackknife(iou[inside], i[inside], j[inside], t)
            ends = pair_similarity[inside]
            low_end, high_end = f"{ends.min():.3g}", f"{ends.max():.3g}"
            span = low_end if low_end == high_end else f"{low_end} to {high_end}"
            found.append(
                {
                    "group": name,
                    "depth": depth,
                    "units": u.shape[1],
                    "bin": rank,
                    "label": f"{words[rank]} ({span})" if words else span,
                    "overlap": mean,
                    "sd": float(iou[inside].std(ddof=1)) if inside.sum() > 1 else None,
                    "low": max(mean - half, 0.0),
                    "high": min(mean + half, 1.0),
                    "pairs": int(inside.sum()),
                    "chance": float(chance[inside].mean()),
                }
            )
    return found


def _jackknife(values: np.ndarray, i: np.ndarray, j: np.ndarray, tasks: int) -> tuple[float, float]:
    """The mean over pairs and half of its 95 % interval, leaving out one task at a time."""
    total, count = values.sum(), len(values)
    sums = np.bincount(i, values, tasks) + np.bincount(j, values, tasks)
    counts = np.bincount(i, minlength=tasks) + np.bincount(j, minlength=tasks)
    useful = (counts > 0) & (counts < count)
    if useful.sum() < 2:
        return float(total / count), float("nan")
    left = (total - sums[useful]) / (count - counts[useful])
    variance = (len(left) - 1) * np.mean(np.square(left - left.mean()))
    return float(total / count), float(1.96 * np.sqrt(variance))


def _chance(a: np.ndarray, b: np.ndarray, size: int) -> np.ndarray:
    from scipy import stats

    found = np.zeros(len(a))
    for x, y in {(int(p), int(q)) for p, q in zip(a, b, strict=True)}:
        shared = np.arange(max(0, x + y - size), min(x, y) + 1)
        share = shared / np.maximum(x + y - shared, 1) if x + y else np.ones(1)
        found[(a == x) & (b == y)] = np.sum(stats.hypergeom.pmf(shared, size, x, y) * share)
    return found
