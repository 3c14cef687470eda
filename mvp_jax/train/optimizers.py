"""The optimisers of the library: optax's, with learning rate and weight decay as values of their state."""

import functools
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core import trees
from mvp_jax.core.types import Params, PyTree

OptimizerName: TypeAlias = Literal["sgd", "nesterov", "adamw", "either"]

OPTIMIZERS: tuple[OptimizerName, ...] = get_args(OptimizerName)

Decayed: TypeAlias = Callable[[PyTree], PyTree] | Literal["all", "kernels"]
"""Which parameters decay: `all`, `kernels` (no biases, norms, tokens and positions), or a function from the parameters
to booleans of their structure."""


def kernels(params: Params) -> PyTree:
    """Returns booleans of the parameters' structure: True for those named `kernel`, which transformers let decay."""
    return trees.select(params, (r"(.*/)?kernel",))


def optimizer(
    name: OptimizerName = "sgd",
    *,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    clip: float | None = None,
    sgd_rate: float = 1.0,
    decayed: Decayed | None = None,
) -> optax.GradientTransformation:
    """Returns an optimiser whose learning rate and weight decay are values of its state, and so traced.

    It is cached: equal arguments give the same object, so that compiled functions that close over it are reused.

    Args:
        name: `sgd`: with momentum; `nesterov`: with Nesterov's momentum; `adamw`; or `either`: both SGD and AdamW are
            computed, and `adaptive` of the run's settings says which counts, so that members of one population can
            differ in it.
        momentum: momentum of SGD.
        weight_decay: coupled for SGD, decoupled for AdamW; the run's settings may have another.
        clip: gradients are scaled down to this global norm; `None`: never.
        sgd_rate: for `either`: SGD's learning rate as a multiple of the given one.
        decayed: which parameters decay, see `Decayed`; `None`: all.

    Raises:
        ValueError: for another name, or other words for `decayed`.

    >>> optimizer("sgd") is optimizer("sgd", momentum=0.9)
    True
    """
    if name not in OPTIMIZERS:
        raise ValueError(
            f"unknown optimizer {name!r}; choose one of {', '.join(OPTIMIZERS)}, or pass an optax transformation"
        )
    if isinstance(decayed, str):
        if decayed not in ("all", "kernels"):
            raise ValueError(f"decayed is {decayed!r}; choose 'all' or 'kernels', or give a function of the parameters")
        decayed = kernels if decayed == "kernels" else None
    return _optimizer(name, momentum, weight_decay, clip, sgd_rate, decayed)


@functools.lru_cache
def _optimizer(
    name: OptimizerName,
    momentum: float,
    weight_decay: float,
    clip: float | None,
    sgd_rate: float,
    decayed: Callable[[PyTree], PyTree] | None,
) -> optax.GradientTransformation:
    first = optax.identity() if clip is None else optax.clip_by_global_norm(clip)

    def sgd(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        descent = optax.sgd(learning_rate, momentum, nesterov=name == "nesterov")
        return optax.chain(first, optax.add_decayed_weights(weight_decay, decayed), descent)

    def adamw(learning_rate: Any, weight_decay: Any) -> optax.GradientTransformation:
        return optax.chain(first, optax.adamw(learning_rate, weight_decay=weight_decay, mask=decayed))

    def either(learning_rate: Any, weight_decay: Any, adaptive: Any) -> optax.GradientTransformation:
        both = (sgd(learning_rate * sgd_rate, weight_decay), adamw(learning_rate, weight_decay))

        def init(params: PyTree) -> PyTree:
            return tuple(tx.init(params) for tx in both)

        def update(grads: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
            (slow, fast), after = zip(
                *(tx.update(grads, s, params) for tx, s in zip(both, state, strict=True)), strict=True
            )
            return jax.tree.map(lambda a, b: jnp.where(adaptive > 0.5, b, a), slow, fast), after

        return optax.GradientTransformation(init, update)

    if name == "either":
        return optax.inject_hyperparams(either)(learning_rate=0.0, weight_decay=weight_decay, adaptive=1.0)
    return optax.inject_hyperparams(adamw if name == "adamw" else sgd)(learning_rate=0.0, weight_decay=weight_decay)
