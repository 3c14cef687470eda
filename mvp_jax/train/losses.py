"""Losses of single examples, and the accuracy that goes with them."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import optax

from mvp_jax.core.types import Array

Loss: TypeAlias = Callable[..., Array]
"""`(outputs [N, ...], labels [N, ...]) -> losses [N]`, or losses `[N, ...]` of parts of an example, such as the tokens
of a text: their mean is minimised. Called with `smoothing` and `classes` too if the run's settings have them."""


def cross_entropy(
    logits: Array, labels: Array, *, smoothing: Array | float | None = None, classes: Array | int | None = None
) -> Array:
    r"""Softmax cross-entropy of each example in nats, for labels or for distributions over classes.

    With smoothing $s$ and $C$ classes a target $t$ (one-hot for a label) becomes $(1-s)\,t + s/C$.

    Args:
        logits: `[..., Y]`.
        labels: integer labels `[...]`, or floats `[..., Y]` whose last axis sums to 1, such as those of mixed images.
        smoothing: `s` in [0, 1), may be traced.
        classes: `C`, may be traced; logits beyond the first `C` are disregarded. `None`: `Y`.

    Returns:
        `[...]`.

    Raises:
        ValueError: for labels of another shape.

    >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([0]), smoothing=0.1, classes=2).round(4)
    Array([0.6931], dtype=float32)
    >>> cross_entropy(jnp.zeros((1, 4)), jnp.array([[0.5, 0.5, 0.0, 0.0]]), classes=2).round(4)
    Array([0.6931], dtype=float32)

    Reference: Szegedy et al. 2016 (arXiv:1512.00567), section 7; Zhang et al. 2018 (arXiv:1710.09412), section 2.
    """
    integer = jnp.issubdtype(labels.dtype, jnp.integer)
    if labels.shape != (logits.shape[:-1] if integer else logits.shape):
        raise ValueError(
            f"labels are {labels.dtype}{list(labels.shape)} and logits {list(logits.shape)}; expected integers "
            f"{list(logits.shape[:-1])}, or floats {list(logits.shape)} such as jax.nn.one_hot(labels, classes)"
        )
    own = None if classes is None else jnp.broadcast_to(jnp.arange(logits.shape[-1]) < classes, logits.shape)
    if integer and smoothing is None:
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, labels, where=own)
    targets = jax.nn.one_hot(labels, logits.shape[-1]) if integer else labels
    if smoothing is not None:
        count = logits.shape[-1] if classes is None else classes
        targets = (1.0 - jnp.asarray(smoothing)) * targets + jnp.asarray(smoothing) / count
    return optax.losses.softmax_cross_entropy(logits, targets, where=own)


def restrict(logits: Array, classes: Array | int) -> Array:
    """Returns logits `[..., Y]` with those beyond the first `classes` (may be traced) at -inf, so never the largest."""
    return jnp.where(jnp.arange(logits.shape[-1]) < classes, logits, -jnp.inf)


def accuracy(outputs: Array, labels: Array) -> Array:
    """Fraction of the labels that have the largest output, in [0, 1], as a scalar.

    It is `nan`, so that metrics have one structure for all losses, unless the labels are classes: integers in the shape
    of the outputs without their last axis, which has at least two entries.

    >>> float(accuracy(jnp.array([[0.0, 1.0], [2.0, 1.0]]), jnp.array([1, 1])))
    0.5
    >>> float(accuracy(jnp.ones((2, 1)), jnp.ones(2)))
    nan
    """
    classes = jnp.issubdtype(labels.dtype, jnp.integer) and outputs.shape[:-1] == labels.shape and outputs.ndim
    if not classes or outputs.shape[-1] < 2:
        return jnp.full((), jnp.nan)
    return jnp.mean(jnp.argmax(outputs, -1) == labels)
