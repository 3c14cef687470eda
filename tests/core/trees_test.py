import collections
import dataclasses

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mvp_jax.core import trees


class Pair(collections.namedtuple("Pair", "left right")):
    """A container with attributes."""


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Box:
    inner: dict


@pytest.mark.parametrize(
    ("tree", "paths"),
    [
        ({"b": {"k": 1}, "a": 2}, ["a", "b/k"]),
        (flax.core.FrozenDict({"b": {"k": 1}, "a": 2}), ["a", "b/k"]),
        (({"x": 1}, [2, 3]), ["0/x", "1/0", "1/1"]),
        (Pair(1, {"v": 2}), ["left", "right/v"]),
        (Box({"z": 1}), ["inner/z"]),
        ({1: 5}, ["1"]),
    ],
)
def test_paths_of_all_containers(tree, paths):
    assert list(trees.flatten(tree)) == paths
    assert jax.tree.leaves(trees.paths(tree)) == paths
    assert list(trees.flatten(tree).values()) == jax.tree.leaves(tree)


def test_an_nnx_state_has_the_paths_of_its_pure_dict():
    state = nnx.state(nnx.Linear(2, 3, rngs=nnx.Rngs(0)))
    assert list(trees.flatten(state)) == list(trees.flatten(nnx.to_pure_dict(state))) == ["bias", "kernel"]


def test_two_leaves_of_one_path_are_refused():
    with pytest.raises(ValueError, match=r"share a path: \['a/1'\]"):
        trees.flatten({"a": ({"1": 1}, 2), "a/1": 3})


def test_rules():
    params = {"conv": {"bias": 0, "kernel": 0}, "head": {"bias": 0, "kernel": 0}}
    got = trees.match(params, [("head/.*", "frozen"), (".*/kernel", "pruned")], default="dense")
    assert list(trees.flatten(got).values()) == ["dense", "pruned", "frozen", "frozen"]
    chosen = trees.select(params, [("head/.*", False), ".*/kernel"])
    assert trees.flatten(chosen) == {"conv/bias": False, "conv/kernel": True, "head/bias": False, "head/kernel": False}
    with pytest.raises(ValueError, match="match no leaf: \\['kernel'\\]"):  # a whole path is meant, not a part
        trees.select(params, ["kernel"])
    # A rule that earlier rules leave nothing to is not idle: it matches.
    assert trees.match(params, [(".*", 1), ("head/.*", 2)])["head"]["bias"] == 1


def test_stack_and_unstack():
    members = [{"a": jnp.full(2, i), "b": (jnp.float32(i),)} for i in range(3)]
    stacked = trees.stack(members)
    assert stacked["a"].shape == (3, 2)
    assert stacked["b"][0].tolist() == [0.0, 1.0, 2.0]
    back = trees.unstack(stacked)
    assert len(back) == 3
    assert back[2]["a"].tolist() == [2, 2]
    with pytest.raises(ValueError, match="tree 0 and tree 1 differ"):
        trees.stack([{"a": jnp.ones(1)}, {"b": jnp.ones(1)}])
    with pytest.raises(ValueError, match="no trees"):
        trees.stack([])
    with pytest.raises(ValueError, match="different sizes"):
        trees.unstack({"a": jnp.ones(2), "b": jnp.ones(3)})


def test_structures():
    trees.check_same_structure({"a": 1}, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match="left and right differ in structure: only in left: \\['b'\\]"):
        trees.check_same_structure({"a": 1, "b": 2}, {"a": 1}, "left", "right")
    with pytest.raises(ValueError, match="the same paths in containers of other types"):
        trees.check_same_structure([1, 2], (1, 2))


def test_a_tree_is_aligned_to_another_by_paths():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    adam = nnx.Optimizer(model, optax.adam(1e-3), wrt=nnx.Param).opt_state[0].mu
    params = nnx.state(model, nnx.Param)
    adam = jax.tree.map(lambda x: jnp.arange(x.size, dtype=jnp.float32).reshape(x.shape), adam)
    assert jax.tree.structure(adam) != jax.tree.structure(params)
    found = trees.align(adam, params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    np.testing.assert_array_equal(found["kernel"][...], np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(trees.align(found, {"kernel": 0, "bias": 0})["bias"], np.arange(3.0))
    # In a dataclass the order of the leaves is that of its fields, in a dict that of the alphabet.
    named = collections.namedtuple("named", ("kernel", "bias"))
    assert trees.align({"bias": 1, "kernel": 2}, named(0, 0)) == named(2, 1)
    assert trees.align({"0": 1, "1": [2, 3]}, (0, (0, 0))) == (1, (2, 3))


def test_a_scalar_stands_for_a_subtree():
    like = {"base": {"w": 0, "b": {"c": 0}}, "base2": 0}
    assert trees.align({"base": True, "base2": 5}, like) == {"base": {"w": True, "b": {"c": True}}, "base2": 5}
    assert trees.align(True, like) == {"base": {"w": True, "b": {"c": True}}, "base2": True}
    with pytest.raises(ValueError, match=r"only in like: \['base/w'\]; only in mine: \['base'\]"):
        trees.align({"base": jnp.ones(2)}, {"base": {"w": 0}}, "mine", "like")
    with pytest.raises(ValueError, match=r"only in the other: \['b'\]; only in the tree: \[\]"):
        trees.align({"a": 1}, {"a": 1, "b": 2})
    with pytest.raises(ValueError, match=r"only in the other: \[\]; only in the tree: \['b'\]"):
        trees.align({"a": 1, "b": 2}, {"a": 1})


def test_replace():
    assert trees.replace({"a": {"b": 1, "c": 2}}, {"a/b": 5}) == {"a": {"b": 5, "c": 2}}
    with pytest.raises(ValueError, match=r"no such paths: \['a/z'\]"):
        trees.replace({"a": {"b": 1}}, {"a/z": 5})
