"""Soups of members whose weights are given, and the methods made of them, against NumPy and by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core.types import Variables
from mvp_jax.methods import contract, sparse, weak_members
from mvp_jax.methods.sparse import api, soup
from mvp_jax.models import functions
from mvp_jax.train import evaluation
from tests.methods.sparse.isp_test import Spy, best

EXAMPLES = 10


@functools.cache
def table():
    """Every example has logits of its own, which are the weights: accuracies are read off."""

    def apply(variables, x, **_):
        return x @ variables.params["w"], variables.rest

    return functions.from_apply(apply, input_shape=(EXAMPLES,), num_classes=2, prunable=("w",))


LABELS = np.arange(EXAMPLES) % 2
DATA = {"x": jnp.eye(EXAMPLES), "y": jnp.asarray(LABELS, jnp.int32)}


def members(margins):
    """Weights `[K, 10, 2]` whose right class leads by the margins `[K, 10]`."""
    margins = np.asarray(margins, np.float32)
    w = np.zeros((*margins.shape, 2), np.float32)
    w[:, np.arange(EXAMPLES), LABELS] = margins
    return Variables({"w": jnp.asarray(w)}, {})


def test_the_uniform_soup_is_numpys_mean():
    rng = np.random.default_rng(0)
    params = {n: rng.normal(size=(3, 4, 2)).astype(np.float32) for n in ("a", "b")}
    rest = {"mean": rng.normal(size=(3, 2)).astype(np.float32), "seen": np.array([7, 8, 9], np.int32)}
    given = jax.tree.map(jnp.asarray, Variables(params, rest))
    for weights in (None, np.array([1.0, 0.0, 3.0], np.float32)):
        own = np.ones(3) if weights is None else weights.astype(np.float64)
        got = soup.mean(given, None if weights is None else jnp.asarray(weights))
        for name in ("a", "b"):
            wanted = np.einsum("k,kij->ij", own, params[name].astype(np.float64)) / own.sum()
            assert np.max(np.abs(wanted)) > 0.3
            np.testing.assert_allclose(got.params[name], wanted, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(got.rest["mean"], own @ rest["mean"] / own.sum(), rtol=1e-5)
        assert int(got.rest["seen"]) == 7
    masks = {n: rng.random((3, 4, 2)) < 0.6 for n in params}
    got = soup.mean(given, masks=jax.tree.map(jnp.asarray, masks))
    for name in ("a", "b"):
        kept = masks[name].sum(0)
        assert {0, 2, 3} <= set(kept.ravel().tolist())
        wanted = np.where(kept > 0, (params[name] * masks[name]).sum(0) / np.maximum(kept, 1), 0)
        np.testing.assert_allclose(got.params[name], wanted, rtol=1e-5, atol=1e-6)


# Right by 1 on the first seven; what others add or spoil is to be read off column by column.
BEST = [1.0] * 7 + [-1.0] * 3
MENDS = [-0.5] * 4 + [1.0] * 3 + [1.5] * 3  # with the best one all ten are right
SPOILS = [-5.0] * 4 + [-0.9] + [1.0] * 5  # with the two above the first four are wrong, with the last alone none more
EQUAL = [0.1] * 4 + [-0.1] * 6  # changes nothing, and no worse is good enough
RUINS = [0.1] * 3 + [-9.0] * 7


def greedy_by_hand(margins):
    margins = np.asarray(margins)
    order = sorted(range(len(margins)), key=lambda k: -np.mean(margins[k] > 0))
    chosen = [order[0]]
    for k in order[1:]:
        if np.mean(margins[[*chosen, k]].mean(0) > 0) >= np.mean(margins[chosen].mean(0) > 0):
            chosen.append(k)
    return chosen


def test_greedy_adds_from_the_best_down_what_does_not_harm():
    margins = [MENDS, SPOILS, EQUAL, BEST, RUINS]
    given = members(margins)
    alone = [float(evaluation.evaluate(table(), soup.mean(given, jnp.eye(5)[k]), DATA)["accuracy"]) for k in range(5)]
    np.testing.assert_allclose(alone, [0.6, 0.5, 0.4, 0.7, 0.3], rtol=1e-6)
    got = soup.greedy(table(), given, DATA, DATA["x"])
    assert got.tolist() == [1, 0, 1, 1, 0]
    assert greedy_by_hand(margins) == [3, 0, 2]
    # In the order of the list the one that spoils would have come in.
    assert np.mean(np.mean([MENDS, SPOILS], axis=0) > 0) >= np.mean(np.array(MENDS) > 0)
    rng = np.random.default_rng(0)
    for _ in range(5):
        margins = rng.normal(0.3, 1.0, size=(5, EXAMPLES))
        wanted = np.isin(np.arange(5), greedy_by_hand(margins))
        assert np.array_equal(np.asarray(soup.greedy(table(), members(margins), DATA, DATA["x"])) > 0, wanted)


def adam_by_hand(margins, steps, rate):
    """Mixing weights for one example whose logits differ by the mixed margin: loss log(1 + exp(-m))."""
    a = np.zeros(len(margins))
    m, v = np.zeros_like(a), np.zeros_like(a)
    for t in range(1, steps + 1):
        s = np.exp(a) / np.exp(a).sum()
        down = -1 / (1 + np.exp(s @ margins))
        g = down * s * (margins - s @ margins)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        a = a - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return np.exp(a) / np.exp(a).sum()


def test_the_learned_soup_is_adam_on_the_mixing_weights():
    margins = np.array([-0.5, 2.0, 0.3])
    # Copies of one example: whatever is drawn, the loss is known.
    data = {"x": jnp.tile(DATA["x"][:1], (6, 1)), "y": jnp.zeros(6, jnp.int32)}
    got = soup.learned(table(), members(np.tile(margins[:, None], (1, EXAMPLES))), data, jax.random.key(0))
    np.testing.assert_allclose(got, adam_by_hand(margins, 50, 0.05), rtol=1e-3)
    assert abs(float(got.sum()) - 1) < 1e-6
    assert float(got[1]) > 0.6
    # Different examples: not the best member alone, and better than the mean.
    rng = np.random.default_rng(1)
    spread = members(rng.normal([[-0.5], [0.5], [1.0]], 2.0, size=(3, EXAMPLES)))
    six = {n: leaf[:6] for n, leaf in DATA.items()}
    got = soup.learned(table(), spread, six, jax.random.key(0))

    def loss(weights):
        return float(evaluation.evaluate(table(), soup.mean(spread, weights), six)["loss"])

    assert loss(got) < 0.95 * loss(jnp.ones(3) / 3)
    assert float(np.ptp(got)) > 0.3


STILL = sparse.SparsityTraining(steps=0, learning_rate=1e-30, batch=5)


def problem(sparsity):
    rng = np.random.default_rng(3)
    given = Variables({"w": jnp.asarray(rng.normal(size=(EXAMPLES, 2)), jnp.float32)}, {})
    return sparse.SparsityProblem(model=table(), variables=given, train=DATA, valid=DATA, sparsity=sparsity)


@pytest.fixture
def forks(monkeypatch):
    """Forks give three members drawn round by round, under the run's mask; the last diverged."""
    calls = []

    def fork(problem, training, run, key, settings, *, inherit=True, decay="constant"):
        rng = np.random.default_rng(len(calls))
        w = rng.normal(size=(3, EXAMPLES, 2)).astype(np.float32)
        w = np.where(np.asarray(run.state.masks["w"]), w, 0)
        w[2] = np.nan
        calls.append((run, {**vars(settings), "inherit": inherit}, w))
        states = run.state._replace(
            variables=Variables({"w": jnp.asarray(w)}, {}), alive=jnp.array([True, True, False])
        )
        return weak_members.WeakMembers(states, None, {}, contract.Spent(6, 30, 2, 1))

    def advance(problem, training, run, steps, *, last=False):
        return sparse.spend(run, steps, steps * training.batch)

    monkeypatch.setattr(api, "fork", fork)
    monkeypatch.setattr(api, "advance", advance)
    return calls


def test_sparse_soups_are_means_under_the_mask_that_was_cut(forks):
    spy = Spy()
    settings = soup.SparseSoupSettings(members=3, rounds=2, first=4, steps=2, training=STILL)
    got = soup.sparse_soups(problem(0.5), settings, jax.random.key(0), saved=spy)
    assert len(forks) == 2
    assert len(spy.runs) == 3
    before, within = np.asarray(problem(0.5).variables.params["w"]).ravel(), np.ones(20, bool)
    # 20 · sqrt(0.5) = 14.1 are left of the first cut, then half.
    for (run, how, w), after, keep in zip(forks, spy.runs, (14, 10), strict=False):
        mask = best(np.abs(before), keep, within)
        assert np.array_equal(np.asarray(run.state.masks["w"]).ravel(), mask)
        np.testing.assert_array_equal(np.asarray(run.state.variables.params["w"]).ravel(), np.where(mask, before, 0))
        assert (how["count"], how["steps"], how["inherit"]) == (3, 2, False)
        souped = np.asarray(after.state.variables.params["w"]).ravel()
        np.testing.assert_allclose(souped, w[:2].mean(0).ravel(), rtol=1e-6)
        assert np.array_equal(souped != 0, mask)
        assert np.array_equal(np.asarray(after.state.masks["w"]).ravel(), mask)
        before, within = souped, mask
    np.testing.assert_array_equal(np.asarray(got.variables.params["w"]).ravel(), before)
    assert np.array_equal(np.asarray(got.masks["w"]).ravel(), within)
    assert got.spent == (4 + 2 * 6, 4 * 5 + 2 * 30, 4 + 2 * 2, 2)


@pytest.mark.parametrize("sparsity", [0.0, 0.5])
def test_the_instant_soup_is_dense_until_the_end(sparsity, forks):
    spy = Spy()
    settings = soup.InstantSoupSettings(members=3, rounds=3, epochs=1.0, weak_epochs=2.0, training=STILL)
    got = soup.instant_soup(problem(sparsity), settings, jax.random.key(0), saved=spy)
    assert len(forks) == 3
    assert all(how["steps"] == 4 for _, how, _ in forks)
    for (run, _, w), after in zip(forks, spy.runs, strict=False):
        assert np.asarray(run.state.masks["w"]).all()
        assert np.asarray(run.state.variables.params["w"]).all()
        np.testing.assert_allclose(after.state.variables.params["w"], w[:2].mean(0), rtol=1e-6)
    last = forks[-1][2][:2].mean(0).ravel()
    mask = best(np.abs(last), 20 - round(20 * sparsity), np.ones(20, bool))
    assert np.array_equal(np.asarray(got.masks["w"]).ravel(), mask)
    np.testing.assert_allclose(np.asarray(got.variables.params["w"]).ravel(), np.where(mask, last, 0), rtol=1e-6)
    assert got.spent == (3 * (2 + 6), 3 * (10 + 30), 3 * (2 + 2), 3)


def states(margins, alive):
    run = sparse.begin(problem(0.0), STILL, jax.random.key(0))
    return run.state._replace(variables=members(margins), alive=jnp.asarray(alive))


def test_recipes_are_blended():
    margins = [MENDS, SPOILS, EQUAL, BEST, RUINS]
    blend = functools.partial(soup.blend, problem(0.0), STILL, states(margins, [True] * 5), key=jax.random.key(0))
    for recipe, chosen in (("uniform", range(5)), ("greedy", (0, 2, 3))):
        wanted = members(np.mean(np.array(margins)[list(chosen)], axis=0)[None]).params["w"][0]
        np.testing.assert_allclose(blend(recipe).params["w"], wanted, rtol=1e-5, atol=1e-6)
    uniform, learned = (evaluation.evaluate(table(), blend(r), DATA)["loss"] for r in ("uniform", "learned"))
    assert float(learned) < float(uniform)


def test_who_diverged_has_no_part_in_the_greedy_choice():
    # Frozen early, it is the best alone; nobody may join it, and without it all were taken, itself included.
    margins = [MENDS, SPOILS, EQUAL, BEST, [100.0] * 9 + [-100.0]]
    alive = [True] * 4 + [False]
    got = soup.blend(problem(0.0), STILL, states(margins, alive), "greedy", jax.random.key(0))
    wanted = members(np.mean([MENDS, EQUAL, BEST], axis=0)[None]).params["w"][0]
    np.testing.assert_allclose(got.params["w"], wanted, rtol=1e-5, atol=1e-6)
