"""The protocol of the table: what is looked at when, that a row is its method's, that where it runs changes nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import compact
from mvp_jax.core import trees, units
from mvp_jax.experiments import few_shot_job
from mvp_jax.methods import METHODS, few_shot, registry
from mvp_jax.train import population
from tests import mlp
from tests.methods.few_shot import contract_test

STEPS = (0, 2, 5)
DEFAULTS = dataclasses.replace(
    contract_test.DEFAULTS, tuning=dataclasses.replace(contract_test.TUNING, steps=5, looks=STEPS)
)
NEAR = np.array([[0.1, 0.9, 0.5, 0.5], [3.0, 1.0, 2.0, 0.0]])


def template():
    return contract_test.problem()


def bank():
    return template().neighbours


def members():
    data = [mlp.data(24, seed=s) for s in (1, 2)]
    held = [mlp.data(9, seed=s) for s in (1, 2)]
    tested = [mlp.data(9, seed=s + 10) for s in (1, 2)]
    return few_shot_job.Members(
        train=trees.stack(data),
        valid=trees.stack(held),
        test=trees.stack(tested),
        similarity=jnp.asarray(NEAR, jnp.float32),
        key=jax.random.split(jax.random.key(0), 2),
    )


def run(name, given=None, defaults=DEFAULTS, **how):
    return few_shot_job.run_line(registry.line(name), defaults, template(), given or members(), **how)


@pytest.fixture(scope="module")
def outcomes():
    return {
        name: run(name, mapping=mapping)
        for name, mapping in (("mvp", "vmap"), ("ifp", "vmap"), ("ifp_10x", "loop"), ("dense", "loop"))
    }


def test_models_are_judged_at_every_number_of_steps_at_which_there_are_any(outcomes):
    for name in ("mvp", "dense"):
        assert set(outcomes[name].accuracy) == {(at, split) for at in STEPS for split in ("valid", "test")}
    # IFP has no model before its first round.
    assert set(outcomes["ifp"].accuracy) == {(2, "valid"), (2, "test"), (5, "valid"), (5, "test")}
    assert set(outcomes["ifp_10x"].accuracy) == {(5, "valid"), (5, "test")}
    for outcome in outcomes.values():
        for accuracy in outcome.accuracy.values():
            assert accuracy.shape == (2,)
            assert np.all((accuracy >= 0) & (accuracy <= 1))
    assert len({a.tobytes() for a in outcomes["mvp"].accuracy.values()}) > 1


def test_accuracies_are_those_of_the_variables_that_come_back(outcomes):
    given = template()
    for name, outcome in outcomes.items():
        model = given.model if name == "dense" else given.slim
        assert outcome.model.config == model.config
        for i, variables in enumerate(trees.unstack(outcome.pruned.looks[5].variables)):
            for split in ("valid", "test"):
                own = jax.tree.map(lambda leaf, i=i: leaf[i], getattr(members(), split))
                logits = np.asarray(model.apply(variables, own["x"])[0])
                assert outcome.accuracy[5, split][i] == pytest.approx(np.mean(logits.argmax(1) == np.asarray(own["y"])))
        counts = [units.count(u) for u in trees.unstack(dict(outcome.pruned.units))]
        assert counts == [({"a": 8, "b": 6} if name == "dense" else given.sizes)] * 2


@pytest.mark.parametrize("name", ["mvp", "ifp", "ifp_10x"])
def test_a_line_is_its_method(outcomes, name):
    """The table's row of a member is what METHODS gives for that member alone."""
    given, settings = template(), registry.line(name).settings(DEFAULTS)
    for i in range(2):
        own, key = (jax.tree.map(lambda leaf, i=i: leaf[i], t) for t in (members().train, members().key))
        near = bank()._replace(similarity=jnp.asarray(NEAR[i], jnp.float32))
        want = METHODS[name](dataclasses.replace(given, train=own, neighbours=near), settings, key)
        got = jax.tree.map(lambda leaf, i=i: leaf[i], outcomes[name].pruned)
        jax.tree.map(np.testing.assert_array_equal, dict(got.units), dict(want.units))

        def alike(a, b):
            # Fitted heads of features that hardly vary are large, and sums over members are rounded another way.
            np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4 * max(1.0, float(jnp.max(jnp.abs(b)))))

        jax.tree.map(alike, got.variables, want.variables)
        assert tuple(map(int, got.spent)) == tuple(want.spent)


def test_the_methods_see_the_training_images_only():
    """Other images to validate and test change the accuracies, not the models."""
    own = members()
    one, other = (run("mvp", m) for m in (own, own._replace(valid=own.test, test=own.valid)))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, one.pruned, other.pruned)))
    np.testing.assert_array_equal(one.accuracy[5, "valid"], other.accuracy[5, "test"])


@pytest.mark.parametrize(
    ("name", "entry"), [("copy_nearest", (1, 0)), ("copy_farthest", (0, 3)), ("mvp_anchored", (1, 0))]
)
def test_copies_and_anchors_are_of_the_entry_they_name(name, entry):
    """The similarity of each voter reaches the vote: the entry that is copied is the one meant for that member."""
    # An anchor without doubt is sure of all it holds.
    sure = dataclasses.replace(DEFAULTS, vote=dataclasses.replace(DEFAULTS.vote, doubt=0.0))
    outcome = run(name, defaults=sure)
    for group, kept in outcome.pruned.units.items():
        np.testing.assert_array_equal(kept, np.asarray(bank().units[group])[list(entry)])
    assert not np.array_equal(*np.asarray(bank().units["a"])[list(entry)])


def test_rows_say_what_passed_through():
    """15 training examples a target, a batch of 8, four bank entries that are ranked at a third of an example each."""
    few = members()._replace(train=jax.tree.map(lambda leaf: leaf[:, :15], members().train))
    names = [("one", 0), ("two", 0)]
    for name, before in (("mvp", 4 * 15 // 3), ("dense", 0)):
        rows = few_shot_job.rows_of(name, 0.5, names, run(name, few))
        assert {(r["steps"], r["cost_examples"]) for r in rows} == {(at, before + at * 8) for at in STEPS}
        assert {(r["target"], r["seed"], r["method"], r["ratio"]) for r in rows} == {
            ("one", 0, name, 0.5),
            ("two", 0, name, 0.5),
        }
        model = template().model if name == "dense" else template().slim
        params = sum(leaf.size for leaf in jax.tree.leaves(model.init(jax.random.key(0)).params))
        assert {r["params"] for r in rows} == {params}
    # Ten times the budget of the last look.
    rows = few_shot_job.rows_of("ifp_10x", 0.5, names, run("ifp_10x", few))
    assert {(r["steps"], r["cost_examples"]) for r in rows} == {(5, 50 * 8)}


@pytest.mark.parametrize("how", [{"mapping": "map"}, {"mapping": "vmap", "mesh": 2}], ids=str)
@pytest.mark.parametrize("name", ["mvp", "ifp"])
def test_no_mapping_or_number_of_devices_changes_a_line(outcomes, name, how):
    mesh = population.mesh(devices=jax.devices()[:2]) if "mesh" in how else None
    got, expected = run(name, mapping=how["mapping"], mesh=mesh), outcomes[name]
    variables = (o.pruned.looks[5].variables for o in (got, expected))
    for a, b in zip(*map(jax.tree.leaves, variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
        assert np.ptp(b) > 0 or b.size < 3
    jax.tree.map(np.testing.assert_array_equal, dict(got.pruned.units), dict(expected.pruned.units))
    assert set(got.accuracy) == set(expected.accuracy)


def test_slim_looks_are_cuts_of_the_dense_result(outcomes):
    given, pruned = template(), outcomes["mvp"].pruned
    for i in range(2):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], pruned)
        cut = compact.cut(one.variables, given.groups, one.units, sizes=given.sizes)
        jax.tree.map(np.testing.assert_array_equal, cut, one.looks[5].variables)
    assert few_shot.all_kept(given).sizes != given.sizes
