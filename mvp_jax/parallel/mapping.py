"""One function over many members: at once, in turn, in chunks, across devices.

A program sees the members of one device at a time. Across devices `jax.shard_map` is manual over the axis `member`
only: partitioning a plain `jit(vmap)` automatically makes XLA gather every convolution's operands. The axis `data`
stays automatic, so that a member's batch may lie on several devices.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mvp_jax.core.types import Array, Batch, PyTree

MemberMapping: TypeAlias = Literal["vmap", "map", "loop", "auto"]

MAPPINGS = ("vmap", "map", "loop", "auto")

MEMBER, DATA = "member", "data"

Member: TypeAlias = Callable[..., tuple[PyTree, PyTree]]
"""`(carried, *stacked, *shared) -> (carried, out)` for one member."""


def mesh(members: int | None = None, data: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices as a mesh `member × data`.

    Args:
        members: devices along the member axis; by default as many as there are.
        data: devices that share one member's batch.
        devices: all devices of all processes by default.

    Returns:
        A mesh for `create`, `advance`, `fit` and `over`.

    Raises:
        ValueError: if the devices cannot be laid out so.

    >>> dict(mesh(1).shape)
    {'member': 1, 'data': 1}
    """
    found = list(jax.devices() if devices is None else devices)
    members = len(found) // max(data, 1) if members is None else members
    if members < 1 or data < 1 or members * data > len(found) or (devices is not None and members * data < len(found)):
        raise ValueError(
            f"a mesh of {members} × {data} does not fit {len(found)} devices; members × data must be their number, or "
            "fewer if no devices are named"
        )
    grid = np.array(found[: members * data]).reshape(members, data)
    return Mesh(grid, (MEMBER, DATA), axis_types=(AxisType.Auto,) * 2)


def across(where: Mesh | None) -> int:
    """Devices along the member axis."""
    return 1 if where is None else where.shape[MEMBER]


def check(mapping: str, chunk: int | None, where: Mesh | None) -> None:
    """Raises `ValueError` unless these can be used together."""
    if mapping not in MAPPINGS:
        raise ValueError(f"unknown mapping {mapping!r}; choose one of {MAPPINGS}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give members at a time, at least 1, or None")
    if where is not None and (MEMBER not in where.shape or set(where.shape) - {MEMBER, DATA}):
        raise ValueError(f"the mesh has axes {tuple(where.shape)}; make one with population.mesh(members, data)")


def count(*stacked: PyTree) -> int:
    """The length `K` of the member axis.

    Raises:
        ValueError: if the leaves do not lead with one axis of at least 1.
    """
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(stacked)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"all leaves must lead with one member axis of at least 1, got sizes {sorted(sizes)}")
    return int(sizes.pop())


def at_once(own: int, mapping: MemberMapping, chunk: int | None) -> int:
    """How many of a device's `own` members are computed together."""
    return min(chunk or (own if mapping == "vmap" else 1), own)


def padded(k: int, where: Mesh | None) -> int:
    """`k`, or as many more as the devices of a mesh need to have the same number each."""
    return math.ceil(k / across(where)) * across(where)


def pad(tree: PyTree, k: int) -> PyTree:
    """A stacked tree of `k` members, the new ones copies of the first."""
    have = count(tree)
    if have == k:
        return tree
    index = np.concatenate([np.arange(have), np.zeros(k - have, int)])
    return jax.tree.map(lambda leaf: leaf[index], tree)


def place(tree: PyTree, where: Mesh, spec: PartitionSpec | None = None) -> PyTree:
    """Arrays on the devices of a mesh: by member, or as `spec` says. Every process gives the same values.

    Args:
        tree: leaves lead with a member axis that the mesh's divides.
        where: the mesh.
        spec: default `PartitionSpec("member")`.
    """
    sharding = NamedSharding(where, PartitionSpec(MEMBER) if spec is None else spec)
    if where.is_multi_process:
        return jax.tree.map(lambda leaf: _global(leaf, sharding), tree)
    return jax.device_put(tree, sharding)


def place_whole(tree: PyTree, where: Mesh | None) -> PyTree:
    """What every member sees, on every device of the mesh."""
    return tree if where is None or lies_on(tree, where) else place(tree, where, PartitionSpec())


def first(tree: PyTree, k: int) -> PyTree:
    """The first `k` members, off the mesh if this process has them all."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable or len(leaf.sharding.device_set) == 1:
            return leaf[:k]
        # By way of the host: slicing on the devices would make each wait for the others, once for every leaf.
        return jax.device_put(leaf, jax.local_devices()[0])[:k]

    return jax.tree.map(one, tree)


def lies_on(tree: PyTree, where: Mesh) -> bool:
    """Whether all leaves are on this mesh already."""
    return all(getattr(getattr(leaf, "sharding", None), "mesh", None) == where for leaf in jax.tree.leaves(tree))


def _global(leaf: Any, sharding: NamedSharding) -> Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _global(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def split_batch(batch: Batch) -> Batch:
    """Tells the compiler to share a batch out over the data axis of the mesh it is in; without one, nothing."""
    around = jax.sharding.get_abstract_mesh()
    size = dict(around.shape).get(DATA, 1)
    if size == 1 or any(leaf.shape[0] % size for leaf in jax.tree.leaves(batch)):
        return batch
    sharding = NamedSharding(around, PartitionSpec(DATA))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), batch)


def _take(tree: PyTree, start: Any, size: int) -> PyTree:
    """Members `start` to `start + size`."""
    return jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, size), tree)


def _put(tree: PyTree, part: PyTree, start: Any) -> PyTree:
    return jax.tree.map(lambda leaf, new: jax.lax.dynamic_update_slice_in_dim(leaf, new, start, 0), tree, part)


def _some(function: Member, size: int, shared: int) -> Member:
    """The function for `size` members at a time; for one it is the function itself, and not a batched form of it."""

    def alone(carried: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree]:
        members, whole = (carried, *rest[: len(rest) - shared]), rest[len(rest) - shared :]
        found = function(*jax.tree.map(lambda leaf: leaf[0], members), *whole)
        return jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], found)

    def together(carried: PyTree, *rest: PyTree) -> tuple[PyTree, PyTree]:
        axes = [0] * (1 + len(rest) - shared) + [None] * shared
        return jax.vmap(function, in_axes=tuple(axes))(carried, *rest)

    return alone if size == 1 else together


def blank(function: Member, carried: PyTree, stacked: tuple[PyTree, ...], shared: tuple[PyTree, ...]) -> PyTree:
    """Zeros for what the function returns besides, of all members."""
    k = count(carried, stacked)
    _, out = jax.eval_shape(function, *one_member((carried, *stacked)), *shared)
    return jax.tree.map(lambda leaf: _zeros((k, *leaf.shape), leaf.dtype), out)


def one_member(tree: PyTree) -> PyTree:
    """The shapes of one member of a stacked tree."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), tree)


def _zeros(shape: tuple[int, ...], dtype: Any) -> Array:
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), shape)
    return jnp.zeros(shape, dtype)


def _apart(function: Callable[..., PyTree], inputs: tuple[PyTree, ...], go: Array) -> PyTree:
    """Calls a function such that XLA does not merge it with what is around it.

    Else it reads a member again while its place among all is being written, for which it first copies them all. On a
    CPU, where XLA drops barriers early, a branch that is always taken (which it cannot know) does it.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(inputs)))
    function = jax.jit(function)  # traced once
    shapes = jax.eval_shape(function, *inputs)

    def nothing(*_: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: _zeros(leaf.shape, leaf.dtype), shapes)

    return jax.lax.cond(go, function, nothing, *inputs)


def _local(
    function: Member, chunk: int, many: Array, carried: PyTree, stacked: PyTree, shared: PyTree
) -> tuple[PyTree, PyTree]:
    """All members of one device, `chunk` at a time, in place; `many` is their number, unknown to the compiler."""
    k = count(carried, stacked)
    if chunk >= k:
        return _some(function, k, len(shared))(carried, *stacked, *shared)

    def visit(start: Any, size: int, carried: PyTree, out: PyTree) -> tuple[PyTree, PyTree]:
        inputs = (*_take((carried, *stacked), start, size), *shared)
        new, result = _apart(_some(function, size, len(shared)), inputs, start < many)
        return _put(carried, new, start), _put(out, result, start)

    def body(i: Array, both: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
        return visit(i * chunk, chunk, *both)

    # A loop over one carry, and not `lax.map`: that would hold the members before and after.
    both = carried, blank(function, carried, stacked, shared)
    both = jax.lax.fori_loop(0, k // chunk, body, both)
    return visit(jnp.int32(k - k % chunk), k % chunk, *both) if k % chunk else both


def _on(where: Mesh | None, local: Callable[..., Any], ways: Sequence[bool]) -> Callable[..., Any]:
    """`local` on every device of the mesh, with its share of the arguments that `ways` says are of members."""
    if where is None:
        return local
    specs = tuple(PartitionSpec(MEMBER) if way else PartitionSpec() for way in ways)
    return jax.shard_map(
        local, mesh=where, in_specs=specs, out_specs=PartitionSpec(MEMBER), axis_names={MEMBER}, check_vma=False
    )


@functools.partial(jax.jit, static_argnames=("function", "chunk", "where"), donate_argnames="carried")
def _compiled(
    many: Array, carried: PyTree, stacked: PyTree, shared: PyTree, *, function: Member, chunk: int, where: Mesh | None
) -> tuple[PyTree, PyTree]:
    local = functools.partial(_local, function, chunk)
    return _on(where, local, (False, True, True, False))(many, carried, stacked, shared)


# One member (chunk) of each device: taken out, moved, put back. Three programs, for the reason given in `_apart`, and
# since a convolution inside a branch or loop is slow on a CPU.


@functools.partial(jax.jit, static_argnames=("size", "where"))
def _taken(start: Array, members: PyTree, *, size: int, where: Mesh | None) -> PyTree:
    return _on(where, lambda start, members: _take(members, start, size), (False, True))(start, members)


@functools.partial(jax.jit, static_argnames=("function", "size", "where"), donate_argnames="carried")
def _moved(
    carried: PyTree, stacked: PyTree, shared: PyTree, *, function: Member, size: int, where: Mesh | None
) -> tuple[PyTree, PyTree]:
    some = _some(function, size, len(shared))
    return _on(where, lambda c, s, w: some(c, *s, *w), (True, True, False))(carried, stacked, shared)


@functools.partial(jax.jit, static_argnames="where", donate_argnames="members")
def _returned(start: Array, members: PyTree, part: PyTree, *, where: Mesh | None) -> PyTree:
    return _on(where, lambda start, members, part: _put(members, part, start), (False, True, True))(
        start, members, part
    )


@functools.partial(jax.jit, static_argnames=("function", "where"))
def _blank(carried: PyTree, stacked: PyTree, shared: PyTree, *, function: Member, where: Mesh | None) -> PyTree:
    out = blank(function, carried, stacked, shared)
    if where is None:
        return out
    sharding = NamedSharding(where, PartitionSpec(MEMBER))
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, sharding), out)


def run(
    function: Member,
    carried: PyTree,
    stacked: tuple[PyTree, ...],
    shared: tuple[PyTree, ...],
    *,
    mapping: MemberMapping,
    chunk: int | None,
    where: Mesh | None,
    times: int = 1,
) -> tuple[PyTree, PyTree]:
    """Every member once; the memory of `carried` is used for its new value.

    Args:
        function: equal functions share programs, so give the same object, or one that compares by value.
        carried: what is replaced; leaves lead with `K`, a multiple of the devices along the member axis.
        stacked: further trees of members.
        shared: trees that every member sees whole.
        mapping: `vmap`: all of a device's members at once; `map`: a compiled loop over chunks of them; `loop`: the
            same, one dispatch each.
        chunk: members at a time on each device; default all under `vmap`, else 1.
        where: the mesh; `None` for one device.
        times: how often the function is called for each member, what it carries handed on; at least once.

    Returns:
        `carried` and what the function returns besides, both leading with `K`.
    """
    k = count(carried, stacked)
    own, over = divmod(k, across(where))
    if over:
        raise ValueError(f"{k} members cannot be shared out evenly over {across(where)} devices; see population.create")
    chunk = at_once(own, mapping, chunk)
    if mapping == "map" or chunk == own:
        many = np.int32(own)
        for _ in range(times):
            carried, out = _compiled(many, carried, stacked, shared, function=function, chunk=chunk, where=where)
        return carried, out
    out = _blank(carried, stacked, shared, function=function, where=where)
    for start in range(0, own, chunk):
        # Every device goes to its own member number `start` at the same time.
        size, at = min(chunk, own - start), np.int32(start)
        mine, inputs = _taken(at, (carried, stacked), size=size, where=where)
        for _ in range(times):
            mine, result = _moved(mine, inputs, shared, function=function, size=size, where=where)
        carried, out = _returned(at, (carried, out), (mine, result), where=where)
    return carried, out


def compiled(
    carried: PyTree, stacked: PyTree, shared: PyTree, *, function: Member, chunk: int, where: Mesh | None
) -> Any:
    """The compiled program of `run` for these shapes, to ask what it needs; a later `run` finds it."""
    return _compiled.lower(np.int32(1), carried, stacked, shared, function=function, chunk=chunk, where=where).compile()
