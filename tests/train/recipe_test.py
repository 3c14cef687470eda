"""What a recipe may hold: any optax transformation, any loss, a preparation of batches that come from anywhere."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import train
from mvp_jax.core import masks
from mvp_jax.core.types import Variables
from mvp_jax.train import evaluation, learning_rates, population
from tests.masked_mlp import distance, in_float64, problem, scattered

OPTIMISERS = {
    "adam": optax.adam(1e-2),
    "schedule": optax.chain(optax.clip(0.5), optax.sgd(optax.schedules.exponential_decay(0.3, 2, 0.5), 0.9)),
    "injected_schedule": optax.inject_hyperparams(optax.sgd)(optax.schedules.linear_schedule(0.3, 0.0, 5)),
    "contrib": optax.contrib.ademamix(1e-2),
    "by_parameter": optax.partition(
        {"small": optax.sgd(0.01), "large": optax.adamw(0.02)},
        lambda params: {name: "small" if name == "two" else "large" for name in params},
    ),
}


def descended(model, tx, state, data, batch, steps):
    """The parameters after steps of a loop as one would write it with optax, on the batches that a run sees."""
    params, opt_state = state.variables.params, tx.init(state.variables.params)
    for t in range(steps):
        index = train.batch_indices(jax.random.fold_in(state.key, 2**31 - 1), t, len(data["y"]), batch)

        def objective(params, index=index):
            logits, _ = model.apply(Variables(params, {}), data["x"][index], train=True)
            return optax.softmax_cross_entropy_with_integer_labels(logits, data["y"][index]).mean()

        updates, opt_state = tx.update(jax.grad(objective)(params), opt_state, params)
        params = masks.apply(optax.apply_updates(params, updates), state.masks)
    return params


@pytest.mark.parametrize("name", OPTIMISERS)
def test_any_optax_transformation_is_taken_with_its_own_rate(name):
    model, variables, _, data = problem()
    tx, keep = OPTIMISERS[name], scattered(variables.params)
    recipe = train.Recipe(model=model, tx=tx, batch=8)
    state = train.create(variables, tx, jax.random.key(3), masks=keep)
    got, metrics = train.fit(recipe, state, data, 4)
    assert int(metrics["taken"]) == 4
    want = descended(model, tx, state, data, 8, 4)
    assert distance(got.variables.params, in_float64(want)) < 1e-4
    assert distance(want, in_float64(state.variables.params)) > 1e-3
    part, _ = train.fit(recipe, train.fit(recipe, state, data, 1)[0], data, 3)
    assert distance(part.variables.params, in_float64(want)) < 1e-4
    # So does a population, whose members differ in their batches here.
    keys = jax.random.split(jax.random.key(4), 2)
    many, _ = population.fit(recipe, population.create(state, keys), jax.tree.map(lambda v: jnp.stack([v, v]), data), 4)
    for i in range(2):
        alone = descended(model, tx, state._replace(key=keys[i]), data, 8, 4)
        assert distance(jax.tree.map(lambda p, i=i: p[i], many.variables.params), in_float64(alone)) < 1e-4
    given = population.create(state, keys, population.run_settings(2, learning_rate=0.1))
    with pytest.raises(ValueError, match="holds none that can be set"):
        population.fit(recipe, given, jax.tree.map(lambda v: jnp.stack([v, v]), data), 1)
    with pytest.raises(ValueError, match="holds none that can be set"):
        train.fit(recipe, state, data, 1, learning_rate=0.1)
    for shaped in ({"decay": "cosine"}, {"warmup": 2}):
        with pytest.raises(ValueError, match="the optimiser keeps its own"):
            train.fit(dataclasses.replace(recipe, **shaped), state, data, 1)


def test_accuracy_is_of_classes_and_any_loss_is_minimised():
    model, variables, _, data = problem()
    tx = train.optimizer("sgd", momentum=0.0)
    logits = model.apply(variables, data["x"])[0]

    def after(loss, y):
        state = train.create(variables, tx, jax.random.key(0))
        recipe = train.Recipe(model=model, tx=tx, batch=24, loss=loss)
        return train.fit(recipe, state, {"x": data["x"], "y": y}, 1, learning_rate=0.1)

    def squared(outputs, y):
        return jnp.square(outputs - y)  # [N, Y]: one for each part of an example

    wanted = jnp.zeros_like(logits).at[:, 0].set(1.0)
    state, metrics = after(squared, wanted)
    assert float(metrics["loss"]) == pytest.approx(float(jnp.mean((logits - wanted) ** 2)), rel=1e-5)
    assert np.isnan(metrics["accuracy"])
    assert int(metrics["taken"]) == 1
    grads = jax.grad(lambda p: jnp.mean((model.apply(Variables(p, {}), data["x"])[0] - wanted) ** 2))(variables.params)
    want = jax.tree.map(lambda p, g: p - 0.1 * g, variables.params, grads)
    assert distance(state.variables.params, in_float64(want)) < 1e-5
    _, classes = after(train.cross_entropy, data["y"])
    assert float(classes["accuracy"]) == pytest.approx(float(jnp.mean(logits.argmax(-1) == data["y"])))
    found = evaluation.evaluate(model, variables, {"x": data["x"], "y": wanted}, batch=7, loss=squared)
    assert float(found["loss"]) == pytest.approx(float(metrics["loss"]), rel=1e-5)
    assert np.isnan(found["accuracy"])


def test_tokens_of_texts_are_classes_too():
    logits = jax.random.normal(jax.random.key(0), (2, 3, 5))
    best = jnp.argmax(logits, -1)
    assert float(train.accuracy(logits, best)) == 1.0
    assert float(train.accuracy(logits, best.at[0, 1].add(1) % 5)) == pytest.approx(5 / 6)
    losses = train.cross_entropy(logits, best, classes=4, smoothing=0.1)
    assert losses.shape == (2, 3)
    for outputs, labels in ((logits, best[:, 0]), (logits, best.astype(jnp.float32)), (logits[..., :1], best)):
        assert np.isnan(train.accuracy(outputs, labels))


def labelled(key, batch):
    """Inputs and labels changed together: a `train.Prepare`."""
    swap = jax.random.bernoulli(key, 0.5, batch["y"].shape)
    x = jnp.where(swap[:, None], -batch["x"], batch["x"])
    return {"x": x, "y": jnp.where(swap, 0, batch["y"])}


def test_batches_as_they_come_and_what_is_done_to_them_first():
    model, variables, keep, data = problem()
    tx = train.optimizer("sgd")
    recipe = train.Recipe(model=model, tx=tx, batch=6, prepare=labelled, decay="cosine", warmup=2)
    state = train.create(variables, tx, jax.random.key(5), masks=keep)
    batches, steps = [], 4
    for t in range(steps):
        chosen = train.next_batch(state._replace(step=jnp.int32(t)), 24, 6)
        batches.append({name: np.asarray(leaf)[chosen] for name, leaf in data.items()} | {"other": "left out"})
    whole, seen = train.fit(recipe, state, data, steps, learning_rate=0.2)
    read, also = train.fit(recipe, state, iter(batches), steps, learning_rate=0.2)
    assert distance(read.variables, in_float64(whole.variables)) < 1e-5
    assert float(also["loss"]) == pytest.approx(float(seen["loss"]), rel=1e-5)
    plain, _ = train.fit(dataclasses.replace(recipe, prepare=None), state, data, steps, learning_rate=0.2)
    assert distance(plain.variables.params, in_float64(whole.variables.params)) > 1e-3
    # By hand, at the rates of the one curve.
    params, trace = masks.apply(variables.params, keep), jax.tree.map(jnp.zeros_like, variables.params)
    for t, given in enumerate(batches):
        key = jax.random.fold_in(jax.random.fold_in(state.key, 2**31 - 2), t)
        changed = labelled(key, {name: jnp.asarray(given[name]) for name in ("x", "y")})
        grads = jax.grad(
            lambda p, b=changed: jnp.mean(train.cross_entropy(model.apply(Variables(p, {}), b["x"])[0], b["y"]))
        )(params)
        trace = jax.tree.map(lambda v, g: 0.9 * v + g, trace, grads)
        rate = learning_rates.at(t, 0.2, steps=steps, warmup=2)
        params = masks.apply(jax.tree.map(lambda p, v, rate=rate: p - rate * v, params, trace), keep)
    assert distance(whole.variables.params, in_float64(params)) < 1e-4
    with pytest.raises(ValueError, match="there were 4 batches for 5 steps"):
        train.fit(recipe, state, iter(batches), 5, learning_rate=0.2)
    with pytest.raises(ValueError, match="leave such batches to the iterator"):
        train.fit(recipe, state, iter(batches), 1, learning_rate=0.2, index=jnp.arange(3))
