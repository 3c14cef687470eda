"""Unit masks cut arrays, and slim arrays go back to their places in dense ones.

Any tree that contains the parameters' paths can be cut: parameters, `Variables`, gradients, masks, an optimiser's
state, a whole training state. Unit masks stay in the index space of the dense model.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from mvp_jax.compact import copies
from mvp_jax.compact.copies import ArrayCuts
from mvp_jax.core import layouts, trees
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, PyTree, Units
from mvp_jax.core.units import Group, Slot
from mvp_jax.graph import placement


def _kept_along(cuts: Sequence[tuple[str, Slot]], counted: Mapping[str, tuple[int, int]]) -> int:
    """How many indices of an axis stay, from `(kept, all)` units of each group alone.

    Where groups share an axis as factors, each thins out what the others leave by its own share.
    """
    length = cuts[0][1].length or counted[cuts[0][0]][1]
    share = np.ones(length)
    for name, slot in cuts:
        kept, size = counted[name]
        share[slot.index(size).ravel()] *= kept / size
    return round(float(share.sum()))


def _mask_along(cuts: Sequence[tuple[str, Slot]], units: Units) -> Array:
    """Which indices of an axis stay."""
    keep = units_lib.spread(units[cuts[0][0]], cuts[0][1])
    for name, slot in cuts[1:]:
        keep = keep & units_lib.spread(units[name], slot)
    return keep


def _is_traced(units: Units) -> bool:
    return any(isinstance(u, jax.core.Tracer) for u in units.values())


def _static_sizes(units: Units, groups: Sequence[Group], sizes: Mapping[str, int] | None) -> dict[str, int]:
    units_lib.check(units, groups)
    stacked = [name for name, u in units.items() if jnp.ndim(u) != 1]
    if stacked:
        raise ValueError(f"units of {stacked[:3]} are stacked; cut one member at a time or under jax.vmap")
    if _is_traced(units):
        if sizes is None or set(sizes) != set(units):
            raise ValueError(
                "units are traced, so the new shapes cannot be read from them; give sizes={group: kept} for every "
                "group, for instance compact.sizes(units) of a member"
            )
        return {name: int(sizes[name]) for name in units}
    counted = {name: int(np.count_nonzero(np.asarray(u))) for name, u in units.items()}
    wrong = {n: (int(sizes[n]), counted.get(n)) for n in sizes or {} if sizes and counted.get(n) != int(sizes[n])}
    if wrong:
        raise ValueError(f"sizes differ from the units kept, (given, kept): {wrong}")
    return counted


def sizes(units: Units) -> dict[str, int]:
    """How many units each group keeps, counted on the host; `Model.resize` and `cut(..., sizes=)` take this.

    Args:
        units: `{name: bool[C]}`, not traced.

    Returns:
        `{name: number of kept units}`.

    >>> sizes({"fc": jnp.array([True, False, True])})
    {'fc': 2}
    """
    return units_lib.count(units)


def cut(tree: PyTree, groups: Sequence[Group], units: Units, *, sizes: Mapping[str, int] | None = None) -> PyTree:
    """Removes the units that are not kept from every array they run through.

    Args:
        tree: anything with the parameters' paths in it, once or several times under different roots (parameters,
            `Variables`, masks, optimiser state, an average of past parameters). What is named like a collection of the
            groups is cut as that collection; everything else at the parameters' paths is a copy of them and is cut like
            them, except that an entry beside `params` with other shapes (a cache named like its projection) is left
            whole. Scalars and axes of length 1 on a group's axis are left alone, as broadcast masks have them; so is
            every leaf that no group names.
        groups: the groups of the dense model.
        units: `{name: bool[C]}`, for exactly these groups.
        sizes: `{name: number of kept units}`; needed only if `units` are traced (under `jit` or `vmap`). It is not
            checked there: if it is too large, index 0 is repeated; if it is too small, kept units are dropped.

    Returns:
        The same structure with smaller arrays; kept units keep their order. On a mesh, an array is whole along the axes
        that are cut and stays sharded along the others.

    Raises:
        ValueError: if groups, units and tree do not fit, or traced units come without sizes.

    >>> g = units_lib.Group(name="fc", size=3, slots=(units_lib.Slot(path="kernel", axis=1, scored=True),))
    >>> cut({"kernel": jnp.arange(6).reshape(2, 3)}, [g], {"fc": jnp.array([True, False, True])})["kernel"].tolist()
    [[0, 2], [3, 5]]
    """
    kept = _static_sizes(units, groups, sizes)
    axes = copies.axes(tree, groups)
    leaves = trees.flatten(tree)
    gathered = _gather(
        {path: leaves[path] for path in axes},
        anywhere(units),
        tuple((path, axes[path]) for path in sorted(axes)),
        tuple(sorted(kept.items())),
    )
    return trees.replace(tree, gathered)


def anywhere(units: Units) -> dict[str, Any]:
    """Units that go with arrays on any device: on the host, or if they are traced, whole on every device.

    >>> anywhere({"fc": jnp.array([True, False])})
    {'fc': array([ True, False])}
    """
    return {name: layouts.whole(u) if isinstance(u, jax.core.Tracer) else np.asarray(u) for name, u in units.items()}


# One program per shape: cutting the next task's model at the same sizes compiles nothing.
@functools.partial(jax.jit, static_argnames=("axes", "kept"))
def _gather(
    leaves: Mapping[str, Array],
    units: Units,
    axes: tuple[tuple[str, ArrayCuts], ...],
    kept: tuple[tuple[str, int], ...],
) -> dict[str, Array]:
    at = {name: jnp.nonzero(units[name], size=n, fill_value=0)[0] for name, n in kept}
    counted = {name: (n, units[name].shape[-1]) for name, n in kept}
    out = {}
    for path, of_leaf in axes:
        leaf = jnp.asarray(leaves[path])
        for axis, cuts in of_leaf:
            (name, slot), *more = cuts
            if not more and slot.plain:
                index = at[name]
            else:
                index = jnp.nonzero(_mask_along(cuts, units), size=_kept_along(cuts, counted), fill_value=0)[0]
            leaf = placement.take(leaf, index, axis)
        out[path] = leaf
    return out


def embed(tree: PyTree, groups: Sequence[Group], units: Units, like: PyTree, *, fill: PyTree | None = None) -> PyTree:
    """The inverse of `cut`: puts slim arrays back at their places in dense ones.

    Args:
        tree: a slim tree, as `cut` returns it.
        groups: the groups of the dense model.
        units: `{name: bool[C]}`, the units that were kept.
        like: the dense tree, or its `jax.ShapeDtypeStruct`s, of the same structure.
        fill: a dense tree whose entries stand where units were removed; `None`: zeros (`False` in masks).

    Returns:
        A tree with the shapes of `like`; leaves that no group touches come from `tree`. Arrays on a mesh are sharded as
        those of `like`, if these lie on the same mesh.

    Raises:
        ValueError: if the trees do not fit one another or the units.

    >>> g = units_lib.Group(name="fc", size=3, slots=(units_lib.Slot(path="kernel", axis=0, scored=True),))
    >>> keep = {"fc": jnp.array([True, False, True])}
    >>> embed({"kernel": jnp.array([5.0, 6.0])}, [g], keep, {"kernel": jnp.zeros(3)})["kernel"].tolist()
    [5.0, 0.0, 6.0]
    """
    units_lib.check(units, groups)
    trees.check_same_structure(tree, like, "the slim tree", "like")
    if fill is not None:
        trees.check_same_structure(fill, like, "fill", "like")
    axes = copies.axes(like, groups)
    slim, dense = trees.flatten(tree), trees.flatten(like)
    filler = trees.flatten(fill) if fill is not None else {}
    counted = None if _is_traced(units) else sizes(units)
    whole = {g.name: g.size for g in groups}
    for path, of_leaf in axes.items():
        for axis, cuts in of_leaf:
            got = jnp.shape(slim[path])[axis]
            if counted is None:
                continue
            want = _kept_along(cuts, {name: (counted[name], whole[name]) for name, _ in cuts})
            if got != want:
                names = ", ".join(repr(name) for name, _ in cuts)
                raise ValueError(f"{path!r} has {got} units along axis {axis}, but {want} of {names} are kept")
    scattered = _scatter(
        {path: slim[path] for path in axes},
        {path: filler[path] if path in filler else np.zeros((), dense[path].dtype) for path in axes},
        anywhere(units),
        tuple((path, axes[path]) for path in sorted(axes)),
        tuple((path, placement.same_mesh(dense[path], slim[path])) for path in sorted(axes)),
    )
    return trees.replace(tree, scattered)


@functools.partial(jax.jit, static_argnames=("axes", "shardings"))
def _scatter(
    leaves: Mapping[str, Array],
    fill: Mapping[str, Array],
    units: Units,
    axes: tuple[tuple[str, ArrayCuts], ...],
    shardings: tuple[tuple[str, NamedSharding | None], ...],
) -> dict[str, Array]:
    lies = dict(shardings)
    out = {}
    for path, cuts in axes:
        leaf = jnp.asarray(leaves[path])
        there = jnp.ones((), bool)
        for axis, of_axis in cuts:
            # A gather by rank needs no counts, so it also works on traced units; removed units read anything.
            keep = _mask_along(of_axis, units)
            rank = jnp.cumsum(keep.astype(jnp.int32)) - 1
            leaf = placement.take(leaf, jnp.clip(rank, 0, leaf.shape[axis] - 1), axis)
            along = [1] * leaf.ndim
            along[axis] = -1
            there = there & jnp.reshape(keep, along)
        filler = fill[path].astype(leaf.dtype)
        filler = placement.lay(filler, lies[path]) if filler.ndim else filler
        out[path] = jnp.where(there, placement.lay(leaf, lies[path]), filler)
    return out
