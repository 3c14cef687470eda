"""Movement pruning: scores are trained beside the weights, and weights that move towards zero are pruned.

Each weight θ has a score S. The forward pass sees mθ, where the mask m follows from the scores, and the gradient passes
the mask as if it were not there: ∂L/∂S = θ · ∂L/∂(mθ), whether m is 0 or 1, so that a masked weight can come back. To
first order S adds up -θ·∂L/∂θ. `hard` keeps the highest scores; `soft` keeps those with σ(S) > τ, and adds a multiple
of the mean of σ(S) to the loss.

Source: Sanh et al. 2020, "Movement Pruning" (arXiv:2005.07683), equations 3 to 5 and section 4.
"""

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mvp_jax import train
from mvp_jax.core import masks, schedules
from mvp_jax.core.patterns import Weights
from mvp_jax.core.types import Array, Key, Masks, PyTree, Variables
from mvp_jax.methods import checks, contract
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api, gradual
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of movement pruning, which prunes single weights.

    Attributes:
        kind: `hard` keeps the weights of the highest scores, `soft` those whose score is above a threshold.
        steps: number of training steps during which weights are pruned.
        events: how many times the sparsity (`hard`) or the penalty (`soft`) rises during these steps.
        scale: the scores' learning rate as a multiple of the weights' (in the paper 1e-2 against 3e-5, for Adam).
        threshold: for `soft`: τ, in (0, 1).
        penalty: for `soft`: the final weight λ of the penalty, the mean of σ(S).
        training: how steps are taken, and the fine-tuning under the final mask. Take an adaptive optimiser: the
            gradients of scores and of weights differ in size.
    """

    kind: Literal["hard", "soft"] = "hard"
    steps: int = 200
    events: int = 10
    scale: float = 10.0
    threshold: float = 0.1
    penalty: float = 1.0
    training: SparsityTraining = dataclasses.field(default_factory=lambda: SparsityTraining(optimizer="adamw"))

    def __post_init__(self) -> None:
        if self.kind not in ("hard", "soft"):
            raise ValueError(f"unknown kind {self.kind!r}; choose 'hard' or 'soft'")
        if not 1 <= self.events <= self.steps:
            raise ValueError(f"events must be 1 to steps, got {self.events} events in {self.steps} steps")
        if not (self.scale > 0 and 0 < self.threshold < 1 and self.penalty >= 0):
            raise ValueError(
                "scale must be positive, threshold in (0, 1) and penalty >= 0, got "
                f"{self.scale}, {self.threshold}, {self.penalty}"
            )


@jax.custom_vjp
def gated(weight: Array, score: Array, keep: Array, push: Array) -> Array:
    """Returns `weight` where `keep`, else 0, with a gradient for the scores.

    Args:
        weight: weights θ, in any shape.
        score: their scores S. The value does not depend on them, but they get the gradient θ · ∂L/∂(mθ) + `push`,
            whether a weight is kept or not.
        keep: the mask m, booleans.
        push: what is added to the scores' gradient, such as that of a penalty.

    Returns:
        mθ. The gradient of `weight` is masked.

    >>> weight, keep, push = jnp.array([2.0, 3.0]), jnp.array([True, False]), jnp.float32(0.5)
    >>> jax.grad(lambda s: gated(weight, s, keep, push).sum())(jnp.zeros(2)).tolist()
    [2.5, 3.5]
    """
    return jnp.where(keep, weight, jnp.zeros((), weight.dtype))


def _forward(weight: Array, score: Array, keep: Array, push: Array) -> tuple[Array, Any]:
    return gated(weight, score, keep, push), (weight, keep, push)


def _backward(saved: Any, g: Array) -> tuple[Array, Array, None, Array]:
    weight, keep, push = saved
    return jnp.where(keep, g, jnp.zeros((), g.dtype)), weight * g + push, None, jnp.zeros_like(push)


gated.defvjp(_forward, _backward)


def _mask(scores: list[Array], rest: Mapping[str, Any], kind: str, threshold: float) -> list[Array]:
    if kind == "soft":
        return [jax.nn.sigmoid(s) > threshold for s in scores]
    pattern = Weights()
    return pattern.select(scores, rest["keep"], [jnp.ones(s.shape, bool) for s in scores])


@functools.lru_cache
def scored(model: Model, chosen: tuple[bool, ...], kind: str, scale: float, threshold: float) -> Model:
    """Returns the model with scores among its parameters, `{"weights": ..., "scores": [...]}`.

    Its `rest` is `{"model": ..., "keep": ..., "penalty": ...}`: the model's own, how many weights stay (`hard`), and
    the weight of the penalty (`soft`). The scores are S / `scale`: an adaptive optimiser moves S faster by `scale`.

    Args:
        model: the model whose weights are pruned.
        chosen: for each leaf of the parameters, in their order, whether it is prunable.
        kind: as in `Settings.kind`.
        scale: as in `Settings.scale`.
        threshold: as in `Settings.threshold`.

    Returns:
        A model; equal arguments give the same one.
    """

    def apply(variables: Variables, x: Array, **options: Any) -> tuple[Array, PyTree]:
        leaves, structure = jax.tree.flatten(variables.params["weights"])
        index = [i for i, yes in enumerate(chosen) if yes]
        scores = [s * scale for s in variables.params["scores"]]
        rest = variables.rest
        keep = _mask([jax.lax.stop_gradient(s) for s in scores], rest, kind, threshold)
        total = sum(s.size for s in scores)
        for i, s, k in zip(index, scores, keep, strict=True):
            open_ = jax.nn.sigmoid(s)
            push = jax.lax.stop_gradient(rest["penalty"] * open_ * (1 - open_) / total) if kind == "soft" else 0.0
            leaves[i] = gated(leaves[i], s, k, jnp.asarray(push))
        logits, after = model.apply(Variables(jax.tree.unflatten(structure, leaves), rest["model"]), x, **options)
        return logits, {**rest, "model": after}

    return dataclasses.replace(model, apply=apply)


def movement(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Trains weights and scores; then prunes by score to the exact count, and fine-tunes.

    Args:
        problem: the model, the task and the sparsity.
        settings: how scores are trained.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings, or a pattern other than single weights that are compared
            over all leaves.
    """
    checks.check("movement", problem, SparsityProblem, settings, Settings)
    if problem.pattern != Weights():
        raise ValueError(
            f"movement pruning selects single weights over all leaves; the pattern is {type(problem.pattern).__name__}"
        )
    training = settings.training
    keys = jax.random.split(key)
    flags = tuple(jax.tree.leaves(problem.prunable))
    how = _recipe(problem, settings, flags)
    counts = problem.counts(schedules.cubic, settings.events)
    steps = gradual.intervals(settings.steps, settings.events)

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.events:
            chosen = _spread(run.more[0], run.kept)
            run = api.cut(problem, run, api.host(counts[-1]), chosen, "sum")
            return api.finish(problem, training, api.anew(training, run, keys[1], moments=True), keys[1])
        state, _ = train.fit(how, _with_scores(run), problem.train, steps[r], learning_rate=training.learning_rate)
        run = api.spend(run, steps[r], steps[r] * min(training.batch, problem.examples))
        weights, scores = state.variables.params["weights"], state.variables.params["scores"]
        keep = jnp.int32(counts[r])
        penalty = jnp.float32(settings.penalty * (r + 1) / settings.events)
        after = run.state._replace(
            variables=Variables(weights, state.variables.rest["model"]), step=state.step, alive=state.alive
        )
        return run._replace(state=after, more=(scores, keep, penalty, state.opt_state))

    run = api.begin(problem, training, keys[0])
    leaves = jax.tree.leaves(run.state.variables.params)
    # Equal at first: the lower index is kept, as if nothing were known. Soft scores start well above the threshold.
    scores = [jnp.zeros(p.shape) for p, yes in zip(leaves, flags, strict=True) if yes]
    opt_state = how.tx.init({"weights": run.state.variables.params, "scores": scores})
    run = run._replace(more=(scores, jnp.int32(problem.keep(0.0)), jnp.float32(0.0), opt_state))
    return api.end(problem, training, api.rounds(body, run, settings.events + 1, saved))


def _recipe(problem: SparsityProblem, settings: Settings, flags: tuple[bool, ...]) -> train.Recipe:
    """How weights and scores are trained together."""
    training = settings.training
    # Scores add up what was found; decay would make them forget it.
    undecayed = ("scores", *(f"weights/{name}" for name in training.undecayed))
    tx = train.optimizer(
        training.optimizer, weight_decay=training.weight_decay, clip=training.clip, decayed=contract.all_but(undecayed)
    )
    model = scored(problem.model, flags, settings.kind, settings.scale, settings.threshold)
    return dataclasses.replace(api.recipe(problem, training), model=model, tx=tx)


def _with_scores(run: api.Run) -> train.TrainState:
    """The state that is trained while weights are pruned: weights and scores."""
    scores, keep, penalty, opt_state = run.more
    params = {"weights": run.state.variables.params, "scores": scores}
    rest = {"model": run.state.variables.rest, "keep": keep, "penalty": penalty}
    return run.state._replace(variables=Variables(params, rest), opt_state=opt_state, masks=masks.ones(params, ()))


def _spread(scores: list[Array], kept: Masks) -> PyTree:
    """Scores as a tree like the kept entries."""
    found = iter(scores)
    return jax.tree.map(lambda m: next(found) if jnp.ndim(m) else jnp.zeros(()), kept)
