"""Iterative filter pruning: the counts by hand, and the physical cuts against training under masks."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact, train
from mvp_jax.core import units
from mvp_jax.core.types import Variables
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import ifp
from mvp_jax.train import probe
from tests import mlp

TUNING = few_shot.Tuning(steps=4, learning_rate=0.05, batch=8)


def problem(a=8, b=6, keep=(2, 2)):
    given = few_shot.problem(mlp.mlp(a, b), mlp.variables(0, a, b), mlp.data(), ratio=0.5)
    return dataclasses.replace(given, keep=(("a", keep[0]), ("b", keep[1])))


@pytest.mark.parametrize(
    ("schedule", "rounds", "expected"),
    [
        # 16 to 2 in three rounds: an eighth, so half of what remains each time.
        ("geometric", 3, [(8, 8), (4, 8), (2, 8)]),
        # All but 7/8·(1 - (2/3)³) = 0.6157, 7/8·(1 - (1/3)³) = 0.8426 of 16: 6.15, 2.52.
        ("cubic", 3, [(6, 8), (3, 8), (2, 8)]),
        ("geometric", 1, [(2, 8)]),
        # Two rounds to an eighth: √(1/8) of 16 = 5.66.
        ("geometric", 2, [(6, 8), (2, 8)]),
    ],
)
def test_counts(schedule, rounds, expected):
    given = problem(16, 8, (2, 8))
    got = ifp.counts(given, ifp.Settings(rounds=rounds, schedule=schedule))
    assert [(c["a"], c["b"]) for c in got] == expected


def test_no_round_goes_below_the_floor_or_the_last():
    got = ifp.counts(problem(16, 8, (1, 3)), ifp.Settings(rounds=4, schedule="cubic", min_units=2))
    a, b = ([c[n] for c in got] for n in "ab")
    assert a == sorted(a, reverse=True)
    assert b == sorted(b, reverse=True)
    assert min(a[:-1]) >= 2
    assert (a[-1], b[-1]) == (1, 3)


def test_a_budget_is_spent_exactly():
    for steps in (1, 2, 3, 7, 50, 101):
        settings = ifp.with_budget(ifp.Settings(rounds=3, tuning=TUNING), steps)
        assert settings.total_steps == steps
        assert settings.rounds <= 3
        assert settings.tuning.learning_rate == TUNING.learning_rate


def test_what_a_search_costs():
    given, settings = problem(), ifp.Settings(rounds=2, steps_per_round=5, tuning=TUNING)
    spent = ifp.cost_of_search(given, settings)
    assert (spent["steps"], spent["examples"]) == (14, 14 * 8)

    def products(a, b):
        return 2 * (5 * a + a * b + b * 3)  # of one example; a backward pass is twice a forward one

    products_only = 3 * 8 * (5 * products(8, 6) + 5 * products(4, 3) + 4 * products(2, 2))
    assert products_only < spent["flops"] < 1.6 * products_only


def test_cutting_after_each_round_is_masking_after_each_round():
    """The search, done once more on the dense model under masks: units, saliency and the trained weights agree."""
    given, key = problem(), jax.random.key(3)
    settings = ifp.Settings(rounds=2, steps_per_round=3, tuning=TUNING)
    found = ifp.search(given, settings, key)
    model, tx = given.model, TUNING.tx

    def masked(kept, variables):
        return units.expand({n: jnp.asarray(k) for n, k in kept.items()}, model.groups, variables.params)

    kept = {"a": np.ones(8, bool), "b": np.ones(6, bool)}
    saliency = {n: np.zeros(len(k)) for n, k in kept.items()}
    variables = probe.fit_head(model, given.variables, given.train, l2=TUNING.probe_l2)
    state = train.create(variables, tx, key)
    rounds = ifp.counts(given, settings)
    assert [tuple(c.values()) for c in rounds] == [(4, 3), (2, 2)]
    history = [kept]
    for counts in rounds:
        recipe = train.Recipe(model=model, tx=tx, batch=8, score="fisher", groups=model.groups)
        state, metrics = train.fit(recipe, state, given.train, 3, learning_rate=0.05)
        after = {}
        for name, scores in metrics["scores"].items():
            scores = np.asarray(scores)
            saliency[name] = np.where(kept[name], scores, saliency[name])
            order = np.argsort(-np.where(kept[name], scores, -np.inf), kind="stable")[: counts[name]]
            after[name] = np.isin(np.arange(len(scores)), order)
            dropped = kept[name] & ~after[name]
            assert scores[dropped].max() <= scores[after[name]].min()
        kept = after
        history.append(kept)
        keep = masked(kept, state.variables)
        params = jax.tree.map(lambda p, m: jnp.where(m, p, 0.0), state.variables.params, keep)
        state = state._replace(variables=Variables(params, {}), masks=keep)
    for name in kept:
        np.testing.assert_array_equal(found.units[name], kept[name])
        np.testing.assert_allclose(found.saliency[name], saliency[name], rtol=2e-3, atol=1e-7)
        assert np.all(np.asarray(found.saliency[name]) > 0)
        for earlier, later in itertools.pairwise(history):
            assert np.all(later[name] <= earlier[name])
    variables = probe.fit_head(model, state.variables, given.train, l2=TUNING.probe_l2)
    state = train.create(variables, tx, jax.random.fold_in(key, 1), masks=masked(kept, variables))
    state, _ = train.fit(train.Recipe(model=model, tx=tx, batch=8), state, given.train, 4, learning_rate=0.05)
    expected = compact.cut(state.variables, model.groups, found.units)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found.slim, expected)
    assert not np.allclose(found.slim.params["offset"], given.variables.params["offset"], atol=1e-2)


def test_the_grown_model_cut_again_is_the_slim_one():
    given, settings = problem(), ifp.Settings(rounds=2, steps_per_round=2, tuning=TUNING)
    found = ifp.search(given, settings, jax.random.key(0))
    own = ifp.ifp(given, settings, jax.random.key(0))
    again = compact.cut(own.variables, given.groups, own.units)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, again, found.slim)))
    assert units.count(own.units) == given.sizes == {"a": 2, "b": 2}
    slim_logits, _ = given.slim.apply(found.slim, given.train["x"])
    dense_logits, _ = given.model.apply(own.variables, given.train["x"])
    np.testing.assert_allclose(slim_logits, dense_logits, rtol=1e-4, atol=1e-5)
    assert np.ptp(slim_logits) > 0.1


def test_the_last_head_is_fitted_to_the_pruned_features():
    given = problem()
    settings = ifp.Settings(rounds=1, steps_per_round=1, tuning=dataclasses.replace(TUNING, steps=0))
    found = ifp.search(given, settings, jax.random.key(0))
    refitted = probe.fit_head(given.slim, found.slim, given.train, l2=TUNING.probe_l2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), found.slim, refitted)
    assert np.asarray(found.slim.params["head"]["kernel"]).any()


def test_a_search_that_diverges_says_so():
    settings = ifp.Settings(rounds=1, steps_per_round=3, tuning=TUNING)
    sound = problem()
    # The head is fitted to finite features; a rate beyond all bounds then breaks the training.
    wild = dataclasses.replace(settings, tuning=dataclasses.replace(TUNING, learning_rate=1e38))
    for how, alive in ((settings, True), (wild, False)):
        found = ifp.search(sound, how, jax.random.key(0))
        assert bool(found.alive) is alive
        assert units.count(found.units) == sound.sizes
