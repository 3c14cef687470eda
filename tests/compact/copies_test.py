"""Which arrays of a tree `cut` takes for a model's: its collections by name, copies of its parameters by paths."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mvp_jax import compact
from mvp_jax.core.units import Group, Slot

KEEP = np.array([True, False, True, True, False, True])
UNITS = {"one": jnp.asarray(KEEP)}
PARAMETERS = (
    Slot(path="one/kernel", axis=1, scored=True),
    Slot(path="one/bias", axis=0, scored=True),
    Slot(path="two/kernel", axis=0),
)
GROUP = Group(name="one", size=6, slots=PARAMETERS)
WITH_STATS = Group(name="one", size=6, slots=(*PARAMETERS, Slot(path="norm/mean", axis=0, collection="batch_stats")))


def params(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"one": {"kernel": (4, 6), "bias": (6,)}, "two": {"kernel": (6, 2)}, "free": (6,)}
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(size=s)), shapes, is_leaf=lambda s: isinstance(s, tuple))


def by_numpy(p):
    p = jax.tree.map(np.asarray, p)
    return {
        "one": {"kernel": p["one"]["kernel"][:, KEEP], "bias": p["one"]["bias"][KEEP]},
        "two": {"kernel": p["two"]["kernel"][KEEP]},
        "free": p["free"],
    }


def assert_equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


class State(NamedTuple):
    params: dict
    batch_stats: dict
    opt_state: tuple
    ema: dict


def test_every_copy_in_a_training_state_is_cut():
    tx = optax.chain(optax.clip(1.0), optax.adam(1e-3), optax.ema(0.9))
    stats = {"norm": {"mean": jnp.arange(6.0)}}
    state = State(params(0), stats, tx.init(params(1)), {"params": params(2), "batch_stats": stats})
    state = state._replace(opt_state=jax.tree.map(lambda a: a + 1 if jnp.ndim(a) else a, state.opt_state))
    got = compact.cut(state, [WITH_STATS], UNITS)
    assert_equal(got.params, by_numpy(params(0)))
    assert_equal(got.ema["params"], by_numpy(params(2)))
    for s in (got.batch_stats, got.ema["batch_stats"]):
        np.testing.assert_array_equal(s["norm"]["mean"], [0, 2, 3, 5])
    moments = [s for s in got.opt_state[1] if hasattr(s, "mu")]
    ones = by_numpy(jax.tree.map(jnp.ones_like, params(0)))
    assert len(moments) == 1
    assert_equal(moments[0].mu, ones)
    assert_equal(moments[0].nu, ones)
    assert_equal(got.opt_state[2].ema, ones)
    back = compact.embed(got, [WITH_STATS], UNITS, state, fill=state)
    assert_equal(back, state)


def test_a_copy_beside_the_parameters_is_cut_whatever_its_name():
    masks = jax.tree.map(lambda a: jnp.ones((1,) * (a.ndim - 1) + a.shape[-1:], bool), params(0))
    tree = {"params": params(0), "shadow": params(1), "masks": masks | {"two": {"kernel": jnp.asarray(True)}}}
    got = compact.cut(tree, [GROUP], UNITS)
    assert_equal(got["params"], by_numpy(params(0)))
    assert_equal(got["shadow"], by_numpy(params(1)))
    assert jax.tree.map(jnp.shape, got["masks"]) == {
        "one": {"kernel": (1, 4), "bias": (4,)}, "two": {"kernel": ()}, "free": (6,),
    }  # fmt: skip


@pytest.mark.parametrize("shape", [(2, 7, 6), (6, 4), (9,)])
def test_a_cache_named_like_its_projection_is_no_copy(shape):
    cache = {"one": {"kernel": jnp.ones(shape), "bias": jnp.zeros(6)}}
    got = compact.cut({"params": params(0), "cache": cache}, [GROUP], UNITS)
    assert_equal(got["params"], by_numpy(params(0)))
    assert_equal(got["cache"], cache)


def test_collections_with_the_same_paths_are_cut_along_their_own_axes():
    shadow = Slot(path="one/kernel", axis=0, collection="shadow")
    group = Group(name="one", size=6, slots=(*PARAMETERS, shadow))
    tree = {"params": params(0), "shadow": {"one": {"kernel": jnp.arange(12).reshape(6, 2), "bias": jnp.ones(6)}}}
    got = compact.cut({"state": tree}, [group], UNITS)["state"]
    assert_equal(got["params"], by_numpy(params(0)))
    np.testing.assert_array_equal(got["shadow"]["one"]["kernel"], np.arange(12).reshape(6, 2)[KEEP])
    assert got["shadow"]["one"]["bias"].shape == (6,)  # the group does not run along it in this collection


def test_a_collection_may_have_the_name_of_a_layer():
    slots = (
        Slot(path="cache/kernel", axis=1, scored=True),
        Slot(path="out", axis=0),
        Slot(path="kernel", axis=0, collection="cache"),
    )
    group = Group(name="cache", size=6, slots=slots)
    tree = {
        "params": {"cache": {"kernel": jnp.ones((2, 6))}, "out": jnp.ones((6, 3))},
        "cache": {"kernel": jnp.ones((6, 5))},
    }
    got = jax.tree.map(jnp.shape, compact.cut(tree, [group], {"cache": UNITS["one"]}))
    assert got == {"params": {"cache": {"kernel": (2, 4)}, "out": (4, 3)}, "cache": {"kernel": (4, 5)}}


def test_trees_without_names_of_collections():
    stats = {"norm": {"mean": jnp.arange(6.0)}}
    got = compact.cut((params(0), stats), [WITH_STATS], UNITS)
    assert_equal(got[0], by_numpy(params(0)))
    assert got[1]["norm"]["mean"].tolist() == [0, 2, 3, 5]
    assert_equal(compact.cut(params(0), [GROUP], UNITS), by_numpy(params(0)))
    assert compact.cut(stats, [WITH_STATS], UNITS)["norm"]["mean"].tolist() == [0, 2, 3, 5]


def test_what_cannot_be_told_apart_is_refused():
    slots = (*PARAMETERS, *(Slot(path="s", axis=a, collection=c) for a, c in enumerate(("batch_stats", "cache"))))
    group = Group(name="one", size=6, slots=slots)
    with pytest.raises(ValueError, match=r"'1/s' may be of any of the collections \['batch_stats', 'cache'\]"):
        compact.cut((params(0), {"s": jnp.ones((6, 6))}), [group], UNITS)
    got = compact.cut({"params": params(0), "cache": {"s": jnp.ones((6, 6))}}, [group], UNITS)
    assert got["cache"]["s"].shape == (6, 4)


def test_other_trees_are_refused():
    with pytest.raises(ValueError, match="none of the groups' 3 paths"):
        compact.cut({"a": jnp.ones(6)}, [GROUP], UNITS)
    with pytest.raises(ValueError, match="lacks the 6 units of group 'one' along axis 1"):
        compact.cut({"opt": {"mu": {"one": {"kernel": jnp.ones((4, 5))}}}}, [GROUP], UNITS)
