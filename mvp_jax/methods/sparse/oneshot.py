"""One-shot pruning: score the weights, prune once, fine-tune; and the reference that is not pruned at all."""

import dataclasses
import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax import saliency, train
from mvp_jax.core import masks, prune, schedules
from mvp_jax.core.patterns import How, Weights
from mvp_jax.core.types import Array, Batch, Key, Params, PyTree, Variables
from mvp_jax.methods import checks
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining
from mvp_jax.models.api import Model
from mvp_jax.saliency import input_norms
from mvp_jax.storage import checkpoint

WeightCriterion: TypeAlias = Literal["magnitude", "random", "taylor", "fisher", "snip", "grasp", "synflow", "wanda"]
"""The name of a score by which entries are compared; the scores are those of `saliency`."""

SCORES: tuple[WeightCriterion, ...] = ("magnitude", "random", "taylor", "fisher", "snip", "grasp", "synflow", "wanda")

_OF_ENTRIES = ("magnitude", "random", "taylor")
"""Scores that are defined for entries of any pattern; the others are for single weights."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of one-shot pruning.

    Attributes:
        score: the score by which entries are compared, one of `SCORES`.
        examples: number of training examples that the scores which need data are computed on.
        rounds: for `synflow`: number of rounds of its exponential schedule.
        rescale: for `synflow`: whether weights are rescaled before every round, which deep networks need so as not to
            overflow (see `saliency.prune_by_synflow`).
        batch: for `fisher`: how many examples have their gradients computed at a time.
        training: the fine-tuning under the mask.
    """

    score: WeightCriterion = "magnitude"
    examples: int = 512
    rounds: int = 100
    rescale: bool = False
    batch: int = 32
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)

    def __post_init__(self) -> None:
        if self.score not in SCORES:
            raise ValueError(f"unknown score {self.score!r}; choose one of {SCORES}")
        if min(self.examples, self.rounds, self.batch) < 1:
            raise ValueError(
                f"examples, rounds and batch must be at least 1, got {self.examples}, {self.rounds}, {self.batch}"
            )


@functools.lru_cache
def _mean_loss(model: Model, loss: train.Loss) -> Any:
    def mean_loss(params: Params, rest: PyTree, x: Array, y: Array) -> Array:
        return jnp.mean(loss(model.apply(Variables(params, rest), x)[0], y))

    return mean_loss


@functools.partial(jax.jit, static_argnames=("model", "loss"))
def _grasp(model: Model, variables: Variables, data: Batch, *, loss: train.Loss) -> PyTree:
    mean_loss = _mean_loss(model, loss)
    return saliency.grasp(lambda p: mean_loss(p, variables.rest, data["x"], data["y"]), variables.params)


@functools.partial(jax.jit, static_argnames=("model", "loss", "batch"))
def _fisher(model: Model, variables: Variables, data: Batch, *, loss: train.Loss, batch: int) -> PyTree:
    mean_loss = _mean_loss(model, loss)

    def one(params: Params, x: Array, y: Array) -> Array:
        return mean_loss(params, variables.rest, x[None], y[None])

    return saliency.fisher(one, variables.params, data["x"], data["y"], batch=batch)


def scores(problem: SparsityProblem, settings: Settings, key: Key) -> tuple[PyTree, How]:
    """Scores the pre-trained weights, in evaluation mode, by any score but `synflow` and `wanda`.

    Args:
        problem: the model, the task and the loss.
        settings: which score, on how many examples.
        key: draws the examples, or the random scores.

    Returns:
        Numbers in the parameters' shapes, and how the numbers of an entry become its score (see `patterns.How`).
    """
    model, variables, score, loss = problem.model, problem.variables, settings.score, problem.loss
    if score == "magnitude":
        return variables.params, "l2"
    if score == "random":
        return api.noise(key, variables.params), "sum"
    data = api.sample(problem, key, settings.examples)
    if score == "grasp":
        return _grasp(model, variables, data, loss=loss), "sum"
    if score == "fisher":
        batch = min(settings.batch, data["y"].shape[0])
        return _fisher(model, variables, data, loss=loss, batch=batch), "sum"
    grads = api.gradients(model, variables, data, loss=loss)
    if score == "snip":
        return saliency.snip(variables.params, grads), "sum"
    return saliency.taylor_terms(variables.params, grads), "sum_square"


def _flows(problem: SparsityProblem, run: api.Run, settings: Settings) -> api.Run:
    """Prunes in SynFlow's rounds."""
    sizes = api.remaining(run.kept, "tree")
    counts = schedules.counts("geometric", settings.rounds, sizes, problem.sparsity)
    model = problem.model
    new = saliency.prune_by_synflow(
        _ones_as_tokens(model),
        problem.variables,
        model.input_shape,
        counts,
        prunable=problem.prunable,
        rescale=settings.rescale,
    )
    return api.with_masks(run, _kept(new, problem.prunable), new)


@functools.lru_cache
def _ones_as_tokens(model: Model) -> Any:
    """The model's function for SynFlow's input of ones: where inputs are integers, the ones are made integers."""
    if jnp.issubdtype(model.input_dtype, jnp.floating):
        return model.apply
    return lambda variables, x: model.apply(variables, x.astype(model.input_dtype))


def _wanda(problem: SparsityProblem, run: api.Run, settings: Settings, key: Key) -> api.Run:
    """Prunes the same fraction of the inputs of every output."""
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
        saliency.wanda(params, seen.norm), api.host(keep), axis=seen.outputs, within=problem.prunable
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


def oneshot(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Scores the pre-trained weights, prunes once, and fine-tunes.

    Args:
        problem: the model, the task and the sparsity.
        settings: the score, and how to fine-tune.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model. By `wanda` every output loses the same fraction of its inputs, rounded for each output.

    Raises:
        ValueError: for another kind of problem or settings, or a score of single weights with another pattern.
    """
    checks.check("oneshot", problem, SparsityProblem, settings, Settings)
    score, training = settings.score, settings.training
    if score not in _OF_ENTRIES and not isinstance(problem.pattern, Weights):
        raise ValueError(
            f"{score!r} scores single weights, the problem's pattern is {type(problem.pattern).__name__}; "
            f"choose one of {_OF_ENTRIES}, or the pattern Weights()"
        )
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
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Fine-tunes the whole model without pruning it, for reference.

    Args:
        problem: the model and the task; its sparsity does not count.
        settings: how to fine-tune; the score does not count.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The fine-tuned model, with all entries kept.

    Raises:
        ValueError: for another kind of problem or settings.
    """
    checks.check("unpruned", problem, SparsityProblem, settings, Settings)
    problem = dataclasses.replace(problem, sparsity=0.0)
    return oneshot(problem, dataclasses.replace(settings, score="magnitude"), key, saved=saved)
