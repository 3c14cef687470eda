"""Selection over several axes, in every precision, and of more entries than int32 counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import counts, prune


def test_runs_over_several_axes_are_those_of_the_flattened_matrix():
    x = jax.random.normal(jax.random.key(0), (5, 6, 2))
    got = np.asarray(prune.n_of_m({"o": x}, 2, 4, axis={"o": (1, 2)})["o"])
    flat = np.asarray(x).reshape(5, 12)
    expected = np.zeros(flat.shape, bool)
    for row, kept in zip(flat, expected, strict=True):
        for start in range(0, 12, 4):
            kept[start + np.argsort(-row[start : start + 4])[:2]] = True
    assert np.array_equal(got.reshape(5, 12), expected)
    # Each of the axes alone gives another answer, and the axes in the other order a third.
    assert not np.array_equal(got, prune.n_of_m(x[:, :4], 2, 4, axis=1)[0])
    turned = np.asarray(prune.n_of_m(x, 2, 4, axis=(2, 1)))
    again = np.asarray(prune.n_of_m(np.asarray(x).transpose(0, 2, 1).reshape(5, 12), 2, 4, axis=1))
    assert np.array_equal(turned.transpose(0, 2, 1).reshape(5, 12), again)
    assert not np.array_equal(turned, got)
    with pytest.raises(ValueError, match=r"axis \(0, 1\) of 'o', shape \(5, 6, 2\), does not divide into runs of 4"):
        prune.n_of_m({"o": x}, 2, 4, axis={"o": (0, 1)})


def test_scores_of_every_dtype_are_ranked_by_value():
    assert prune.across_tree(np.array([-128, 127, 5], np.int8), 2).tolist() == [False, True, True]
    with jax.enable_x64(True):
        # In float32 all three are 1.
        x = {"a": jnp.array([1.0, 1 + 1e-12]), "b": jnp.array([1 + 2e-12], jnp.float64)}
        assert x["a"].dtype == jnp.float64
        assert jax.tree.map(lambda m: m.tolist(), prune.across_tree(x, 1)) == {"a": [False, False], "b": [True]}
        assert prune.by_leaf(x, {"a": 1, "b": 0})["a"].tolist() == [False, True]
        odd = jnp.array([jnp.nan, -jnp.inf, -0.0, 0.0, 5e-324, jnp.inf], jnp.float64)
        for k, kept in ((1, [5]), (2, [4, 5]), (3, [2, 4, 5]), (4, [2, 3, 4, 5]), (5, [1, 2, 3, 4, 5])):
            assert np.flatnonzero(prune.across_tree(odd, k)).tolist() == kept
        mixed = {"a": jnp.array([1.0, 3.0], jnp.float32), "b": jnp.array([2.0], jnp.float64)}
        assert jax.tree.map(lambda m: m.tolist(), prune.across_tree(mixed, 2)) == {"a": [False, True], "b": [True]}


def test_large_counts_are_words_of_either_form():
    rng = np.random.default_rng(0)
    x = {k: rng.integers(0, 99, 70_000).astype(np.float32) for k in "ab"}
    plain = prune.across_tree(x, 100_000)
    assert 0 < int(np.sum(plain["a"])) < 70_000
    for keep in (counts.words(100_000), counts.words(jnp.int32(100_000))):
        for method in ("bisection", "sampling", "auto"):
            got = prune.across_tree(x, keep, method=method)
            assert all(np.array_equal(got[k], plain[k]) for k in x)
    got = prune.by_leaf(x, {"a": counts.words(65_537), "b": 3})
    assert [int(np.sum(m)) for m in got.values()] == [65_537, 3]
    with pytest.raises(ValueError, match="keep is 3000000000, but 140000 entries are eligible"):
        prune.across_tree(x, 3_000_000_000)


def test_a_tree_of_billions_is_selected_from():
    # Traced only: the shapes of a model of 3.6e9 weights, and a count above 2^31.
    tree = {k: jax.ShapeDtypeStruct((60_000, 30_000), jnp.bfloat16) for k in "ab"}
    got = jax.eval_shape(lambda t: prune.across_tree(t, 3_000_000_000), tree)
    assert got["a"].shape == (60_000, 30_000)
    assert prune.uniform(tree, 0.5) == {"a": 900_000_000, "b": 900_000_000}
    with pytest.raises(ValueError, match=r"fewer than 2\^32 of one array"):
        jax.eval_shape(lambda x: prune.across_tree(x, 5), jax.ShapeDtypeStruct((1 << 17, 1 << 16), jnp.bfloat16))
