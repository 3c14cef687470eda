"""From unit masks to physically smaller arrays and back: the only module that changes shapes.

Any tree that contains the parameters' paths can be cut: parameters, `Variables`, gradients, masks, an optimiser's
state, a whole training state. Unit masks stay in the index space of the dense model.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import masks, trees
from mvp_jax import units as units_lib
from mvp_jax.types import Array, PyTree, Units, Variables
from mvp_jax.units import Group

Axes: TypeAlias = dict[str, tuple[tuple[int, str], ...]]
"""`{path: ((axis, group name), ...)}`: what to cut where."""


def _axes(tree: PyTree, groups: Sequence[Group]) -> Axes:
    """Every axis of every leaf that a group runs along.

    The tree may hold several copies of the model (parameters, momenta), each under a root of its own. Roots are
    found by paths: whatever precedes a slot's path is one, unless a shorter root leads to it.
    """
    by_slot: dict[str, list[tuple[int, str]]] = {}
    sizes = {g.name: g.size for g in groups}
    for g in groups:
        for s in g.slots:
            if (s.axis, g.name) not in by_slot.setdefault(s.path, []):
                by_slot[s.path].append((s.axis, g.name))
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
    found: Axes = {}
    for path, p in parts.items():
        shape = jnp.shape(leaves[path])
        for root in roots:
            slot = "/".join(p[len(root) :])
            if p[: len(root)] != root or slot not in by_slot or not shape:
                continue
            for axis, name in by_slot[slot]:
                if axis >= len(shape) or shape[axis] not in (1, sizes[name]):
                    raise ValueError(
                        f"{path!r} of shape {shape} lacks the {sizes[name]} units of group {name!r} along axis {axis}; "
                        "cut dense trees with the dense model's groups, and stacked members under jax.vmap"
                    )
                if shape[axis] == sizes[name]:
                    found[path] = (*found.get(path, ()), (axis, name))
    return found


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
    """Kept units of each group, on the host: what `Model.resize` and `cut(..., sizes=)` take.

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
        sizes: kept units of each group; needed if `units` are traced (under `jit` or `vmap`), where it must be right:
            missing units repeat index 0, surplus ones are dropped.

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
        {path: leaves[path] for path in axes}, dict(units), tuple(sorted(axes.items())), tuple(sorted(kept.items()))
    )
    return trees.replace(tree, gathered)


# One program per shape: cutting the next task's model at the same sizes compiles nothing.
@functools.partial(jax.jit, static_argnames=("axes", "kept"))
def _gather(
    leaves: Mapping[str, Array],
    units: Units,
    axes: tuple[tuple[str, tuple[tuple[int, str], ...]], ...],
    kept: tuple[tuple[str, int], ...],
) -> dict[str, Array]:
    at = {name: jnp.nonzero(units[name], size=n, fill_value=0)[0] for name, n in kept}
    out = {}
    for path, cuts in axes:
        leaf = jnp.asarray(leaves[path])
        for axis, name in cuts:
            leaf = jnp.take(leaf, at[name], axis=axis)
        out[path] = leaf
    return out


def embed(tree: PyTree, groups: Sequence[Group], units: Units, like: PyTree, *, fill: PyTree | None = None) -> PyTree:
    """The inverse of `cut`: puts slim arrays back at their places in dense ones.

    Args:
        tree: slim, as returned by `cut`.
        groups: the groups of the dense model.
        units: those that were kept.
        like: the dense tree, or its `jax.ShapeDtypeStruct`s; same structure.
        fill: what stands where units were removed: a dense tree, or zeros (`False` in masks) if not given.

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
    for path, cuts in axes.items():
        for axis, name in cuts:
            got = jnp.shape(slim[path])[axis]
            if counted is not None and got != counted[name]:
                raise ValueError(
                    f"{path!r} has {got} units along axis {axis}, but {counted[name]} of {name!r} are kept"
                )
    scattered = _scatter(
        {path: slim[path] for path in axes},
        {path: filler[path] if path in filler else jnp.zeros((), dense[path].dtype) for path in axes},
        dict(units),
        tuple(sorted(axes.items())),
    )
    return trees.replace(tree, scattered)


@functools.partial(jax.jit, static_argnames=("axes",))
def _scatter(
    leaves: Mapping[str, Array],
    fill: Mapping[str, Array],
    units: Units,
    axes: tuple[tuple[str, tuple[tuple[int, str], ...]], ...],
) -> dict[str, Array]:
    out = {}
    for path, cuts in axes:
        leaf = jnp.asarray(leaves[path])
        there = jnp.ones((), bool)
        for axis, name in cuts:
            # A gather by rank needs no counts, so it also works on traced units; removed units read anything.
            rank = jnp.cumsum(units[name].astype(jnp.int32)) - 1
            leaf = jnp.take(leaf, jnp.clip(rank, 0, leaf.shape[axis] - 1), axis=axis)
            along = [1] * leaf.ndim
            along[axis] = -1
            there = there & jnp.reshape(units[name], along)
        out[path] = jnp.where(there, leaf, fill[path].astype(leaf.dtype))
    return out


def _named(model: Any, units: Units) -> tuple[Group, ...]:
    """The model's groups that `units` speak of."""
    groups = tuple(g for g in model.groups if g.name in units)
    units_lib.check(units, groups)
    empty = [name for name, n in sizes(units).items() if n == 0]
    if empty:
        raise ValueError(f"no unit is kept in {empty[:5]}; keep at least one in every group, or nothing passes through")
    return groups


def slim(model: Any, variables: Variables, units: Units) -> tuple[Any, Variables]:
    """The same class of model with the kept units only.

    Args:
        model: the dense model.
        variables: its variables; trained under the masks of these units or not.
        units: for any of the model's groups; others stay whole.

    Returns:
        The slim model and its variables.

    Raises:
        ValueError: if a group is unknown or keeps no unit.
    """
    groups = _named(model, units)
    return model.resize(sizes(units)), cut(Variables(*variables), groups, units)


def check(model: Any, variables: Variables, groups: Sequence[Group], units: Units, x: Array) -> float:
    """How far the slim model is from the masked one: `max |masked - slim|` over the logits, in evaluation mode.

    Args:
        model: the dense model.
        variables: its variables.
        groups: the groups that are cut, of the model's own.
        units: kept units of these groups.
        x: `[N, ...]`, a batch.

    Returns:
        The largest difference; rounding alone gives about 1e-6 of the logits' size.
    """
    units_lib.check(units, groups)
    kept = units_lib.expand(units, groups, variables[0])
    masked = Variables(masks.apply(variables[0], kept), variables[1])
    slim_model, slim_variables = slim(model, variables, units)
    a, _ = model.apply(masked, x)
    b, _ = slim_model.apply(slim_variables, x)
    return float(jnp.max(jnp.abs(a - b)))
