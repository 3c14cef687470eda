"""Where the units of an axis lie along it."""

import math
from typing import NamedTuple, TypeAlias

import numpy as np

from mvp_jax.core.units import positions
from mvp_jax.graph.dims import Dim, Expr, Permuted, Prod, Sum, resolve, roots
from mvp_jax.graph.lengths import at_most

Repeats: TypeAlias = tuple[tuple[int, int], ...]
"""`((count, stride), ...)`."""


class Place(NamedTuple):
    """Where the units of a `Dim` lie along an axis: unit `c` at `start + c·step + Σ k·stride`, `k < count`.

    With an `order`, which has every index of the axis once, what this says is at index `i` lies at index `order[i]`.
    """

    root: Dim
    start: int = 0
    step: int = 1
    repeats: Repeats = ()
    order: tuple[int, ...] = ()

    def indices(self) -> np.ndarray:
        """`int[C, R]`, the indices of every unit."""
        return positions(self.root.size, self.start, self.step, self.repeats, self.order)


def places(e: Expr) -> tuple[Place, ...]:
    """Every occurrence of every set of units along an axis."""
    e = resolve(e)
    if isinstance(e, Dim):
        return (Place(e),)
    if isinstance(e, Permuted):
        return tuple(_reordered(p, e.order) for p in places(e.inner))
    now = roots(e)
    if e.laid[0] is not now:  # otherwise no set of units has come to stand for something else meanwhile
        e.laid = now, tuple(_of_parts(e))
    return e.laid[1]


def _of_parts(e: Prod | Sum) -> list[Place]:
    sizes = [resolve(p).size for p in e.parts]
    found = []
    if isinstance(e, Sum):
        at = 0
        for part, n in zip(e.parts, sizes, strict=True):
            found += [_inside(p, e.size, at) for p in places(part)]
            at += n
        return found
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    for i, part in enumerate(e.parts):
        others = tuple(
            (n, s) for j, (n, s) in enumerate(zip(sizes, strides, strict=True)) if j != i and not at_most(n, 1)
        )
        for p in places(part):
            scaled = tuple((n, s * strides[i]) for n, s in p.repeats)
            order = _by_factor(p.order, math.prod(sizes[:i]), strides[i])
            found.append(Place(p.root, p.start * strides[i], p.step * strides[i], (*scaled, *others), order))
    return found


def _reordered(p: Place, order: np.ndarray) -> Place:
    """A place along an axis whose entry `i` is entry `order[i]` of the axis that it was along."""
    n = len(order)
    if not p.order and (order == np.arange(n)[::-1]).all():
        last = p.start + sum((count - 1) * stride for count, stride in p.repeats)
        return p._replace(start=n - 1 - last, step=-p.step)
    now_at = np.argsort(order)
    return p._replace(order=_plain(now_at[np.asarray(p.order)] if p.order else now_at))


def _inside(p: Place, length: int, at: int) -> Place:
    """A place along a part of a longer axis, which begins at index `at`."""
    if not p.order:
        return Place(p.root, p.start + at, p.step, p.repeats)
    order = np.arange(length)
    order[at : at + len(p.order)] = np.asarray(p.order) + at
    return p._replace(start=p.start + at, order=_plain(order))


def _by_factor(order: tuple[int, ...], before: int, after: int) -> tuple[int, ...]:
    """The order of a product of which one factor has an order."""
    if not order:
        return ()
    entries = np.arange(before * len(order) * after).reshape(before, len(order), after)
    return _plain(entries[:, np.asarray(order)].ravel())


def _plain(order: np.ndarray) -> tuple[int, ...]:
    return tuple(order.tolist())
