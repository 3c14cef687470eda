"""Colours and sharpness: brightness, noise, jitter of colours, grey, blur.

Every function takes a typed key and a batch of float images `[N, H, W, C]` on the device, and gives images of the same
shape. Strengths may be traced, so that members of a population may each have their own; strength 0 gives the images
back. Each image draws its own variation. What changes colours expects images in [0, 1]; `transforms.in_unit` adapts it
to normalised ones.
"""

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import transforms
from mvp_jax.data.augment.transforms import Scalar

_GREY = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's


def chosen(key: Key, x: Array, probability: Array) -> Array:
    """Draws which images of a batch are changed.

    Args:
        key: a typed key.
        x: the images, `[N, H, W, C]`.
        probability: with which an image is changed.

    Returns:
        Booleans `[N, 1, 1, 1]`.
    """
    return jax.random.uniform(key, (x.shape[0], 1, 1, 1)) < probability


def grey(x: Array) -> Array:
    """Returns the luminance (ITU-R 601) of images, with one channel; images of one channel are given back.

    Args:
        x: images `[..., C]` with 1 or 3 channels.

    Returns:
        `[..., 1]`.

    >>> grey(jnp.array([[1.0, 0.0, 0.0]]))
    Array([[0.299]], dtype=float32)
    """
    if x.shape[-1] == 1:
        return x
    red, green, blue = (x[..., i : i + 1] * jnp.asarray(w, x.dtype) for i, w in enumerate(_GREY))
    return red + green + blue


def blend(degenerate: Array, x: Array, factor: Array) -> Array:
    """Blends images with degenerate ones: `(1 - factor) * degenerate + factor * x`, cut to [0, 1].

    Args:
        degenerate: what factor 0 gives, such as black or grey images; broadcast to `x`.
        x: the images, in [0, 1].
        factor: 1 gives `x`; more than 1 strengthens what tells `x` from the degenerate image.

    Returns:
        The blended images, of the shape of `x`.

    >>> blend(jnp.zeros(1), jnp.array([0.25]), jnp.float32(2.0)).tolist()
    [0.5]
    """
    factor = factor.astype(x.dtype)
    return jnp.clip((1 - factor) * degenerate + factor * x, 0, 1)


def noise(key: Key, x: Array, scale: Scalar = 0.1) -> Array:
    """Adds independent normal noise to every value; nothing is cut to a range.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        scale: the noise's standard deviation.

    Returns:
        The noisy images, `[N, H, W, C]`.

    Raises:
        ValueError: for a negative scale, or images that are not floats `[N, H, W, C]`.

    >>> bool((noise(jax.random.key(0), jnp.ones((1, 2, 2, 1)), scale=0.0) == 1).all())
    True
    """
    transforms.check_images(x, colours=False)
    return _noise(key, x, transforms.strength("scale", scale))


@jax.jit
def _noise(key: Key, x: Array, scale: Array) -> Array:
    return x + scale.astype(x.dtype) * jax.random.normal(key, x.shape, x.dtype)


def brightness(key: Key, x: Array, amount: Scalar = 0.2) -> Array:
    """Multiplies each image by a factor uniform in `[1 - amount, 1 + amount]`.

    Meant for images before normalisation; nothing is cut to a range.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        amount: the largest change of the factor.

    Returns:
        The brighter or darker images, `[N, H, W, C]`.

    Raises:
        ValueError: for a negative amount, or images that are not floats `[N, H, W, C]`.

    >>> brightness(jax.random.key(0), jnp.zeros((1, 1, 1, 1)), amount=0.5).item()
    0.0
    """
    transforms.check_images(x, colours=False)
    return _brightness(key, x, transforms.strength("amount", amount))


@jax.jit
def _brightness(key: Key, x: Array, amount: Array) -> Array:
    factor = 1 + amount * jax.random.uniform(key, (x.shape[0], 1, 1, 1), minval=-1.0)
    return x * factor.astype(x.dtype)


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

    Brightness, contrast and saturation of strength `s` blend the image with black, with its mean grey and with its
    grey image, by a factor uniform in `[max(0, 1 - s), 1 + s]`, where 1 leaves it as it is. The hue turns on the circle
    of colours by an angle uniform in `[-s, s]` turns.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]` in [0, 1]; images of one channel have no saturation and no hue.
        brightness: strength, at least 0.
        contrast: strength, at least 0.
        saturation: strength, at least 0.
        hue: strength, in [0, 0.5] turns.
        probability: with which an image is changed at all.

    Returns:
        The changed images, `[N, H, W, C]` in [0, 1].

    Raises:
        ValueError: for a strength out of range, or images that are not floats `[N, H, W, C]` with 1 or 3 channels.

    >>> color_jitter(jax.random.key(0), jnp.zeros((1, 1, 1, 3))).sum().item()
    0.0

    Reference: Wu et al., arXiv:1805.01978, section 3.5 (torchvision draws the order too).
    """
    transforms.check_images(x)
    strengths = (
        transforms.strength("brightness", brightness),
        transforms.strength("contrast", contrast),
        transforms.strength("saturation", saturation),
        transforms.strength("hue", hue, 0.0, 0.5),
    )
    return _color_jitter(key, x, strengths, transforms.strength("probability", probability, 0.0, 1.0))


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
    """Turns the hue of RGB images on the circle of colours; saturation and value stay.

    Args:
        x: RGB images `[..., 3]` in [0, 1].
        by: how many turns of the whole circle, broadcast to `[...]`; 0 gives the images back.

    Returns:
        The turned images, `[..., 3]`.

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

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]` in [0, 1], with 1 or 3 channels.
        probability: with which an image becomes grey, 0 to 1.

    Returns:
        The images, `[N, H, W, C]`.

    Raises:
        ValueError: for a probability out of range, or images of another kind.

    >>> random_grayscale(jax.random.key(0), jnp.ones((1, 1, 1, 3)), probability=1.0).round(3).tolist()
    [[[[1.0, 1.0, 1.0]]]]
    """
    transforms.check_images(x)
    return _random_grayscale(key, x, transforms.strength("probability", probability, 0.0, 1.0))


@jax.jit
def _random_grayscale(key: Key, x: Array, probability: Array) -> Array:
    return jnp.where(chosen(key, x, probability), jnp.broadcast_to(grey(x), x.shape), x)


def gaussian_blur(key: Key, x: Array, sigma: tuple[Scalar, Scalar] = (0.1, 2.0), probability: Scalar = 0.5) -> Array:
    """Blurs each image, with the given probability, by a Gaussian kernel of its own width.

    At the edge the kernel's weights of the pixels that lie inside the image are scaled to sum 1.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        sigma: least and greatest standard deviation of the kernel in pixels; each image draws its own uniformly.
        probability: with which an image is blurred, 0 to 1.

    Returns:
        The images, `[N, H, W, C]`.

    Raises:
        ValueError: for numbers out of range, or images that are not floats `[N, H, W, C]`.

    >>> gaussian_blur(jax.random.key(0), jnp.ones((1, 4, 4, 1)), probability=1.0).sum().round(3)
    Array(16., dtype=float32)

    Reference: Chen et al., arXiv:2002.05709, appendix A.
    """
    transforms.check_images(x, colours=False)
    widths = transforms.strengths("sigma", sigma, 0.0)
    return _gaussian_blur(key, x, widths, transforms.strength("probability", probability, 0.0, 1.0))


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

    return jnp.where(chosen(k_chosen, x, probability), transforms.along_both(bell(x.shape[1]), bell(x.shape[2]), x), x)
