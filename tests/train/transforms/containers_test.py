"""Wrappers in the trees and optimisers that people have: NNX, Linen, Equinox, parts of a tree, checkpoints."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from flax.training import train_state

from mvp_jax.core import masks, trees
from mvp_jax.train import transforms

RNG = np.random.default_rng(0)


def normal(*shape):
    return jnp.asarray(RNG.standard_normal(shape), jnp.float32)


PARAMS = {"a": {"bias": jnp.ones(12), "kernel": normal(8, 12)}, "b": {"bias": jnp.ones(4), "kernel": normal(12, 4)}}
KERNELS = [".*kernel"]
POSITIVE = jax.tree.map(lambda p: p > 0, PARAMS)


def gradual(sparsity=0.75, **settings):
    return transforms.prune_on_schedule(
        optax.adam(0.01), sparsity=sparsity, **{"steps": 4, "prunable": KERNELS, **settings}
    )


def train(tx, params, steps=5):
    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.tree.map(lambda p: 0.1 * p, params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(steps):
        params, state = step(params, state)
    return params, state


def nonzero(params):
    return {path: int(np.count_nonzero(p)) for path, p in trees.flatten(params).items()}


def shapes(tree):
    return {path: np.shape(x) for path, x in trees.flatten(tree).items()}


class Net(nnx.Module):
    def __init__(self):
        self.a = nnx.Linear(8, 12, rngs=nnx.Rngs(0))
        self.b = nnx.Linear(12, 4, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.b(nnx.relu(self.a(x)))


@nnx.jit
def nnx_step(model, optimizer, x):
    optimizer.update(model, nnx.grad(lambda m: jnp.mean((m(x) - 1.0) ** 2))(model))


def train_nnx(model, tx, steps=6):
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    for _ in range(steps):
        nnx_step(model, optimizer, jnp.ones((3, 8)))
    return optimizer


def test_nnx_prunes_reads_the_masks_and_trains_on_under_them():
    model = Net()
    optimizer = train_nnx(model, gradual())
    params, kept = nnx.state(model, nnx.Param), transforms.masks_of(optimizer.opt_state)
    transforms.check(params, optimizer.opt_state, gradual())
    assert int(masks.count(kept, params)) == 144 - 108 + 16
    np.testing.assert_array_equal(params["a"]["kernel"][...] != 0, kept["a"]["kernel"][...])
    before = np.array(params["a"]["kernel"][...])
    fine = train_nnx(model, transforms.keep_mask(optax.adam(0.05), kept))  # a State of another kind of variable
    after = nnx.state(model, nnx.Param)
    transforms.check(after, fine.opt_state)
    np.testing.assert_array_equal(after["a"]["kernel"][...] != 0, before != 0)
    assert np.abs(after["a"]["kernel"][...] - before).max() > 0
    # Gradients and parameters of any container fit the state of another one.
    tx = transforms.keep_mask(optax.sgd(0.1), nnx.to_pure_dict(nnx.as_pure(kept)))
    updates, _ = tx.update(nnx.to_pure_dict(after), tx.init(after), after)
    assert jax.tree.structure(updates) == jax.tree.structure(after)


def test_nnx_restarts_and_takes_parts():
    model = Net()
    optimizer = train_nnx(model, optax.chain(optax.clip(1.0), gradual(0.5)))
    optimizer.opt_state = transforms.restart(optimizer.opt_state, sparsity=0.9, steps=4)
    for _ in range(4):
        nnx_step(model, optimizer, jnp.ones((3, 8)))
    assert sum(int(jnp.sum(k[...] != 0)) for k in (model.a.kernel, model.b.kernel)) == 144 - 130
    model = Net()
    parts = optax.partition(
        {"a": gradual(0.5), "b": gradual(0.75)}, lambda params: trees.match(params, [("a/.*", "a")], default="b")
    )
    optimizer = train_nnx(model, parts)
    params = nnx.state(model, nnx.Param)
    assert [int(jnp.sum(k[...] != 0)) for k in (model.a.kernel, model.b.kernel)] == [48, 12]
    assert shapes(transforms.masks_of(optimizer.opt_state, params)) == {
        "a/bias": (),
        "a/kernel": (8, 12),
        "b/bias": (),
        "b/kernel": (12, 4),
    }


def wrapped():
    return {
        "chain": optax.chain(optax.clip(1.0), gradual()),
        "hyperparameters": optax.inject_hyperparams(
            lambda rate: transforms.prune_on_schedule(optax.adam(rate), sparsity=0.75, steps=4, prunable=KERNELS)
        )(rate=0.01),
        "accumulated": optax.MultiSteps(gradual(steps=2), 2),
        "finite": optax.apply_if_finite(gradual(), 2),
    }


@pytest.mark.parametrize("name", wrapped())
def test_a_train_state_of_linen(name):
    state = train_state.TrainState.create(apply_fn=None, params=PARAMS, tx=wrapped()[name])
    step = jax.jit(lambda s: s.apply_gradients(grads=s.params))
    for _ in range(5):
        state = step(state)
    transforms.check(state.params, state.opt_state, state.tx)
    assert nonzero(state.params)["a/kernel"] + nonzero(state.params)["b/kernel"] == 36
    assert int(masks.count(transforms.masks_of(state), PARAMS)) == 36 + 16


PARTS = {
    "by layer": (
        lambda: optax.partition({"x": gradual(0.5), "y": gradual(0.75)}, {"a": "x", "b": "y"}),
        {"a/kernel": 48, "b/kernel": 12},
    ),
    "by leaf": (
        lambda: optax.multi_transform(
            {"x": gradual(0.75), "y": optax.adam(0.01)}, trees.match(PARAMS, [(".*kernel", "x")], default="y")
        ),
        {"": 36},
    ),
    "one layer": (
        lambda: optax.masked(gradual(0.5, prunable=["a/kernel", "b/kernel"]), {"a": True, "b": False}),
        {"a/kernel": 48, "b/kernel": 48},
    ),
    "a tree of booleans": (
        lambda: optax.masked(gradual(0.5, prunable=trees.select(PARAMS, KERNELS)), {"a": True, "b": False}),
        {"a/kernel": 48, "b/kernel": 48},
    ),
}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_a_tree(name):
    make, expected = PARTS[name]
    params, state = train(make(), PARAMS)
    transforms.check(params, state)
    found, left = transforms.masks_of(state, params), nonzero(params)
    if "" in expected:
        left = {"": left["a/kernel"] + left["b/kernel"]}
    assert {path: left[path] for path in expected} == expected
    assert jax.tree.structure(found) == jax.tree.structure(params)
    for path, m in trees.flatten(found).items():
        np.testing.assert_array_equal(
            trees.flatten(params)[path] != 0, np.broadcast_to(m, trees.flatten(params)[path].shape)
        )
    assert int(masks.count(found, params)) == sum(nonzero(params).values()) < 176
    # Without the parameters a scalar may stand for a whole layer; selectors and masks take both.
    assert int(masks.count(transforms.masks_of(state), params)) == int(masks.count(found, params))


def test_masks_of_all_parameters_are_kept_for_a_part():
    tx = optax.masked(
        transforms.keep_mask(optax.adam(0.01), POSITIVE), {"a": True, "b": {"bias": False, "kernel": True}}
    )
    params, state = train(tx, PARAMS)
    transforms.check(params, state)
    for layer in ("a", "b"):
        np.testing.assert_array_equal(params[layer]["kernel"] != 0, POSITIVE[layer]["kernel"])
    assert shapes(transforms.masks_of(state)) == {
        "a/bias": (12,),
        "a/kernel": (8, 12),
        "b/bias": (),
        "b/kernel": (12, 4),
    }
    # A wrapper in a wrapper: what both keep.
    both = optax.chain(
        tx, optax.masked(transforms.keep_mask(optax.identity(), masks.invert(POSITIVE)), {"a": False, "b": True})
    )
    found = transforms.masks_of(both.init(PARAMS))
    np.testing.assert_array_equal(found["a"]["kernel"], POSITIVE["a"]["kernel"])
    assert not found["b"]["kernel"].any()
    np.testing.assert_array_equal(found["b"]["bias"], ~POSITIVE["b"]["bias"])


@pytest.mark.parametrize("api", ["v0", "v1"])
def test_a_checkpoint_restored_without_a_target(tmp_path, api):
    tx = optax.chain(optax.clip(1.0), PARTS["by leaf"][0]())
    params, state = train(tx, PARAMS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Orbax says that shardings are read from the file
        if api == "v0":
            import orbax.checkpoint as ocp

            with ocp.StandardCheckpointer() as checkpointer:
                checkpointer.save(tmp_path / "state", state)
            restored = ocp.StandardCheckpointer().restore(tmp_path / "state")
        else:
            from orbax.checkpoint import v1

            v1.save(tmp_path / "state", state)
            restored = v1.load(tmp_path / "state")
    assert not any(isinstance(x, transforms.PruneOnScheduleState) for x in restored)
    found = transforms.masks_of(restored, params)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(transforms.masks_of(state)), strict=True):
        np.testing.assert_array_equal(x, y)
    assert int(masks.count(found, params)) == 36 + 16
    transforms.check(params, restored)
    again, _ = train(transforms.keep_mask(optax.adam(0.01), found), params)
    assert nonzero(again) == nonzero(params)


class Layer(eqx.Module):
    weight: jax.Array
    act: object

    def __init__(self):
        self.weight, self.act = normal(4, 4), jax.nn.relu


def test_an_equinox_module_is_partitioned_first():
    for tx in (gradual(prunable=["weight"]), transforms.keep_mask(optax.adam(0.1), {"weight": True})):
        with pytest.raises(
            ValueError, match=r"leaf 'act', a .*; of an Equinox module give the first part of eqx.partition"
        ):
            tx.init(Layer())
    params, static = eqx.partition(Layer(), eqx.is_inexact_array)
    params, state = train(gradual(prunable=["weight"]), params)
    assert int((eqx.combine(params, static).weight != 0).sum()) == 4
    transforms.check(params, state)


def test_trees_that_do_not_belong_together_are_named():
    with pytest.raises(ValueError, match=r"params and masks differ in structure: only in params: \['b/bias'"):
        transforms.keep_mask(optax.adam(0.1), {"a": POSITIVE["a"]}).init(PARAMS)
    state = optax.chain(
        transforms.keep_mask(optax.identity(), POSITIVE), transforms.keep_mask(optax.identity(), POSITIVE)
    ).init(PARAMS)
    other = (state[0], state[1]._replace(masks={"c": jnp.array(True)}))
    with pytest.raises(ValueError, match="masks of different trees"):
        transforms.masks_of(other)
