"""Any loss: a regression and a language model pruned by every method for a sparsity, and scores by hand."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import train
from mvp_jax.core import masks
from mvp_jax.core.types import Variables
from mvp_jax.methods import sparse, weak_members
from mvp_jax.methods.sparse import isp, oneshot, soup
from mvp_jax.models import functions
from mvp_jax.train import evaluation
from tests.methods.sparse import contract_test as contract
from tests.methods.sparse.isp_test import best

CASES = (
    "once_snip",
    "once_synflow",
    "once_wanda",
    "gradual",
    "movement_hard",
    "rigl",
    "imp_rewound",
    "isp_taylor",
    "greedy_soups",
    "instant_soup",
)
"""One or more of each method; scores that depend on the loss are compared with NumPy below."""

TRAINING = sparse.SparsityTraining(steps=80, learning_rate=0.02, batch=16, optimizer="adamw")


def squared_error(outputs, targets):
    """One loss for each output."""
    return jnp.square(jnp.reshape(outputs, targets.shape) - targets)


def next_token(logits, tokens):
    """One cross-entropy for each token but the first: `[N, T - 1]`."""
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:])


def drawn(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return Variables({n: jnp.asarray(rng.normal(size=s) / math.sqrt(s[0]), jnp.float32) for n, s in shapes.items()}, {})


@functools.cache
def regression():
    def apply(variables, x, **_):
        p = variables.params
        return jax.nn.relu(x @ p["one"]) @ p["two"], variables.rest

    model = functions.from_apply(apply, input_shape=(6,), num_classes=2, prunable=("one|two",))
    teacher = np.zeros((6, 2))
    teacher[1, 0], teacher[4, 0], teacher[2, 1] = 1.5, -1.0, 2.0

    def data(seed):
        rng = np.random.default_rng(seed)
        x = rng.normal(size=(96, 6))
        y = x @ teacher + 0.1 * rng.normal(size=(96, 2))
        return {"x": jnp.asarray(x, jnp.float32), "y": jnp.asarray(y, jnp.float32)}

    problem = sparse.SparsityProblem(
        model=model,
        variables=drawn({"one": (6, 12), "two": (12, 2)}),
        train=data(0),
        valid=data(1),
        sparsity=0.5,
        loss=squared_error,
    )
    dense = sparse.begin(problem, TRAINING, jax.random.key(1))
    dense = sparse.advance(problem, TRAINING, dense, 150)
    return dataclasses.replace(problem, variables=dense.state.variables), 48


VOCABULARY, LENGTH = 8, 6


@functools.cache
def language():
    def apply(variables, x, **_):
        p = variables.params
        now = jax.nn.one_hot(x, VOCABULARY) @ p["embed"]
        before = jnp.pad(now, ((0, 0), (1, 0), (0, 0)))[:, :-1]  # causal: the token itself and the one before it
        h = now + before @ p["mix"]
        return (h + jax.nn.relu(h @ p["up"]) @ p["down"]) @ p["head"], variables.rest

    model = functions.from_apply(
        apply, input_shape=(LENGTH,), num_classes=VOCABULARY, prunable=("mix|up|down",), input_dtype=jnp.int32
    )

    def data(seed):
        rng = np.random.default_rng(seed)
        tokens = rng.integers(VOCABULARY, size=(64, LENGTH))
        for t in range(1, LENGTH):
            follows = rng.random(64) < 0.9
            tokens[:, t] = np.where(follows, (3 * tokens[:, t - 1] + 1) % VOCABULARY, tokens[:, t])
        return {"x": jnp.asarray(tokens, jnp.int32), "y": jnp.asarray(tokens, jnp.int32)}

    return sparse.SparsityProblem(
        model=model,
        variables=drawn({"embed": (8, 12), "mix": (12, 12), "up": (12, 8), "down": (8, 12), "head": (12, 8)}),
        train=data(0),
        valid=data(1),
        sparsity=0.5,
        loss=next_token,
    ), 168


def pruned(problem, case):
    name, settings = contract.CASES[case]
    mapping = {"mapping": "vmap"} if hasattr(settings, "mapping") else {}
    return contract.FUNCTIONS[name](
        problem, dataclasses.replace(settings, training=TRAINING, **mapping), jax.random.key(0)
    )


def judged(problem, got):
    return float(evaluation.evaluate(problem.model, got.variables, problem.valid, loss=problem.loss)["loss"])


def check_masks(problem, got, keep):
    prunable = [m for m, yes in zip(*map(jax.tree.leaves, (got.masks, problem.prunable)), strict=True) if yes]
    assert int(masks.count(prunable)) == keep
    assert bool(got.alive)
    for leaf, mask in zip(jax.tree.leaves(got.variables.params), jax.tree.leaves(got.masks), strict=True):
        assert not np.asarray(leaf)[~np.broadcast_to(mask, leaf.shape)].any()


@pytest.mark.parametrize("case", CASES)
def test_a_regression_is_pruned_and_fits(case):
    problem, keep = regression()
    got = pruned(problem, case)
    check_masks(problem, got, keep)
    targets = np.asarray(problem.valid["y"])
    assert judged(problem, got) < 0.3 * targets.var(0).mean()


@pytest.mark.parametrize("case", CASES)
def test_a_language_model_is_pruned_and_predicts(case):
    problem, keep = language()
    got = pruned(problem, case)
    check_masks(problem, got, keep)
    assert judged(problem, got) < math.log(VOCABULARY) - 0.8


def test_targets_may_be_one_number_for_each_example():
    problem, keep = regression()
    one = {n: problem.variables.params[n][:, :1] if n == "two" else problem.variables.params[n] for n in ("one", "two")}
    data = {"x": problem.train["x"], "y": problem.train["y"][:, 0]}
    scalar = dataclasses.replace(problem, variables=Variables(one, {}), train=data, valid=None)
    got = pruned(scalar, "gradual")
    check_masks(scalar, got, keep - 6)
    outputs = evaluation.infer(scalar.model, got.variables, data["x"])[0][:, 0]
    assert float(jnp.mean(jnp.square(outputs - data["y"]))) < 0.3 * float(jnp.var(data["y"]))


@functools.cache
def linear():
    return functions.from_apply(
        lambda variables, x, **_: (x @ variables.params["w"], variables.rest),
        input_shape=(6,),
        num_classes=2,
        prunable=("w",),
    )


@pytest.mark.parametrize("score", ["snip", "taylor", "fisher", "grasp"])
def test_scores_are_those_of_the_problems_loss(score):
    given = regression()[0]
    w = drawn({"w": (6, 2)}, seed=3)
    problem = dataclasses.replace(given, model=linear(), variables=w)
    settings = oneshot.Settings(score=score, examples=999, training=dataclasses.replace(TRAINING, steps=0))
    got = oneshot.oneshot(problem, settings, jax.random.key(0))
    x, y = (np.asarray(problem.train[n], np.float64) for n in ("x", "y"))
    w = np.asarray(problem.variables.params["w"], np.float64)
    each = x[:, :, None] * (x @ w - y)[:, None, :]  # of the mean over two outputs of the squares
    mean = each.mean(0)
    wanted = {
        "snip": np.abs(w * mean),
        "taylor": (w * mean) ** 2,
        "fisher": w**2 * np.mean(each**2, axis=0),
        "grasp": w * (x.T @ x / len(x) @ mean),
    }[score]
    if score == "grasp":
        assert np.sign(wanted).min() < np.sign(wanted).max()
    assert np.array_equal(np.asarray(got.masks["w"]).ravel(), best(wanted.ravel(), 6, np.ones(12, bool)))


def test_gradients_are_those_of_the_given_loss():
    problem = regression()[0]
    w = drawn({"w": (6, 2)}, seed=3)
    x, y = (np.asarray(problem.train[n], np.float64) for n in ("x", "y"))
    wanted = x.T @ (x @ np.asarray(w.params["w"], np.float64) - y) / len(x)
    for training in (False, True):
        got = sparse.gradients(linear(), w, problem.train, loss=squared_error, training=training)["w"]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_the_greedy_choice_is_by_the_lowest_loss():
    # Three errors: the first two cancel, so that their mean is better than either; the third makes it worse.
    problem = regression()[0]
    x = np.asarray(problem.train["x"], np.float64)
    fit = np.linalg.lstsq(x, np.asarray(problem.train["y"], np.float64), rcond=None)[0]
    off = np.stack([np.full((6, 2), 0.2), np.full((6, 2), -0.25), np.full((6, 2), 0.9)])
    members = Variables({"w": jnp.asarray(fit + off, jnp.float32)}, {})
    chosen = soup.greedy(linear(), members, problem.train, problem.train["x"], loss=squared_error)
    assert chosen.tolist() == [1, 1, 0]
    learned = soup.learned(linear(), members, problem.train, jax.random.key(0), loss=squared_error, batch=96)
    assert float(learned[2]) < 0.2 < 0.3 < float(jnp.min(learned[:2]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": train.cross_entropy}, "labels must be"),
        ({"train": {"x": jnp.zeros((3, 6)), "y": jnp.zeros((2, 2))}}, "one label, or one row of labels"),
        ({"train": {"x": jnp.zeros((0, 6)), "y": jnp.zeros((0, 2))}}, "no examples"),
    ],
)
def test_labels_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(regression()[0], **changes)


def test_label_smoothing_needs_a_loss_that_takes_it():
    smooth = weak_members.Diversity(label_smoothing=(0.0, 0.1))
    settings = (
        (isp.isp, isp.Settings(diversity=smooth)),
        (soup.sparse_soups, soup.SparseSoupSettings(diversity=smooth)),
        (soup.instant_soup, soup.InstantSoupSettings(diversity=smooth)),
    )
    for method, given in settings:
        with pytest.raises(ValueError, match="takes no argument `smoothing`"):
            method(regression()[0], given, jax.random.key(0))

    def smoothed(outputs, targets, *, smoothing=0.0):
        return (1 - smoothing) * squared_error(outputs, targets)

    sparse.check_smoothing(dataclasses.replace(regression()[0], loss=smoothed), smooth)
    sparse.check_smoothing(contract.problem(), smooth)
