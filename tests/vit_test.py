import jax
import numpy as np
import pytest

from mvp_jax import models
from mvp_jax.models import vit
from tests.model_kinds import made


@pytest.mark.parametrize(
    ("name", "count"), [("vit_tiny", 5_717_416), ("vit_small", 22_050_664), ("vit_base", 86_567_656)]
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


def test_forward_by_numpy():
    model, variables = made("vit_mean")
    config = model.config
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    x = np.random.default_rng(0).normal(size=(2, 8, 8, 1))

    def norm(x, p):
        return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]

    tokens = [
        sum(x[:, 2 * i + a, 2 * j + b] @ p["patch"]["kernel"][a, b] for a in range(2) for b in range(2))
        for i in range(4)
        for j in range(4)
    ]
    h = np.stack(tokens, axis=1) + p["patch"]["bias"] + p["position"]
    layer = p["layers"]["0"]
    a, y, out = layer["attention"], norm(h, layer["norm1"]), 0.0
    for head in range(3):
        q, k, v = (y @ a[n]["kernel"][:, head] + a[n]["bias"][head] for n in ("query", "key", "value"))
        scores = np.exp(np.einsum("nqd,nkd->nqk", q, k) * config.attention_scale)
        out = out + (scores / scores.sum(-1, keepdims=True)) @ v @ a["out"]["kernel"][head]
    h = h + out + a["out"]["bias"]
    y = norm(h, layer["norm2"]) @ layer["fc1"]["kernel"] + layer["fc1"]["bias"]
    erf = np.vectorize(__import__("math").erf)
    h = h + (y * 0.5 * (1 + erf(y / np.sqrt(2)))) @ layer["fc2"]["kernel"] + layer["fc2"]["bias"]
    expected = norm(h, p["norm"]).mean(1) @ p["head"]["kernel"] + p["head"]["bias"]
    assert np.ptp(expected, axis=0).min() > 1e-3
    np.testing.assert_allclose(model.apply(variables, x.astype(np.float32))[0], expected, rtol=1e-4, atol=1e-5)


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
