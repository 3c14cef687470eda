"""The learning rate of a step: a linear rise, then constant or half a cosine down to 0."""

from typing import Literal, TypeAlias

import jax.numpy as jnp

from mvp_jax.core.types import Array

Decay: TypeAlias = Literal["constant", "cosine"]
"""What the learning rate does after its rise."""


def at(
    step: Array | int,
    highest: Array | float,
    *,
    steps: Array | int,
    warmup: Array | int = 0,
    decay: Decay = "cosine",
) -> Array:
    r"""Returns the learning rate of one step.

    It rises linearly over `warmup` steps, to `highest` in the last of them. Then it stays there, or falls with
    $\tfrac12 (1 + \cos(\pi\, (t - w) / (T - w)))$ for step $t$, warm-up $w$ and $T$ steps in all.

    Args:
        step: counted from 0; all numbers may be traced.
        highest: the highest learning rate.
        steps: number of steps in all; the cosine is 0 from then on.
        warmup: number of steps of the rise, fewer than `steps`.
        decay: `constant` or `cosine`.

    >>> [round(float(at(t, 1.0, steps=6, warmup=2)), 3) for t in range(7)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146, 0.0]
    >>> [float(at(t, 1.0, steps=6, warmup=2, decay="constant")) for t in range(4)]
    [0.5, 1.0, 1.0, 1.0]

    Reference: Loshchilov & Hutter 2017 (arXiv:1608.03983), equation 5, without restarts; Goyal et al. 2017
    (arXiv:1706.02677), section 2.2, for the rise.
    """
    step, warmup = jnp.asarray(step, jnp.float32), jnp.asarray(warmup, jnp.float32)
    rising = jnp.minimum((step + 1) / jnp.maximum(warmup, 1), 1.0)
    if decay == "constant":
        return highest * rising
    along = jnp.clip((step - warmup) / jnp.maximum(steps - warmup, 1), 0.0, 1.0)
    return highest * jnp.where(step < warmup, rising, 0.5 * (1 + jnp.cos(jnp.pi * along)))
