"""How much of a model goes: a share of its weights or units, or a budget of parameters, operations or time."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax

from mvp_jax.compact import budget, cost
from mvp_jax.core import patterns, units
from mvp_jax.core.types import Array, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model
from mvp_jax.saliency import magnitude

GoalName = Literal["sparsity", "ratio", "parameters", "flops", "latency"]
"""What a goal is a number of: the share of the weights that goes, the share of each group's units that goes, or what is
left of the parameters, of the operations of a forward pass, or of its time."""

_BUDGETS = {"parameters": "params", "flops": "flops", "latency": "latency"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PruningGoal:
    """How much of a model is to go, or how good it has to stay.

    Attributes:
        name: what `amount` is a number of.
        amount: for `sparsity` and `ratio` the share that is removed, in (0, 1). For `parameters` and `flops` what may
            be left: a share of the dense model's in (0, 1), or a number above 1. For `latency` the share that may be
            left of the dense model's, in (0, 1), measured on this machine. `None` with `keep_score`: it is searched
            for.
        keep_score: the share of the dense model's validation score that the pruned model has to keep, in (0, 1]; the
            most is then removed that keeps it. `None`: `amount` says how much.

    Raises:
        ValueError: for another name, an amount out of range, both or neither of the two, or a search for anything but
            a sparsity or a ratio.

    >>> PruningGoal(name="sparsity", amount=0.8).in_words()
    '80 % of the weights removed'
    """

    name: GoalName = "sparsity"
    amount: float | None = None
    keep_score: float | None = None

    def __post_init__(self) -> None:
        if self.name not in get_args(GoalName):
            raise ValueError(f"unknown goal {self.name!r}; choose one of {', '.join(get_args(GoalName))}")
        if (self.amount is None) == (self.keep_score is None):
            raise ValueError(
                f"amount is {self.amount} and keep_score is {self.keep_score}; give one of them: how much goes, or how "
                "much of the score stays"
            )
        if self.keep_score is not None:
            if self.name not in ("sparsity", "ratio"):
                raise ValueError(
                    f"keep_score searches for a sparsity or a ratio, not for {self.name}; take one of the two"
                )
            if not 0 < self.keep_score <= 1:
                raise ValueError(
                    f"keep_score (keep_accuracy) is {self.keep_score}; give a share of the dense score, in (0, 1]"
                )
        elif not self._fits():
            most = " or a number above 1" if self.name in ("parameters", "flops") else ""
            raise ValueError(f"{self.name} is {self.amount}; give a share in (0, 1){most}")

    def _fits(self) -> bool:
        assert self.amount is not None
        counted = self.name in ("parameters", "flops") and self.amount > 1 and math.isfinite(self.amount)
        return 0 < self.amount < 1 or counted

    @property
    def of_units(self) -> bool:
        """Whether whole units go (filters, heads, neurons), so that the model becomes smaller; else single weights."""
        return self.name != "sparsity"

    def in_words(self) -> str:
        """Returns the goal as a phrase."""
        what = "weights" if self.name == "sparsity" else "units of each group"
        if self.keep_score is not None:
            return f"as many {what} removed as keep {self.keep_score:.4g} of the dense model's validation score"
        assert self.amount is not None
        if self.name in ("sparsity", "ratio"):
            return f"{100 * self.amount:.4g} % of the {what} removed"
        left = f"{100 * self.amount:.4g} %" if self.amount < 1 else f"{self.amount:,.0f}"
        named = {"parameters": "parameters", "flops": "operations of a forward pass", "latency": "latency"}[self.name]
        return f"at most {left} of the dense model's {named} left"


class Removal(NamedTuple):
    """What a goal asks of a method: what goes together, and which share of it.

    Attributes:
        pattern: single weights, or whole units.
        share: the share to remove, in [0, 1).
    """

    pattern: patterns.Weights | patterns.WholeUnits
    share: float


def removal(goal: PruningGoal, model: Model, variables: Variables, x: Array, *, groups: Sequence[Group]) -> Removal:
    """Returns what a method has to remove for a goal; budgets become the ratio of every group's units that meets them.

    Args:
        goal: how much is to go; of a search only what goes together counts, and the share is 0.
        model: the dense model.
        variables: its variables.
        x: a batch of examples `[N, ...]`, at whose size latency is measured.
        groups: the groups whose units may go; for single weights they do not matter.

    Raises:
        ValueError: if whole units are to go and there are no groups, or the budget cannot be met.
    """
    if not goal.of_units:
        return Removal(patterns.Weights("global"), goal.amount or 0.0)
    if not groups:
        raise ValueError(
            f"{goal.name} removes whole units, and this model has none of the kinds that were asked for; it has "
            f"{sorted({g.kind for g in model.groups})}. Name some of those in `kinds`, or give a sparsity"
        )
    pattern = patterns.WholeUnits(tuple(groups))
    if goal.amount is None or goal.name == "ratio":
        return Removal(pattern, goal.amount or 0.0)
    target = goal.amount
    if target > 1:
        dense = cost.of(model, variables)
        target /= {"parameters": dense.params, "flops": dense.flops}[goal.name]
        if target >= 1:
            raise ValueError(
                f"{goal.name}={goal.amount:,.0f}, and the dense model has no more: "
                f"{dense.params if goal.name == 'parameters' else dense.flops:,.0f}; ask for fewer"
            )
    found = budget.fit(
        lambda v, x: model.apply(v, x)[0],
        variables,
        groups,
        units.reduce(magnitude(variables.params), groups),
        x if goal.name == "latency" else jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
        target=target,
        measure=_BUDGETS[goal.name],  # type: ignore[arg-type]
    )
    if not found.ratio:
        raise ValueError(
            f"{goal.name}={goal.amount} is met without removing anything: the whole model was measured at "
            f"{found.share:.0%} of itself, because of rounding or other work on the machine; ask for less"
        )
    return Removal(pattern, found.ratio)
