"""One function over many members is the function of each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvp_jax.train import population


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
    with pytest.raises(ValueError, match=r"unknown mapping 'pmap'; choose one of"):
        population.over(one, *members(2), mapping="pmap")
    with pytest.raises(ValueError, match=r"one member axis.*\[2, 3\]"):
        population.over(lambda a, b: a, jnp.zeros(2), jnp.zeros(3))
    with pytest.raises(ValueError, match="at least 1"):
        population.over(lambda a: a, jnp.zeros((0, 2)))


def test_on_devices_members_come_back_in_their_order():
    tree, keys = members(5)
    expected = np.array([np.sum(np.asarray(tree["x"][i])) * (i + 1) for i in range(5)])
    for where in (population.mesh(2, devices=jax.devices()[:2]), population.mesh(1, 2), None):
        for mapping in ("vmap", "map", "loop", "auto"):
            for chunk in (None, 1, 2, 4):
                got = population.over(one, tree, keys, mapping=mapping, chunk=chunk, mesh=where)
                np.testing.assert_allclose(got["sum"], expected, rtol=1e-5)
                assert got["noise"].shape == (5, 2)
    got = population.pmap(one)(tree, keys)
    np.testing.assert_allclose(got["sum"], expected, rtol=1e-5)
    assert np.ptp(expected) > 1


def test_shared_trees_are_whole_for_every_member():
    table = jnp.arange(6.0)
    for how in (
        {},
        {"mapping": "map"},
        {"mapping": "loop"},
        {"mesh": population.mesh(2)},
        {"mapping": "map", "chunk": 2},
    ):
        got = population.over(lambda i, t: t[i] + t.sum(), jnp.array([4, 0, 1]), shared=(table,), **how)
        assert got.tolist() == [19.0, 15.0, 16.0]


def test_keys_can_be_what_a_function_returns():
    _, keys = members(3)
    for how in ({}, {"mapping": "map"}, {"mapping": "loop"}, {"mesh": population.mesh(2)}):
        got = population.over(lambda k: jax.random.fold_in(k, 7), keys, **how)
        expected = jnp.stack([jax.random.fold_in(k, 7) for k in keys])
        assert jnp.array_equal(jax.random.key_data(got), jax.random.key_data(expected))


def test_a_mesh_is_members_by_data():
    two = jax.devices()[:2]
    assert dict(population.mesh(devices=two).shape) == {"member": 2, "data": 1}
    assert dict(population.mesh(data=2, devices=two).shape) == {"member": 1, "data": 2}
    for members_, data in ((3, 1), (0, 1), (1, 0), (1, 1)):
        with pytest.raises(ValueError, match="does not fit 2 devices"):
            population.mesh(members_, data, devices=two)
    with pytest.raises(ValueError, match=r"the mesh has axes \('batch',\)"):
        population.over(jnp.sum, jnp.ones((2, 2)), mesh=jax.make_mesh((1,), ("batch",)))
    with pytest.raises(ValueError, match="chunk is 0"):
        population.over(jnp.sum, jnp.ones((2, 2)), chunk=0)
