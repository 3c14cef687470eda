"""Meta-Vote Pruning against ballots counted by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import trees, units
from mvp_jax.core.types import Variables
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import mvp
from tests import mlp

# Four units a group, two are kept; three neighbours, the second the nearest. In `a` unit 1 has three votes, unit 0 two,
# unit 3 one; in `b` unit 0 has one vote, unit 2 three, unit 3 two.
BALLOTS = {
    "a": [[1, 1, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]],
    "b": [[1, 0, 1, 0], [0, 0, 1, 1], [0, 0, 1, 1]],
}
SIMILARITY = [-1.0, -0.5, -1.5]
SLOTS = {"one/kernel": {1: "a"}, "one/bias": {0: "a"}, "two/kernel": {0: "a", 1: "b"}, "two/bias": {0: "b"}}
KEY = jax.random.key(0)


def neighbours(ballots=BALLOTS, near=SIMILARITY, saliency=None, seed=10):
    """Entries whose weights are all different numbers, zero where their units are pruned, heads of other classes."""
    kept = {name: jnp.asarray(b, bool) for name, b in ballots.items()}
    model, members = mlp.mlp(4, 4, 7), []
    for j in range(len(near)):
        params = mlp.variables(seed + j, 4, 4, 7).params
        mask = units.expand({n: u[j] for n, u in kept.items()}, model.groups, params)
        members.append(jax.tree.map(lambda p, m: jnp.where(m, p, 0.0), params, mask))
    if saliency is None:
        saliency = {n: np.ones(np.shape(b)) for n, b in ballots.items()}
    saliency = {n: jnp.asarray(s, jnp.float32) for n, s in saliency.items()}
    return few_shot.Neighbours(kept, Variables(trees.stack(members), {}), saliency, jnp.asarray(near, jnp.float32))


def problem(voters, keep=2):
    model = mlp.mlp(4, 4)
    return dataclasses.replace(
        few_shot.problem(model, mlp.variables(99, 4, 4), mlp.data(), ratio=0.5, neighbours=voters),
        keep=(("a", keep), ("b", keep)),
    )


def decide(voters, keep=2, key=KEY, slots=mvp.VOTE, **settings):
    settings = {"k": len(voters.similarity)} | settings
    return slots(problem(voters, keep), mvp.Settings(**settings), key)


ANCHORED = mvp.MetaVote(elect=mvp.anchored, weights=mvp.anchor)


def chosen(start):
    return {name: np.flatnonzero(u).tolist() for name, u in start.units.items()}


def souped(voters, order, weights, *, outside="mean"):
    """Every entry of the parameters on its own: the mean over those that kept all of its units, else pre-trained."""
    pretrained = trees.flatten(problem(voters).variables.params)
    members = trees.flatten(voters.variables.params)
    out = {}
    for path, leaf in pretrained.items():
        leaf = np.array(leaf, np.float64)
        if path not in SLOTS:
            if outside == "mean" and "head" not in path:
                leaf = sum(w * np.asarray(members[path][j]) for w, j in zip(weights, order, strict=True)) / sum(weights)
            out[path] = leaf
            continue
        for at in np.ndindex(leaf.shape):
            who = [
                (w, j)
                for w, j in zip(weights, order, strict=True)
                if all(voters.units[g][j][at[axis]] for axis, g in SLOTS[path].items())
            ]
            if who:
                leaf[at] = sum(w * float(members[path][j][at]) for w, j in who) / sum(w for w, _ in who)
        out[path] = leaf
    return out


def assert_params(start, expected):
    got = trees.flatten(start.variables.params)
    assert got.keys() == expected.keys()
    for path, want in expected.items():
        np.testing.assert_allclose(got[path], want, rtol=1e-5, atol=1e-6, err_msg=path)


def test_units_of_most_votes_are_kept_and_start_from_the_mean_of_those_that_kept_them():
    voters = neighbours()
    start = decide(voters)
    assert chosen(start) == {"a": [0, 1], "b": [2, 3]}
    expected = souped(voters, [0, 1, 2], [1, 1, 1])
    assert_params(start, expected)
    # A few of them once more, by name.
    own, members = problem(voters).variables.params, voters.variables.params
    got = start.variables.params
    one, two = np.asarray(members["one"]["bias"]), np.asarray(members["two"]["kernel"])
    np.testing.assert_allclose(got["one"]["bias"][0], (one[0, 0] + one[1, 0]) / 2, rtol=1e-5)  # kept by two
    np.testing.assert_allclose(got["one"]["bias"][1], one[:, 1].mean(), rtol=1e-5)  # kept by all
    np.testing.assert_allclose(got["two"]["kernel"][0, 3], two[1, 0, 3], rtol=1e-5)  # only one kept both sides
    assert float(got["two"]["kernel"][3, 0]) == float(own["two"]["kernel"][3, 0])  # two kept a side, none both
    assert float(got["one"]["bias"][2]) == float(own["one"]["bias"][2])  # nobody kept it
    np.testing.assert_allclose(got["offset"], members["offset"].mean(0), rtol=1e-5)  # in no group
    np.testing.assert_array_equal(got["head"]["kernel"], own["head"]["kernel"])
    assert len({round(float(v), 6) for v in (*one[:, 1], own["one"]["bias"][1])}) == 4


def test_parameters_of_no_group_are_averaged_unless_their_pretrained_values_are_asked_for():
    voters = neighbours()
    start = decide(voters)
    assert_params(start, souped(voters, [0, 1, 2], [1, 1, 1], outside="mean"))
    offset, own = np.asarray(voters.variables.params["offset"]).mean(0), problem(voters).variables.params
    np.testing.assert_allclose(start.variables.params["offset"], offset, rtol=1e-5)
    assert not np.allclose(offset, own["offset"])
    plain = decide(voters, outside="pretrained")
    assert_params(plain, souped(voters, [0, 1, 2], [1, 1, 1], outside="pretrained"))
    np.testing.assert_array_equal(plain.variables.params["offset"], own["offset"])
    assert chosen(plain) == chosen(start)


def test_pretrained_weights_and_the_vote_alone():
    voters = neighbours()
    start = decide(voters, slots=mvp.MetaVote(weights=mvp.pretrained))
    assert chosen(start) == {"a": [0, 1], "b": [2, 3]}
    own = problem(voters).variables
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, start.variables, own)))


def test_only_the_k_most_similar_vote():
    voters = neighbours()
    two = decide(voters, k=2)
    assert chosen(two) == {"a": [0, 1], "b": [0, 2]}  # in b, 0 and 3 have a vote each: the lower index
    assert_params(two, souped(voters, [1, 0], [1, 1]))
    near = mvp.nearest(voters, 3, KEY)
    np.testing.assert_allclose(near.similarity, [-0.5, -1.0, -1.5])
    np.testing.assert_array_equal(near.units["b"], np.asarray(BALLOTS["b"], bool)[[1, 0, 2]])


def test_one_neighbour_with_outside_mean_is_a_copy_of_the_entry():
    voters = neighbours()
    start = decide(voters, slots=mvp.COPY)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, start, decide(voters, k=1, outside="mean"))))
    assert chosen(start) == {"a": [0, 1], "b": [2, 3]}
    entry = jax.tree.map(lambda leaf: leaf[1], voters.variables.params)
    masks = units.expand(start.units, mlp.mlp(4, 4).groups, problem(voters).variables.params)
    own = problem(voters).variables.params
    for name in ("offset", "one", "two"):
        got = jax.tree.map(lambda p, m: np.where(m, p, 0.0), start.variables.params[name], masks[name])
        jax.tree.map(np.testing.assert_array_equal, got, entry[name])
        assert any(np.abs(np.asarray(v)).max() > 0.1 for v in jax.tree.leaves(got))
    np.testing.assert_array_equal(start.variables.params["head"]["kernel"], own["head"]["kernel"])


def test_ties_go_to_the_higher_mean_saliency_each_scaled_to_mean_one_then_to_the_lower_index():
    ballots = {"a": [[1, 1, 0, 0], [0, 0, 1, 1]], "b": [[1, 1, 0, 0], [0, 0, 1, 1]]}
    # In `a` the second's are a hundred times as large, yet count no more: scaled means .5, 1.2, .8, 1.5.
    saliency = {
        "a": [[0.5, 2.0, 0.1, 1.4], [50.0, 40.0, 150.0, 160.0]],
        "b": [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]],
    }
    voters = neighbours(ballots, [-1.0, -2.0], saliency)
    assert chosen(decide(voters)) == {"a": [1, 3], "b": [0, 1]}
    unscaled = np.mean(saliency["a"], 0)
    assert sorted(np.argsort(-unscaled)[:2]) == [2, 3]


def test_ballots_weighted_by_similarity():
    ballots = {"a": [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], "b": [[0, 1, 1, 0], [1, 0, 0, 1], [0, 1, 1, 0]]}
    voters = neighbours(ballots)
    assert chosen(decide(voters)) == {"a": [2, 3], "b": [1, 2]}  # two against one
    sharp = decide(voters, slots=mvp.MetaVote(weigh=mvp.by_similarity), similarity_temperature=0.1)
    assert chosen(sharp) == {"a": [0, 1], "b": [0, 3]}  # the nearest outweighs both
    w = np.exp(np.array([-0.5, -1.0, -1.5]) / 0.1)
    assert_params(sharp, souped(voters, [1, 0, 2], w / w.sum()))
    flat = decide(voters, slots=mvp.MetaVote(weigh=mvp.by_similarity), similarity_temperature=100.0)
    assert chosen(flat) == {"a": [2, 3], "b": [1, 2]}


def test_without_a_temperature_the_key_does_not_count():
    voters = neighbours()
    a, b = (decide(voters, key=jax.random.key(s)) for s in (0, 1))
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, a, b)))


def test_with_a_temperature_units_are_sampled_with_softmax_odds():
    voters, tau = neighbours(), 0.5
    own, settings = problem(voters, keep=1), mvp.Settings(k=3, temperature=tau)
    sampled = mvp.MetaVote(weights=mvp.pretrained)
    draws = jax.vmap(lambda key: sampled(own, settings, key).units)(jax.random.split(jax.random.key(3), 2000))
    for name, ballots in BALLOTS.items():
        assert np.all(np.sum(draws[name], 1) == 1)
        h = np.mean(ballots, 0)
        odds = np.exp(h / tau) / np.exp(h / tau).sum()
        # Four standard deviations of a frequency of 2000 draws.
        np.testing.assert_allclose(np.mean(draws[name], 0), odds, atol=4 * (0.25 / 2000) ** 0.5)
        assert np.ptp(odds) > 0.2
    again = sampled(own, settings, KEY).units, sampled(own, settings, KEY).units
    jax.tree.map(np.testing.assert_array_equal, *again)


@pytest.mark.parametrize("doubt", [0.0, 0.5, 1.0])
def test_an_anchored_vote_keeps_what_the_nearest_is_sure_of(doubt):
    saliency = {"a": [[1, 1, 1, 1], [1, 5, 1, 1], [1, 1, 1, 1]], "b": [[1, 1, 1, 1], [1, 1, 4, 3], [1, 1, 1, 1]]}
    ballots = {"a": [[0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]], "b": [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]}
    voters = neighbours(ballots, saliency=saliency)
    start = decide(voters, slots=ANCHORED, doubt=doubt)
    # The anchor holds 0, 1 in a (1 the more salient) and 2, 3 in b (2 the more salient); the others the opposite.
    expected = {
        0.0: {"a": [0, 1], "b": [2, 3]},
        0.5: {"a": [1, 2], "b": [0, 2]},  # half of two may be outvoted
        1.0: {"a": [2, 3], "b": [0, 1]},
    }[doubt]
    assert chosen(start) == expected
    anchor = jax.tree.map(lambda leaf: leaf[1], voters.variables.params)
    kept = {n: np.asarray(u[1]) for n, u in voters.units.items()}
    got, own = start.variables.params, problem(voters).variables.params
    np.testing.assert_array_equal(got["one"]["kernel"][:, kept["a"]], anchor["one"]["kernel"][:, kept["a"]])
    np.testing.assert_array_equal(
        np.asarray(got["two"]["kernel"])[kept["a"]][:, kept["b"]],
        np.asarray(anchor["two"]["kernel"])[kept["a"]][:, kept["b"]],
    )
    # What the anchor lacks comes from the others, or where none has it from the pre-trained weights.
    others = np.asarray(voters.variables.params["two"]["bias"])[[0, 2]]
    np.testing.assert_allclose(got["two"]["bias"][:2], others.mean(0)[:2], rtol=1e-5)
    assert float(got["two"]["kernel"][0, 0]) == float(own["two"]["kernel"][0, 0])
    np.testing.assert_array_equal(got["head"]["kernel"], own["head"]["kernel"])


def test_masks_of_the_controls_come_from_the_target_or_from_the_mean_weights():
    voters = neighbours()
    by_norm = decide(voters, slots=mvp.MetaVote(elect=mvp.of_the_mean))
    mean = jax.tree.map(lambda leaf: np.asarray(leaf).mean(0), dict(voters.variables.params))
    expected = {}
    for group, layer in (("a", "one"), ("b", "two")):
        norm = (mean[layer]["kernel"] ** 2).sum(0) + mean[layer]["bias"] ** 2
        expected[group] = sorted(np.argsort(-norm)[:2].tolist())
    assert chosen(by_norm) == expected
    assert_params(by_norm, souped(voters, [0, 1, 2], [1, 1, 1]))
    own = decide(voters, slots=mvp.MetaVote(elect=mvp.own), score="magnitude")
    p = problem(voters).variables.params
    for group, layer in (("a", "one"), ("b", "two")):
        norm = np.sum(np.asarray(p[layer]["kernel"]) ** 2, 0) + np.asarray(p[layer]["bias"]) ** 2
        assert chosen(own)[group] == sorted(np.argsort(-norm)[:2].tolist())
    assert_params(own, souped(voters, [0, 1, 2], [1, 1, 1]))
    assert len({str(chosen(s)) for s in (by_norm, own, decide(voters))}) == 3


def test_a_new_temperature_or_doubt_compiles_nothing():
    voters = neighbours()
    decide(voters, temperature=0.3, key=KEY)
    decide(voters, slots=ANCHORED, doubt=0.5)
    compiled = mvp._decide._cache_size()
    decide(voters, temperature=0.7, key=jax.random.key(1))
    decide(voters, slots=ANCHORED, doubt=0.25)
    assert mvp._decide._cache_size() == compiled


def test_who_votes():
    voters = neighbours()
    for slot, k, expected in (
        (mvp.nearest, 2, [-0.5, -1.0]),
        (mvp.farthest, 2, [-1.0, -1.5]),
        (mvp.farthest, 1, [-1.5]),
        (mvp.everyone, 1, [-0.5, -1.0, -1.5]),
        (mvp.random, 3, [-0.5, -1.0, -1.5]),
    ):
        got = slot(voters, k, KEY)
        np.testing.assert_allclose(got.similarity, expected)
        for row, near in zip(np.asarray(got.units["b"]), expected, strict=True):
            np.testing.assert_array_equal(row, np.asarray(BALLOTS["b"], bool)[SIMILARITY.index(near)])
    drawn = jax.vmap(lambda key: mvp.random(voters, 2, key).similarity)(jax.random.split(KEY, 60))
    assert all(a > b for a, b in drawn.tolist())  # distinct, the nearest first
    assert set(np.asarray(drawn).ravel().tolist()) == set(SIMILARITY)


def test_bad_settings_and_problems_are_refused():
    for settings, message in (
        ({"k": 0}, "k must be >= 1, got 0"),
        ({"temperature": -1.0}, "temperature must be >= 0"),
        ({"similarity_temperature": 0.0}, "similarity_temperature > 0"),
        ({"doubt": 1.5}, r"share in \[0, 1\], got 1.5"),
        ({"rounds": -1}, "rounds must be >= 0 and start_ratio in"),
        ({"start_ratio": 1.0}, "rounds must be >= 0 and start_ratio in"),
        ({"outside": "none"}, "outside must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            mvp.Settings(**settings)
    voters = neighbours()
    with pytest.raises(ValueError, match="votes over neighbours, but the problem has none"):
        mvp.VOTE(dataclasses.replace(problem(voters), neighbours=None), mvp.Settings(), KEY)
    with pytest.raises(ValueError, match="an anchored vote needs at least two neighbours"):
        decide(voters, slots=ANCHORED, k=1)
    with pytest.raises(ValueError, match=r"ballots are for groups \['a', 'c'\]"):
        decide(voters._replace(units={"a": voters.units["a"], "c": voters.units["b"]}))
