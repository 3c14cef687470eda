"""The selected start against a choice that is made step by step, with regressions that are really fitted."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact
from mvp_jax.core import units
from mvp_jax.core.types import Variables
from mvp_jax.methods import METHODS, few_shot, registry
from mvp_jax.methods.few_shot import mvp, select
from mvp_jax.train import evaluation
from tests.core.leave_one_out_test import by_fitting
from tests.methods.few_shot import contract_test

KEY = jax.random.key(0)
SETTINGS = select.Settings(candidates=2, shares=(0.25, 1.0), vote=mvp.Settings(k=3, tuning=contract_test.TUNING))


def error(given, start):
    """Minus the leave-one-out error of a start, by fitting one regression for each example."""
    slim = compact.cut(start.variables, given.groups, start.units, sizes=given.sizes)
    slim = evaluation.reestimate(given.slim, slim, given.train["x"])
    _, features = evaluation.infer(given.slim, slim, given.train["x"])
    labels = np.eye(given.model.num_classes)[np.asarray(given.train["y"])]
    return by_fitting(np.asarray(features), labels, SETTINGS.ridge)


def starts(given, settings):
    """All candidates, stacked: copies of the nearest, nearest first, then the others."""
    order = np.argsort(-np.asarray(given.neighbours.similarity))[: settings.candidates]
    copies = [select.copied(given, int(i), settings, KEY) for i in order]
    others = select.voted(given, settings, KEY)
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)
    return jax.tree.map(lambda a, b: jnp.concatenate([a, b]), stacked, others)


def at(starts, i):
    return jax.tree.map(lambda leaf: leaf[i], starts)


@pytest.mark.parametrize("kind", ["mlp", "basic"])
def test_candidates_are_copies_votes_and_the_universal_model(kind):
    given = contract_test.problem(kind=kind)
    near = given.neighbours
    order = np.argsort(-np.asarray(near.similarity))
    found = starts(given, SETTINGS)
    count = len(jax.tree.leaves(found.units)[0])
    assert count == 2 + 3
    for i, entry in enumerate(order[:2]):
        for name, kept in near.units.items():
            np.testing.assert_array_equal(found.units[name][i], kept[entry])
        cut = [
            compact.cut(v, given.groups, at(near.units, entry), sizes=given.sizes).params
            for v in (at(found.variables, i), at(near.variables, entry))
        ]
        head = given.model.head
        jax.tree.map(np.testing.assert_array_equal, *({n: c for n, c in p.items() if n != head} for p in cut))
    for i, vote in enumerate(select.VOTES):
        want = vote(given, SETTINGS.vote, KEY)
        jax.tree.map(np.testing.assert_array_equal, at(found, 2 + i), want)
    assert any(not np.array_equal(kept[0], kept[1]) for kept in found.units.values())

    learned = few_shot.Start(at(near.variables, int(order[3])), at(near.units, int(order[3])))
    more = starts(dataclasses.replace(given, universal=learned), SETTINGS)
    jax.tree.map(np.testing.assert_array_equal, at(more.units, 5), learned.units)
    assert METHODS["mvp_select"](given, SETTINGS, KEY).spent.examples > 0


@pytest.mark.parametrize("kind", ["mlp", "basic"])
def test_the_best_by_regressions_that_are_fitted_starts(kind):
    given = contract_test.problem(kind=kind)
    found = starts(given, SETTINGS)
    errors = [error(given, at(found, i)) for i in range(5)]
    np.testing.assert_allclose(select.judged(given, found, SETTINGS), errors, rtol=2e-3)
    order = jnp.argsort(-given.neighbours.similarity)[:2]
    np.testing.assert_allclose(select.judged_copies(given, order, SETTINGS, KEY), errors[:2], rtol=2e-3)
    assert max(errors) - min(errors) > 0.01
    best = at(found, int(np.argmax(errors)))

    # The mean over those of the three nearest that kept an entry; the entry itself where none did.
    order = np.argsort(-np.asarray(given.neighbours.similarity))[:3]
    near = jax.tree.map(lambda leaf: leaf[order], given.neighbours)
    masks = jax.vmap(lambda u: units.expand(u, given.groups, given.variables.params))(near.units)
    head, moved = given.model.head, []

    def towards(own, members, kept):
        own, members = np.asarray(own), np.asarray(members)
        kept = np.asarray(kept)
        kept = kept.reshape(3, *(1,) * (members.ndim - kept.ndim), *kept.shape[1:])  # a mask broadcasts from the right
        kept = np.broadcast_to(kept, members.shape)
        total = kept.sum(0)
        return np.where(total > 0, (members * kept).sum(0) / np.maximum(total, 1), own) - own

    bodies = [{n: c for n, c in p.items() if n != head} for p in (best.variables.params, near.variables.params, masks)]
    step = jax.tree.map(towards, *bodies)
    for share in (0.0, *SETTINGS.shares):
        body = jax.tree.map(lambda own, s, share=share: own + share * s, bodies[0], step)
        params = {**body, head: given.variables.params[head]}
        moved.append(few_shot.Start(Variables(params, given.variables.rest), best.units))
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(step)) > 0.05
    errors = [error(given, start) for start in moved]
    assert len({round(e, 5) for e in errors}) == 3
    want, got = moved[int(np.argmax(errors))], select.start(given, SETTINGS, KEY)
    jax.tree.map(np.testing.assert_array_equal, got.units, want.units)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got.variables.params, want.variables.params)


def test_the_entry_that_was_made_for_the_task_is_chosen():
    # Whatever its similarity says, an entry that tells the classes apart is better than noise.
    given = contract_test.problem()
    near = given.neighbours
    noise = jax.tree.map(lambda leaf: 0.0 * leaf, near.variables)
    good = jax.tree.map(lambda leaf, n: n.at[2].set(leaf[2]), near.variables, noise)
    similarity = jnp.array([4.0, 3.0, 1.0, 2.0])
    only = dataclasses.replace(SETTINGS, candidates=4, shares=(), vote=dataclasses.replace(SETTINGS.vote, k=1))
    dull = dataclasses.replace(given, neighbours=near._replace(variables=good, similarity=similarity))
    got = select.start(dull, only, KEY)
    jax.tree.map(np.testing.assert_array_equal, got.units, at(near.units, 2))


def test_a_candidate_that_is_not_finite_is_never_chosen():
    given = contract_test.problem()
    nearest = jnp.argmax(given.neighbours.similarity)
    variables = jax.tree.map(lambda leaf: leaf.at[nearest].set(jnp.nan), given.neighbours.variables)
    broken = given.neighbours._replace(variables=variables)
    only = dataclasses.replace(SETTINGS, shares=(), candidates=4, vote=dataclasses.replace(SETTINGS.vote, k=1))
    got = select.start(dataclasses.replace(given, neighbours=broken), only, KEY)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(got.variables.params))


def test_a_new_ridge_or_task_compiles_nothing():
    given = contract_test.problem()
    found = starts(given, SETTINGS)
    select.judged(given, found, SETTINGS)
    order = jnp.array([1, 0])
    select.judged_copies(given, order, SETTINGS, KEY)
    before = select._judge_all._cache_size(), select._judge_copies._cache_size()
    other = select.judged(given, found, dataclasses.replace(SETTINGS, ridge=3.0))
    select.judged(contract_test.problem(seed=1), found, SETTINGS)
    select.judged_copies(contract_test.problem(seed=1), order[::-1], dataclasses.replace(SETTINGS, ridge=3.0), KEY)
    assert (select._judge_all._cache_size(), select._judge_copies._cache_size()) == before
    assert not np.allclose(other, select.judged(given, found, SETTINGS), rtol=1e-3)


def test_the_cost_is_two_passes_of_every_candidate_and_the_ranking():
    given = contract_test.problem()
    n, bank = given.examples, len(given.neighbours.similarity)
    spent = select.cost_of_selection(given, SETTINGS)
    assert spent.steps == 0
    assert spent.examples == bank * n // 3 + (2 + 3 + 2) * 2 * n // 3
    copied = METHODS["copy_nearest"](given, registry.line("copy_nearest").settings(contract_test.DEFAULTS), KEY)
    chosen = METHODS["mvp_select"](given, registry.line("mvp_select").settings(contract_test.DEFAULTS), KEY)
    assert chosen.spent.examples > copied.spent.examples
    assert chosen.spent.steps == copied.spent.steps == contract_test.TUNING.steps


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"candidates": 0}, "candidates"),
        ({"ridge": 0.0}, "ridge"),
        ({"shares": (0.0, 0.5)}, "shares"),
        ({"shares": (1.5,)}, "shares"),
        ({"vote": mvp.Settings(rounds=1)}, "rounds"),
    ],
)
def test_settings_out_of_range_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        select.Settings(**fields)


def test_a_problem_without_neighbours_is_refused():
    with pytest.raises(ValueError, match="neighbours"):
        select.select(dataclasses.replace(contract_test.problem(), neighbours=None), SETTINGS, KEY)
