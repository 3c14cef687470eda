"""Networks in which masking a unit is not the same as removing it.

All share a frame: a layer `first` whose 7 units can always go, a layer `mid` whose units are the question, an operation
on them, and a layer `out`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.cases import Builders, Case, case, dense, dense_shapes, normal, unit, why

relu, sigmoid = jax.nn.relu, jax.nn.sigmoid
MID = "mid/kernel:1 mid/bias:0"
ALL = MID + " out/kernel:0"
FIRST = unit(7, "first/kernel:1 first/bias:0 mid/kernel:0", kind="neuron", name="first")


def framed(op: Callable[..., Any], *, width: int = 8, read: int | None = None, **extra: Any) -> tuple[Any, ...]:
    """`op(p, z)` on the pre-activations `z` of `mid`, `[4, width]`; `read` is how many rows `out` has."""
    shapes = {
        "first": dense_shapes(5, 7),
        "mid": dense_shapes(7, width),
        "out": dense_shapes(read or width, 3),
        **extra,
    }

    def apply(p, x):
        return op(p, dense(p["mid"], relu(dense(p["first"], x))))

    return apply, shapes, (normal(4, 5),), FIRST


def never(pattern: str, op: Callable[..., Any], at: str = ALL, *, naive: bool = True, **frame: Any) -> Case:
    """The axes `at` must stay whole."""
    return case(*framed(op, **frame), exactly=False, frozen=why(at, pattern), naive=naive)


def exact(op: Callable[..., Any], at: str = ALL, **frame: Any) -> Case:
    """Masking is removal, and that can be proved: the axes `at` are a group."""
    return case(*framed(op, **frame), unit(frame.get("width", 8), at))


def total(x: jax.Array) -> jax.Array:
    return x.sum(-1, keepdims=True)


def read(p: Any, y: jax.Array) -> jax.Array:
    return dense(p["out"], y)


def plus(f: Callable[[Any], Any]) -> Callable[..., Any]:
    """The layer reads `relu(z)`, and some number computed from `z` is added."""
    return lambda p, z: read(p, relu(z)) + f(z)


def number(p: Any) -> jax.Array:
    """A number below 4 that is not known while tracing."""
    return (jnp.abs(p["out"]["bias"][0]) * 100).astype(jnp.int32) % 4


# --- Operations ------------------------------------------------------------------------------------------------------


def _layer_norm_two_pass(p, z):
    centred = z - z.mean(-1, keepdims=True)
    return read(p, centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * p["scale"])


def _layer_norm_of_leftovers(p, z):
    """After the first norm, without a scale, removed channels hold `-mean · rsqrt(var)`."""
    for _ in range(2):
        mean = z.mean(-1, keepdims=True)
        z = (z - mean) * lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) - jnp.square(mean) + 1e-2)
    return read(p, z)


def _dynamic_slice(p, z):
    return read(p, lax.dynamic_slice_in_dim(relu(z), number(p), 4, 1))


def _gather_traced(p, z):
    return read(p, relu(z)[:, (number(p) + 3 * jnp.arange(4)) % 5])


def _scan_from_zero(p, z):
    """The carry starts at zero and stays there only for one step."""
    state, _ = lax.scan(lambda c, _: (sigmoid(c) * relu(z) + jnp.cos(c), None), jnp.zeros_like(z), None, length=3)
    return read(p, state) + total(state)


def _scan_leaks_late(p, z):
    """The first carry is zero for three steps, then it is handed something else."""
    zero = jnp.zeros_like(z)
    (state, _, _), _ = lax.scan(lambda c, _: ((c[1], c[2], jnp.cos(z)), None), (zero, zero, zero), None, length=5)
    return read(p, relu(z)) + total(state)


def _cond_leaks(p, z):
    y = lax.cond(p["out"]["bias"][0] > -9, jnp.cos, jnp.tanh, z)
    return read(p, y) + total(y)


def _channel_convolution(p, z):
    kernel = jnp.asarray([0.3, 0.5, 0.2])[:, None, None]
    weight = lax.conv_general_dilated(z[..., None], kernel, (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC"))
    return read(p, relu(z) * sigmoid(weight[..., 0]))


def _channel_attention(p, z):
    weight = jax.nn.softmax(jnp.einsum("bc,bd->bcd", z, z))
    return read(p, jnp.einsum("bcd,bd->bc", weight, z))


def _local_response(p, z):
    y = lax.reduce_window(jnp.square(z), 0.0, lax.add, (1, 3), (1, 1), "SAME")
    return read(p, z / (1 + y))


def _weight_standardised(p, z):
    """The units of `mid` are the rows of a kernel that is centred over its rows."""
    w = p["out"]["kernel"]
    return relu(z) @ ((w - w.mean(0)) * lax.rsqrt(w.var(0) + 1e-3)) + p["out"]["bias"]


def _inverse(p, z):
    return read(p, z @ jnp.linalg.inv(p["square"]))


def _weight_norm(p, z):
    """A removed column is 0 / 0."""
    w = p["v"]
    return read(p, relu(relu(z) @ (w / jnp.sqrt(jnp.square(w).sum(0)))))


def _output(p, z):
    return read(p, relu(z)), relu(z)


CASES: Builders = {
    name: functools.partial(build, *args, **frame)
    for name, (build, args, frame) in {
        # Sums and other reductions that see more than zeros.
        "product": (never, ("prod", plus(lambda z: z.prod(-1, keepdims=True))), {}),
        "all_positive": (never, ("and|all", plus(lambda z: (jnp.abs(z) > 1e-4).all(-1, keepdims=True) * 1.0)), {}),
        "argmax": (never, ("argmax", plus(lambda z: z.argmax(-1)[:, None] * 1.0)), {}),
        "leak_from_scan": (never, ("sum", _scan_from_zero), {}),
        "leak_from_scan_late": (never, ("sum", _scan_leaks_late), {}),
        "leak_from_pairs": (
            never,
            ("sum", plus(lambda z: total((z[:, :, None] * sigmoid(z)[:, None, :]).reshape(z.shape[0], -1)))),
            {},
        ),
        "leak_from_cond": (never, ("sum", _cond_leaks), {}),
        "channel_attention": (never, ("max|exp|sum", _channel_attention), {}),
        # Order and position.
        "sort": (never, ("sort", lambda p, z: read(p, jnp.sort(z))), {}),
        "top_k": (never, ("top_k", lambda p, z: read(p, lax.top_k(z, 4)[0]), MID), {"read": 4}),
        "cumsum_of_sigmoid": (never, ("cumsum", lambda p, z: read(p, jnp.cumsum(sigmoid(z), -1))), {}),
        "cumprod": (never, ("cumprod", lambda p, z: read(p, jnp.cumprod(z, -1))), {}),
        "cummax": (never, ("cummax", lambda p, z: read(p, lax.cummax(-jnp.abs(z), 1))), {}),
        "roll": (
            never,
            ("slice|concat|partition|itself|one unit|single", lambda p, z: read(p, z * jnp.roll(z, 1, -1))),
            {},
        ),
        "reverse_of_itself": (never, ("another order", lambda p, z: read(p, z * z[:, ::-1])), {}),
        "gather": (never, ("gather|index", lambda p, z: read(p, z[:, jnp.array([0, 2, 2, 5])]), MID), {"read": 4}),
        "gather_traced": (never, ("gather|index", _gather_traced, MID), {"read": 4}),
        "dynamic_slice": (never, ("dynamic_slice|argmax|index", _dynamic_slice, MID), {"read": 4}),
        "dynamic_index": (
            never,
            (
                "dynamic_slice|gather|index",
                lambda p, z: read(p, relu(z)) * z[:, number(p), None],
            ),
            {},
        ),
        "scatter_traced": (
            never,
            ("scatter", lambda p, z: read(p, relu(z).at[:, number(p)].multiply(9.0))),
            {},
        ),
        "reshape_unaligned": (
            never,
            ("reshape", lambda p, z: read(p, z.reshape(6, 6)), MID),
            {"width": 9, "read": 6},
        ),
        "channel_convolution": (never, ("conv", _channel_convolution), {}),
        "local_response": (never, ("window", _local_response), {}),
        "fourier": (never, ("fft", lambda p, z: read(p, jnp.abs(jnp.fft.fft(z)))), {}),
        # Values that zero does not have.
        "reciprocal_of_weight": (never, ("div|pow|zero", lambda p, z: relu(z) @ (1 / p["out"]["kernel"])), {}),
        "logarithm_of_weight": (
            never,
            ("log", lambda p, z: read(p, relu(z) * jnp.log(p["scale"])), ALL + " scale:0"),
            {"scale": (8,)},
        ),
        "root_of_weight": (
            never,
            ("rsqrt|zero", lambda p, z: read(p, relu(z) * lax.rsqrt(p["scale"])), ALL + " scale:0"),
            {"scale": (8,)},
        ),
        "logarithm_of_unit": (never, ("log", lambda p, z: read(p, jnp.log(jnp.abs(z)))), {}),
        "division_by_itself": (never, ("div|zero", lambda p, z: read(p, z / jnp.sqrt(z * z))), {}),
        "remainder": (never, ("rem|zero", lambda p, z: read(p, jnp.fmod(5.0, z))), {}),
        "power_of_parameter": (
            never,
            ("pow|zero|sum", lambda p, z: read(p, relu(z)) + total(jnp.abs(z) ** p["scale"]), ALL + " scale:0"),
            {"scale": (8,)},
        ),
        "weight_norm_without_floor": (
            never,
            ("div|zero", _weight_norm, "v:1 out/kernel:0"),
            {"width": 6, "read": 8, "v": (6, 8)},
        ),
        "inverse": (
            never,
            ("lu|inv|solve|custom|eq", _inverse, ALL + " square:0,1"),
            {"square": (8, 8)},
        ),
        # What leaves the function.
        "output": (never, ("output", _output), {}),
        "parameter_returned": (never, ("output", lambda p, z: (read(p, relu(z)), p["mid"]["bias"])), {}),
    }.items()
}


COUNTED: Builders = {
    name: functools.partial(exact, *args, **frame)
    for name, (args, frame) in {
        # Removed entries are not zero, but all alike, and what combines them counts them.
        "softmax": ((lambda p, z: read(p, jax.nn.softmax(z)),), {}),
        "log_softmax": ((lambda p, z: read(p, jax.nn.log_softmax(z)),), {}),
        "logsumexp": ((plus(lambda z: jax.nn.logsumexp(z, -1, keepdims=True)),), {}),
        "mean_of_sigmoid": ((plus(lambda z: sigmoid(z).mean(-1, keepdims=True)),), {}),
        "sum_of_sigmoid": ((plus(lambda z: total(sigmoid(z))),), {}),
        "sum_after_shift": ((plus(lambda z: total(jnp.abs(z + 0.5))),), {}),
        "sum_of_where": ((plus(lambda z: total(jnp.where(z > 0, z, 0.1))),), {}),
        "sum_of_clip": ((plus(lambda z: total(jnp.clip(z, 0.1, 1.0))),), {}),
        "sum_of_concatenation": ((plus(lambda z: total(jnp.concatenate([relu(z), sigmoid(z)], -1))),), {}),
        "sum_of_parameter": (
            (lambda p, z: read(p, relu(z) * p["s"]) + jnp.exp(p["s"]).sum(), ALL + " s:0"),
            {"s": (8,)},
        ),
        "division_by_sum_of_sigmoid": ((lambda p, z: read(p, relu(z) / total(sigmoid(z))),), {}),
        "dot_of_cosines": ((plus(lambda z: jnp.einsum("bc,bc->b", jnp.cos(z), jnp.cos(z))[:, None]),), {}),
        "maximum": ((lambda p, z: read(p, relu(z)) * z.max(-1, keepdims=True),), {}),
        "minimum": ((plus(lambda z: (0.2 - z).min(-1, keepdims=True)),), {}),
        "variance": ((plus(lambda z: z.var(-1, keepdims=True)),), {}),
        "layer_norm_two_pass": ((_layer_norm_two_pass, ALL + " scale:0"), {"scale": (8,)}),
        "layer_norm_of_leftovers": ((_layer_norm_of_leftovers,), {}),
        "leak_from_weight": ((lambda p, z: sigmoid(z) @ jnp.cos(p["out"]["kernel"]),), {}),
        "weight_standardised": ((_weight_standardised,), {}),
    }.items()
}


def batch_norm_without_scale() -> Case:
    """Running means are not parameters, so a removed channel holds `-mean`, which a sum over channels sees."""
    _, shapes, inputs, first = framed(_output)

    def apply(v, x):
        p = v["params"]
        z = dense(p["mid"], relu(dense(p["first"], x))) - v["rest"]["norm"]["mean"]
        return read(p, relu(z)) + total(z)

    shapes = {"params": shapes, "rest": {"norm": {"mean": (8,)}}}
    return case(apply, shapes, inputs, first, frozen=why(ALL, "sum"))


CASES |= {"batch_norm_without_scale": batch_norm_without_scale}
