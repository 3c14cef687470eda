"""Problems with losses of their own: a regression and a language model, pruned by every kind of few-shot method."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import models, train
from mvp_jax.core import trees
from mvp_jax.methods import METHODS, few_shot, registry
from mvp_jax.methods.few_shot import ifp, metasoup, mvp, reptile
from tests import mlp
from tests.methods.few_shot import contract_test

TUNING = few_shot.Tuning(steps=20, learning_rate=0.003, batch=16)
DEFAULTS = few_shot.FewShotDefaults(
    tuning=TUNING,
    search=ifp.Settings(rounds=2, steps_per_round=4, tuning=TUNING),
    vote=mvp.Settings(k=3),
    weak=metasoup.Settings(members=2, steps=3),
    universal=reptile.Settings(outer_steps=2, tasks=2, inner_steps=2, threshold_every=2),
    examples=16,
)


def squared(outputs, targets):
    """Half of the squared distance of each example."""
    return 0.5 * jnp.sum((outputs - targets) ** 2, -1)


def tokens(logits, ids):
    """Cross-entropy of each token, `[N, T]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, ids)


def some(names, quick):
    """The names as parameters; those that are not among the quick ones run with the slow tests."""
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


def prune(name, given, defaults=DEFAULTS):
    return METHODS[name](given, registry.line(name).settings(defaults), jax.random.key(0))


# -- regression: two targets, a smooth function of five inputs


@functools.cache
def regression(seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(48, mlp.INPUTS)).astype(np.float32)
    targets = np.stack([np.tanh(x[:, 0] - x[:, 1]), 0.5 * x[:, 2]], 1).astype(np.float32)
    return {"x": jnp.asarray(x), "y": jnp.asarray(targets)}


@functools.cache
def dense_regressor():
    model = mlp.mlp(classes=2)
    recipe = train.Recipe(model=model, tx=train.optimizer("adamw"), loss=squared, batch=16)
    state = train.create(mlp.variables(3, classes=2), recipe.tx, jax.random.key(1))
    state, metrics = train.fit(recipe, state, regression(), 300, learning_rate=0.02)
    assert "accuracy" not in metrics or not np.isfinite(metrics["accuracy"])  # there is none
    return model, state.variables


@functools.cache
def regression_problem():
    model, variables = dense_regressor()
    given = few_shot.problem(model, variables, regression(5), ratio=0.25, loss=squared)
    voters = contract_test.voters(given)
    others = trees.stack([regression(seed) for seed in range(10, 14)])
    return dataclasses.replace(given, neighbours=voters, sources=others)


@pytest.mark.parametrize(
    "name",
    some(registry.suited("few_shot", mlp.mlp()), ("dense", "mvp", "ifp", "metasoup", "reptile_iht", "oneshot_taylor")),
)
def test_a_regression_is_pruned_by_every_method(name):
    given = regression_problem()
    got = prune(name, given)
    contract_test.assert_contract(got, given, name == "dense")
    outputs, _ = given.model.apply(got.variables, given.train["x"])
    error = float(jnp.mean(squared(outputs, given.train["y"])))
    spread = float(jnp.mean(squared(jnp.mean(given.train["y"], 0), given.train["y"])))
    assert error < 0.7 * spread  # far better than always saying the mean
    assert spread > 0.1
    assert bool(got.alive)


# -- a language model: every next token is the last one plus one


VOCABULARY, LENGTH = 12, 6


@functools.cache
def texts(seed=0):
    rng = np.random.default_rng(seed)
    ids = (rng.integers(3, VOCABULARY, size=(24, 1)) + np.arange(LENGTH + 1)) % (VOCABULARY - 3) + 3
    return {"x": jnp.asarray(ids[:, :-1], jnp.int32), "y": jnp.asarray(ids[:, 1:], jnp.int32)}


@functools.cache
def language_problem():
    model = models.create("bert_micro", vocab=VOCABULARY, positions=LENGTH, layers=1, dim=16, heads=2, mlp=16)
    model = models.build(dataclasses.replace(model.config, task="masked_lm"))
    recipe = train.Recipe(model=model, tx=train.optimizer("adamw"), loss=tokens, batch=12)
    state = train.create(model.init(jax.random.key(0)), recipe.tx, jax.random.key(1))
    state, _ = train.fit(recipe, state, texts(), 150, learning_rate=0.01)
    groups = tuple(g for g in model.groups if g.kind in ("neuron", "head"))
    given = few_shot.problem(model, state.variables, texts(1), ratio=0.5, groups=groups, loss=tokens)
    return dataclasses.replace(given, neighbours=contract_test.voters(given))


@pytest.mark.parametrize(
    "name",
    some(("mvp", "copy_nearest", "ifp", "oneshot_fisher", "oneshot_taylor", "metasoup", "dense"), ("mvp", "ifp")),
)
def test_a_language_model_is_pruned_by_every_kind_of_method(name):
    given = language_problem()
    settings = dataclasses.replace(
        DEFAULTS, tuning=dataclasses.replace(TUNING, optimizer="adamw", learning_rate=0.01, steps=30)
    )
    got = prune(name, given, settings)
    contract_test.assert_contract(got, given, name == "dense")
    logits, _ = given.model.apply(got.variables, given.train["x"])
    assert logits.shape == (24, LENGTH, VOCABULARY)
    loss = float(jnp.mean(tokens(logits, given.train["y"])))
    assert loss < 0.6 * np.log(VOCABULARY)  # saying nothing costs log V
    assert bool(got.alive)


def test_labels_are_checked_for_classes_only():
    model, variables = dense_regressor()
    with pytest.raises(ValueError, match="labels must be"):
        few_shot.problem(model, variables, {"x": jnp.zeros((2, 5)), "y": jnp.array([0, 9])}, ratio=0.5)
    with pytest.raises(ValueError, match="no examples"):
        few_shot.problem(model, variables, {"x": jnp.zeros((0, 5)), "y": jnp.zeros((0, 2))}, ratio=0.5, loss=squared)
    assert few_shot.problem(model, variables, regression(), ratio=0.5, loss=squared).loss is squared
