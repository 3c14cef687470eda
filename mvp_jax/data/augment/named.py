"""Augmentations by the names that configs give them.

A name gives the same function object each time, so that compiled steps that close over it are reused.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import colours, geometry, randaugment, transforms, view_pairs
from mvp_jax.data.augment.transforms import BatchTransform

_SIMSIAM = {"simsiam": 0.5, "simsiam_sharp": 0.0}


@functools.lru_cache
def augmentation(
    name: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> BatchTransform | None:
    """Returns the augmentation that a config names.

    Args:
        name: `none`; `shift` (moves of up to 0.75 pixels); or some of these joined by `_`, applied in the order of the
            name, as `crop_flip` or `resized_flip_rand`: `resized` (boxes resized to the image's size), `crop` (crops
            of the image padded by 4 pixels), `flip` (mirroring), `rand` (RandAugment, two operations of magnitude 9),
            `noisy` (brightness, then noise), `shift` (moves of up to 1.5 pixels).
        mean: what was subtracted from the images, by channel; `None`: the images lie in [0, 1].
        std: what they were then divided by, by channel; `None`: the images lie in [0, 1].

    Returns:
        A function `(key, x [N, H, W, C]) -> [N, H, W, C]`, or `None` for the name `none`.

    Raises:
        ValueError: for an unknown name, with those that are allowed.

    >>> augmentation("crop_flip")(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    if name == "none":
        return None
    if name == "shift":
        return functools.partial(geometry.shift, amount=0.75)
    table: dict[str, BatchTransform] = {
        "resized": geometry.random_resized_crop,
        "crop": functools.partial(geometry.crop, padding=4),
        "flip": geometry.flip,
        "rand": transforms.in_unit(randaugment.rand_augment, *_range(mean, std)),
        "noisy": functools.partial(transforms.apply, fns=(colours.brightness, colours.noise)),
        "shift": functools.partial(geometry.shift, amount=1.5),
    }
    parts = name.split("_")
    if set(parts) - set(table) or len(set(parts)) < len(parts):
        raise ValueError(
            f"unknown augmentation {name!r}; choose 'none', 'shift', or some of {sorted(table)} joined by '_', as "
            "'crop_flip'"
        )
    return functools.partial(transforms.apply, fns=tuple(table[part] for part in parts))


@functools.lru_cache
def views(
    name: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Callable[[Key, Array], tuple[Array, Array]]:
    """Returns what draws two independent views of each image of a batch, for learning without labels.

    Args:
        name: `simsiam`, `simsiam_sharp` (the same without blur, for small images), or a name that `augmentation`
            knows, whose augmentation is then drawn twice.
        mean: what was subtracted from the images, by channel; `None`: the images lie in [0, 1].
        std: what they were then divided by, by channel; `None`: the images lie in [0, 1].

    Returns:
        A function `(key, x [N, H, W, C]) -> (a, b)` with both views `[N, H, W, C]`.

    Raises:
        ValueError: for an unknown name, or `none`, whose views would be equal.

    >>> a, b = views("simsiam")(jax.random.key(0), jnp.linspace(0, 1, 96).reshape(2, 4, 4, 3))
    >>> a.shape == b.shape == (2, 4, 4, 3), bool((a == b).all())
    (True, False)
    """
    if name in _SIMSIAM:
        pair = functools.partial(view_pairs.simsiam_views, blur=_SIMSIAM[name])
        both = transforms.in_unit(lambda key, x: jnp.concatenate(pair(key, x)), *_range(mean, std))

        def drawn(key: Key, x: Array) -> tuple[Array, Array]:
            first, second = jnp.split(both(key, x), 2)
            return first, second

        return drawn
    if name == "none":
        raise ValueError(f"two views need an augmentation, got 'none'; choose one of {sorted(_SIMSIAM)}, or 'shift'")
    change = augmentation(name, mean, std)
    assert change is not None

    def twice(key: Key, x: Array) -> tuple[Array, Array]:
        first, second = jax.random.split(key)
        return change(first, x), change(second, x)

    return twice


def needs_range(name: str) -> bool:
    """Returns whether the augmentation of a name needs to know how images were normalised, since it changes colours.

    >>> needs_range("crop_flip_rand"), needs_range("crop_flip")
    (True, False)
    """
    return name in _SIMSIAM or "rand" in name.split("_")


def _range(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[tuple[float, ...], ...]:
    return (0.0,) if mean is None else mean, (1.0,) if std is None else std


__all__ = ["augmentation", "needs_range", "views"]
