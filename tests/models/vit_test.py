import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, models
from mvp_jax.core import masks, units
from mvp_jax.core.types import Variables
from mvp_jax.models import vit
from tests import declared
from tests.model_kinds import batch, made, random_units, randomise

ERF = np.vectorize(math.erf)
SMALL = {"layers": 1, "dim": 12, "heads": 3, "mlp": 10, "classes": 3}


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit_tiny", 5_717_416),
        ("vit_small", 22_050_664),
        ("vit_base", 86_567_656),
        ("deit_tiny", 5_717_416),
        ("deit_tiny_distilled", 5_910_800),
        ("deit_small_distilled", 22_436_432),
        ("deit_base_distilled", 87_338_192),
    ],
)
def test_sizes_are_those_of_deit(name, count):
    model = models.create(name)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert sum(np.prod(a.shape, dtype=int) for a in jax.tree.leaves(shapes.params)) == count
    assert len(model.groups) == 4 * 12


def test_groups_of_a_layer():
    model, _ = made("vit_cls")
    assert [(g.name, g.size, g.kind) for g in model.groups[:4]] == [
        ("layers/0/attention", 3, "head"),
        ("layers/0/attention/query", 4, "qk"),
        ("layers/0/attention/value", 4, "value"),
        ("layers/0/fc1", 10, "neuron"),
    ]
    heads = {(s.path, s.axis, s.scored) for s in model.groups[0].slots}
    assert ("layers/0/attention/out/kernel", 0, False) in heads
    assert ("layers/0/attention/query/kernel", 1, True) in heads
    assert len(heads) == 7


def test_resize_keeps_the_scale_of_the_dense_heads():
    model, _ = made("vit_cls")
    slim = model.resize({"layers/1/attention/query": 1, "layers/0/attention": 2, "layers/1/fc1": 7})
    assert slim.config.heads == (2, 3)
    assert slim.config.qk_dim == (4, 1)
    assert slim.config.v_dim == (4, 4)
    assert slim.config.mlp == (10, 7)
    assert slim.config.attention_scale == model.config.attention_scale == 0.5


def norm(x, p, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def by_numpy(config, variables, x):
    """The tokens of one layer after the last norm."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    tokens = [
        sum(x[:, 2 * i + a, 2 * j + b] @ p["patch"]["kernel"][a, b] for a in range(2) for b in range(2))
        for i in range(4)
        for j in range(4)
    ]
    h = np.stack(tokens, axis=1) + p["patch"]["bias"]
    own = [np.repeat(p[name], len(x), 0) for name in ("cls", "distill") if name in p]
    h = np.concatenate([*own, h], axis=1) + p["position"]
    layer = p["layers"]["0"]
    a, y, out = layer["attention"], norm(h, layer["norm1"], config.epsilon), 0.0
    for head in range(3):
        q, k, v = (y @ a[n]["kernel"][:, head] + a[n]["bias"][head] for n in ("query", "key", "value"))
        scores = np.exp(np.einsum("nqd,nkd->nqk", q, k) * config.attention_scale)
        out = out + (scores / scores.sum(-1, keepdims=True)) @ v @ a["out"]["kernel"][head]
    h = h + out + a["out"]["bias"]
    y = norm(h, layer["norm2"], config.epsilon) @ layer["fc1"]["kernel"] + layer["fc1"]["bias"]
    y = y / (1 + np.exp(-1.702 * y)) if config.activation == "quick_gelu" else y * 0.5 * (1 + ERF(y / np.sqrt(2)))
    return norm(h + y @ layer["fc2"]["kernel"] + layer["fc2"]["bias"], p["norm"], config.epsilon), p


def test_forward_by_numpy():
    model, variables = made("vit_mean")
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1))
    h, p = by_numpy(model.config, variables, x)
    expected = h.mean(1) @ p["head"]["kernel"] + p["head"]["bias"]
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(model.apply(variables, x.astype(np.float32))[0], expected, rtol=1e-4, atol=1e-5)


def distilled(**options):
    model = vit.build(vit.micro(**SMALL, distilled=True, **options))
    return model, randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)


def test_two_heads_are_averaged():
    model, variables = distilled(epsilon=0.1, activation="quick_gelu")
    x = np.random.default_rng(0).normal(size=(4, 8, 8, 1))
    h, p = by_numpy(model.config, variables, x)
    assert h.shape == (4, 18, 12) == (4, model.config.tokens, 12)
    first, second = (h[:, i] @ p[n]["kernel"] + p[n]["bias"] for i, n in enumerate(("head", "head_distilled")))
    assert min(np.ptp(first, axis=0).min(), np.ptp(second, axis=0).min(), np.abs(first - second).max()) > 1e-2
    images = jnp.asarray(x, jnp.float32)
    seen = model.inspect(variables, images)
    for got in (seen.logits, model.apply(variables, images, train=True)[0]):
        np.testing.assert_allclose(got, (first + second) / 2, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(seen.features, h[:, 0], rtol=1e-4, atol=1e-5)
    # Under one head, the same tokens.
    alone = {n: v for n, v in variables.params.items() if n != "head_distilled"}
    one = vit.build(dataclasses.replace(model.config, one_head=True))
    np.testing.assert_allclose(one.apply((alone, {}), images)[0], first, rtol=1e-4, atol=1e-5)
    assert model.with_classes(3) is one
    assert one.with_classes(3) is one
    assert model.with_classes(7).config == dataclasses.replace(one.config, classes=7)


def test_cuts_under_two_heads_equal_masks():
    model, variables = distilled()
    by_hand = declared.groups(model)
    facts = [[(g.name, g.size, g.kind, frozenset(g.slots)) for g in groups] for groups in (model.groups, by_hand)]
    assert facts[0] == facts[1]
    x, kept = batch(model), random_units(model, 3)
    slim_model, slim = compact.rebuild(model, variables, kept)
    shut = masks.apply(variables.params, units.expand(kept, model.groups, variables.params))
    expected = model.apply(Variables(shut, variables.rest), x)[0]
    np.testing.assert_allclose(slim_model.apply(slim, x)[0], expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected - model.apply(variables, x)[0]).max()) > 1e-2
    assert slim_model.config.averaged
    assert {g.size for g in slim_model.groups} == {2, 5}


def test_half_precision_is_near_and_parameters_stay():
    model, variables = distilled()
    x = batch(model)
    half = vit.build(dataclasses.replace(model.config, compute="bfloat16"))
    exact, rough = (m.apply(variables, x)[0] for m in (model, half))
    assert rough.dtype == jnp.float32
    far = float(jnp.abs(exact - rough).max()) / float(jnp.abs(exact).max())
    assert 1e-5 < far < 0.05
    grads = jax.eval_shape(jax.grad(lambda p: half.apply((p, {}), x)[0].sum()), variables.params)
    assert {g.dtype for g in jax.tree.leaves(grads)} == {jnp.dtype("float32")}


def test_bad_configurations_are_refused():
    with pytest.raises(ValueError, match="do not tile"):
        vit.micro(image_size=9, patch=2)
    with pytest.raises(ValueError, match="do not divide"):
        vit.micro(dim=10, heads=4)
    with pytest.raises(ValueError, match="one entry per layer"):
        vit.ViTConfig(dim=4, heads=(1, 1), qk_dim=(4,), v_dim=(4,), mlp=(4,), attention_scale=0.5)
    with pytest.raises(ValueError, match="choose cls or mean"):
        vit.micro(pool="max")
    with pytest.raises(ValueError, match="at least 1"):
        vit.micro(layers=1, mlp=0)
    with pytest.raises(ValueError, match="behind a class token"):
        vit.micro(distilled=True, pool="mean")
    with pytest.raises(ValueError, match="give distilled=True"):
        vit.micro(one_head=True)
    with pytest.raises(ValueError, match="choose one of"):
        vit.micro(activation="mish")
    with pytest.raises(ValueError, match="float32 or bfloat16"):
        vit.micro(compute="float16")
    with pytest.raises(ValueError, match="epsilon"):
        vit.micro(epsilon=-1.0)
