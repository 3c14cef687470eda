"""BERT: the forward pass by plain NumPy, padding that nobody sees, cuts that equal masks."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvp_jax import compact, models, train
from mvp_jax.compact import cost
from mvp_jax.core import masks, trees, units
from mvp_jax.core.types import Variables
from mvp_jax.models import bert
from mvp_jax.models.hooks import Noise
from tests import declared
from tests.model_kinds import batch, made, random_units, randomise

ERF = np.vectorize(math.erf)


def norm(x, p, epsilon):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + ERF(x / math.sqrt(2)))


def one_text(p, config, ids):
    """Logits of one text, padding left off, so that there is none to mask."""
    ids = [int(i) for i in ids if i != config.pad]
    start = config.pad + 1 if config.skip_padding else 0
    kinds, kind = [], 0
    for i in ids:
        kinds.append(kind)
        kind = 1 if i == config.separator else kind
    e = p["embed"]
    x = np.stack([e["word"][i] + e["position"][start + t] for t, i in enumerate(ids)])
    if config.types:
        x = x + np.stack([e["type"][k] for k in kinds])
    x = norm(x, e["norm"], config.epsilon)
    for n in range(len(config.heads)):
        layer = p["layers"][str(n)]
        a = layer["attention"]
        mixed = np.tile(a["out"]["bias"], (len(ids), 1))
        for head in range(config.heads[n]):
            q, k, v = (x @ a[m]["kernel"][:, head] + a[m]["bias"][head] for m in ("query", "key", "value"))
            for t in range(len(ids)):
                scores = np.array([math.exp(float(q[t] @ k[s]) * config.attention_scale) for s in range(len(ids))])
                mixed[t] += (scores / scores.sum()) @ v @ a["out"]["kernel"][head]
        x = norm(x + mixed, layer["norm1"], config.epsilon)
        h = x @ layer["fc1"]["kernel"] + layer["fc1"]["bias"]
        h = gelu(h)
        x = norm(x + h @ layer["fc2"]["kernel"] + layer["fc2"]["bias"], layer["norm2"], config.epsilon)
    if config.task == "masked_lm":
        h = norm(gelu(x @ p["transform"]["kernel"] + p["transform"]["bias"]), p["norm"], config.epsilon)
        return h @ e["word"].T + p["head"]["bias"]
    pooled = x[0] @ p["pooler"]["kernel"] + p["pooler"]["bias"]
    pooled = np.maximum(pooled, 0) if config.pooler == "relu" else np.tanh(pooled)
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


def variant(kind, **options):
    """A model of another kind or task, and its variables."""
    model = bert.build(dataclasses.replace(made(kind)[0].config, **options))
    return model, randomise(jax.eval_shape(model.init, jax.random.key(0)), 0)


@pytest.mark.parametrize("kind", ["roberta", "distilbert"])
def test_forward_of_the_kin_by_numpy(kind):
    # Epsilons that count, and a table whose padding rows are not zero.
    model, variables = variant(kind, epsilon=0.1)
    assert "type" not in variables.params["embed"] or kind == "roberta"
    assert variables.params["embed"]["position"].shape[0] == {"roberta": 9, "distilbert": 7}[kind]
    x = np.asarray(batch(model))
    assert (x == model.config.pad).any()
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    expected = np.stack([one_text(p, model.config, row) for row in x])
    assert np.ptp(expected, axis=0).min() > 1e-2
    np.testing.assert_allclose(model.apply(variables, x)[0], expected, rtol=1e-4, atol=1e-5)
    other = one_text(p, dataclasses.replace(model.config, epsilon=1e-12), x[0])
    assert np.abs(other - expected[0]).max() > 1e-3


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_masked_words_by_numpy(kind):
    model, variables = variant(kind, task="masked_lm")
    c = model.config
    x = np.asarray(batch(model))
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), variables.params)
    seen = model.inspect(variables, x)
    assert seen.logits.shape == (4, 7, 16)
    assert model.num_classes == 16
    for row, got in zip(x, np.asarray(seen.logits), strict=True):
        expected = one_text(p, c, row)
        assert np.ptp(expected, axis=0).min() > 1e-2
        np.testing.assert_allclose(got[row != c.pad], expected, rtol=1e-4, atol=1e-5)
    by_hand = np.asarray(seen.features, np.float64) @ p["embed"]["word"].T + p["head"]["bias"]
    np.testing.assert_allclose(seen.logits, by_hand, rtol=1e-4, atol=1e-4)
    assert model.with_classes(4).config == dataclasses.replace(c, task="classify", classes=4)


def test_positions_that_skip_padding_do_not_see_where_it_is():
    model, variables = variant("roberta", task="masked_lm")
    text = [0, 7, 9, 5]
    left, right = (jnp.asarray([t]) for t in ([1, 1, *text], [*text, 1, 1]))
    run = [model.apply(variables, x)[0][0] for x in (left, right)]
    np.testing.assert_allclose(run[0][2:], run[1][:4], rtol=1e-4, atol=1e-5)
    # Padding has a row of its own.
    params = jax.tree.map(lambda a: a, variables.params)
    params["embed"]["position"] = params["embed"]["position"].at[model.config.pad].multiply(-1.0)
    moved = np.abs(model.apply((params, {}), right)[0][0] - run[1]).max(1) > 1e-3
    assert moved.tolist() == [False] * 4 + [True] * 2
    counted, _ = variant("roberta", task="masked_lm", skip_padding=False, positions=9)
    other = [counted.apply(variables, x)[0][0] for x in (left, right)]
    assert float(jnp.abs(other[0][2:] - other[1][:4]).max()) > 1e-2


def test_cuts_under_masked_words_equal_masks():
    model, variables = variant("roberta", task="masked_lm")
    by_hand = declared.groups(model)
    facts = [[(g.name, g.size, g.kind, frozenset(g.slots)) for g in groups] for groups in (model.groups, by_hand)]
    assert facts[0] == facts[1]
    x, kept = batch(model), random_units(model, 3)
    slim_model, slim = compact.rebuild(model, variables, kept)
    expected = model.apply(masked(model, variables, kept), x)[0]
    np.testing.assert_allclose(slim_model.apply(slim, x)[0], expected, rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(expected - model.apply(variables, x)[0]).max()) > 1e-2
    chosen = {p for p, yes in trees.flatten(trees.select(variables.params, model.prunable)).items() if yes}
    assert not any(p.startswith(("transform", "embed", "head")) for p in chosen)
    assert len(chosen) == 6


def test_half_precision_is_near():
    model, variables = variant("bert", task="masked_lm")
    x = batch(model)
    half = bert.build(dataclasses.replace(model.config, compute="bfloat16"))
    assert [g.slots for g in half.groups] == [g.slots for g in model.groups]
    exact, rough = (m.apply(variables, x)[0] for m in (model, half))
    assert rough.dtype == jnp.float32
    assert 1e-5 < float(jnp.abs(exact - rough).max()) / float(jnp.abs(exact).max()) < 0.05


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


def test_rates_of_dropout():
    config = made("bert")[0].config
    assert dataclasses.replace(config, dropout=0.3).rates == (0.3, 0.3, 0.3)
    config = dataclasses.replace(config, dropout=0.1, attention_dropout=0.0, head_dropout=0.2)
    assert config.rates == (0.1, 0.0, 0.2)
    hooks, rates = models.Hooks(train=True, key=jax.random.key(0)), []
    hooks.dropout = lambda y, rate: rates.append(rate) or y
    jax.eval_shape(lambda: bert.Bert(config, noise=Noise())(batch(made("bert")[0]), hooks)[0])
    assert rates == [0.1, *[0.0, 0.1, 0.1] * 2, 0.2]
    only = bert.build(dataclasses.replace(config, dropout=0.0))
    with pytest.raises(ValueError, match="dropout needs a key"):
        only.apply(made("bert")[1], batch(only), train=True)


def test_dropout_also_thins_out_attention():
    model, _ = made("bert")
    x = batch(model)
    # A layer draws three times, the embedding and the pooled token once each.
    drawn = []
    hooks = models.Hooks(train=True, key=jax.random.key(0), dropout=0.5)
    hooks.dropout = lambda y, rate: drawn.append(y.shape) or y
    jax.eval_shape(lambda: bert.Bert(model.config, noise=Noise())(x, hooks)[0])
    assert drawn == [(4, 7, 12), *[(4, 3, 7, 7), (4, 7, 12), (4, 7, 12)] * 2, (4, 12)]


@pytest.mark.parametrize("score", [None, "activation"])
def test_a_training_step_takes_ids(score):
    model, variables = made("bert")
    tx = train.optimizer("adamw")
    state = train.create(variables, tx, jax.random.key(1), settings=train.RunSettings(learning_rate=0.1, dropout=0.1))
    step = train.make_step(model, train.cross_entropy, tx, score=score, groups=model.groups if score else ())
    after, metrics = jax.eval_shape(step, state, {"x": batch(model), "y": jnp.zeros(4, jnp.int32)})
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert {n: s.shape for n, s in metrics.get("scores", {}).items()} == (
        {g.name: (g.size,) for g in model.groups} if score else {}
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("bert_tiny", 4_385_920),
        ("bert_base", 109_482_240),
        ("bert_large", 335_141_888),
        ("roberta_base", 124_055_040 + 768 * 769),  # without and with the dense layer of its head
        ("distilbert_base", 66_362_880 + 768 * 769),
    ],
)
def test_sizes_are_the_published_ones(name, count):
    config = models.PRESETS[name](classes=3)
    shapes = jax.eval_shape(lambda: nnx.state(bert.Bert(config, noise=Noise()), nnx.Param))
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
        ({"pool": "mean"}, "only embed takes the mean"),
        ({"pooler": "gelu"}, "tanh or relu"),
        ({"task": "next_word"}, "classify, masked_lm or embed"),
        ({"activation": "mish"}, "choose one of"),
        ({"compute": "float16"}, "float32 or bfloat16"),
        ({"types": -1}, "at least 0"),
        ({"types": 0}, "give types=2"),
        ({"mlp": 0}, "at least 1"),
        ({"heads": 4, "qk_dim": (3,)}, "one entry per layer"),
    ],
)
def test_bad_configurations_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        bert.micro(**options)
