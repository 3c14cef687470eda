"""Pieces that transformers share: activations by name, what a token sees, what is computed in half the bits."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.models import api, clip, layers
from mvp_jax.models.hooks import Hooks, Noise
from mvp_jax.saliency import input_norms
from tests.model_kinds import batch, made, randomise

BY_HAND = {
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "gelu_new": lambda x: 0.5 * x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x / (1 + math.exp(-1.702 * x)),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}
SAME = {"gelu_python": "gelu", "swish": "silu"} | dict.fromkeys(
    ("gelu_tanh", "gelu_pytorch_tanh", "gelu_python_tanh", "gelu_fast"), "gelu_new"
)


def test_activations_by_name():
    x = np.linspace(-4, 4, 41)
    values = {}
    assert set(layers.ACTIVATIONS) == set(BY_HAND) | set(SAME)
    for name, f in layers.ACTIVATIONS.items():
        values[name] = np.asarray(f(jnp.asarray(x, jnp.float32)))
        expected = [BY_HAND[SAME.get(name, name)](float(v)) for v in x]
        np.testing.assert_allclose(values[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
        assert float(f(jnp.zeros(()))) == 0.0
    # Near as they are, the names stand for different functions.
    for a in BY_HAND:
        assert all(a == b or np.abs(values[a] - values[b]).max() > 1e-4 for b in BY_HAND), a


def filled(module, seed=0):
    """The module with random parameters, and these as float64."""
    state = api.nnx.state(module, api.nnx.Param)
    values = randomise(api.nnx.to_pure_dict(state), seed)
    api.nnx.update(module, values)
    return module, jax.tree.map(lambda a: np.asarray(a, np.float64), values)


def attended(p, x, real, causal, scale):
    """Attention of one text, by loops."""
    out = np.tile(p["out"]["bias"], (len(x), 1))
    for head in range(p["query"]["bias"].shape[0]):
        q, k, v = (x @ p[m]["kernel"][:, head] + p[m]["bias"][head] for m in ("query", "key", "value"))
        for t in range(len(x)):
            seen = [s for s in range(len(x)) if real[s] and not (causal and s > t)]
            weights = np.exp([q[t] @ k[s] * scale for s in seen])
            out[t] += (weights / weights.sum()) @ v[seen] @ p["out"]["kernel"][head]
    return out


@pytest.mark.parametrize("causal", [False, True])
def test_what_a_token_sees(causal):
    make = layers.Attention("a", 6, 2, 3, 4, 0.7, causal=causal, noise=Noise())
    module, p = filled(make)
    x = np.random.default_rng(1).normal(size=(3, 5, 6)).astype(np.float32)
    real = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 1, 0]], bool)
    every = [attended(p, row, np.ones(5, bool), causal, 0.7) for row in x]
    masked = [attended(p, row, r, causal, 0.7) for row, r in zip(x, real, strict=True)]
    np.testing.assert_allclose(module(x, Hooks()), every, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(module(x, Hooks(), jnp.asarray(real)), masked, rtol=1e-4, atol=1e-5)
    assert np.abs(np.subtract(every, masked)).max() > 1e-2
    other = layers.Attention("a", 6, 2, 3, 4, 0.7, causal=not causal, noise=Noise())
    assert np.abs(filled(other)[0](x, Hooks()) - np.asarray(every)).max() > 1e-2


def test_nothing_real_gives_numbers():
    module, _ = filled(layers.Attention("a", 6, 2, 3, 4, 0.7, causal=True, noise=Noise()))
    x = jnp.ones((1, 4, 6))
    assert bool(jnp.isfinite(module(x, Hooks(), jnp.zeros((1, 4), bool))).all())


def test_projection_without_bias():
    module, p = filled(layers.Projection((3, 2), (4,), bias=False, noise=Noise()))
    x = np.random.default_rng(2).normal(size=(5, 3, 2)).astype(np.float32)
    assert set(p) == {"kernel"}
    np.testing.assert_allclose(module(x), np.einsum("nab,abc->nc", x, p["kernel"]), rtol=1e-5)


def test_a_norm_is_computed_in_float32():
    module, p = filled(layers.LayerNorm(64, epsilon=1e-5))
    x = jnp.asarray(np.random.default_rng(4).normal(3.0, 0.1, (2, 64)), jnp.bfloat16)
    wide = np.asarray(x, np.float64)
    expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
    got = module(x)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, expected * p["scale"] + p["bias"], rtol=1e-4, atol=1e-4)


def products(jaxpr):
    """`(primitive, dtype of its first operand, of its result)` of every equation, also of inner programs."""
    for eqn in jaxpr.eqns:
        inner = [getattr(p, "jaxpr", p) for p in jax.tree.leaves(list(eqn.params.values()))]
        inner = [p for p in inner if hasattr(p, "eqns")]
        for program in inner:
            yield from products(program)
        if not inner and eqn.invars:
            yield eqn.primitive.name, str(eqn.invars[0].aval.dtype), str(eqn.outvars[0].aval.dtype)


@pytest.mark.parametrize("kind", ["vit_cls", "clip_vision", "clip_text"])
def test_half_the_bits(kind):
    """Products and activations are in bfloat16; parameters, norms, softmax, what layers add up and logits are not."""
    model, variables = made(kind)
    config = model.config
    half = models.build(models.from_json(models.to_json(config) | {"compute": "bfloat16"}))
    x = batch(model)
    assert half.groups == model.groups
    assert {a.dtype for a in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {jnp.dtype("float32")}
    kept, lowered = model.inspect(variables, x), half.inspect(variables, x)
    assert {a.dtype for a in jax.tree.leaves(lowered)} == {jnp.dtype("float32")}
    scale = np.abs(kept.logits).max()
    difference = np.abs(kept.logits - lowered.logits).max()
    assert 0 < difference < 0.05 * scale

    seen = list(products(jax.make_jaxpr(lambda v: half.apply(v, x)[0])(variables).jaxpr))
    dots = [(a, out) for name, a, out in seen if name == "dot_general"]
    layers_of = len(config.heads)
    # Scores leave their product in float32, for the softmax; of all other products only the head's is one.
    assert dots.count(("bfloat16", "float32")) == layers_of
    assert dots.count(("float32", "float32")) == 1
    assert dots.count(("bfloat16", "bfloat16")) >= 7 * layers_of
    assert {a for name, a, _ in seen if name in ("rsqrt", "exp", "reduce_sum", "reduce_max")} == {"float32"}
    assert {a for name, a, _ in seen if name in ("erf", "erfc", "logistic")} == {"bfloat16"}
    usual = list(products(jax.make_jaxpr(lambda v: model.apply(v, x)[0])(variables).jaxpr))
    assert not any("bfloat16" in dtypes for dtypes in usual)


def test_half_the_bits_are_trained_and_measured():
    model, variables = made("clip_vision")
    half = models.build(models.from_json(models.to_json(model.config) | {"compute": "bfloat16"}))
    x = batch(model)

    def slopes(m):
        return trees.flatten(jax.jit(jax.grad(lambda v: jnp.sum(m.apply(v, x)[0][:, 0])))(variables))

    usual, lowered = slopes(model), slopes(half)
    for path, g in lowered.items():
        assert g.dtype == jnp.float32
        size = float(jnp.linalg.norm(usual[path]))
        assert float(jnp.linalg.norm(g - usual[path])) < 0.1 * size or path.endswith("key/bias"), path
    # Norms of inputs find the kernels behind their casts.
    norms = [
        input_norms.norms(lambda v, y, m=m: m.apply(v, y)[0], variables, x, prunable=m.prunable) for m in (model, half)
    ]
    for a, b in zip(*map(jax.tree.leaves, norms), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05, atol=0.05)


def test_what_is_no_transformer_is_refused():
    good = clip.micro_vision()
    layers.check_transformer(good)

    class Odd:
        dim, heads, qk_dim, v_dim, mlp, attention_scale = 4, (2,), (2,), (2,), (8,), 0.5

    layers.check_transformer(Odd())  # has no activation or compute to be wrong
    for field, value, message in (
        ("heads", (), "one entry per layer"),
        ("v_dim", (2, 2), "one entry per layer"),
        ("mlp", (0,), "at least 1"),
        ("activation", "tanh", "choose one of \\['gelu'"),
        ("compute", "half", "choose float32 or bfloat16"),
    ):
        with pytest.raises(ValueError, match=message):
            layers.check_transformer(type("Other", (Odd,), {field: value})())
