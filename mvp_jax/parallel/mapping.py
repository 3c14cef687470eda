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
"""How a function is applied to many members: `vmap`: all of a device at once; `map`: in turn (or in chunks) in one
compiled loop; `loop`: in turn, one dispatch each; `auto`: what `auto.choose` finds to suit the function.
"""

MAPPINGS = ("vmap", "map", "loop", "auto")
"""The values of `MemberMapping`."""

MEMBER, DATA = "member", "data"
"""The names of a mesh's axes: devices with different members, and devices that share one member's batch."""

Member: TypeAlias = Callable[..., tuple[PyTree, PyTree]]
"""`(carried, *stacked, *shared) -> (carried, out)` for one member."""


def mesh(members: int | None = None, data: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Devices laid out as a mesh with the axes `member` and `data`.

    Args:
        members: how many devices lie along the member axis; by default the number of devices divided by `data`.
        data: how many devices share one member's batch.
        devices: which devices; by default all devices of all processes.

    Returns:
        A mesh for `population.create`, `advance`, `fit` and `over`.

    Raises:
        ValueError: if `members × data` is more than the devices, or not their number where `devices` are named.

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
    """How many devices of a mesh lie along its member axis; 1 without a mesh."""
    return 1 if where is None else where.shape[MEMBER]


def check(mapping: str, chunk: int | None, where: Mesh | None) -> None:
    """Raises `ValueError` for an unknown mapping, a chunk below 1, or a mesh with other axes than `member` and `data`.

    Args:
        mapping: one of `MAPPINGS`.
        chunk: members at a time, or `None`.
        where: the mesh, or `None` for one device.
    """
    if mapping not in MAPPINGS:
        raise ValueError(f"unknown mapping {mapping!r}; choose one of {MAPPINGS}")
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give members at a time, at least 1, or None")
    if where is not None and (MEMBER not in where.shape or set(where.shape) - {MEMBER, DATA}):
        raise ValueError(f"the mesh has axes {tuple(where.shape)}; make one with population.mesh(members, data)")


def count(*stacked: PyTree) -> int:
    """The length `K` of the member axis that all leaves of stacked trees lead with.

    Raises:
        ValueError: if the leaves lead with axes of different lengths, or of length 0.

    >>> count({"a": jnp.zeros((3, 2))}, jnp.zeros(3))
    3
    """
    sizes = {leaf.shape[0] if leaf.shape else 0 for leaf in jax.tree.leaves(stacked)}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(f"all leaves must lead with one member axis of at least 1, got sizes {sorted(sizes)}")
    return int(sizes.pop())


def at_once(own: int, mapping: MemberMapping, chunk: int | None) -> int:
    """How many members a device computes together.

    Args:
        own: how many members the device has.
        mapping: how they are mapped.
        chunk: members at a time; `None`: all under `vmap`, else one.
    """
    return min(chunk or (own if mapping == "vmap" else 1), own)


def padded(k: int, where: Mesh | None) -> int:
    """The smallest multiple of the devices along the member axis that is at least `k`; `k` without a mesh."""
    return math.ceil(k / across(where)) * across(where)


def pad(tree: PyTree, k: int) -> PyTree:
    """A stacked tree filled up with copies of its first member.

    Args:
        tree: every leaf leads with the member axis.
        k: how many members the result has, at least as many as `tree`.

    >>> pad(jnp.array([1, 2]), 4).tolist()
    [1, 2, 1, 1]
    """
    have = count(tree)
    if have == k:
        return tree
    index = np.concatenate([np.arange(have), np.zeros(k - have, int)])
    return jax.tree.map(lambda leaf: leaf[index], tree)


def place(tree: PyTree, where: Mesh, spec: PartitionSpec | None = None) -> PyTree:
    """The tree with its arrays on the devices of a mesh, by default each member on one device along the member axis.

    Args:
        tree: arrays; without `spec` every leaf leads with a member axis whose length is a multiple of the devices
            along the mesh's member axis. In a run of several processes every process gives the same values.
        where: the mesh.
        spec: which axes of the arrays lie along which axes of the mesh; default `PartitionSpec("member")`.
    """
    sharding = NamedSharding(where, PartitionSpec(MEMBER) if spec is None else spec)
    if where.is_multi_process:
        return jax.tree.map(lambda leaf: _global(leaf, sharding), tree)
    return jax.device_put(tree, sharding)


def place_whole(tree: PyTree, where: Mesh | None) -> PyTree:
    """The tree with a copy of its arrays on every device of the mesh; the tree itself without a mesh."""
    return tree if where is None or lies_on(tree, where) else place(tree, where, PartitionSpec())


def first(tree: PyTree, k: int) -> PyTree:
    """The first `k` members of a stacked tree, such as those that `pad` did not add.

    Arrays of which this process holds all parts are moved to its first device; others stay on their mesh.
    """

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or not leaf.is_fully_addressable or len(leaf.sharding.device_set) == 1:
            return leaf[:k]
        # By way of the host: slicing on the devices would make each wait for the others, once for every leaf.
        return jax.device_put(leaf, jax.local_devices()[0])[:k]

    return jax.tree.map(one, tree)


def lies_on(tree: PyTree, where: Mesh) -> bool:
    """Whether all leaves of the tree are arrays on this mesh."""
    return all(getattr(getattr(leaf, "sharding", None), "mesh", None) == where for leaf in jax.tree.leaves(tree))


def _global(leaf: Any, sharding: NamedSharding) -> Array:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _global(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    values = np.asarray(leaf)
    return jax.make_array_from_callback(values.shape, sharding, lambda part: values[part])


def split_batch(batch: Batch) -> Batch:
    """The same batch, with a hint to the compiler to lay its examples out over the data axis of the surrounding mesh.

    Without a mesh, or where the number of examples is no multiple of the data axis, the batch is returned unchanged.
    """
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
    """Zeros in the shapes of what a function returns beside `carried`, for all members: leaves lead with `K`.

    The arguments are those of `run`.
    """
    k = count(carried, stacked)
    _, out = jax.eval_shape(function, *one_member((carried, *stacked)), *shared)
    return jax.tree.map(lambda leaf: _zeros((k, *leaf.shape), leaf.dtype), out)


def one_member(tree: PyTree) -> PyTree:
    """Shapes and dtypes of one member of a stacked tree, as `jax.ShapeDtypeStruct`s."""
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
    """Calls a function for every member, and reuses the memory of `carried` for its new value.

    Args:
        function: `(carried, *stacked, *shared) -> (carried, out)` for one member. Equal functions share compiled
            programs, so give the same object, or one that compares by value.
        carried: what the function replaces; its arrays are donated. Leaves lead with `K`, a multiple of the devices
            along the member axis.
        stacked: further trees of members.
        shared: trees that every member sees whole.
        mapping: `vmap`: all members of a device at once; `map`: one compiled loop over chunks of them; `loop`: a
            dispatch for each chunk.
        chunk: members at a time on each device; `None`: all under `vmap`, else 1.
        where: the mesh; `None` for one device.
        times: how often the function is called for each member, each call with what the one before carried; at least
            once.

    Returns:
        The new `carried`, and what the last call returned beside it; leaves of both lead with `K`.

    Raises:
        ValueError: if `K` is no multiple of the devices along the member axis.
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
    """The compiled program that `run` uses for these shapes, for instance to ask how much memory it needs.

    Args:
        carried: arrays or shapes; leaves lead with `K`.
        stacked: further trees of members.
        shared: trees that every member sees whole.
        function: as for `run`.
        chunk: members at a time on each device.
        where: the mesh; `None` for one device.

    Returns:
        A `jax.stages.Compiled`; a later `run` with these shapes does not compile again.
    """
    return _compiled.lower(np.int32(1), carried, stacked, shared, function=function, chunk=chunk, where=where).compile()
