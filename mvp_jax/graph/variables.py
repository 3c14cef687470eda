"""The leaves of a function's variables: their paths, the collections that they are in, and that they are arrays."""

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
