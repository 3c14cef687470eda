"""Images mixed in pairs together with their labels, which become distributions over classes."""

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, Key
from mvp_jax.data.augment import transforms
from mvp_jax.data.augment.transforms import Scalar


def mixup(key: Key, x: Array, targets: Array, alpha: Scalar = 0.2) -> tuple[Array, Array]:
    r"""Makes each image and its target a weighted mean with another's, $\lambda x_i + (1 - \lambda) x_j$.

    Each pair draws its own $\lambda$ from Beta(alpha, alpha); the partners are a permutation of the batch.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        targets: floats `[N, Y]`, such as `jax.nn.one_hot(labels, Y)`.
        alpha: at least 0, traced; 0 gives images and targets back.

    Returns:
        The mixed images `[N, H, W, C]` and targets `[N, Y]`.

    Raises:
        ValueError: for a negative alpha, images that are not floats `[N, H, W, C]`, or targets that are not floats
            `[N, Y]`.

    >>> x, y = mixup(jax.random.key(0), jnp.ones((2, 1, 1, 1)), jnp.eye(2), alpha=1.0)
    >>> x.ravel().round(4).tolist(), y.sum(1).round(4).tolist()
    ([1.0, 1.0], [1.0, 1.0])

    Reference: Zhang et al., arXiv:1710.09412, equation 1.
    """
    _check(x, targets)
    return _mixup(key, x, targets, transforms.strength("alpha", alpha))


@jax.jit
def _mixup(key: Key, x: Array, targets: Array, alpha: Array) -> tuple[Array, Array]:
    k_share, k_partner = jax.random.split(key)
    share, partner = _share(k_share, x.shape[0], alpha), jax.random.permutation(k_partner, x.shape[0])
    own = share[:, None, None, None].astype(x.dtype)
    return own * x + (1 - own) * x[partner], _of_both(targets, targets[partner], share)


def cutmix(key: Key, x: Array, targets: Array, alpha: Scalar = 1.0) -> tuple[Array, Array]:
    r"""Pastes a box of another image into each image; the targets are mixed by the part of the area that it covers.

    The box has sides $\sqrt{1 - \lambda}$ times the image's, with $\lambda$ from Beta(alpha, alpha), and its middle
    anywhere, so that it may reach over the edge; only the part inside the image counts.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        targets: floats `[N, Y]`, such as `jax.nn.one_hot(labels, Y)`.
        alpha: at least 0, traced; 0 gives images and targets back.

    Returns:
        The mixed images `[N, H, W, C]` and targets `[N, Y]`.

    Raises:
        ValueError: for a negative alpha, images that are not floats `[N, H, W, C]`, or targets that are not floats
            `[N, Y]`.

    >>> x, y = cutmix(jax.random.key(0), jnp.arange(2.0)[:, None, None, None] * jnp.ones((2, 8, 8, 1)), jnp.eye(2))
    >>> bool(jnp.allclose(x.mean((1, 2, 3)), y[:, 1]))
    True

    Reference: Yun et al., arXiv:1905.04899, equations 1 and 2.
    """
    _check(x, targets)
    return _cutmix(key, x, targets, transforms.strength("alpha", alpha))


@jax.jit
def _cutmix(key: Key, x: Array, targets: Array, alpha: Array) -> tuple[Array, Array]:
    n, height, width = x.shape[:3]
    k_share, k_partner, k_rows, k_columns = jax.random.split(key, 4)
    side = jnp.sqrt(1 - _share(k_share, n, alpha))[:, None]
    partner = jax.random.permutation(k_partner, n)

    def inside(k: Key, size: int) -> Array:
        half = jnp.floor(side * size).astype(jnp.int32) // 2
        middle, at = jax.random.randint(k, (n, 1), 0, size), jnp.arange(size)
        return (at >= middle - half) & (at < middle + half)

    box = inside(k_rows, height)[:, :, None] & inside(k_columns, width)[:, None, :]
    share = 1 - jnp.mean(box.astype(jnp.float32), (1, 2))
    return jnp.where(box[..., None], x[partner], x), _of_both(targets, targets[partner], share)


def mix(
    key: Key,
    x: Array,
    targets: Array,
    mixup_alpha: Scalar = 0.8,
    cutmix_alpha: Scalar = 1.0,
    cutmix_share: Scalar = 0.5,
) -> tuple[Array, Array]:
    """Mixes a batch of images and its targets by `cutmix` or by `mixup`, as vision transformers are trained.

    Args:
        key: a typed key.
        x: the images, floats `[N, H, W, C]`.
        targets: floats `[N, Y]`, such as `jax.nn.one_hot(labels, Y)`.
        mixup_alpha: of `mixup`, at least 0, traced.
        cutmix_alpha: of `cutmix`, at least 0, traced.
        cutmix_share: the probability with which the whole batch is mixed by `cutmix` instead of `mixup`, traced.

    Returns:
        The mixed images `[N, H, W, C]` and targets `[N, Y]`.

    Raises:
        ValueError: for numbers out of range, other images, or targets that are not floats `[N, Y]`.

    >>> x, y = mix(jax.random.key(0), jnp.ones((2, 4, 4, 1)), jnp.eye(2))
    >>> x.shape, y.sum(1).round(4).tolist()
    ((2, 4, 4, 1), [1.0, 1.0])

    Reference: Touvron et al., arXiv:2012.12877, table 9.
    """
    _check(x, targets)
    share = transforms.strength("cutmix_share", cutmix_share, 0.0, 1.0)
    k_lot, k_mix = jax.random.split(key)
    cut = jax.random.uniform(k_lot) < share
    pairs = zip(cutmix(k_mix, x, targets, cutmix_alpha), mixup(k_mix, x, targets, mixup_alpha), strict=True)
    mixed_x, mixed_targets = (jnp.where(cut, a, b) for a, b in pairs)
    return mixed_x, mixed_targets


def _check(x: Array, targets: Array) -> None:
    transforms.check_images(x, colours=False)
    if jnp.ndim(targets) != 2 or len(targets) != len(x) or not jnp.issubdtype(targets.dtype, jnp.floating):
        raise ValueError(
            f"targets are {targets.dtype}{list(targets.shape)}; expected floats [{len(x)}, classes], such as "
            "jax.nn.one_hot(labels, classes)"
        )


def _share(key: Key, n: int, alpha: Array) -> Array:
    drawn = jax.random.beta(key, *(jnp.maximum(alpha, 1e-3),) * 2, (n,))
    return jnp.where(alpha > 0, jnp.clip(drawn, 0, 1), 1.0)


def _of_both(own: Array, other: Array, share: Array) -> Array:
    share = share[:, None].astype(own.dtype)
    return share * own + (1 - share) * other
