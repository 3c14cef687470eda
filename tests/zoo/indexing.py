"""Networks that put entries where indices say: scatters, caches, graphs, mixtures of experts, tables of rotations.

The frame is that of `adversarial`; `_exact` cases are groups, the others must stay whole or may.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.zoo.adversarial import exact, never, number, read, relu, sigmoid, total
from tests.zoo.borderline import either
from tests.zoo.cases import Builders, Case, case, dense, dense_shapes, normal, tokens, unit, why

ROWS = jnp.array([3, 1])
NUMBERS = jnp.arange(1.0, 9.0)


def _with_total(f: Callable[[Any], Any]) -> Callable[..., Any]:
    """The layer reads `f(z)`, and the sum over the units of it is added: removed entries must be zero."""
    return lambda p, z: read(p, f(z)) + total(f(z))


def _multiplied(z):
    return relu(z).at[ROWS].multiply(sigmoid(z[1:3]), unique_indices=True)


def _cache(p, z):
    """Written at a place that is not known while tracing, by a slice and by an index."""
    buffer = lax.dynamic_update_slice(jnp.zeros((z.shape[0], 5, z.shape[1])), relu(z)[:, None], (0, number(p), 0))
    buffer = buffer.at[:, number(p) + 1].set(jnp.tanh(z))
    return read(p, buffer.sum(1)) + total(buffer.max(1))


def _per_unit_rows(p, z):
    """Every unit has a row of its own that it adds to: the indices have units, but each unit sees its own only."""
    rows = (z > 0).astype(jnp.int32).T
    counts = jax.vmap(lambda i, v: jnp.zeros(2).at[i].add(v))(rows, jnp.tanh(z).T)
    return read(p, counts.T)


def _least_is_filled(p, z):
    """Whole numbers out of range are filled with the least that there is, removed ones too."""
    levels = jnp.round(8 * relu(z)).astype(jnp.int8).at[jnp.array([1, 9])].get(mode="fill")
    return read(p, relu(z)) + levels.sum() / 100.0


def _histogram(p, z):
    """Units are added up in bins: which bin a unit goes to is a table, by its place."""
    bins = jnp.zeros((z.shape[0], 3)).at[:, jnp.arange(8) % 3].add(relu(z))
    return read(p, relu(z)) + bins


def _bins_of_values(p, z):
    """Each entry goes into the bin that its own value says: the removed ones go into one of them too."""
    return read(p, relu(z)) + jnp.zeros(3).at[(z > 0).astype(jnp.int32)].add(1.0)


def _row_of_largest(p, z):
    """Which row is written depends on the units, through their order."""
    return read(p, relu(z)).at[z.argmax(-1) % 4].add(1.0)


def _row_of_sum(p, z):
    """Which row is written depends on the units through a sum, in which removed ones are zero."""
    row = (jnp.abs(total(relu(z))).astype(jnp.int32) % 4)[:, 0]
    return read(p, relu(z).at[row].add(jnp.tanh(z)))


def graph_network() -> Case:
    """Messages along edges, added and maximised where they arrive, with a residual stream of node features."""
    senders, receivers = jnp.array([0, 1, 2, 3, 4, 4, 2]), jnp.array([1, 2, 3, 4, 0, 1, 0])

    def apply(p, nodes):
        h = relu(dense(p["embed"], nodes))
        for layer in (p["a"], p["b"]):
            edges = relu(dense(layer["message"], jnp.concatenate([h[senders], h[receivers]], -1)))
            added = jax.ops.segment_sum(edges, receivers, num_segments=5)
            largest = jax.ops.segment_max(edges, receivers, num_segments=5)
            count = jax.ops.segment_sum(jnp.ones(7), receivers, num_segments=5)
            h = h + dense(layer["update"], added / count[:, None] + largest)
        return dense(p["out"], h)

    layer = {"message": dense_shapes(12, 9), "update": dense_shapes(9, 6)}
    shapes = {"embed": dense_shapes(3, 6), "a": layer, "b": layer, "out": dense_shapes(6, 2)}
    stream = "embed/kernel:1 embed/bias:0 a,b/message/kernel:0 a,b/update/kernel:1 a,b/update/bias:0 out/kernel:0"
    messages = [unit(9, f"{n}/message/kernel:1 {n}/message/bias:0 {n}/update/kernel:0") for n in "ab"]
    return case(apply, shapes, (normal(5, 3),), unit(6, stream), *messages)


def _experts(p, x, w1, w2):
    """Each row goes through the expert that the router likes best, rows sorted by expert."""
    expert = (x @ p["router"]).argmax(-1)
    order = jnp.argsort(expert)
    sizes = jnp.zeros(3, jnp.int32).at[expert].add(1)
    hidden = relu(lax.ragged_dot(x[order], w1, sizes))
    return jnp.zeros((x.shape[0], w2.shape[2])).at[order].set(lax.ragged_dot(hidden, w2, sizes))


def mixture_of_experts() -> Case:
    def apply(p, x):
        h = relu(dense(p["embed"], x))
        h = h + _experts(p, h, p["w1"], p["w2"])
        return dense(p["out"], h)

    shapes = {
        "embed": dense_shapes(4, 6),
        "router": (6, 3),
        "w1": (3, 6, 10),
        "w2": (3, 10, 6),
        "out": dense_shapes(6, 2),
    }
    stream = "embed/kernel:1 embed/bias:0 router:0 w1:1 w2:2 out/kernel:0"
    frozen = why("w1,w2:0", "ragged product") | why("router:1", "argmax")
    return case(
        apply, shapes, (normal(7, 4),), unit(6, stream), unit(10, "w2:1", makes="w1:2", name="w1"), frozen=frozen
    )


def experts_of_uniform_entries() -> Case:
    """Removed entries are one, not zero, and the experts' kernels are no zero there either: both are counted."""

    def apply(p, x):
        h = jnp.exp(relu(dense(p["embed"], x)))
        return lax.ragged_dot(h, jnp.cos(p["w"]), jnp.array([2, 4, 1])) + lax.ragged_dot(
            h, jnp.cos(p["w"]), jnp.array([1, 0, 3])
        )

    shapes = {"embed": dense_shapes(4, 6), "w": (3, 6, 2)}
    return case(
        apply, shapes, (normal(7, 4),), unit(6, "embed/kernel:1 embed/bias:0 w:1"), frozen=why("w:0", "ragged product")
    )


def gradient_of_experts() -> Case:
    """What is read is a gradient: products of groups that sum over the rows."""

    def apply(p, x):
        h = relu(dense(p["embed"], x))
        sizes = jnp.array([2, 4, 1])

        def loss(w):
            return jnp.sum(jnp.square(lax.ragged_dot(relu(lax.ragged_dot(h, w, sizes)), p["w2"], sizes)))

        return jnp.sum(jnp.square(jax.grad(loss)(p["w1"])), (1, 2)) + lax.ragged_dot(
            relu(lax.ragged_dot(h, p["w1"], sizes)), p["w2"], sizes
        )

    shapes = {"embed": dense_shapes(4, 6), "w1": (3, 6, 10), "w2": (3, 10, 3)}
    groups = unit(6, "embed/kernel:1 embed/bias:0 w1:1"), unit(10, "w1:2 w2:1")
    return case(apply, shapes, (normal(7, 4),), *groups, frozen=why("w1,w2:0", "ragged product"))


def rotary_table() -> Case:
    """The table of rotations is written into zeros, and so are the rotated queries: heads can go, dimensions not."""
    heads, size, steps = 3, 4, 5

    def rotate(x):
        angles = jnp.arange(steps)[:, None] * jnp.array([1.0, 0.1])
        table = jnp.zeros((steps, 2, 2)).at[:, 0].set(jnp.cos(angles)).at[:, 1].set(jnp.sin(angles))
        cos, sin = table[:, 0, None], table[:, 1, None]
        a, b = x[..., ::2], x[..., 1::2]
        return jnp.zeros_like(x).at[..., ::2].set(a * cos - b * sin).at[..., 1::2].set(a * sin + b * cos)

    def apply(p, x):
        q, k, v = (jnp.einsum("btc,chd->bthd", x, p[n]) for n in "qkv")
        scores = jnp.einsum("bqhd,bkhd->bhqk", rotate(q), rotate(k)) / np.sqrt(size)
        return jnp.einsum("bhqk,bkhd,hdc->bqc", jax.nn.softmax(scores), v, p["o"])

    shapes = {**dict.fromkeys("qkv", (6, heads, size)), "o": (heads, size, 6)}
    groups = unit(heads, "q,k,v:1 o:0", kind="head"), unit(size, "v:2 o:1")
    return case(apply, shapes, (normal(2, steps, 6),), *groups, frozen=why("q,k:2", "scatter|slice"))


def decoder_step() -> Case:
    """One step of a decoder: keys and values are written into the cache at the step that comes in."""
    heads, size, steps = 2, 3, 5

    def apply(variables, ids, i):
        p, cache = variables["params"], variables["cache"]
        x = p["table"][ids]
        q, k, v = (jnp.einsum("bc,chd->bhd", x, p[n]) for n in "qkv")
        keys, values = cache["keys"].at[:, i].set(k), cache["values"].at[:, i].set(v)
        scores = jnp.einsum("bhd,bthd->bht", q, keys) / np.sqrt(size)
        scores = jnp.where(jnp.arange(steps) <= i, scores, -1e9)
        x = x + jnp.einsum("bht,bthd,hdc->bc", jax.nn.softmax(scores), values, p["o"])
        return dense(p["out"], x)

    params = {
        "table": (7, 6),
        **dict.fromkeys("qkv", (6, heads, size)),
        "o": (heads, size, 6),
        "out": dense_shapes(6, 7),
    }
    cache = dict.fromkeys(("keys", "values"), (2, steps, heads, size))
    inputs = tokens(2, vocabulary=7), jnp.asarray(2)
    groups = (
        unit(6, "table:1 q,k,v:0 o:2 out/kernel:0"),
        unit(heads, "q,k,v:1 o:0 keys,values:2", kind="head"),
        unit(size, "q,k:2 keys:3"),
        unit(size, "v:2 o:1 values:3"),
    )
    return case(apply, {"params": params, "cache": cache}, inputs, *groups, more=((inputs[0] % 5, jnp.asarray(4)),))


NEVER: Builders = {
    name: functools.partial(never, pattern, op)
    for name, (pattern, op) in {
        # Single units are placed, or what is placed is no zero.
        "scatter_one_unit": ("scatter", lambda p, z: read(p, relu(z).at[:, 3].set(1.0))),
        "scatter_some_units": ("scatter|slice", lambda p, z: read(p, relu(z).at[:, 2:5].set(1.0))),
        "scatter_histogram": ("scatter", _histogram),
        "scatter_by_value": ("scatter", _bins_of_values),
        "scatter_by_order": ("argmax", _row_of_largest),
        "scatter_set_numbers": ("sum", _with_total(lambda z: relu(z).at[ROWS].set(NUMBERS))),
        "scatter_multiply_numbers": ("sum", _with_total(lambda z: (NUMBERS + 0 * z).at[ROWS].multiply(z[:2]))),
        "scatter_apply_numbers": (
            "sum",
            _with_total(lambda z: (z + NUMBERS).at[ROWS].apply(lambda y: jnp.cos(y) + y)),
        ),
    }.items()
}

CASES: Builders = NEVER | {
    name: functools.partial(build, *args)
    for name, (build, args) in {
        # Whole units are placed along another axis.
        "scatter_set": (exact, (_with_total(lambda z: relu(z).at[ROWS].set(jnp.tanh(z[:2]))),)),
        "scatter_set_zero": (exact, (_with_total(lambda z: relu(z).at[ROWS].set(0.0)),)),
        "scatter_set_one": (exact, (_with_total(lambda z: relu(z).at[ROWS].set(1.0)),)),
        "scatter_add": (exact, (_with_total(lambda z: relu(z).at[ROWS].add(jnp.sin(z[1:3]))),)),
        "scatter_subtract": (exact, (_with_total(lambda z: relu(z).at[ROWS].subtract(jnp.sin(z[1:3]))),)),
        "scatter_multiply": (
            exact,
            (_with_total(lambda z: relu(z).at[ROWS].multiply(sigmoid(z[1:3]), unique_indices=True)),),
        ),
        "scatter_least": (exact, (_with_total(lambda z: z.at[ROWS].min(jnp.tanh(z[1:3]))),)),
        "scatter_largest": (exact, (_with_total(lambda z: z.at[ROWS].max(relu(z[1:3]))),)),
        "scatter_apply": (exact, (_with_total(lambda z: z.at[ROWS].apply(jnp.cos)),)),
        "scatter_row_of_sum": (exact, (_row_of_sum,)),
        "scatter_per_unit": (exact, (_per_unit_rows,)),
        "scatter_cache": (exact, (_cache,)),
        # Whole units are picked.
        "gather_filled": (
            exact,
            (_with_total(lambda z: relu(z).at[jnp.array([1, 9, 0])].get(mode="fill", fill_value=1.0)),),
        ),
        "gather_filled_with_least": (exact, (_least_is_filled,)),
        "gather_along": (exact, (_with_total(lambda z: jnp.take_along_axis(relu(z), jnp.argsort(-z, 0), 0)),)),
        "segments": (
            exact,
            (_with_total(lambda z: jax.ops.segment_sum(relu(z), jnp.array([1, 0, 1, 3]), num_segments=4)),),
        ),
        "scatter_in_place": (
            either,
            ("scatter", lambda p, z: read(p, relu(z).at[:, jnp.array([1, 4])].add(1.0))),
        ),
    }.items()
}

_MODELS = (
    graph_network,
    mixture_of_experts,
    experts_of_uniform_entries,
    gradient_of_experts,
    rotary_table,
    decoder_step,
)
CASES |= {f.__name__: f for f in _MODELS}
