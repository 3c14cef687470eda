"""Decoders with a cache: the cache is a collection of the variables, and comes back smaller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from jax import lax

from mvp_jax import compact, graph
from tests.zoo.cases import draw, norm_shapes, tokens

VOCABULARY, WIDTH, HEADS, SIZE, HIDDEN, LONGEST, BATCH, PROMPT = 11, 12, 3, 4, 16, 10, 2, 4
BLOCK = {
    "norm1": norm_shapes(WIDTH),
    **dict.fromkeys("qkv", (WIDTH, HEADS, SIZE)),
    "out": (HEADS, SIZE, WIDTH),
    "norm2": norm_shapes(WIDTH),
    "up": (WIDTH, HIDDEN),
    "down": (HIDDEN, WIDTH),
}
PARAMS = draw(
    {
        "embed": (VOCABULARY, WIDTH),
        "position": (LONGEST, WIDTH),
        "blocks": [BLOCK, BLOCK],
        "norm": norm_shapes(WIDTH),
    }
)
IDS = tokens(BATCH, PROMPT, vocabulary=VOCABULARY)


def norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    return centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def block(p, x, see):
    """`see` stores keys and values, and gives all that are to be seen, with a mask."""
    y = norm(p["norm1"], x)
    q, k, v = (jnp.einsum("btd,dhk->bthk", y, p[name]) for name in "qkv")
    k, v, mask, cache = see(k, v)
    weights = jax.nn.softmax(jnp.where(mask, jnp.einsum("bqhk,bshk->bhqs", q, k) / 2, -1e9))
    x = x + jnp.einsum("bhqs,bshk,hkd->bqd", weights, v, p["out"])
    return x + jax.nn.gelu(norm(p["norm2"], x) @ p["up"]) @ p["down"], cache


def forward(p, ids):
    length = ids.shape[1]
    x = p["embed"][ids] + p["position"][:length]
    for of_block in p["blocks"]:
        x, _ = block(of_block, x, lambda k, v: (k, v, jnp.tril(jnp.ones((length, length), bool)), None))
    return norm(p["norm"], x) @ p["embed"].T


def step(variables, ids, at):
    """Logits of some tokens from place `at` on, and the cache with their keys and values."""
    p, caches = variables["params"], []
    x = p["embed"][ids] + lax.dynamic_slice_in_dim(p["position"], at, ids.shape[1])
    for of_block, cache in zip(p["blocks"], variables["cache"], strict=True):

        def see(k, v, cache=cache):
            cache = {
                "key": lax.dynamic_update_slice(cache["key"], k, (0, at, 0, 0)),
                "value": lax.dynamic_update_slice(cache["value"], v, (0, at, 0, 0)),
            }
            mask = jnp.arange(LONGEST)[None, :] <= at + jnp.arange(k.shape[1])[:, None]
            return cache["key"], cache["value"], mask, cache

        x, cache = block(of_block, x, see)
        caches.append(cache)
    return norm(p["norm"], x) @ p["embed"].T, caches


def empty_cache():
    return [{name: jnp.zeros((BATCH, LONGEST, HEADS, SIZE)) for name in ("key", "value")} for _ in range(2)]


def generate(run, variables, ids, count=5):
    """Prefill, then one token after the other; all logits of the new tokens, and the tokens."""
    logits, cache = run(variables, ids, 0)
    found, chosen = [logits[:, -1]], [jnp.argmax(logits[:, -1], -1)]
    for i in range(count):
        logits, cache = run(variables | {"cache": cache}, chosen[-1][:, None], ids.shape[1] + i)
        found.append(logits[:, 0])
        chosen.append(jnp.argmax(logits[:, 0], -1))
    return jnp.stack(found, 1), jnp.stack(chosen, 1)


def half(groups):
    return {g.name: jnp.arange(g.size) % 2 == 0 for g in groups}


def test_a_step_with_its_cache_frees_heads_dimensions_and_the_stream():
    groups = graph.groups(step, {"params": PARAMS, "cache": empty_cache()}, IDS, 0)
    assert sorted((g.kind, g.size) for g in groups) == sorted(
        [("stage", WIDTH), *2 * [("head", HEADS), ("qk", SIZE), ("value", SIZE), ("neuron", HIDDEN)]]
    )
    cached = {(g.kind, s.path, s.axis) for g in groups for s in g.slots if s.collection == "cache"}
    assert cached == {
        (kind, f"{i}/{name}", axis)
        for i in range(2)
        for kind, name, axis in [("head", "key", 2), ("head", "value", 2), ("qk", "key", 3), ("value", "value", 3)]
    }
    assert not any(s.scored for g in groups for s in g.slots if s.collection == "cache")


@pytest.mark.parametrize("found_in", ["step", "forward"])
def test_prefill_and_decoding_are_those_of_the_masked_decoder(found_in):
    variables = {"params": PARAMS, "cache": empty_cache()}
    of_step = graph.groups(step, variables, IDS, 0)
    of_forward = graph.groups(forward, PARAMS, IDS)
    assert {(g.kind, g.size) for g in of_forward} == {(g.kind, g.size) for g in of_step}
    groups = of_step if found_in == "step" else of_forward
    units = half(groups)
    small, slim = compact.slim(step, variables, groups, units, IDS, 0)
    assert jax.tree.map(jnp.shape, slim["cache"])[0] == {"key": (2, 10, 2, 2), "value": (2, 10, 2, 2)}
    masked = {"params": compact.mask(PARAMS, of_forward, half(of_forward)), "cache": empty_cache()}
    want, chosen = generate(jax.jit(step), masked, IDS)
    got, same = generate(jax.jit(small), slim, IDS)
    assert float(jnp.std(want)) > 0.1
    np.testing.assert_allclose(got, want, atol=1e-5)
    np.testing.assert_array_equal(same, chosen)
    # The step is what the whole forward pass computes, also after cutting.
    whole, whole_slim = compact.slim(forward, PARAMS, of_forward, half(of_forward), IDS)
    np.testing.assert_allclose(whole(whole_slim, IDS)[:, -1], got[:, 0], atol=1e-5)
    dense, _ = generate(jax.jit(step), variables, IDS)
    assert float(jnp.max(jnp.abs(dense - want))) > 0.1


def test_tables_that_are_cut_out_once_tie_no_layers_together():
    """Rotary tables, cut at a place that is not known while tracing, serve the queries and keys of both layers."""
    angles = jnp.arange(LONGEST)[:, None] * 100.0 ** (-jnp.arange(SIZE // 2) / 2)

    def rotated(x, cos, sin):
        a, b = x[..., : SIZE // 2], x[..., SIZE // 2 :]
        return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)

    def turning(variables, ids, at):
        p, caches = variables["params"], []
        x = p["embed"][ids]
        cut = [jnp.cos(angles), jnp.sin(angles)]
        cos, sin = (lax.dynamic_slice_in_dim(t, at, ids.shape[1])[None, :, None] for t in cut)
        for of_block, cache in zip(p["blocks"], variables["cache"], strict=True):
            q, k, v = (jnp.einsum("btd,dhk->bthk", norm(of_block["norm1"], x), of_block[name]) for name in "qkv")
            k = lax.dynamic_update_slice(cache["key"], rotated(k, cos, sin), (0, at, 0, 0))
            v = lax.dynamic_update_slice(cache["value"], v, (0, at, 0, 0))
            mask = jnp.arange(LONGEST)[None, :] <= at + jnp.arange(ids.shape[1])[:, None]
            scores = jnp.where(mask, jnp.einsum("bqhk,bshk->bhqs", rotated(q, cos, sin), k), -1e9)
            x = x + jnp.einsum("bhqs,bshk,hkd->bqd", jax.nn.softmax(scores), v, of_block["out"])
            caches.append({"key": k, "value": v})
        return x @ p["embed"].T, caches

    variables = {"params": PARAMS, "cache": empty_cache()}
    groups = graph.groups(turning, variables, IDS, 0)
    assert [g.size for g in groups if g.kind == "qk"] == 2 * [SIZE // 2]  # pairs that are turned together
    found = compact.verify(turning, variables, groups, IDS, 3, key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3


def test_a_cache_as_an_argument_is_told_where_it_belongs():
    def with_argument(params, cache, ids):
        return step({"params": params, "cache": cache}, ids, 0)

    told = {f.reason for f in graph.analyse(with_argument, PARAMS, empty_cache(), IDS).frozen}
    assert any("a cache is cut along if it is a collection of the variables" in reason for reason in told)
    assert not any("cache" in f.reason for f in graph.analyse(forward, PARAMS, IDS).frozen)


def test_a_cache_that_is_not_empty_is_cut_with_its_units():
    variables = {"params": PARAMS, "cache": jax.tree.map(lambda x: x + 0.5, empty_cache())}
    groups = graph.groups(step, variables, IDS, 2)
    found = compact.verify(step, variables, groups, IDS, 2, key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3
    assert found.approximate == ()


def test_a_result_that_only_looks_like_state_keeps_its_axes():
    def apply(variables, x):
        h = jax.nn.relu(x @ variables["params"]["a"] + variables["state"])
        return h, h @ variables["params"]["b"]

    variables = {"params": {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}, "state": jnp.ones((2, 8))}
    assert graph.groups(apply, variables, jnp.ones((2, 3))) == ()

    def carried(variables, x):
        h, y = apply(variables, x)
        return {"state": h, "logits": y}

    (group,) = graph.groups(carried, variables, jnp.ones((2, 3)))
    assert group.size == 8


def test_a_linen_cache_is_a_collection():
    class Net(linen.Module):
        @linen.compact
        def __call__(self, ids):
            x = linen.Embed(VOCABULARY, WIDTH, name="embed")(ids)
            y = linen.LayerNorm(name="norm")(x)
            y = linen.MultiHeadDotProductAttention(HEADS, qkv_features=12, decode=True, name="attention")(y)
            return linen.Dense(5, name="head")(x + y)

    net = Net()
    variables = net.init(jax.random.key(0), jnp.ones((BATCH, LONGEST), jnp.int32))
    variables = {"params": draw(jax.tree.map(jnp.shape, variables["params"])), "cache": variables["cache"]}

    def apply(variables, ids):
        return net.apply(variables, ids, mutable=["cache"])

    groups = graph.groups(apply, variables, IDS[:, :1])
    assert {g.kind for g in groups} >= {"head", "qk", "value"}
    found = compact.verify(apply, variables, groups, IDS[:, :1], key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3


def test_statistics_that_come_back_are_cut():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.fc1 = nnx.Linear(3, 8, rngs=rngs)
            self.norm = nnx.BatchNorm(8, rngs=rngs)
            self.fc2 = nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.fc2(jax.nn.relu(self.norm(self.fc1(x))))

    definition, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    def apply(variables, x):
        net = nnx.merge(definition, variables["params"], variables["rest"])
        y = net(x)
        return y, nnx.split(net, nnx.Param, ...)[2]

    variables = {"params": params, "rest": rest}
    x = jax.random.normal(jax.random.key(0), (6, 3))
    (group,) = graph.groups(apply, variables, x)
    assert {(s.collection, s.path) for s in group.slots if s.collection != "params"} == {
        ("rest", "norm/mean"),
        ("rest", "norm/var"),
    }
    found = compact.verify(apply, variables, [group], x, key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3
