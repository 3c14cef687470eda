"""The call of a model or of a function that is exported: checked arguments, and containers that a file can hold."""

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mvp_jax.core import trees
from mvp_jax.core.types import Array, PyTree, Variables
from mvp_jax.models.api import Model
from mvp_jax.pretrained.comparison import examples

# No extra of this package for ONNX: jax2onnx asks for an older orbax-checkpoint than this, and does without any.
_ONNX = "onnx onnxruntime onnx-ir; pip install --no-deps jax2onnx"
_NEEDED = {
    "stablehlo": {"flatbuffers": "-e '.[export]'"},
    "onnx": {"jax2onnx": _ONNX, "onnxruntime": _ONNX},
}


def check_packages(program: str) -> None:
    """Checks that what a program of a kind, `stablehlo` or `onnx`, is written with is installed.

    Raises:
        ValueError: if a package is missing, with the command that installs it.
    """
    for module, packages in _NEEDED[program].items():
        if importlib.util.find_spec(module) is None:
            raise ValueError(f"this needs {module}, which is not installed: pip install {packages}")


class Call(NamedTuple):
    """A function to export, with arguments.

    Attributes:
        apply: called as `apply(variables, x)`.
        variables: a pytree of arrays, each on one device.
        x: a pytree of arrays.
        batched: the paths of those arrays of `x` whose first axis is the batch, of a size that is left open.
    """

    apply: Callable[[PyTree, PyTree], PyTree]
    variables: PyTree
    x: PyTree
    batched: frozenset[str]


def prepared(model: Any, variables: PyTree, x: PyTree | None, any_batch: bool) -> Call:
    """The call of a model or of a function, with arguments that are checked.

    Args:
        model: a `Model`, of which the logits are computed, or a function `model(variables, x)`.
        variables: its variables, any pytree of arrays.
        x: examples, a pytree of arrays; `None`: made up, for a `Model` alone.
        any_batch: whether the batch size is left open.

    Returns:
        The call.

    Raises:
        ValueError: if `x` is missing or its batch axes differ in length, variables or `x` hold what is no array, or the
            model is a module instead of a function.
    """
    if x is None and not any_batch:
        raise ValueError("any_batch=False fixes the shapes of inputs to those of x: give `x`")
    if isinstance(model, Model):
        inputs = (examples(model) if x is None else jnp.asarray(x)).astype(model.input_dtype)
        given = _arrays(Variables(*variables), "the variables")
        return Call(lambda v, x: model.apply(v, x)[0], given, inputs, frozenset([""] if any_batch else []))
    if isinstance(model, nnx.Module):
        raise ValueError(
            f"{type(model).__name__} is an nnx.Module; take definition, state = nnx.split(module), and give the "
            "function `lambda state, x: nnx.merge(definition, state)(x)` and the state"
        )
    if not callable(model) or hasattr(model, "apply"):
        raise ValueError(
            f"a {type(model).__name__} is neither a Model nor a function of variables and x; of a Linen module, give "
            "`module.apply`"
        )
    if x is None:
        raise ValueError("a function of one's own needs examples: give `x`, as the function takes it")
    inputs = _arrays(x, "x")
    sizes = {path: leaf.shape[0] for path, leaf in trees.flatten(inputs).items() if leaf.ndim}
    if any_batch and len(set(sizes.values())) > 1:
        raise ValueError(
            f"the first axes of x, which are the batch, differ in length: {sizes}; give as many examples of each, put "
            "what belongs to no example into the function or its variables, or fix all shapes by any_batch=False"
        )
    return Call(model, _arrays(variables, "the variables"), inputs, frozenset(sizes if any_batch else []))


def computed(call: Call) -> PyTree:
    """What the function computes from the examples, in the containers that `plain` gives.

    It is compiled, as the program will be: how bfloat16 is rounded depends on what the compiler fuses.

    Raises:
        ValueError: if the function does not work under `jax.jit` or returns what is no array.
    """
    try:
        return jax.jit(lambda variables, x: plain(call.apply(variables, x)))(call.variables, call.x)
    except ValueError:
        raise
    except Exception as error:  # what a function raises under tracing has no common type
        raise ValueError(
            f"this function does not work under jax.jit, called with the variables and x: {short(error)}; it must be "
            "pure and return arrays"
        ) from error


def _arrays(tree: PyTree, what: str) -> PyTree:
    """The tree with all leaves as JAX arrays, each on one device."""

    def one(path: str, leaf: Any) -> Array:
        try:
            array = jnp.asarray(leaf)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"{what} hold a {type(leaf).__name__} at {path!r}, which is no array; split such things off, by "
                "`eqx.partition(module, eqx.is_array)` or `nnx.split(module)`, and put them together in the function"
            ) from error
        return array if len(array.sharding.device_set) == 1 else jnp.asarray(np.asarray(array))

    named = trees.flatten(tree)
    return trees.replace(tree, {path: one(path, leaf) for path, leaf in named.items()})


def plain(tree: PyTree) -> PyTree:
    """A tree in the containers that an exported program can have.

    Args:
        tree: any pytree of arrays.

    Returns:
        Dicts with string keys, lists and tuples as they are; any other container as `{path: leaf}`; random keys as
        their `jax.random.key_data`. The paths of leaves stay what they were.

    >>> plain({"a": [1, {2: {"b": 3}}]})
    {'a': [1, {'2/b': 3}]}
    """
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {key: plain(value) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(map(plain, tree))
    if tree is None:
        return None
    if not jax.tree_util.treedef_is_leaf(jax.tree.structure(tree)):
        return {path: plain(leaf) for path, leaf in trees.flatten(tree).items()}
    return jax.random.key_data(tree) if is_key(tree) else tree


def dressed(plain: PyTree, like: PyTree) -> PyTree:
    """The tree of which `plain` made another, in its own containers again.

    Args:
        plain: what `plain` gave, with arrays of any values.
        like: the tree that it was given, or one of the same structure.

    Returns:
        The arrays of `plain` in the containers of `like`; data of random keys as keys.

    >>> dressed({"2/b": 5}, {2: {"b": 3}})
    {2: {'b': 5}}
    """
    given = trees.flatten(plain)
    return trees.replace(like, {p: wrapped(given[p], leaf) for p, leaf in trees.flatten(like).items()})


def is_key(leaf: Any) -> bool:
    """Whether a leaf is an array of random keys, as `jax.random.key` makes them.

    >>> is_key(jax.random.key(0)), is_key(jax.random.key_data(jax.random.key(0)))
    (True, False)
    """
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def wrapped(data: Array, like: Array) -> Array:
    """The random keys of which `data` is the data, if `like` is one; any other array as it is."""
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(like)) if is_key(like) else data


def short(error: Exception) -> str:
    r"""The kind of an error and the first line of what it says.

    >>> short(TypeError("no such thing\nand more"))
    'TypeError: no such thing'
    """
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"


def described(inputs: PyTree, batched: frozenset[str]) -> Any:
    """The shapes of inputs for a report, `n` for a batch size that is left open.

    Args:
        inputs: a pytree of arrays.
        batched: the paths of those whose first axis is the batch.

    Returns:
        A list of sizes; of several arrays `{path: list of sizes}`.

    >>> described({"a": np.ones((3, 2)), "b": np.ones(())}, frozenset(["a"]))
    {'a': ['n', 2], 'b': []}
    """
    shapes = {p: ["n", *a.shape[1:]] if p in batched else list(a.shape) for p, a in trees.flatten(inputs).items()}
    return shapes[""] if list(shapes) == [""] else shapes
