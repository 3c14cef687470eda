"""Rules for primitives that pick entries by indices, or put them there."""

from typing import Any, NamedTuple

import numpy as np
from jax import lax

from mvp_jax.graph.dims import Axes, Dim, freeze, resolve, unify
from mvp_jax.graph.lengths import at_most
from mvp_jax.graph.primitives import reorders
from mvp_jax.graph.rules import Dims, Lengths, PrimitiveRule, Seen, Shapes, Zeros, moved, nothing, shape_of

# --- Gathering and slicing -------------------------------------------------------------------------------------------


def _gather(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """Axes of a gather.

    Along an axis that is picked whole each unit's entries are picked for themselves, all at the same place of the other
    axes; along a batch axis each unit has indices of its own. All other axes take part in the picking and stay whole.
    """
    numbers, why = params["dimension_numbers"], "gather picks entries by index"
    operand, indices = ins
    if "order" in params:
        for e in indices:
            freeze(e, why)
        return [reorders.picked(params, operand)]
    batched = tuple(getattr(numbers, "operand_batching_dims", ()))
    beside = tuple(getattr(numbers, "start_indices_batching_dims", ()))
    inside = [a for a in range(len(operand)) if a not in (*numbers.collapsed_slice_dims, *batched)]
    out: Axes = [Dim(n, why) for n in shapes[0]]
    free = set(batched)
    for place, a in zip(numbers.offset_dims, inside, strict=True):
        if params["slice_sizes"][a] == resolve(operand[a]).size:
            out[place] = operand[a]
            free.add(a)
    # The result's other axes are those of the indices, in order, without the last one, which holds an index.
    counted = [d for d in range(len(out)) if d not in numbers.offset_dims]
    for a, i in zip(batched, beside, strict=True):
        unify(operand[a], indices[i])
        out[counted[i]] = operand[a]
    for axes, taken in ((operand, free), (indices, beside)):
        for a, e in enumerate(axes):
            if a not in taken:
                freeze(e, why)
    return [out]


def _picked(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Where an index is out of range, entries may be filled with something else than zero, removed ones too."""
    if "order" in seen.params:
        return moved(seen, zs)
    if seen.params["mode"] == lax.GatherScatterMode.FILL_OR_DROP and not _fills_zero(seen):
        return nothing(seen)
    return _looked_up(seen, zs)


def _fills_zero(seen: Seen) -> bool:
    """Whether a gather fills with zeros, or with nan, which everything becomes that such an entry is added to."""
    fill = seen.params["fill_value"]
    if fill is None:
        return bool(np.issubdtype(seen.dtypes[0], np.inexact) or seen.dtypes[0] == np.bool_)
    return bool(fill == 0 or np.isnan(fill))


def _looked_up(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Whole axes of the operand keep their zeros; every other axis of the result is new."""
    if zs[0] is None:
        return [None]
    found = []
    for e in seen.outs[0]:
        e = resolve(e)
        at = [a for a, old in enumerate(seen.ins[0]) if resolve(old) is e]
        found.append(zs[0][at[0]] if len(at) == 1 and not at_most(e.size, 1) else frozenset())
    return [tuple(found)]


def _emit_gather(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    sizes = [size(e) if n == resolve(e).size else n for n, e in zip(params["slice_sizes"], seen.ins[0], strict=True)]
    return lax.gather(
        values[0],
        reorders.indices(seen, size, values[1]) if "order" in seen.params else values[1],
        params["dimension_numbers"],
        sizes,
        unique_indices=params["unique_indices"],
        indices_are_sorted=params["indices_are_sorted"],
        mode=params["mode"],
        fill_value=params["fill_value"],
    )


def _dynamic_slice(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    out: Axes = []
    for e, n in zip(ins[0], shapes[0], strict=True):
        if resolve(e).size == n:
            out.append(e)
        else:
            freeze(e, "dynamic_slice picks entries by index")
            out.append(Dim(n, "dynamic_slice picks entries by index"))
    return [out]


def _emit_dynamic_slice(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    return lax.dynamic_slice(values[0], values[1:], shape_of(seen.outs[0], size))


def _dynamic_update(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    for e, new in zip(ins[0], ins[1], strict=True):
        if resolve(e).size == resolve(new).size:
            unify(e, new)
        else:
            freeze(e, "dynamic_update_slice writes entries by index")
            freeze(new, "dynamic_update_slice writes entries by index")
    return [list(ins[0])]


def _updated_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    return [tuple(seen.zero(zs[0], 0, a) & seen.zero(zs[1], 1, a) for a in range(len(seen.outs[0])))]


# --- Scattering ------------------------------------------------------------------------------------------------------


class _Meeting(NamedTuple):
    """Which axes of a scatter's operand, indices and updates lie beside each other."""

    windows: tuple[tuple[int, int], ...]
    batches: tuple[tuple[int, int, int], ...]


def _meeting(numbers: Any, operand: int, updates: int) -> _Meeting:
    """The axes of windows, `(of the operand, of the updates)`, and of batches, `(operand, indices, updates)`."""
    batching = tuple(getattr(numbers, "operand_batching_dims", ()))
    inside = [a for a in range(operand) if a not in (*numbers.inserted_window_dims, *batching)]
    # The updates' other axes are those of the indices, in order, without the last one, which holds an index.
    counted = [u for u in range(updates) if u not in numbers.update_window_dims]
    beside = tuple(getattr(numbers, "scatter_indices_batching_dims", ()))
    return _Meeting(
        tuple(zip(inside, numbers.update_window_dims, strict=True)),
        tuple((a, i, counted[i]) for a, i in zip(batching, beside, strict=True)),
    )


def _scatter(name: str) -> Dims:
    """Axes of a scatter.

    Along an axis that every window spans whole, and that no index speaks of, each unit's entries are placed for
    themselves, all at the same place of the other axes; along a batch axis each unit has indices of its own. So there
    the smaller scatter gives each kept unit what it had. All other axes take part in the placing and stay whole.
    """
    why = f"{name} puts entries at indices"

    def dims(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
        numbers = params["dimension_numbers"]
        operand, indices, updates = ins
        windows, batches = _meeting(numbers, len(operand), len(updates))
        free: list[set[int]] = [set(), set(), set()]
        for a, u in windows:
            whole = resolve(operand[a]).size == resolve(updates[u]).size
            if whole and a not in numbers.scatter_dims_to_operand_dims:
                unify(operand[a], updates[u])
                free[0].add(a)
                free[2].add(u)
        for a, i, u in batches:
            unify(operand[a], indices[i])
            unify(operand[a], updates[u])
            for taken, axis in zip(free, (a, i, u), strict=True):
                taken.add(axis)
        for axes, taken in zip(ins, free, strict=True):
            for a, e in enumerate(axes):
                if a not in taken:
                    freeze(e, why)
        return [list(operand)]

    return dims


def _placed(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where both the operand and what is put into it are."""
    if seen.params["update_jaxpr"] is not None and seen.name == "scatter":
        return nothing(seen)  # a function is applied to the entries, and what it makes of zero is not known
    if zs[0] is None and zs[2] is None:
        return [None]
    operand, updates = seen.ins[0], seen.ins[2]
    windows, batches = _meeting(seen.params["dimension_numbers"], len(operand), len(updates))
    out: list[frozenset[Dim]] = [frozenset() for _ in operand]
    for a, u in (*windows, *((a, u) for a, _, u in batches)):
        out[a] = seen.zero(zs[0], 0, a) & seen.zero(zs[2], 2, u)
    return [tuple(out)]


def _multiplied(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where the operand is."""
    return [zs[0]]


INDEXING: dict[str, PrimitiveRule] = {
    "gather": PrimitiveRule(_gather, _picked, _emit_gather, look=reorders.look),
    "dynamic_slice": PrimitiveRule(_dynamic_slice, _looked_up, _emit_dynamic_slice),
    "dynamic_update_slice": PrimitiveRule(_dynamic_update, _updated_zeros),
    **{
        name: PrimitiveRule(_scatter(name), _placed)
        for name in ("scatter", "scatter-add", "scatter-sub", "scatter-min", "scatter-max")
    },
    "scatter-mul": PrimitiveRule(_scatter("scatter-mul"), _multiplied),
}
