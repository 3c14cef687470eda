"""Axes of arrays split into runs and joined again, such that arrays on a mesh of devices stay sharded as they are.

On a mesh with explicit axes JAX refuses to split an axis whose parts would not lie on whole devices; it is brought to
every device first, and the result goes back to the sharding of its source. On other meshes the compiler does this.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mvp_jax.core.types import Array


def explicit(x: Any) -> NamedSharding | None:
    """The sharding of an array, traced or not, if a mesh with explicit axes is part of its type; else `None`."""
    sharding = getattr(jax.typeof(x), "sharding", None)
    if sharding is None or sharding.mesh.empty or AxisType.Explicit not in sharding.mesh.axis_types:
        return None
    return sharding


def _devices(sharding: NamedSharding, axis: int) -> int:
    """Over how many devices an axis is spread."""
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    found = 1
    for name in (names,) if isinstance(names, str) else names or ():
        found *= sharding.mesh.shape[name]
    return found


def _spec(sharding: NamedSharding, ndim: int) -> list[Any]:
    return [sharding.spec[a] if a < len(sharding.spec) else None for a in range(ndim)]


def split(x: Array, runs: Mapping[int, int]) -> Array:
    """An array with some of its axes split in two: which run, and where in it.

    Args:
        x: an array whose axes are multiples of their runs' lengths.
        runs: `{axis: length of a run}`.

    Returns:
        An array with one more axis behind each of these axes.

    >>> split(jnp.arange(6), {0: 2}).tolist()
    [[0, 1], [2, 3], [4, 5]]
    """
    shape = [d for a, n in enumerate(x.shape) for d in ((n // runs[a], runs[a]) if a in runs else (n,))]
    sharding = explicit(x)
    if sharding is not None:
        spec = _spec(sharding, x.ndim)
        uneven = [a for a, m in runs.items() if (x.shape[a] // m) % _devices(sharding, a)]
        if uneven:
            spec = [None if a in uneven else s for a, s in enumerate(spec)]
            x = jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*spec)))
    return jnp.reshape(x, shape)


def join(x: Array, runs: Mapping[int, int], like: Array | None = None) -> Array:
    """The inverse of `split`.

    Args:
        x: an array with an axis for the runs and one for the places in them.
        runs: what `split` was given.
        like: the array that was split, whose sharding the result has.

    Returns:
        An array whose axes are whole again.

    >>> join(jnp.array([[0, 1], [2, 3]]), {0: 2}).tolist()
    [0, 1, 2, 3]
    """
    shape: list[int] = []
    at = 0
    while at < x.ndim:
        whole = len(shape) in runs
        shape.append(x.shape[at] * x.shape[at + 1] if whole else x.shape[at])
        at += 2 if whole else 1
    return placed(jnp.reshape(x, shape), like)


def placed(x: Array, like: Array | None) -> Array:
    """An array with the sharding of another one of its shape, where that is on a mesh with explicit axes."""
    sharding = None if like is None else explicit(like)
    if sharding is None or explicit(x) == sharding:
        return x
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, PartitionSpec(*_spec(sharding, x.ndim))))


def widen(x: Array, runs: Mapping[int, int], like: Array | None = None) -> Array:
    """Every entry repeated along some axes.

    Args:
        x: an array with one entry for each run.
        runs: `{axis: length of a run}`.
        like: an array of the result's shape, whose sharding the result has.

    >>> widen(jnp.array([[1, 2]]), {1: 2}).tolist()
    [[1, 1, 2, 2]]
    """
    shape = [d for a, n in enumerate(x.shape) for d in ((n, 1) if a in runs else (n,))]
    full = [d for a, n in enumerate(x.shape) for d in ((n, runs[a]) if a in runs else (n,))]
    return join(jnp.broadcast_to(jnp.reshape(x, shape), full), runs, like)
