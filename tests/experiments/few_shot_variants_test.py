"""The protocol of the table: who votes, what is looked at when, and that a line is its method."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import train
from mvp_jax.core import trees, units
from mvp_jax.experiments import few_shot_variants
from mvp_jax.methods import METHODS, few_shot
from mvp_jax.methods.few_shot import ifp, mvp, oneshot
from mvp_jax.train import population
from tests import mlp
from tests.methods.few_shot import contract_test

TUNING = contract_test.TUNING
VARIANTS = contract_test.VARIANTS
STEPS = (0, 2, 5)
NEAR = np.array([[0.1, 0.9, 0.5, 0.5], [3.0, 1.0, 2.0, 0.0]])


def test_voters():
    rng = np.random.default_rng(0)
    assert few_shot_variants.voters("nearest", NEAR, 3, rng).tolist() == [[1, 2, 3], [0, 2, 1]]
    assert few_shot_variants.voters("farthest", NEAR, 2, rng).tolist() == [[0, 3], [3, 1]]
    assert few_shot_variants.voters("all", NEAR, 2, rng).tolist() == [[1, 2, 3, 0], [0, 2, 1, 3]]
    drawn = few_shot_variants.voters("random", np.tile(NEAR, (50, 1)), 2, rng)
    assert drawn.shape == (100, 2)
    assert all(len(set(row)) == 2 for row in drawn.tolist())
    assert set(drawn.ravel().tolist()) == {0, 1, 2, 3}
    assert few_shot_variants.voters("nearest", NEAR, 9, rng).shape == (2, 4)
    assert few_shot_variants.voters("learned", NEAR, 1, rng).tolist() == [[0], [0]]


def template():
    return contract_test.problem()


def bank():
    return template().neighbours


def members():
    data = [mlp.data(24, seed=s) for s in (1, 2)]
    held = [mlp.data(9, seed=s) for s in (1, 2)]
    tested = [mlp.data(9, seed=s + 10) for s in (1, 2)]
    return few_shot_variants.Members(
        train=trees.stack(data),
        valid=trees.stack(held),
        test=trees.stack(tested),
        similarity=jnp.asarray(NEAR, jnp.float32),
        key=jax.random.split(jax.random.key(0), 2),
    )


def test_pick_gives_the_entries_with_the_targets_similarity():
    got = few_shot_variants.pick(bank(), jnp.array([2, 0]), jnp.asarray(NEAR[0][[2, 0]], jnp.float32))
    np.testing.assert_allclose(got.similarity, [0.5, 0.1])
    for a, b in zip(
        jax.tree.leaves(got._replace(similarity=0)), jax.tree.leaves(bank()._replace(similarity=0)), strict=True
    ):
        np.testing.assert_array_equal(a, np.asarray(b)[[2, 0]] if np.ndim(b) else b)


@pytest.fixture(scope="module")
def outcomes():
    index = few_shot_variants.voters("nearest", NEAR, 3, np.random.default_rng(0))
    return {
        name: few_shot_variants.run_variant(
            VARIANTS[name],
            template(),
            members(),
            steps=STEPS,
            bank=bank() if VARIANTS[name].voters != "none" else None,
            index=index if VARIANTS[name].voters != "none" else None,
            mapping=mapping,
        )
        for name, mapping in (("mvp", "vmap"), ("ifp", "vmap"), ("ifp_10x", "loop"), ("dense", "loop"))
    }


def test_test_images_are_looked_at_only_at_the_first_and_the_last_step(outcomes):
    validated = {(at, "valid") for at in STEPS}
    for name in ("mvp", "dense"):
        assert set(outcomes[name].accuracy) == validated | {(0, "test"), (5, "test")}
    # IFP has no model before its first round.
    assert set(outcomes["ifp"].accuracy) == {(2, "valid"), (5, "valid"), (5, "test")}
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
        for i, variables in enumerate(trees.unstack(outcome.variables)):
            for split in ("valid", "test"):
                own = jax.tree.map(lambda leaf, i=i: leaf[i], getattr(members(), split))
                logits = np.asarray(model.apply(variables, own["x"])[0])
                assert outcome.accuracy[5, split][i] == pytest.approx(np.mean(logits.argmax(1) == np.asarray(own["y"])))
        counts = [units.count(u) for u in trees.unstack(dict(outcome.units))]
        assert counts == [({"a": 8, "b": 6} if name == "dense" else given.sizes)] * 2


@pytest.mark.parametrize("name", ["mvp", "ifp", "ifp_10x"])
def test_a_line_is_its_method(outcomes, name):
    """Looking in between changes nothing: the table's last step is the method run in one go."""
    variant, given = VARIANTS[name], template()
    for i in range(2):
        own, key = (jax.tree.map(lambda leaf, i=i: leaf[i], t) for t in (members().train, members().key))
        if name.startswith("ifp"):
            settings = ifp.with_budget(variant.settings, 5 * variant.budget)
            assert settings.total_steps == 5 * variant.budget
            want = ifp.search(dataclasses.replace(given, train=own), settings, key)
            variables, kept = want.slim, want.units
        else:
            near = dataclasses.replace(given, train=own, neighbours=bank()._replace(similarity=jnp.asarray(NEAR[i])))
            start = mvp.start(near, variant.settings, jax.random.fold_in(key, 0))
            kept = start.units
            state = train.create(few_shot.prepare(near, start, TUNING), TUNING.tx, jax.random.fold_in(key, 1))
            variables = few_shot.advance(given.slim, own, state, TUNING, 5)[0].variables
        got = trees.unstack(outcomes[name].variables)[i]
        jax.tree.map(np.testing.assert_array_equal, trees.unstack(dict(outcomes[name].units))[i], dict(kept))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), got, variables)


def test_the_methods_see_the_training_images_only():
    """Other images to validate and test change the accuracies, not the models."""
    index = few_shot_variants.voters("nearest", NEAR, 3, np.random.default_rng(0))
    run = [
        few_shot_variants.run_variant(VARIANTS["mvp"], template(), m, steps=STEPS, bank=bank(), index=index)
        for m in (members(), members()._replace(valid=members().test, test=members().valid))
    ]
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, run[0].variables, run[1].variables)))
    np.testing.assert_array_equal(run[0].accuracy[5, "valid"], run[1].accuracy[5, "test"])


@pytest.mark.parametrize(
    ("name", "entry"), [("copy_nearest", (1, 0)), ("copy_farthest", (0, 3)), ("mvp_anchored", (1, 0))]
)
def test_copies_and_anchors_are_of_the_entry_they_name(name, entry):
    """The similarity of each voter reaches the vote: the entry that is copied is the one meant for that member."""
    variant = VARIANTS[name]
    if name == "mvp_anchored":  # sure of all it holds
        variant = dataclasses.replace(variant, settings=dataclasses.replace(variant.settings, doubt=0.0))
    index = few_shot_variants.voters(variant.voters, NEAR, variant.settings.k, np.random.default_rng(0))
    outcome = few_shot_variants.run_variant(variant, template(), members(), steps=(0, 2), bank=bank(), index=index)
    for group, kept in outcome.units.items():
        np.testing.assert_array_equal(kept, np.asarray(bank().units[group])[list(entry)])
    assert not np.array_equal(*np.asarray(bank().units["a"])[list(entry)])


def test_costs_count_what_passes_through():
    assert few_shot_variants.examples_used(VARIANTS["mvp"], 50, 15, 32) == 50 * 15
    assert few_shot_variants.examples_used(VARIANTS["ifp_10x"], 50, 99, 32) == 500 * 32
    # Two weak members of two steps, each with half of the examples; the model learned for all tasks is nobody's cost.
    assert few_shot_variants.examples_used(VARIANTS["metasoup"], 50, 15, 32) == 2 * 2 * 8 + 50 * 15
    assert few_shot_variants.examples_used(VARIANTS["reptile_iht"], 50, 15, 32) == 50 * 15


def test_the_table_is_what_its_names_say():
    assert VARIANTS["copy_nearest"].settings.k == 1
    assert VARIANTS["copy_nearest"].settings.outside == "mean"
    assert [VARIANTS[f"copy_{w}"].voters for w in ("nearest", "random", "farthest")] == [
        "nearest",
        "random",
        "farthest",
    ]
    assert VARIANTS["metasoup"].voters == "nearest"
    assert VARIANTS["reptile_iht"].voters == "learned"
    assert VARIANTS["reptile_iht"].settings == VARIANTS["copy_nearest"].settings
    assert VARIANTS["vote_universal"].voters == "all"
    assert VARIANTS["vote_universal"].settings.k >= 10**6
    assert VARIANTS["vote_pretrained_weights"].settings.weights == "pretrained"
    assert VARIANTS["own_mask_mean_weights"].settings.mask == "own"
    assert VARIANTS["mean_weights_no_vote"].settings.mask == "mean"
    assert VARIANTS["mvp_anchored"].settings.anchor
    assert not VARIANTS["mvp"].settings.anchor
    assert VARIANTS["mvp_weighted"].settings.ballots == "similarity"
    assert VARIANTS["random_units"].settings.score == "random"
    assert VARIANTS["oneshot_taylor"].settings.score == "taylor"
    assert VARIANTS["dense"].dense
    assert VARIANTS["ifp_10x"].budget == 10
    assert all(v.settings.tuning.learning_rate == TUNING.learning_rate for v in VARIANTS.values())
    assert isinstance(VARIANTS["dense"].settings, oneshot.Settings)
    assert METHODS["ifp"] is ifp.ifp


@pytest.mark.parametrize("how", [{"mapping": "map"}, {"mapping": "vmap", "mesh": 2}], ids=str)
@pytest.mark.parametrize("name", ["mvp", "ifp"])
def test_no_mapping_or_number_of_devices_changes_a_line(outcomes, name, how):
    index = few_shot_variants.voters("nearest", NEAR, 3, np.random.default_rng(0))
    voting = VARIANTS[name].voters != "none"
    got = few_shot_variants.run_variant(
        VARIANTS[name], template(), members(), steps=STEPS, bank=bank() if voting else None,
        index=index if voting else None, mapping=how["mapping"],
        mesh=population.mesh(devices=jax.devices()[:2]) if "mesh" in how else None,
    )  # fmt: skip
    expected = outcomes[name]
    for a, b in zip(jax.tree.leaves(got.variables), jax.tree.leaves(expected.variables), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
        assert np.ptp(b) > 0 or b.size < 3
    jax.tree.map(np.testing.assert_array_equal, dict(got.units), dict(expected.units))
    assert set(got.accuracy) == set(expected.accuracy)
