"""What augmentations share: their type, how they are applied in turn, how images are normalised, what they refuse."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array, Key

BatchTransform: TypeAlias = Callable[[Key, Array], Array]
"""`(key, images [N, H, W, C]) -> images`, on the device; strengths are bound by `functools.partial`."""

Scalar: TypeAlias = Any
"""A Python number or a traced scalar."""


def apply(key: Key, x: Array, fns: Sequence[BatchTransform]) -> Array:
    """Applies several augmentations to a batch of images, one after the other, each with a key of its own.

    Args:
        key: a typed key; augmentation `i` gets `fold_in(key, i)`.
        x: the images, floats `[N, H, W, C]`.
        fns: functions of `(key, x)`, such as `augment.flip`; bind strengths by `functools.partial`.

    Returns:
        The changed images, `[N, H, W, C]`.

    Raises:
        ValueError: if the images are not floats `[N, H, W, C]`.

    >>> import functools
    >>> from mvp_jax.data import augment
    >>> fns = (functools.partial(augment.crop, padding=1), augment.flip)
    >>> augment.apply(jax.random.key(0), jnp.ones((2, 8, 8, 1)), fns).shape
    (2, 8, 8, 1)
    """
    check_images(x, colours=False)
    for i, fn in enumerate(fns):
        x = fn(jax.random.fold_in(key, i), x)
    return x


def normalise(x: Array, mean: Any, std: Any) -> Array:
    """Normalises images on the device: `(x - mean) / std` in float32, where uint8 images first become `x / 255`.

    Args:
        x: images `[..., C]`, floats or uint8.
        mean: what is subtracted, a scalar or `[C]`, in units of `[0, 1]`.
        std: what the images are then divided by, a scalar or `[C]`.

    Returns:
        The normalised images, float32 of the same shape.

    >>> normalise(jnp.array([[[[0, 255]]]], jnp.uint8), mean=0.5, std=0.5).round(3).tolist()
    [[[[-1.0, 1.0]]]]
    """
    return _normalise(jnp.asarray(x), jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


@jax.jit
def _normalise(x: Array, mean: Array, std: Array) -> Array:
    scale = 255.0 if x.dtype == jnp.uint8 else 1.0
    return (x.astype(jnp.float32) / scale - mean) / std


def in_unit(fn: BatchTransform, mean: Any, std: Any) -> BatchTransform:
    """Makes an augmentation of images in [0, 1] one of images that were normalised by `(x - mean) / std`.

    The images are brought back to [0, 1] (and cut to it), changed by `fn`, and normalised again.

    Args:
        fn: an augmentation that expects [0, 1], such as `augment.rand_augment`.
        mean: what was subtracted from the images, a scalar or `[C]`.
        std: what they were then divided by, a scalar or `[C]`.

    Returns:
        A function `(key, x [N, H, W, C]) -> [N, H, W, C]`.

    Raises:
        ValueError: if `std` is not positive everywhere.

    >>> seen = in_unit(lambda key, x: x * 2, mean=0.5, std=0.25)(jax.random.key(0), jnp.full((1, 1, 1, 1), -1.0))
    >>> seen.item()  # 0.25 becomes 0.5
    0.0
    """
    mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
    if not (std > 0).all():
        raise ValueError(f"std is {std.tolist()}; expected positive numbers, those that the images were divided by")

    def normalised(key: Key, x: Array) -> Array:
        unit = jnp.clip(x * jnp.asarray(std, x.dtype) + jnp.asarray(mean, x.dtype), 0, 1)
        return (fn(key, unit) - jnp.asarray(mean, x.dtype)) / jnp.asarray(std, x.dtype)

    return normalised


def check_images(x: Array, colours: bool = True) -> None:
    """Refuses what is not a batch of float images.

    Args:
        x: what was given as images.
        colours: whether the images must also have 1 or 3 channels, because their colours are looked at.

    Raises:
        ValueError: if `x` is not floats `[N, H, W, C]`, or has another number of channels.
    """
    if jnp.ndim(x) != 4 or not jnp.issubdtype(x.dtype, jnp.floating) or (colours and x.shape[-1] not in (1, 3)):
        raise ValueError(
            f"images are {x.dtype}{list(jnp.shape(x))}; expected floats [N, H, W, C]"
            + (", of 1 or 3 colours in [0, 1]" if colours else "")
            + " (`augment.normalise` makes them of uint8)"
        )


def strength(name: str, value: Scalar, least: float = 0.0, most: float | None = None) -> Array:
    """Returns a strength in float32; one that is known (not traced) is checked.

    Args:
        name: what the message calls it.
        value: a number, a traced scalar, or an array of either.
        least: the least value that is allowed.
        most: the greatest value that is allowed; `None`: no bound.

    Returns:
        `value` as a float32 array.

    Raises:
        ValueError: if it is a known scalar outside the bounds, or `nan`.
    """
    if not isinstance(value, jax.core.Tracer) and jnp.ndim(value) == 0:
        number = float(value)
        if not number >= least or (most is not None and number > most):
            upper = "" if most is None else f" and at most {most:g}"
            raise ValueError(f"{name} is {number:g}; expected a number of at least {least:g}{upper}")
    return jnp.asarray(value, jnp.float32)


def strengths(name: str, value: Any, least: float, most: float | None = None) -> tuple[Array, Array]:
    """Returns the ends of a range of strengths in float32; ends that are known (not traced) are checked.

    Args:
        name: what the message calls the range.
        value: two numbers or traced scalars, the lesser first.
        least: the least value that is allowed.
        most: the greatest value that is allowed; `None`: no bound.

    Returns:
        Both ends as float32 arrays.

    Raises:
        ValueError: if these are not two values, one of them is out of bounds, or the lesser is not first.
    """
    if not hasattr(value, "__len__") or len(value) != 2:
        raise ValueError(f"{name} is {value}; expected two numbers, the least and the greatest")
    low, high = (strength(name, v, least, most) for v in value)
    if not any(isinstance(v, jax.core.Tracer) for v in (low, high)) and low.ndim == high.ndim == 0 and low > high:
        raise ValueError(f"{name} is ({float(low):g}, {float(high):g}); expected the least first")
    return low, high


def along_both(rows: Array, columns: Array, x: Array) -> Array:
    """Maps the rows and the columns of each image linearly; exact where a map is the identity.

    Args:
        rows: `[N, P, H]`, or `[N, H, H]` to keep the height: what each row of the result takes of the image's rows.
        columns: `[N, Q, W]`, the same for columns.
        x: images `[N, H, W, C]`.

    Returns:
        Images `[N, P, Q, C]` of the dtype of `x`.
    """
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    tall = jnp.einsum("noh,nhwc->nowc", rows, x.astype(jnp.float32), **exact)
    return jnp.einsum("npw,nowc->nopc", columns, tall, **exact).astype(x.dtype)
