"""Along which axes the runs of N:M lie in each leaf: one answer for all, rules over paths, or by the leaf's shape."""

import re
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree

RunAxes: TypeAlias = int | tuple[int, ...]
"""An axis, or several that are read as one, the last running fastest."""


def is_axes(x: Any) -> bool:
    """Whether this is an axis or a tuple of axes."""
    return isinstance(x, int) or (type(x) is tuple and all(isinstance(a, int) for a in x))


def along(axes: PyTree) -> tuple[tuple[str, RunAxes], ...]:
    """Rules over paths, hashable, that say what a tree of axes says.

    Args:
        axes: a tree like the parameters with an axis or a tuple of axes for each leaf, as `graph.contracted` gives it.

    Returns:
        One `(pattern, axes)` for each distinct answer; the pattern matches the paths of the leaves that have it.

    >>> along({"out": {"kernel": (0, 1)}, "query": {"kernel": (0,), "bias": ()}})
    (('out/kernel', (0, 1)), ('query/bias', ()), ('query/kernel', (0,)))
    """
    paths: dict[RunAxes, list[str]] = {}
    for keys, value in jax.tree_util.tree_leaves_with_path(axes, is_leaf=is_axes):
        paths.setdefault(value, []).append(re.escape(trees.path_of(keys)))
    return tuple((paths[a][0] if len(paths[a]) == 1 else f"(?:{'|'.join(paths[a])})", a) for a in paths)


def as_rules(axis: Any) -> Any:
    """What is given as `NofM.axis`, hashable: `None`, axes, or rules; a tree of axes becomes rules."""
    if axis is None or (is_axes(axis) and axis != ()):
        return axis
    if isinstance(axis, list | tuple) and all(
        isinstance(r, list | tuple) and len(r) == 2 and isinstance(r[0], str) for r in axis
    ):
        return tuple((r[0], r[1] if isinstance(r[1], int) else tuple(r[1])) for r in axis)
    return along(axis)


def of_leaves(axis: Any, tree: PyTree, chosen: list[bool]) -> list[tuple[int, ...]]:
    """The axes of the runs for each leaf of a tree.

    Args:
        axis: what `as_rules` returned.
        tree: arrays or shapes.
        chosen: for each leaf whether it is pruned; the others get axis 0.

    Returns:
        A tuple of axes for each leaf.

    Raises:
        ValueError: naming a leaf that is pruned, whose axes are neither given nor known by its shape.
    """
    leaves = trees.flatten(tree)
    if axis is None or is_axes(axis):
        given = [axis] * len(leaves)
    else:
        given = _matched(axis, list(leaves))
    found: list[tuple[int, ...]] = []
    for (path, leaf), a, used in zip(leaves.items(), given, chosen, strict=True):
        if not used:
            found.append((0,))
            continue
        ndim = jnp.ndim(leaf)
        if a is None:
            a = {1: 0, 2: 0, 4: 2}.get(ndim)
        if a is None or a == ():
            raise ValueError(
                f"along which axes products sum over {path!r}, shape {jnp.shape(leaf)}, is not known; give them, "
                "axis=graph.contracted(apply, variables, inputs) or rules [(path, axes), ...], or do not prune it"
            )
        found.append((a,) if isinstance(a, int) else a)
    return found


def _matched(rules: tuple[tuple[str, RunAxes], ...], names: list[str]) -> list[Any]:
    idle = [p for p, _ in rules if not any(re.fullmatch(p, n) for n in names)]
    if idle:
        raise ValueError(f"rules of axes that match no leaf: {idle[:3]}; the paths are {names[:8]}")
    return [next((a for p, a in rules if re.fullmatch(p, n)), None) for n in names]


__all__ = ["RunAxes", "along", "as_rules", "is_axes", "of_leaves"]
