"""What inputs and constants alone make is cut for each use by itself, wherever it is used."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mvp_jax import compact, graph

WIDTH = 6
ROW = jnp.cos(jnp.arange(WIDTH) * 1.3) + 0.2
ROWS = jnp.sin(jnp.arange(5 * WIDTH).reshape(5, WIDTH) * 0.7)
RNG = np.random.default_rng(0)
SHAPES = {"a": (3, WIDTH), "b": (3, WIDTH), "o": (WIDTH, 2), "o2": (WIDTH, 2)}
PARAMS = {name: jnp.asarray(RNG.normal(size=shape), jnp.float32) for name, shape in SHAPES.items()}
X = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32)


@jax.custom_vjp
def rounded(h, t):
    return jnp.round(h * t)


rounded.defvjp(lambda h, t: (jnp.round(h * t), (h, t)), lambda kept, g: (g * kept[1], g * kept[0]))


def both(p, x, first, second):
    return first(x @ p["a"]) @ p["o"] + second(x @ p["b"]) @ p["o2"]


def _remat(p, x, t):
    return both(p, x, lambda h: jax.checkpoint(jnp.multiply)(h, t), jax.checkpoint(lambda h: h * jnp.sin(t)))


def _cond(p, x, t):
    return both(p, x, lambda h: lax.cond(x[0, 0] > 0, jnp.multiply, lambda h, t: h * jnp.cos(t), h, t), lambda h: h * t)


def _scan(p, x, t):
    def first(h):
        return lax.scan(lambda c, _: (0.5 * c + h * t, None), jnp.zeros_like(t), None, length=3)[0]

    return both(p, x, first, lambda h: h * t)


def _rows_of_a_scan(p, x, t):
    rows = lax.dynamic_slice_in_dim(ROWS, (x[0, 0] > 0).astype(int), 3)

    def first(h):
        return lax.scan(lambda c, row: (0.5 * c + h * row, None), jnp.zeros((4, WIDTH)), rows)[0]

    return both(p, x, first, lambda h: h * rows[0])


def _loop(p, x, t):
    return both(p, x, lambda h: lax.fori_loop(0, 3, lambda i, c: 0.5 * c + h * t, jnp.zeros_like(t)), lambda h: h * t)


def _kept(p, x, t):
    return both(p, x, lambda h: rounded(h, t), lambda h: rounded(h, jnp.cos(t)))


def _joined(p, x, t):
    h = jnp.concatenate([x @ p["a"] * t, x @ p["b"] * t], -1)
    return h @ jnp.concatenate([p["o"], p["o2"]], 0)


def _norm(p, x, t):
    return both(p, x, lambda h: (h - h.mean(-1, keepdims=True)) * t, lambda h: jax.nn.softmax(h) * t)


USES = {
    "products": lambda p, x, t: both(p, x, lambda h: h * t, lambda h: jnp.cos(h) * t) + t.sum(-1, keepdims=True),
    "calls": lambda p, x, t: both(p, x, lambda h: jax.jit(jnp.multiply)(h, t), lambda h: h * jax.nn.silu(t)),
    "relu": lambda p, x, t: both(p, x, lambda h: h * jax.nn.relu(t), lambda h: h + t * h),
    "flipped": lambda p, x, t: both(p, x, lambda h: h * t.reshape(-1).reshape(4, WIDTH), lambda h: h * t[:, ::-1]),
    "mapped": lambda p, x, t: jax.vmap(lambda r, s: both(p, r, lambda h: h * s, lambda h: jnp.sin(h) * s))(x, t),
    "checkpoints": _remat,
    "branches": _cond,
    "scan": _scan,
    "rows of a scan": _rows_of_a_scan,
    "loop": _loop,
    "kept derivatives": _kept,
    "concatenation": _joined,
    "norm": _norm,
}


@pytest.mark.parametrize("name", USES)
def test_layers_are_apart_and_slim_is_masked(name):
    def apply(p, x):
        return USES[name](p, x, ROW * x[:, :1])

    keep = ("rounded",) if name == "kept derivatives" else ()
    groups = graph.groups(apply, PARAMS, X, keep=keep)
    assert [(g.name, g.size) for g in groups] == [("a", WIDTH), ("b", WIDTH)]
    found = compact.verify(apply, PARAMS, groups, X, key=jax.random.key(1), keep=keep)
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-2
    if name == "loop":
        return  # a loop of this kind has no derivative in reverse
    units = {"a": jnp.arange(WIDTH) % 2 == 0, "b": jnp.arange(WIDTH) % 3 > 0}
    small, slim = compact.slim(apply, PARAMS, groups, units, X, keep=keep)

    def gradient(run, variables):
        return jax.grad(lambda v: jnp.sum(jnp.sin(run(v, X))))(variables)

    want = compact.cut(gradient(apply, compact.mask(PARAMS, groups, units)), groups, units)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), gradient(small, slim), want)
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(want)) > 1e-2


def test_what_differs_between_removed_units_still_freezes():
    def apply(p, x):
        t = ROW * x[:, :1]
        return (x @ p["a"] + t).sum(-1, keepdims=True) + (x @ p["b"]) @ p["o2"]

    assert [g.name for g in graph.groups(apply, PARAMS, X)] == ["b"]


def test_a_given_array_that_is_returned_stays_whole():
    def apply(p, x):
        t = ROW * x[:, :1]
        return (x @ p["a"] * t) @ p["o"], t

    (group,) = graph.groups(apply, PARAMS, X)
    small, slim = compact.slim(apply, PARAMS, [group], {"a": jnp.arange(WIDTH) > 1}, X)
    np.testing.assert_allclose(small(slim, X)[1], ROW * X[:, :1], rtol=1e-6)
