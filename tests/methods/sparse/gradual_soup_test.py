"""The gradual soup against gradual pruning, against NumPy, by hand, and over eight devices."""

import dataclasses
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax.core import masks
from mvp_jax.core.types import Variables
from mvp_jax.methods import sparse, weak_members
from mvp_jax.methods.sparse import gradual, gradual_soup
from tests import gradual_soups, mlp
from tests.methods.sparse.isp_test import Spy, best
from tests.methods.sparse.recipes_test import descend, distance, in_float64, kernels, with_kernels

# All examples in one batch, so that their order does not matter.
TRAINING = sparse.SparsityTraining(steps=4, learning_rate=0.1, batch=99, warmup=3)
ALIKE = gradual_soup.Settings(members=2, steps=7, events=3, diversity=weak_members.NONE, training=TRAINING)


def problem(sparsity=0.7):
    return sparse.SparsityProblem(model=mlp.mlp(), variables=mlp.variables(), train=mlp.data(), sparsity=sparsity)


def run(settings, saved=None, key=0):
    return gradual_soup.gradual_soup(problem(), settings, jax.random.key(key), saved=saved)


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("changes", [{}, {"rank": "votes"}, {"souped_from": 0.4}], ids=str)
def test_members_that_are_alike_are_gradual_pruning_step_for_step(members, changes):
    ours, theirs = Spy(), Spy()
    got = run(dataclasses.replace(ALIKE, members=members, **changes), ours)
    wanted = gradual.gradual(
        problem(), gradual.Settings(steps=7, events=3, training=TRAINING), jax.random.key(0), saved=theirs
    )
    assert len(ours.runs) == len(theirs.runs) == 4
    for mine, other in zip(ours.runs, theirs.runs, strict=True):
        assert np.array_equal(kernels(mine.kept), kernels(other.kept))
        assert int(mine.state.step) == int(other.state.step)
        for part in ("variables", "opt_state"):
            assert distance(getattr(mine.state, part), in_float64(getattr(other.state, part))) < 2e-6
    assert distance(got.variables, in_float64(wanted.variables)) < 2e-6
    assert distance(theirs.runs[0].state.variables.params, in_float64(mlp.variables().params)) > 1e-2


def test_a_round_is_numpys_descent_from_the_common_state_and_a_cut_of_the_mean():
    spy, own = Spy(), dataclasses.replace(TRAINING, warmup=0)
    wide = weak_members.Diversity(subset=1.0, learning_rate=(0.25, 4.0))
    run(dataclasses.replace(ALIKE, diversity=wide, training=own), spy)
    params, trace, within = mlp.variables().params, None, np.ones(88, bool)
    keys = jax.random.fold_in(jax.random.key(0), 2)
    shares = 0.7 - 0.7 * (1 - np.arange(1, 3) / 3) ** 3
    for r, (count, share) in enumerate(zip((2, 2), shares, strict=True)):
        drawn, _ = weak_members.draw(
            jax.random.split(jax.random.fold_in(keys, r))[0], jnp.float32(0.1), diversity=wide, count=2, examples=24
        )
        rates = np.asarray(drawn.learning_rate, np.float64)
        assert abs(rates[0] - rates[1]) > 0.02
        ends = [masked_descent(params, count, within, trace, rate) for rate in rates]
        params, trace = (jax.tree.map(lambda a, b: (a + b) / 2, *parts) for parts in zip(*ends, strict=True))
        within = best(np.abs(kernels(params)), 88 - round(88 * share), within)
        params = with_kernels(params, np.where(within, kernels(params), 0))
        after = spy.runs[r].state
        assert np.array_equal(kernels(after.masks), within)
        assert distance(after.variables.params, params) < 1e-5
        assert distance(optax.tree_utils.tree_get(after.opt_state, "trace"), trace) < 1e-4


def masked_descent(params, steps, within, trace, rate):
    """Momentum runs on for what is pruned, but the weights stay 0."""
    for _ in range(steps):
        params, trace = descend(params, 1, trace=trace, rate=rate)
        params = with_kernels(params, np.where(within, kernels(params), 0))
    return params, trace


def stacked(values):
    """A state before, and one of three members with weights, a statistic, moments and a counter of their own."""
    before = sparse.begin(problem(), TRAINING, jax.random.key(0)).state
    before = before._replace(
        variables=Variables({"w": jnp.array([1.0, 2.0, 3.0])}, {"mean": jnp.array(0.0), "seen": jnp.array(7)}),
        opt_state={"trace": jnp.zeros(3), "count": jnp.array(0)},
        masks={"w": jnp.array([True, True, False])},
    )
    values = jnp.asarray(values, jnp.float32)
    members = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), before)
    return before, members._replace(
        step=jnp.array([2, 5, 5]),
        variables=Variables({"w": values}, {"mean": values[:, 0], "seen": jnp.array([8, 9, 9])}),
        opt_state={"trace": 10 * values, "count": jnp.array([2, 5, 5])},
        alive=jnp.array([False, True, True]),
    )


def test_weights_moments_and_statistics_are_the_mean_of_those_that_stayed_finite():
    before, members = stacked([[np.nan, np.inf, 1], [1, 3, 0], [2, 5, 0]])
    who = weak_members.weights(members)
    after, velocity = gradual_soup.common_state(before, members, who, {"w": jnp.zeros(3)}, 0.0, 1.0)
    assert np.array_equal(after.variables.params["w"], [1.5, 4, 0])
    assert np.array_equal(after.opt_state["trace"], [15, 40, 0])
    assert float(after.variables.rest["mean"]) == 1.5
    assert [int(x) for x in (after.step, after.opt_state["count"], after.variables.rest["seen"])] == [5, 5, 9]
    assert np.array_equal(velocity["w"], [-0.5, -2, 3])
    assert bool(after.alive)
    none, _ = gradual_soup.common_state(
        before, members._replace(alive=jnp.zeros(3, bool)), jnp.ones(3), {"w": jnp.zeros(3)}, 0.0, 1.0
    )
    assert not bool(none.alive)


def test_the_outer_step_by_hand():
    # From (1, 2) the mean is (1.5, 4): back = (-0.5, -2). v' = 0.5 v + back = (0.5, -4); θ' = θ - 2 v' = (0, 10).
    before, members = stacked([[0, 0, 0], [1, 3, 0], [2, 5, 0]])
    who, velocity = weak_members.weights(members), {"w": jnp.array([2.0, -4.0, 9.0])}
    after, velocity = gradual_soup.common_state(before, members, who, velocity, 0.5, 2.0)
    assert np.array_equal(after.variables.params["w"], [0, 10, 0])  # what is pruned stays, whatever its velocity was
    assert np.array_equal(velocity["w"][:2], [0.5, -4])


def test_members_vote_and_ties_go_to_the_larger_mean():
    spy = Spy()
    wide = weak_members.Diversity(subset=0.25, learning_rate=(0.1, 10.0))
    settings = dataclasses.replace(ALIKE, members=3, events=1, steps=6, rank="votes", diversity=wide)
    run(settings, spy)
    start = sparse.begin(problem(), TRAINING, jax.random.split(jax.random.key(0))[0])
    forks = weak_members.ForkSettings(count=3, steps=6, diversity=wide)
    recipe = sparse.recipe(problem(), TRAINING)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 0)
    states = weak_members.fork(recipe, start.state, mlp.data(), key, forks, learning_rate=0.1).states
    each = np.stack([kernels(jax.tree.map(lambda x, i=i: x[i], states.variables.params)) for i in range(3)])
    votes = np.sum([best(np.abs(w), 26, np.ones(88, bool)) for w in each], axis=0)
    wanted = best(votes, 26, np.ones(88, bool), np.abs(each.mean(0)))
    assert np.array_equal(kernels(spy.runs[0].kept), wanted)
    assert not np.array_equal(wanted, best(np.abs(each.mean(0)), 26, np.ones(88, bool)))
    assert {1, 2, 3} <= set(votes.tolist())


def test_a_member_that_diverges_does_not_poison_the_mean():
    spy = Spy()
    wild = weak_members.Diversity(subset=1.0, learning_rate=(1e-2, 1e36))
    got = run(dataclasses.replace(ALIKE, members=8, diversity=wild), spy)
    assert bool(got.alive)
    for state in (r.state for r in spy.runs):
        assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((state.variables, state.opt_state)))
    drawn, _ = weak_members.draw(
        jax.random.split(jax.random.fold_in(jax.random.fold_in(jax.random.key(0), 2), 0))[0],
        jnp.float32(0.1),
        diversity=wild,
        count=8,
        examples=24,
    )
    assert float(jnp.max(drawn.learning_rate)) > 1e20 > 1 > float(jnp.min(drawn.learning_rate))


def test_every_round_has_the_sparsity_of_the_schedule():
    spy = Spy()
    run(dataclasses.replace(ALIKE, events=7, members=3, diversity=weak_members.Diversity(), outer_momentum=0.6), spy)
    counts = [int(masks.count({n: r.kept[n]["kernel"] for n in ("one", "two")})) for r in spy.runs]
    shares = 0.7 - 0.7 * (1 - np.arange(1, 8) / 7) ** 3
    assert counts == [*(88 - round(88 * s) for s in shares), 26]
    for r in spy.runs:
        assert np.array_equal(kernels(r.state.variables.params) != 0, kernels(r.kept))


def test_progress_is_told_once_a_round_and_in_the_fine_tuning():
    seen = []
    watched = dataclasses.replace(
        TRAINING, watch=lambda state, m: seen.append((int(state.step), float(m["taken"]))), watch_every=3
    )
    run(dataclasses.replace(ALIKE, training=watched))
    assert seen == [(2, 2), (4, 2), (7, 3), (3, 3), (4, 1)]


def test_members_over_eight_devices_are_those_of_one():
    root = pathlib.Path(__file__).resolve().parents[3]
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(root),
    }
    told = subprocess.run(
        [sys.executable, "-m", "tests.gradual_soups"], cwd=root, env=environment, capture_output=True, text=True
    )
    assert told.returncode == 0, told.stderr[-2000:]
    assert told.stdout.split() == ["ok"] * len(gradual_soups.MESHES)
