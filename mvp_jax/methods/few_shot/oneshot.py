"""One-shot unit pruning: score every unit of the pre-trained model once, keep the best of each group."""

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax import saliency
from mvp_jax.core import prune, units
from mvp_jax.core.types import Key, UnitScores, Variables
from mvp_jax.methods import checks, contract
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.few_shot import api
from mvp_jax.train import probe

UnitCriterion: TypeAlias = Literal["random", "magnitude", "batch_norm_scale", "activation", "taylor", "fisher"]
SCORES: tuple[UnitCriterion, ...] = ("random", "magnitude", "batch_norm_scale", "activation", "taylor", "fisher")
"""Every score of units, by name."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one-shot unit pruning.

    Attributes:
        score: which of `SCORES` ranks the units.
        examples: scores that need data look at the first so many training examples.
        tuning: how the head is fitted and the model fine-tuned.
    """

    score: UnitCriterion = "fisher"
    examples: int = 512
    tuning: api.Tuning = dataclasses.field(default_factory=api.Tuning)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose one of {SCORES}")
        if self.examples < 1:
            raise ValueError(f"examples must be >= 1, got {self.examples}")


@functools.partial(jax.jit, static_argnames=("score", "examples", "l2"))
def scores(
    problem: api.FewShotProblem, key: Key, *, score: UnitCriterion, examples: int = 512, l2: float = 1e-2
) -> UnitScores:
    """Scores of all units on the pre-trained weights, in evaluation mode.

    Scores that need a loss first get a linear head for the task.

    Args:
        problem: the task.
        key: for `random`.
        score: which of `SCORES`.
        examples: scores that need data look at the first so many training examples.
        l2: weight of the squared norm in the fit of the head.

    Returns:
        `{group: float[C]}`, higher = keep.
    """
    model, groups, params = problem.model, problem.groups, problem.variables.params
    if score == "random":
        return saliency.random(key, {g.name: jnp.zeros(g.size) for g in groups})
    if score == "magnitude":
        return units.reduce(saliency.magnitude(params), groups, "l2")
    if score == "batch_norm_scale":
        return saliency.batch_norm_scale(params, groups)
    x, y = problem.train["x"][:examples], problem.train["y"][:examples]
    if score == "activation":
        return saliency.activation(units.restrict(model.inspect(problem.variables, x).activations, groups))
    variables = probe.fit_head(model, problem.variables, problem.train, loss=problem.loss, l2=l2)
    if score == "fisher":
        gates = saliency.gate_gradients(model.apply, variables, x, y, contract.per_example(problem.loss), groups)
        return saliency.gate_fisher(gates)

    def loss(params: dict) -> jax.Array:
        return jnp.mean(problem.loss(model.apply(Variables(params, variables.rest), x)[0], y))

    terms = saliency.taylor_terms(variables.params, jax.grad(loss)(variables.params))
    return units.reduce(terms, groups, "sum_square")


def start(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """One-shot pruning: keeps the units of highest score in each group, with their pre-trained weights."""
    s = scores(problem, key, score=settings.score, examples=settings.examples, l2=settings.tuning.probe_l2)
    return api.Start(problem.variables, prune.by_leaf(s, problem.sizes))


oneshot = api.method(start, Settings)


def keep_all(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """Keeps all units, with their pre-trained weights."""
    return api.Start(problem.variables, units.full(problem.groups))


_whole = api.method(keep_all, Settings)


def dense(problem: api.FewShotProblem, settings: Settings, key: Key) -> Pruned:
    """Fine-tunes the model with no unit pruned, in the same way as every method: the reference."""
    checks.check("dense", problem, api.FewShotProblem, settings, Settings)
    return _whole(api.all_kept(problem), settings, key)
