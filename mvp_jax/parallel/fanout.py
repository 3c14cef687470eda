"""One function over many members, for anything that is not training: `population.over`, `pmap` and `plan`."""

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
    """Calls `function` once per member: `function(*its part of stacked, *shared)`.

    Under `vmap` and `loop` on one device `function` may be ordinary Python that calls jitted pieces: each piece is
    compiled once and found again by every later call of the same shapes. Under `map`, and on a mesh, it is traced as
    a whole; then equal functions share a program, so hand over the same object, or one that compares by value.

    Args:
        function: takes one member's trees, returns a tree of arrays.
        stacked: trees whose leaves lead with the member axis `K`.
        shared: trees that every member gets whole.
        mapping: `vmap`: all members at once; `map`: in turn in one compiled loop; `loop`: in turn, one call each;
            `auto`: see `plan`.
        chunk: members at a time on each device; default all under `vmap`, else one.
        mesh: devices to share the members out over, any number of them; see `mesh`.

    Returns:
        What `function` returns, stacked over members.

    Raises:
        ValueError: for another mapping, or no members.

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
    """`over` for people who think in `jax.pmap`: any number of members, on all local devices unless a mesh says else.

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
    """What `mapping="auto"` takes for a function, and why; nothing is run or allocated.

    On a CPU: `loop` for native convolutions, `vmap` for members that compute little, or little for what they carry,
    else `map`. Elsewhere: `map` for convolutions and for shared batches, `vmap` if the
    compiler's estimate fits the memory, else `map` over the largest chunk that does.

    Args:
        function: as for `over`, or a step as for `advance`.
        stacked: arrays or shapes; leaves lead with `K`.
        shared: as for `over`.
        mesh: as for `over`.
        limit: bytes of one device; default nine tenths of what it has.

    Returns:
        A `MappingPlan`: `mapping`, `chunk`, `why`.

    >>> plan(lambda x: x + 1, jnp.ones((4, 8))).mapping
    'vmap'
    """
    return auto.resolve(_Plain(function), (), stacked, shared, mapping="auto", chunk=None, where=mesh, limit=limit)
