import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from mvp_jax.core import masks, trees

PARAMS = {"bias": np.arange(2, dtype=np.float32), "kernel": np.arange(6, dtype=np.float32).reshape(3, 2)}


def draw(seed, shapes=((3, 2), (2,), (1, 2), ())):
    rng = np.random.default_rng(seed)
    return {f"m{i}": jnp.asarray(rng.random(s) < 0.6) for i, s in enumerate(shapes)}


def full(mask_tree, shapes):
    return np.concatenate([np.broadcast_to(m, s).ravel() for m, s in zip(mask_tree.values(), shapes, strict=True)])


def test_apply_uses_where_and_keeps_types():
    params = {"a": jnp.array([jnp.inf, jnp.nan, 3.0], jnp.bfloat16), "b": jnp.float32(2.0)}
    out = masks.apply(params, {"a": jnp.array([False, False, True]), "b": jnp.array(True)})
    assert out["a"].tolist() == [0.0, 0.0, 3.0]
    assert out["a"].dtype == jnp.bfloat16
    assert float(out["b"]) == 2.0


def test_gradients_are_masked_for_params_and_dense_for_the_masked():
    params, keep = {"a": jnp.array([1.0, jnp.inf, 3.0])}, {"a": jnp.array([True, False, True])}
    loss = lambda p: jnp.sum(p["a"] ** 2 + 5.0 * p["a"])  # noqa: E731
    assert jax.grad(lambda p: loss(masks.apply(p, keep)))(params)["a"].tolist() == [7.0, 0.0, 11.0]
    assert jax.grad(loss)(masks.apply(params, keep))["a"].tolist() == [7.0, 5.0, 11.0]


def test_check_names_what_is_wrong():
    with pytest.raises(ValueError, match="'bias' is float32"):
        masks.check({"bias": jnp.ones(2), "kernel": jnp.array(True)}, PARAMS)
    with pytest.raises(ValueError, match="'kernel' has shape \\(2, 3\\)"):
        masks.check({"bias": jnp.array(True), "kernel": jnp.ones((2, 3), bool)}, PARAMS)
    with pytest.raises(ValueError, match="'bias' has shape \\(3, 2\\)"):  # broadcasts, but the wrong way
        masks.check({"bias": jnp.ones((3, 2), bool), "kernel": jnp.array(True)}, PARAMS)
    with pytest.raises(ValueError, match="only in params: \\['kernel'\\]"):
        masks.apply(PARAMS, {"bias": jnp.array(True)})
    masks.check({"bias": jnp.array(True), "kernel": jnp.ones((1, 2), bool)}, PARAMS)


@pytest.mark.parametrize("prunable", [[".*kernel"], [("kernel", True)], {"bias": False, "kernel": True}])
def test_ones(prunable):
    got = masks.ones(PARAMS, prunable)
    assert jax.tree.map(jnp.shape, got) == {"bias": (), "kernel": (3, 2)}
    assert all(bool(jnp.all(m)) and m.dtype == bool for m in jax.tree.leaves(got))
    assert jax.tree.map(jnp.shape, masks.ones(PARAMS)) == {"bias": (2,), "kernel": (3, 2)}
    with pytest.raises(ValueError, match="match no leaf"):
        masks.ones(PARAMS, ["gamma"])


def test_exempt():
    selected = {"bias": jnp.array(False), "kernel": jnp.array([[True, False]])}
    got = masks.exempt(selected, trees.select(PARAMS, ["kernel"]))
    assert bool(got["bias"])
    assert got["kernel"].tolist() == [[True, False]]
    some = masks.exempt(selected, {"bias": np.array([True, False]), "kernel": np.array([[True, True]])})
    assert some["bias"].tolist() == [False, True]
    assert some["kernel"].tolist() == [[True, False]]


@hypothesis.given(st.integers(0, 1000), st.integers(0, 1000))
def test_measures_against_numpy_on_the_broadcast(seed_a, seed_b):
    a, b = draw(seed_a), draw(seed_b)
    shapes = [(3, 2), (4, 2), (5, 2), (7,)]
    params = {k: np.zeros(s) for k, s in zip(a, shapes, strict=True)}
    x, y = full(a, shapes), full(b, shapes)
    assert int(masks.count(a, params)) == x.sum()
    assert int(masks.count(a)) == sum(int(np.sum(m)) for m in a.values() if m.ndim)
    np.testing.assert_allclose(masks.sparsity(a, params), 1 - x.mean(), rtol=1e-6, atol=1e-7)
    union = max((x | y).sum(), 1)
    expected = (x & y).sum() / union if (x | y).any() else 1.0
    np.testing.assert_allclose(masks.overlap(a, b, params), expected, rtol=1e-6)
    norm = np.linalg.norm(x.astype(float)) * np.linalg.norm(y.astype(float))
    expected = 1.0 if not (x | y).any() else 0.0 if norm == 0 else (x & y).sum() / norm
    np.testing.assert_allclose(masks.cosine(a, b, params), expected, rtol=1e-6, atol=1e-7)
    for k, value in masks.iou(a, b).items():
        p, q = np.asarray(a[k]), np.asarray(b[k])
        alone = masks.cosine({k: a[k]}, {k: b[k]}, {k: np.zeros(p.shape)})
        np.testing.assert_allclose(masks.leaf_cosines(a, b)[k], alone, rtol=1e-6)
        np.testing.assert_allclose(value, (p & q).sum() / (p | q).sum() if (p | q).any() else 1.0, rtol=1e-6)
        assert np.array_equal(masks.union(a, b)[k], p | q)
        assert np.array_equal(masks.intersect(a, b, a)[k], p & q)
        assert np.array_equal(masks.invert(a)[k], ~p)


def test_measures_are_not_trivial_and_work_under_jit_and_vmap():
    a, b = draw(1), draw(2)
    params = {k: jnp.zeros(s) for k, s in zip(a, [(3, 2), (4, 2), (5, 2), (7,)], strict=True)}
    assert 0.0 < float(masks.overlap(a, b)) < 1.0
    assert 0.0 < float(masks.cosine(a, b)) < 1.0
    assert 0.0 < float(masks.sparsity(a, params)) < 1.0
    for f in (masks.overlap, masks.cosine):
        assert float(jax.jit(f)(a, b, params)) == float(f(a, b, params))
    stacked = trees.stack([a, b])
    np.testing.assert_allclose(
        jax.vmap(lambda m: masks.overlap(m, a))(stacked), [1.0, float(masks.overlap(b, a))], rtol=1e-6
    )
    np.testing.assert_allclose(jax.vmap(masks.sparsity)(stacked)[1], masks.sparsity(b), rtol=1e-6)


def test_empty_sets():
    none, some = {"a": jnp.zeros(3, bool)}, {"a": jnp.array([True, False, False])}
    assert float(masks.overlap(none, none)) == float(masks.cosine(none, none)) == 1.0
    assert float(masks.overlap(none, some)) == float(masks.cosine(none, some)) == 0.0
    assert float(masks.sparsity(none)) == 1.0


@pytest.mark.parametrize("shape", [(), (1,), (7,), (8,), (3, 5), (0, 4)])
def test_pack_and_unpack(shape):
    m = {"a": jnp.asarray(np.random.default_rng(0).random(shape) < 0.5), "b": jnp.array([True, False, True])}
    packed = masks.pack(m)
    assert packed["a"].nbytes == -(-m["a"].size // 8)
    again = masks.unpack(packed, jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, bool), m))
    assert jax.tree.all(jax.tree.map(np.array_equal, m, again))
    stacked = trees.stack([m, masks.invert(m)])
    many = jax.jit(jax.vmap(lambda p: masks.unpack(p, m)))(jax.vmap(masks.pack)(stacked))
    assert jax.tree.all(jax.tree.map(np.array_equal, many, stacked))
    with pytest.raises(ValueError, match="not a packed mask"):
        masks.unpack(packed, {"a": m["a"], "b": jnp.ones(9, bool)})


def test_structures_must_agree():
    for f in (masks.overlap, masks.iou, masks.cosine, masks.union, masks.intersect):
        with pytest.raises(ValueError, match="differ in structure"):
            f({"a": jnp.array(True)}, {"b": jnp.array(True)})
    with pytest.raises(ValueError, match="does not broadcast"):
        masks.count({"a": jnp.ones(3, bool)}, {"a": jnp.ones(2)})
    with pytest.raises(ValueError, match="no masks"):
        masks.union()
