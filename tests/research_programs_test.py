"""Four small programs as a researcher writes them, with the wrappers and nothing that the docs do not show."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from flax.training.train_state import TrainState

from mvp_jax import graph, masks, prune, transforms, trees
from mvp_jax.core import patterns
from mvp_jax.pretrained import export

X = np.random.default_rng(0).normal(size=(64, 8)).astype(np.float32)
Y = np.sin(X @ np.random.default_rng(1).normal(size=(8, 4))).astype(np.float32)


def mse(y, target):
    return jnp.mean((y - target) ** 2)


def test_nnx_prunes_gradually_then_fine_tunes_under_the_mask_and_exports(tmp_path):
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.hidden = nnx.Linear(8, 64, rngs=rngs)
            self.out = nnx.Linear(64, 4, rngs=rngs)

        def __call__(self, x):
            return self.out(jax.nn.relu(self.hidden(x)))

    @nnx.jit
    def step(model, optimizer, x, y):
        loss, grads = nnx.value_and_grad(lambda m: mse(m(x), y))(model)
        optimizer.update(model, grads)
        return loss

    model = Net(nnx.Rngs(0))
    tx = transforms.prune_on_schedule(optax.adam(1e-2), sparsity=0.9, steps=40, prunable=[".*kernel"])
    optimizer = nnx.Optimizer(model, tx, wrt=nnx.Param)
    losses = [float(step(model, optimizer, X, Y)) for _ in range(40)]

    found = transforms.masks_of(optimizer.opt_state, nnx.state(model, nnx.Param))
    kernels = trees.select(found, [".*kernel"])
    # A tenth of 8 * 64 + 64 * 4 weights, rounded as the number removed is.
    assert int(masks.count(masks.eligible(found, kernels), nnx.state(model, nnx.Param))) == 77
    assert "hidden/kernel" in masks.summary(found, nnx.state(model, nnx.Param))

    optimizer = nnx.Optimizer(model, transforms.keep_mask(optax.adam(1e-2), found), wrt=nnx.Param)
    tuned = [float(step(model, optimizer, X, Y)) for _ in range(60)]
    transforms.check(nnx.state(model, nnx.Param), optimizer.opt_state)
    assert tuned[-1] < min(losses[0], tuned[0])

    graphdef, params = nnx.split(model)
    export.program(tmp_path / "net", lambda params, x: nnx.merge(graphdef, params)(x), params, x=X)
    np.testing.assert_allclose(export.load_program(tmp_path / "net")(X[:3]), model(X[:3]), rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.hidden.kernel[...] != 0, found["hidden"]["kernel"][...])


def test_linen_with_a_train_state_small_steps_and_hyperparameters():
    net = linen.Sequential([linen.Dense(64), linen.relu, linen.Dense(4)])
    params = net.init(jax.random.key(0), X)["params"]

    def make(learning_rate, sparsity):
        inner = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(learning_rate, weight_decay=1e-3))
        return transforms.prune_on_schedule(inner, sparsity=sparsity, steps=20, prunable=[".*kernel"])

    tx = optax.MultiSteps(optax.inject_hyperparams(make)(learning_rate=1e-2, sparsity=0.5), every_k_schedule=2)
    state = TrainState.create(apply_fn=net.apply, params=params, tx=tx)

    @jax.jit
    def step(state, x, y):
        loss, grads = jax.value_and_grad(lambda p: mse(state.apply_fn({"params": p}, x), y))(state.params)
        return state.apply_gradients(grads=grads), loss

    losses = []
    for i in range(50):
        state, loss = step(state, X[i % 2 :: 2], Y[i % 2 :: 2])
        losses.append(float(loss))
    programs = step._cache_size()
    inner = state.opt_state.inner_opt_state
    inner.hyperparams["learning_rate"] = jnp.zeros(())
    still = state.replace(opt_state=state.opt_state._replace(inner_opt_state=inner))
    for x, y in ((X, Y), (X, Y)):  # two small steps are an update
        still, _ = step(still, x[::2], y[::2])
    assert all(map(np.array_equal, jax.tree.leaves(still.params), jax.tree.leaves(state.params)))
    assert step._cache_size() == programs

    assert losses[-1] < losses[0] / 2
    found = transforms.masks_of(state.opt_state, state.params)
    transforms.check(state.params, state.opt_state)
    kept = masks.eligible(found, trees.select(found, [".*kernel"]))
    assert int(masks.count(kept, state.params)) == prune.keep_count(8 * 64 + 64 * 4, 0.5)
    assert all(bool(m.all()) for k, m in trees.flatten(found).items() if k.endswith("bias"))


def test_equinox_with_rigl_and_then_two_of_four():
    model = eqx.nn.MLP(8, 4, 64, 1, key=jax.random.key(0))
    params, static = eqx.partition(model, eqx.is_inexact_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    def train(tx, params, steps, straight=False):
        @jax.jit
        def step(params, state):
            at = masks.apply(params, transforms.masks_of(state)) if straight else params
            loss, grads = jax.value_and_grad(lambda p: mse(apply(p, X), Y))(at)
            updates, state = tx.update(grads, state, params)
            return transforms.apply_updates(params, updates, state), state, loss

        state, losses = tx.init(params), []
        for _ in range(steps):
            params, state, loss = step(params, state)
            losses.append(float(loss))
        return params, transforms.masks_of(state, params), losses

    rigl = transforms.rigl(
        optax.adam(1e-2), sparsity=0.8, steps=30, every=5, prunable=[".*weight"], key=jax.random.key(1)
    )
    sparse, found, losses = train(rigl, params, 60)
    assert losses[-1] < losses[5]
    weights = trees.select(params, [".*weight"])
    # A fifth of 8 * 64 + 64 * 4 weights.
    assert int(masks.count(masks.eligible(found, weights), params)) == 154
    alive = masks.eligible(masks.nonzero(sparse, [".*weight"]), weights)
    assert 100 < int(masks.count(alive, params)) <= 154

    # Equinox keeps its kernels as [out, in]: the products sum over axis 1.
    runs = patterns.NofM(4, axis=graph.contracted(apply, params, X))
    ste = transforms.straight_through(optax.adam(1e-2), sparsity=0.5, prunable=[".*weight"], pattern=runs)
    dense, found, losses = train(ste, params, 60, straight=True)
    assert losses[-1] < losses[0]
    pruned = masks.apply(dense, found)
    for layer in pruned.layers:
        np.testing.assert_array_equal((np.asarray(layer.weight).reshape(-1, 4) != 0).sum(1), 2)


@pytest.mark.parametrize("prunable", [["lora/.*/b"], ["lora/.*"]])
def test_a_lora_tree_with_a_frozen_base(prunable):
    rng = np.random.default_rng(0)
    base = {"up": rng.normal(size=(8, 16)), "down": rng.normal(size=(16, 4))}
    lora = {k: {"a": rng.normal(size=(w.shape[0], 4)), "b": np.zeros((4, w.shape[1]))} for k, w in base.items()}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), {"base": base, "lora": lora})

    # The base is pruned once, by magnitude; what is trained is pruned as it trains.
    scores = jax.tree.map(jnp.abs, params["base"])
    once = prune.across_tree(scores, prune.keep_count(8 * 16 + 16 * 4, 0.5))
    params["base"] = masks.apply(params["base"], once)

    def loss(params):
        def weight(k):
            return params["base"][k] + params["lora"][k]["a"] @ params["lora"][k]["b"]

        return mse(jnp.tanh(X @ weight("up")) @ weight("down"), Y)

    # The same sparsity in every leaf: by one threshold for all, the factors that start at 0 would go as a whole.
    adam = optax.adam(1e-2)
    tuned = transforms.prune_on_schedule(adam, sparsity=0.75, steps=20, prunable=prunable, pattern="uniform")
    tx = optax.partition({"train": tuned, "freeze": optax.set_to_zero()}, {"base": "freeze", "lora": "train"})

    @jax.jit
    def step(params, state):
        value, grads = jax.value_and_grad(loss)(params)
        updates, state = tx.update(grads, state, params)
        return transforms.apply_updates(params, updates, state), state, value

    start, state, losses = params, tx.init(params), []
    for _ in range(60):
        params, state, value = step(params, state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    found = transforms.masks_of(state, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    chosen = trees.select(params, prunable)
    n = sum(p.size for p, c in zip(jax.tree.leaves(params), jax.tree.leaves(chosen), strict=True) if c)
    assert int(masks.count(masks.eligible(found, chosen), params)) == prune.keep_count(n, 0.75)
    assert all(np.array_equal(params["base"][k], start["base"][k]) for k in base)
