"""Variables in any container: which collection a leaf is of, and that what is no array is named."""

import collections
from typing import NamedTuple

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mvp_jax import compact, graph
from mvp_jax.compact import budget

X = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)


def params(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "one": {"kernel": jnp.asarray(rng.normal(size=(3, 8)), jnp.float32)},
        "two": {"kernel": jnp.asarray(rng.normal(size=(8, 2)), jnp.float32)},
    }


def net(p, x):
    return jax.nn.relu(x @ p["one"]["kernel"]) @ p["two"]["kernel"]


class Pair(NamedTuple):
    params: dict
    shadow: dict


@flax.struct.dataclass
class Record:
    params: dict
    shadow: dict


CONTAINERS = {
    "dict": lambda p, s: {"params": p, "shadow": s},
    "ordered dict": lambda p, s: collections.OrderedDict(shadow=s, params=p),
    "frozen dict": lambda p, s: flax.core.freeze({"params": p, "shadow": s}),
    "named tuple": Pair,
    "dataclass": Record,
    "state": lambda p, s: nnx.State({"params": p, "shadow": s}),
}


def of(variables, name):
    return variables[name] if hasattr(variables, "keys") else getattr(variables, name)


def plainly(tree):
    if isinstance(tree, nnx.State):
        return nnx.to_pure_dict(tree)
    return flax.core.unfreeze(tree)


def apart(v, x):
    """How far a network is from its shadow."""
    return net(plainly(of(v, "params")), x) - net(plainly(of(v, "shadow")), x)


def alone(v, x):
    return net(plainly(of(v, "params")), x)


@pytest.mark.parametrize("kind", CONTAINERS)
@pytest.mark.parametrize("apply", [apart, alone])
def test_parameters_are_cut_and_a_copy_of_them_in_another_collection_is_not(kind, apply):
    variables = CONTAINERS[kind](params(0), params(1))
    (group,) = graph.groups(apply, variables, X)
    assert {(s.collection, s.path, s.axis) for s in group.slots} == {
        ("params", "one/kernel", 1),
        ("params", "two/kernel", 0),
    }
    found = compact.verify(apply, variables, [group], X, key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3

    keep = np.array([True, False, True, True, False, True, False, True])
    small, slim = compact.slim(apply, variables, [group], {group.name: jnp.asarray(keep)}, X)
    one, two = (np.asarray(params(0)[n]["kernel"]) for n in ("one", "two"))
    np.testing.assert_array_equal(plainly(of(slim, "params"))["one"]["kernel"], one[:, keep])
    np.testing.assert_array_equal(plainly(of(slim, "params"))["two"]["kernel"], two[keep])
    jax.tree.map(np.testing.assert_array_equal, plainly(of(slim, "shadow")), params(1))
    expected = np.maximum(np.asarray(X) @ one[:, keep], 0) @ two[keep]
    if apply is apart:
        expected = expected - np.asarray(net(params(1), X))
    np.testing.assert_allclose(small(slim, X), expected, atol=1e-5)
    np.testing.assert_allclose(jax.jit(small)(slim, X), expected, atol=1e-5)


def test_only_parameters_are_counted():
    variables = {"params": params(0), "shadow": params(1)}
    (group,) = graph.groups(apart, variables, X)
    cost_of = budget.meter(apart, variables, [group], X)
    assert cost_of({}).params == 3 * 8 + 8 * 2
    assert cost_of({group.name: 3}).params == 3 * 3 + 3 * 2
    multiplications = 5 * (3 * 3 + 3 * 2) + 5 * (3 * 8 + 8 * 2)
    rest = 2 * 5 * 2  # what the differences cost at most, and the relus
    assert 2 * multiplications <= cost_of({group.name: 3}).flops <= 2 * multiplications + rest + 5 * 11


def test_units_that_a_copy_shares_are_cut_in_both():
    def apply(v, x):
        h = jax.nn.relu(x @ v["params"]["one"]["kernel"] + x @ v["shadow"]["one"]["kernel"])
        return h @ v["params"]["two"]["kernel"]

    variables = {"params": params(0), "shadow": params(1), "batch_stats": params(2)}
    (group,) = graph.groups(apply, variables, X)
    assert {(s.collection, s.path, s.axis) for s in group.slots} == {
        ("params", "one/kernel", 1),
        ("shadow", "one/kernel", 1),
        ("params", "two/kernel", 0),
    }
    assert max(compact.verify(apply, variables, [group], X, key=jax.random.key(0)).differences) < 1e-5
    kept = {group.name: jnp.arange(8) < 5}
    _, slim = compact.slim(apply, variables, [group], kept, X)
    shapes = jax.tree.map(jnp.shape, slim)
    assert shapes["params"] == {"one": {"kernel": (3, 5)}, "two": {"kernel": (5, 2)}}
    assert shapes["shadow"] == {"one": {"kernel": (3, 5)}, "two": {"kernel": (8, 2)}}
    assert shapes["batch_stats"] == jax.tree.map(jnp.shape, params(2))


def attention(v, x):
    """Queries against the keys of a cache, which is named like the projection that makes them, and lies transposed."""
    p = v["params"]
    keys = jnp.concatenate([v["cache"]["key"]["kernel"], (x @ p["key"]["kernel"]).T], axis=1)
    return jax.nn.softmax((x @ p["query"]["kernel"]) @ keys) @ jnp.concatenate([v["cache"]["value"], x])


def with_cache():
    rng = np.random.default_rng(3)
    make = lambda *s: jnp.asarray(rng.normal(size=s), jnp.float32)  # noqa: E731
    return {
        "params": {"key": {"kernel": make(3, 8)}, "query": {"kernel": make(3, 8)}},
        "cache": {"key": {"kernel": make(8, 4)}, "value": make(4, 3)},
    }


def test_a_cache_that_is_named_like_its_projection_is_cut_along_its_own_axis():
    variables = with_cache()
    (group,) = graph.groups(attention, variables, X)
    assert {(s.collection, s.path, s.axis) for s in group.slots} == {
        ("params", "key/kernel", 1),
        ("params", "query/kernel", 1),
        ("cache", "key/kernel", 0),
    }
    found = compact.verify(attention, variables, [group], X, key=jax.random.key(0))
    assert max(found.differences) < 1e-5
    assert min(found.changes) > 1e-3
    kept = {group.name: jnp.arange(8) % 3 != 1}
    _, slim = compact.slim(attention, variables, [group], kept, X)
    jax.tree.map(np.testing.assert_array_equal, slim, compact.cut(variables, [group], kept))
    assert jax.tree.map(jnp.shape, slim) == {
        "params": {"key": {"kernel": (3, 5)}, "query": {"kernel": (3, 5)}},
        "cache": {"key": {"kernel": (5, 4)}, "value": (4, 3)},
    }


def test_a_tuple_has_no_names_so_all_of_it_are_parameters():
    def apply(v, x):
        h = (x @ v[0]["one"]["kernel"] - v[1]["one"]["mean"]) * v[0]["scale"]
        return jax.nn.relu(h) @ v[0]["two"]["kernel"]

    variables = (params(0) | {"scale": jnp.ones(8)}, {"one": {"mean": jnp.full(8, 0.3)}})
    (group,) = graph.groups(apply, variables, X)
    assert {(s.collection, s.path) for s in group.slots} == {
        ("params", "0/one/kernel"),
        ("params", "0/scale"),
        ("params", "0/two/kernel"),
        ("params", "1/one/mean"),
    }
    assert max(compact.verify(apply, variables, [group], X, key=jax.random.key(0)).differences) < 1e-5


class WithDropout(eqx.Module):
    first: eqx.nn.Linear
    dropout: eqx.nn.Dropout
    second: eqx.nn.Linear

    def __call__(self, x):
        return self.second(self.dropout(jax.nn.relu(self.first(x))))


def equinox_modules():
    a, b = jax.random.split(jax.random.key(0))
    mlp = eqx.nn.MLP(3, 2, 8, 1, key=a)
    dropout = WithDropout(eqx.nn.Linear(3, 8, key=a), eqx.nn.Dropout(0.5, inference=True), eqx.nn.Linear(8, 2, key=b))
    return {"MLP": (mlp, "'activation'"), "dropout": (dropout, "'dropout/inference'")}


@pytest.mark.parametrize("kind", ["MLP", "dropout"])
def test_a_whole_equinox_module_is_answered_and_its_arrays_work(kind):
    module, named = equinox_modules()[kind]

    def whole(m, x):
        return jax.vmap(m)(x)

    params, rest = eqx.partition(module, eqx.is_array)

    def apply(p, x):
        return jax.vmap(eqx.combine(p, rest))(x)

    (group,) = graph.groups(apply, params, X)
    kept = {group.name: jnp.arange(8) % 2 == 0}
    for call in (
        lambda: graph.groups(whole, module, X),
        lambda: compact.slim(whole, module, [group], kept, X),
        lambda: budget.meter(whole, module, [group], X),
    ):
        with pytest.raises(ValueError, match=r"eqx\.partition") as error:
            call()
        assert named in str(error.value)
    found = compact.verify(apply, params, [group], X, key=jax.random.key(1))
    assert max(found.differences) < 1e-5
    assert max(found.changes) > 1e-2
    # Cutting leaves alone what is no array.
    small, slim = compact.slim(apply, params, [group], kept, X)
    np.testing.assert_allclose(whole(compact.cut(module, [group], kept), X), small(slim, X), atol=1e-6)


def test_a_string_among_the_variables_is_named():
    with pytest.raises(ValueError, match=r"'net/mode' is a str"):
        graph.groups(lambda v, x: x, {"net": {"mode": "linear"}}, X)
