"""Rules for primitives that put entries where indices say, and for products of rows with the matrix of their group."""

from typing import Any, NamedTuple

from mvp_jax.graph.dims import Axes, Dim, freeze, resolve, unify
from mvp_jax.graph.rules import Dims, PrimitiveRule, Seen, Shapes, Zeros, leak, nothing

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


# --- Products of groups ----------------------------------------------------------------------------------------------

_RAGGED = "rows are multiplied by the matrix of their group"


def _ragged(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """Axes of `lax.ragged_dot_general` in its three modes.

    For the rows of one group it is a product like any other, so its contracted, free and other batch axes are. Which
    rows belong to a group is counted along the ragged axis: that, the groups, and the groups' sizes stay whole.
    """
    numbers = params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
    left, right, sizes = ins
    for a, b in (*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)):
        unify(left[a], right[b])
    counted = [left[a] for a in numbers.lhs_ragged_dimensions]
    if len(sizes) > 1:  # every row of the other axes has sizes of its own
        counted += [e for a, e in enumerate(left) if a in lb or a not in lc]
        counted += [left[a] for a in lc if set(numbers.lhs_ragged_dimensions) & set(lc)]
    for e in (*counted, *(right[b] for b in numbers.rhs_group_dimensions), *sizes):
        freeze(e, _RAGGED)
    free_left, free_right = _ragged_free(numbers, len(left), len(right))
    out = [*(left[a] for a in lb), *(left[a] for a in free_left), *(right[b] for b in free_right)]
    return [[*(Dim(n, _RAGGED) for n in shapes[0][: len(shapes[0]) - len(out)]), *out]]


def _ragged_free(numbers: Any, left: int, right: int) -> tuple[list[int], list[int]]:
    (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
    groups = tuple(numbers.rhs_group_dimensions)
    return [a for a in range(left) if a not in (*lb, *lc)], [b for b in range(right) if b not in (*rb, *rc, *groups)]


def _ragged_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    numbers = seen.params["ragged_dot_dimension_numbers"]
    (lc, rc), (lb, rb) = numbers.dot_dimension_numbers
    for a, b in zip(lc, rc, strict=True):
        zero = seen.zero(zs[0], 0, a) | seen.zero(zs[1], 1, b)
        leak(seen.ins[0][a], zero, "contracted where neither factor is zero at removed units")
    if zs[0] is None or zs[1] is None:
        return [None]
    free_left, free_right = _ragged_free(numbers, len(seen.ins[0]), len(seen.ins[1]))
    out = [zs[0][a] | zs[1][b] for a, b in zip(lb, rb, strict=True)]
    out += [zs[0][a] for a in free_left] + [zs[1][b] for b in free_right]
    return [(*[frozenset[Dim]()] * (len(seen.outs[0]) - len(out)), *out)]


INDEXING: dict[str, PrimitiveRule] = {
    **{
        name: PrimitiveRule(_scatter(name), _placed)
        for name in ("scatter", "scatter-add", "scatter-sub", "scatter-min", "scatter-max")
    },
    "scatter-mul": PrimitiveRule(_scatter("scatter-mul"), _multiplied),
    "ragged_dot_general": PrimitiveRule(_ragged, _ragged_zeros),
}
