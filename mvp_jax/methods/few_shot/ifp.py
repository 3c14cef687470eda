"""Iterative filter pruning: train a little, drop the weakest units, again; how a task's pruned model is made.

Source: Zhao et al., Meta-Vote Pruning, arXiv:2301.11560, Algorithm 1.
The model is cut physically after every round, so that later rounds cost what the smaller model costs.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mvp_jax import compact, train
from mvp_jax.compact import cost
from mvp_jax.core import prune, schedules, units
from mvp_jax.core.types import Array, Key, Units, UnitScores, Variables
from mvp_jax.methods.few_shot import api
from mvp_jax.train import evaluation, probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Iterative filter pruning.

    Attributes:
        rounds: `R`.
        steps_per_round: `B` steps before each cut.
        schedule: `geometric`: each round removes the same share of what remains; `cubic`: most removed early.
        score: accumulated over the steps of the round: `fisher` of per-example gates, or the paper's `activation`.
        min_units: no group keeps fewer.
        tuning: `steps` after the last cut, and how all steps are taken.
    """

    rounds: int = 3
    steps_per_round: int = 60
    schedule: Literal["geometric", "cubic"] = "geometric"
    score: Literal["fisher", "activation"] = "fisher"
    min_units: int = 1
    tuning: api.Tuning = dataclasses.field(default_factory=lambda: api.Tuning(steps=120))

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps_per_round < 1:
            raise ValueError(
                f"rounds and steps_per_round must be >= 1, got {self.rounds} and {self.steps_per_round}; "
                "for no training before the cut use one-shot pruning"
            )
        if self.schedule not in ("geometric", "cubic"):
            raise ValueError(f"unknown schedule {self.schedule!r}; choose 'geometric' or 'cubic'")
        if self.score not in ("fisher", "activation"):
            raise ValueError(f"unknown score {self.score!r}; choose 'fisher' or 'activation'")

    @property
    def total_steps(self) -> int:
        return self.rounds * self.steps_per_round + self.tuning.steps


def with_budget(settings: Settings, steps: int) -> Settings:
    """The same settings for `steps` steps in all, half of them in the rounds.

    >>> with_budget(Settings(rounds=3), 100).total_steps
    100
    """
    rounds = min(settings.rounds, max(steps // 2, 1))
    per_round = max(steps // (2 * rounds), 1)
    final = max(steps - rounds * per_round, 0)
    return dataclasses.replace(
        settings, rounds=rounds, steps_per_round=per_round, tuning=dataclasses.replace(settings.tuning, steps=final)
    )


class Found(NamedTuple):
    """An IFP result as the bank stores it: slim variables, units and the last score of every unit, dense index.

    `alive` is False if training diverged on the way; the rest is then of no use.
    """

    slim: Variables
    units: Units
    saliency: UnitScores
    alive: Array


def counts(problem: api.Problem, settings: Settings, first: Mapping[str, int] | None = None) -> list[dict[str, int]]:
    """Units kept after each round, on the host; the last are the problem's.

    The kept share follows the schedule from all units (or from `first`) to the problem's own, group by group.
    """
    schedule = {"geometric": schedules.geometric, "cubic": schedules.cubic}[settings.schedule]
    result = []
    for r in range(1, settings.rounds + 1):
        kept = {}
        for g in problem.groups:
            before = 0.0 if first is None else 1 - first[g.name] / g.size
            sparsity = float(schedule(r, settings.rounds, 1 - problem.sizes[g.name] / g.size, before))
            kept[g.name] = max(round(g.size * (1 - sparsity)), problem.sizes[g.name], settings.min_units)
        result.append(kept)
    result[-1] = problem.sizes
    return result


@functools.partial(jax.jit, static_argnames=("sizes",))
def _record(
    kept: Units, saliency: UnitScores, scores: UnitScores, mask: Units, sizes: tuple[tuple[str, int], ...]
) -> tuple[Units, UnitScores]:
    """Scores and cuts of a slim round in the dense index space."""
    new_kept, new_saliency = {}, {}
    for name, size in sizes:
        (index,) = jnp.nonzero(kept[name], size=size)
        new_saliency[name] = saliency[name].at[index].set(scores[name])
        new_kept[name] = kept[name].at[index].set(mask[name])
    return new_kept, new_saliency


def search(
    problem: api.Problem,
    settings: Settings,
    key: Key,
    *,
    start: api.Start | None = None,
    first: Mapping[str, int] | None = None,
) -> Found:
    """Runs the rounds and the final fine-tuning; see the module.

    Args:
        problem: the task; neighbours are not looked at.
        settings: see `Settings`.
        key: batch order, dropout, augmentation.
        start: where to begin; the whole pre-trained model without it.
        first: units that `start` keeps in each group.

    Returns:
        Slim variables (of `problem.slim`), unit masks and saliency in the dense index space.

    Raises:
        ValueError: if `start` comes without `first`, or keeps fewer units than the problem.
    """
    if (start is None) != (first is None):
        raise ValueError("start and first go together: first says how many units of each group start keeps")
    if first is not None:
        api.check_groups(first, problem)
        if any(first[name] < keep for name, keep in problem.sizes.items()):
            raise ValueError(f"the start keeps {dict(first)}, fewer than the {problem.sizes} to end with")
    tuning, names = settings.tuning, set(problem.sizes)
    kept: Units = units.full(problem.groups) if start is None else start.units
    saliency: UnitScores = {g.name: jnp.zeros(g.size) for g in problem.groups}
    if start is None or first is None:
        model, sizes, variables = problem.model, {g.name: g.size for g in problem.groups}, problem.variables
    else:
        model, sizes = problem.model.resize(first), dict(first)
        variables = compact.cut(start.variables, problem.groups, start.units, sizes=sizes)
        variables = evaluation.reestimate(model, variables, problem.train["x"][: tuning.norm_examples])
    groups = tuple(g for g in model.groups if g.name in names)
    head = probe.fit_head(model, variables, problem.train, l2=tuning.probe_l2, examples=tuning.probe_examples)
    state = train.create(head, tuning.tx, key)
    for after in counts(problem, settings, first):
        state, metrics = api.advance(
            model, problem.train, state, tuning, settings.steps_per_round, score=settings.score, groups=groups
        )
        mask = prune.by_leaf(metrics["scores"], after)
        kept, saliency = _record(kept, saliency, metrics["scores"], mask, tuple(sizes.items()))
        state = compact.cut(state, groups, mask, sizes=after)
        model, sizes = problem.model.resize(after), after
        groups = tuple(g for g in model.groups if g.name in names)
    # The head was fitted to features that are gone; without a new one this method is unfairly weak.
    variables = api.settle(problem, state, tuning)
    variables = probe.fit_head(model, variables, problem.train, l2=tuning.probe_l2, examples=tuning.probe_examples)
    alive = state.alive
    if tuning.steps:
        state = train.create(variables, tuning.tx, jax.random.fold_in(key, 1))
        state, _ = api.advance(model, problem.train, state, tuning, tuning.steps)
        variables = api.settle(problem, state, tuning)
    return Found(variables, kept, saliency, alive & state.alive)


def ifp(problem: api.Problem, settings: Settings, key: Key) -> api.Pruned:
    """Iterative filter pruning from the full model."""
    found = search(problem, settings, key)
    return api.grow(problem, found.slim, found.units)


def spent(problem: api.Problem, settings: Settings) -> dict[str, float]:
    """What a search costs: `steps`, `examples` (forward and backward), `flops` (a backward pass counts as two forward).

    The model shrinks from round to round, and its cost with it.
    """
    batch = min(settings.tuning.batch, problem.train["y"].shape[-1])
    sizes = [{g.name: g.size for g in problem.groups}, *counts(problem, settings)]
    steps = [settings.steps_per_round] * settings.rounds + [settings.tuning.steps]
    flops = 0.0
    for size, count in zip(sizes, steps, strict=True):
        model = problem.model.resize(size)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        flops += 3 * count * batch * cost.flops(model.apply, shapes, (1, *model.input_shape), dtype=model.input_dtype)
    return {"steps": settings.total_steps, "examples": settings.total_steps * batch, "flops": flops}
