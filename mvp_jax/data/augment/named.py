"""Augmentations by the names that configs give them; cached, so that compiled steps that close over them are reused."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import basic, compose, randaugment
from mvp_jax.data.augment.basic import Transform

_SIMSIAM = {"simsiam": 0.5, "simsiam_sharp": 0.0}


@functools.lru_cache
def augmentation(
    name: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Transform | None:
    """An augmentation of a batch.

    Args:
        name: `none`; `shift` (0.75 pixels); or some of `resized` or `crop`, `flip`, `rand`, `noisy` joined by `_`, as
            `crop_flip` or `resized_flip_rand`: boxes resized to the image, crops of the padded image, mirroring,
            RandAugment (two operations of magnitude 9), brightness with noise.
        mean: what was taken from the images, `None` if they lie in [0, 1].
        std: what they were then divided by.

    Returns:
        `(key, x [N, H, W, C]) -> x`; `None` for `none`.

    Raises:
        ValueError: for an unknown name.

    >>> augmentation("crop_flip")(jax.random.key(0), jnp.ones((2, 8, 8, 1))).shape
    (2, 8, 8, 1)
    """
    if name == "none":
        return None
    if name == "shift":
        return functools.partial(basic.shift, amount=0.75)
    table: dict[str, Transform] = {
        "resized": compose.random_resized_crop,
        "crop": functools.partial(basic.crop, padding=4),
        "flip": basic.flip,
        "rand": compose.in_unit(randaugment.rand_augment, *_range(mean, std)),
        "noisy": functools.partial(basic.batch, fns=(basic.brightness, basic.noise)),
        "shift": functools.partial(basic.shift, amount=1.5),
    }
    parts = name.split("_")
    if set(parts) - set(table) or len(set(parts)) < len(parts):
        raise ValueError(
            f"unknown augmentation {name!r}; choose 'none', 'shift', or some of {sorted(table)} joined by '_', as "
            "'crop_flip'"
        )
    return functools.partial(basic.batch, fns=tuple(table[part] for part in parts))


@functools.lru_cache
def views(
    name: str, mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
) -> Callable[[Key, Array], tuple[Array, Array]]:
    """Two views of a batch, drawn independently.

    Args:
        name: `simsiam`, `simsiam_sharp` (without blur, for small images), or an augmentation.
        mean: see `augmentation`.
        std: see `augmentation`.

    Returns:
        `(key, x [N, H, W, C]) -> (a, b)`.

    Raises:
        ValueError: for an unknown name, or `none`, whose views would be equal.

    >>> a, b = views("simsiam")(jax.random.key(0), jnp.linspace(0, 1, 96).reshape(2, 4, 4, 3))
    >>> a.shape == b.shape == (2, 4, 4, 3), bool((a == b).all())
    (True, False)
    """
    if name in _SIMSIAM:
        pair = functools.partial(compose.simsiam_views, blur=_SIMSIAM[name])
        both = compose.in_unit(lambda key, x: jnp.concatenate(pair(key, x)), *_range(mean, std))

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
    """Whether an augmentation looks at colours, and so has to know how images were normalised."""
    return name in _SIMSIAM or "rand" in name.split("_")


def _range(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[tuple[float, ...], ...]:
    return (0.0,) if mean is None else mean, (1.0,) if std is None else std


__all__ = ["augmentation", "needs_range", "views"]
