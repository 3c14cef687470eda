"""One-shot unit pruning: every unit of the pre-trained model is scored once, and each group keeps its best units."""

import dataclasses
import functools
from typing import Literal, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax import saliency
from mvp_jax.core import prune, units
from mvp_jax.core.types import Key, UnitScores, Variables
from mvp_jax.methods import checks, contract
from mvp_jax.methods.contract import Pruned, Spent
from mvp_jax.methods.few_shot import api
from mvp_jax.train import probe

UnitCriterion: TypeAlias = Literal["random", "magnitude", "batch_norm_scale", "activation", "taylor", "fisher"]
SCORES: tuple[UnitCriterion, ...] = ("random", "magnitude", "batch_norm_scale", "activation", "taylor", "fisher")
"""The names of all unit scores."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one-shot unit pruning.

    Attributes:
        score: the name of the score that ranks the units, one of `SCORES`.
        examples: scores that need data are computed on the first `examples` training examples.
        tuning: how the head is fitted and the model fine-tuned.

    Raises:
        ValueError: for an unknown score, or fewer than one example.
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
    """Returns the scores of all units of the pruned groups, from the pre-trained weights, in evaluation mode.

    `random` is uniform noise; `magnitude` is the l2 norm of a unit's weights; `batch_norm_scale` is the absolute scale
    of its batch norm; `activation` is its mean absolute activation; `taylor` is the squared first-order change of the
    loss if it is removed; `fisher` is the mean squared gradient of the per-example loss by a gate on the unit. For
    `taylor` and `fisher` a linear head is first fitted to the task.

    Args:
        problem: the task.
        key: random key; only `random` uses it.
        score: the name of the score, one of `SCORES`.
        examples: scores that need data are computed on the first `examples` training examples.
        l2: weight of the squared norm of the head's kernel in the fit of the head.

    Returns:
        `{group: float[C]}`; the units of highest score are worth keeping.
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
    """Keeps the units of highest score in each group, with their pre-trained weights (one-shot pruning)."""
    s = scores(problem, key, score=settings.score, examples=settings.examples, l2=settings.tuning.probe_l2)
    return api.Start(problem.variables, prune.by_leaf(s, problem.sizes))


def scoring(problem: api.FewShotProblem, settings: Settings) -> Spent:
    """Returns what scoring takes: a pass over the examples for scores by gradients, a third for activations."""
    return cost_of_score(problem, settings.score, settings.examples)


def cost_of_score(problem: api.FewShotProblem, score: UnitCriterion, examples: int) -> Spent:
    """Returns what a score takes on at most so many training examples; nothing for scores without data."""
    passes = {"taylor": 3, "fisher": 3, "activation": 1}.get(score, 0)  # thirds of a training example
    return Spent(0, passes * min(examples, problem.examples) // 3, 0)


oneshot = api.method(start, Settings, spends=scoring)


def keep_all(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """Keeps all units, with their pre-trained weights."""
    return api.Start(problem.variables, units.full(problem.groups))


_whole = api.method(keep_all, Settings)


def dense(problem: api.FewShotProblem, settings: Settings, key: Key) -> Pruned:
    """Fine-tunes the dense model, with no unit removed, as every method fine-tunes its pruned one: the reference.

    Args:
        problem: the task; the numbers of units to keep are not used.
        settings: only `tuning` is used.
        key: random key for batch order, dropout and augmentation.

    Raises:
        ValueError: if the problem or the settings are of another method's type.
    """
    checks.check("dense", problem, api.FewShotProblem, settings, Settings)
    return _whole(api.all_kept(problem), settings, key)
