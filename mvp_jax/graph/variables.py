"""The leaves of a function's variables: their paths, the collections that they are in, and that they are arrays."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree


def collections(variables: PyTree) -> list[tuple[str, str]]:
    """The path and the collection of every leaf of variables, in the order of `jax.tree.leaves`.

    A collection is an entry of the variables. Two collections may hold the same paths: a leaf is known by both.

    Args:
        variables: any pytree of arrays or shapes.

    Returns:
        `[(path, collection), ...]`. If the tree has an entry `params` (a key of a dict, a field of a tuple or
        dataclass), each leaf is in the collection of its entry, and paths start inside the entry; otherwise all leaves
        are in `params`.

    Raises:
        ValueError: if a leaf is no array, shape or number, naming its path.

    >>> collections({"params": {"fc": jax.numpy.ones(2)}, "shadow": {"fc": jax.numpy.ones(2)}})
    [('fc', 'params'), ('fc', 'shadow')]
    >>> collections({"fc": jax.numpy.ones(2)})
    [('fc', 'params')]
    """
    check_arrays(variables)
    found = list(trees.flatten(variables))
    keys = [path for path, _ in jax.tree_util.tree_leaves_with_path(variables)]
    entries = [trees.path_of(path[:1]) for path in keys]
    if "params" not in entries:
        return [(path, "params") for path in found]
    return [(path[len(entry) + 1 :] or entry, entry) for path, entry in zip(found, entries, strict=True)]


def check_arrays(variables: PyTree) -> None:
    """Raises `ValueError` unless every leaf is an array, the shape of one, or a number, naming the first that is not.

    >>> check_arrays({"kernel": jax.numpy.ones(2), "mode": "same"})
    Traceback (most recent call last):
    ...
    ValueError: leaf 'mode' is a str, not an array; variables hold arrays only: of an Equinox module, give params of
    params, rest = eqx.partition(model, eqx.is_array), and a function that calls eqx.combine(params, rest)
    """
    for path, leaf in trees.flatten(variables).items():
        if not _is_array(leaf):
            raise ValueError(
                f"leaf {path!r} is a {type(leaf).__name__}, not an array; variables hold arrays only: of an Equinox "
                "module, give params of params, rest = eqx.partition(model, eqx.is_array), and a function that calls "
                "eqx.combine(params, rest)"
            )


def returned(named: Sequence[tuple[str, str]], shapes: Sequence[tuple[int, ...]], results: PyTree) -> dict[int, int]:
    """Which results of a function are entries of a collection that come back with new values.

    A part of the results is a collection other than `params` if it has exactly its paths and shapes; a collection that
    is a single array comes back where the results have an entry of its name and shape.

    Args:
        named: the path and the collection of every leaf of the variables.
        shapes: their shapes.
        results: what the function returns, arrays or shapes.

    Returns:
        `{which result: which leaf of the variables}`.

    >>> cache = {"key": np.zeros((2, 4)), "value": np.zeros((2, 4))}
    >>> named = collections({"params": {"w": np.zeros(3)}, "cache": cache})
    >>> returned(named, [(2, 4), (2, 4), (3,)], (np.zeros((2, 4)), cache))
    {1: 0, 2: 1}
    """
    outs = [
        (tuple(filter(None, trees.path_of(path).split("/"))), np.shape(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(results)
    ]
    found: dict[int, int] = {}
    for name in dict.fromkeys(entry for _, entry in named if entry != "params"):
        at = [k for k, (_, entry) in enumerate(named) if entry == name]
        alone = len(at) == 1 and named[at[0]][0] == name  # the collection is an array itself
        want = [((name,) if alone else tuple(named[k][0].split("/")), shapes[k]) for k in at]
        prefixes = dict.fromkeys(path[:n] for path, _ in outs for n in range(len(path) + 1))
        for prefix in prefixes:
            here = [i for i, (path, _) in enumerate(outs) if path[: len(prefix)] == prefix]
            if not alone:
                match = [(outs[i][0][len(prefix) :], outs[i][1]) for i in here] == want
                found |= dict(zip(here, at, strict=True)) if match else {}
            else:
                found |= {i: at[0] for i in here if (outs[i][0][len(prefix) :], outs[i][1]) == want[0]}
    return found


def settings(variables: PyTree) -> list[str]:
    """The paths of leaves that are Python booleans or numbers: settings, where an array was meant.

    >>> settings({"kernel": np.ones(2), "dropout": {"inference": True}})
    ['dropout/inference']
    """
    return [path for path, leaf in trees.flatten(variables).items() if _is_number(leaf)]


def _is_number(leaf: Any) -> bool:
    # The shape of a Python number is a weak scalar.
    weak = isinstance(leaf, jax.ShapeDtypeStruct) and leaf.weak_type and leaf.shape == ()
    return weak or isinstance(leaf, bool | int | float | complex)


def _is_array(leaf: Any) -> bool:
    return isinstance(leaf, bool | int | float | complex | np.generic) or (
        hasattr(leaf, "shape") and hasattr(leaf, "dtype") and not callable(leaf)
    )
