"""Iterative filter pruning (IFP): rounds of a little training, each followed by a cut of the weakest units.

The models of the bank are made by it, and it is a baseline of Meta-Vote Pruning. The model is cut physically after
every round, so that later rounds cost what the smaller model costs.

Source: Zhao et al., Meta-Vote Pruning, arXiv:2301.11560, Algorithm 1.
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
from mvp_jax.methods import checks
from mvp_jax.methods.contract import Look, Pruned, Spent
from mvp_jax.methods.few_shot import api
from mvp_jax.train import evaluation


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of iterative filter pruning.

    Attributes:
        rounds: `R`, the number of cuts.
        steps_per_round: `B`, the number of training steps before each cut.
        schedule: `geometric`: each round removes the same fraction of the units that remain; `cubic`: early rounds
            remove most.
        score: the unit score that is accumulated over the steps of a round: `fisher` (the Fisher information of a gate
            on the unit) or, as in the paper, `activation` (its mean absolute activation).
        min_units: the least number of units that a group keeps.
        budget: used with `tuning.looks`: the look after `J` steps shows a search whose rounds and fine-tuning together
            take `budget · J` steps.
        tuning: how the model is trained, in the rounds and after the last cut; `tuning.steps` are the steps after it.

    Raises:
        ValueError: for an unknown schedule or score, or for fewer than one round, step a round, or budget.
    """

    rounds: int = 3
    steps_per_round: int = 60
    schedule: Literal["geometric", "cubic"] = "geometric"
    score: Literal["fisher", "activation"] = "fisher"
    min_units: int = 1
    budget: int = 1
    tuning: api.Tuning = dataclasses.field(default_factory=lambda: api.Tuning(steps=120))

    def __post_init__(self) -> None:
        if self.budget < 1:
            raise ValueError(f"budget multiplies the steps of a look and is at least 1, got {self.budget}")
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
        """The number of training steps, of all rounds and of the fine-tuning after them."""
        return self.rounds * self.steps_per_round + self.tuning.steps


def with_budget(settings: Settings, steps: int) -> Settings:
    """Returns settings with which a search takes `steps` steps in all, half of them in the rounds.

    Args:
        settings: the other settings; rounds are left out if there are fewer steps than rounds, and looks are removed.
        steps: the number of training steps.

    >>> with_budget(Settings(rounds=3), 100).total_steps
    100
    """
    rounds = min(settings.rounds, max(steps // 2, 1))
    per_round = max(steps // (2 * rounds), 1)
    final = max(steps - rounds * per_round, 0)
    return dataclasses.replace(
        settings,
        rounds=rounds,
        steps_per_round=per_round,
        tuning=dataclasses.replace(settings.tuning, steps=final, looks=()),
    )


class Found(NamedTuple):
    """The result of a search, as the bank stores it.

    Attributes:
        slim: the variables of the slim model.
        units: which units are kept, `{group: bool[C]}` in the dense model's index.
        saliency: the last score of every unit, `{group: float[C]}` in the dense model's index.
        alive: boolean scalar; False if training diverged, and then the other fields are of no use.
    """

    slim: Variables
    units: Units
    saliency: UnitScores
    alive: Array


def counts(
    problem: api.FewShotProblem, settings: Settings, first: Mapping[str, int] | None = None
) -> list[dict[str, int]]:
    """Returns the numbers of units kept after each round, a list of `{group: number}`, computed on the host.

    The ratio of units removed follows the schedule, group by group, from none to the problem's.

    Args:
        problem: the task; its numbers of units are those after the last round.
        settings: rounds, schedule and the least number of units.
        first: the numbers of units before the first round; `None`: all.
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
    """Returns the kept units and the saliency, in the dense index, after a round that scored and cut a slim model."""
    new_kept, new_saliency = {}, {}
    for name, size in sizes:
        (index,) = jnp.nonzero(kept[name], size=size)
        new_saliency[name] = saliency[name].at[index].set(scores[name])
        new_kept[name] = kept[name].at[index].set(mask[name])
    return new_kept, new_saliency


def search(
    problem: api.FewShotProblem,
    settings: Settings,
    key: Key,
    *,
    start: api.Start | None = None,
    first: Mapping[str, int] | None = None,
) -> Found:
    """Returns the pruned model after all rounds of training and cutting, a new head, and the final fine-tuning.

    Args:
        problem: the task; its neighbours are not used.
        settings: how many rounds and steps, and how they are taken.
        key: random key for batch order, dropout and augmentation.
        start: the variables and units to begin with; `None`: the whole pre-trained model.
        first: the number of units that `start` keeps in each group; given if and only if `start` is.

    Returns:
        The variables of `problem.slim`, and the units and their scores in the dense model's index.

    Raises:
        ValueError: if only one of `start` and `first` is given, or `start` keeps fewer units than the problem.
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
    state = train.create(api.fit_head(problem, model, variables, tuning), tuning.tx, key)
    for after in counts(problem, settings, first):
        state, metrics = api.advance(
            problem, state, tuning, settings.steps_per_round, model=model, score=settings.score, groups=groups
        )
        mask = prune.by_leaf(metrics["scores"], after)
        kept, saliency = _record(kept, saliency, metrics["scores"], mask, tuple(sizes.items()))
        state = compact.cut(state, groups, mask, sizes=after)
        model, sizes = problem.model.resize(after), after
        groups = tuple(g for g in model.groups if g.name in names)
    # The head was fitted to features that are gone; without a new one this method is unfairly weak.
    variables = api.settle(problem, state, tuning)
    variables = api.fit_head(problem, model, variables, tuning)
    alive = state.alive
    if tuning.steps:
        state = train.create(variables, tuning.tx, jax.random.fold_in(key, 1))
        state, _ = api.advance(problem, state, tuning, tuning.steps, model=model)
        variables = api.settle(problem, state, tuning)
    return Found(variables, kept, saliency, alive & state.alive)


def ifp(problem: api.FewShotProblem, settings: Settings, key: Key) -> Pruned:
    """Prunes the full model by rounds of training and cutting (iterative filter pruning).

    Without `tuning.looks` one search runs with the settings as they are. With them a search of its own runs for each
    look after `J > 0` steps and takes `budget · J` steps in all, because a search has no pruned model before its last
    round; the result is then that of the last look.

    Args:
        problem: the task; its neighbours are not used.
        settings: how many rounds and steps, and how they are taken.
        key: random key for batch order, dropout and augmentation.

    Raises:
        ValueError: if the problem or the settings are of another method's type.
    """
    checks.check("ifp", problem, api.FewShotProblem, settings, Settings)
    within = {at: with_budget(settings, settings.budget * at) for at in sorted(settings.tuning.looks) if at}
    looks = {}
    for at, search_settings in (within or {0: settings}).items():
        found = search(problem, search_settings, key)
        spent = steps_and_examples(problem, search_settings)
        looks[at] = Look(found.slim, spent)
    return api.pruned(problem, found.slim, found.units, spent=spent, alive=found.alive, looks=looks if within else None)


def steps_and_examples(problem: api.FewShotProblem, settings: Settings) -> Spent:
    """Returns the cost of a search: its training steps, and the examples that pass forward and backward in them."""
    steps = settings.total_steps
    return Spent(steps, steps * min(settings.tuning.batch, problem.examples), steps)


def cost_of_search(problem: api.FewShotProblem, settings: Settings) -> dict[str, float]:
    """Returns the cost of a search as the bank stores it, by name.

    `steps` is the number of training steps, `examples` the number of examples that pass forward and backward, and
    `flops` the floating-point operations of all steps: a backward pass counts as two forward passes, and each round
    counts at the size that the model has in it.
    """
    batch = min(settings.tuning.batch, problem.examples)
    sizes = [{g.name: g.size for g in problem.groups}, *counts(problem, settings)]
    steps = [settings.steps_per_round] * settings.rounds + [settings.tuning.steps]
    flops = 0.0
    for size, count in zip(sizes, steps, strict=True):
        model = problem.model.resize(size)
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        flops += 3 * count * batch * cost.flops(model.apply, shapes, (1, *model.input_shape), dtype=model.input_dtype)
    return {"steps": settings.total_steps, "examples": settings.total_steps * batch, "flops": flops}
