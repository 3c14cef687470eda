"""Stronger augmentation: crops of many sizes, colours, blur, RandAugment, images mixed with their labels.

As in `basic`: pure functions of a key and a batch of images, strengths traced, each image its own variation,
strength 0 gives the images back. Colours are those of images in [0, 1]; `in_unit` is for normalised ones.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import basic, colours
from mvp_jax.data.augment.basic import Scalar, Transform
from mvp_jax.data.augment.colours import color_jitter, gaussian_blur, random_grayscale


def in_unit(fn: Transform, mean: Any, std: Any) -> Transform:
    """A transform of images in [0, 1], made one of images normalised by `(x - mean) / std`.

    Args:
        fn: such as `rand_augment`.
        mean: scalar or `[C]`.
        std: scalar or `[C]`.

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


def random_resized_crop(
    key: Key,
    x: Array,
    scale: tuple[Scalar, Scalar] = (0.08, 1.0),
    ratio: tuple[Scalar, Scalar] = (3 / 4, 4 / 3),
) -> Array:
    """A random box of each image, resized to the image's own size.

    The box has a share of the area uniform in `scale` and a width by height whose logarithm is uniform in `ratio`, in
    whole pixels; after ten boxes that stand over the edge it is the largest in the middle whose shape is allowed.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats.
        scale: least and greatest share of the area, in (0, 1].
        ratio: least and greatest width by height; (1, 1) for both gives square images back.

    Returns:
        `[N, H, W, C]`, interpolated linearly inside the box.

    Raises:
        ValueError: for numbers out of range, or images that are not floats `[N, H, W, C]`.

    >>> random_resized_crop(jax.random.key(0), jnp.ones((1, 4, 4, 1))).sum().round(4)
    Array(16., dtype=float32)

    Reference: Szegedy et al., arXiv:1409.4842, section 6.
    """
    colours.check(x, colours=False)
    return _resized_crop(key, x, colours.pair("scale", scale, 1e-6, 1.0), colours.pair("ratio", ratio, 1e-6))


@jax.jit
def _resized_crop(key: Key, x: Array, scale: tuple[Array, Array], ratio: tuple[Array, Array]) -> Array:
    top, left, height, width = _boxes(key, x.shape[:3], scale, ratio)
    rows, columns = _stretch(top, height, x.shape[1]), _stretch(left, width, x.shape[2])
    return colours.along_both(rows, columns, x)


def _boxes(key: Key, shape: tuple[int, ...], scale: tuple[Array, Array], ratio: tuple[Array, Array]) -> Any:
    """Top, left, height and width of each image's box: floats `[N]`, whole numbers."""
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
    """`[N, size, size]`: how much each pixel along an axis counts for each of a stretch brought to the full size."""
    at, out = jnp.arange(size, dtype=jnp.float32), jnp.arange(size, dtype=jnp.float32)[:, None]
    start, length = start[:, None, None], length[:, None, None]
    middle = start + (out + 0.5) * (length / size) - 0.5
    inside = (at >= start) & (at < start + length)
    weights = jnp.where(inside, jnp.maximum(1 - jnp.abs(at - middle), 0), 0)
    return weights / jnp.sum(weights, -1, keepdims=True)


def simsiam_views(
    key: Key, x: Array, scale: tuple[Scalar, Scalar] = (0.2, 1.0), jitter: Scalar = 1.0, blur: Scalar = 0.5
) -> tuple[Array, Array]:
    """Two views of each image, drawn independently: crop, colours, grey, blur, flip.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats in [0, 1].
        scale: of `random_resized_crop`.
        jitter: 1 for the published strengths of `color_jitter` (0.4, 0.4, 0.4, 0.1; on 80 % of the views), at most 5.
        blur: share of the views that are blurred; 0 is common for images of 32 pixels.

    Returns:
        Two of `[N, H, W, C]`.

    >>> a, b = simsiam_views(jax.random.key(0), jnp.linspace(0, 1, 48).reshape(1, 4, 4, 3))
    >>> a.shape, bool((a == b).all())
    ((1, 4, 4, 3), False)

    Reference: Chen & He, arXiv:2011.10566, appendix A.
    """
    strength = colours.number("jitter", jitter, 0.0, 5.0)

    def view(key: Key) -> Array:
        keys = jax.random.split(key, 5)
        out = random_resized_crop(keys[0], x, scale)
        tone = 0.4 * strength
        out = color_jitter(keys[1], out, tone, tone, tone, 0.1 * strength, 0.8)
        out = random_grayscale(keys[2], out)
        out = gaussian_blur(keys[3], out, probability=blur)
        return basic.flip(keys[4], out)

    first, second = jax.random.split(key)
    return view(first), view(second)
