"""The leave-one-out error of a linear head, in closed form: how well a model's features tell a task's labels."""

import functools
import math

import jax
import jax.numpy as jnp

from mvp_jax.core import labels as labels_lib
from mvp_jax.core import layouts
from mvp_jax.core.types import Array

# As in `similarity`: models that are nearly as good differ in digits that a GPU's TF32 products would blur.
_PRECISE = jax.lax.Precision.HIGHEST


def press(
    features: Array,
    targets: Array,
    num_classes: int | None = None,
    *,
    ridge: float | Array = 0.1,
    where: Array | None = None,
) -> Array:
    """Minus the leave-one-out error of a ridge regression from a model's features to the labels, in closed form.

    Features are standardised and divided by `sqrt(F)`, and a column of ones is appended: `X [N, F + 1]`. With
    `H = X (XᵀX + ridge·I)⁻¹ Xᵀ` and one-hot labels `Y`, the error on example `i` of the regression that is fitted
    without it is `(Y - HY)_i / (1 - H_ii)`, so that nothing is fitted N times. The mean of its squares over examples
    and outputs is the predicted residual error sum of squares (PRESS), divided by their number.

    Args:
        features: `[..., F]`, a model's features of the target's examples; leading axes, as of tokens, count as
            examples.
        targets: labels `int[...]` in `[0, num_classes)`; or, without `num_classes`, numbers to be predicted,
            `float[..., Y]` or `float[...]`.
        num_classes: the target's classes, static; `None`: `targets` are numbers.
        ridge: the strength of the regression's penalty, positive; traced.
        where: bool[...], the examples that count (default all); at least one.

    Returns:
        A float32 scalar, at most 0; higher = the features tell the labels better.

    Raises:
        ValueError: for shapes that do not fit, or labels outside the classes.

    >>> labels = jnp.array([0, 0, 0, 1, 1, 1])
    >>> apart = jnp.array([[-1.1], [-0.9], [-1.0], [1.0], [0.9], [1.1]])
    >>> mixed = jnp.array([[-1.1], [0.9], [-1.0], [1.0], [-0.9], [1.1]])
    >>> bool(press(apart, labels, 2) > press(mixed, labels, 2))
    True

    Reference: Allen, "The Relationship between Variable Selection and Data Augmentation and a Method for Prediction",
    Technometrics 16, 1974.
    """
    lead = jnp.shape(features)[:-1]
    outputs = jnp.shape(targets)[len(lead) :]
    if not lead or jnp.shape(targets)[: len(lead)] != lead or len(outputs) > (num_classes is None):
        raise ValueError(
            f"features of shape {jnp.shape(features)} and targets of shape {jnp.shape(targets)}; give features "
            "[..., F] with a label int[...] each, or numbers float[..., Y] without num_classes"
        )
    count = math.prod(lead)
    flat = None if where is None else jnp.reshape(where, (count,))
    x = jnp.reshape(layouts.whole(features), (count, jnp.shape(features)[-1]))
    y = jnp.reshape(layouts.whole(targets), (count, -1))
    if num_classes is not None:
        labels_lib.check_rows(x, y[:, 0], "features")
        labels_lib.check(y[:, 0], num_classes, flat, "targets")
    return _press(x, y, num_classes, jnp.asarray(ridge, jnp.float32), layouts.whole(flat))


@functools.partial(jax.jit, static_argnames="num_classes")
def _press(features: Array, targets: Array, num_classes: int | None, ridge: Array, where: Array | None) -> Array:
    n, width = features.shape
    weights = jnp.ones(n) if where is None else where.astype(jnp.float32)
    seen, f = weights[:, None] > 0, features.astype(jnp.float32)
    mean, std = jnp.mean(f, 0, where=seen), jnp.std(f, 0, where=seen)
    f = (f - mean) * jnp.where(std > 1e-6, 1 / jnp.maximum(std, 1e-6), 0.0) / jnp.sqrt(width)
    # An example that is left out is a row of zeros in both, which changes no sum below.
    x = jnp.where(seen, jnp.concatenate([f, jnp.ones((n, 1))], 1), 0.0)
    y = targets.astype(jnp.float32) if num_classes is None else labels_lib.one_hot(targets[:, 0], num_classes, weights)
    y = jnp.where(seen, y, 0.0)
    product = functools.partial(jnp.matmul, precision=_PRECISE)
    dual = n <= width + 1  # the smaller of two systems
    gram = product(x, x.T) if dual else product(x.T, x)
    factor = jax.scipy.linalg.cho_factor(gram + ridge * jnp.eye(len(gram)), lower=True)
    if dual:  # I - H = ridge·(X Xᵀ + ridge·I)⁻¹, whose ratio loses no digits where H is near I; the ridge cancels
        inverse = jax.scipy.linalg.cho_solve(factor, jnp.eye(n))
        error = product(inverse, y) / jnp.diagonal(inverse)[:, None]
    else:
        solved = jax.scipy.linalg.cho_solve(factor, x.T)
        leverage, fitted = jnp.sum(x.T * solved, 0), product(x, product(solved, y))
        error = (y - fitted) / (1 - leverage)[:, None]
    residual = jnp.where(seen, error, 0.0)
    return -jnp.sum(jnp.square(residual)) / (jnp.sum(weights) * y.shape[1])


__all__ = ["press"]
