"""Many members at once are the members one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax import population


def one(tree, key):
    return {"sum": jnp.sum(tree["x"]) * tree["s"], "noise": jax.random.normal(key, (2,))}


def members(k):
    rng = np.random.default_rng(0)
    tree = {"x": jnp.asarray(rng.normal(size=(k, 3)), jnp.float32), "s": jnp.arange(1.0, k + 1)}
    return tree, jax.random.split(jax.random.key(0), k)


@pytest.mark.parametrize("how", [{}, {"mapping": "loop"}, {"chunk": 2}, {"chunk": 5}, {"chunk": 1}, {"chunk": 99}])
def test_every_mapping_gives_the_members_in_their_order(how):
    tree, keys = members(5)
    got = population.over(one, tree, keys, **how)
    expected = np.array([np.sum(np.asarray(tree["x"][i])) * (i + 1) for i in range(5)])
    np.testing.assert_allclose(got["sum"], expected, rtol=1e-5)
    noise = np.stack([np.asarray(jax.random.normal(k, (2,))) for k in keys])
    np.testing.assert_array_equal(got["noise"], noise)
    assert len({round(float(v), 4) for v in got["sum"]}) == 5


def test_chunks_are_of_the_size_asked_for():
    sizes = []

    def count(x):
        sizes.append(x)
        return x + 1

    population.over(count, jnp.arange(5), chunk=2)
    assert len(sizes) == 3  # traced once a chunk: 2 + 2 + 1
    sizes.clear()
    population.over(count, jnp.arange(5), mapping="loop")
    assert len(sizes) == 5


def test_bad_members_are_refused():
    with pytest.raises(ValueError, match=r"unknown mapping 'pmap'; choose 'vmap' or 'loop'"):
        population.over(one, *members(2), mapping="pmap")
    with pytest.raises(ValueError, match=r"one member axis.*\[2, 3\]"):
        population.over(lambda a, b: a, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="at least 1"):
        population.over(lambda a: a, jnp.zeros((0, 2)))
