"""Arrays on a mesh, with Auto and with Explicit axes, are cut as on one device, and stay sharded along other axes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from mvp_jax import compact, graph
from mvp_jax.compact import cutting, sensitivity

KEEP = np.arange(16) % 3 != 1  # 11 of 16: no mesh divides them
UNITS = {"a": jnp.asarray(KEEP)}
X = jnp.asarray(np.random.default_rng(1).normal(size=(16, 8)), jnp.float32)


def params():
    rng = np.random.default_rng(0)
    return {
        "a": {"kernel": rng.normal(size=(8, 16)).astype(np.float32), "bias": rng.normal(size=16).astype(np.float32)},
        "b": {"kernel": rng.normal(size=(16, 24)).astype(np.float32)},
    }


def by_numpy(p):
    return {
        "a": {"kernel": p["a"]["kernel"][:, KEEP], "bias": p["a"]["bias"][KEEP]},
        "b": {"kernel": p["b"]["kernel"][KEEP]},
    }


def net(p, x):
    return jax.nn.relu(x @ p["a"]["kernel"] + p["a"]["bias"]) @ p["b"]["kernel"]


GROUPS = graph.groups(net, params(), X)

# Where the kernels and the bias lie: whole on every device; sharded along axes that are not cut; along the cut ones;
# as fully sharded training has it, everything along its first axis.
LAYOUTS = {
    "replicated": (P(), P(), P()),
    "free axes": (P("d"), P(), P(None, "d")),
    "cut axes": (P(None, "d"), P("d"), P("d")),
    "first axes": (P("d", None), P("d"), P("d", None)),
}
AFTER = {
    "replicated": (P(None, None), P(None), P(None, None)),
    "free axes": (P("d", None), P(None), P(None, "d")),
    "cut axes": (P(None, None), P(None), P(None, None)),
    "first axes": (P("d", None), P(None), P(None, None)),
}
AXES = [AxisType.Auto, AxisType.Explicit]


def mesh(axis):
    return jax.make_mesh((jax.device_count(),), ("d",), axis_types=(axis,))


def laid(tree, layout, axis):
    kernel, bias, out = (NamedSharding(mesh(axis), spec) for spec in LAYOUTS[layout])
    shardings = {"a": {"kernel": kernel, "bias": bias}, "b": {"kernel": out}}
    return jax.tree.map(jax.device_put, tree, shardings)


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


def specs(tree):
    def one(a):
        spec = tuple(a.sharding.spec)
        return P(*spec, *[None] * (a.ndim - len(spec)))

    return one(tree["a"]["kernel"]), one(tree["a"]["bias"]), one(tree["b"]["kernel"])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_cut_and_embed(layout, axis):
    p = laid(params(), layout, axis)
    small = compact.cut(p, GROUPS, UNITS)
    assert_equal(small, by_numpy(params()))
    assert specs(small) == AFTER[layout]
    assert len(small["a"]["kernel"].devices()) == jax.device_count()

    zeroed = jax.tree.map(np.zeros_like, params())
    zeroed["a"]["kernel"][:, KEEP] = small["a"]["kernel"]
    zeroed["a"]["bias"][KEEP] = small["a"]["bias"]
    zeroed["b"]["kernel"][KEEP] = small["b"]["kernel"]
    dense = compact.embed(small, GROUPS, UNITS, p)
    assert_equal(dense, zeroed)
    assert specs(dense) == specs(laid(zeroed, layout, axis))
    back = compact.embed(small, GROUPS, UNITS, p, fill=p)
    assert_equal(back, params())
    assert specs(back) == specs(laid(zeroed, layout, axis))
    # From shapes, from arrays of the host, and onto what lies on one device.
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), p)
    assert_equal(compact.embed(small, GROUPS, UNITS, shapes), zeroed)
    assert_equal(compact.embed(by_numpy(params()), GROUPS, UNITS, p), zeroed)
    assert_equal(compact.embed(small, GROUPS, UNITS, params(), fill=params()), params())


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_groups_slim_mask_and_verify(layout, axis):
    p = laid(params(), layout, axis)
    assert graph.groups(net, p, X) == GROUPS
    small, slim = compact.slim(net, p, GROUPS, UNITS, X)
    assert_equal(slim, by_numpy(params()))
    assert specs(slim) == AFTER[layout]
    expected = np.maximum(np.asarray(X) @ slim["a"]["kernel"] + slim["a"]["bias"], 0) @ np.asarray(slim["b"]["kernel"])
    np.testing.assert_allclose(jax.jit(small)(slim, X), expected, atol=1e-5)
    np.testing.assert_allclose(small(slim, X), expected, atol=1e-5)
    np.testing.assert_allclose(small(by_numpy(params()), X), expected, atol=1e-5)  # elsewhere than it was made

    masked = compact.mask(p, GROUPS, UNITS)
    assert specs(masked) == specs(p)
    np.testing.assert_array_equal(masked["a"]["kernel"], np.where(KEEP, params()["a"]["kernel"], 0))
    np.testing.assert_array_equal(masked["b"]["kernel"], np.where(KEEP[:, None], params()["b"]["kernel"], 0))

    found = compact.verify(net, p, GROUPS, X, key=jax.random.key(0), cuts=2)
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-2


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("spec", [P(), P("d")])
def test_units_may_lie_on_the_mesh_too(spec, axis):
    p = laid(params(), "cut axes", axis)
    units = {"a": jax.device_put(UNITS["a"], NamedSharding(mesh(axis), spec))}
    small = compact.cut(p, GROUPS, units)
    assert_equal(small, by_numpy(params()))
    assert_equal(compact.embed(small, GROUPS, units, p, fill=p), params())
    assert_equal(compact.slim(net, p, GROUPS, units, X)[1], by_numpy(params()))
    assert_equal(compact.mask(p, GROUPS, units), compact.mask(params(), GROUPS, UNITS))


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_traced_units_and_members(layout, axis):
    p = laid(params(), layout, axis)
    kept = {"a": 11}

    @jax.jit
    def both(p, units):
        small = compact.cut(p, GROUPS, units, sizes=kept)
        return small, compact.embed(small, GROUPS, units, p), compact.mask(p, GROUPS, units)

    small, dense, masked = both(p, UNITS)
    assert_equal(small, by_numpy(params()))
    for tree in (dense, masked):
        np.testing.assert_array_equal(tree["a"]["kernel"], np.where(KEEP, params()["a"]["kernel"], 0))
    # Members are stacked along an axis that stays whole.
    stacked = jax.tree.map(lambda a: jnp.stack([a, 2 * a]), p)
    two = {"a": jnp.stack([UNITS["a"], UNITS["a"][::-1]])}
    members, *_ = jax.jit(jax.vmap(both))(stacked, two)
    np.testing.assert_array_equal(members["b"]["kernel"][0], by_numpy(params())["b"]["kernel"])
    np.testing.assert_array_equal(members["b"]["kernel"][1], 2 * params()["b"]["kernel"][KEEP[::-1]])


@pytest.mark.parametrize("axis", AXES)
def test_an_optimiser_state_on_the_mesh(axis):
    p = laid(params(), "first axes", axis)
    tx = optax.adam(1e-3)
    state = tx.update(p, tx.init(p))[1]
    small = compact.cut(state, GROUPS, UNITS)
    np.testing.assert_allclose(small[0].mu["b"]["kernel"], 0.1 * params()["b"]["kernel"][KEEP], rtol=1e-6)
    assert specs(small[0].mu) == AFTER["first axes"]


def test_one_compilation_serves_every_cut_of_one_size():
    for axis in AXES:
        p = laid(params(), "free axes", axis)
        compact.cut(p, GROUPS, UNITS)
        before = cutting._gather._cache_size()
        for shift in range(1, 4):
            units = {"a": jnp.asarray(np.roll(KEEP, shift))}
            small = compact.cut(p, GROUPS, units)
            np.testing.assert_array_equal(small["a"]["bias"], params()["a"]["bias"][np.roll(KEEP, shift)])
        assert cutting._gather._cache_size() == before
        compact.cut(p, GROUPS, {"a": jnp.arange(16) < 3})
        assert cutting._gather._cache_size() == before + 1


def fully_sharded(p, x):
    """A step as explicit sharding has it written: weights are gathered where they are used, the batch stays sharded."""
    a, bias, b = p["a"]["kernel"], p["a"]["bias"], p["b"]["kernel"]
    # Zeros lie as the kernel does, also in the loop that is run again on smaller arrays.
    a, _ = jax.lax.scan(lambda total, _: (total + a / 2, None), jnp.zeros_like(a), length=2)
    a, bias, b = (jax.sharding.reshard(w, P()) for w in (a, bias, b))
    h = (jnp.dot(x, a, out_sharding=P("d")) + bias) / 2
    h = jax.sharding.reshard(2 * h, P("d", None))
    return jnp.dot(jax.nn.relu(h), b, out_sharding=P("d"))


def tensor_parallel(p, x):
    """Units over devices: each holds some of the hidden ones. Cut, they are whole wherever the mesh does not divide."""
    h = jax.nn.relu(jnp.dot(x, p["a"]["kernel"], out_sharding=P(None, "d")) + p["a"]["bias"])
    return jnp.dot(h, p["b"]["kernel"], out_sharding=P())


@pytest.mark.parametrize(("apply", "layout", "spec"), [
    (fully_sharded, "first axes", P("d")), (tensor_parallel, "cut axes", P()),
])  # fmt: skip
def test_functions_that_say_where_their_arrays_lie(apply, layout, spec):
    p = laid(params(), layout, AxisType.Explicit)
    with jax.set_mesh(mesh(AxisType.Explicit)):
        x = jax.device_put(X, NamedSharding(mesh(AxisType.Explicit), spec))
        groups = graph.groups(apply, p, x)
        # What comes out of a loop is no kernel, so the first function's units have another name.
        assert [{(s.path, s.axis) for s in g.slots} for g in groups] == [{(s.path, s.axis) for s in GROUPS[0].slots}]
        small, slim = compact.slim(apply, p, groups, {groups[0].name: UNITS["a"]}, x)
        np.testing.assert_allclose(jax.jit(small)(slim, x), net(by_numpy(params()), X), atol=1e-5)
        found = compact.verify(apply, p, groups, x, key=jax.random.key(0), cuts=2)
        assert max(found.differences) < 1e-5
        assert min(found.changes) > 1e-2


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("spec", [P(), P("d")])
def test_removed_entries_are_counted_where_a_norm_and_a_softmax_sum_over_them(axis, spec):
    def apply(p, x):
        h = x @ p["a"]["kernel"] + p["a"]["bias"]
        centred = h - h.mean(-1, keepdims=True)
        h = centred * jax.lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-2)
        return (h + jax.nn.softmax(h)) @ p["b"]["kernel"]

    p = laid(params(), "replicated", axis)
    with jax.set_mesh(mesh(axis)):
        x = jax.device_put(X, NamedSharding(mesh(axis), spec))
        (group,) = graph.groups(apply, p, x)
        assert group.size == 16
        found = compact.verify(apply, p, [group], x, key=jax.random.key(0), cuts=2)
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-2


def test_constraints_on_an_auto_mesh_do_not_stand_in_the_way():
    sharding = NamedSharding(mesh(AxisType.Auto), P(None, "d"))

    def apply(p, x):
        h = jax.lax.with_sharding_constraint(x @ p["a"]["kernel"] + p["a"]["bias"], sharding)
        return jax.nn.relu(h) @ p["b"]["kernel"]

    p = laid(params(), "cut axes", AxisType.Auto)
    assert graph.groups(apply, p, X) == GROUPS
    small, slim = compact.slim(apply, p, GROUPS, UNITS, X)
    np.testing.assert_allclose(jax.jit(small)(slim, X), net(by_numpy(params()), X), atol=1e-5)


@pytest.mark.parametrize("axis", AXES)
def test_sensitivity_curves(axis):
    def metric(p):
        return jnp.sum(jnp.square(net(p, X)))

    scores = {"a": jnp.arange(16.0)}
    got = sensitivity.curves(metric, laid(params(), "free axes", axis), GROUPS, scores, (0.0, 0.5))
    want = sensitivity.curves(metric, params(), GROUPS, scores, (0.0, 0.5))
    np.testing.assert_allclose(got["a"], want["a"], rtol=1e-5)
