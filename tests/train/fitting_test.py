"""Training against NumPy, and slim training against masked training."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import compact, train
from mvp_jax.core import masks, trees, units
from mvp_jax.core.types import Variables
from mvp_jax.train import evaluation, fitting
from tests import members, mlp
from tests.masked_mlp import KEPT, distance, in_float64, problem, scattered
from tests.model_kinds import batch, made, random_units


def by_hand(params, keep, data, steps, rate, *, momentum=0.9, decay=0.0, cosine=False):
    """Full-batch masked gradient descent with momentum in NumPy: the parameters and the mean of the losses."""
    x, y = np.asarray(data["x"], np.float64), np.asarray(data["y"])
    params = jax.tree.map(lambda p, m: np.where(m, p, 0.0), in_float64(params), keep)
    trace, losses = jax.tree.map(np.zeros_like, params), []
    for t in range(steps):
        loss, grads, _, _ = mlp.in_numpy(params, x, y)
        losses.append(loss)
        trace = jax.tree.map(lambda v, g, p: momentum * v + g + decay * p, trace, grads, params)
        now = rate * (0.5 * (1 + np.cos(np.pi * t / steps)) if cosine else 1.0)
        params = jax.tree.map(lambda p, v, m, now=now: np.where(m, p - now * v, 0.0), params, trace, keep)
    return params, float(np.mean(losses))


@pytest.mark.parametrize("decay", ["constant", "cosine"])
def test_masked_momentum_descent_is_the_one_written_in_numpy(decay):
    model, variables, _, data = problem()
    keep = scattered(variables.params)
    tx = train.optimizer("sgd", momentum=0.9, weight_decay=0.1)
    state = train.create(variables, tx, jax.random.key(0), masks=keep)
    # All examples in one batch: their order does not matter, so NumPy needs no key.
    state, metrics = train.fit(
        train.Recipe(model=model, tx=tx, batch=999, decay=decay), state, data, 6, learning_rate=0.3
    )
    expected, loss = by_hand(variables.params, keep, data, 6, 0.3, decay=0.1, cosine=decay == "cosine")
    assert distance(state.variables.params, expected) < 1e-4
    assert abs(float(metrics["loss"]) - loss) < 1e-5
    other, _ = by_hand(variables.params, keep, data, 6, 0.3, decay=0.1, cosine=decay != "cosine")
    assert distance(other, expected) > 1e-2
    start = masks.apply(variables.params, keep)
    assert distance(state.variables.params, in_float64(start)) > 0.1
    for path, m in trees.flatten(keep).items():
        leaf = np.asarray(trees.flatten(state.variables.params)[path])
        assert not leaf[~np.broadcast_to(m, leaf.shape)].any(), path
        assert np.all(leaf[np.broadcast_to(m, leaf.shape)] != 0), path
    assert int(state.step) == 6
    # The optimiser did try to move what is pruned; without the mask after it, it would have come back.
    gone = ~np.asarray(keep["two"]["kernel"])
    (trace,) = (v for path, v in trees.flatten(state.opt_state).items() if path.endswith("two/kernel"))
    assert gone.sum() > 5
    assert np.abs(np.asarray(trace)[gone]).min() > 1e-6


def test_adamw_is_the_one_written_in_numpy():
    model, variables, _, data = problem()
    keep = scattered(variables.params)
    tx = train.optimizer("adamw", weight_decay=0.2)
    state = train.create(variables, tx, jax.random.key(0), masks=keep)
    state, _ = train.fit(train.Recipe(model=model, tx=tx, batch=24), state, data, 4, learning_rate=0.05)
    p = jax.tree.map(lambda p, m: np.where(m, p, 0.0), in_float64(variables.params), keep)
    start, m1 = p, jax.tree.map(np.zeros_like, p)
    m2 = m1
    for t in range(1, 5):
        g = mlp.in_numpy(p, np.asarray(data["x"], np.float64), np.asarray(data["y"]))[1]
        m1 = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m1, g)
        m2 = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, m2, g)
        p = jax.tree.map(
            lambda p, m, v, k, t=t: np.where(
                k, p - 0.05 * (m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8) + 0.2 * p), 0.0
            ),
            p,
            m1,
            m2,
            keep,
        )
    assert distance(state.variables.params, p) < 1e-4
    assert distance(state.variables.params, start) > 0.05


def test_a_step_returns_loss_accuracy_and_scores_of_its_batch():
    model, variables, keep, data = problem()
    tx = optax.sgd(0.1)
    x, y = np.asarray(data["x"], np.float64), np.asarray(data["y"])
    masked = jax.tree.map(lambda p, m: np.where(m, p, 0.0), in_float64(variables.params), keep)
    loss, grads, gates, active = mlp.in_numpy(masked, x, y)
    state = train.create(variables, tx, jax.random.key(0), masks=keep)
    kept_a = np.asarray(KEPT["a"])
    for score, expected in (
        ("fisher", {n: (g**2).mean(0) for n, g in gates.items()}),
        ("activation", {n: a.mean(0) for n, a in active.items()}),
    ):
        step = train.make_step(model, train.cross_entropy, tx, score=score, groups=model.groups)
        after, metrics = jax.jit(step)(state, data)
        assert abs(float(metrics["loss"]) - loss) < 1e-5
        for name, s in expected.items():
            np.testing.assert_allclose(metrics["scores"][name], s, rtol=2e-4, atol=1e-7)
            kept = np.asarray(KEPT[name])
            assert s[kept].min() > 1e-5
            assert not np.asarray(metrics["scores"][name])[~kept].any()
        want = jax.tree.map(lambda p, g, m: np.where(m, p - 0.1 * g, 0.0), masked, grads, keep)
        assert distance(after.variables.params, want) < 1e-4
    logits = np.asarray(model.apply(Variables(masks.apply(variables.params, keep), {}), data["x"])[0])
    assert 0 < float(metrics["accuracy"]) < 1
    assert float(metrics["accuracy"]) == pytest.approx(np.mean(logits.argmax(1) == y))
    # The mean of the examples' squares is not the square of their mean.
    assert not np.allclose((gates["a"].mean(0) ** 2)[kept_a], (gates["a"] ** 2).mean(0)[kept_a], rtol=0.1)
    after, metrics = train.make_step(model, train.cross_entropy, tx)(state, data)  # without jit
    assert distance(after.variables.params, want) < 1e-4
    assert distance(after.variables.params, masked) > 1e-3
    assert "scores" not in metrics


def test_scores_of_a_run_are_means_over_its_steps():
    model, variables, keep, data = problem()
    tx = train.optimizer("sgd")
    recipe = train.Recipe(model=model, tx=tx, batch=24, score="fisher", groups=model.groups)
    run = functools.partial(train.fit, recipe, data=data, learning_rate=0.2)
    state = train.create(variables, tx, jax.random.key(0), masks=keep)
    _, whole = run(state, steps=3)
    assert float(whole.pop("taken")) == 3
    parts = []
    for _ in range(3):
        state, m = run(state, steps=1)
        assert float(m.pop("taken")) == 1
        parts.append(m)
    jax.tree.map(lambda w, *p: np.testing.assert_allclose(w, np.mean(p, 0), rtol=1e-4, atol=1e-7), whole, *parts)
    assert not np.allclose(parts[0]["scores"]["a"], parts[2]["scores"]["a"], rtol=0.05)


# One program for the two tests that train a residual network: the same shapes, optimiser and options.
RESNET = "basic"


def training(kind, seed=0):
    """A masked state of a model, its data, the units it keeps and how it is trained."""
    model, variables = made(kind)
    kept = random_units(model, 2)
    keep = units.expand(kept, model.groups, variables.params)
    tx = train.optimizer("sgd", momentum=0.9, weight_decay=0.01)
    state = train.create(variables, tx, jax.random.key(seed), masks=keep)
    data = {"x": batch(model, 12), "y": jnp.arange(12) % 3}

    def fit(model, state, steps, learning_rate=0.02):
        return train.fit(train.Recipe(model=model, tx=tx, batch=6), state, data, steps, learning_rate=learning_rate)

    return model, state, kept, fit, data


def compilations():
    return fitting._one_batch._cache_size() + fitting._many_steps._cache_size()


def test_loops_on_the_host_compute_what_compiled_loops_do():
    host, compiled = (members.model_of("resnet", conv) for conv in ("native", "im2col"))
    variables = host.init(jax.random.key(0))
    assert train.loops_on_host(host, variables) == (jax.default_backend() == "cpu")
    assert not train.loops_on_host(compiled, variables)
    assert not jax.jit(lambda v: jnp.asarray(train.loops_on_host(host, v)))(variables)
    tx = train.optimizer("sgd")
    data = {"x": batch(host, 11), "y": jnp.arange(11) % 3}
    state = train.create(variables, tx, jax.random.key(1))
    recipe = train.Recipe(model=host, tx=tx, batch=4, score="fisher", groups=host.groups)
    (a, seen_a), (b, seen_b) = (
        train.fit(dataclasses.replace(recipe, model=m), state, data, 3, learning_rate=0.05) for m in (host, compiled)
    )
    assert distance(a.variables.params, in_float64(b.variables.params)) < 1e-3
    assert distance(a.variables.params, in_float64(variables.params)) > 1e-2
    assert distance(seen_a, in_float64(seen_b)) < 1e-3
    for size in (4, 5, 11):
        logits, features = evaluation.infer(host, a.variables, data["x"], batch=size)
        whole = evaluation.infer(compiled, a.variables, data["x"], batch=11)
        np.testing.assert_allclose(logits, whole[0], atol=1e-4)
        np.testing.assert_allclose(features, whole[1], atol=1e-4)
        assert float(jnp.std(logits, axis=0).min()) > 1e-3


def test_a_resumed_run_is_the_uninterrupted_one_and_nothing_recompiles():
    model, state, _, fit, _ = training(RESNET)
    whole, _ = fit(model, state, steps=5)
    compiled = compilations()
    part, _ = fit(model, state, steps=3)
    part, _ = fit(model, part, steps=2)
    same = jax.tree.map(np.array_equal, (whole.variables, whole.opt_state), (part.variables, part.opt_state))
    assert all(jax.tree.leaves(same))
    assert int(part.step) == 5
    again, _ = fit(model, state, steps=5)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole.variables, again.variables)))
    other, _ = fit(model, training(RESNET, seed=1)[1], steps=5)
    assert distance(other.variables.params, in_float64(whole.variables.params)) > 1e-4
    fit(model, state._replace(masks=jax.tree.map(jnp.zeros_like, state.masks)), steps=1, learning_rate=0.5)
    assert compilations() == compiled


def test_tasks_of_every_size_share_the_program_of_a_step_whose_loop_is_on_the_host():
    model, state, _, _, data = training(RESNET)
    assert train.loops_on_host(model, state.variables)
    recipe = train.Recipe(model=model, tx=train.optimizer("sgd"), batch=6)
    moved = []
    before = None
    for size in (12, 10, 7):
        some = {name: leaf[:size] for name, leaf in data.items()}
        after, _ = train.fit(recipe, state, some, 2, learning_rate=0.02)
        index, _ = train.fit(recipe, state, data, 2, learning_rate=0.02, index=jnp.arange(size))
        assert all(jax.tree.leaves(jax.tree.map(np.array_equal, after.variables, index.variables)))
        moved.append(distance(after.variables.params, in_float64(state.variables.params)))
        before = fitting._one_batch._cache_size() if before is None else before
        assert fitting._one_batch._cache_size() == before
    assert min(moved) > 1e-4


def test_a_resumed_cosine_decay_goes_on_where_it_was():
    model, variables, keep, data = problem()
    tx = train.optimizer("sgd")
    recipe = train.Recipe(model=model, tx=tx, batch=7, decay="cosine")
    fit = functools.partial(train.fit, recipe, data=data, learning_rate=0.3)
    state = train.create(variables, tx, jax.random.key(0), masks=keep)
    whole, _ = fit(state, steps=6, total=6)
    part, _ = fit(fit(state, steps=2, total=6)[0], steps=4, total=6)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, whole.variables, part.variables)))
    shorter, _ = fit(state, steps=6, total=3)
    assert distance(shorter.variables.params, in_float64(whole.variables.params)) > 1e-3


def test_members_trained_at_once_are_members_trained_one_by_one():
    model, variables, keep, data = problem()
    tx = train.optimizer("sgd")
    seeds = [3, 4]
    states = [train.create(variables, tx, jax.random.key(s), masks=keep) for s in seeds]

    def run(state, data):
        return train.fit(train.Recipe(model=model, tx=tx, batch=8), state, data, 3, learning_rate=0.1)[0].variables

    each = [run(s, data) for s in states]
    assert distance(each[0].params, in_float64(each[1].params)) > 1e-3
    many = jax.jit(jax.vmap(run, (0, None)))(trees.stack(states), data)
    for got, want in zip(trees.unstack(many), each, strict=True):
        assert distance(got.params, in_float64(want.params)) < 1e-5


@pytest.mark.parametrize(("examples", "size"), [(12, 4), (13, 4), (5, 64), (3, 1)])
def test_every_epoch_is_a_permutation(examples, size):
    key = jax.random.key(7)
    per_epoch = max(1, examples // min(size, examples))
    epochs = []
    for epoch in range(3):
        steps = range(epoch * per_epoch, (epoch + 1) * per_epoch)
        seen = np.concatenate([np.asarray(train.batch_indices(key, s, examples, size)) for s in steps])
        assert len(set(seen.tolist())) == len(seen) == per_epoch * min(size, examples)
        assert seen.min() >= 0
        assert seen.max() < examples
        epochs.append(tuple(seen.tolist()))
    assert len(set(epochs)) > 1
    traced = jax.jit(lambda s: train.batch_indices(key, s, examples, size))(jnp.int32(1))
    np.testing.assert_array_equal(traced, train.batch_indices(key, 1, examples, size))


def test_a_step_sees_its_batch_and_nothing_else():
    model, variables, _, data = problem()
    tx = train.optimizer("sgd")
    state = train.create(variables, tx, jax.random.key(5))
    got, _ = train.fit(train.Recipe(model=model, tx=tx, batch=6), state, data, 1, learning_rate=0.1)
    index = train.batch_indices(jax.random.fold_in(state.key, 2**31 - 1), 0, 24, 6)
    only = {n: v[index] for n, v in data.items()}
    want, _ = by_hand(variables.params, jax.tree.map(lambda _: True, variables.params), only, 1, 0.1)
    assert distance(got.variables.params, want) < 1e-4
    assert distance(got.variables.params, in_float64(variables.params)) > 1e-3


def test_augmentation_draws_anew_at_every_step():
    model, variables, _, data = problem()
    tx = train.optimizer("sgd")
    state = train.create(variables, tx, jax.random.key(5))

    def noisy(key, x):
        return x + jax.random.normal(key, x.shape)

    recipe = train.Recipe(model=model, tx=tx, batch=24, augment=noisy)
    fit = functools.partial(train.fit, recipe, data=data, steps=1, learning_rate=0.0)
    state, first = fit(state)
    _, second = fit(state)
    assert float(first["loss"]) != float(second["loss"])
    assert distance(state.variables.params, in_float64(variables.params)) == 0.0


@pytest.mark.parametrize("kind", [RESNET, *(pytest.param(k, marks=pytest.mark.slow) for k in ("vit_cls", "option_a"))])
def test_slim_training_is_masked_training(kind):
    """The claim that everything rests on: cutting first and training after is training under the mask."""
    model, start, kept, fit, data = training(kind)
    masked, masked_metrics = fit(model, start, steps=10)
    slim_model = model.resize(compact.sizes(kept))
    slim, slim_metrics = fit(slim_model, compact.cut(start, model.groups, kept), steps=10)

    expected = in_float64(compact.cut(masked.variables, model.groups, kept))
    assert distance(slim.variables, expected) < 1e-4
    dense = compact.embed(slim.variables, model.groups, kept, masked.variables)
    assert distance(dense.params, in_float64(masked.variables.params)) < 1e-4
    np.testing.assert_allclose(slim_metrics["loss"], masked_metrics["loss"], rtol=1e-4)
    # What they agree on is far from where both started, and is not all of the model.
    began = in_float64(compact.cut(start.variables, model.groups, kept))
    assert distance(slim.variables.params, began.params) > 0.02
    small, large = (sum(a.size for a in jax.tree.leaves(v.variables.params)) for v in (slim, masked))
    assert small < 0.8 * large
    x = data["x"]
    before, after = (np.asarray(slim_model.apply(v, x)[0]) for v in (Variables(*map(_float32, began)), slim.variables))
    in_full = np.asarray(model.apply(masked.variables, x)[0])
    np.testing.assert_allclose(after, in_full, rtol=1e-3, atol=1e-3 * np.abs(in_full).max())
    assert np.abs(after - before).max() > 30 * np.abs(after - in_full).max()


def _float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def test_what_cannot_be_trained_is_refused():
    model, variables, _, data = problem()
    state = train.create(variables, optax.sgd(0.1), jax.random.key(0))
    with pytest.raises(ValueError, match="inject_hyperparams"):
        train.fit(train.Recipe(model=model, tx=optax.sgd(0.1)), state, data, 1, learning_rate=0.1)
    tx = train.optimizer()
    recipe, state = train.Recipe(model=model, tx=tx), train.create(variables, tx, jax.random.key(0))
    with pytest.raises(ValueError, match="no examples"):
        train.fit(recipe, state, {n: v[:0] for n, v in data.items()}, 1, learning_rate=0.1)
