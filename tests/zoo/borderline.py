"""Networks in which masking a unit only just is removing it, or could be with some care.

The frame is that of `adversarial`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from tests.zoo.adversarial import ALL, COUNTED, MID, exact, framed, number, plus, read, relu, sigmoid, total
from tests.zoo.cases import Builders, Case, case, normal, unit, why


def either(pattern: str, op: Callable[..., Any], at: str = MID, **frame: Any) -> Case:
    """Cutting is possible with some care: it must be exact, or refused for the right reason."""
    return case(*framed(op, **frame), exactly=False, either=why(at, pattern))


def _layer_norm_one_pass(p, z):
    mean = z.mean(-1, keepdims=True)
    var = jnp.square(z).mean(-1, keepdims=True) - jnp.square(mean)
    return read(p, (z - mean) * lax.rsqrt(var + 1e-5) * p["scale"])


def _scan_keeps_zero(p, z):
    state, _ = lax.scan(lambda c, _: (jnp.tanh(c + relu(z)), None), jnp.zeros_like(z), None, length=3)
    return read(p, state) + total(state)


def _rotation(p, z):
    """Neighbouring units are rotated together."""
    a, b = z[:, ::2], z[:, 1::2]
    return read(p, jnp.stack([0.8 * a - 0.6 * b, 0.6 * a + 0.8 * b], -1).reshape(z.shape))


def _dropout(p, z):
    return read(p, jnp.where(jax.random.bernoulli(jax.random.key(3), 0.6, z.shape), relu(z), 0.0))


def _maxout(p, z):
    return read(p, z.reshape(z.shape[0], -1, 2).max(-1))


def low_rank() -> Case:
    """A kernel that is a product: its inner axis is a set of units too."""
    apply, shapes, inputs, first = framed(
        lambda p, z: read(p, relu(relu(z) @ (p["a"] @ p["b"]))), read=6, a=(8, 4), b=(4, 6)
    )
    mid = unit(8, MID + " a:0")
    return case(apply, shapes, inputs, first, mid, unit(4, "a:1 b:0"), unit(6, "b:1 out/kernel:0"))


def overlap() -> Case:
    """Two readers take overlapping parts of a layer: three groups."""

    def op(p, z):
        return read(p, jnp.concatenate([z[:, :5] @ p["a"], jnp.tanh(z[:, 3:]) @ p["b"]], -1))

    apply, shapes, inputs, first = framed(op, read=9, a=(5, 4), b=(5, 5))
    parts = unit(3, MID + " a:0"), unit(2, MID + " a:0 b:0"), unit(3, MID + " b:0")
    return case(apply, shapes, inputs, first, *parts, unit(4, "a:1 out/kernel:0"), unit(5, "b:1 out/kernel:0"))


def one_hot() -> Case:
    """Ids compared with an iota pick rows of a table: what is left of the iota must keep its numbers."""

    def op(p, z):
        ids = jnp.arange(4) * 5 % 6
        return read(p, relu(z)) + jax.nn.one_hot(ids, 6) @ p["table"]

    apply, shapes, inputs, first = framed(op, table=(6, 3))
    return case(apply, shapes, inputs, first, unit(8, ALL), exactly=False, either=why("table:0", "iota|const|eq"))


def maxout() -> Case:
    """Pairs of units compete: pairs can go, and the first or the second of all pairs, which competes as a zero then."""
    apply, shapes, inputs, first = framed(_maxout, width=8, read=4)
    return case(apply, shapes, inputs, first, unit(4, ALL), unit(2, MID))


CASES: Builders = {
    name: functools.partial(build, *args, **frame)
    for name, (build, args, frame) in {
        # Masking is removal.
        "layer_norm_one_pass": (exact, (_layer_norm_one_pass, ALL + " scale:0"), {"scale": (8,)}),
        "root_mean_square": (
            exact,
            (lambda p, z: read(p, z * lax.rsqrt(jnp.square(z).mean(-1, keepdims=True) + 1e-5)),),
            {},
        ),
        "sum_of_squares": (exact, (plus(lambda z: total(jnp.square(z))),), {}),
        "shift_then_layer": (exact, (lambda p, z: read(p, jnp.cos(z) + 1.0),), {}),
        "count": (exact, (lambda p, z: read(p, relu(z)) / z.shape[-1] + jnp.ones(8).sum(),), {}),
        "regulariser": (
            exact,
            (lambda p, z: read(p, relu(z)) + jnp.square(p["mid"]["kernel"]).sum() + p["out"]["kernel"].sum(),),
            {},
        ),
        "division_by_sum": (exact, (lambda p, z: read(p, relu(z) / (total(relu(z)) + 1)),), {}),
        "kernel_of_weight": (exact, (lambda p, z: relu(z) @ jnp.cos(p["out"]["kernel"]) + p["out"]["bias"],), {}),
        "softmax_over_batch": (exact, (lambda p, z: read(p, jax.nn.softmax(z, 0)),), {}),
        "gradient_inside": (
            exact,
            (lambda p, z: read(p, jax.grad(lambda y: jnp.square(read(p, jnp.cos(y))).sum())(z)),),
            {},
        ),
        "branches": (
            exact,
            (lambda p, z: (lambda y: read(p, y) + total(y))(lax.switch(number(p), [jnp.tanh, jnp.sin, relu], z)),),
            {},
        ),
        "scan_keeps_zero": (exact, (_scan_keeps_zero,), {}),
        # Removal is possible, but asks for indices or constants to be cut along.
        "iota": (either, ("iota", lambda p, z: read(p, relu(z) * jnp.arange(8.0))), {}),
        "constant": (either, ("const", lambda p, z: read(p, relu(z) * normal(8, seed=5))), {}),
        "constant_projection": (either, ("const", lambda p, z: relu(z) @ normal(8, 3, seed=5)), {}),
        "dropout": (either, ("random|threefry|bits|iota|const|uniform|shift|slice|concat", _dropout), {}),
        "cumsum": (either, ("cumsum", lambda p, z: read(p, jnp.cumsum(relu(z), -1))), {}),
        "index": (either, ("slice|index|squeeze", lambda p, z: read(p, relu(z)) * z[..., 3:4]), {}),
        "strided": (either, ("slice", lambda p, z: read(p, relu(z)[:, ::2])), {"read": 4}),
        "reverse": (exact, (lambda p, z: read(p, z[:, ::-1]),), {}),
        "roll_only": (either, ("slice|concat|partition|itself", lambda p, z: read(p, jnp.roll(z, 3, -1))), {}),
        "tile": (either, ("tile", lambda p, z: read(p, jnp.tile(relu(z), (1, 2)))), {"read": 16}),
        "stack": (
            either,
            ("stack", lambda p, z: read(p, jnp.stack([relu(z), sigmoid(z)], 1).reshape(4, -1))),
            {"read": 16},
        ),
        "rotation": (either, ("slice|stack", _rotation), {}),
    }.items()
}


CASES |= COUNTED | {f.__name__: f for f in (low_rank, overlap, one_hot, maxout)}
