"""Where a tree holds arrays of a model: the model's own collections, and copies of them under other names.

A training state holds the parameters several times: themselves, an optimiser's momenta, an average of past values. All
are cut alike. Where they are is found by paths, and which axes are cut there by (collection, path, axis).
"""

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import PyTree
from mvp_jax.core.units import Group, Slot

ArrayCuts: TypeAlias = tuple[tuple[int, tuple[tuple[str, Slot], ...]], ...]
"""What to cut in one array: `((axis, ((group name, slot), ...)), ...)`."""

TreeCuts: TypeAlias = dict[str, ArrayCuts]
"""What to cut in a tree: `{path of an array: its cuts}`."""

Keys: TypeAlias = tuple[str, ...]
Slots: TypeAlias = dict[str, dict[str, list[tuple[str, Slot]]]]
"""`{collection: {path: [(group name, slot), ...]}}`."""


def axes(tree: PyTree, groups: Sequence[Group]) -> TreeCuts:
    """Every axis of every leaf that a group runs along.

    What stands before a slot's path is a root. Its name says what it holds:

    1. A root named like a collection of the groups (`params`, `batch_stats`) holds that collection, and only that.
    2. Any other root holds a copy of the parameters where its paths are theirs, and of another collection where they
       are that collection's: `opt_state/0/mu`, `ema`, or no name at all.
    3. An entry that stands beside `params` and has arrays of other shapes at the parameters' paths (a cache named like
       its projection) is no copy, and no axis of it is cut.

    Args:
        tree: any tree that holds the arrays of a model, once or several times.
        groups: the groups of the dense model.

    Returns:
        What to cut in which array.

    Raises:
        ValueError: if the tree has none of the groups' paths, or an array lacks the units of a group.
    """
    slots = _by_collection(groups)
    sizes = {g.name: g.size for g in groups}
    leaves = trees.flatten(tree)
    parts = {path: tuple(path.split("/")) for path in leaves}
    named = _named_roots(parts.values(), slots)
    free = set(_free_roots([p for p in parts.values() if _root_of(p, named) is None], slots))
    free = {r for r in free if not _is_another_collection(r, named, slots, leaves, parts)}
    if groups and not named and not free:
        known = sorted({path for of in slots.values() for path in of})
        raise ValueError(
            f"none of the groups' {len(known)} paths ({known[:3]}, ...) is in the tree "
            f"({sorted(leaves)[:3]}, ...); give the groups of the model the tree belongs to"
        )
    found: TreeCuts = {}
    for path, p in parts.items():
        root = _root_of(p, named)
        if root is not None:
            here = slots[named[root]].get("/".join(p[len(root) :]), [])
        else:
            root = _root_of(p, free)
            here = [] if root is None else _of_any(slots, "/".join(p[len(root) :]), path)
        cuts = _cuts(path, np.shape(leaves[path]), here, sizes) if here else ()
        if cuts:
            found[path] = cuts
    return found


def _by_collection(groups: Sequence[Group]) -> Slots:
    slots: Slots = {}
    for g in groups:
        for s in g.slots:
            here = slots.setdefault(s.collection, {}).setdefault(s.path, [])
            s = dataclasses.replace(s, scored=False, collection="params")  # what matters is where units lie
            if (g.name, s) not in here:
                here.append((g.name, s))
    return slots


def _outermost(roots: Iterable[Keys]) -> list[Keys]:
    roots = dict.fromkeys(roots)  # not a set, so that the order does not hang on hashes
    return [r for r in roots if not any(r[:i] in roots for i in range(len(r)))]


def _named_roots(parts: Iterable[Keys], slots: Slots) -> dict[Keys, str]:
    """Roots that are named like a collection and hold paths of it."""
    found = [p[:i] for p in parts for i in range(1, len(p)) if "/".join(p[i:]) in slots.get(p[i - 1], {})]
    return {r: r[-1] for r in _outermost(found)}


def _free_roots(parts: Sequence[Keys], slots: Slots) -> list[Keys]:
    known = {path for of in slots.values() for path in of}
    return _outermost(p[:i] for p in parts for i in range(len(p)) if "/".join(p[i:]) in known)


def _root_of(p: Keys, roots: Collection[Keys]) -> Keys | None:
    return next((p[:i] for i in range(len(p)) if p[:i] in roots), None)


def _is_another_collection(
    root: Keys, named: Mapping[Keys, str], slots: Slots, leaves: Mapping[str, Any], parts: Mapping[str, Keys]
) -> bool:
    """Whether an entry beside `params` has an array that is no copy of the parameter of the same path, nor a mask."""
    beside = (*root[:-1], "params")
    if not root or beside not in named:
        return False
    for path, p in parts.items():
        own = "/".join(p[len(root) :])
        original = "/".join((*beside, own))
        if p[: len(root)] != root or own not in slots["params"] or original not in leaves:
            continue
        a, b = np.shape(leaves[path]), np.shape(leaves[original])
        if a and (len(a) != len(b) or any(n not in (1, m) for n, m in zip(a, b, strict=True))):
            return True
    return False


def _of_any(slots: Slots, own: str, path: str) -> list[tuple[str, Slot]]:
    """The slots of a path, whichever collection it is of; the parameters' if they have it."""
    if own in slots.get("params", {}):
        return slots["params"][own]
    having = {name: of[own] for name, of in slots.items() if own in of}
    first, *others = having.values() or [[]]
    if any(o != first for o in others):
        raise ValueError(
            f"{path!r} may be of any of the collections {sorted(having)}, which are cut differently; name the entry of "
            "the tree that holds it like its collection"
        )
    return first


def _cuts(path: str, shape: tuple[int, ...], slots: Sequence[tuple[str, Slot]], sizes: Mapping[str, int]) -> ArrayCuts:
    cuts: dict[int, list[tuple[str, Slot]]] = {}
    for name, s in slots if shape else ():
        if s.axis >= len(shape) or shape[s.axis] not in (1, s.length or sizes[name]):
            raise ValueError(
                f"{path!r} of shape {shape} lacks the {sizes[name]} units of group {name!r} along axis {s.axis}; "
                "cut dense trees with the dense model's groups, and stacked members under jax.vmap"
            )
        if shape[s.axis] != 1 or sizes[name] == 1:
            cuts.setdefault(s.axis, []).append((name, s))
    return tuple((a, tuple(c)) for a, c in cuts.items())
