"""One battery for all models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import models
from mvp_jax.core import masks, trees, units
from mvp_jax.core.types import Variables
from mvp_jax.models import api, resnet
from mvp_jax.models.hooks import Hooks
from tests import model_kinds
from tests.model_kinds import KINDS, batch, made, random_units

every_kind = pytest.mark.parametrize("kind", KINDS)


def masked(model, variables, kept):
    return Variables(masks.apply(variables.params, units.expand(kept, model.groups, variables.params)), variables.rest)


@every_kind
def test_trees_are_plain_dicts_with_string_keys(kind):
    model, _ = made(kind)
    variables = jax.eval_shape(model.init, jax.random.key(0))
    for keys, leaf in jax.tree_util.tree_leaves_with_path(variables):
        assert all(isinstance(k.key, str) for k in keys[1:])
        assert leaf.dtype == jnp.float32
    assert type(variables.params) is dict
    assert type(variables.rest) is dict
    head = variables.params[model.head]
    assert head["kernel"].shape[-1] == head["bias"].shape[0] == model.num_classes == 3


@every_kind
def test_groups_lie_along_the_axes_they_name(kind):
    model, variables = made(kind)
    leaves = {c: trees.flatten(getattr(variables, c)) for c in ("params", "rest")}
    assert len({g.name for g in model.groups}) == len(model.groups) > 0
    for g in model.groups:
        assert any(s.scored for s in g.slots)
        assert g.kind == "qk" or any(not s.scored and s.collection == "params" for s in g.slots)
        for s in g.slots:
            assert leaves[s.collection][s.path].shape[s.axis] == g.size


@every_kind
def test_prunable_are_kernels_of_the_body(kind):
    model, variables = made(kind)
    chosen = {p for p, yes in trees.flatten(trees.select(variables.params, model.prunable)).items() if yes}
    expected = {
        p
        for p, leaf in trees.flatten(variables.params).items()
        if p.endswith("/kernel") and not p.startswith(("head", "patch", "pooler", "projection")) and leaf.ndim > 1
    }
    assert chosen == expected
    assert len(chosen) >= 6


@every_kind
def test_inspect_shows_what_apply_computes(kind):
    model, variables = made(kind)
    x = batch(model)
    logits, rest = model.apply(variables, x)
    seen = model.inspect(variables, x)
    head = variables.params[model.head]
    by_hand = np.asarray(seen.features) @ np.asarray(head["kernel"]).reshape(-1, 3) + np.asarray(head["bias"])
    np.testing.assert_allclose(logits, by_hand, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits, seen.logits, rtol=1e-5, atol=1e-6)
    assert np.ptp(np.asarray(logits), axis=0).min() > 1e-3  # the examples differ
    assert rest is variables.rest
    assert seen.rest is variables.rest
    assert {n: a.shape for n, a in seen.activations.items()} == {g.name: (4, g.size) for g in model.groups}
    for a in seen.activations.values():
        assert float(jnp.min(a)) >= 0.0
        assert float(jnp.max(a)) > 0.0


@every_kind
def test_closed_gates_equal_masks(kind):
    model, variables = made(kind)
    x, kept = batch(model), random_units(model, 2)
    dense, _ = model.apply(variables, x)
    expected = model.inspect(masked(model, variables, kept), x)
    gates = {n: u.astype(jnp.float32) for n, u in kept.items()}
    got = model.inspect(variables, x, gates=gates)
    np.testing.assert_allclose(got.logits, expected.logits, rtol=1e-4, atol=1e-5)
    assert float(jnp.max(jnp.abs(dense - got.logits))) > 1e-2
    for name, u in kept.items():
        pruned = np.asarray(expected.activations[name])[:, ~np.asarray(u)]
        assert pruned.size == 4 * (u.size - int(u.sum()))
        assert (pruned == 0).all(), name
    open_gates = {g.name: jnp.ones(g.size) for g in model.groups}
    np.testing.assert_allclose(model.inspect(variables, x, gates=open_gates).logits, dense, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["distiller", "vit_mean"])
def test_gradients_of_gates(kind):
    model, variables = made(kind)
    x = batch(model)
    weights = jnp.asarray(np.random.default_rng(5).normal(size=(4, 3)), jnp.float32)

    def loss(gates):
        return jnp.sum(model.apply(variables, x, gates=gates)[0] * weights)

    loss = jax.jit(loss)
    ones = {g.name: jnp.ones((4, g.size)) for g in model.groups}
    per_example = jax.jit(jax.grad(loss))(ones)
    for name, g in per_example.items():
        assert g.shape == ones[name].shape
        assert float(jnp.max(jnp.abs(g))) > 1e-4, name
    # A central difference along one random direction over all gates of all examples.
    rng = np.random.default_rng(6)
    way = {n: jnp.asarray(rng.normal(size=o.shape), jnp.float32) for n, o in ones.items()}
    h = 3e-5  # larger steps cross kinks of ReLUs
    up, down = (jax.tree.map(lambda o, w, s=s: o + s * h * w, ones, way) for s in (1, -1))
    slope = float(loss(up) - loss(down)) / (2 * h)
    along = sum(float(jnp.vdot(per_example[n], way[n])) for n in way)
    assert along == pytest.approx(slope, rel=0.03, abs=0.1)


@pytest.mark.parametrize("kind", ["option_a", "vit_mean"])
def test_members_under_vmap_equal_a_loop(kind):
    model, _ = made(kind)
    members = [model_kinds.randomise(jax.eval_shape(model.init, jax.random.key(0)), seed) for seed in (3, 4)]
    x = batch(model)
    together, rest = jax.vmap(lambda v: model.apply(v, x, train=True))(trees.stack(members))
    for i, v in enumerate(members):
        alone, alone_rest = model.apply(v, x, train=True)
        np.testing.assert_allclose(together[i], alone, rtol=2e-4, atol=1e-5)
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-5), rest, alone_rest)
    assert float(jnp.max(jnp.abs(together[0] - together[1]))) > 1e-2


def test_training_under_scan_carries_statistics():
    model, variables = made("option_a")
    x = batch(model)

    @jax.jit
    def three(variables):
        return jax.lax.scan(
            lambda rest, _: (model.apply((variables.params, rest), x, train=True)[1], None),
            variables.rest,
            None,
            length=3,
        )[0]

    by_hand = variables.rest
    for _ in range(3):
        by_hand = model.apply(Variables(variables.params, by_hand), x, train=True)[1]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), three(variables), by_hand)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), by_hand, variables.rest)
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_momentum_knob_replaces_running_statistics():
    model, variables = made("option_a")
    x = batch(model)
    _, usual = model.apply(variables, x, train=True)
    _, replaced = model.apply(variables, x, train=True, knobs={"batch_norm_momentum": 0.0})
    stem = jax.lax.conv_general_dilated(
        x,
        variables.params["stem"]["conv"]["kernel"],
        (1, 1),
        ((1, 1), (1, 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    mean, var = np.asarray(stem).mean((0, 1, 2)), np.asarray(stem).var((0, 1, 2))
    np.testing.assert_allclose(replaced["stem"]["norm"]["mean"], mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(replaced["stem"]["norm"]["var"], var, rtol=1e-4)
    old = np.asarray(variables.rest["stem"]["norm"]["mean"])
    np.testing.assert_allclose(usual["stem"]["norm"]["mean"], 0.9 * old + 0.1 * mean, rtol=1e-4, atol=1e-5)


def test_dropout_knob_is_traced_and_needs_a_key():
    model, variables = made("option_a")
    x, key = batch(model), jax.random.key(0)
    traces = []

    @jax.jit
    def run(rate):
        traces.append(rate)
        return model.apply(variables, x, train=True, key=key, knobs={"dropout": rate})[0]

    plain, _ = model.apply(variables, x, train=True)
    np.testing.assert_allclose(run(0.0), plain, rtol=1e-4, atol=1e-5)
    assert float(jnp.max(jnp.abs(run(0.5) - plain))) > 1e-2
    assert len(traces) == 1
    np.testing.assert_allclose(run(0.5), run(0.5))
    evaluated, _ = model.apply(variables, x, key=key, knobs={"dropout": 0.5})
    np.testing.assert_allclose(evaluated, model.apply(variables, x)[0])
    with pytest.raises(ValueError, match="needs a key"):
        model.apply(variables, x, train=True, knobs={"dropout": 0.5})


def test_dropout_keeps_the_mean():
    hooks = Hooks(train=True, key=jax.random.key(0))
    x = jnp.ones((200, 100))
    y = hooks.dropout(x, 0.25)
    assert set(np.unique(np.asarray(y)).round(4)) == {np.float32(0.0), np.float32(1.3333)}
    assert float(y.mean()) == pytest.approx(1.0, abs=0.02)
    assert not np.array_equal(y, hooks.dropout(x, 0.25))  # each call draws anew


def test_equal_configurations_are_one_object():
    a = models.create("resnet8", width=4, image_size=8)
    assert models.create("resnet8", width=4, image_size=8) is a
    assert a.resize({}) is a
    assert a.with_classes(10) is a
    assert a.with_classes(4).num_classes == 4
    assert a.with_classes(4).with_classes(10) is a


def test_one_compilation_serves_all_values(monkeypatch):
    traces = []
    hooks = Hooks

    def counted(**arguments):
        traces.append(arguments)
        return hooks(**arguments)

    model = resnet.build(resnet.resnet8(width=2, image_size=4, channels=1, classes=2))  # used nowhere else
    monkeypatch.setattr(api, "Hooks", counted)  # only now: building traces the module for its groups
    for seed in range(3):
        v = model_kinds.randomise(jax.eval_shape(model.init, jax.random.key(0)), seed)
        model.apply(v, batch(model, seed=seed))
    assert len(traces) == 1


def test_replace_head():
    model, variables = made("distiller")
    new = model.with_classes(5)
    fresh = api.replace_head(variables, new)
    x = batch(model)
    assert np.array_equal(new.apply(fresh, x)[0], np.zeros((4, 5)))
    kernel = np.random.default_rng(0).normal(size=(20, 5)).astype(np.float32)
    given = api.replace_head(variables, new, kernel=kernel, bias=jnp.arange(5.0))
    assert given.params["head"]["kernel"].shape == (2, 2, 5, 5)
    seen = new.inspect(given, x)
    np.testing.assert_allclose(seen.logits, np.asarray(seen.features) @ kernel + np.arange(5), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="20 features and 5 classes"):
        api.replace_head(variables, new, kernel=kernel[:7])


def test_bad_input_is_refused():
    model, variables = made("option_a")
    x = batch(model)
    with pytest.raises(ValueError, match=r"takes \[N, 8, 8, 2\]"):
        model.apply(variables, x[..., :1])
    with pytest.raises(ValueError, match="unknown groups"):
        model.apply(variables, x, gates={"stem": jnp.ones(4)})
    with pytest.raises(ValueError, match="unknown knobs"):
        model.apply(variables, x, knobs={"momentum": 0.1})
    with pytest.raises(ValueError, match="static"):
        model.apply(variables, x, train=True, knobs={"batch_norm_momentum": jnp.ones(())})
    with pytest.raises(ValueError, match="do not fit the model"):
        model.apply(trees.stack([variables, variables]), x)
    with pytest.raises(ValueError, match="no such groups"):
        model.resize({"stem/conv": 2})
    with pytest.raises(ValueError, match="at least one must stay"):
        model.resize({"stages/0/blocks/0/conv1": 0})
    with pytest.raises(ValueError, match="no preset 'resnet9'"):
        models.create("resnet9")


@every_kind
def test_configurations_survive_json(kind):
    config = KINDS[kind]
    data = models.to_json(config)
    assert models.from_json(data) == config
    with pytest.raises(ValueError, match="unknown \\['depth'\\]"):
        models.from_json({**data, "depth": 3})
    with pytest.raises(ValueError, match="unknown family"):
        models.from_json({**data, "family": "mlp"})
