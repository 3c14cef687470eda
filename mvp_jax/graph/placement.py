"""Arrays on a mesh when some of their axes are cut: what stays sharded, and what becomes whole on every device.

An axis of a mesh is Auto, when the compiler chooses where results lie, or Explicit, when it is part of an array's type
and must be said for every gather. `jax.make_mesh` makes Explicit axes unless told otherwise.
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from mvp_jax.core import layouts
from mvp_jax.core.types import Array


def without(sharding: NamedSharding, rank: int, axes: Collection[int]) -> NamedSharding:
    """A sharding of arrays of `rank` axes with some axes whole on every device, and the others as they were.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tuple(without(NamedSharding(mesh, PartitionSpec("data", None)), 2, {0}).spec)
    (None, None)
    """
    spec = [*sharding.spec, *[None] * (rank - len(sharding.spec))]
    return NamedSharding(sharding.mesh, PartitionSpec(*(None if a in axes else s for a, s in enumerate(spec))))


def take(x: Array, index: Array | np.ndarray, axis: int) -> Array:
    """Entries of an array along one axis, also of an array on an Explicit mesh, which is whole along this axis then.

    Args:
        x: any array.
        index: `int[K]`, within the axis.
        axis: which axis, not negative.

    Returns:
        The array with `K` entries along the axis.

    >>> take(jnp.arange(6).reshape(2, 3), jnp.array([0, 2]), 1).tolist()
    [[0, 2], [3, 5]]
    """
    sharding = layouts.explicit(x)
    if sharding is None:
        return jnp.take(x, index, axis=axis)
    at = (*[slice(None)] * axis, layouts.whole(index))
    return x.at[at].get(out_sharding=without(sharding, x.ndim, {axis}))


def put(x: np.ndarray, beside: Any, axes: Collection[int]) -> Array:
    """An array of the host on the devices of another array, whole along the axes that were cut.

    Args:
        x: the array.
        beside: the array that it was cut out of.
        axes: the axes along which it was cut.

    Returns:
        The array on the devices of `beside`, if that is bound to some.

    >>> put(np.arange(3), jnp.arange(4), {0}).tolist()
    [0, 1, 2]
    """
    if isinstance(beside, jax.Array) and isinstance(beside.sharding, NamedSharding):
        return jax.device_put(x, without(beside.sharding, x.ndim, axes))
    if isinstance(beside, jax.Array) and beside.committed:
        return jax.device_put(x, beside.sharding)
    # `jnp.asarray` would compile a copy for each shape. Nobody else has this array, so the device may use its memory.
    return jax.device_put(x)


def same_mesh(x: Any, other: Any) -> NamedSharding | None:
    """The sharding of an array or shape, if another array lies on the same mesh.

    >>> same_mesh(jnp.ones(2), jnp.ones(3)) is None
    True
    """
    a, b = _named(x), _named(other)
    return a if a is not None and b is not None and a.mesh == b.mesh else None


def _named(x: Any) -> NamedSharding | None:
    found = layouts.explicit(x)
    if found is None and isinstance(x, jax.Array | jax.ShapeDtypeStruct) and not isinstance(x, jax.core.Tracer):
        found = x.sharding if isinstance(x.sharding, NamedSharding) else None
    return found


def lay(x: Array, sharding: NamedSharding | None) -> Array:
    """An array of a traced function with the given sharding; `None`: as it is.

    >>> lay(jnp.arange(2), None).tolist()
    [0, 1]
    """
    if sharding is None:
        return x
    if layouts.explicit(x) is not None:
        return jax.sharding.reshard(x, sharding)
    # An array that lies on no mesh yet joins the others as it is.
    return x if layouts.has_explicit(sharding) else jax.lax.with_sharding_constraint(x, sharding)


def fitted(sharding: NamedSharding, shape: Sequence[int]) -> NamedSharding:
    """A sharding for a smaller array: axes whose length the mesh does not divide are whole on every device.

    >>> mesh = jax.make_mesh((1,), ("data",))
    >>> tuple(fitted(NamedSharding(mesh, PartitionSpec("data")), (3,)).spec)
    ('data',)
    """
    sizes = dict(zip(sharding.mesh.axis_names, sharding.mesh.axis_sizes, strict=True))

    def parts(entry: Any) -> int:
        names = (entry,) if isinstance(entry, str) else entry if isinstance(entry, tuple) else ()
        return math.prod(sizes[name] for name in names)

    odd = [a for a, (n, entry) in enumerate(zip(shape, sharding.spec, strict=False)) if n % parts(entry)]
    return without(sharding, len(shape), odd) if odd else sharding


def varying_as(x: Array, aval: Any) -> Array:
    """An array inside `shard_map` that counts as different on the devices on which another one, of this type, may be.

    >>> varying_as(jnp.arange(2), jax.typeof(jnp.arange(2))).tolist()
    [0, 1]
    """
    names = tuple(getattr(getattr(aval, "manual_axis_type", None), "varying", ()))
    return jax.lax.pcast(x, names, to="varying") if names else x


_SHARDINGS = ("sharding", "out_sharding", "dst_sharding")


def fitted_params(params: Mapping[str, Any], shape: Callable[[], Sequence[int]]) -> dict[str, Any]:
    """The parameters of a primitive for a result of another shape: its shardings are fitted to that."""
    result = dict(params)
    for name in _SHARDINGS:
        if isinstance(result.get(name), NamedSharding):
            result[name] = fitted(result[name], shape())
    return result


def typed(x: Any, shape: Sequence[int] | None = None) -> jax.ShapeDtypeStruct:
    """What a function's trace depends on of an array: shape, dtype, and on an Explicit mesh its sharding.

    Args:
        x: an array, a number, or the shape of an array.
        shape: another shape that is to stand in its place.

    Returns:
        The shape, without any data.

    >>> typed(jnp.ones((2, 3)), (4, 3)).shape
    (4, 3)
    """
    bare = unlaid(x, shape)
    sharding = layouts.explicit(x)
    if sharding is None:
        return bare
    return jax.ShapeDtypeStruct(bare.shape, bare.dtype, weak_type=bare.weak_type, sharding=fitted(sharding, bare.shape))


def unlaid(x: Any, shape: Sequence[int] | None = None) -> jax.ShapeDtypeStruct:
    """The shape and dtype of an array, wherever it lies; another shape can be put in its place.

    >>> unlaid(2.0)
    ShapeDtypeStruct(shape=(), dtype=float32, weak_type=True)
    """
    shape = np.shape(x) if shape is None else tuple(shape)
    dtype = x.dtype if hasattr(x, "dtype") else jnp.result_type(x)
    return jax.ShapeDtypeStruct(shape, dtype, weak_type=bool(getattr(x, "weak_type", not hasattr(x, "dtype"))))
