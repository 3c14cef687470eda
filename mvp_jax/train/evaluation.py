"""What a model computes for many examples: logits, features, loss, accuracy; and new batch statistics.

Everything is a pure function of its arguments and works under `jax.vmap` over members.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.models.api import Model
from mvp_jax.train.fitting import loops_on_host
from mvp_jax.train.losses import Loss, accuracy, cross_entropy
from mvp_jax.train.stepping import Metrics


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


def infer(
    model: Model,
    variables: Variables,
    x: Any,
    *,
    batch: int = 256,
    read: Callable[[Any], Any] | None = None,
) -> tuple[Array, Array]:
    """Returns logits `[N, Y]` and features `[N, F]` of many examples in evaluation mode, computed batch by batch.

    Args:
        model: static.
        variables: of one model (`vmap` for more).
        x: inputs `[N, ...]` on the device; with `read`, anything of length `N` on the host that can be sliced.
        batch: examples at a time.
        read: gives the inputs `[n, ...]` of a slice of `x`. Only one batch is then on the device at a time, and logits
            and features are NumPy arrays. `None`: `x` are the inputs.
    """
    if read is not None:
        return _infer_read(model, variables, x, batch=batch, read=read)
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


def _infer_read(model: Model, variables: Variables, x: Any, *, batch: int, read: Callable[[Any], Any]) -> Any:
    parts = []
    for start in range(0, len(x), batch):
        own = read(x[start : start + batch])
        short = min(batch, len(x)) - len(own)  # a smaller part would compile anew
        whole = np.concatenate([own, np.zeros((short, *own.shape[1:]), own.dtype)])
        seen = _infer(model, variables, jnp.asarray(whole))
        parts.append([np.asarray(part)[: len(own)] for part in seen])
    return tuple(np.concatenate(part) for part in zip(*parts, strict=True))


@functools.partial(jax.jit, static_argnames=("loss",))
def _judge(outputs: Array, labels: Array, *, loss: Loss) -> Metrics:
    return {"accuracy": accuracy(outputs, labels), "loss": jnp.mean(loss(outputs, labels))}


def evaluate(
    model: Model, variables: Variables, data: Batch, *, batch: int = 256, loss: Loss = cross_entropy
) -> Metrics:
    """Returns how good a model's outputs are on all of `data`, as device values.

    Args:
        model: static.
        variables: of one model (`vmap` for more).
        data: `{"x": [N, ...], "y": [N, ...]}`; labels as the loss takes them, `int32[N]` by default.
        batch: examples at a time.
        loss: see `train.Loss`; static, so give the same function every time.

    Returns:
        `loss`: the mean of the loss, by default of the cross-entropy in nats; `accuracy`: in [0, 1], or `nan` where
        labels are not classes (see `train.accuracy`).
    """
    outputs, _ = infer(model, variables, data["x"], batch=batch)
    return _judge(outputs, data["y"], loss=loss)


@functools.partial(jax.jit, static_argnames=("model",))
def reestimate(model: Model, variables: Variables, x: Array) -> Variables:
    """Returns the variables with the batch statistics of one batch, taken layer after layer in a single forward pass.

    A pruned network's activations have other means and variances than the dense one's; without this, a fresh
    mask is judged on the wrong statistics. Variables of models without batch norm come back unchanged.

    Args:
        model: static.
        variables: their `rest` is replaced.
        x: the inputs of the batch, `[N, ...]`; 512 examples are plenty.
    """
    if not jax.tree.leaves(variables.rest):
        return variables
    # Any key will do: the means are wanted with dropout off, which a zero rate gives.
    knobs = {"batch_norm_momentum": 0.0, "dropout": jnp.zeros(())}
    _, rest = model.apply(variables, x, train=True, key=jax.random.key(0), knobs=knobs)
    return Variables(variables.params, rest)
