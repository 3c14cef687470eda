"""Which mapping over members suits a function: decided from the backend, the function's operations, their number, and
the compiler's estimate of memory.
"""

import dataclasses
import functools
import logging
import math
import os
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvp_jax.core import flops
from mvp_jax.core.types import PyTree
from mvp_jax.parallel import mapping as maps

log = logging.getLogger(__name__)

_SMALL = 5e7
"""FLOPs of one member below which a CPU spends more on starting operations than on them (benchmarks/growth.py)."""

_LIGHT = 5e2
"""FLOPs for each number that a member returns (its new state), below which taking it out of all and putting it back
costs a CPU more than computing with it (benchmarks/growth.py)."""

_SHARE = 0.9
"""Of a device's memory that may be planned with; the rest is for fragmentation."""


class Memory(NamedTuple):
    """The memory that a program needs on one device, in bytes, as the compiler estimates it.

    Attributes:
        arguments: of the arguments.
        fresh: of those results that do not reuse the memory of arguments.
        temporary: of what is needed while the program runs.
    """

    arguments: int
    fresh: int
    temporary: int

    @property
    def total(self) -> int:
        return self.arguments + self.fresh + self.temporary


@dataclasses.dataclass(frozen=True, kw_only=True)
class MappingPlan:
    """How members will be mapped, and the reason, for people.

    Attributes:
        mapping: `vmap`, `map` or `loop`.
        chunk: members at a time on each device; `None`: all under `vmap`, else one.
        why: the reason, in one sentence.
    """

    mapping: maps.MemberMapping
    chunk: int | None
    why: str


def memory(
    function: maps.Member,
    carried: PyTree,
    stacked: tuple[PyTree, ...],
    shared: tuple[PyTree, ...],
    *,
    mapping: maps.MemberMapping,
    chunk: int | None,
    where: Mesh | None,
) -> Memory:
    """The memory that `mapping.run` will need on each device. It compiles the program and allocates nothing.

    Args:
        function: `(carried, *stacked, *shared) -> (carried, out)` for one member.
        carried: arrays or shapes; leaves lead with `K`.
        stacked: further trees of members.
        shared: trees that every member sees whole.
        mapping: how members are mapped.
        chunk: members at a time on each device; `None`: all under `vmap`, else one.
        where: the mesh; `None` for one device.
    """
    chunk = maps.at_once(maps.count(carried, stacked) // maps.across(where), mapping, chunk)
    carried, stacked = _abstract((carried, stacked), where, PartitionSpec(maps.MEMBER))
    shared = _abstract(shared, where, PartitionSpec())
    compiled = maps.compiled(carried, stacked, shared, function=function, chunk=chunk, where=where)
    found = compiled.memory_analysis()
    return Memory(
        arguments=found.argument_size_in_bytes,
        fresh=max(found.output_size_in_bytes - found.alias_size_in_bytes, 0),
        temporary=found.temp_size_in_bytes,
    )


def _abstract(tree: PyTree, where: Mesh | None, spec: PartitionSpec) -> PyTree:
    sharding = None if where is None else NamedSharding(where, spec)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def available(where: Mesh | None = None) -> int:
    """Bytes of memory that one device has left.

    Args:
        where: a mesh, whose first device of this process is asked; `None`: the first device of this process.

    Returns:
        The device's limit less what is in use; on a CPU, or where the device does not say, the machine's memory
        divided by the number of devices of this process.
    """
    device = (jax.local_devices() if where is None else list(where.local_mesh.devices.flat))[0]
    stats = device.memory_stats() if device.platform != "cpu" else None
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 2**33
    return total // len(jax.local_devices())


def primitives(jaxpr: Any) -> Iterator[str]:
    """Yields the names of all primitives of a jaxpr and of the jaxprs that its equations call."""
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for inner in flops.subprograms(equation):
            yield from primitives(getattr(inner, "jaxpr", inner))


def choose(
    function: maps.Member,
    carried: PyTree,
    stacked: tuple[PyTree, ...],
    shared: tuple[PyTree, ...],
    *,
    where: Mesh | None,
    limit: int | None = None,
) -> MappingPlan:
    """The mapping that suits a function which can be traced; nothing is run.

    On a CPU: `loop` for native convolutions, `vmap` for members that compute little, or little for what they return,
    else `map`. On accelerators: `map` for convolutions and where members share a batch between devices, `vmap` if the
    compiler's estimate fits into the memory, else `map` over the largest chunk that does.

    Args:
        function: `(carried, *stacked, *shared) -> (carried, out)` for one member.
        carried: arrays or shapes; leaves lead with `K`.
        stacked: further trees of members.
        shared: trees that every member sees whole.
        where: the mesh; `None` for one device.
        limit: bytes of one device that may be used; `None`: nine tenths of what it has.
    """
    k = maps.count(carried, stacked) // maps.across(where)
    if k == 1:
        return MappingPlan(mapping="loop", chunk=1, why="one member on each device")
    seen = jax.jit(function).trace(*maps.one_member((carried, *stacked)), *jax.tree.map(_shape, shared))
    convolves = "conv_general_dilated" in set(primitives(seen.jaxpr.jaxpr))
    backend = jax.default_backend() if where is None else where.devices.flat[0].platform
    if backend == "cpu":
        work = flops.count(seen.jaxpr, repeat_loops=False)  # loops once: what matters is how large operations are
        return _on_cpu(convolves, work, sum(math.prod(x.shape) for x in jax.tree.leaves(seen.out_info)))
    data = 1 if where is None else where.shape.get(maps.DATA, 1)
    if data > 1:
        return MappingPlan(
            mapping="map", chunk=1, why=f"{k} members in turn: together they would gather the shared batch"
        )
    if convolves:
        return MappingPlan(
            mapping="map", chunk=1, why=f"{k} members in turn: together their convolutions become grouped ones"
        )
    limit = int(_SHARE * available(where)) if limit is None else limit
    need = memory(function, carried, stacked, shared, mapping="vmap", chunk=None, where=where)
    if need.total <= limit:
        return MappingPlan(
            mapping="vmap", chunk=None, why=f"{k} members at once: {_size(need.total)} of {_size(limit)}"
        )
    room = max(limit - need.arguments - need.fresh, 0)
    chunk = max(min(k * room // max(need.temporary, 1), k - 1), 1)
    return MappingPlan(
        mapping="map",
        chunk=chunk,
        why=f"{chunk} of {k} members at once: all need {_size(need.total)} of {_size(limit)}",
    )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _on_cpu(convolves: bool, work: int, returns: int) -> MappingPlan:
    if convolves:
        why = "XLA's CPU convolutions are slow inside compiled loops and under vmap; conv='im2col' can be mapped"
        return MappingPlan(mapping="loop", chunk=1, why=f"a dispatch for each member: {why}")
    each = work / max(returns, 1)
    if work < _SMALL:
        return MappingPlan(
            mapping="vmap", chunk=None, why=f"all at once: a member computes little, {work / 1e6:.1f} MFLOP"
        )
    if each < _LIGHT:
        return MappingPlan(
            mapping="vmap", chunk=None, why=f"all at once: only {each:.0f} FLOP for each number a member returns"
        )
    return MappingPlan(
        mapping="map", chunk=1, why=f"in turn in one program: {work / 1e9:.2f} GFLOP a member fill a CPU"
    )


def _size(number: int) -> str:
    return f"{number / 2**30:.1f} GiB" if number >= 2**29 else f"{number / 2**20:.0f} MiB"


def resolve(
    function: Callable[..., Any],
    carried: PyTree,
    stacked: tuple[PyTree, ...],
    shared: tuple[PyTree, ...],
    *,
    mapping: maps.MemberMapping,
    chunk: int | None,
    where: Mesh | None,
    limit: int | None = None,
) -> MappingPlan:
    """The plan for a mapping: for `auto` what `choose` finds, for any other mapping that mapping and chunk.

    Args:
        function: `(carried, *stacked, *shared) -> (carried, out)` for one member. What is found for `auto` is
            remembered for equal functions and shapes.
        carried: arrays or shapes; leaves lead with `K`.
        stacked: further trees of members.
        shared: trees that every member sees whole.
        mapping: what the caller asked for.
        chunk: members at a time; if given, it replaces what `choose` finds.
        where: the mesh; `None` for one device.
        limit: bytes of one device that `auto` may use; `None`: nine tenths of what it has.
    """
    if mapping != "auto":
        return MappingPlan(mapping=mapping, chunk=chunk, why="as asked for")
    leaves, structure = jax.tree.flatten((carried, stacked, shared))
    found = _chosen(function, structure, tuple(map(_shape, leaves)), where, limit)
    if chunk is not None:
        found = dataclasses.replace(found, chunk=chunk)
    return found


@functools.lru_cache(maxsize=256)
def _chosen(
    function: maps.Member,
    structure: Any,
    leaves: tuple[jax.ShapeDtypeStruct, ...],
    where: Mesh | None,
    limit: int | None,
) -> MappingPlan:
    """`choose`, once for each function and shapes."""
    carried, stacked, shared = jax.tree.unflatten(structure, leaves)
    found = choose(function, carried, stacked, shared, where=where, limit=limit)
    log.info("%s: %s", found.mapping, found.why)
    return found
