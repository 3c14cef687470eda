"""Calls one function for many members, for anything that is not training: `population.over`, `pmap` and `plan`."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree
from mvp_jax.parallel import auto
from mvp_jax.parallel import mapping as maps
from mvp_jax.parallel.auto import MappingPlan
from mvp_jax.parallel.mapping import MemberMapping


def over(
    function: Callable[..., Any],
    *stacked: Any,
    shared: tuple[Any, ...] = (),
    mapping: MemberMapping = "vmap",
    chunk: int | None = None,
    mesh: Mesh | None = None,
) -> Any:
    """Calls `function` once for each member, with the member's slice of the stacked trees and the shared trees whole.

    Under `vmap` and `loop` on one device `function` may be ordinary Python that calls jitted pieces: each piece is
    compiled once and found again by every later call of the same shapes. Under `map`, and on a mesh, it is traced as
    a whole; then equal functions share a program, so hand over the same object, or one that compares by value.

    Args:
        function: takes one member's trees, returns a tree of arrays.
        *stacked: trees whose leaves lead with the member axis `K`.
        shared: trees that every member gets whole.
        mapping: `vmap`: all members at once; `map`: in turn in one compiled loop; `loop`: in turn, one call each;
            `auto`: what `plan` finds.
        chunk: members at a time on each device; `None`: all under `vmap`, else one.
        mesh: devices that the members are distributed over, from `population.mesh`; `None`: the default device. `K`
            need not be a multiple of their number.

    Returns:
        What `function` returns, stacked: every leaf leads with `K`.

    Raises:
        ValueError: for an unknown mapping, a chunk below 1, another kind of mesh, or leaves that do not lead with
            one member axis.

    >>> over(lambda x, y: x * y, jnp.arange(3), shared=(jnp.array(2),), mapping="loop").tolist()
    [0, 2, 4]
    """
    maps.check(mapping, chunk, mesh)
    k = maps.count(stacked)
    call = _Plain(function)
    if mesh is not None:
        full = maps.padded(k, mesh)
        stacked, shared = maps.pad(stacked, full), maps.place_whole(tuple(shared), mesh)
        if not maps.lies_on(stacked, mesh):
            stacked = maps.place(stacked, mesh)
    how = auto.resolve(call, (), stacked, shared, mapping=mapping, chunk=chunk, where=mesh)
    if mesh is not None or how.mapping == "map":
        _, out = maps.run(call, (), stacked, shared, mapping=how.mapping, chunk=how.chunk, where=mesh)
        return out if mesh is None else maps.first(out, k)
    if how.mapping == "loop" and how.chunk in (None, 1):
        each = [function(*jax.tree.map(lambda leaf, i=i: leaf[i], stacked), *shared) for i in range(k)]
        return trees.stack(each)
    size = min(how.chunk or k, k)
    axes = tuple([0] * len(stacked) + [None] * len(shared))
    parts = [
        jax.vmap(function, in_axes=axes)(*jax.tree.map(lambda leaf, i=i: leaf[i : i + size], stacked), *shared)
        for i in range(0, k, size)
    ]
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def pmap(
    function: Callable[..., Any], *, mapping: MemberMapping = "auto", chunk: int | None = None, mesh: Mesh | None = None
) -> Callable[..., Any]:
    """A function of one member as a function of many, distributed over devices as `jax.pmap` does.

    Args:
        function: takes one member's trees, returns a tree of arrays.
        mapping: as for `over`.
        chunk: as for `over`.
        mesh: the devices; `None`: all devices of this process.

    Returns:
        A function of stacked trees, of any number of members, that returns the stacked results.

    >>> pmap(lambda x: x + 1)(jnp.arange(5)).tolist()
    [1, 2, 3, 4, 5]
    """

    @functools.wraps(function)
    def mapped(*stacked: Any) -> Any:
        where = maps.mesh(devices=jax.local_devices()) if mesh is None else mesh
        return over(function, *stacked, mapping=mapping, chunk=chunk, mesh=where)

    return mapped


@dataclasses.dataclass(frozen=True)
class _Plain:
    """A function of members that carry nothing."""

    function: Callable[..., Any]

    def __call__(self, carried: PyTree, *rest: Any) -> tuple[PyTree, Any]:
        return carried, self.function(*rest)


def plan(
    function: Callable[..., Any],
    *stacked: PyTree,
    shared: tuple[PyTree, ...] = (),
    mesh: Mesh | None = None,
    limit: int | None = None,
) -> MappingPlan:
    """Which mapping `mapping="auto"` takes for a function, and why; nothing is run or allocated.

    On a CPU: `loop` for native convolutions, `vmap` for members that compute little, or little for what they carry,
    else `map`. Elsewhere: `map` for convolutions and for shared batches, `vmap` if the
    compiler's estimate fits the memory, else `map` over the largest chunk that does.

    Args:
        function: takes one member's trees, as for `over`.
        *stacked: arrays or shapes; leaves lead with the member axis `K`.
        shared: trees that every member gets whole.
        mesh: the devices; `None`: the default device.
        limit: bytes of one device that may be used; `None`: nine tenths of what it has.

    Returns:
        The mapping, the members at a time on each device, and the reason.

    >>> plan(lambda x: x + 1, jnp.ones((4, 8))).mapping
    'vmap'
    """
    return auto.resolve(_Plain(function), (), stacked, shared, mapping="auto", chunk=None, where=mesh, limit=limit)
