import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import counts, masks, schedules, vote

LARGE = st.integers(0, (1 << 47) - 1)


@hypothesis.given(LARGE, LARGE)
def test_words_compute_as_python_integers_do(a, b):
    a, b = max(a, b), min(a, b)
    x, y = (jax.tree.map(jnp.asarray, counts.words(n)) for n in (a, b))
    assert [counts.host(x), counts.host(y)] == [a, b]
    assert counts.host(counts.minus(x, y)) == a - b
    assert bool(counts.at_least(x, y))
    assert bool(counts.at_least(y, x)) == (a == b)
    assert counts.host(counts.least(x, y)) == b
    np.testing.assert_allclose(float(counts.number(x)), a, rtol=2e-7)
    if a + b < 1 << 47:
        assert counts.host(counts.total([x, y])) == a + b


@hypothesis.given(st.integers(0, 1 << 31), st.integers(1, 1 << 20))
def test_words_are_multiplied_exactly(a, n):
    if a * n < 1 << 47:
        assert counts.host(counts.times(jax.tree.map(jnp.asarray, counts.words(a)), n)) == a * n


def test_a_mask_of_more_entries_than_one_sum_holds(monkeypatch):
    mask = jax.random.bernoulli(jax.random.key(0), 0.4, (5, 7, 3))
    expected = int(np.asarray(mask).sum())
    assert 0 < expected < mask.size
    monkeypatch.setattr(counts, "LARGEST_SUM", 10)
    assert counts.host(counts.true(mask)) == expected


# 3.6e9 weights, of which the abstract shapes suffice.
PARAMS = {
    "a": jax.ShapeDtypeStruct((60_000, 30_000), jnp.bfloat16),
    "b": jax.ShapeDtypeStruct((60_000, 30_000), jnp.bfloat16),
}
SIZE = 60_000 * 30_000


def _rows(n):
    return jnp.arange(60_000)[:, None] < n


def test_measures_of_billions_of_weights():
    whole = {"a": jnp.array(True), "b": jnp.array(True)}
    half = {"a": jnp.array(True), "b": jnp.array(False)}
    some = {"a": _rows(45_000), "b": _rows(15_000)}
    assert int(masks.count(whole, PARAMS)) == 2 * SIZE == 3_600_000_000
    assert int(masks.count(some, PARAMS)) == SIZE
    assert float(masks.sparsity(whole, PARAMS)) == 0.0
    assert float(masks.sparsity(some, PARAMS)) == 0.5
    assert float(masks.overlap(whole, half, PARAMS)) == 0.5
    np.testing.assert_allclose(float(masks.cosine(whole, half, PARAMS)), 0.5**0.5, rtol=1e-6)
    # 0.75 of the first in both, a quarter of the second in one: 0.75 / (1 + 0.25).
    np.testing.assert_allclose(float(masks.overlap(half, some, PARAMS)), 0.6, rtol=1e-6)


def test_billions_under_jit():
    some = {"a": _rows(45_000), "b": _rows(15_000)}
    assert float(jax.jit(lambda m: masks.sparsity(m, PARAMS))(some)) == 0.5
    with pytest.raises(ValueError, match="3600000000 entries cannot be counted in int32 under jit"):
        jax.jit(lambda m: masks.count(m, PARAMS))(some)
    with jax.enable_x64(True):
        assert int(jax.jit(lambda m: masks.count(m, PARAMS))(some)) == SIZE


def test_counts_out_of_range_are_refused():
    for bad in (-1, 1 << 47):
        with pytest.raises(ValueError, match="counts go from 0"):
            counts.words(bad)


def test_a_schedule_and_a_vote_over_billions():
    assert schedules.counts("linear", 2, 6_000_000_000, 0.5).tolist() == [4_500_000_000, 3_000_000_000]
    ballots = {k: jax.ShapeDtypeStruct((3, *s.shape), bool) for k, s in PARAMS.items()}
    got = jax.eval_shape(lambda b: vote.elect(b, 2_500_000_000, scope="tree", rule="union"), ballots)
    assert got["b"].shape == (60_000, 30_000)
