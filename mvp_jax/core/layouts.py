"""Axes of arrays split into runs and joined again, such that arrays on a mesh of devices stay sharded as they are.

On a mesh with explicit axes JAX refuses to split an axis whose parts would not lie on whole devices; it is brought to
every device first, and the result goes back to the sharding of its source. On other meshes the compiler does this.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mvp_jax.core.types import Array


def explicit(x: Any) -> NamedSharding | None:
    """The sharding that is part of an array's type; `None` for arrays and shapes that lie on no explicit mesh.

    >>> explicit(jnp.ones(2)) is None
    True
    """
    if isinstance(x, jax.ShapeDtypeStruct):
        found: Any = x.sharding
    else:
        found = getattr(jax.typeof(x), "sharding", None)
    return found if isinstance(found, NamedSharding) and has_explicit(found) else None


def has_explicit(sharding: NamedSharding) -> bool:
    """Whether a mesh has axes that are part of the types of its arrays."""
    return AxisType.Explicit in (sharding.mesh.axis_types or ())


def _devices(sharding: NamedSharding, axis: int) -> int:
    """Over how many devices an axis is spread."""
    names = sharding.spec[axis] if axis < len(sharding.spec) else None
    found = 1
    for name in (names,) if isinstance(names, str) else names or ():
        found *= sharding.mesh.shape[name]
    return found


def _spec(sharding: NamedSharding, ndim: int) -> list[Any]:
    return [sharding.spec[a] if a < len(sharding.spec) else None for a in range(ndim)]


def full(like: Any, shape: tuple[int, ...]) -> Array:
    """Booleans, all `True`, that are sharded as an array is: whole axes as its own, shorter ones where they divide.

    Args:
        like: an array with as many axes, or its shape.
        shape: the shape of the result.

    Returns:
        `bool[shape]`. Of an array that is traced on a mesh with automatic axes the sharding is the compiler's choice.

    >>> full(jnp.zeros((2, 4)), (2, 2)).tolist()
    [[True, True], [True, True]]
    """
    if shape == jnp.shape(like):
        return jnp.ones_like(like, dtype=bool)
    traced = isinstance(like, jax.core.Tracer)
    sharding = explicit(like) if traced else getattr(like, "sharding", None)
    if not isinstance(sharding, NamedSharding):
        return jnp.ones(shape, bool)
    spec = _spec(sharding, len(shape))
    kept = [
        None if n == 1 or n % _devices(sharding, a) else s for a, (n, s) in enumerate(zip(shape, spec, strict=True))
    ]
    return lax.full(shape, True, bool, sharding=NamedSharding(sharding.mesh, PartitionSpec(*kept)))


def gathered(x: Array, axes: Collection[int]) -> Array:
    """An array some of whose axes are whole on every device of its mesh with explicit axes; any other array as it is.

    >>> gathered(jnp.arange(3), {0}).tolist()
    [0, 1, 2]
    """
    sharding = explicit(x)
    if sharding is None:
        return x
    spec = _spec(sharding, x.ndim)
    if all(spec[a] is None for a in axes):
        return x
    kept = PartitionSpec(*(None if a in axes else s for a, s in enumerate(spec)))
    return jax.sharding.reshard(x, NamedSharding(sharding.mesh, kept))


def whole(x: Any) -> Any:
    """An array, or `None`, that is whole on every device of its mesh with explicit axes; any other array as it is.

    For small arrays, of which JAX looks up, sorts or contracts entries along unsharded axes only.

    >>> whole(jnp.arange(3)).tolist()
    [0, 1, 2]
    """
    return x if x is None or explicit(x) is None else gathered(x, range(x.ndim))


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
    sharding = explicit(x)
    if sharding is not None:
        x = gathered(x, [a for a, m in runs.items() if (x.shape[a] // m) % _devices(sharding, a)])
    # One axis at a time, the last first: JAX follows the sharding of no more than one through a reshape.
    for a in sorted(runs, reverse=True):
        x = jnp.reshape(x, (*x.shape[:a], x.shape[a] // runs[a], runs[a], *x.shape[a + 1 :]))
    return x


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
    for a in sorted(runs):
        x = jnp.reshape(x, (*x.shape[:a], x.shape[a] * x.shape[a + 1], *x.shape[a + 2 :]))
    return placed(x, like)


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
    wide = jnp.expand_dims(x, [a + 1 + i for i, a in enumerate(sorted(runs))])
    whole = [d for a, n in enumerate(x.shape) for d in ((n, runs[a]) if a in runs else (n,))]
    return join(jnp.broadcast_to(wide, whole), runs, like)
