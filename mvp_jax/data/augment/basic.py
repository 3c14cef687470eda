"""Augmentation: pure functions of a key and a batch of images `[N, H, W, C]`.

Every strength is traced, so members of a population may each have their own; strength 0 gives the images back
unchanged. Each image draws its own variation.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key

Transform: TypeAlias = Callable[[Key, Array], Array]

Scalar: TypeAlias = Any
"""A Python number or a traced scalar."""


def _check(x: Array) -> None:
    if jnp.ndim(x) != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(
            f"images are {x.dtype}{list(jnp.shape(x))}; expected floats [N, H, W, C] (`normalise` makes them of uint8)"
        )


def _strength(name: str, value: Scalar, most: float | None = None) -> Array:
    if not isinstance(value, jax.core.Tracer) and jnp.ndim(value) == 0:
        number = float(value)
        if not number >= 0 or (most is not None and number > most):
            raise ValueError(f"{name} is {number}; expected {'at least 0' if most is None else f'0 to {most}'}")
    return jnp.asarray(value, jnp.float32)


def batch(key: Key, x: Array, fns: Sequence[Transform]) -> Array:
    """Applies transforms in turn, each with its own key.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats.
        fns: functions of `(key, x)`; bind strengths by `functools.partial`.

    Returns:
        `[N, H, W, C]`.

    >>> fns = (functools.partial(crop, padding=1), flip)
    >>> batch(jax.random.key(0), jnp.ones((2, 8, 8, 1)), fns).shape
    (2, 8, 8, 1)
    """
    _check(x)
    for i, fn in enumerate(fns):
        x = fn(jax.random.fold_in(key, i), x)
    return x


def normalise(x: Array, mean: Any, std: Any) -> Array:
    """`(x - mean) / std` in float32, where uint8 images first become `x / 255`.

    Args:
        x: `[..., C]`, floats or uint8.
        mean: scalar or `[C]`.
        std: scalar or `[C]`.

    Returns:
        float32 of the same shape.

    >>> normalise(jnp.array([[[[0, 255]]]], jnp.uint8), mean=0.5, std=0.5).round(3).tolist()
    [[[[-1.0, 1.0]]]]
    """
    return _normalise(jnp.asarray(x), jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))


@jax.jit
def _normalise(x: Array, mean: Array, std: Array) -> Array:
    scale = 255.0 if x.dtype == jnp.uint8 else 1.0
    return (x.astype(jnp.float32) / scale - mean) / std


def crop(key: Key, x: Array, padding: Scalar = 4, mode: Literal["zeros", "edge", "reflect"] = "zeros") -> Array:
    """Random crops of the padded images: each moves by whole pixels, uniform in [-padding, padding] along both axes.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats.
        padding: a whole number of pixels; a fraction is dropped.
        mode: what lies outside the image: zeros, its edge, or its reflection (edge not repeated).

    Returns:
        `[N, H, W, C]`.

    Raises:
        ValueError: for an unknown mode, a negative padding, or images that are not floats `[N, H, W, C]`.

    >>> crop(jax.random.key(0), jnp.ones((1, 4, 4, 1)), padding=0).sum()
    Array(16., dtype=float32)

    Reference: He et al., arXiv:1512.03385, section 4.2.
    """
    _check(x)
    if mode not in ("zeros", "edge", "reflect"):
        raise ValueError(f"unknown mode {mode!r}; choose 'zeros', 'edge' or 'reflect'")
    return _crop(key, x, _strength("padding", padding), mode)


@functools.partial(jax.jit, static_argnames="mode")
def _crop(key: Key, x: Array, padding: Array, mode: str) -> Array:
    whole = jnp.floor(padding).astype(jnp.int32)
    moves = jax.random.randint(key, (2, x.shape[0]), -whole, whole + 1)
    return _move(_move(x, moves[0], 1, mode), moves[1], 2, mode)


def _move(x: Array, by: Array, axis: int, mode: str) -> Array:
    """Takes index `i + by[n]` of image `n` along a spatial axis."""
    size = x.shape[axis]
    at = jnp.arange(size) + by[:, None]
    inside = (at >= 0) & (at < size)
    if mode == "reflect" and size > 1:
        at = size - 1 - jnp.abs(at % (2 * size - 2) - (size - 1))
    at = jnp.clip(at, 0, size - 1)
    across = (slice(None), slice(None), None, None) if axis == 1 else (slice(None), None, slice(None), None)
    moved = jnp.take_along_axis(x, at[across], axis=axis, mode="clip")
    return jnp.where(inside[across], moved, 0) if mode == "zeros" else moved


def flip(key: Key, x: Array, probability: Scalar = 0.5) -> Array:
    """Mirrors each image left to right with the given probability.

    >>> flip(jax.random.key(0), jnp.arange(2.0).reshape(1, 1, 2, 1), probability=1.0).ravel().tolist()
    [1.0, 0.0]
    """
    _check(x)
    return _flip(key, x, _strength("probability", probability, 1.0))


@jax.jit
def _flip(key: Key, x: Array, probability: Array) -> Array:
    turned = jax.random.uniform(key, (x.shape[0], 1, 1, 1)) < probability
    return jnp.where(turned, x[:, :, ::-1], x)


def shift(key: Key, x: Array, amount: Scalar = 1.0) -> Array:
    """Moves each image by a real number of pixels, uniform in [-amount, amount] along both axes.

    Values are interpolated linearly; beyond the edge the image goes on with its edge. For small images, where a whole
    pixel is a large step.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats.
        amount: the largest move in pixels.

    Returns:
        `[N, H, W, C]`.

    Raises:
        ValueError: for a negative amount, or images that are not floats `[N, H, W, C]`.

    >>> shift(jax.random.key(0), jnp.ones((1, 4, 4, 1)), amount=0.7).sum()
    Array(16., dtype=float32)
    """
    _check(x)
    return _shift(key, x, _strength("amount", amount))


@jax.jit
def _shift(key: Key, x: Array, amount: Array) -> Array:
    moves = jax.random.uniform(key, (2, x.shape[0]), minval=-1.0) * amount
    return _slide(_slide(x, moves[0], 1), moves[1], 2)


def _slide(x: Array, by: Array, axis: int) -> Array:
    """Reads image `n` at `i + by[n]` along a spatial axis, between two pixels if need be."""
    low = jnp.floor(by)
    part = (by - low)[:, None, None, None].astype(x.dtype)
    left = low.astype(jnp.int32)
    return (1 - part) * _move(x, left, axis, "edge") + part * _move(x, left + 1, axis, "edge")


def cutout(key: Key, x: Array, size: Scalar = 8) -> Array:
    """Sets a square of each image to zero; its middle is anywhere in the image, so it may stand over the edge.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats.
        size: the side in whole pixels; a fraction is dropped.

    Returns:
        `[N, H, W, C]`.

    Raises:
        ValueError: for a negative size, or images that are not floats `[N, H, W, C]`.

    >>> cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1)), size=1).sum()
    Array(63., dtype=float32)

    Reference: DeVries & Taylor, arXiv:1708.04552.
    """
    _check(x)
    return _cutout(key, x, _strength("size", size))


@jax.jit
def _cutout(key: Key, x: Array, size: Array) -> Array:
    n, height, width = x.shape[:3]
    side = jnp.floor(size).astype(jnp.int32)
    ky, kx = jax.random.split(key)

    def inside(k: Key, length: int) -> Array:
        start = jax.random.randint(k, (n, 1), 0, length) - side // 2
        at = jnp.arange(length)
        return (at >= start) & (at < start + side)

    hole = inside(ky, height)[:, :, None, None] & inside(kx, width)[:, None, :, None]
    return jnp.where(hole, 0, x)


def noise(key: Key, x: Array, scale: Scalar = 0.1) -> Array:
    """Adds normal noise with the given standard deviation to every value.

    >>> bool((noise(jax.random.key(0), jnp.ones((1, 2, 2, 1)), scale=0.0) == 1).all())
    True
    """
    _check(x)
    return _noise(key, x, _strength("scale", scale))


@jax.jit
def _noise(key: Key, x: Array, scale: Array) -> Array:
    return x + scale.astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype)


def brightness(key: Key, x: Array, amount: Scalar = 0.2) -> Array:
    """Multiplies each image by a factor uniform in [1 - amount, 1 + amount].

    Meant for images before normalisation; nothing is clipped.

    >>> brightness(jax.random.key(0), jnp.zeros((1, 1, 1, 1)), amount=0.5).item()
    0.0
    """
    _check(x)
    return _brightness(key, x, _strength("amount", amount))


@jax.jit
def _brightness(key: Key, x: Array, amount: Array) -> Array:
    factor = 1 + amount * jax.random.uniform(key, (x.shape[0], 1, 1, 1), minval=-1.0)
    return x * factor.astype(x.dtype)
