"""Selection against a NumPy sort, in every mode it promises to work in."""

import functools
import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax.sharding import PartitionSpec as P

from mvp_jax.core import prune, topk, trees

METHODS = ("auto", "sampling", "bisection")
SPECIAL = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 3e-45, 1e-38, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 3.4e38, 1.0000001], np.float32
)


def oracle(scores, keep, within=None, ties=None):
    """Flat NumPy selection by (not nan, score, tie, lower index), in float64 so that denormals keep their order."""
    s = np.asarray(scores, np.float64).ravel()
    t = np.zeros_like(s) if ties is None else np.asarray(ties, np.float64).ravel()
    w = np.ones(s.shape, bool) if within is None else np.broadcast_to(within, np.shape(scores)).ravel()
    plain = [np.where(np.isnan(x), 0.0, x) for x in (s, t)]
    order = np.lexsort([np.arange(s.size), -plain[1], np.isnan(t), -plain[0], np.isnan(s), ~w])
    out = np.zeros(s.shape, bool)
    out[order[:keep]] = True
    return out.reshape(np.shape(scores))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def across_oracle(tree, keep, within=None, ties=None):
    w = None if within is None else flat(jax.tree.map(np.broadcast_to, within, jax.tree.map(np.shape, tree)))
    return oracle(flat(tree), keep, w, None if ties is None else flat(ties))


def awkward(seed, n):
    """Few distinct values, among them everything that is special about floats."""
    rng = np.random.default_rng(seed)
    normal = np.round(rng.standard_normal(n), 1).astype(np.float32)
    return np.where(rng.random(n) < 0.3, rng.choice(SPECIAL, n), normal).astype(np.float32)


def tree_of(x):
    third = len(x) // 3
    return {"b": x[third : 2 * third], "a": (x[:third].reshape(1, -1), x[2 * third :])}


def same_bits(masks, expected):
    assert np.array_equal(flat(masks), np.ravel(expected))


# ------------------------------------------------------------------------------------------------------------ counts


@pytest.mark.parametrize(
    ("n", "sparsity", "keep"),
    [(10, 0.25, 8), (10, 0.35, 6), (1, 0.5, 1), (3, 0.5, 1), (10, 0.0, 10), (84_000_001, 0.9, 8_400_000), (0, 0.5, 0)],
)
def test_keep_count_rounds_what_is_removed_half_to_even(n, sparsity, keep):
    assert prune.keep_count(n, sparsity) == keep


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, float("nan")])
def test_sparsity_outside_the_range_is_refused(sparsity):
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        prune.keep_count(10, sparsity)
    with pytest.raises(ValueError, match=r"must lie in \[0, 1\)"):
        prune.keep_counts({"a": 4}, sparsity)


def test_keep_counts_has_a_floor():
    assert prune.keep_counts({"a": 16, "b": 2, "c": 1}, 0.9) == {"a": 2, "b": 1, "c": 1}
    assert prune.keep_counts({"a": 16, "b": 2, "c": 1}, 0.9, min_units=3) == {"a": 3, "b": 2, "c": 1}


def test_uniform_counts_eligible_entries():
    params = {"a": np.zeros((4, 5)), "b": np.zeros(7), "c": np.zeros((2, 3))}
    within = {"a": np.ones((1, 5), bool), "b": False, "c": np.array([[True, False, True]])}
    assert prune.uniform(params, 0.5, within=within) == {"a": 10, "b": 0, "c": 2}


@hypothesis.given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6), st.floats(0.0, 0.99)
)
def test_erdos_renyi_kernel_is_exact_in_total_and_follows_the_law(shapes, sparsity):
    params = [np.zeros(s) for s in shapes]
    counts = prune.erdos_renyi_kernel(params, sparsity)
    sizes = [p.size for p in params]
    assert sum(counts) == prune.keep_count(sum(sizes), sparsity)
    assert all(0 <= k <= n for k, n in zip(counts, sizes, strict=True))
    # One epsilon for all: every leaf that is not full has density / raw equal to that of the others, up to rounding.
    low, high = 0.0, np.inf
    for (a, b), k in zip(shapes, counts, strict=True):
        if k < a * b:
            low, high = max(low, (k - 1) / (a + b)), min(high, (k + 1) / (a + b))
    assert low <= high


def test_count_nonfinite():
    assert int(prune.count_nonfinite({"a": jnp.array([jnp.nan, 1.0]), "b": jnp.array([jnp.inf])})) == 2


# --------------------------------------------------------------------------------------------------------- selection


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("keep", [0, 1, 2, 150, 298, 299, 300])
def test_across_tree_equals_a_sort(method, keep):
    tree = tree_of(awkward(keep, 300))
    masks = prune.across_tree(tree, keep, method=method)
    same_bits(masks, across_oracle(tree, keep))
    assert flat(masks).sum() == keep
    assert jax.tree.map(np.shape, masks) == jax.tree.map(np.shape, tree)


@pytest.mark.parametrize("method", ["auto", "bisection"])
def test_large_leaves_equal_a_sort(method):
    """Sizes at and around whole blocks of the tie search, with a threshold shared by thousands."""
    rng = np.random.default_rng(0)
    sizes = (1024, 1023, 1, 2049, 5000, 0, 30_000)
    tree = [np.round(rng.standard_normal(n), 1).astype(np.float32) for n in sizes]
    for keep in (7, 900, 4000, sum(sizes) - 1):
        masks = prune.across_tree(tree, keep, method=method)
        same_bits(masks, across_oracle(tree, keep))
        chosen = flat(tree)[flat(masks)]
        if keep in (900, 4000):  # the threshold is shared by kept and removed entries
            assert np.sum(flat(tree) == chosen.min()) > np.sum(chosen == chosen.min()) > 10
    if method == "auto":  # sampling; bisection takes no other path for leaves that are large
        counts = [n // 3 for n in sizes]
        for x, k, m in zip(tree, counts, prune.by_leaf(tree, counts, method="sampling"), strict=True):
            assert np.array_equal(m, oracle(x, k))


def test_the_automatic_choice_goes_by_size():
    small, large = np.zeros(10, np.float32), jax.ShapeDtypeStruct((topk._MIDDLE,), np.float32)
    texts = [str(jax.make_jaxpr(lambda x: prune.across_tree(x, 3))(x)) for x in (small, large)]
    # Only sampling sorts, a sample of the entries.
    assert "sort" not in texts[0]
    assert ("sort" in texts[1]) == (jax.default_backend() == "cpu")


@hypothesis.given(st.integers(0, 10_000), st.sampled_from((3, 40)), st.data())
def test_within_and_tie_break_equal_a_sort(seed, n, data):
    rng = np.random.default_rng(seed)
    tree, ties = tree_of(awkward(seed, n)), tree_of(awkward(seed + 1, n))
    within = tree_of(rng.random(n) < 0.7)
    keep = data.draw(st.integers(0, int(flat(within).sum())))
    method = data.draw(st.sampled_from(METHODS))
    masks = prune.across_tree(tree, keep, within=within, tie_break=ties, method=method)
    same_bits(masks, across_oracle(tree, keep, within, ties))
    assert not (flat(masks) & ~flat(within)).any()


@hypothesis.given(st.integers(0, 10_000), st.sampled_from((1, 6, 13)))
def test_selection_is_monotone_and_ignores_the_order_of_distinct_scores(seed, n):
    x = np.random.default_rng(seed).permutation(n).astype(np.float32)
    chosen = [np.asarray(prune.by_leaf(x, k)) for k in range(n + 1)]
    for k, (less, more) in enumerate(itertools.pairwise(chosen)):
        assert less.sum() == k
        assert not (less & ~more).any()
    assert np.array_equal(np.asarray(prune.by_leaf(x[::-1].copy(), n // 2))[::-1], chosen[n // 2])


@pytest.mark.parametrize("method", METHODS)
def test_by_leaf_with_a_count_for_each(method):
    rng = np.random.default_rng(3)
    tree = {f"g{i}": awkward(i, n) for i, n in enumerate((1, 5, 16, 33))}
    ties = {k: rng.standard_normal(x.shape).astype(np.float32) for k, x in tree.items()}
    within = {k: np.arange(x.size) % 3 > 0 if x.size > 1 else np.array(True) for k, x in tree.items()}
    counts = {"g0": 0, "g1": 3, "g2": 4, "g3": 22}
    masks = prune.by_leaf(tree, counts, within=within, tie_break=ties, method=method)
    for k, x in tree.items():
        assert np.array_equal(masks[k], oracle(x, counts[k], within[k], ties[k])), k


def test_small_leaves_by_sampling():
    tree = [awkward(i, 10) for i in range(3)]
    for x, m in zip(tree, prune.by_leaf(tree, 4, method="sampling"), strict=True):
        assert np.array_equal(m, oracle(x, 4))


def test_ties_go_to_the_lower_index_and_zeros_are_one_value():
    assert np.array_equal(prune.by_leaf(np.array([-0.0, 0.0, -0.0, 0.0], np.float32), 2), [True, True, False, False])
    same_bits(prune.across_tree({"b": np.zeros(2), "a": np.zeros(1)}, 2), [True, True, False])
    denormal = np.array([0.0, 1e-45, 3e-45], np.float32)
    assert np.array_equal(prune.by_leaf(denormal, 1), [False, False, True])
    assert np.array_equal(prune.by_leaf(denormal, 2), [False, True, True])


def test_nan_ranks_lowest_whatever_its_sign():
    x = np.array([np.nan, -np.inf, -np.nan, 1.0], np.float32)
    assert np.array_equal(prune.by_leaf(x, 2), [False, True, False, True])
    assert np.array_equal(prune.by_leaf(x, 3), [True, True, False, True])


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.int8, jnp.bool_])
def test_other_types(dtype):
    x = jnp.asarray([1, 0, 3, 2, 0], dtype)
    assert np.array_equal(prune.by_leaf(x, 2), oracle(np.asarray(x, np.float32), 2))


def test_a_python_false_leaves_the_leaf_out():
    params = {"head": np.ones(3, np.float32), "kernel": np.arange(4, dtype=np.float32)}
    masks = prune.across_tree(params, 3, within=trees.select(params, ["kernel"]))
    assert masks["head"].shape == ()
    assert not masks["head"]
    assert masks["kernel"].tolist() == [False, True, True, True]
    arrays = jax.tree.map(np.asarray, trees.select(params, ["kernel"]))
    again = prune.across_tree(params, 3, within=arrays)
    assert again["head"].tolist() == [False] * 3
    assert np.array_equal(again["kernel"], masks["kernel"])


def test_empty_and_single():
    assert prune.across_tree({"a": np.zeros((0, 3), np.float32)}, 0)["a"].shape == (0, 3)
    assert prune.by_leaf(np.float32(2.0), 1).tolist() is True
    assert prune.across_tree({}, 0) == {}
    assert prune.by_leaf({}, 0) == {}
    empty, ones = np.zeros(0, np.float32), np.ones(3, np.float32)
    for method in METHODS:
        mixed = prune.by_leaf([empty, ones, empty], [0, 2, 0], method=method)
        assert mixed[1].tolist() == [True, True, False]


# ---------------------------------------------------------------------------------------------- under transformations


@pytest.mark.parametrize("method", METHODS)
def test_vmap_with_a_count_for_each_member(method):
    stacked = {"a": awkward(0, 4 * 30).reshape(4, 5, 6), "b": awkward(1, 4 * 11).reshape(4, 11)}
    counts = jnp.array([0, 7, 20, 41])
    within = {"a": np.random.default_rng(0).random((5, 6)) < 2, "b": np.ones(11, bool)}
    select = functools.partial(prune.across_tree, within=within, method=method)
    masks = jax.jit(jax.vmap(select))(stacked, counts)
    for i, k in enumerate(counts):
        same_bits(
            jax.tree.map(lambda m, i=i: m[i], masks), across_oracle({k: x[i] for k, x in stacked.items()}, int(k))
        )
    each = jax.vmap(lambda t, k: prune.by_leaf(t, k, method=method))(stacked, {"a": counts // 2, "b": counts // 4})
    assert [int(m.sum()) for m in each["a"]] == [0, 3, 10, 20]
    assert np.array_equal(each["b"][3], oracle(stacked["b"][3], 10))


@pytest.mark.parametrize("method", ["sampling", "bisection"])
def test_gradients_pass_beside_a_selection(method):
    def loss(x):
        return jnp.sum(jnp.where(prune.by_leaf(jnp.abs(x), 2, method=method), x, 0.0) ** 2)

    x = jnp.array([3.0, -1.0, -4.0])
    assert jax.grad(loss)(x).tolist() == [6.0, 0.0, -8.0]
    assert jax.vmap(jax.grad(loss))(jnp.stack([x, -x])).tolist() == [[6.0, 0.0, -8.0], [-6.0, 0.0, 8.0]]


@pytest.mark.parametrize("method", ["sampling", "bisection"])
def test_shard_map_and_sharded_scores(method):
    if len(jax.devices()) < 2:
        pytest.skip("needs two devices")
    mesh = jax.make_mesh((2,), ("member",), axis_types=(jax.sharding.AxisType.Auto,))
    x = awkward(5, 2 * 40).reshape(2, 40)
    select = jax.vmap(lambda t: prune.across_tree(t, 9, method=method))
    mapped = jax.jit(jax.shard_map(select, mesh=mesh, in_specs=P("member"), out_specs=P("member")))(x)
    sharded = jax.device_put(x[0], jax.sharding.NamedSharding(mesh, P("member")))
    assert np.array_equal(mapped[0], oracle(x[0], 9))
    assert np.array_equal(mapped[1], oracle(x[1], 9))
    assert np.array_equal(prune.across_tree(sharded, 9, method=method), oracle(x[0], 9))


def test_one_compilation_serves_all_counts():
    x = {"a": awkward(0, 21), "b": awkward(1, 23)}
    before = prune._highest._cache_size()
    for keep in (1, 5, np.int64(7), jnp.int32(9), 44):
        assert int(flat(prune.across_tree(x, keep)).sum()) == int(keep)
    assert prune._highest._cache_size() == before + 1


def test_impossible_counts_raise_when_known_and_clamp_when_traced():
    x, some = np.arange(4.0, dtype=np.float32), np.array([True, True, False, False])
    for bad in (5, -1, jnp.int32(9)):
        with pytest.raises(ValueError, match="4 entries are eligible"):
            prune.across_tree(x, bad)
        with pytest.raises(ValueError, match="4 entries are eligible"):
            prune.by_leaf({"w": x}, {"w": bad})
    for select in (prune.across_tree, prune.by_leaf):
        with pytest.raises(ValueError, match="2 entries are eligible"):
            select(x, 3, within=some)
        assert jax.jit(select)(x, 9).tolist() == [True] * 4
        assert jax.jit(lambda k, f=select: f(x, k, within=some))(3).tolist() == some.tolist()
        assert not jax.jit(select)(x, -3).any()


def test_bad_arguments_are_named():
    x = {"w": np.ones(4, np.float32)}
    with pytest.raises(ValueError, match="keep_count"):
        prune.across_tree(x, 0.5)
    with pytest.raises(ValueError, match="one count"):
        prune.across_tree(x, np.array([1, 2]))
    with pytest.raises(ValueError, match="only in within: \\['v'\\]"):
        prune.across_tree(x, 1, within={"v": True})
    with pytest.raises(ValueError, match="does not broadcast"):
        prune.by_leaf(x, 1, within={"w": np.ones(3, bool)})
    with pytest.raises(ValueError, match="masks are booleans"):
        prune.by_leaf(x, 1, within={"w": np.ones(4)})
    with pytest.raises(ValueError, match="tie_break of 'w'"):
        prune.by_leaf(x, 1, tie_break={"w": np.ones(3)})
    with pytest.raises(ValueError, match="only in keep"):
        prune.by_leaf(x, {"v": 1})
    with pytest.raises(ValueError, match="real numbers"):
        prune.by_leaf(np.ones(3, np.complex64), 1)


# ----------------------------------------------------------------------------------------------------------- patterns


@pytest.mark.parametrize("axis", [0, 1, -1, (0, 2), (-1, -2)])
def test_by_output_selects_in_each_slice(axis):
    x, within = awkward(7, 60).reshape(3, 4, 5), np.random.default_rng(1).random((3, 4, 5)) < 0.9
    ties = awkward(8, 60).reshape(3, 4, 5)
    outputs = sorted(a % 3 for a in (axis if isinstance(axis, tuple) else (axis,)))
    keep = 2 if len(outputs) == 1 else 1
    masks = np.asarray(prune.by_output(x, keep, axis=axis, within=within, tie_break=ties))
    for place in np.ndindex(*(x.shape[a] for a in outputs)):
        at = tuple(place[outputs.index(a)] if a in outputs else slice(None) for a in range(3))
        assert np.array_equal(masks[at], oracle(x[at], keep, within[at], ties[at]))


def test_by_output_with_counts_axes_and_members_of_their_own():
    x = {"a": awkward(0, 12).reshape(3, 4), "b": awkward(1, 12).reshape(2, 6)}
    counts = np.array([0, 1, 2, 3])
    masks = prune.by_output(x, {"a": counts, "b": 4}, axis={"a": 1, "b": 0})
    assert masks["a"].sum(0).tolist() == counts.tolist()
    assert masks["b"].sum(1).tolist() == [4, 4]
    stacked = np.stack([x["a"], -x["a"]])
    each = jax.vmap(lambda s, k: prune.by_output(s, k, axis=0))(stacked, jnp.array([1, 3]))
    assert each.sum(-1).tolist() == [[1] * 3, [3] * 3]
    with pytest.raises(ValueError, match="3 entries are eligible"):
        prune.by_output(x["a"], 4, axis=1)
    with pytest.raises(ValueError, match="lacks the output axis"):
        prune.by_output(x["a"], 1, axis=2)
    with pytest.raises(ValueError, match="one per output"):
        prune.by_output(x["a"], np.array([1, 2]), axis=1)


@pytest.mark.parametrize(("n", "m", "axis"), [(2, 4, 0), (1, 2, 1), (4, 4, 0), (0, 2, -1), (4, 8, 0)])
def test_n_of_m(n, m, axis):
    x, ties = awkward(2, 8 * 6).reshape(8, 6), awkward(3, 8 * 6).reshape(8, 6)
    within = np.random.default_rng(2).random((8, 6)) < 0.8
    masks = np.moveaxis(np.asarray(prune.n_of_m(x, n, m, axis=axis, within=within, tie_break=ties)), axis, -1)
    runs = [masks.reshape(-1, m), *(np.moveaxis(v, axis, -1).reshape(-1, m) for v in (x, within, ties))]
    assert masks.sum() == np.minimum(runs[2].sum(1), n).sum()
    for got, s, w, t in zip(*runs, strict=True):
        assert np.array_equal(got, oracle(s, min(n, w.sum()), w, t))


def test_n_of_m_refuses_what_does_not_divide():
    with pytest.raises(ValueError, match="does not divide into runs of 4"):
        prune.n_of_m({"w": np.ones((6, 4), np.float32)}, 2, 4, axis=0)
    with pytest.raises(ValueError, match="impossible"):
        prune.n_of_m(np.ones(4, np.float32), 5, 4, axis=0)


def test_by_block_keeps_whole_blocks():
    x = np.random.default_rng(0).integers(0, 4, (2, 6, 8)).astype(np.float32)
    sums = x.reshape(2, 3, 2, 2, 4).sum((2, 4))
    expected = np.repeat(np.repeat(oracle(sums, 5), 2, axis=1), 4, axis=2)
    assert np.array_equal(prune.by_block(x, 5, block=(2, 4)), expected)
    assert expected.sum() == 5 * 8
    within = np.ones((2, 6, 8), bool)
    within[0, 0, 0] = False
    masks = np.asarray(prune.by_block({"w": x}, 11, block=(2, 4), within={"w": within})["w"])
    assert not masks[0, :2, :4].any()
    assert masks.sum() == 11 * 8
    with pytest.raises(ValueError, match="12 entries are eligible"):
        prune.by_block(x, 13, block=(2, 4))
    with pytest.raises(ValueError, match="do not divide"):
        prune.by_block(x, 1, block=(4, 4))


def test_strict_promotion():
    x = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(4, jnp.bfloat16)}
    with jax.numpy_dtype_promotion("strict"):
        for method in ("sampling", "bisection"):
            within = {"a": np.ones((1, 3), bool), "b": True}
            assert int(prune.across_tree(x, 4, tie_break=x, within=within, method=method)["a"].sum()) == 4
        prune.by_output(x, 1, axis=0)
        prune.by_block(x["a"], 1, block=(1, 3))
        prune.n_of_m(x["b"], 1, 2, axis=0)
