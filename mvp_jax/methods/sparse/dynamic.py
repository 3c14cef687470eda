"""Dynamic sparse training: a mask of constant size whose smallest weights are exchanged for others (SET, RigL).

Sources: Mocanu et al. 2018, SET (arXiv:1707.04780); Evci et al. 2020, RigL (arXiv:1911.11134), algorithm 1.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp

from mvp_jax.core import masks, prune
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Key, Masks, Params, PyTree
from mvp_jax.methods import checks
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api, gradual
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining, check_exchangeable
from mvp_jax.storage import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of dynamic sparse training.

    Attributes:
        grow: which pruned entries return: those with the largest `gradient` (RigL), or `random` ones (SET).
        steps: number of training steps during which entries are exchanged.
        events: how many times entries are exchanged during these steps, at equal distances.
        drop_fraction: the fraction of each leaf's kept entries that is exchanged the first time. It falls to 0 on a
            half cosine.
        initial: which entries the first mask keeps: the largest by `magnitude` in the pre-trained model, or `random`
            ones.
        examples: number of training examples whose gradient says which entries return.
        training: how steps are taken, and the fine-tuning under the final mask.
    """

    grow: Literal["gradient", "random"] = "gradient"
    steps: int = 200
    events: int = 10
    drop_fraction: float = 0.3
    initial: Literal["magnitude", "random"] = "magnitude"
    examples: int = 64
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)

    def __post_init__(self) -> None:
        if self.grow not in ("gradient", "random") or self.initial not in ("magnitude", "random"):
            raise ValueError(
                "grow is 'gradient' or 'random', initial 'magnitude' or 'random'; "
                f"got {self.grow!r} and {self.initial!r}"
            )
        if not 1 <= self.events <= self.steps or self.examples < 1 or not 0 < self.drop_fraction < 1:
            raise ValueError(
                "events must be 1 to steps, examples at least 1 and drop_fraction in (0, 1), got "
                f"{self.events}, {self.steps}, {self.examples}, {self.drop_fraction}"
            )


@functools.partial(jax.jit, static_argnames=("pattern",))
def _exchange(
    params: Params, kept: Masks, growth: PyTree, stay: PyTree, come: PyTree, *, pattern: Pattern
) -> tuple[Masks, Masks]:
    """Returns kept entries and masks after the smallest entries have made room for those of highest growth.

    An entry that was just dropped may come back at once, with its weight (algorithm 1 of RigL). `stay` and `come` count
    the entries of each leaf, so that the number of kept entries in a leaf never changes.
    """
    inside = jax.tree.map(lambda m: m if jnp.ndim(m) else False, kept)
    staying = prune.by_leaf(pattern.entries(params, kept, "l2"), stay, within=inside)
    outside = jax.tree.map(lambda s, m: ~s if jnp.ndim(m) else False, staying, kept)
    coming = prune.by_leaf(pattern.entries(growth, kept, "l2"), come, within=outside)
    kept = masks.union(staying, coming)
    return kept, pattern.masks(kept, params, kept)


def dynamic(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Trains by RigL or SET from pre-trained weights; then fine-tunes.

    An entry that returns starts at 0.

    Args:
        problem: the model, the task and the sparsity.
        settings: how entries are exchanged.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings, or the pattern N:M, whose runs no exchange keeps.
    """
    checks.check("dynamic", problem, SparsityProblem, settings, Settings)
    check_exchangeable(problem)
    training = settings.training
    keys = jax.random.split(key, 3)
    steps = gradual.intervals(settings.steps, settings.events)

    def body(r: int, run: api.Run) -> api.Run:
        if r == 0:
            start = None if settings.initial == "magnitude" else api.noise(keys[2], problem.variables.params)
            return api.cut(problem, run, api.host(problem.keep()), start)
        if r > settings.events:
            return api.finish(problem, training, run, keys[1])
        run = api.advance(problem, training, run, steps[r - 1])
        return _swap(problem, settings, run, r, jax.random.fold_in(keys[2], r))

    run = api.rounds(body, api.begin(problem, training, keys[0]), settings.events + 2, saved)
    return api.end(problem, training, run)


def _swap(problem: SparsityProblem, settings: Settings, run: api.Run, event: int, key: Key) -> api.Run:
    fraction = settings.drop_fraction / 2 * (1 + math.cos(math.pi * (event - 1) / settings.events))
    have = api.remaining(run.kept, "leaf")
    come = jax.tree.map(lambda m, n: round(fraction * n) if jnp.ndim(m) else 0, run.kept, have)
    stay = jax.tree.map(lambda n, c: n - c, have, come)
    params = run.state.variables.params
    if settings.grow == "random":
        growth = api.noise(key, params)
    else:
        data = api.sample(problem, key, settings.examples)
        growth = api.gradients(problem.model, run.state.variables, data, loss=problem.loss, training=True)
        run = api.spend(run, 0, data["y"].shape[0])
    kept, new = _exchange(params, run.kept, growth, api.host(stay), api.host(come), pattern=problem.pattern)
    # Before and after: what grows gathered moments while it was masked, what goes had them as a kept weight.
    run = api.with_masks(api.forget(settings.training, run), kept, new)
    return api.forget(settings.training, run)
