"""One-shot unit pruning: score every unit of the pre-trained model once, keep the best of each group."""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from mvp_jax import saliency, train
from mvp_jax.core import prune, units
from mvp_jax.core.types import Key, UnitScores, Variables
from mvp_jax.methods.few_shot import api
from mvp_jax.train import probe

Score = Literal["random", "magnitude", "batch_norm_scale", "activation", "taylor", "fisher"]
SCORES: tuple[Score, ...] = ("random", "magnitude", "batch_norm_scale", "activation", "taylor", "fisher")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """One-shot pruning by `score`; `examples` bounds what the data-driven scores look at."""

    score: Score = "fisher"
    examples: int = 512
    tuning: api.Tuning = dataclasses.field(default_factory=api.Tuning)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose one of {SCORES}")
        if self.examples < 1:
            raise ValueError(f"examples must be >= 1, got {self.examples}")


@functools.partial(jax.jit, static_argnames=("score", "examples", "l2"))
def scores(problem: api.Problem, key: Key, *, score: Score, examples: int = 512, l2: float = 1e-2) -> UnitScores:
    """Scores of all units on the pre-trained weights, in evaluation mode: `{group: float[C]}`, higher = keep.

    Scores that need a loss first get a logistic head for the task.
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
    variables = probe.fit_head(model, problem.variables, problem.train, l2=l2)
    if score == "fisher":
        gates = saliency.gate_gradients(model.apply, variables, x, y, train.cross_entropy, groups)
        return saliency.gate_fisher(gates)

    def loss(params: dict) -> jax.Array:
        return jnp.mean(train.cross_entropy(model.apply(Variables(params, variables.rest), x)[0], y))

    terms = saliency.taylor_terms(variables.params, jax.grad(loss)(variables.params))
    return units.reduce(terms, groups, "sum_square")


def start(problem: api.Problem, settings: Settings, key: Key) -> api.Start:
    """Keeps the units of highest score in each group, with their pre-trained weights."""
    s = scores(problem, key, score=settings.score, examples=settings.examples, l2=settings.tuning.probe_l2)
    return api.Start(problem.variables, prune.by_leaf(s, problem.sizes))


oneshot = api.method(start)


def keep_all(problem: api.Problem, settings: Settings, key: Key) -> api.Start:
    """Keeps everything: the dense model, for reference."""
    return api.Start(problem.variables, units.full(problem.groups))


def dense(problem: api.Problem, settings: Settings, key: Key) -> api.Pruned:
    """Fine-tunes the unpruned model in the same way, for reference."""
    problem = api.all_kept(problem)
    return api.finish(problem, keep_all(problem, settings, key), settings.tuning, jax.random.split(key)[1])
