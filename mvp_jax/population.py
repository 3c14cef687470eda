"""Many runs of one function over a leading member axis."""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax import trees

Mapping: TypeAlias = Literal["vmap", "loop"]


def over(function: Callable[..., Any], *stacked: Any, mapping: Mapping = "vmap", chunk: int | None = None) -> Any:
    """Calls `function` once per member, all members at once or one after the other.

    `function` may be ordinary Python that calls jitted pieces: under `vmap` each piece is compiled once in its
    batched form and found again by every later call of the same shapes.

    Args:
        function: takes one member's trees, returns a tree of arrays.
        stacked: trees whose leaves lead with the member axis `K`.
        mapping: `vmap`, or `loop` where members are large enough to fill the machine by themselves.
        chunk: with `vmap`, members at a time: bounds the memory.

    Returns:
        What `function` returns, stacked over members.

    Raises:
        ValueError: for another mapping, or no members.

    >>> over(lambda x: x * 2, jnp.arange(3), mapping="loop").tolist()
    [0, 2, 4]
    """
    if mapping not in ("vmap", "loop"):
        raise ValueError(f"unknown mapping {mapping!r}; choose 'vmap' or 'loop'")
    members = {leaf.shape[0] for leaf in jax.tree.leaves(stacked)}
    if len(members) != 1 or 0 in members:
        raise ValueError(f"all leaves must lead with one member axis of at least 1, got sizes {sorted(members)}")
    count = members.pop()
    if mapping == "loop":
        each = [function(*jax.tree.map(lambda leaf, i=i: leaf[i], stacked)) for i in range(count)]
        return trees.stack(each)
    if chunk is None or chunk >= count:
        return jax.vmap(function)(*stacked)
    parts = [
        jax.vmap(function)(*jax.tree.map(lambda leaf, i=i: leaf[i : i + chunk], stacked))
        for i in range(0, count, chunk)
    ]
    return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
