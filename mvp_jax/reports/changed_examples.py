"""The test examples on which the dense and the pruned model differ, sorted by what became of them."""

import math
from typing import NamedTuple

from mvp_jax.reports.model_report import ChangedExample, ModelReport

SHOWN = 20
"""How many examples of a kind are shown at most."""


class ChangedGroup(NamedTuple):
    """Examples on which the answer changed in the same way.

    Attributes:
        title: how it changed.
        total: how many such examples there are.
        examples: those that are shown, the most telling first.
    """

    title: str
    total: int
    examples: tuple[ChangedExample, ...]


_KINDS = (
    ("Right before, wrong now", "Further from the true value than before"),
    ("Wrong before, right now", "Nearer to the true value than before"),
    ("Wrong before and now, in different ways", "As far from the true value as before"),
)


def grouped(report: ModelReport) -> list[ChangedGroup]:
    """Returns the examples that changed by what became of them: worse, better, other; empty groups are left out."""
    numbers = [_numbers(e) for e in report.examples]
    regression = bool(numbers) and all(n is not None for n in numbers)
    kinds: list[list[ChangedExample]] = [[], [], []]
    for example, found in zip(report.examples, numbers, strict=True):
        if regression and found is not None:
            label, dense, pruned = found
            far, near = abs(pruned - label) > abs(dense - label), abs(pruned - label) < abs(dense - label)
            kinds[0 if far else 1 if near else 2].append(example)
        else:
            kinds[0 if example.dense == example.label else 1 if example.pruned == example.label else 2].append(example)
    counts = report.changed or tuple(map(len, kinds))
    groups = []
    for titles, members, count in zip(_KINDS, kinds, counts, strict=True):
        if regression:
            members.sort(key=lambda e: -abs(float(e.pruned) - float(e.dense)))
        else:
            members.sort(key=lambda e: -(e.confidence if e.confidence is not None else -1.0))
        if members or count:
            groups.append(ChangedGroup(titles[regression], max(count, len(members)), tuple(members[:SHOWN])))
    return groups


def is_regression(example: ChangedExample) -> bool:
    """Whether an example's answers are numbers and not classes: all three are, and there is no probability."""
    return _numbers(example) is not None


def _numbers(example: ChangedExample) -> tuple[float, float, float] | None:
    """The label and both answers of a regression; `None` for a classification."""
    if example.confidence is not None:
        return None
    try:
        found = float(example.label), float(example.dense), float(example.pruned)
    except ValueError:
        return None
    return found if all(map(math.isfinite, found)) else None


__all__ = ["SHOWN", "ChangedGroup", "grouped", "is_regression"]
