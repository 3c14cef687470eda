"""Prune once, then fine-tune: every score that needs no training of its own.

Also the reference that is not pruned at all.
"""

import dataclasses
import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mvp_jax import saliency, train
from mvp_jax.core import masks, prune, schedules
from mvp_jax.core.patterns import Weights
from mvp_jax.core.types import Array, Key, Params, PyTree, Variables
from mvp_jax.methods.sparse import api
from mvp_jax.models.api import Model
from mvp_jax.saliency import input_norms, weight_scores
from mvp_jax.storage import checkpoint

Score = Literal["magnitude", "random", "taylor", "fisher", "snip", "grasp", "synflow", "wanda"]
SCORES: tuple[Score, ...] = ("magnitude", "random", "taylor", "fisher", "snip", "grasp", "synflow", "wanda")

_OF_ENTRIES = ("magnitude", "random", "taylor")
"""Scores that are defined for entries of any pattern; the others are for single weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Pruning in one step.

    Attributes:
        score: see `SCORES`.
        examples: what the scores that need data look at.
        rounds: of SynFlow's exponential schedule.
        rescale: for SynFlow on networks that overflow, see `saliency.prune_by_synflow`.
        batch: examples at a time where each has a gradient of its own (Fisher).
        training: the fine-tuning.
    """

    score: Score = "magnitude"
    examples: int = 512
    rounds: int = 100
    rescale: bool = False
    batch: int = 32
    training: api.Training = dataclasses.field(default_factory=api.Training)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose one of {SCORES}")
        if min(self.examples, self.rounds, self.batch) < 1:
            raise ValueError("examples, rounds and batch must be at least 1, got "
                             f"{self.examples}, {self.rounds}, {self.batch}")  # fmt: skip


@functools.lru_cache
def _mean_loss(model: Model) -> Any:
    def loss(params: Params, rest: PyTree, x: Array, y: Array) -> Array:
        return jnp.mean(train.cross_entropy(model.apply(Variables(params, rest), x)[0], y))

    return loss


@functools.partial(jax.jit, static_argnames=("model",))
def _grasp(model: Model, variables: Variables, data: Any) -> PyTree:
    loss = _mean_loss(model)
    return weight_scores.grasp(lambda p: loss(p, variables.rest, data["x"], data["y"]), variables.params)


@functools.partial(jax.jit, static_argnames=("model", "batch"))
def _fisher(model: Model, variables: Variables, data: Any, *, batch: int) -> PyTree:
    loss = _mean_loss(model)

    def one(params: Params, x: Array, y: Array) -> Array:
        return loss(params, variables.rest, x[None], y[None])

    return weight_scores.fisher(one, variables.params, data["x"], data["y"], batch=batch)


def scores(problem: api.Problem, settings: Settings, key: Key) -> tuple[PyTree, Any]:
    """Numbers in the parameters' shapes, and how they become one for each entry; in evaluation mode."""
    model, variables, score = problem.model, problem.variables, settings.score
    if score == "magnitude":
        return variables.params, "l2"
    if score == "random":
        return api.noise(key, variables.params), "sum"
    data = api.sample(problem, key, settings.examples)
    if score == "grasp":
        return _grasp(model, variables, data), "sum"
    if score == "fisher":
        return _fisher(model, variables, data, batch=min(settings.batch, data["y"].shape[0])), "sum"
    grads = api.gradients(model, variables, data)
    if score == "snip":
        return weight_scores.snip(variables.params, grads), "sum"
    return saliency.taylor_terms(variables.params, grads), "sum_square"


def _flows(problem: api.Problem, run: api.Run, settings: Settings) -> api.Run:
    """SynFlow's rounds."""
    sizes = api.remaining(run.kept, "tree")
    counts = schedules.counts("geometric", settings.rounds, sizes, problem.sparsity)
    model = problem.model
    new = saliency.prune_by_synflow(
        model.apply,
        problem.variables,
        model.input_shape,
        counts,
        prunable=problem.prunable,
        rescale=settings.rescale,
    )
    return api.with_masks(run, _kept(new, problem.prunable), new)


def _wanda(problem: api.Problem, run: api.Run, settings: Settings, key: Key) -> api.Run:
    """The same share of the inputs of every output."""
    params, model = problem.variables.params, problem.model
    data = api.sample(problem, key, settings.examples)
    seen = input_norms.norms(model.apply, problem.variables, data["x"], prunable=problem.prunable)
    # Parameters may lie in tuples, and so the axes are matched by order.
    axes = jax.tree.leaves(seen.outputs, is_leaf=_are_axes)
    leaves, structure = jax.tree.flatten(params)
    flags = jax.tree.leaves(problem.prunable)
    sizes = [_fan_in(p.shape, a) if yes else 0 for p, a, yes in zip(leaves, axes, flags, strict=True)]
    keep = jax.tree.unflatten(structure, [prune.keep_count(n, problem.sparsity) if n else 0 for n in sizes])
    chosen = prune.by_output(
        weight_scores.wanda(params, seen.norm), api.host(keep), axis=seen.outputs, within=problem.prunable
    )
    return api.with_masks(run, chosen, masks.exempt(chosen, problem.prunable))


def _are_axes(x: Any) -> bool:
    return isinstance(x, tuple) and all(isinstance(a, int) for a in x)


def _fan_in(shape: tuple[int, ...], outputs: tuple[int, ...]) -> int:
    total = 1
    for a, n in enumerate(shape):
        total *= 1 if a in outputs else n
    return total


def _kept(new: PyTree, prunable: PyTree) -> PyTree:
    return jax.tree.map(lambda m, yes: m if yes else jnp.zeros((), bool), new, prunable)


def once(
    problem: api.Problem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> api.Pruned:
    """Scores the pre-trained weights, prunes, fine-tunes.

    Raises:
        ValueError: for a score of single weights with another pattern.
    """
    score, training = settings.score, settings.training
    if score not in _OF_ENTRIES and not isinstance(problem.pattern, Weights):
        raise ValueError(f"{score!r} scores single weights, the problem's pattern is {problem.pattern}; "
                         f"choose one of {_OF_ENTRIES}, or the pattern Weights()")  # fmt: skip
    key_score, key_train = jax.random.split(key)

    def body(r: int, run: api.Run) -> api.Run:
        if r:
            return api.finish(problem, training, run, key_train)
        if score == "synflow":
            return _flows(problem, run, settings)
        if score == "wanda":
            run = _wanda(problem, run, settings, key_score)
        else:
            run = api.cut(problem, run, api.host(problem.keep()), *scores(problem, settings, key_score))
        looked = 0 if score in ("magnitude", "random") else min(settings.examples, problem.examples)
        return api.spend(run, 0, looked)

    run = api.rounds(body, api.begin(problem, training, key_train), 2, saved)
    return api.end(problem, training, run)


def unpruned(
    problem: api.Problem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> api.Pruned:
    """Fine-tunes the whole model, for reference."""
    problem = dataclasses.replace(problem, sparsity=0.0)
    return once(problem, dataclasses.replace(settings, score="magnitude"), key, saved=saved)
