"""Rules for primitives that hand values on: barriers, printing, exchange between devices, bits, transforms, keys."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from mvp_jax.graph import placement
from mvp_jax.graph.dims import Axes, Dim, Expr, freeze
from mvp_jax.graph.rules import Dims, PrimitiveRule, Seen, Shapes, Zeros, moved, never, nothing

# --- Each operand by itself ------------------------------------------------------------------------------------------


def _each(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """Every result is its operand, or the same entry of it on another device: what is a unit's stays that unit's."""
    return [list(axes) for axes in ins]


def _each_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    return list(zs)


def _watch(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """What only looks at values gives nothing back, so it asks for nothing; it is shown the smaller arrays."""
    return [[Dim(n) for n in shape] for shape in shapes]


def _emit_put(seen: Seen, values: list[Any], size: Callable[[Expr], int], params: dict[str, Any]) -> Any:
    """To the devices that were asked for; axes that these do not divide any more are whole on each."""
    asked = zip(values, params["devices"], strict=True)
    return [jax.device_put(x, placement.fitted(d, x.shape) if isinstance(d, NamedSharding) else d) for x, d in asked]


# --- Between devices -------------------------------------------------------------------------------------------------


def _counted(params: dict[str, Any]) -> set[int]:
    """Axes of the arrays that a reduction over devices sums over: those that `vmap` gave the name of devices."""
    return {a for a in params["axes"] if isinstance(a, int)}


def _sum(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """Over devices every entry is summed with the same unit's, but the axes that `vmap` counts as devices go."""
    gone = _counted(params)
    for axes in ins:
        for a in gone:
            freeze(axes[a], "it is a mesh axis of vmap, and a sum over devices runs along it")
    return [[e for a, e in enumerate(axes) if a not in gone] for axes in ins]


def _sum_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    gone = _counted(seen.params)
    return [None if z is None else tuple(s for a, s in enumerate(z) if a not in gone) for z in zs]


def _dealt(name: str, *where: str) -> Dims:
    """Devices deal out parts of some axes, which stay whole; along every other axis each unit stays where it is."""
    why = f"{name} moves it between devices"

    def dims(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
        out, shape, at = list(ins[0]), shapes[0], [params[w] for w in where]
        if len(shape) > len(out):  # a new axis counts the devices
            out.insert(at[0], Dim(shape[at[0]], why))
            return [out]
        for a in at:
            freeze(out[a], why)
        if len(shape) < len(out):  # an axis that counted the devices
            del out[at[0]]
        else:
            for a in at:
                out[a] = Dim(shape[a], why)
        return [out]

    return dims


# --- Bits, transforms, keys ------------------------------------------------------------------------------------------


def _bits(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """Every entry is read for itself; the parts of one entry lie along a last axis, which stays whole."""
    out, why = list(ins[0]), "it counts the parts of an entry's bits"
    if len(shapes[0]) < len(out):
        freeze(out.pop(), why)
    return [[*out, *(Dim(n, why) for n in shapes[0][len(out) :])]]


def _bits_zeros(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """No bit is set in 0, but one is in -0.0: of a floating-point number that is zero, the bits may be anything."""
    return moved(seen, zs) if np.issubdtype(seen.dtypes[0], np.integer) else nothing(seen)


def _transform(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """A linear map of the last axes, which stay whole; each entry of the others is transformed for itself."""
    (axes,), count, why = ins, len(params["fft_lengths"]), "fft mixes its entries"
    before = len(axes) - count
    for e in axes[before:]:
        freeze(e, why)
    return [[*axes[:before], *(Dim(n, why) for n in shapes[0][before:])]]


def _drawn(params: dict[str, Any], ins: list[Axes], shapes: Shapes) -> list[Axes]:
    """Fewer random numbers, or numbers of fewer keys, are other numbers: all axes stay whole."""
    why = "random numbers are drawn along it, as dropout does: trace the function as it is used for inference"
    for axes in ins:
        for e in axes:
            freeze(e, why)
    return [[Dim(n, why) for n in shape] for shape in shapes]


_PASSED = (
    "optimization_barrier ppermute pbroadcast pvary preduced vary_unreduced_cast vary_unreduced_cast_p "
    "reduced_vary_cast reduced_vary_cast_p"
)
_SUMMED = "psum psum_invariant unreduced_psum pmax pmin"
_DEALT = {
    "all_gather": ("all_gather_dimension",),
    "all_gather_invariant": ("all_gather_dimension",),
    "reduce_scatter": ("scatter_dimension",),
    "all_to_all": ("split_axis", "concat_axis"),
}
_DRAWN = (
    "random_bits random_split random_fold_in random_seed random_wrap random_unwrap random_clone random_gamma "
    "rng_bit_generator rng_uniform"
)

PASSING: dict[str, PrimitiveRule] = {
    **{name: PrimitiveRule(_each, _each_zeros) for name in _PASSED.split()},
    **{name: PrimitiveRule(_watch, never) for name in ("debug_callback", "debug_print", "inspect_sharding")},
    "device_put": PrimitiveRule(_each, _each_zeros, _emit_put),
    **{name: PrimitiveRule(_sum, _sum_zeros) for name in _SUMMED.split()},
    **{name: PrimitiveRule(_dealt(name, *where), moved) for name, where in _DEALT.items()},
    "bitcast_convert_type": PrimitiveRule(_bits, _bits_zeros, signed=True),
    "fft": PrimitiveRule(_transform, moved),
    **{name: PrimitiveRule(_drawn, never) for name in _DRAWN.split()},
}
