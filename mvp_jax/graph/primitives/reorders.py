"""Entries of an axis that change places as a whole: flips, and permutations by indices that are known."""

from typing import Any

import jax
import numpy as np

from mvp_jax.graph.dims import Axes, Expr, freeze, permuted, resolve, roots
from mvp_jax.graph.rules import LazyValue, Lengths, Seen


def _stays_whole(e: Expr) -> bool:
    return all(d.why for d in roots(e))


def flipped(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """The axes of `rev`.

    Each entry goes with the unit that it belongs to, so removed ones are removed entries of the result, with the same
    values. Those that stay keep their order under removal: flipping what is left gives what is left of the flip, and
    the primitive is applied as it was.
    """
    out = list(ins[0])
    for a in params["dimensions"]:
        n = resolve(out[a]).size
        if jax.export.is_symbolic_dim(n):
            freeze(out[a], "rev along it")
        elif not _stays_whole(out[a]):
            out[a] = permuted(out[a], np.arange(n)[::-1])
    return [out]


def look(params: dict[str, Any], ins: list[Axes], values: list[LazyValue | None]) -> dict[str, Any]:
    """The parameters of a `gather` with the `order` in which it takes all entries of one axis, if it does that.

    The indices are computed only where the answer matters: for as many as the axis has entries, some of them removable.
    """
    numbers, (operand, indices), known = params["dimension_numbers"], ins, values[1]
    batched = getattr(numbers, "operand_batching_dims", ())
    picked = tuple(numbers.start_index_map)
    if known is None or batched or len(picked) != 1 or picked != tuple(numbers.collapsed_slice_dims):
        return params
    sizes = [resolve(e).size for e in operand]
    rest = [a for a in range(len(operand)) if a != picked[0]]
    n = sizes[picked[0]]
    count = [resolve(e).size for e in indices]
    if jax.export.is_symbolic_dim(n) or count != [n, 1] or any(params["slice_sizes"][a] != sizes[a] for a in rest):
        return params
    if n < 2 or _stays_whole(operand[picked[0]]):
        return params
    order = known()
    if order is None or not np.array_equal(np.sort(order.ravel()), np.arange(n)):
        return params
    return {**params, "order": order.ravel()}


def picked(params: dict[str, Any], operand: Axes) -> Axes:
    """The axes of a `gather` that takes every entry of one axis once.

    Entry `i` of the result is entry `order[i]` of the operand, whatever unit that belongs to: a removed one is a
    removed entry of the result, with the same value, and no entry meets another. Outside of the range, where a `gather`
    would clip or fill, there is no index.
    """
    (axis,) = params["dimension_numbers"].collapsed_slice_dims
    out = [e for a, e in enumerate(operand) if a != axis]
    out.insert(_place(params, len(operand)), permuted(operand[axis], params["order"]))
    return out


def indices(seen: Seen, size: Lengths, given: Any) -> Any:
    """The indices of such a `gather` in the smaller operand: of those entries that stay, in their order."""
    (axis,) = seen.params["dimension_numbers"].collapsed_slice_dims
    order, keep = seen.params["order"], size.vector(seen.ins[0][axis])
    if keep is None:
        return given
    now_at = np.cumsum(keep) - 1
    return now_at[order[keep[order]]][:, None].astype(given.dtype)


def _place(params: dict[str, Any], rank: int) -> int:
    """Which axis of the result runs over the indices."""
    offset = set(params["dimension_numbers"].offset_dims)
    return next(a for a in range(rank) if a not in offset)


__all__ = ["flipped", "indices", "look", "picked"]
