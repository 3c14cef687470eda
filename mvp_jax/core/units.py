"""Unit space: sets of channels, heads or neurons that must be removed together.

A `Group` has `size` units; removing unit `c` removes index `c` along one axis of each of its slots, or the indices that
the slot says.
"""

import dataclasses
import functools
import warnings
from collections.abc import Mapping, Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import allocation, layouts, precision, trees
from mvp_jax.core.types import Array, Masks, Params, PyTree, Units, UnitScores


def positions(
    size: int, start: int, step: int, repeats: tuple[tuple[int, int], ...], order: tuple[int, ...] = ()
) -> np.ndarray:
    """Where units lie along an axis: the indices `start + c·step + Σ k·stride` of `Slot`, for each unit `c`.

    Args:
        size: the number of units `C`.
        start: the index of the first unit.
        step: from a unit to the next.
        repeats: `((count, stride), ...)`, the further indices of a unit.
        order: where each index of the axis really lies, if that is elsewhere.

    Returns:
        `int[C, R]`, the `R` indices of every unit.

    >>> positions(3, 2, -1, ()).ravel().tolist(), positions(3, 0, 1, (), (1, 2, 0)).ravel().tolist()
    ([2, 1, 0], [1, 2, 0])
    """
    at = start + step * np.arange(size)[:, None]
    for count, stride in repeats:
        at = (at[:, :, None] + stride * np.arange(count)).reshape(size, -1)
    return np.asarray(order)[at] if order else at


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """One axis of one array along which a group's units lie.

    Attributes:
        path: where the array is, in its collection.
        axis: which axis (not negative).
        scored: whether the array produces the unit (a filter, its bias or norm) rather than consumes it; only
            producing slots enter scores.
        collection: the entry of the variables that holds the array: `params`, which is masked and cut, or another such
            as `rest` or `batch_stats`, which is only cut.
        start, step, repeats: unit `c` lies at index `start + c·step + Σ k·stride`, `k < count` for each `(count,
            stride)` of `repeats`; by default at index `c`. Head `c` of a fused axis `H·d`: `step=d, repeats=((d, 1),)`;
            the second part of a concatenation: `start=n`; units that are flipped on their way here: `start=C-1,
            step=-1`.
        order: where an axis has been put in another order, `order[i]` is where what `start`, `step` and `repeats` say
            is at index `i` really lies; it has every index of the axis once. Units that fill the axis one index each:
            unit `c` lies at index `order[c]`.
        length: of the axis; 0 if the units fill it, one index each.

    Raises:
        ValueError: if `order` is no permutation of the axis.
    """

    path: str
    axis: int
    scored: bool = False
    collection: str = "params"
    start: int = 0
    step: int = 1
    repeats: tuple[tuple[int, int], ...] = ()
    length: int = 0
    order: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.order and (
            sorted(self.order) != list(range(len(self.order))) or self.length not in (0, len(self.order))
        ):
            raise ValueError(
                f"the order of a slot along axis {self.axis} of {self.path!r} must have every index of the axis once; "
                f"it has {len(self.order)} entries, {self.order[:8]}{', ...' if len(self.order) > 8 else ''}"
            )

    @property
    def plain(self) -> bool:
        """Whether unit `c` lies at index `c` and there is nothing else along the axis."""
        return (self.start, self.step, self.repeats, self.length, self.order) == (0, 1, (), 0, ())

    def index(self, size: int) -> np.ndarray:
        """Where each of `size` units lies along the axis: `int[C, R]`.

        >>> Slot(path="qkv", axis=1, start=4, step=2, repeats=((2, 1),)).index(2).tolist()
        [[4, 5], [6, 7]]
        >>> Slot(path="kernel", axis=0, order=(2, 0, 1)).index(3).tolist()
        [[2], [0], [1]]
        """
        return positions(size, self.start, self.step, self.repeats, self.order)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Units of one kind, each of which is kept or removed in all slots at once.

    Attributes:
        name: the path of the layer that produces the units.
        size: the number of units `C` in the dense model.
        slots: every axis that is cut when a unit goes.
        kind: what a unit is. `stage`: a channel of a residual stream; `qk`, `value`: a dimension of queries and keys,
            of values, in every head; `kv_head`: a head of keys and values with all query heads that read it;
            `query_head`: one query head of each of these.
        approximate: in which ways removing units computes something else than masking them; none unless the user
            allowed it, see `graph.groups`.
    """

    name: str
    size: int
    slots: tuple[Slot, ...]
    kind: Literal["filter", "stage", "head", "kv_head", "query_head", "qk", "value", "neuron"] = "filter"
    approximate: tuple[str, ...] = ()


def full(groups: Sequence[Group]) -> dict[str, Array]:
    """All units kept: `{name: True[C]}`.

    >>> full([Group(name="fc", size=3, slots=())])["fc"].tolist()
    [True, True, True]
    """
    return {g.name: jnp.ones(g.size, bool) for g in groups}


def check(units: Units, groups: Sequence[Group]) -> None:
    """Raises `ValueError` unless `units` has exactly the groups' names, each with `C` booleans in its last axis."""
    names = {g.name for g in groups}
    if set(units) != names:
        raise ValueError(
            f"units and groups differ: only in units: {sorted(set(units) - names)[:5]}; "
            f"only in groups: {sorted(names - set(units))[:5]}"
        )
    for g in groups:
        if jnp.shape(units[g.name])[-1:] != (g.size,):
            raise ValueError(
                f"units of {g.name!r} have shape {jnp.shape(units[g.name])}, but the group has {g.size} units; "
                "unit masks are kept in the index space of the dense model, also after compaction"
            )


_REDUCTIONS = ("sum", "l1", "l2", "sum_square")


def reduce(
    terms: PyTree, groups: Sequence[Group], how: Literal["sum", "l1", "l2", "sum_square"] = "l2"
) -> dict[str, Array]:
    """Weight-space terms to one number a unit, over the producing slots only.

    Args:
        terms: real numbers with the structure and shapes of the parameters.
        groups: the groups, `C` units each.
        how: `sum`: Σt; `l1`: Σ|t|; `l2`: sqrt(Σt²); `sum_square`: (Σt)², Taylor's reduction.

    Returns:
        `{name: float32[C]}`, computed in float32 also for terms of float16, bfloat16 or integers; float64 where a term
        is float64.

    Raises:
        ValueError: for an unknown reduction, or a group without producing slots.

    >>> g = Group(name="fc", size=2, slots=(Slot(path="kernel", axis=1, scored=True), Slot(path="out", axis=0)))
    >>> terms = {"kernel": jnp.array([[3.0, -1.0], [4.0, 1.0]]), "out": jnp.ones((2, 5))}
    >>> reduce(terms, [g], "l2")["fc"].tolist()[0], reduce(terms, [g], "sum_square")["fc"].tolist()
    (5.0, [49.0, 0.0])
    """
    if how not in _REDUCTIONS:
        raise ValueError(f"unknown reduction {how!r}; choose one of {_REDUCTIONS}")
    leaves = trees.flatten(terms)

    def one(group: Group) -> Array:
        slots = [s for s in group.slots if s.scored and s.collection == "params"]
        if not slots:
            raise ValueError(f"group {group.name!r} has no producing slot to score; mark one `scored=True`")
        sums = [_along(leaves[s.path], s.axis, how) for s in slots]
        of_units = [
            t if s.plain else jnp.sum(layouts.whole(t)[s.index(group.size)], axis=1)
            for s, t in zip(slots, sums, strict=True)
        ]
        total = functools.reduce(jnp.add, of_units)
        return jnp.sqrt(total) if how == "l2" else jnp.square(total) if how == "sum_square" else total

    return {g.name: one(g) for g in groups}


def only_finite(scores: UnitScores, *, stacklevel: int = 1) -> dict[str, Array]:
    """Scores of units in which everything that is not finite is `nan`, which a selection removes before all others.

    A score of `nan`, `inf` or `-inf` comes of broken weights, broken data or an overflow, and ranks nothing.

    Args:
        scores: `{group: real[C]}`, higher = keep.
        stacklevel: whose line of code the warning names: 1 the caller of this function, 2 the caller's caller.

    Returns:
        `{group: float32[C]}`; float64 where the scores are float64.

    Raises:
        ValueError: if no score of a group is finite. Traced scores are not checked: all of such a group are `nan` then.

    Warns:
        RuntimeWarning: which groups have units whose score is not finite, and how many. Traced scores cause no warning.

    >>> import warnings
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     only_finite({"fc": jnp.array([2.0, jnp.inf, 1.0])})["fc"].tolist()
    [2.0, nan, 1.0]
    >>> print(caught[0].message)
    units whose score is not finite are removed before all others: 1 of 3 units of 'fc'
    """
    wide = {name: precision.widen(s) for name, s in scores.items()}
    if allocation.concrete(wide):
        sizes = {name: jnp.size(s) for name, s in wide.items()}
        bad = {name: n for name, s in wide.items() if (n := sizes[name] - int(jnp.sum(jnp.isfinite(s))))}
        lost = [name for name, n in bad.items() if n == sizes[name]]
        if lost:
            raise ValueError(
                f"not one score of {lost[:5]} is finite, so nothing ranks the units of these groups; look for nan and "
                "inf in the weights, the gradients or the data, or leave these groups out"
            )
        if bad:
            some = ", ".join(f"{n} of {sizes[name]} units of {name!r}" for name, n in list(bad.items())[:5])
            more = f" and more in {len(bad) - 5} further groups" if len(bad) > 5 else ""
            message = f"units whose score is not finite are removed before all others: {some}{more}"
            warnings.warn(message, RuntimeWarning, stacklevel=stacklevel + 1)
    return {name: jnp.where(jnp.isfinite(s), s, jnp.nan) for name, s in wide.items()}


@functools.partial(jax.jit, static_argnames=("axis", "how"))
def _along(leaf: Array, axis: int, how: str) -> Array:
    """Sums along an axis; one program, so that no converted copy of a large leaf is written to memory."""
    t = precision.widen(leaf)
    t = jnp.abs(t) if how == "l1" else jnp.square(t) if how == "l2" else t
    return jnp.sum(t, axis=tuple(a for a in range(t.ndim) if a != axis))


def expand(units: Units, groups: Sequence[Group], params: Params) -> Masks:
    """Unit masks to weight masks: an entry is kept if every unit it belongs to is kept.

    Args:
        units: `{name: bool[C]}`.
        groups: the groups; names that `units` lacks are refused.
        params: the dense parameters (or their shapes).

    Returns:
        Masks with the structure of `params`; a leaf that no group touches is a scalar `True`, others are as
        small as broadcasting allows.

    Raises:
        ValueError: if names, sizes or paths do not fit.

    >>> g = Group(name="fc", size=2, slots=(Slot(path="kernel", axis=1, scored=True),))
    >>> params = {"bias": jnp.zeros(3), "kernel": jnp.zeros((4, 2))}
    >>> jax.tree.map(lambda m: m.tolist(), expand({"fc": jnp.array([True, False])}, [g], params))
    {'bias': True, 'kernel': [[True, False]]}
    """
    check(units, groups)
    leaves = trees.flatten(params)
    kept: dict[str, Array] = {}
    for g in groups:
        for s in g.slots:
            if s.collection != "params":
                continue
            if s.path not in leaves:
                raise ValueError(f"group {g.name!r} names {s.path!r}, which the parameters lack: {sorted(leaves)[:8]}")
            shape = jnp.shape(leaves[s.path])
            if s.axis >= len(shape) or shape[s.axis] != (s.length or g.size):
                raise ValueError(
                    f"group {g.name!r} of {g.size} units does not lie along axis {s.axis} of {s.path!r}, shape {shape}"
                )
            along = [1] * len(shape)
            along[s.axis] = shape[s.axis]
            m = jnp.reshape(spread(units[g.name], s), along)
            kept[s.path] = kept[s.path] & m if s.path in kept else m
    always = jnp.ones((), bool)
    return jax.tree.map(lambda path: kept.get(path, always), trees.paths(params))


def spread(kept: Array, slot: Slot) -> Array:
    """Which indices of a slot's axis stay.

    Args:
        kept: `bool[C]`, the units that stay.
        slot: where they lie.

    Returns:
        `bool[length]`, `True` for the indices of kept units and for those that belong to no unit of this group.


    >>> slot = Slot(path="kernel", axis=0, step=2, repeats=((2, 1),), length=6)
    >>> spread(jnp.array([True, False, True]), slot).tolist()
    [True, True, False, False, True, True]
    """
    if slot.plain:
        return kept
    index = slot.index(kept.shape[-1])
    owner = np.full(slot.length or index.size, -1)
    owner[index] = np.arange(len(index))[:, None]
    return jnp.where(owner < 0, True, layouts.whole(kept)[owner])


def count(units: Units) -> dict[str, int]:
    """Kept units of each group, on the host.

    >>> count({"fc": jnp.array([True, False, True])})
    {'fc': 2}
    """

    def total(u: Array) -> int:
        if isinstance(u, jax.core.Tracer) or not getattr(u, "is_fully_addressable", True):
            return int(jnp.sum(u))
        return int(np.sum(np.asarray(u)))  # on the device, a program would be compiled for each length

    return {name: total(u) for name, u in units.items()}


def restrict(values: Mapping[str, Array], groups: Sequence[Group]) -> dict[str, Array]:
    """The part of `values` (`{group name: array}`) that belongs to `groups`, in the order of `groups`."""
    return {g.name: values[g.name] for g in groups}


__all__ = [
    "Group",
    "Slot",
    "UnitScores",
    "check",
    "count",
    "expand",
    "full",
    "only_finite",
    "positions",
    "reduce",
    "restrict",
    "spread",
]
