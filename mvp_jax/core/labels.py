"""Labels of examples: what every function of labels checks first, and how examples that do not count are left out."""

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array


def weights(labels: Array, where: Array | None) -> tuple[Array, Array]:
    """Labels to compute with where only some examples count.

    Args:
        labels: int[N].
        where: bool[N], the examples that count; `None`: all.

    Returns:
        `labels` with 0 where an example does not count (so that it can index), and float32[N]: 1.0 for the examples
        that count, else 0.0.
    """
    if where is None:
        return labels, jnp.ones(labels.shape, jnp.float32)
    return jnp.where(where, labels, 0), where.astype(jnp.float32)


def one_hot(labels: Array, num_classes: int, weights: Array) -> Array:
    """float32[N, num_classes]: the weight of the example in the column of its label, else 0."""
    return jax.nn.one_hot(labels, num_classes, dtype=jnp.float32) * weights[:, None]


def _concrete(*values: Array | None) -> bool:
    return not any(isinstance(v, jax.core.Tracer) for v in values)


def check_rows(rows: Array, labels: Array, name: str) -> None:
    """Raises `ValueError` unless `rows` is `[N, ...]` of two axes and `labels` `[N]`; `name` is that of the rows."""
    if len(jnp.shape(rows)) != 2 or jnp.shape(labels) != jnp.shape(rows)[:1]:
        raise ValueError(
            f"{name} of shape {jnp.shape(rows)} for labels of shape {jnp.shape(labels)}; "
            "give [N, ...] and [N], and vmap over tasks"
        )


def check(labels: Array, num_classes: int, where: Array | None = None, name: str = "labels") -> None:
    """Raises `ValueError` unless there is at least one label and all lie in `[0, num_classes)`.

    Args:
        labels: int[N]. Under `jit` only the shape is checked.
        num_classes: how many classes there are.
        where: bool[N], the labels that count (default all).
        name: what the labels are called in the error.

    >>> check(jnp.array([0, 3]), 3)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: labels outside the classes: [3]; 3 classes allow 0 to 2. Relabel ...
    """
    if len(jnp.shape(labels)) != 1 or jnp.shape(labels)[0] == 0:
        raise ValueError(f"{name} of shape {jnp.shape(labels)}; give int[N] with at least one example")
    if where is not None and jnp.shape(where) != jnp.shape(labels):
        raise ValueError(f"where has shape {jnp.shape(where)} for labels of shape {jnp.shape(labels)}; give bool[N]")
    if not _concrete(labels, where):
        return
    values = np.asarray(labels)
    values = values if where is None else values[np.asarray(where)]
    if values.size == 0:
        raise ValueError("`where` leaves no example; at least one must count")
    if values.min() < 0 or values.max() >= num_classes:
        wrong = sorted(set(values[(values < 0) | (values >= num_classes)].tolist()))[:5]
        raise ValueError(
            f"{name} outside the classes: {wrong}; {num_classes} classes allow 0 to {num_classes - 1}. "
            "Relabel the task's classes from 0, or raise the number of classes"
        )


def check_probs(probs: Array, where: Array | None) -> None:
    """Raises `ValueError` unless the rows of `probs` that count sum to 1; under `jit` nothing is checked."""
    if not _concrete(probs, where):
        return
    values = np.asarray(probs, np.float64)
    values = values if where is None else values[np.asarray(where)]
    sums = values.sum(axis=1)
    if not (values.min() >= 0 and np.abs(sums - 1).max() < 1e-2):
        raise ValueError(
            f"source_probs from {values.min():.3g}, rows summing to {sums.min():.3g} .. {sums.max():.3g}; "
            "each row must be probabilities that sum to 1: apply a softmax to logits first"
        )


__all__ = ["check", "check_probs", "check_rows", "one_hot", "weights"]
