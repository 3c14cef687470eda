"""Unit masks cut arrays, and slim arrays go back to their places in dense ones.

Any tree that contains the parameters' paths can be cut: parameters, `Variables`, gradients, masks, an optimiser's
state, a whole training state. Unit masks stay in the index space of the dense model.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import trees
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, PyTree, Units
from mvp_jax.core.units import Group, Slot

ArrayCuts: TypeAlias = tuple[tuple[int, tuple[tuple[str, Slot], ...]], ...]
"""What to cut in one array: `((axis, ((group name, slot), ...)), ...)`."""

TreeCuts: TypeAlias = dict[str, ArrayCuts]
"""What to cut in a tree: `{path of an array: its cuts}`."""


def _axes(tree: PyTree, groups: Sequence[Group]) -> TreeCuts:
    """Every axis of every leaf that a group runs along.

    The tree may hold several copies of the model (parameters, momenta), each under a root of its own. Roots are
    found by paths: whatever precedes a slot's path is one, unless a shorter root leads to it.
    """
    by_slot: dict[str, list[tuple[str, Slot]]] = {}
    sizes = {g.name: g.size for g in groups}
    for g in groups:
        for s in g.slots:
            s = dataclasses.replace(s, scored=False, collection="params")  # what matters is where units lie
            if (g.name, s) not in by_slot.setdefault(s.path, []):
                by_slot[s.path].append((g.name, s))
    leaves = trees.flatten(tree)
    parts = {path: tuple(path.split("/")) for path in leaves}
    candidates = {
        p[:i]: None for p in parts.values() for i in range(len(p)) if "/".join(p[i:]) in by_slot
    }  # a dict, so that the order does not hang on hashes
    roots = [r for r in candidates if not any(r[:i] in candidates for i in range(len(r)))]
    if groups and not roots:
        raise ValueError(
            f"none of the groups' {len(by_slot)} paths ({sorted(by_slot)[:3]}, ...) is in the tree "
            f"({sorted(leaves)[:3]}, ...); give the groups of the model the tree belongs to"
        )
    found: TreeCuts = {}
    for path, p in parts.items():
        shape = jnp.shape(leaves[path])
        for root in roots:
            slot = "/".join(p[len(root) :])
            if p[: len(root)] != root or slot not in by_slot or not shape:
                continue
            cuts: dict[int, list[tuple[str, Slot]]] = {}
            for name, s in by_slot[slot]:
                axis = s.axis
                if axis >= len(shape) or shape[axis] not in (1, s.length or sizes[name]):
                    raise ValueError(
                        f"{path!r} of shape {shape} lacks the {sizes[name]} units of group {name!r} along axis {axis}; "
                        "cut dense trees with the dense model's groups, and stacked members under jax.vmap"
                    )
                if shape[axis] != 1 or sizes[name] == 1:
                    cuts.setdefault(axis, []).append((name, s))
            if cuts:
                found[path] = (*found.get(path, ()), *((a, tuple(c)) for a, c in cuts.items()))
    return found


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
            `Variables`, masks, optimiser state). Scalars and axes of length 1 on a group's axis are left alone, as
            broadcast masks have them; so is every leaf that no group names.
        groups: the groups of the dense model.
        units: `{name: bool[C]}`, for exactly these groups.
        sizes: `{name: number of kept units}`; needed only if `units` are traced (under `jit` or `vmap`). It is not
            checked there: if it is too large, index 0 is repeated; if it is too small, kept units are dropped.

    Returns:
        The same structure with smaller arrays; kept units keep their order.

    Raises:
        ValueError: if groups, units and tree do not fit, or traced units come without sizes.

    >>> g = units_lib.Group(name="fc", size=3, slots=(units_lib.Slot(path="kernel", axis=1, scored=True),))
    >>> cut({"kernel": jnp.arange(6).reshape(2, 3)}, [g], {"fc": jnp.array([True, False, True])})["kernel"].tolist()
    [[0, 2], [3, 5]]
    """
    kept = _static_sizes(units, groups, sizes)
    axes = _axes(tree, groups)
    leaves = trees.flatten(tree)
    gathered = _gather(
        {path: leaves[path] for path in axes},
        dict(units),
        tuple((path, axes[path]) for path in sorted(axes)),
        tuple(sorted(kept.items())),
    )
    return trees.replace(tree, gathered)


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
            if not more and not slot.length:
                index = at[name]
            else:
                index = jnp.nonzero(_mask_along(cuts, units), size=_kept_along(cuts, counted), fill_value=0)[0]
            leaf = jnp.take(leaf, index, axis=axis)
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
        A tree with the shapes of `like`; leaves that no group touches come from `tree`.

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
    axes = _axes(like, groups)
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
        {path: filler[path] if path in filler else jnp.zeros((), dense[path].dtype) for path in axes},
        dict(units),
        tuple((path, axes[path]) for path in sorted(axes)),
    )
    return trees.replace(tree, scattered)


@functools.partial(jax.jit, static_argnames=("axes",))
def _scatter(
    leaves: Mapping[str, Array],
    fill: Mapping[str, Array],
    units: Units,
    axes: tuple[tuple[str, ArrayCuts], ...],
) -> dict[str, Array]:
    out = {}
    for path, cuts in axes:
        leaf = jnp.asarray(leaves[path])
        there = jnp.ones((), bool)
        for axis, of_axis in cuts:
            # A gather by rank needs no counts, so it also works on traced units; removed units read anything.
            keep = _mask_along(of_axis, units)
            rank = jnp.cumsum(keep.astype(jnp.int32)) - 1
            leaf = jnp.take(leaf, jnp.clip(rank, 0, leaf.shape[axis] - 1), axis=axis)
            along = [1] * leaf.ndim
            along[axis] = -1
            there = there & jnp.reshape(keep, along)
        out[path] = jnp.where(there, leaf, fill[path].astype(leaf.dtype))
    return out
