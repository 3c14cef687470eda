"""Training: one masked step, many steps as one compiled loop.

Everything is a pure function of its arguments. The number of steps, the learning rate, masks and keys are traced:
one compilation serves every budget, rate, sparsity and seed. All functions work under `jax.vmap` over members; what a
member has of its own beside data and key is its `Protocol`.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core.types import Array, Batch, Key, PyTree
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model
from mvp_jax.parallel import mapping
from mvp_jax.train.stepping import (
    Augment,
    Loss,
    Metrics,
    Score,
    TrainState,
    cross_entropy,
    make_step,
)


def batch_indices(key: Key, step: Array, examples: int, batch: int) -> Array:
    """Which examples step `step` sees: epochs without replacement, a remainder smaller than a batch is dropped.

    A function of key and step alone, so that a resumed run sees what an uninterrupted one does.

    Returns:
        `int32[min(batch, examples)]`.

    >>> import jax
    >>> key = jax.random.key(0)
    >>> sorted(int(i) for s in range(2) for i in batch_indices(key, s, 6, 3))
    [0, 1, 2, 3, 4, 5]
    """
    batch = min(batch, examples)
    per_epoch = examples // batch
    order = jax.random.permutation(jax.random.fold_in(key, step // per_epoch), examples)
    return jax.lax.dynamic_slice(order, ((step % per_epoch) * batch,), (batch,))


def next_batch(state: TrainState, examples: int, batch: int) -> Array:
    """The examples that a run sees in its next step: `int32[min(batch, examples)]`, from its key and step alone.

    For data that do not fit on the device: read these on the host, `data.prefetch` and `population.advance`.
    """
    return batch_indices(jax.random.fold_in(state.key, 2**31 - 1), state.step, examples, batch)


def loops_on_host(model: Model, *trees: PyTree) -> bool:
    """Whether a loop around this model's convolutions should be Python's rather than XLA's.

    XLA's CPU back end runs a convolution inside a compiled loop on one thread of a slow fallback, 20 to 50 times
    slower than outside; a dispatch per iteration costs next to nothing beside that. Elsewhere, for `conv="im2col"`,
    for models without convolutions and for traced arguments the loop is compiled.
    """
    native = getattr(model.config, "conv", None) == "native" and jax.default_backend() == "cpu"
    return native and not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """What is static about training; equal recipes share compiled programs. See `fit` for the fields."""

    model: Model
    tx: optax.GradientTransformation
    batch: int = 64
    loss: Loss = cross_entropy
    augment: Augment | None = None
    decay: Literal["constant", "cosine"] = "constant"
    warmup: int = 0
    score: Score = None
    groups: tuple[Group, ...] = ()

    def blank(self) -> Metrics:
        """Sums over no steps."""
        sums: Metrics = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(()), "taken": jnp.zeros(())}
        if self.score:
            sums["scores"] = {g.name: jnp.zeros(g.size) for g in self.groups}
        return sums

    def step(
        self, state: TrainState, sums: Metrics, data: Batch, index: Array | None, total: Array
    ) -> tuple[TrainState, Metrics]:
        """One step on data that lies on the device: rate, batch, step, sums of the metrics."""
        protocol = state.protocol
        rate = jnp.asarray(protocol.learning_rate)
        if self.decay == "cosine":
            done = state.step.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)
            rate = rate * (0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(done, 1.0))))
        if self.warmup:
            rate = rate * jnp.minimum((state.step + 1) / self.warmup, 1.0)
        state = state._replace(protocol=protocol._replace(learning_rate=rate))
        own = data["y"].shape[0] if index is None else index.shape[0]
        chosen = next_batch(state, own, self.batch)
        chosen = chosen if index is None else index[chosen]
        one = make_step(
            self.model, self.loss, self.tx, augment=self.augment, score=self.score, groups=self.groups
        )  # fmt: skip
        state, metrics = one(state, mapping.split_batch({"x": data["x"][chosen], "y": data["y"][chosen]}))
        sums = jax.tree.map(lambda s, m: s + jnp.where(metrics["taken"], m, 0.0), sums, metrics)
        return state._replace(protocol=protocol), sums

    def steps(
        self, state: TrainState, sums: Metrics, data: Batch, index: Array | None, count: Array, total: Array
    ) -> tuple[TrainState, Metrics]:
        """`count` steps, or what the protocol leaves of them, as one loop."""
        if state.protocol.steps is not None:
            # Under a mapping that takes members in turn, one that is done costs nothing more.
            count = jnp.clip(state.protocol.steps - state.step, 0, count)

        def body(_: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            return self.step(*carry, data, index, total)

        return jax.lax.fori_loop(0, count, body, (state, sums))


_one_step = jax.jit(Recipe.step, static_argnums=0)
_many_steps = jax.jit(Recipe.steps, static_argnums=0)


@jax.jit
def means(sums: Metrics) -> Metrics:
    """Means over the steps taken, and their number as `taken`."""
    return jax.tree.map(lambda s: s / jnp.maximum(sums["taken"], 1), sums) | {"taken": sums["taken"]}


def fit(
    model: Model,
    state: TrainState,
    data: Batch,
    steps: int | Array,
    *,
    tx: optax.GradientTransformation,
    learning_rate: float | Array | None = None,
    batch: int = 64,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    decay: Literal["constant", "cosine"] = "constant",
    warmup: int = 0,
    total: int | Array | None = None,
    score: Score = None,
    groups: tuple[Group, ...] = (),
    index: Array | None = None,
) -> tuple[TrainState, Metrics]:
    """`steps` training steps on data that lies on the device, as one compiled loop.

    Args:
        model: what to train; static.
        state: from `create`, or from a former call.
        data: `{"x": [N, ...], "y": int32[N]}`.
        steps: how many; traced. The state's protocol may allow fewer.
        tx: an optimiser with an injected `learning_rate`, as from `optimizer`.
        learning_rate: traced; default the protocol's.
        batch: examples a step, at most `N`.
        loss: per-example loss.
        augment: applied to each batch.
        decay: of the rate over `total` steps, counted from step 0 of the state.
        warmup: steps over which the rate rises linearly, counted likewise; static.
        total: default the protocol's steps, else `steps`.
        score: see `make_step`.
        groups: see `make_step`.
        index: `int32[n]`, the examples that this run may see; all by default.

    Returns:
        The state after the steps, and means over the steps taken of `loss`, `accuracy` and `scores`, and their number
        `taken`; nothing waits for the device.

    Raises:
        ValueError: for an optimiser without a traced rate, no rate, or no data.
    """
    recipe = Recipe(
        model=model, tx=tx, batch=batch, loss=loss, augment=augment, decay=decay, warmup=warmup, score=score,
        groups=groups,
    )  # fmt: skip
    own = state.protocol
    if learning_rate is not None:
        state = state._replace(protocol=own._replace(learning_rate=jnp.asarray(learning_rate, jnp.float32)))
    check_trainable(state, data, index)
    if total is None:
        total = steps if own.steps is None else own.steps
    data = {"x": data["x"], "y": data["y"]}
    total = jnp.asarray(total, jnp.int32)
    sums = recipe.blank()
    if loops_on_host(model, state, data, index, total, steps):
        for _ in range(int(steps)):
            state, sums = _one_step(recipe, state, sums, data, index, total)
    else:
        state, sums = _many_steps(recipe, state, sums, data, index, jnp.asarray(steps, jnp.int32), total)
    return state._replace(protocol=own), means(sums)


def check_trainable(state: TrainState, data: Batch, index: Array | None = None) -> None:
    """Raises `ValueError` unless `fit` can train this state on these data."""
    if "learning_rate" not in getattr(state.opt_state, "hyperparams", {}):
        raise ValueError("fit sets the learning rate in the optimiser's state; use train.optimizer(...) or wrap yours "
                         "in optax.inject_hyperparams")  # fmt: skip
    if state.protocol.learning_rate is None:
        raise ValueError("fit needs a learning rate: pass learning_rate=... or a protocol that has one")
    if 0 in data["y"].shape or (index is not None and 0 in index.shape):
        raise ValueError("no examples to train on; the task's training split is empty")
