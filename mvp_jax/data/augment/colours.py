"""Colours and sharpness of images in [0, 1]: jitter, grey, blur; and the checks that augmentations share."""

from typing import Any

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment.basic import Scalar

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's


def check(x: Array, colours: bool = True) -> None:
    """Raises `ValueError` unless these are float images, with `colours` of 1 or 3 channels."""
    if jnp.ndim(x) != 4 or not jnp.issubdtype(x.dtype, jnp.floating) or (colours and x.shape[-1] not in (1, 3)):
        raise ValueError(
            f"images are {x.dtype}{list(jnp.shape(x))}; expected floats [N, H, W, C]"
            + (", of 1 or 3 colours in [0, 1]" if colours else "")
            + " (`basic.normalise` makes them of uint8)"
        )


def number(name: str, value: Scalar, least: float = 0.0, most: float | None = None) -> Array:
    """A strength in float32; `ValueError` if it is known and out of range."""
    if not isinstance(value, jax.core.Tracer) and jnp.ndim(value) == 0:
        number = float(value)
        if not number >= least or (most is not None and number > most):
            upper = "" if most is None else f" and at most {most:g}"
            raise ValueError(f"{name} is {number:g}; expected a number of at least {least:g}{upper}")
    return jnp.asarray(value, jnp.float32)


def pair(name: str, value: Any, least: float, most: float | None = None) -> tuple[Array, Array]:
    """Two strengths, the least and the greatest; `ValueError` if they are known and out of range."""
    if not hasattr(value, "__len__") or len(value) != 2:
        raise ValueError(f"{name} is {value}; expected two numbers, the least and the greatest")
    low, high = (number(name, v, least, most) for v in value)
    if not any(isinstance(v, jax.core.Tracer) for v in (low, high)) and low.ndim == high.ndim == 0 and low > high:
        raise ValueError(f"{name} is ({float(low):g}, {float(high):g}); expected the least first")
    return low, high


def chosen(key: Key, x: Array, probability: Array) -> Array:
    """Which images are changed: booleans `[N, 1, 1, 1]`."""
    return jax.random.uniform(key, (x.shape[0], 1, 1, 1)) < probability


def along_both(rows: Array, columns: Array, x: Array) -> Array:
    """Linear maps of each image's rows and columns; exact where they are the identity."""
    exact = {"precision": jax.lax.Precision.HIGHEST, "preferred_element_type": jnp.float32}
    tall = jnp.einsum("noh,nhwc->nowc", rows, x.astype(jnp.float32), **exact)
    return jnp.einsum("npw,nowc->nopc", columns, tall, **exact).astype(x.dtype)


def grey(x: Array) -> Array:
    """Luminance, `[..., 1]`, of images of 3 colours; an image of one is its own.

    >>> grey(jnp.array([[1.0, 0.0, 0.0]]))
    Array([[0.299]], dtype=float32)
    """
    if x.shape[-1] == 1:
        return x
    red, green, blue = (x[..., i : i + 1] * jnp.asarray(w, x.dtype) for i, w in enumerate(_GREY))
    return red + green + blue


def blend(degenerate: Array, x: Array, factor: Array) -> Array:
    """`(1 - factor) * degenerate + factor * x`, cut to [0, 1]: 1 gives `x`, more goes beyond it.

    >>> blend(jnp.zeros(1), jnp.array([0.25]), jnp.float32(2.0)).tolist()
    [0.5]
    """
    factor = factor.astype(x.dtype)
    return jnp.clip((1 - factor) * degenerate + factor * x, 0, 1)


def color_jitter(
    key: Key,
    x: Array,
    brightness: Scalar = 0.4,
    contrast: Scalar = 0.4,
    saturation: Scalar = 0.4,
    hue: Scalar = 0.1,
    probability: Scalar = 1.0,
) -> Array:
    """Changes brightness, contrast, saturation and hue of each image, in this order.

    The first three by a factor uniform in `[max(0, 1 - s), 1 + s]`: between black, the mean grey, the grey image, and
    the image; the hue by a turn of the colour circle uniform in `[-s, s]`.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats in [0, 1]; of one colour it has no saturation and no hue.
        brightness: strength, at least 0.
        contrast: strength, at least 0.
        saturation: strength, at least 0.
        hue: strength, in [0, 0.5].
        probability: of each image to be changed.

    Returns:
        `[N, H, W, C]` in [0, 1].

    Raises:
        ValueError: for a strength out of range, or other images.

    >>> color_jitter(jax.random.key(0), jnp.zeros((1, 1, 1, 3))).sum().item()
    0.0

    Reference: Wu et al., arXiv:1805.01978, section 3.5 (torchvision draws the order too).
    """
    check(x)
    strengths = (
        number("brightness", brightness),
        number("contrast", contrast),
        number("saturation", saturation),
        number("hue", hue, 0.0, 0.5),
    )
    return _color_jitter(key, x, strengths, number("probability", probability, 0.0, 1.0))


@jax.jit
def _color_jitter(key: Key, x: Array, strengths: tuple[Array, ...], probability: Array) -> Array:
    keys = jax.random.split(key, 5)

    def factor(i: int) -> Array:
        least = jnp.maximum(0, 1 - strengths[i])
        lot = jax.random.uniform(keys[i], (x.shape[0], 1, 1, 1))
        return least + lot * (1 + strengths[i] - least)

    out = blend(jnp.zeros_like(x), x, factor(0))
    out = blend(jnp.mean(grey(out), (1, 2), keepdims=True), out, factor(1))
    if x.shape[-1] == 3:
        out = blend(grey(out), out, factor(2))
        out = turn_hue(out, strengths[3] * jax.random.uniform(keys[3], (x.shape[0], 1, 1), minval=-1.0))
    return jnp.where(chosen(keys[4], x, probability), out, x)


def turn_hue(x: Array, by: Array) -> Array:
    """Turns the hue (of hue, saturation and value) of RGB images; a turn of 0 gives them back.

    Args:
        x: `[..., 3]` in [0, 1].
        by: turns of the whole circle, broadcast to `[...]`.

    Returns:
        `[..., 3]`.

    >>> turn_hue(jnp.array([1.0, 0.0, 0.0]), jnp.float32(1 / 3)).round(3).tolist()
    [0.0, 1.0, 0.0]

    Reference: Smith, "Color gamut transform pairs", SIGGRAPH 1978.
    """
    red, green, blue = (x[..., i].astype(jnp.float32) for i in range(3))
    value, least = x.max(-1).astype(jnp.float32), x.min(-1).astype(jnp.float32)
    chroma = value - least
    safe = jnp.where(chroma > 0, chroma, 1)
    sector = jnp.where(
        value == red,
        (green - blue) / safe,
        jnp.where(value == green, 2 + (blue - red) / safe, 4 + (red - green) / safe),
    )
    turned = sector + 6 * by

    def channel(offset: int) -> Array:
        k = (offset + turned) % 6
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    out = jnp.stack([channel(5), channel(3), channel(1)], -1).astype(x.dtype)
    return jnp.where(jnp.asarray(by)[..., None] == 0, x, out)


def random_grayscale(key: Key, x: Array, probability: Scalar = 0.2) -> Array:
    """Makes each image grey with the given probability; it keeps its number of channels.

    >>> random_grayscale(jax.random.key(0), jnp.ones((1, 1, 1, 3)), probability=1.0).round(3).tolist()
    [[[[1.0, 1.0, 1.0]]]]
    """
    check(x)
    return _random_grayscale(key, x, number("probability", probability, 0.0, 1.0))


@jax.jit
def _random_grayscale(key: Key, x: Array, probability: Array) -> Array:
    return jnp.where(chosen(key, x, probability), jnp.broadcast_to(grey(x), x.shape), x)


def gaussian_blur(key: Key, x: Array, sigma: tuple[Scalar, Scalar] = (0.1, 2.0), probability: Scalar = 0.5) -> Array:
    """Blurs each image, with the given probability, by a normal bell of its own width.

    Args:
        key: a typed key.
        x: `[N, H, W, C]` floats.
        sigma: least and greatest standard deviation in pixels; uniform between. At the edge the weights of the pixels
            that there are sum to one.
        probability: of each image to be blurred.

    Returns:
        `[N, H, W, C]`.

    Raises:
        ValueError: for numbers out of range, or images that are not floats `[N, H, W, C]`.

    >>> gaussian_blur(jax.random.key(0), jnp.ones((1, 4, 4, 1)), probability=1.0).sum().round(3)
    Array(16., dtype=float32)

    Reference: Chen et al., arXiv:2002.05709, appendix A.
    """
    check(x, colours=False)
    return _gaussian_blur(key, x, pair("sigma", sigma, 0.0), number("probability", probability, 0.0, 1.0))


@jax.jit
def _gaussian_blur(key: Key, x: Array, sigma: tuple[Array, Array], probability: Array) -> Array:
    k_width, k_chosen = jax.random.split(key)
    width = jax.random.uniform(k_width, (x.shape[0], 1, 1), minval=sigma[0], maxval=sigma[1])
    # A bell that is narrow enough is the identity; the bound keeps 0 / 0 away.
    width = jnp.maximum(width, 1e-3)

    def bell(size: int) -> Array:
        at = jnp.arange(size, dtype=jnp.float32)
        weights = jnp.exp(-0.5 * jnp.square((at - at[:, None]) / width))
        return weights / jnp.sum(weights, -1, keepdims=True)

    return jnp.where(chosen(k_chosen, x, probability), along_both(bell(x.shape[1]), bell(x.shape[2]), x), x)
