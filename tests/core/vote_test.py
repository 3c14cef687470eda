import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax.core import trees, vote

# Three voters on four filters and two heads.
BALLOTS = {
    "conv": jnp.array([[1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 0, 0]], bool),
    "head": jnp.array([[1, 0], [0, 1], [0, 1]], bool),
}


def test_support_by_hand():
    got = vote.support(BALLOTS)
    np.testing.assert_allclose(got["conv"], [1, 1 / 3, 1 / 3, 0], rtol=1e-6)
    np.testing.assert_allclose(got["head"], [1 / 3, 2 / 3], rtol=1e-6)
    weighted = vote.support(BALLOTS, jnp.array([1.0, 2.0, 1.0]))
    np.testing.assert_allclose(weighted["conv"], [1, 0.25, 0.5, 0], rtol=1e-6)
    assert weighted["conv"].dtype == jnp.float32


def test_mean_by_hand():
    assert vote.elect(BALLOTS, 2, scope="leaf")["conv"].tolist() == [True, True, False, False]  # the lower index
    ties = {"conv": jnp.array([0.0, 1.0, 2.0, 9.0]), "head": jnp.zeros(2)}
    got = vote.elect(BALLOTS, {"conv": 2, "head": 1}, scope="leaf", tie_break=ties)
    assert got["conv"].tolist() == [True, False, True, False]
    assert got["head"].tolist() == [False, True]
    got = vote.elect(BALLOTS, 2, scope="tree")
    assert got["conv"].tolist() == [True, False, False, False]
    assert got["head"].tolist() == [False, True]
    inside = {"conv": jnp.array([False, True, True, True]), "head": True}
    got = vote.elect(BALLOTS, 2, scope="leaf", within=inside, weights=jnp.array([0.0, 1.0, 1.0]))
    assert got["conv"].tolist() == [False, True, True, False]


@pytest.mark.parametrize(
    ("rule", "conv", "head"),
    [("union", [1, 1, 1, 0], [1, 1]), ("intersection", [1, 0, 0, 0], [0, 0]), ("majority", [1, 0, 0, 0], [0, 1])],
)
def test_other_rules_by_hand(rule, conv, head):
    got = vote.elect(BALLOTS, scope="leaf", rule=rule)
    assert got["conv"].astype(int).tolist() == conv
    assert got["head"].astype(int).tolist() == head
    assert jax.tree.map(jnp.shape, got) == {"conv": (4,), "head": (2,)}
    low = vote.elect(BALLOTS, {"conv": 1, "head": 0}, scope="leaf", rule=rule)
    assert low["conv"].astype(int).tolist() == conv  # a floor that the rule does not pass changes nothing
    floor = vote.elect(BALLOTS, {"conv": 4, "head": 2}, scope="leaf", rule=rule)
    assert all(bool(m.all()) for m in floor.values())


def test_half_is_a_majority_and_weights_count():
    two = {"a": jnp.array([[1, 0], [0, 0]], bool)}
    assert vote.elect(two, scope="tree", rule="majority")["a"].tolist() == [True, False]
    assert vote.elect(two, scope="tree", rule="majority", weights=jnp.array([0.4, 0.6]))["a"].tolist() == [False, False]
    # Members of weight 0 have no say.
    assert vote.elect(two, scope="tree", rule="union", weights=jnp.array([0.0, 1.0]))["a"].tolist() == [False, False]
    only = vote.elect(two, scope="tree", rule="intersection", weights=jnp.array([1.0, 0.0]))
    assert only["a"].tolist() == [True, False]


def test_the_floor_is_per_leaf_or_over_the_tree():
    # The intersection keeps 1 of conv and 0 of head: one in all.
    leaf = vote.elect(BALLOTS, 1, scope="leaf", rule="intersection")
    assert (leaf["conv"].sum(), leaf["head"].sum()) == (1, 1)
    tree = vote.elect(BALLOTS, 1, scope="tree", rule="intersection")
    assert (tree["conv"].sum(), tree["head"].sum()) == (1, 0)
    tree = vote.elect(BALLOTS, 3, scope="tree", rule="intersection")
    assert (tree["conv"].sum(), tree["head"].sum()) == (2, 1)
    inside = {"conv": jnp.array([False, True, True, True]), "head": jnp.array([True, True])}
    union = vote.elect(BALLOTS, scope="tree", rule="union", within=inside)
    assert union["conv"].tolist() == [False, True, True, False]


@hypothesis.given(st.integers(0, 1000), st.integers(1, 5), st.integers(0, 6))
def test_properties(seed, k, keep):
    rng = np.random.default_rng(seed)
    ballots = {"a": jnp.asarray(rng.random((k, 6)) < 0.5)}
    got = vote.elect(ballots, keep, scope="tree")["a"]
    assert int(got.sum()) == keep
    order = rng.permutation(k)
    again = vote.elect({"a": ballots["a"][order]}, keep, scope="tree")["a"]
    assert np.array_equal(got, again)
    votes = np.asarray(ballots["a"]).sum(0)
    if 0 < keep < 6:
        assert votes[np.asarray(got)].min() >= votes[~np.asarray(got)].max()
    sets = {
        r: np.asarray(vote.elect(ballots, scope="leaf", rule=r)["a"]) for r in ("union", "intersection", "majority")
    }
    assert np.array_equal(sets["union"], votes > 0)
    assert np.array_equal(sets["intersection"], votes == k)
    assert np.array_equal(sets["majority"], 2 * votes >= k)


def test_temperature_samples_without_replacement_by_softmax():
    ballots = {"a": jnp.array([[1, 1, 0], [1, 0, 0]], bool)}
    tau = 0.5
    draw = jax.jit(jax.vmap(lambda key: vote.elect(ballots, 1, scope="leaf", key=key, temperature=tau)["a"]))
    picks = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert (picks.sum(1) == 1).all()
    expected = np.exp(np.array([1.0, 0.5, 0.0]) / tau)
    np.testing.assert_allclose(picks.mean(0), expected / expected.sum(), atol=0.03)
    cold = vote.elect(ballots, 2, scope="leaf", key=jax.random.key(1), temperature=0.0)
    assert cold["a"].tolist() == vote.elect(ballots, 2, scope="leaf")["a"].tolist() == [True, True, False]


def test_eager_jit_and_vmap_agree():
    votes = trees.stack([BALLOTS, jax.tree.map(lambda b: b[::-1] ^ True, BALLOTS)])
    one = lambda b, k: vote.elect(b, k, scope="tree")  # noqa: E731
    each = jax.jit(jax.vmap(one))(votes, jnp.array([2, 4]))
    for i, k in enumerate((2, 4)):
        alone = one(jax.tree.map(lambda v, i=i: v[i], votes), k)
        assert jax.tree.all(jax.tree.map(lambda a, b, i=i: bool((a[i] == b).all()), each, alone))
    assert jax.jit(lambda b, t, key: vote.elect(b, 1, scope="leaf", key=key, temperature=t))(
        BALLOTS, 0.0, jax.random.key(0)
    )["head"].tolist() == [False, True]


def test_soup_by_hand():
    members = {"w": jnp.array([[[1.0, 2.0], [jnp.inf, 4.0]], [[3.0, 6.0], [5.0, jnp.nan]]]), "b": jnp.array([1.0, 2.0])}
    plain = vote.soup({"b": members["b"]}, weights=jnp.array([3.0, 1.0]))
    assert float(plain["b"]) == 1.25
    # Masks of filters: one row of booleans for each member, and a scalar for each.
    masks = {
        "w": jnp.array([[[True, True], [False, True]], [[True, False], [False, False]]]),
        "b": jnp.array([True, True]),
    }
    got = vote.soup(members, masks=masks)
    assert got["w"].tolist() == [[2.0, 2.0], [0.0, 4.0]]
    back = {"w": jnp.full((2, 2), 9.0), "b": jnp.float32(9.0)}
    assert vote.soup(members, masks=masks, fallback=back)["w"].tolist() == [[2.0, 2.0], [9.0, 4.0]]
    rows = {"w": jnp.array([[True, False], [True, False]]), "b": jnp.array([False, True])}  # [K, C] against [K, 2, C]
    got = vote.soup(members, masks=rows, weights=jnp.array([1.0, 3.0]), fallback=back)
    assert got["w"].tolist() == [[2.5, 9.0], [jnp.inf, 9.0]]
    assert float(got["b"]) == 2.0
    # Who counts for nothing does so in the slope of the others' weights too.
    holds_nan = {"b": jnp.array([1.0, 3.0, jnp.nan])}
    slope = jax.grad(lambda w: vote.soup(holds_nan, weights=w)["b"])(jnp.array([1.0, 1.0, 0.0]))
    assert slope[:2].tolist() == [-0.5, 0.5]


@hypothesis.given(st.integers(0, 1000), st.integers(1, 4))
def test_soup_against_numpy(seed, k):
    rng = np.random.default_rng(seed)
    x, m = rng.standard_normal((k, 3, 4)).astype(np.float32), rng.random((k, 1, 4)) < 0.6
    w, back = rng.random(k).astype(np.float32) + 0.1, rng.standard_normal((3, 4)).astype(np.float32)
    full = np.broadcast_to(m, x.shape) * w[:, None, None]
    total = full.sum(0)
    expected = np.where(total > 0, (full * x).sum(0) / np.where(total > 0, total, 1), back)
    got = vote.soup({"a": x}, masks={"a": jnp.asarray(m)}, weights=jnp.asarray(w), fallback={"a": back})["a"]
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert np.abs(expected).max() > 0


def test_soup_keeps_types_and_has_gradients():
    low = vote.soup({"a": jnp.ones((3, 2), jnp.bfloat16)}, masks={"a": jnp.array([True, True, False])})
    assert low["a"].dtype == jnp.bfloat16
    grads = jax.grad(lambda x: vote.soup({"a": x}, masks={"a": jnp.array([True, False])})["a"].sum())(jnp.ones((2, 2)))
    assert grads.tolist() == [[1.0, 1.0], [0.0, 0.0]]
    back = jax.grad(
        lambda f: vote.soup({"a": jnp.ones((1, 2))}, masks={"a": jnp.array([[True, False]])}, fallback={"a": f})[
            "a"
        ].sum()
    )
    assert back(jnp.zeros(2)).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: vote.elect(BALLOTS, 1, scope="leaf", rule="loudest"), "unknown rule"),
        (lambda: vote.elect(BALLOTS, 1, scope="forest"), "unknown scope"),
        (lambda: vote.elect(BALLOTS, scope="leaf"), "needs keep"),
        (lambda: vote.elect(BALLOTS, 3, scope="leaf"), "2 entries are eligible"),
        (lambda: vote.elect(BALLOTS, 1, scope="leaf", temperature=1.0), "needs a key"),
        (lambda: vote.elect(BALLOTS, 1, scope="leaf", temperature=-1.0, key=jax.random.key(0)), "not be negative"),
        (lambda: vote.elect(BALLOTS, scope="leaf", rule="union", within={"conv": jnp.array(True)}), "structure"),
        (lambda: vote.support({"a": jnp.ones((2, 3), bool), "b": jnp.ones((3, 3), bool)}), "one member axis"),
        (lambda: vote.support({"a": jnp.ones((2, 3))}), "masks of booleans"),
        (lambda: vote.support({"a": jnp.ones((), bool)}), "one member axis"),
        (lambda: vote.support(BALLOTS, jnp.ones(2)), "one weight for each"),
        (lambda: vote.support(BALLOTS, jnp.array([1.0, -1.0, 1.0])), "not negative"),
        (lambda: vote.support(BALLOTS, jnp.zeros(3)), "not all zero"),
        (lambda: vote.soup({"a": jnp.ones((2, 3), jnp.int32)}), "no mean"),
        (lambda: vote.soup({"a": jnp.ones((2, 3))}, masks={"b": jnp.ones((2, 3), bool)}), "only in masks"),
        (lambda: vote.soup({"a": jnp.ones((2, 3))}, masks={"a": jnp.ones((3, 3), bool)}), "masks lead with 3"),
        (lambda: vote.soup({"a": jnp.ones((2, 3))}, masks={"a": jnp.ones((2, 2), bool)}), "does not broadcast"),
        (lambda: vote.soup({"a": jnp.ones((2, 3))}, fallback={"a": jnp.ones((2, 3))}), "fallback has shape"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
