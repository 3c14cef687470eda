"""Rules for primitives that move, broadcast, split and join axes."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from mvp_jax.graph.dims import Axes, Dim, freeze, product, reshape, resolve, roots, take, total, unify
from mvp_jax.graph.rules import Lengths, PrimitiveRule, Seen, Zeros, moved, nothing, shape_of


def _broadcast(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    out: Axes = [Dim(n) for n in shapes[0]]
    for a, d in enumerate(params["broadcast_dimensions"]):
        if resolve(ins[0][a]).size == shapes[0][d]:
            out[d] = ins[0][a]
    return [out]


def _broadcast_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    if zs[0] is None:
        return [None]
    out = [frozenset[Dim]() for _ in seen.outs[0]]
    for a, d in enumerate(seen.params["broadcast_dimensions"]):
        out[d] = zs[0][a]
    return [tuple(out)]


def _reshape(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    return [reshape(ins[0], shapes[0])]


def _transpose(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    return [[ins[0][a] for a in params["permutation"]]]


def _squeeze(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    gone = {d % len(ins[0]) for d in params["dimensions"]}
    return [[e for a, e in enumerate(ins[0]) if a not in gone]]


def _expand(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    rest = iter(ins[0])
    return [[Dim(1) if a in params["dimensions"] else next(rest) for a in range(len(shapes[0]))]]


def _slice(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    out: Axes = []
    strides = params["strides"] or (1,) * len(ins[0])
    for e, low, high, stride in zip(ins[0], params["start_indices"], params["limit_indices"], strides, strict=True):
        n = resolve(e).size
        if stride == 1:
            out.append(take(e, low, high))
        elif n % stride == 0 and low < stride and n - high < stride - low:
            # Every stride-th entry of the whole axis: one column of rows of `stride`.
            row, column = reshape([e], (n // stride, stride))
            freeze(column, "a strided slice picks from it")
            out.append(row)
        else:
            freeze(e, "a strided slice picks from it")
            out.append(Dim(-(-(high - low) // stride), "a strided slice picks from it"))
    return [out]


def _emit_slice(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    strides = params["strides"] or (1,) * len(seen.ins[0])
    starts, limits = [], []
    for e, low, high, stride, new in zip(
        seen.ins[0], params["start_indices"], params["limit_indices"], strides, values[0].shape, strict=True
    ):
        if stride > 1:  # the frozen column, or a frozen axis: both keep their place
            starts.append(low)
            limits.append(high if new == resolve(e).size else new)
        else:
            keep = size.vector(e)
            starts.append(low if keep is None else int(keep[:low].sum()))
            limits.append(high if keep is None else int(keep[:high].sum()))
    return lax.slice(values[0], starts, limits, strides)


def _split(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    axis, at, outs = params["axis"], 0, []
    for n in params["sizes"]:
        out = list(ins[0])
        out[axis] = take(ins[0][axis], at, at + n)
        outs.append(out)
        at += n
    return outs


def _emit_split(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    axis = params["axis"]
    return lax.split(values[0], tuple(size(out[axis]) for out in seen.outs), axis)


def _concatenate(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    axis, out = params["dimension"], []
    for a in range(len(shapes[0])):
        if a == axis:
            out.append(total([axes[a] for axes in ins]))
        else:
            for axes in ins[1:]:
                unify(ins[0][a], axes[a])
            out.append(ins[0][a])
    return [out]


def _concatenate_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    if all(z is None for z in zs):
        return [None]
    axis, result = seen.params["dimension"], []
    for a in range(len(seen.outs[0])):
        sets = [seen.zero(z, i, a) for i, z in enumerate(zs)]
        if a != axis:
            result.append(frozenset.intersection(*sets))
            continue
        # A set of units that lies in several parts must be zero in each of them.
        inside = [frozenset(roots(axes[a])) for axes in seen.ins]
        bad = frozenset[Dim]().union(*(there - z for there, z in zip(inside, sets, strict=True)))
        result.append(frozenset[Dim]().union(*inside) - bad)
    return [tuple(result)]


def _pad(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    out: Axes = []
    for e, (low, high, interior), n in zip(ins[0], params["padding_config"], shapes[0], strict=True):
        if interior or min(low, high) < 0:
            freeze(e, "a pad puts entries between its own, or crops it")
            out.append(Dim(n, "a pad puts entries between its own, or crops it"))
        else:
            out.append(total([Dim(low), e, Dim(high)]))
    return [out]


def _pad_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    if zs[0] is None and seen.fills[1] == 0:
        return [None]
    if seen.fills[1] != 0:
        return nothing(seen)
    old = [frozenset(roots(e)) for e in seen.ins[0]]
    return [
        tuple(
            frozenset(d for d in roots(e) if d not in there or d in seen.zero(zs[0], 0, a))
            for a, (e, there) in enumerate(zip(seen.outs[0], old, strict=True))
        )
    ]


def _emit_pad(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    config = []
    for out, (low, high, interior) in zip(seen.outs[0], params["padding_config"], strict=True):
        n = resolve(out).size
        kept = (size(take(out, 0, low)) if low else 0, size(take(out, n - high, n)) if high else 0)
        config.append((*(kept if not interior and min(low, high) >= 0 else (low, high)), interior))
    return lax.pad(values[0], values[1], config)


def _emit_broadcast(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    shape = shape_of(seen.outs[0], size)
    return lax.broadcast_in_dim(values[0], shape, params["broadcast_dimensions"], out_sharding=params.get("sharding"))


def _emit_reshape(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    return lax.reshape(values[0], shape_of(seen.outs[0], size), out_sharding=params.get("sharding"))


def _stack(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    for axes in ins[1:]:
        for a, b in zip(ins[0], axes, strict=True):
            unify(a, b)
    out = list(ins[0])
    out.insert(params["axis"], Dim(len(ins), "it counts the parts of a stack"))
    return [out]


def _unstack(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    axis = params["axis"] % len(ins[0])
    freeze(ins[0][axis], "it is split into single units")
    return [[e for a, e in enumerate(ins[0]) if a != axis] for _ in shapes]


def _stack_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    if all(z is None for z in zs):
        return [None]
    out = [frozenset.intersection(*(seen.zero(z, i, a) for i, z in enumerate(zs))) for a in range(len(seen.ins[0]))]
    out.insert(seen.params["axis"], frozenset())
    return [tuple(out)]


def _tile(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    return [[product([Dim(n), e]) for n, e in zip(params["reps"], ins[0], strict=True)]]


def _emit_tile(seen: Seen, values: list[Any], size: Lengths, params: dict[str, Any]) -> Any:
    reps = [size(out) // (n or 1) for out, n in zip(seen.outs[0], values[0].shape, strict=True)]
    return jnp.tile(values[0], reps)


SHAPING: dict[str, PrimitiveRule] = {
    "stack": PrimitiveRule(_stack, _stack_zeros),
    "unstack": PrimitiveRule(_unstack, moved),
    "tile": PrimitiveRule(_tile, moved, _emit_tile),
    "broadcast_in_dim": PrimitiveRule(_broadcast, _broadcast_zeros, _emit_broadcast),
    "reshape": PrimitiveRule(_reshape, moved, _emit_reshape),
    "transpose": PrimitiveRule(_transpose, moved),
    "squeeze": PrimitiveRule(_squeeze, moved),
    "expand_dims": PrimitiveRule(_expand, moved, _emit_reshape),
    "slice": PrimitiveRule(_slice, moved, _emit_slice),
    "split": PrimitiveRule(_split, moved, _emit_split),
    "concatenate": PrimitiveRule(_concatenate, _concatenate_zeros),
    "pad": PrimitiveRule(_pad, _pad_zeros, _emit_pad),
}
