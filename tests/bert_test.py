"""BERT: the forward pass by plain NumPy, padding that nobody sees, cuts that equal masks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvp_jax import compact, cost, masks, models, train, trees, units
from mvp_jax.models import bert
from mvp_jax.types import Variables
from tests.model_kinds import batch, made, random_units, randomise

ERF = np.vectorize(math.erf)


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def one_text(p, config, ids):
    """Logits of one text, padding left off, so that there is none to mask."""
    ids = [int(i) for i in ids if i != config.pad]
    kinds, kind = [], 0
    for i in ids:
        kinds.append(kind)
        kind = 1 if i == config.separator else kind
    e = p["embed"]
    x = np.stack(
        [e["word"][i] + e["position"][t] + e["type"][k] for t, (i, k) in enumerate(zip(ids, kinds, strict=True))]
    )
    x = norm(x, e["norm"])
    for n in range(len(config.heads)):
        layer = p["layers"][str(n)]
        a = layer["attention"]
        mixed = np.tile(a["out"]["bias"], (len(ids), 1))
        for head in range(config.heads[n]):
            q, k, v = (x @ a[m]["kernel"][:, head] + a[m]["bias"][head] for m in ("query", "key", "value"))
            for t in range(len(ids)):
                scores = np.array([math.exp(float(q[t] @ k[s]) * config.attention_scale) for s in range(len(ids))])
                mixed[t] += (scores / scores.sum()) @ v @ a["out"]["kernel"][head]
        x = norm(x + mixed, layer["norm1"])
        h = x @ layer["fc1"]["kernel"] + layer["fc1"]["bias"]
        h = h * 0.5 * (1 + ERF(h / math.sqrt(2)))
        x = norm(x + h @ layer["fc2"]["kernel"] + layer["fc2"]["bias"], layer["norm2"])
    pooled = np.tanh(x[0] @ p["pooler"]["kernel"] + p["pooler"]["bias"])
    return pooled @ p["head"]["kernel"] + p["head"]["bias"]


def test_forward_by_numpy():
    model, variables = made("bert")
    x = np.asarray(batch(model))
    assert {int((row != model.config.pad).sum()) for row in x} == {6, 7}
    assert ((x == model.config.separator).sum(1) == 2).sum() == 3
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    expected = np.stack([one_text(p, model.config, row) for row in x])
    assert np.ptp(expected, axis=0).min() > 1e-2
    np.testing.assert_allclose(model.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)
    # The second segment counts.
    one_type = dict(p, embed=dict(p["embed"], type=p["embed"]["type"][[0, 0]]))
    assert np.abs(one_text(one_type, model.config, x[0]) - expected[0]).max() > 1e-2


def test_padding_changes_nothing():
    model, variables = made("bert")
    x = jnp.asarray([[1, 5, 9, 2], [1, 7, 2, 11], [0, 0, 0, 0]])
    short, long = model.inspect(variables, x), model.inspect(variables, jnp.pad(x, ((0, 0), (0, 3))))
    np.testing.assert_allclose(long.logits[:2], short.logits[:2], rtol=1e-5, atol=1e-6)
    for name, seen in short.activations.items():
        assert float(seen[:2].min(1).max()) > 0
        np.testing.assert_allclose(long.activations[name], seen, rtol=1e-4, atol=1e-6, err_msg=name)
        assert not seen[2].any()
    # Nothing but padding gives numbers all the same, so that a batch can be filled up.
    assert bool(jnp.isfinite(long.logits).all())


def test_groups_and_prunable():
    model, variables = made("bert")
    assert [(g.name, g.size, g.kind) for g in model.groups[:4]] == [
        ("layers/0/attention", 3, "head"),
        ("layers/0/attention/query", 4, "qk"),
        ("layers/0/attention/value", 4, "value"),
        ("layers/0/fc1", 10, "neuron"),
    ]
    assert len(model.groups) == 8
    assert len(model.groups[0].slots) == 7
    chosen = {p for p, yes in trees.flatten(trees.select(variables.params, model.prunable)).items() if yes}
    kernels = ("attention/query", "attention/key", "attention/value", "attention/out", "fc1", "fc2")
    assert chosen == {f"layers/{i}/{k}/kernel" for i in range(2) for k in kernels}


def masked(model, variables, kept):
    return Variables(masks.apply(variables.params, units.expand(kept, model.groups, variables.params)), variables.rest)


@pytest.mark.parametrize("kinds", [("head", "neuron"), ("qk", "value"), ("head", "qk", "value", "neuron")])
def test_masked_equals_slim(kinds):
    model, variables = made("bert")
    x = batch(model)
    # Two kinds: one in each layer, so that each is seen alone.
    cut = {g.name for g in model.groups if len(kinds) == 4 or g.kind == kinds[int(g.name.split("/")[1])]}
    kept = {n: u if n in cut else jnp.ones_like(u) for n, u in random_units(model, 3).items()}
    slim_model, slim = compact.rebuild(model, variables, kept)
    expected = np.asarray(model.apply(masked(model, variables, kept), x)[0])
    got = slim_model.apply(slim, x)[0]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(expected - model.apply(variables, x)[0]).max() > 1e-2
    assert {g.name for g in slim_model.groups if g.size < {h.name: h.size for h in model.groups}[g.name]} == cut
    assert slim_model.config.attention_scale == model.config.attention_scale == 0.5


def test_closed_gates_equal_masks():
    model, variables = made("bert")
    x, kept = batch(model), random_units(model, 2)
    expected = model.inspect(masked(model, variables, kept), x)
    got = model.inspect(variables, x, gates={n: u.astype(jnp.float32) for n, u in kept.items()})
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    for name, u in kept.items():
        assert (np.asarray(expected.activations[name])[:, ~np.asarray(u)] == 0).all(), name
        assert (np.asarray(expected.activations[name])[:, np.asarray(u)] > 0).any(), name


def test_gradient_is_finite_and_right():
    model, variables = made("bert")
    x = batch(model)
    weights = np.random.default_rng(5).normal(size=(4, 3)).astype(np.float32)
    both = jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.apply(Variables(p, {}), x)[0] * weights)))
    grads = jax.tree.map(np.asarray, both(variables.params)[1])
    word = np.abs(grads["embed"]["word"]).max(1)
    assert set(np.flatnonzero(word)) == set(np.unique(x)) - {model.config.pad}
    for path, g in trees.flatten(grads).items():
        assert np.isfinite(g).all(), path
        assert np.abs(g).max() > 1e-4 or path.endswith("key/bias"), path  # a shift of the keys is not seen
    rng = np.random.default_rng(6)
    h, way = 1e-3, jax.tree.map(lambda g: rng.normal(size=g.shape).astype(np.float32), grads)
    up, down = (
        float(both(jax.tree.map(lambda a, w, s=s: np.asarray(a) + np.float32(s) * w, variables.params, way))[0])
        for s in (h, -h)
    )
    along = sum(float(np.vdot(g, w)) for g, w in zip(jax.tree.leaves(grads), jax.tree.leaves(way), strict=True))
    assert along == pytest.approx((up - down) / (2 * h), rel=0.02, abs=0.02)
    assert abs(along) > 0.1


def test_members_under_vmap_equal_a_loop():
    model, _ = made("bert")
    members = [randomise(jax.eval_shape(model.init, jax.random.key(0)), seed) for seed in (3, 4)]
    x = batch(model)
    together = jax.vmap(lambda v: model.apply(v, x)[0])(trees.stack(members))
    for i, v in enumerate(members):
        np.testing.assert_allclose(together[i], model.apply(v, x)[0], rtol=2e-4, atol=1e-5)
    assert float(jnp.max(jnp.abs(together[0] - together[1]))) > 1e-2


def test_dropout_also_thins_out_attention():
    model, _ = made("bert")
    x = batch(model)
    # A layer draws three times, the embedding and the pooled token once each.
    drawn = []
    hooks = models.Hooks(train=True, key=jax.random.key(0), dropout=0.5)
    hooks.dropout = lambda y, rate: drawn.append(y.shape) or y
    jax.eval_shape(lambda: bert.Bert(model.config, noise=models.api.Noise())(x, hooks)[0])
    assert drawn == [(4, 7, 12), *[(4, 3, 7, 7), (4, 7, 12), (4, 7, 12)] * 2, (4, 12)]


@pytest.mark.parametrize("score", [None, "activation"])
def test_a_training_step_takes_ids(score):
    model, variables = made("bert")
    tx = train.optimizer("adamw")
    state = train.create(variables, tx, jax.random.key(1), protocol=train.Protocol(learning_rate=0.1, dropout=0.1))
    step = train.make_step(model, train.cross_entropy, tx, score=score, groups=model.groups if score else ())
    after, metrics = jax.eval_shape(step, state, {"x": batch(model), "y": jnp.zeros(4, jnp.int32)})
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {n: s.shape for n, s in metrics.get("scores", {}).items()} == (
        {g.name: (g.size,) for g in model.groups} if score else {}
    )


@pytest.mark.parametrize(("name", "count"), [("bert_tiny", 4_385_920), ("bert_base", 109_482_240)])
def test_sizes_are_the_published_ones(name, count):
    config = models.PRESETS[name](classes=3)
    shapes = jax.eval_shape(lambda: nnx.state(bert.Bert(config, noise=models.api.Noise()), nnx.Param))
    assert sum(math.prod(a.shape) for a in jax.tree.leaves(shapes)) == count + 3 * config.dim + 3


def test_cost_is_that_of_token_ids():
    model, variables = made("bert")
    found = cost.of(model, variables)
    # Per token: query, key, value, out and both MLP kernels; then attention of 7 tokens; the pooler; the head.
    least = 2 * (2 * 7 * (4 * 12 * 12 + 2 * 12 * 10 + 2 * 7 * 12) + 12 * 12 + 12 * 3)
    assert least < found.flops < 2 * least
    assert found.params == sum(a.size for a in jax.tree.leaves(variables.params))


def test_configurations_survive_json():
    config = made("bert")[0].config
    assert models.from_json(models.to_json(config)) == config
    assert models.create("bert_micro").input_shape == (32,)
    assert models.create("bert_micro").input_dtype == jnp.int32
    assert made("vit_cls")[0].input_dtype == jnp.float32


def test_bad_input_is_refused():
    model, variables = made("bert")
    x = batch(model)
    with pytest.raises(ValueError, match=r"x is float32; this model takes token ids, int32"):
        model.apply(variables, x.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"shape \(4, 8\); this model takes \[N, up to 7\]"):
        model.apply(variables, jnp.pad(x, ((0, 0), (0, 1))))
    for shape in ((4,), (4, 0), (4, 7, 1)):
        with pytest.raises(ValueError, match="up to 7"):
            model.apply(variables, jnp.zeros(shape, jnp.int32))
    assert model.apply(variables, x.astype(jnp.uint8))[0].shape == (4, 3)
    # Values are not seen while tracing: an id that has no word must not pass for another.
    strange = model.apply(variables, x.at[0, 2].set(16))[0]
    assert bool(jnp.isnan(strange[0]).all())
    assert bool(jnp.isfinite(strange[1:]).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 10, "heads": 4}, "do not divide"),
        ({"pad": 2}, "two different ids"),
        ({"separator": 2048}, "0 to 2047"),
        ({"types": 1}, "give types=2"),
        ({"pool": "mean"}, "choose first"),
        ({"mlp": 0}, "at least 1"),
        ({"heads": 4, "qk_dim": (3,)}, "one entry per layer"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bert.micro(**options)
