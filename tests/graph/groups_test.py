"""Tracing against the groups that models declare by hand, names, reasons, errors; the zoo is in `zoo_test`."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvp_jax import compact, graph, models
from mvp_jax.core import units
from mvp_jax.core.units import Group, Slot
from mvp_jax.graph.rules import PrimitiveRule, same, where_all
from tests import declared

X = jnp.ones((2, 3))
MLP = {
    "a": {"kernel": jnp.linspace(-1, 1, 24).reshape(3, 8), "bias": jnp.linspace(0.1, 1, 8)},
    "b": {"kernel": jnp.linspace(1, -1, 16).reshape(8, 2)},
}


def mlp(params, x):
    return jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"]


def of_model(name, **options):
    model = models.create(name, **options)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *model.input_shape), jnp.float32)
    return model, graph.analyse(lambda v, x: model.apply(v, x)[0], shapes, x)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("resnet8", {"width": 8, "image_size": 8, "channels": 1}),
        ("resnet8_distiller", {"image_size": 16, "channels": 3}),
        ("resnet18", {"image_size": 32}),
        ("resnet50", {"image_size": 32}),
        ("vit_micro", {}),
        ("vit_tiny", {"image_size": 32}),
    ],
)
def test_tracing_finds_what_the_models_declare(name, options):
    model, analysis = of_model(name, **options)

    def facts(g):
        return g.size, g.kind, frozenset(g.slots)

    by_hand = declared.groups(model)
    assert [(g.name, *facts(g)) for g in model.groups] == [(g.name, *facts(g)) for g in by_hand]
    assert len(by_hand) >= 3
    found = {facts(g): g.name for g in analysis.groups}
    assert {facts(g) for g in by_hand} <= set(found)
    assert len({g.name for g in analysis.groups}) == len(analysis.groups)
    for g in by_hand:
        # A stage is named for its first maker; everything else as the models name it.
        assert found[facts(g)] == g.name or g.kind == "stage"
    further = [g for g in analysis.groups if facts(g) not in set(map(facts, by_hand))]
    # Streams behind padding shortcuts, and those whose norms divide by the dense width, cannot be cut by a model of the
    # same class; a traced function can.
    assert all(g.kind in ("stage", "filter") for g in further)
    assert bool(further) == (name in ("resnet8", "vit_micro", "vit_tiny"))


def test_models_of_one_unit_know_their_groups():
    model = models.create("resnet8_distiller", image_size=16, channels=3)
    slim = model.resize({g.name: 1 for g in model.groups})
    assert {g.size for g in slim.groups} == {1}
    assert [g.slots for g in slim.groups] == [g.slots for g in model.groups]
    patched = models.create("resnet8_distiller", image_size=16, channels=3, conv="im2col")
    assert [g.slots for g in patched.groups] == [g.slots for g in model.groups]
    shapes = jax.eval_shape(patched.init, jax.random.key(0))
    x = jax.ShapeDtypeStruct((2, *patched.input_shape), jnp.float32)
    found = graph.groups(lambda v, x: patched.apply(v, x)[0], shapes, x)
    assert {(g.size, frozenset(g.slots)) for g in found} == {(g.size, frozenset(g.slots)) for g in model.groups}


def test_a_padding_shortcut_splits_the_streams_into_what_each_stage_adds():
    _, analysis = of_model("resnet8", width=8, image_size=8, channels=1)
    head = sorted((s.start, g.size) for g in analysis.groups for s in g.slots if s.path == "head/kernel")
    assert head == [(0, 8), (8, 4), (12, 8), (20, 4), (24, 8)]
    assert sum(size for _, size in head) == 32


def test_the_residual_width_of_a_vit_is_one_group():
    model, analysis = of_model("vit_micro")
    (stream,) = [g for g in analysis.groups if g.kind == "stage"]
    assert stream.size == 48
    assert ("layers/0/norm1/scale", 0) in {(s.path, s.axis) for s in stream.slots}
    assert not [f for f in analysis.frozen if f.size == 48]
    x = jax.random.normal(jax.random.key(1), (2, *model.input_shape))
    variables = model.init(jax.random.key(0))
    found = compact.verify(lambda v, x: model.apply(v, x)[0], variables, [stream], x, key=jax.random.key(2))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3


def test_parameters_and_other_collections():
    def apply(variables, x):
        h = (x @ variables["params"]["dense"]["kernel"] - variables["batch_stats"]["norm"]["mean"]) * variables[
            "params"
        ]["norm"]["scale"]
        return jax.nn.relu(h) @ variables["params"]["out"]["kernel"]

    variables = {
        "params": {
            "dense": {"kernel": jnp.ones((3, 5))},
            "norm": {"scale": jnp.ones(5)},
            "out": {"kernel": jnp.ones((5, 2))},
        },
        "batch_stats": {"norm": {"mean": jnp.full(5, 0.3)}},
    }
    (group,) = graph.groups(apply, variables, X)
    assert {(s.path, s.collection, s.scored) for s in group.slots} == {
        ("dense/kernel", "params", True),
        ("norm/scale", "params", True),
        ("out/kernel", "params", False),
        ("norm/mean", "batch_stats", False),
    }
    kept = {"dense": jnp.array([True, False, True, True, False])}
    masked = compact.mask(variables, [group], kept)
    assert masked["batch_stats"]["norm"]["mean"].tolist() == variables["batch_stats"]["norm"]["mean"].tolist()
    assert np.count_nonzero(masked["params"]["dense"]["kernel"]) == 9
    small, small_variables = compact.slim(apply, variables, [group], kept, X)
    assert small_variables["batch_stats"]["norm"]["mean"].shape == (3,)
    np.testing.assert_allclose(small(small_variables, X), apply(masked, X), rtol=1e-6)


def test_an_unknown_primitive_freezes_and_a_rule_opens_it():
    def apply(params, x):
        return jax.lax.erf_inv(jax.lax.lgamma(x @ params["w"] + 3.0) * 0.1) @ params["o"]

    def odd(params, x):
        return jax.lax.bessel_i0e(jnp.abs(x @ params["w"])) @ params["o"]

    params = {"w": jnp.linspace(0, 1, 12).reshape(3, 4), "o": jnp.ones((4, 2))}
    assert [g.name for g in graph.groups(apply, params, X)] == ["w"]
    closed = graph.analyse(odd, params, X)
    assert closed.groups == ()
    assert {f.reason.partition(":")[0] for f in closed.frozen if f.size == 4} == {"bessel_i0e has no rule"}
    rule = (("bessel_i0e", PrimitiveRule(same, where_all)),)
    (group,) = graph.groups(odd, params, X, rules=rule)
    seen = compact.verify(odd, params, [group], X, key=jax.random.key(0), rules=rule)
    assert max(seen.differences) < 1e-6
    assert min(seen.changes) > 1e-3


def test_names_and_order_say_where_units_are_made():
    def apply(p, x):
        qkv = (x @ p["attention"]["qkv"]["kernel"]).reshape(2, 5, 3, 2, 4)
        q, k, v = qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        y = jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(2, 5, 8) @ p["attention"]["out"]["kernel"]
        return jax.nn.gelu(y @ p["fc1"]) @ p["fc2"]

    p = {
        "fc1": jnp.ones((6, 7)),
        "attention": {"qkv": {"kernel": jnp.ones((6, 24))}, "out": {"kernel": jnp.ones((8, 6))}},
        "fc2": jnp.ones((7, 3)),
    }
    found = graph.groups(apply, p, jnp.ones((2, 5, 6)))
    assert [(g.name, g.kind, g.size) for g in found] == [
        ("attention/qkv:head", "head", 2),
        ("attention/qkv:qk", "qk", 4),
        ("attention/out", "neuron", 6),
        ("fc1", "neuron", 7),
    ]


def test_explain_says_what_hangs_on_a_group():
    seen = graph.explain(mlp, MLP, X)
    (row,) = seen.rows
    assert (row.name, row.size, row.params) == ("a", 8, 1.0)
    assert row.makes == ("a/bias[0]", "a/kernel[1]")
    assert row.reads == ("b/kernel[0]",)
    # 2·3·16 + 16 (bias) + 16 (relu) + 2·2·16, all through the hidden units
    assert seen.flops == 2 * 3 * 16 + 16 + 16 + 2 * 8 * 4
    assert seen.params == 48
    assert "an axis of the input" in str(seen)
    assert "a/bias[0], a/kernel[1]" in str(seen)


def test_slim_takes_other_batch_sizes_and_transformations():
    groups = graph.groups(mlp, MLP, X)
    kept = {"a": jnp.arange(8) % 3 > 0}
    small, params = compact.slim(mlp, MLP, groups, kept, X)
    masked = compact.mask(MLP, groups, kept)
    x = jax.random.normal(jax.random.key(0), (7, 3))
    want = mlp(masked, x)
    assert float(jnp.std(want)) > 0.1
    np.testing.assert_allclose(jax.jit(small)(params, x), want, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(small, (None, 0))(params, x[:, None])[:, 0], want, rtol=1e-5)

    def loss(apply):
        return lambda p: jnp.sum(jnp.square(apply(p, x)))

    slim_grad, masked_grad = jax.grad(loss(small))(params), jax.grad(loss(mlp))(masked)
    cut = compact.cut(masked_grad, groups, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), slim_grad, cut)
    assert float(jnp.max(jnp.abs(slim_grad["a"]["kernel"]))) > 0.1


def test_the_derivative_of_relu_at_zero_stays_zero():
    params = {"a": jnp.zeros((3, 4)), "b": jnp.ones((4, 2))}

    def net(p, x):
        return jax.nn.relu(x @ p["a"]) @ p["b"]

    groups = graph.groups(net, params, X)
    small, cut = compact.slim(net, params, groups, {"a": jnp.array([True, True, False, True])}, X)
    assert float(jnp.max(jnp.abs(jax.grad(lambda p: jnp.sum(small(p, X)))(cut)["a"]))) == 0.0


def test_a_function_that_returns_new_statistics_is_cut_along():
    model = models.create("resnet8", width=4, image_size=8, channels=1, classes=3)
    variables = model.init(jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    groups = graph.groups(lambda v, x: model.apply(v, x)[0], variables, x)
    kept = {g.name: jnp.arange(g.size) % 2 == 0 for g in groups}
    small, slim_variables = compact.slim(lambda v, x: model.apply(v, x, train=True), variables, groups, kept, x)
    logits, rest = small(slim_variables, x)
    want_logits, want_rest = model.apply(compact.mask(variables, groups, kept), x, train=True)
    np.testing.assert_allclose(logits, want_logits, atol=1e-5)
    shapes = jax.tree.map(jnp.shape, rest)
    assert shapes == jax.tree.map(jnp.shape, slim_variables.rest)
    np.testing.assert_allclose(
        rest["stages"]["1"]["blocks"]["0"]["norm1"]["var"],
        want_rest["stages"]["1"]["blocks"]["0"]["norm1"]["var"][::2],
        rtol=1e-4,
    )


def test_errors_say_what_is_wrong():
    groups = graph.groups(mlp, MLP, X)
    with pytest.raises(ValueError, match="no unit is kept"):
        compact.slim(mlp, MLP, groups, {"a": jnp.zeros(8, bool)}, X)
    with pytest.raises(ValueError, match="units and groups differ"):
        compact.slim(mlp, MLP, groups, {"b": jnp.ones(8, bool)}, X)
    stranger = Group(name="a", size=8, slots=(Slot(path="c/kernel", axis=0),))
    with pytest.raises(ValueError, match="not a set of units of this function"):
        compact.slim(mlp, MLP, [stranger], {"a": jnp.ones(8, bool)}, X)

    def normalised(params, x):
        return jnp.sort(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"]

    with pytest.raises(ValueError, match=r"cannot be cut in this function: sort along it"):
        compact.slim(normalised, MLP, groups, {"a": jnp.arange(8) > 1}, X)
    small, params = compact.slim(mlp, MLP, groups, {"a": jnp.arange(8) > 1}, X)
    with pytest.raises(ValueError, match=r"not the variables that compact\.slim returned"):
        small(MLP, X)
    assert params["a"]["bias"].shape == (6,)


def test_slots_reduce_expand_and_cut_along_fused_axes():
    """Two heads of three dimensions in one axis of six, against reshaping by hand."""
    head = Group(name="h", size=2, slots=(Slot(path="w", axis=1, scored=True, step=3, repeats=((3, 1),), length=6),))
    size = Group(name="d", size=3, slots=(Slot(path="w", axis=1, scored=True, repeats=((2, 3),), length=6),))
    w = jnp.arange(12.0).reshape(2, 6)
    cube = np.asarray(w).reshape(2, 2, 3)
    sums = units.reduce({"w": w}, [head, size], "sum")
    np.testing.assert_allclose(sums["h"], cube.sum((0, 2)))
    np.testing.assert_allclose(sums["d"], cube.sum((0, 1)))
    kept = {"h": jnp.array([False, True]), "d": jnp.array([True, False, True])}
    masks = units.expand(kept, [head, size], {"w": w})
    assert masks["w"].tolist() == [[False, False, False, True, False, True]]
    cut = compact.cut({"w": w}, [head, size], kept)
    np.testing.assert_allclose(cut["w"], cube[:, 1][:, [0, 2]])
    back = compact.embed(cut, [head, size], kept, {"w": w})
    np.testing.assert_allclose(back["w"], np.where(masks["w"], w, 0.0))
    traced = jax.jit(lambda k: compact.cut({"w": w}, [head, size], k, sizes={"h": 1, "d": 2}))(kept)
    np.testing.assert_allclose(traced["w"], cut["w"])


def test_the_optimiser_goes_on_in_the_slim_function():
    """Momenta are cut along, also where heads share an axis; slim training is masked training."""

    def attend(p, x):
        q, k, v = jnp.moveaxis((x @ p["qkv"]).reshape(4, 5, 3, 2, 4), 2, 0)
        weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
        return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(4, 5, 8) @ p["out"]

    rng = np.random.default_rng(0)
    params = {k: jnp.asarray(rng.normal(size=s) / 2, jnp.float32) for k, s in (("qkv", (6, 24)), ("out", (8, 3)))}
    x = jnp.asarray(rng.normal(size=(4, 5, 6)), jnp.float32)
    groups = graph.groups(attend, params, x)
    assert [g.kind for g in groups] == ["head", "qk"]
    kept = {groups[0].name: jnp.array([False, True]), groups[1].name: jnp.array([True, False, True, True])}
    masks = units.expand(kept, groups, params)
    tx = optax.adam(1e-2)

    def train(apply, params, state, masks=None, steps=3):
        for _ in range(steps):
            grads = jax.grad(lambda p: jnp.mean(jnp.square(apply(p, x) - 1)))(params)
            updates, state = tx.update(grads, state)
            params = optax.apply_updates(params, updates)
            if masks is not None:
                params = jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, masks)
        return params, state

    warm, state = train(attend, params, tx.init(params))
    masked = compact.mask(warm, groups, kept)
    small, slim_params = compact.slim(attend, warm, groups, kept, x)
    slim_state = compact.cut(state, groups, kept)
    assert slim_state[0].mu["qkv"].shape == slim_params["qkv"].shape == (6, 9)
    want, _ = train(attend, masked, state, masks)
    got, _ = train(small, slim_params, slim_state)
    want = compact.cut(want, groups, kept)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), got, want)
    assert float(jnp.max(jnp.abs(got["qkv"] - slim_params["qkv"]))) > 1e-2


def test_an_nnx_state_is_read_as_it_is():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.a, self.b = nnx.Linear(3, 8, rngs=rngs), nnx.Linear(8, 2, rngs=rngs)

        def __call__(self, x):
            return self.b(jax.nn.relu(self.a(x)))

    definition, state = nnx.split(Net(nnx.Rngs(0)))

    def apply(state, x):
        return nnx.merge(definition, state)(x)

    (group,) = graph.groups(apply, state, X)
    assert (group.name, {s.path for s in group.slots}) == ("a", {"a/kernel", "a/bias", "b/kernel"})
    seen = compact.verify(apply, state, [group], X, key=jax.random.key(0), cuts=2)
    assert max(seen.differences) < 1e-6
    assert max(seen.changes) > 1e-3  # a unit may be dead on two examples
    _, small = compact.slim(apply, state, [group], {"a": jnp.arange(8) < 3}, X)
    assert isinstance(small, nnx.State)
    assert small["a"]["kernel"][...].shape == (3, 3)
