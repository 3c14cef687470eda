"""Random compositions of operations, sums over many sets of units, and deep networks: slim is masked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvp_jax import compact, graph
from tests import random_functions

X = jnp.ones((2, 3))
PROGRAMS = st.lists(st.tuples(st.integers(0, 99), st.integers(0, 2), st.integers(0, 59)), min_size=1, max_size=6)


def check(program):
    apply, params, x = random_functions.build(program)
    groups = graph.groups(apply, params, x)
    if groups:
        seen = compact.verify(apply, params, groups, x, key=jax.random.key(len(program)), cuts=2, ratio=0.7)
        assert max(seen.differences) < 3e-5
        assert np.isfinite(seen.changes).all()
    return len(groups)


# The usual run takes a few programs, always the same; `.ci/extra explore` draws many new ones.
EXPLORING = settings.get_current_profile_name() == "explore"


@settings(max_examples=500 if EXPLORING else 20, deadline=None, derandomize=not EXPLORING)
@given(PROGRAMS)
def test_slim_is_masked_for_any_composition(program):
    check(program)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(PROGRAMS)
def test_slim_is_masked_for_many_compositions(program):
    check(program)


def test_random_compositions_have_groups_to_cut():
    rng = np.random.default_rng(0)
    programs = [[tuple(map(int, rng.integers(0, 60, 3))) for _ in range(3)] for _ in range(8)]
    assert sum(len(graph.groups(*random_functions.build(p))) for p in programs) >= 8


def test_many_sets_of_units_are_counted_in_one_sum():
    """A softmax over a concatenation of seven layers, of which one is returned; a product of three sets of units."""

    def apply(p, x):
        parts = [x @ p[f"w{i}"] for i in range(7)]
        cube = jnp.cos(jnp.einsum("ni,iabc->nabc", x, p["cube"]))
        total = cube.reshape(x.shape[0], -1).sum(-1, keepdims=True)
        return jax.nn.softmax(jnp.concatenate(parts, -1)) @ p["out"] + total, parts[0]

    rng = np.random.default_rng(0)
    shapes = {f"w{i}": (3, 4) for i in range(7)} | {"cube": (3, 2, 3, 4), "out": (28, 2)}
    p = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in shapes.items()}
    groups = graph.groups(apply, p, X)
    assert sorted(g.size for g in groups) == [2, 3, 4, 4, 4, 4, 4, 4, 4]
    found = compact.verify(apply, p, groups, X, key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3


def test_a_deep_network_whose_leftovers_are_asked_for_at_its_end():
    """A bias per token in each of 160 layers goes into removed units, and only the last layer sums over these."""

    def h_of(p, x):
        h = jnp.einsum("ntc,cd->ntd", x, p["embed"])
        for i in range(160):
            h = 0.97 * (jnp.tanh(h) + h) / 2 + 0.1 * p["token"][i, :, None]
        return h

    def apply(p, x):
        return jnp.sum(h_of(p, x), -1)

    rng = np.random.default_rng(0)
    p = {"embed": jnp.asarray(rng.normal(size=(3, 6)), jnp.float32), "token": jnp.asarray(rng.normal(size=(160, 2)))}
    x = jnp.asarray(rng.normal(size=(2, 2, 3)), jnp.float32)
    (group,) = graph.groups(apply, p, x)
    units_kept = {group.name: jnp.array([True, False, True, False, False, True])}
    small, slim = compact.slim(apply, p, [group], units_kept, x)
    want = apply(compact.mask(p, [group], units_kept), x)
    np.testing.assert_allclose(small(slim, x), want, rtol=1e-5)  # compiling it takes XLA long
    kept_only = jnp.sum(h_of(compact.cut(p, [group], units_kept), x), -1)
    assert float(jnp.min(jnp.abs(want - kept_only))) > 1e-2
