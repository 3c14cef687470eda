"""A learning rate for every method of a comparison, chosen on further targets.

`config.rates.factors` are numbers by which a method's own learning rate is multiplied. Every method runs with each of
them on further targets, which are drawn like the reported ones, and the factor with the highest mean validation
accuracy there is the method's. Where no others can be drawn, they are the reported targets with other seeds. The test
examples of these targets are never looked at.
"""

import csv
import dataclasses
import io
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mvp_jax.storage import files, foreign_files, records

SEEDS_FROM = 1000
"""The first seed of the targets on which rates are chosen: none that a reported target has."""

_FILE = "rates.csv"


@dataclasses.dataclass(frozen=True, kw_only=True)
class RateSearch:
    """How the methods' learning rates are chosen.

    Attributes:
        factors: the numbers by which each method's own learning rate is multiplied, rising; empty: nothing is chosen,
            and every method keeps its rate.
        targets: the number of further targets on which the choice is made; 0: the reported targets themselves, with
            other seeds, for where no others can be drawn. A target of all classes is always such.
        seeds: the number of repetitions of each of these targets.

    Raises:
        ValueError: for factors that are not positive and rising, a single one, negative targets, or no seeds.
    """

    factors: tuple[float, ...] = ()
    targets: int = 3
    seeds: int = 1

    def __post_init__(self) -> None:
        numbers = all(isinstance(f, int | float) and not isinstance(f, bool) for f in self.factors)
        if not numbers or not all(0 < f < math.inf for f in self.factors):
            raise ValueError(f"rates.factors must be positive numbers, as (0.5, 1, 2), got {self.factors}")
        # As they are printed, since files are named by them.
        shown = [float(f"{f:g}") for f in self.factors]
        if shown != sorted(set(shown)):
            raise ValueError(f"rates.factors must rise and differ, as (0.5, 1, 2), got {self.factors}")
        if len(self.factors) == 1:
            raise ValueError(
                f"rates.factors is {self.factors}, which leaves nothing to choose; give at least two, as (0.5, 1, 2), "
                "or () and another learning rate"
            )
        if self.factors and (self.targets < 0 or self.seeds < 1):
            raise ValueError(
                f"rates.factors is {self.factors}, but rates.targets is {self.targets} and rates.seeds {self.seeds}; "
                "give at least 0 targets (0: the reported ones with other seeds) and at least 1 seed"
            )


def fill(config: ConfigDict) -> None:
    """Adds the settings of the choice of rates to a config, in place; by default nothing is chosen."""
    config.rates = ConfigDict()
    config.rates.factors = ()
    config.rates.targets = 3
    config.rates.seeds = 1


def read(config: ConfigDict) -> RateSearch:
    """Returns the checked settings `config.rates` of a job; without them nothing is chosen.

    Raises:
        ValueError: for settings that `RateSearch` refuses.

    >>> read(ConfigDict({"rates": {"factors": (1, 2), "targets": 3, "seeds": 1}})).factors
    (1, 2)
    """
    if "rates" not in config:
        return RateSearch()
    return RateSearch(**{**config.rates.to_dict(), "factors": tuple(config.rates.factors)})


class RateChoice(NamedTuple):
    """The learning rate of one method (at one sparsity), and what it was chosen from.

    Attributes:
        method: the method's name.
        share: the ratio of units or the sparsity of weights.
        factors: the factors tried, rising.
        learning_rates: the learning rate that each of them gives.
        accuracies: the mean validation accuracy at each of them, in [0, 1].
        members: the number of pairs of a target and a seed in each mean.
    """

    method: str
    share: float
    factors: tuple[float, ...]
    learning_rates: tuple[float, ...]
    accuracies: tuple[float, ...]
    members: int

    @property
    def factor(self) -> float:
        """The factor with the highest accuracy; of several such the smallest."""
        return best(dict(zip(self.factors, self.accuracies, strict=True)))

    @property
    def learning_rate(self) -> float:
        """The learning rate that the chosen factor gives."""
        return self.learning_rates[self.factors.index(self.factor)]

    @property
    def outside(self) -> float | None:
        """A factor to try besides, where the chosen one is the lowest or highest tried; else `None`.

        It continues the factors by their last step. If all accuracies are equal, the rate makes no difference and no
        other is asked for.

        >>> RateChoice("mvp", 0.5, (0.5, 1, 2), (0.01, 0.02, 0.04), (0.7, 0.8, 0.9), 3).outside
        4.0
        """
        tried, at = self.factors, self.factors.index(self.factor)
        if len(tried) < 2 or np.ptp(np.round(self.accuracies, 9)) == 0 or 0 < at < len(tried) - 1:
            return None
        return tried[0] ** 2 / tried[1] if at == 0 else tried[-1] ** 2 / tried[-2]


def best(accuracies: Mapping[float, float]) -> float:
    """Returns the factor with the highest mean validation accuracy; of several such the smallest.

    Args:
        accuracies: the mean validation accuracy at each factor; one that is not finite is below all others.

    >>> best({2.0: 0.75, 0.5: 0.5, 1.0: 0.75})
    1.0
    """
    # Means of the same numbers may differ in their last digits.
    found = {f: round(a, 9) if math.isfinite(a) else -math.inf for f, a in accuracies.items()}
    return min(found, key=lambda factor: (-found[factor], factor))


def choose(
    method: str, share: float, tried: Mapping[float, Sequence[Mapping[str, Any]]], *, learning_rate: float
) -> RateChoice:
    """Returns the choice of a method's rate from its validation accuracies on the further targets.

    Args:
        method: the method's name.
        share: the ratio of units or the sparsity of weights.
        tried: for each factor the rows `{"target", "seed", "accuracy"}`, all of which count alike; a member may have
            several, such as one for each number of steps. An accuracy of `None` was not finite.
        learning_rate: the method's learning rate at the factor 1.

    >>> rows = {f: [{"target": "a", "seed": 0, "accuracy": a}] for f, a in ((1.0, 0.25), (2.0, 0.5))}
    >>> choose("mvp", 0.5, rows, learning_rate=0.125).factor
    2.0
    """
    factors = sorted(tried)
    accuracies = {f: [math.nan if r["accuracy"] is None else float(r["accuracy"]) for r in tried[f]] for f in factors}
    return RateChoice(
        method,
        share,
        tuple(factors),
        tuple(learning_rate * f for f in factors),
        tuple(float(np.mean(accuracies[f])) for f in factors),
        len({(r["target"], r["seed"]) for r in tried[factors[0]]}),
    )


def write(choices: Sequence[RateChoice], work: str | os.PathLike[str], share: str) -> None:
    """Writes `rates.csv`: a row for each method and factor, with the mean validation accuracy and what was chosen.

    Args:
        choices: the choices of all methods; without any nothing is written.
        work: the folder of the run.
        share: what `RateChoice.share` is, `ratio` or `sparsity`: a column's name.
    """
    if not choices:
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", share, "factor", "learning_rate", "accuracy", "n", "chosen", "try_besides"])
    for one in choices:
        for factor, rate, accuracy in zip(one.factors, one.learning_rates, one.accuracies, strict=True):
            mine = factor == one.factor
            beyond = one.outside if mine else None
            cells = [one.method, one.share, factor, rate, accuracy, one.members, int(mine)]
            writer.writerow([*cells, "" if beyond is None else f"{beyond:g}"])
    records.write_text(files.path(work) / _FILE, text.getvalue())


def section(work: str | os.PathLike[str], names: Mapping[str, str], *, on_targets: bool = False) -> str:
    """Returns a section of `results.md` on how rates were chosen, from `rates.csv`; empty if there is none.

    Args:
        work: the folder of the run.
        names: what methods are called in tables, `{method: name}`.
        on_targets: whether the targets were the reported ones with other seeds.
    """
    path = files.path(work) / _FILE
    if not files.exists(path):
        return ""
    with foreign_files.named(path):
        return _section(list(csv.DictReader(io.StringIO(foreign_files.text(path), newline=""))), names, on_targets)


def _section(rows: list[dict[str, str]], names: Mapping[str, str], on_targets: bool) -> str:
    """The section of these rows of `rates.csv`."""
    if not rows:
        raise ValueError("it has no rows; delete it to have it made again")
    share, factors = list(rows[0])[1], sorted({float(r["factor"]) for r in rows})
    lines: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        lines.setdefault((row["method"], row[share]), []).append(row)
    head = ["method", share, *(f"× {f:g}" for f in factors), "learning rate", "note"]
    table = [head, [":--", *["--:"] * (len(head) - 2), ":--"]]
    for (method, amount), own in lines.items():
        chosen = next((r for r in own if r["chosen"] == "1"), None)
        if chosen is None:
            raise ValueError(f"no row of {method!r:.80} is chosen; delete it to have it made again")
        at = {float(r["factor"]): f"{100 * float(r['accuracy']):.1f}" for r in own}
        cells = [f"**{at[f]}**" if f == float(chosen["factor"]) else at.get(f, "") for f in factors]
        besides = chosen["try_besides"]
        note = f"the best may lie outside; add {besides} to rates.factors" if besides else ""
        if len({r["accuracy"] for r in own}) == 1:
            note = "all factors do alike"
        rate = f"{float(chosen['learning_rate']):.3g}"
        table.append([names.get(method, method), f"{float(amount):g}", *cells, rate, note])
    text = "\n".join("| " + " | ".join(line) + " |" for line in table)
    where = "targets that are not reported"
    if on_targets:
        where = "the reported targets with other seeds, so that their validation accuracies are not independent of it"
    return (
        "\n## Learning rates\n\nEvery method has its own learning rate: that of the factors tried (×) which has the "
        f"highest mean validation accuracy, in percent, on {where} (n = {rows[0]['n']} pairs of a target and a seed). "
        f"Test examples took no part.\n\n{text}\n"
    )


__all__ = ["SEEDS_FROM", "RateChoice", "RateSearch", "best", "choose", "fill", "read", "section", "write"]
