"""Which entries of an axis stay when units are removed, and which belong to removed units."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import jax
import numpy as np

from mvp_jax.graph import placement
from mvp_jax.graph.dims import Axes, Dim, Expr, Permuted, Sum, resolve, roots
from mvp_jax.graph.places import places

Removed: TypeAlias = frozenset[Dim]
"""Sets of units of each of which one removed unit is looked at, instead of the kept ones."""

NOBODY: Removed = frozenset()

MOST_REMEMBERED = 1 << 14
"""Of how many axes it is remembered which entries stay."""


class KeptSizes:
    """Which entries of an axis stay, and how many: for each set of units that is cut, `bool[C]` on the host.

    Called with an axis it gives the length after cutting.
    """

    def __init__(self, kept: Mapping[Dim, np.ndarray]):
        self.kept = kept
        self._known: dict[int, tuple[Expr, np.ndarray | None, int]] = {}

    def vector(self, e: Expr) -> np.ndarray | None:
        """Which entries of an axis stay; `None`: all."""
        return self._of(e)[1]

    def __call__(self, e: Expr) -> int:
        return self._of(e)[2]

    def _of(self, e: Expr) -> tuple[Expr, np.ndarray | None, int]:
        """An axis as it stands by now, which of its entries stay, and how many; worked out once for each axis."""
        e = resolve(e)
        known = self._known.get(id(e))
        if known is None:
            if len(self._known) >= MOST_REMEMBERED:  # axes that rules make up anew in every call
                self._known.clear()
            keep = self._vector(e)
            known = e, keep, e.size if keep is None else int(np.count_nonzero(keep))
            self._known[id(e)] = known  # which holds on to the axis, so that no other gets its identity
        return known

    def _vector(self, e: Expr) -> np.ndarray | None:
        keep: np.ndarray | None = None
        for place in places(e):
            if place.root not in self.kept:
                continue
            keep = np.ones(resolve(e).size, bool) if keep is None else keep
            keep[place.indices()[~self.kept[place.root]]] = False
        return keep

    def cut(self, x: Any, axes: Axes) -> Any:
        """An array of the dense function without the removed entries."""
        keeps = {a: keep for a, e in enumerate(axes) if (keep := self.vector(e)) is not None and not keep.all()}
        if not keeps:
            return x
        if isinstance(x, jax.core.Tracer) or not getattr(x, "is_fully_addressable", True):
            for a, keep in keeps.items():
                x = placement.take(x, np.flatnonzero(keep), a)
            return x
        # On the host: a compiled gather for each shape would cost seconds for a large model.
        cut = np.asarray(x)
        for a, keep in keeps.items():
            cut = np.compress(keep, cut, axis=a)
        return placement.put(cut, x, keeps)

    def removed(self, d: Dim) -> int:
        """How many units of a set go."""
        return d.size - int(np.count_nonzero(self.kept[d])) if d in self.kept else 0


def subsets(leaking: set[Dim], axes: Sequence[Expr]) -> list[Removed]:
    """The sets of units of which removed ones meet in an entry of some axes: each part of a concatenation by itself."""
    order = list(dict.fromkeys(d for e in axes for d in roots(e)))
    meeting: list[Removed] = [NOBODY]
    for e in axes:
        meeting = list(dict.fromkeys(a | b for a in meeting for b in _meeting(e, leaking)))
    found: dict[Removed, None] = {}
    for together in meeting:
        several = sorted(together, key=order.index)
        for count in range(1, len(several) + 1):
            found |= dict.fromkeys(map(frozenset, itertools.combinations(several, count)))
    return list(found)


def _meeting(e: Expr, leaking: set[Dim]) -> list[Removed]:
    e = resolve(e)
    if isinstance(e, Dim):
        return [frozenset({e} & leaking)]
    if isinstance(e, Permuted):
        return _meeting(e.inner, leaking)
    parts = [_meeting(part, leaking) for part in e.parts]
    if isinstance(e, Sum):
        return list(dict.fromkeys(itertools.chain(*parts)))
    return list(dict.fromkeys(frozenset().union(*several) for several in itertools.product(*parts)))


def involved(e: Expr, d: Dim) -> np.ndarray:
    """The entries of an axis that a set of units has a part in."""
    e = resolve(e)
    if isinstance(e, Dim):
        return np.full(e.size, e is d)
    if isinstance(e, Permuted):
        return involved(e.inner, d)[e.order]
    parts = [involved(part, d) for part in e.parts]
    if isinstance(e, Sum):
        return np.concatenate(parts)
    found = parts[0]
    for part in parts[1:]:
        found = (found[:, None] | part[None, :]).ravel()
    return found
