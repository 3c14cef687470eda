import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.core import prune, schedules

NAMES = sorted(schedules.SCHEDULES)


@pytest.mark.parametrize("name", NAMES)
def test_ends_are_exact_and_the_way_is_monotone(name):
    f = schedules.SCHEDULES[name]
    way = [f(t, 7, 0.9, 0.2) for t in range(8)]
    assert (way[0], way[-1]) == (0.2, 0.9)
    assert way == sorted(way)
    assert f(-3, 7, 0.9, 0.2) == 0.2
    assert f(50, 7, 0.9, 0.2) == 0.9
    assert all(isinstance(v, float) for v in way)


@pytest.mark.parametrize("name", NAMES)
def test_traced_equals_host(name):
    f = schedules.SCHEDULES[name]
    steps = np.arange(9)
    host = np.array([f(t, 8, 0.75, 0.1) for t in steps])
    assert np.ptp(host) > 0.5
    np.testing.assert_allclose(jax.jit(lambda t: f(t, 8, 0.75, 0.1))(jnp.asarray(steps)), host, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(lambda t, s: f(t, 8, s))(steps, jnp.full(9, 0.5))[-1], 0.5)
    np.testing.assert_allclose(f(steps, 8, 0.75, 0.1), host)


def test_formulas():
    kept = [1 - schedules.geometric(t, 4, 0.9) for t in range(5)]
    np.testing.assert_allclose(np.diff(np.log(kept)), np.log(0.1) / 4)
    np.testing.assert_allclose(schedules.cubic(3, 10, 0.8, 0.1), 0.8 + (0.1 - 0.8) * (1 - 3 / 10) ** 3)
    np.testing.assert_allclose(schedules.linear(3, 10, 0.8, 0.1), 0.1 + 0.7 * 0.3)
    assert schedules.constant(1, 10, 0.8, 0.1) == 0.8


def test_counts_land_on_the_count_of_the_final_sparsity():
    n = 84_000_001
    for name in NAMES:
        got = schedules.counts(name, 5, n, 0.9)
        assert got.dtype == np.int32
        assert got.shape == (5,)
        assert got[-1] == prune.keep_count(n, 0.9)
        assert (np.diff(got) <= 0).all()
    assert schedules.counts(schedules.geometric, 2, 100, 0.75).tolist() == [50, 25]


def test_bad_arguments():
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        schedules.cubic(1, 2, 1.0)
    with pytest.raises(ValueError, match=r"\[0, 1\)"):
        schedules.geometric(1, 2, 0.5, -0.1)
    with pytest.raises(ValueError, match="at least one"):
        schedules.linear(1, 0, 0.5)
    with pytest.raises(ValueError, match="unknown schedule"):
        schedules.counts("quadratic", 2, 10, 0.5)
