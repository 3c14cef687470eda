"""Networks in which units change places: flips, and permutations by indices that are constant.

Removing a unit removes it wherever it went, so these are exact; the frame of most is that of `adversarial`. Where units
meet themselves in another order, a removed one meets one that stays, and removal is not masking.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.adversarial import ALL, MID, framed, never, number, read, relu, sigmoid
from tests.zoo.cases import (
    Builders,
    Case,
    attend,
    case,
    conv,
    conv_shapes,
    dense,
    dense_shapes,
    layer_norm,
    norm_shapes,
    normal,
    unit,
    why,
)

ORDER = np.array([3, 0, 6, 1, 7, 5, 2, 4])
TWELVE = np.array([7, 2, 11, 0, 4, 9, 1, 10, 5, 3, 8, 6])
IMAGE = (2, 6, 6, 3)


def _exact(op: Callable[..., Any], at: str = ALL, **frame: Any) -> Case:
    """The units of `mid` can go: they lie along the axes `at`."""
    return case(*framed(op, **frame), unit(frame.get("width", 8), at))


def _norm(p, z):
    """A norm, whose scale and bias lie in the new order, and a token bias after it."""
    return read(p, layer_norm(p["norm"], z[:, ORDER]) * p["gain"])


def _softmax(p, z):
    """Probabilities of units change places; removed ones are counted."""
    return read(p, jax.nn.softmax(z)[:, ORDER])


def _in_scan(p, z):
    """Indices go into a loop's body as a constant of the loop."""
    return read(p, lax.scan(lambda c, _: (c + 1.0, jnp.take(relu(z), ORDER, 1) * p["s"]), 0.0, None, length=2)[1][1])


def _wanders_in_scan(p, z):
    return read(p, lax.scan(lambda c, _: (c[:, ::-1], None), relu(z), None, length=3)[0])


def bgr() -> Case:
    """Colours are flipped before the first layer: nothing of an input can be cut, and it keeps no filter."""

    def apply(p, x):
        return dense(p["head"], relu(conv(p["conv"], x[..., ::-1])).mean((1, 2)))

    shapes = {"conv": conv_shapes(3, 3, 8), "head": dense_shapes(8, 3)}
    filters = unit(8, "conv/kernel:3 conv/bias:0 head/kernel:0", kind="filter", name="conv")
    return case(apply, shapes, (normal(*IMAGE),), filters, frozen=why("conv/kernel:2", "input"))


def two_readers() -> Case:
    """One layer reads the units as they are, another one in another order."""

    def op(p, z):
        return read(p, relu(z)) + jnp.tanh(jnp.flip(z, -1)) @ p["flipped"] + jnp.take(z, ORDER, -1) @ p["taken"]

    return _exact(op, ALL + " flipped,taken:0", flipped=(8, 3), taken=(8, 3))


def two_layers_added() -> Case:
    """Units of two layers are tied together where they are added, each in its own order."""

    def op(p, z):
        return read(p, relu(z[:, ::-1]) + dense(p["other"], z[:, ORDER])[:, ORDER])

    return _exact(op, ALL + " other/kernel:0,1 other/bias:0", other=dense_shapes(8, 8))


def inside_a_concatenation() -> Case:
    """A part in another order beside one that is not; all of it then changes places once more."""

    def op(p, z):
        return read(p, jnp.concatenate([jnp.tanh(z), relu(z @ p["a"])[:, np.array([2, 0, 3, 1])]], -1)[:, TWELVE])

    apply, shapes, inputs, first = framed(op, read=12, a=(8, 4))
    mid, more = unit(8, ALL + " a:0"), unit(4, "a:1 out/kernel:0")
    return case(apply, shapes, inputs, first, mid, more)


def parts_of_a_permutation() -> Case:
    """Halves of what was put in another order are read by two layers: two groups, each spread over the axis."""

    def op(p, z):
        a, b = jnp.split(z[:, ORDER], 2, -1)
        return relu(a) @ p["a"] + jnp.tanh(b) @ p["b"] + 0 * p["out"]["bias"]

    apply, shapes, inputs, first = framed(op, a=(4, 3), b=(4, 3))
    del shapes["out"]["kernel"]
    return case(apply, shapes, inputs, first, unit(4, MID + " a:0"), unit(4, MID + " b:0"))


def heads_and_dimensions() -> Case:
    """What heads found is flipped, then their dimensions are shuffled across heads before the output is made."""

    def apply(p, x):
        q, k, v = (dense(p[name], x) for name in "qkv")
        y = attend(q, k, v).reshape(*x.shape[:2], 12)
        return dense(p["out"], y[..., ::-1][..., TWELVE])

    shapes = {name: dense_shapes(6, 3, 4) for name in "qkv"} | {"out": dense_shapes(12, 5)}
    heads = unit(3, "q,k,v/kernel:1 q,k,v/bias:0 out/kernel:0", kind="head")
    keys, values = unit(4, "q,k/kernel:2 q,k/bias:1", kind="qk"), unit(4, "v/kernel:2 v/bias:1 out/kernel:0")
    return case(apply, shapes, (normal(2, 5, 6),), heads, keys, values)


def heads_in_another_order() -> Case:
    """Whole heads change places in the flat axis, which is split into heads again."""

    def apply(p, x):
        q, k, v = ((x @ p[name]).reshape(2, 5, 3, 4) for name in "qkv")
        y = attend(q, k, v).reshape(*x.shape[:2], 12)[..., np.arange(12).reshape(3, 4)[[2, 0, 1]].ravel()]
        y = y.reshape(2, 5, 3, 4) * p["gain"][:, None]
        return dense(p["out"], y.reshape(2, 5, 12)[..., ::-1])

    shapes = dict.fromkeys("qkv", (6, 12)) | {"gain": (3,), "out": dense_shapes(12, 5)}
    heads = unit(3, "q,k,v:1 gain:0 out/kernel:0", kind="head")
    keys, values = unit(4, "q,k:1", kind="qk"), unit(4, "v:1 out/kernel:0", kind="value")
    return case(apply, shapes, (normal(2, 5, 6),), heads, keys, values)


def shuffle_by_index() -> Case:
    """Channels of grouped convolutions are shuffled by indices instead of a transpose."""

    def apply(p, x):
        x = relu(conv(p["stem"], x))
        x = relu(conv(p["grouped"], x, groups=2))
        x = x[..., np.arange(12).reshape(2, 6).T.ravel()]
        return dense(p["head"], relu(conv(p["last"], x)).mean((1, 2)))

    shapes = {
        "stem": conv_shapes(3, 3, 8),
        "grouped": conv_shapes(3, 8, 12, groups=2),
        "last": conv_shapes(1, 12, 7),
        "head": dense_shapes(7, 3),
    }
    both = "stem/kernel:3 stem/bias:0 grouped/kernel:3 grouped/bias:0 last/kernel:2"
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(2, both),
        unit(4, "stem/kernel:3 stem/bias:0 grouped/kernel:2"),
        unit(6, "grouped/kernel:3 grouped/bias:0 last/kernel:2"),
        unit(7, "last/kernel:3 last/bias:0 head/kernel:0"),
    )


def shuffles_between_groups() -> Case:
    """Grouped convolutions on both sides of a shuffle by indices, whose groups are cut across."""

    def apply(p, x):
        x = relu(conv(p["stem"], x))
        x = relu(conv(p["one"], x, groups=2))[..., np.arange(12).reshape(2, 6).T.ravel()]
        return dense(p["head"], relu(conv(p["two"], x, groups=2)).mean((1, 2)))

    shapes = {
        "stem": conv_shapes(3, 3, 8),
        "one": conv_shapes(3, 8, 12, groups=2),
        "two": conv_shapes(1, 12, 10, groups=2),
        "head": dense_shapes(10, 3),
    }
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(4, "stem/kernel:3 stem/bias:0 one/kernel:2"),
        unit(5, "two/kernel:3 two/bias:0 head/kernel:0"),
        unit(2, "one/kernel:3 one/bias:0 two/kernel:3 two/bias:0 head/kernel:0"),
        unit(3, "one/kernel:3 one/bias:0 two/kernel:2"),
        unit(2, "stem/kernel:3 stem/bias:0 one/kernel:3 one/bias:0 two/kernel:2"),
    )


def grouped_after() -> Case:
    """A convolution in groups reads channels in another order, and so does a depthwise one."""

    def apply(p, x):
        x = relu(conv(p["stem"], x))
        x = conv(p["depth"], x[..., ::-1], groups=8)
        x = relu(conv(p["grouped"], x[..., ORDER], groups=4))
        return dense(p["head"], x.mean((1, 2)))

    shapes = {
        "stem": conv_shapes(3, 3, 8),
        "depth": conv_shapes(3, 8, 8, groups=8),
        "grouped": conv_shapes(3, 8, 12, groups=4),
        "head": dense_shapes(12, 3),
    }
    channels = "stem,depth/kernel:3 stem,depth/bias:0"
    return case(
        apply,
        shapes,
        (normal(*IMAGE),),
        unit(4, channels + " grouped/kernel:3 grouped/bias:0 head/kernel:0"),
        unit(2, channels + " grouped/kernel:2"),
        unit(3, "grouped/kernel:3 grouped/bias:0 head/kernel:0"),
    )


CASES: Builders = {
    name: functools.partial(build, *args, **frame)
    for name, (build, args, frame) in {
        "flip": (_exact, (lambda p, z: read(p, relu(z)[:, ::-1]),), {}),
        "flip_and_back": (_exact, (lambda p, z: read(p, relu(z) + jnp.flip(jnp.sin(z[:, ::-1]), 1)),), {}),
        "order_and_back": (_exact, (lambda p, z: read(p, z * sigmoid(z[:, ORDER])[:, np.argsort(ORDER)]),), {}),
        "negative_indices": (_exact, (lambda p, z: read(p, relu(z)[:, jnp.asarray(ORDER - 8)]),), {}),
        "taken": (_exact, (lambda p, z: read(p, jnp.take(jnp.cos(z), jnp.asarray(ORDER), axis=-1)),), {}),
        "taken_first": (_exact, (lambda p, z: read(p, jnp.take(z.T, ORDER, axis=0, mode="clip").T),), {}),
        "computed_order": (
            _exact,
            (lambda p, z: read(p, relu(z)[:, jax.random.permutation(jax.random.key(3), 8)]),),
            {},
        ),
        "kernel_in_another_order": (_exact, (lambda p, z: relu(z) @ p["out"]["kernel"][ORDER] + p["out"]["bias"],), {}),
        "norm_after_permutation": (
            _exact,
            (_norm, ALL + " norm/scale,bias:0 gain:0"),
            {"norm": norm_shapes(8), "gain": (8,)},
        ),
        "softmax_in_another_order": (_exact, (_softmax,), {}),
        "order_in_scan": (_exact, (_in_scan, ALL + " s:0"), {"s": (8,)}),
        # Units meet themselves in another order, or an order is not known.
        "flip_added": (never, ("another order", lambda p, z: read(p, relu(z) + relu(z)[:, ::-1])), {}),
        "order_multiplied": (never, ("another order", lambda p, z: read(p, z * jnp.take(z, ORDER, 1))), {}),
        "flip_in_a_loop": (never, ("another order", _wanders_in_scan), {}),
        "flip_after_a_branch": (
            never,
            ("another order", lambda p, z: read(p, lax.cond(number(p) < 9, jnp.cos, lambda y: jnp.cos(y)[:, ::-1], z))),
            {"naive": False},
        ),
        "traced_order": (never, ("gather|index", lambda p, z: read(p, relu(z)[:, (ORDER + number(p)) % 8])), {}),
        "twice_the_same": (never, ("gather|index", lambda p, z: read(p, z[:, np.array([0, 1, 2, 3, 4, 5, 6, 6])])), {}),
    }.items()
}
CASES |= {
    f.__name__: f
    for f in (
        bgr,
        two_readers,
        two_layers_added,
        inside_a_concatenation,
        parts_of_a_permutation,
        heads_and_dimensions,
        heads_in_another_order,
        shuffle_by_index,
        shuffles_between_groups,
        grouped_after,
    )
}

NEVER = ("flip_added", "order_multiplied", "flip_in_a_loop", "traced_order", "twice_the_same")
"""Where units have to stay, and removing them plainly shows it."""
