"""Rules for primitives in which entries along an axis meet: sums, orders, products, convolutions, windows."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from mvp_jax.graph.dims import Axes, Dim, freeze, product, resolve, roots, unify
from mvp_jax.graph.primitives import reorders
from mvp_jax.graph.rules import Dims, Fold, Lengths, PrimitiveRule, Seen, Shapes, Zeros, leak, moved, nothing, same

# --- Reductions and orders -------------------------------------------------------------------------------------------


def _axes_of(params: dict[str, Any], *names: str) -> set[int]:
    found: set[int] = set()
    for name in names:
        value = params.get(name, ())
        found |= set(value) if isinstance(value, tuple | list) else {value}
    return found


def _drop(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    gone = _axes_of(params, "axes")
    return [[e for a, e in enumerate(ins[0]) if a not in gone] for _ in shapes]


def _dropped_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    gone = _axes_of(seen.params, "axes")
    return [None if zs[0] is None else tuple(z for a, z in enumerate(zs[0]) if a not in gone) for _ in seen.outs]


def _combined_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    for a in _axes_of(seen.params, "axes"):
        leak(seen.ins[0][a], seen.zero(zs[0], 0, a), f"{seen.name} over removed entries that differ from one another")
    return _dropped_zeros(seen, zs)


def _reduced(seen: Seen) -> list[tuple[tuple[int, int], ...]]:
    return [((0, a),) for a in sorted(_axes_of(seen.params, "axes"))]


# A sum over all entries is that over the kept ones and, where n removed entries have one value, n times that value.
_SUM = Fold(_reduced, lambda kept, one, count: kept + one * jnp.asarray(count, one.dtype))
# The largest of all entries is the larger of the largest kept and of the one value that all removed entries have; a
# removed entry that is zero counts too, as it does in the masked function.
_MAX = Fold(_reduced, lambda kept, one, count: lax.max(kept, one), skips_zeros=False)
_MIN = Fold(_reduced, lambda kept, one, count: lax.min(kept, one), skips_zeros=False)


def _reduction(name: str) -> Dims:
    """A reduction that sees removed entries even if they are zero."""

    def dims(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
        for a in _axes_of(params, "axes"):
            freeze(ins[0][a], f"{name} over it, which sees removed units even where they are zero")
        return _drop(params, ins, shapes)

    return dims


def _ordered(name: str, *where: str) -> Dims:
    """Entries along some axes change place or accumulate; those axes stay whole, all others pass through."""

    def dims(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
        out = same(params, ins, shapes[:1])[0]
        for a in _axes_of(params, *where):
            freeze(out[a], f"{name} along it, where the place of an entry or what comes before it matters")
        return [out for _ in shapes]

    return dims


def _each(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    return list(zs)


# --- Products --------------------------------------------------------------------------------------------------------


def dot_numbers(params: Mapping[str, Any]) -> Any:
    """Which axes a product contracts, and which are its batch, of either operand; its rows may lie in groups."""
    ragged = params.get("ragged_dot_dimension_numbers")
    return params["dimension_numbers"] if ragged is None else ragged.dot_dimension_numbers


def _leak_contracted(seen: Seen, zs: list[Zeros]) -> None:
    for (_, a), (_, b) in _contracted(seen):
        zero = seen.zero(zs[0], 0, a) | seen.zero(zs[1], 1, b)
        leak(seen.ins[0][a], zero, f"{seen.name} over removed entries that differ from one another")


def _dot(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    (lc, rc), (lb, rb) = params["dimension_numbers"]
    left, right = ins
    for a, b in (*zip(lc, rc, strict=True), *zip(lb, rb, strict=True)):
        unify(left[a], right[b])
    free_left = [e for a, e in enumerate(left) if a not in (*lb, *lc)]
    free_right = [e for a, e in enumerate(right) if a not in (*rb, *rc)]
    return [[*(left[a] for a in lb), *free_left, *free_right]]


def _dot_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    (lc, rc), (lb, rb) = seen.params["dimension_numbers"]
    _leak_contracted(seen, zs)
    if zs[0] is None or zs[1] is None:
        return [None]
    batch = [zs[0][a] | zs[1][b] for a, b in zip(lb, rb, strict=True)]
    free_left = [z for a, z in enumerate(zs[0]) if a not in (*lb, *lc)]
    free_right = [z for a, z in enumerate(zs[1]) if a not in (*rb, *rc)]
    return [(*batch, *free_left, *free_right)]


def _contracted(seen: Seen) -> list[tuple[tuple[int, int], ...]]:
    (lc, rc), _ = dot_numbers(seen.params)
    return [((0, a), (1, b)) for a, b in zip(lc, rc, strict=True)]


# A product sums over what it contracts: removed entries add n times the product of the one value of either factor.
_PRODUCT = Fold(_contracted, _SUM.join)


_RAGGED = "it counts the matrices of a ragged product (experts), to which rows are assigned by number"


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
    _, (lb, rb) = numbers.dot_dimension_numbers
    _leak_contracted(seen, zs)
    if zs[0] is None or zs[1] is None:
        return [None]
    free_left, free_right = _ragged_free(numbers, len(seen.ins[0]), len(seen.ins[1]))
    out = [zs[0][a] | zs[1][b] for a, b in zip(lb, rb, strict=True)]
    out += [zs[0][a] for a in free_left] + [zs[1][b] for b in free_right]
    return [(*[frozenset[Dim]()] * (len(seen.outs[0]) - len(out)), *out)]


def _conv(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    spec, groups = params["dimension_numbers"], params["feature_group_count"]
    (x, k), (xs, ks, os) = ins, (spec.lhs_spec, spec.rhs_spec, spec.out_spec)
    out: Axes = [Dim(n, "a spatial axis of a convolution") for n in shapes[0]]
    if params["batch_group_count"] > 1:
        for e in (*x, *k, *out):
            freeze(e, "a convolution splits its batch into groups (batch_group_count)")
        return [out]
    out[os[0]], out[os[1]] = x[xs[0]], k[ks[0]]
    if groups == 1:
        unify(x[xs[1]], k[ks[1]])
    else:
        group = Dim(groups)
        unify(x[xs[1]], product([group, k[ks[1]]]))
        unify(k[ks[0]], product([group, Dim(resolve(k[ks[0]]).size // groups)]))
    for a in xs[2:]:
        freeze(x[a], "a spatial axis of a convolution")
    for a in ks[2:]:
        freeze(k[a], "a spatial axis of a convolution")
    return [out]


def _conv_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    spec = seen.params["dimension_numbers"]
    batch, channel = spec.lhs_spec[:2]
    made, read = spec.rhs_spec[:2]
    from_input, from_kernel = seen.zero(zs[0], 0, channel), seen.zero(zs[1], 1, read)
    leak(
        seen.ins[1][read],
        from_input | from_kernel,
        "a convolution sums over it where neither input nor kernel is zero at removed units",
    )
    if zs[0] is None or zs[1] is None:
        return [None]
    out = [frozenset[Dim]() for _ in seen.outs[0]]
    out[spec.out_spec[0]] = zs[0][batch]
    # Only whole groups are common to the input's and the output's channels.
    shared = frozenset(roots(seen.ins[1][made])) & from_input if seen.params["feature_group_count"] > 1 else frozenset()
    out[spec.out_spec[1]] = zs[1][made] | (shared - frozenset(roots(seen.ins[1][read])))
    return [tuple(out)]


def _emit_conv(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    spec, groups = params["dimension_numbers"], params["feature_group_count"]
    if groups > 1:
        groups = values[0].shape[spec.lhs_spec[1]] // values[1].shape[spec.rhs_spec[1]]
    return lax.conv_general_dilated(
        values[0],
        values[1],
        params["window_strides"],
        params["padding"],
        params["lhs_dilation"],
        params["rhs_dilation"],
        spec,
        groups,
        params["batch_group_count"],
        params["precision"],
        params["preferred_element_type"],
    )


# --- Windows ---------------------------------------------------------------------------------------------------------


def _window(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    out: Axes = []
    dilated = zip(params["base_dilation"], params["window_dilation"], params["window_strides"], strict=True)
    for e, width, pads, steps, n in zip(
        ins[0], params["window_dimensions"], params["padding"], dilated, shapes[0], strict=True
    ):
        if width == 1 and tuple(pads) == (0, 0) and set(steps) == {1}:
            out.append(e)
        else:
            freeze(e, "a window slides along it")
            out.append(Dim(n, "a window slides along it"))
    return [out]


def _extreme_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where the operand is, if every window has an entry of it: among padding alone the largest is -inf."""
    p = seen.params
    widths = zip(p["window_dimensions"], p["padding"], p["window_dilation"], p["base_dilation"], strict=True)
    for width, (low, high), dilation, holes in widths:
        if holes > 1 or max(low, high) >= (width if dilation == 1 else 1):
            return nothing(seen)
    return list(zs)


CONTRACTIONS: dict[str, PrimitiveRule] = {
    "reduce_sum": PrimitiveRule(_drop, _combined_zeros, fold=_SUM),
    "reduce_max": PrimitiveRule(_drop, _combined_zeros, fold=_MAX),
    "reduce_min": PrimitiveRule(_drop, _combined_zeros, fold=_MIN),
    **{name: PrimitiveRule(_reduction(name), _dropped_zeros) for name in ("reduce_prod", "reduce_or")},
    **{
        name: PrimitiveRule(_reduction(name), lambda seen, zs: nothing(seen))
        for name in ("reduce_and", "argmax", "argmin")
    },
    "rev": PrimitiveRule(reorders.flipped, moved),
    "sort": PrimitiveRule(_ordered("sort", "dimension"), _each),
    **{name: PrimitiveRule(_ordered(name, "axis"), _each) for name in ("cumsum", "cumprod", "cummax", "cummin")},
    "cumlogsumexp": PrimitiveRule(_ordered("cumlogsumexp", "axis"), lambda seen, zs: nothing(seen)),
    "dot_general": PrimitiveRule(_dot, _dot_zeros, fold=_PRODUCT),
    "ragged_dot_general": PrimitiveRule(_ragged, _ragged_zeros, fold=_PRODUCT),
    "conv_general_dilated": PrimitiveRule(_conv, _conv_zeros, _emit_conv),
    "reduce_window_sum": PrimitiveRule(_window, _each),
    **{name: PrimitiveRule(_window, _extreme_zeros) for name in ("reduce_window_max", "reduce_window_min")},
}
