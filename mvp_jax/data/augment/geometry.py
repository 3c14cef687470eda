"""Where pixels lie: crops, mirroring, moves, holes.

Every function takes a typed key and a batch of float images `[N, H, W, C]` on the device, and gives images of the same
shape. Strengths may be traced, so that members of a population may each have their own; strength 0 gives the images
back. Each image draws its own variation.
"""

import functools
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import transforms
from mvp_jax.data.augment.transforms import Scalar


def crop(key: Key, x: Array, padding: Scalar = 4, mode: Literal["zeros", "edge", "reflect"] = "zeros") -> Array:
    """Pads each image and crops it at random to its own size.

    So each image moves by a whole number of pixels, uniform in `[-padding, padding]` along both axes.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        padding: the largest move in pixels; a fraction is dropped.
        mode: what lies outside an image: `zeros`, its `edge`, or its reflection, `reflect` (the edge is not repeated).

    Returns:
        The moved images, `[N, H, W, C]`.

    Raises:
        ValueError: for an unknown mode, a negative padding, or images that are not floats `[N, H, W, C]`.

    >>> crop(jax.random.key(0), jnp.ones((1, 4, 4, 1)), padding=0).sum()
    Array(16., dtype=float32)

    Reference: He et al., arXiv:1512.03385, section 4.2.
    """
    transforms.check_images(x, colours=False)
    if mode not in ("zeros", "edge", "reflect"):
        raise ValueError(f"unknown mode {mode!r}; choose 'zeros', 'edge' or 'reflect'")
    return _crop(key, x, transforms.strength("padding", padding), mode)


@functools.partial(jax.jit, static_argnames="mode")
def _crop(key: Key, x: Array, padding: Array, mode: str) -> Array:
    whole = jnp.floor(padding).astype(jnp.int32)
    moves = jax.random.randint(key, (2, x.shape[0]), -whole, whole + 1)
    return _move(_move(x, moves[0], 1, mode), moves[1], 2, mode)


def _move(x: Array, by: Array, axis: int, mode: str) -> Array:
    """Moves image `n` by `by[n]` whole pixels along a spatial axis: entry `i` becomes what entry `i + by[n]` was."""
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

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        probability: with which an image is mirrored, 0 to 1.

    Returns:
        The images, `[N, H, W, C]`.

    Raises:
        ValueError: for a probability outside [0, 1], or images that are not floats `[N, H, W, C]`.

    >>> flip(jax.random.key(0), jnp.arange(2.0).reshape(1, 1, 2, 1), probability=1.0).ravel().tolist()
    [1.0, 0.0]
    """
    transforms.check_images(x, colours=False)
    return _flip(key, x, transforms.strength("probability", probability, 0.0, 1.0))


@jax.jit
def _flip(key: Key, x: Array, probability: Array) -> Array:
    turned = jax.random.uniform(key, (x.shape[0], 1, 1, 1)) < probability
    return jnp.where(turned, x[:, :, ::-1], x)


def shift(key: Key, x: Array, amount: Scalar = 1.0) -> Array:
    """Moves each image by a real number of pixels, uniform in `[-amount, amount]` along both axes.

    Values are interpolated linearly; beyond its edge an image goes on with the edge's values. Meant for small images,
    where a whole pixel is a large step.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        amount: the largest move in pixels.

    Returns:
        The moved images, `[N, H, W, C]`.

    Raises:
        ValueError: for a negative amount, or images that are not floats `[N, H, W, C]`.

    >>> shift(jax.random.key(0), jnp.ones((1, 4, 4, 1)), amount=0.7).sum()
    Array(16., dtype=float32)
    """
    transforms.check_images(x, colours=False)
    return _shift(key, x, transforms.strength("amount", amount))


@jax.jit
def _shift(key: Key, x: Array, amount: Array) -> Array:
    moves = jax.random.uniform(key, (2, x.shape[0]), minval=-1.0) * amount
    return _slide(_slide(x, moves[0], 1), moves[1], 2)


def _slide(x: Array, by: Array, axis: int) -> Array:
    """Moves image `n` by `by[n]` pixels along a spatial axis, interpolating linearly between two pixels."""
    low = jnp.floor(by)
    part = (by - low)[:, None, None, None].astype(x.dtype)
    left = low.astype(jnp.int32)
    return (1 - part) * _move(x, left, axis, "edge") + part * _move(x, left + 1, axis, "edge")


def cutout(key: Key, x: Array, size: Scalar = 8) -> Array:
    """Sets a square of each image to zero; its middle is anywhere in the image, so it may reach over the edge.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        size: the square's side in pixels; a fraction is dropped.

    Returns:
        The images with their holes, `[N, H, W, C]`.

    Raises:
        ValueError: for a negative size, or images that are not floats `[N, H, W, C]`.

    >>> cutout(jax.random.key(0), jnp.ones((1, 8, 8, 1)), size=1).sum()
    Array(63., dtype=float32)

    Reference: DeVries & Taylor, arXiv:1708.04552.
    """
    transforms.check_images(x, colours=False)
    return _cutout(key, x, transforms.strength("size", size))


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


def random_resized_crop(
    key: Key,
    x: Array,
    scale: tuple[Scalar, Scalar] = (0.08, 1.0),
    ratio: tuple[Scalar, Scalar] = (3 / 4, 4 / 3),
) -> Array:
    """Takes a random box out of each image and resizes it to the image's own size.

    The part of the area that a box covers is uniform in `scale`, the logarithm of its width divided by its height is
    uniform in `ratio`, and its sides are rounded to whole pixels. Where ten boxes in a row would reach over the edge,
    the largest box of an allowed shape in the middle of the image is taken.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        scale: least and greatest part of the area, in (0, 1].
        ratio: least and greatest width divided by height. `scale` and `ratio` of (1, 1) give square images back.

    Returns:
        The resized boxes, `[N, H, W, C]`, interpolated linearly.

    Raises:
        ValueError: for numbers out of range, or images that are not floats `[N, H, W, C]`.

    >>> random_resized_crop(jax.random.key(0), jnp.ones((1, 4, 4, 1))).sum().round(4)
    Array(16., dtype=float32)

    Reference: Szegedy et al., arXiv:1409.4842, section 6.
    """
    transforms.check_images(x, colours=False)
    areas, shapes = transforms.strengths("scale", scale, 1e-6, 1.0), transforms.strengths("ratio", ratio, 1e-6)
    return _resized_crop(key, x, areas, shapes)


@jax.jit
def _resized_crop(key: Key, x: Array, scale: tuple[Array, Array], ratio: tuple[Array, Array]) -> Array:
    top, left, height, width = _boxes(key, x.shape[:3], scale, ratio)
    rows, columns = _stretch(top, height, x.shape[1]), _stretch(left, width, x.shape[2])
    return transforms.along_both(rows, columns, x)


def _boxes(key: Key, shape: tuple[int, ...], scale: tuple[Array, Array], ratio: tuple[Array, Array]) -> Any:
    """Draws a box in each image; returns their tops, lefts, heights and widths, whole numbers as floats `[N]`."""
    n, height, width = shape
    k_area, k_shape, k_place = jax.random.split(key, 3)
    area = height * width * jax.random.uniform(k_area, (10, n), minval=scale[0], maxval=scale[1])
    logs = jnp.log(ratio[0]), jnp.log(ratio[1])
    wide = jnp.exp(jax.random.uniform(k_shape, (10, n), minval=logs[0], maxval=logs[1]))
    w, h = jnp.round(jnp.sqrt(area * wide)), jnp.round(jnp.sqrt(area / wide))
    fits = (w >= 1) & (h >= 1) & (w <= width) & (h <= height)
    first = jnp.argmax(fits, 0)[None]
    middle_w = jnp.clip(jnp.round(height * ratio[1]), 1, width)
    middle_h = jnp.clip(jnp.round(width / ratio[0]), 1, height)
    fits = fits.any(0)
    w = jnp.where(fits, jnp.take_along_axis(w, first, 0)[0], middle_w)
    h = jnp.where(fits, jnp.take_along_axis(h, first, 0)[0], middle_h)
    lot = jax.random.uniform(k_place, (2, n))
    top = jnp.where(fits, jnp.floor(lot[0] * (height - h + 1)), (height - h) // 2)
    left = jnp.where(fits, jnp.floor(lot[1] * (width - w + 1)), (width - w) // 2)
    return top, left, h, w


def _stretch(start: Array, length: Array, size: int) -> Array:
    """The weights `[N, size, size]` by which each image's stretch of an axis is resized to the whole axis."""
    at, out = jnp.arange(size, dtype=jnp.float32), jnp.arange(size, dtype=jnp.float32)[:, None]
    start, length = start[:, None, None], length[:, None, None]
    middle = start + (out + 0.5) * (length / size) - 0.5
    inside = (at >= start) & (at < start + length)
    weights = jnp.where(inside, jnp.maximum(1 - jnp.abs(at - middle), 0), 0)
    return weights / jnp.sum(weights, -1, keepdims=True)
