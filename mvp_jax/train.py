"""Training: one masked step, many steps as one compiled loop, evaluation, batch-norm re-estimation.

Everything is a pure function of its arguments. The number of steps, the learning rate, masks and keys are traced:
one compilation serves every budget, rate, sparsity and seed. All functions work under `jax.vmap` over members.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import optax

from mvp_jax import masks as masks_lib
from mvp_jax.models.api import Model
from mvp_jax.types import Array, Batch, Key, Masks, PyTree, Variables
from mvp_jax.units import Group

Loss: TypeAlias = Callable[[Array, Array], Array]
"""`(logits [N, Y], labels int32[N]) -> losses [N]`."""

Augment: TypeAlias = Callable[[Key, Array], Array]
"""`(key, x [N, ...]) -> x [N, ...]`."""

Score: TypeAlias = Literal["fisher", "activation"] | None


class TrainState(NamedTuple):
    """A run in progress; every leaf is an array, so it stacks, shards and saves as it is."""

    step: Array
    variables: Variables
    opt_state: PyTree
    masks: Masks
    key: Key


Metrics: TypeAlias = dict[str, Any]
Step: TypeAlias = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Softmax cross-entropy of each example, in nats: `[N, Y], int32[N] -> [N]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


@functools.lru_cache
def optimizer(
    name: Literal["sgd", "adamw"] = "sgd", *, momentum: float = 0.9, weight_decay: float = 0.0
) -> optax.GradientTransformation:
    """An optimiser whose learning rate is a value of its state, and so traced.

    Cached, so that equal arguments give the same object and compiled functions that close over it are reused.

    Args:
        name: `sgd` with Nesterov-free momentum, or `adamw`.
        momentum: for `sgd`.
        weight_decay: coupled for `sgd`, decoupled for `adamw`.

    Raises:
        ValueError: for another name.

    >>> tx = optimizer("sgd", momentum=0.9)
    >>> tx is optimizer("sgd", momentum=0.9)
    True
    """
    if name == "sgd":

        def make(learning_rate: float) -> optax.GradientTransformation:
            return optax.chain(optax.add_decayed_weights(weight_decay), optax.sgd(learning_rate, momentum))

    elif name == "adamw":

        def make(learning_rate: float) -> optax.GradientTransformation:
            return optax.adamw(learning_rate, weight_decay=weight_decay)

    else:
        raise ValueError(f"unknown optimizer {name!r}; choose 'sgd' or 'adamw', or pass an optax transformation")
    return optax.inject_hyperparams(make)(learning_rate=0.0)


def create(
    variables: Variables, tx: optax.GradientTransformation, key: Key, *, masks: Masks | None = None
) -> TrainState:
    """A state at step 0, its parameters already masked.

    Args:
        variables: where to start.
        tx: the optimiser.
        key: feeds batch order, dropout and augmentation.
        masks: kept fixed while training; all kept if not given.
    """
    masks = masks_lib.ones(variables.params, ()) if masks is None else masks
    params = masks_lib.apply(variables.params, masks)
    return TrainState(jnp.zeros((), jnp.int32), Variables(params, variables.rest), tx.init(params), masks, key)


def make_step(
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    *,
    augment: Augment | None = None,
    score: Score = None,
    groups: tuple[Group, ...] = (),
) -> Step:
    """Builds one training step of the masked model.

    The gradient is taken at the masked parameters; the update is masked after the optimiser, so that momentum and
    weight decay cannot revive what is pruned.

    Args:
        model: what to train.
        loss: per-example loss; its mean is minimised.
        tx: any optax transformation.
        augment: applied to the inputs first.
        score: also return unit scores of the batch, from the same backward pass: `fisher` (mean over examples
            of squared gradients of per-example gates) or `activation` (mean absolute activation). In training
            mode batch normalisation couples the examples of a batch, so that `fisher` is the per-example one
            only up to that coupling.
        groups: whose units are scored.

    Returns:
        `step(state, batch) -> (state, metrics)` with `loss`, `accuracy` and, if asked for, `scores` as device values.
    """

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key_augment, key_model = jax.random.split(jax.random.fold_in(state.key, state.step))
        x, y = batch["x"], batch["y"]
        if augment is not None:
            x = augment(key_augment, x)
        gates = {g.name: jnp.ones((x.shape[0], g.size), x.dtype) for g in groups} if score == "fisher" else {}

        def objective(params: PyTree, gates: Mapping[str, Array]) -> tuple[Array, tuple[Array, PyTree, PyTree]]:
            variables = Variables(params, state.variables.rest)
            if score == "activation":
                seen = model.inspect(variables, x, train=True, key=key_model)
                logits, rest, active = seen.logits, seen.rest, {g.name: seen.activations[g.name] for g in groups}
            else:
                logits, rest = model.apply(variables, x, train=True, key=key_model, gates=gates or None)
                active = {}
            return jnp.mean(loss(logits, y)), (logits, rest, active)

        masked = masks_lib.apply(state.variables.params, state.masks)
        (value, (logits, rest, active)), (grads, gate_grads) = jax.value_and_grad(objective, (0, 1), has_aux=True)(
            masked, gates
        )
        updates, opt_state = tx.update(grads, state.opt_state, masked)
        params = masks_lib.apply(optax.apply_updates(masked, updates), state.masks)
        metrics: Metrics = {"loss": value, "accuracy": jnp.mean(jnp.argmax(logits, -1) == y)}
        if score == "fisher":
            # The loss is a mean, so an example's own gradient is N times what came back.
            metrics["scores"] = {n: jnp.mean(jnp.square(g * x.shape[0]), 0) for n, g in gate_grads.items()}
        elif score == "activation":
            metrics["scores"] = {n: jnp.mean(a, 0) for n, a in active.items()}
        return TrainState(state.step + 1, Variables(params, rest), opt_state, state.masks, state.key), metrics

    return step


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


def loops_on_host(model: Model, *trees: PyTree) -> bool:
    """Whether a loop around this model's convolutions should be Python's rather than XLA's.

    XLA's CPU back end runs a convolution inside a compiled loop on one thread of a slow fallback, 20 to 50 times
    slower than outside; a dispatch per iteration costs next to nothing beside that. Elsewhere, for `conv="im2col"`,
    for models without convolutions and for traced arguments the loop is compiled.
    """
    native = getattr(model.config, "conv", None) == "native" and jax.default_backend() == "cpu"
    return native and not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


_STATIC = ("model", "loss", "tx", "batch", "augment", "score", "groups", "decay")


def _body(
    state: TrainState,
    sums: Metrics,
    data: Batch,
    learning_rate: Array,
    total: Array,
    *,
    model: Model,
    loss: Loss,
    tx: optax.GradientTransformation,
    batch: int,
    augment: Augment | None,
    score: Score,
    groups: tuple[Group, ...],
    decay: str,
) -> tuple[TrainState, Metrics]:
    """One step of `fit`: rate, batch, step, sums of the metrics."""
    done = state.step.astype(jnp.float32) / jnp.maximum(total, 1).astype(jnp.float32)
    rate = learning_rate * (0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(done, 1.0))) if decay == "cosine" else 1.0)
    hyper = state.opt_state.hyperparams | {"learning_rate": rate.astype(jnp.float32)}
    state = state._replace(opt_state=state.opt_state._replace(hyperparams=hyper))
    index = batch_indices(jax.random.fold_in(state.key, 2**31 - 1), state.step, data["y"].shape[0], batch)
    step_fn = make_step(model, loss, tx, augment=augment, score=score, groups=groups)
    state, metrics = step_fn(state, {"x": data["x"][index], "y": data["y"][index]})
    return state, jax.tree.map(jnp.add, sums, metrics)


_one_step = jax.jit(_body, static_argnames=_STATIC)


@functools.partial(jax.jit, static_argnames=_STATIC)
def _many_steps(
    state: TrainState, sums: Metrics, steps: Array, data: Batch, learning_rate: Array, total: Array, **static: Any
) -> tuple[TrainState, Metrics]:
    def body(_: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
        return _body(*carry, data, learning_rate, total, **static)

    return jax.lax.fori_loop(0, steps, body, (state, sums))


def fit(
    model: Model,
    state: TrainState,
    data: Batch,
    steps: int | Array,
    *,
    tx: optax.GradientTransformation,
    learning_rate: float | Array,
    batch: int = 64,
    loss: Loss = cross_entropy,
    augment: Augment | None = None,
    decay: Literal["constant", "cosine"] = "constant",
    total: int | Array | None = None,
    score: Score = None,
    groups: tuple[Group, ...] = (),
) -> tuple[TrainState, Metrics]:
    """`steps` training steps on data that lies on the device, as one compiled loop.

    Args:
        model: what to train; static.
        state: from `create`, or from a former call.
        data: `{"x": [N, ...], "y": int32[N]}`.
        steps: how many; traced.
        tx: an optimiser with an injected `learning_rate`, as from `optimizer`.
        learning_rate: traced.
        batch: examples a step, at most `N`.
        loss: per-example loss.
        augment: applied to each batch.
        decay: of the rate over `total` steps, counted from step 0 of the state.
        total: default `steps`.
        score: see `make_step`.
        groups: see `make_step`.

    Returns:
        The state after the steps, and means over the steps of `loss`, `accuracy` and `scores`; nothing waits for
        the device.

    Raises:
        ValueError: for an optimiser without a traced rate, or no data.
    """
    if not hasattr(state.opt_state, "hyperparams") or "learning_rate" not in state.opt_state.hyperparams:
        raise ValueError("fit sets the learning rate in the optimiser's state; use train.optimizer(...) or wrap yours "
                         "in optax.inject_hyperparams")  # fmt: skip
    if data["y"].shape[0] == 0:
        raise ValueError("no examples to train on; the task's training split is empty")
    data = {"x": data["x"], "y": data["y"]}
    values = (data, jnp.asarray(learning_rate, jnp.float32), jnp.asarray(steps if total is None else total, jnp.int32))
    static = {
        "model": model,
        "loss": loss,
        "tx": tx,
        "batch": min(batch, data["y"].shape[0]),
        "augment": augment,
        "score": score,
        "groups": groups,
        "decay": decay,
    }
    sums: Metrics = {"loss": jnp.zeros(()), "accuracy": jnp.zeros(())}
    if score:
        sums["scores"] = {g.name: jnp.zeros(g.size) for g in groups}
    if loops_on_host(model, state, values, steps):
        for _ in range(int(steps)):
            state, sums = _one_step(state, sums, *values, **static)
    else:
        state, sums = _many_steps(state, sums, jnp.asarray(steps, jnp.int32), *values, **static)
    return state, jax.tree.map(lambda s: s / jnp.maximum(steps, 1), sums)


@functools.partial(jax.jit, static_argnames=("model",))
def _infer(model: Model, variables: Variables, x: Array) -> tuple[Array, Array]:
    seen = model.inspect(variables, x)
    return seen.logits, seen.features


@functools.partial(jax.jit, static_argnames=("model", "batch"))
def _infer_many(model: Model, variables: Variables, x: Array, *, batch: int) -> tuple[Array, Array]:
    n = x.shape[0]
    chunks = -(-n // batch)
    padded = jnp.concatenate([x, jnp.zeros((chunks * batch - n, *x.shape[1:]), x.dtype)])
    out = jax.lax.map(lambda x: _infer(model, variables, x), padded.reshape(chunks, batch, *x.shape[1:]))
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:n], out)


def infer(model: Model, variables: Variables, x: Array, *, batch: int = 256) -> tuple[Array, Array]:
    """Logits and features of many examples, a batch at a time, in evaluation mode.

    Args:
        model: static.
        variables: of one model (`vmap` for more).
        x: `[N, ...]`.
        batch: examples at a time.

    Returns:
        Logits `[N, Y]` and features `[N, F]`.
    """
    n = x.shape[0]
    if n <= batch:
        return _infer(model, variables, x)
    if not loops_on_host(model, variables, x):
        return _infer_many(model, variables, x, batch=batch)
    # The last part overlaps the one before, so that all have one shape.
    starts = [*range(0, n - batch, batch), n - batch]
    parts = [_infer(model, variables, x[i : i + batch]) for i in starts]
    fresh = n - batch - starts[-2]
    parts[-1] = jax.tree.map(lambda a: a[batch - fresh :], parts[-1])
    return jax.tree.map(lambda *a: jnp.concatenate(a), *parts)


@jax.jit
def _judge(logits: Array, labels: Array) -> Metrics:
    return {
        "accuracy": jnp.mean(jnp.argmax(logits, -1) == labels),
        "loss": jnp.mean(cross_entropy(logits, labels)),
    }


def evaluate(model: Model, variables: Variables, data: Batch, *, batch: int = 256) -> Metrics:
    """Mean accuracy (0 to 1) and cross-entropy (nats) over all of `data`, as device values."""
    logits, _ = infer(model, variables, data["x"], batch=batch)
    return _judge(logits, data["y"])


@functools.partial(jax.jit, static_argnames=("model",))
def reestimate(model: Model, variables: Variables, x: Array) -> Variables:
    """Batch statistics replaced by those of one batch, layer after layer in a single forward pass.

    A pruned network's activations have other means and variances than the dense one's; without this, a fresh
    mask is judged on the wrong statistics. Models without batch norm come back unchanged.

    Args:
        model: static.
        variables: their `rest` is replaced.
        x: `[N, ...]`; 512 examples are plenty.
    """
    if not jax.tree.leaves(variables.rest):
        return variables
    # Any key will do: the means are wanted with dropout off, which a zero rate gives.
    knobs = {"batch_norm_momentum": 0.0, "dropout": jnp.zeros(())}
    _, rest = model.apply(variables, x, train=True, key=jax.random.key(0), knobs=knobs)
    return Variables(variables.params, rest)
