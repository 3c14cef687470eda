"""RandAugment: each image is changed by a few operations, drawn from fourteen, all of one strength."""

from typing import Any

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import colours, transforms
from mvp_jax.data.augment.transforms import Scalar

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "rotate",
    "solarize",
    "color",
    "posterize",
    "contrast",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""The names of the operations, in the order of their numbers."""

FILL = 128 / 255
"""The grey that fills what lies outside an image, in [0, 1]."""


def rand_augment(key: Key, x: Array, ops: int = 2, magnitude: Scalar = 9.0, fill: Scalar = FILL) -> Array:
    """Applies `ops` operations to each image, each drawn from `OPERATIONS`, with a random sign where one makes sense.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]` in [0, 1], with 1 or 3 channels.
        ops: how many operations each image gets; static.
        magnitude: the strength of all of them, 0 to 10, may be traced; 0 gives the images back.
        fill: the value in [0, 1] that stands outside an image.

    Returns:
        The changed images, `[N, H, W, C]` in [0, 1].

    Raises:
        ValueError: for numbers out of range, or images that are not floats `[N, H, W, C]` of 1 or 3 colours.

    >>> rand_augment(jax.random.key(0), jnp.full((1, 8, 8, 3), 0.5)).shape
    (1, 8, 8, 3)

    Reference: Cubuk et al., arXiv:1909.13719, section 3 and figure 2.
    """
    transforms.check_images(x)
    if ops < 0:
        raise ValueError(f"ops is {ops}; expected how many operations each image gets, at least 0")
    magnitude = transforms.strength("magnitude", magnitude, 0.0, 10.0)
    fill = transforms.strength("fill", fill, 0.0, 1.0)
    for i in range(ops):
        x = _draw(jax.random.fold_in(key, i), x, magnitude, fill)
    return x


@jax.jit
def _draw(key: Key, x: Array, magnitude: Array, fill: Array) -> Array:
    k_op, k_sign = jax.random.split(key)
    op = jax.random.randint(k_op, x.shape[:1], 0, len(OPERATIONS))
    sign = jax.random.rademacher(k_sign, x.shape[:1], jnp.float32)
    return _operate(x, op, magnitude, sign, fill)


def operate(x: Array, op: Array, magnitude: Scalar, sign: Any = 1.0, fill: Scalar = FILL) -> Array:
    """Applies to each image the operation of its number.

    With `m = magnitude / 10`, rotations are by 30 m degrees, shears by 0.3 m, moves by 150/331 m of the side. Color,
    contrast, brightness and sharpness blend with the grey image, its mean, black and the smoothed image, by a factor
    1 ± 0.9 m. Posterize keeps 8 - 4 m bits, solarize turns over values of at least 1 - m; autocontrast and equalize
    are the same at every m above 0.

    Operations of one kind are one computation over all images, so time and memory grow with the kinds, not with the
    number of operations.

    Args:
        x: the images, floats `[N, H, W, C]` in [0, 1].
        op: `int32[N]`, the number of each image's operation in `OPERATIONS`.
        magnitude: the strength, 0 to 10.
        sign: the direction of moves, turns and blends, 1 or -1, `[N]` or a scalar.
        fill: the value in [0, 1] that stands outside an image.

    Returns:
        The changed images, `[N, H, W, C]`.

    >>> turned = operate(jnp.ones((1, 1, 1, 1)), jnp.array([OPERATIONS.index("solarize")]), 5.0)
    >>> turned.item()
    0.0

    Reference: Cubuk et al., arXiv:1805.09501, table 6.
    """
    sign = jnp.broadcast_to(jnp.asarray(sign, jnp.float32), x.shape[:1])
    return _operate(x, jnp.asarray(op), jnp.asarray(magnitude, jnp.float32), sign, jnp.asarray(fill, jnp.float32))


def _is(op: Array, *names: str) -> Array:
    return jnp.any(jnp.stack([op == OPERATIONS.index(n) for n in names]), 0)[:, None, None, None]


@jax.jit
def _operate(x: Array, op: Array, magnitude: Array, sign: Array, fill: Array) -> Array:
    part = magnitude / 10
    spatial = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
    out = jnp.where(_is(op, *spatial), _affine(x, op, part * sign, fill), x)
    blended = ("color", "contrast", "brightness", "sharpness")
    out = jnp.where(_is(op, *blended), _blended(x, op, 1 + 0.9 * part * sign), out)
    # In levels of 1/256, so that at 0 even white stays.
    out = jnp.where(_is(op, "solarize") & (x * 255 >= 256 * (1 - part)), 1 - x, out)
    kept = jnp.exp2(8 - jnp.round(4 * part))
    coarse = jnp.floor(jnp.round(x * 255) * (kept / 256)) * (256 / kept) / 255
    out = jnp.where(_is(op, "posterize"), coarse.astype(x.dtype), out)
    out = jnp.where(_is(op, "autocontrast"), _stretched(x), out)
    out = jnp.where(_is(op, "equalize"), _equalized(x), out)
    return jnp.where(magnitude > 0, out, x)


def _affine(x: Array, op: Array, amount: Array, fill: Array) -> Array:
    """The pixel from which each comes, nearest; in the plane's coordinates a pixel's middle is at a half."""
    n, height, width, _ = x.shape

    def where(name: str, value: Array, otherwise: Any = 0.0) -> Array:
        return jnp.where(op == OPERATIONS.index(name), value, otherwise)[:, None, None]

    angle = where("rotate", amount * (jnp.pi / 6))
    along_x, along_y = where("shear_x", 0.3 * amount), where("shear_y", 0.3 * amount)
    move_x = where("translate_x", 150 / 331 * width * amount)
    move_y = where("translate_y", 150 / 331 * height * amount)
    turns = _is(op, "rotate")[..., 0]
    # Turns are about the middle, shears about the corner.
    mid_x, mid_y = jnp.where(turns, width / 2, 0.0), jnp.where(turns, height / 2, 0.0)
    u = jnp.arange(width) + 0.5 - mid_x
    v = jnp.arange(height)[:, None] + 0.5 - mid_y
    from_x = jnp.floor(jnp.cos(angle) * u - (jnp.sin(angle) - along_x) * v + mid_x + move_x).astype(jnp.int32)
    from_y = jnp.floor((jnp.sin(angle) + along_y) * u + jnp.cos(angle) * v + mid_y + move_y).astype(jnp.int32)
    inside = (from_x >= 0) & (from_x < width) & (from_y >= 0) & (from_y < height)
    at = jnp.where(inside, from_y * width + from_x, 0).reshape(n, -1, 1)
    found = jnp.take_along_axis(x.reshape(n, height * width, -1), at, axis=1, mode="clip").reshape(x.shape)
    return jnp.where(inside[..., None], found, fill.astype(x.dtype))


def _blended(x: Array, op: Array, factor: Array) -> Array:
    grey = colours.grey(x)
    base = jnp.where(_is(op, "color"), grey, jnp.zeros_like(x))
    base = jnp.where(_is(op, "contrast"), jnp.mean(grey, (1, 2), keepdims=True), base)
    base = jnp.where(_is(op, "sharpness"), _smooth(x), base)
    return colours.blend(base, x, factor[:, None, None, None])


def _smooth(x: Array) -> Array:
    """The mean of 3×3 pixels, in which the middle counts five times; the outermost pixels stay."""
    height, width = x.shape[1:3]
    if min(height, width) < 3:
        return x
    total = 4 * x[:, 1:-1, 1:-1]
    for i in range(3):
        for j in range(3):
            total = total + x[:, i : i + height - 2, j : j + width - 2]
    return x.at[:, 1:-1, 1:-1].set(total / 13)


def _stretched(x: Array) -> Array:
    """Each channel of each image from 0 to 1."""
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    span = high - low
    return jnp.where(span > 0, (x - low) / jnp.where(span > 0, span, 1), x)


def _equalized(x: Array) -> Array:
    """Each channel of each image with a flat histogram, over 256 levels."""
    n, height, width, channels = x.shape
    level = jnp.clip(jnp.round(x.astype(jnp.float32) * 255), 0, 255).astype(jnp.int32)
    row = jnp.arange(n)[:, None, None, None] * channels + jnp.arange(channels)
    counts = jnp.zeros((n * channels, 256), jnp.int32).at[row, level].add(1)
    # The brightest level there is does not count, as it becomes 1 itself.
    last = 255 - jnp.argmax(counts[:, ::-1] > 0, -1)
    step = (height * width - jnp.take_along_axis(counts, last[:, None], -1)) // 255
    before = jnp.cumsum(counts, -1) - counts
    table = jnp.where(step > 0, (before + step // 2) // jnp.maximum(step, 1), jnp.arange(256))
    return (jnp.minimum(table, 255)[row, level] / 255).astype(x.dtype)
