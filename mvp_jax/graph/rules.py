"""What each primitive does to axes, to zeros, and how it is written again with fewer units: one small rule each.

A rule says three things. `dims`: which axes of the outputs are which axes of the inputs, and which must be cut alike.
`zeros`: where the outputs are zero, given where the inputs are; and since removing a unit equals masking it only if
its masked values reach nobody, this is also where an axis is frozen that they would leak across. `emit`: how to apply
the primitive to the smaller arrays, where that is not by the same parameters. `primitives.RULES` is the whole list; a
primitive that is not in it freezes every axis that touches it. To add one, pass
`rules=(("name", PrimitiveRule(...)),)` to `graph.groups`.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np

from mvp_jax.graph.dims import Axes, Dim, Expr, freeze, resolve, roots, unify

Zeros: TypeAlias = tuple[frozenset[Dim], ...] | None
"""For each axis the sets of units at whose removed indices the value is zero; `None`: zero everywhere."""


Shapes: TypeAlias = list[tuple[int, ...]]
"""The shape of each result of an equation."""


class Seen(NamedTuple):
    """One use of a primitive: its parameters, the axes of its operands and results, known uniform values, dtypes."""

    params: dict[str, Any]
    ins: list[Axes]
    outs: list[Axes]
    fills: list[float | None]
    name: str
    dtypes: tuple[Any, ...] = ()

    def zero(self, z: Zeros, operand: int, axis: int) -> frozenset[Dim]:
        """The units at whose removal an operand is zero along one of its axes."""
        if z is None:
            return self.everything
        return z[axis]

    @property
    def everything(self) -> frozenset[Dim]:
        """All units that this use knows of."""
        return frozenset[Dim]().union(*(roots(e) for axes in (*self.ins, *self.outs) for e in axes))


class Lengths(Protocol):
    """The lengths of axes after cutting: called with an axis, it gives how many entries stay."""

    def __call__(self, e: Expr, /) -> int: ...

    def vector(self, e: Expr, /) -> np.ndarray | None:
        """Which entries of an axis stay, `bool[n]`; `None`: all."""
        ...


LazyValue: TypeAlias = Callable[[], np.ndarray | None]
"""The value of a constant operand, computed when it is asked for; `None` if it cannot be known."""

Dims: TypeAlias = Callable[[dict[str, Any], list[Axes], list[tuple[int, ...]]], list[Axes]]
ZerosRule: TypeAlias = Callable[[Seen, list[Zeros]], list[Zeros]]
Emit: TypeAlias = Callable[[Seen, list[Any], Lengths, dict[str, Any]], Any]
LookRule: TypeAlias = Callable[[dict[str, Any], list[Axes], list[LazyValue | None]], dict[str, Any]]


class Fold(NamedTuple):
    """How removed entries that are all alike are counted where entries along an axis are combined into one.

    Attributes:
        axes: `use -> ((operand, axis), ...) for each axis that is combined`, one pair for each operand that has it.
        join: `(result over the kept entries, result over one removed entry, how many are removed) -> result`.
        skips_zeros: whether entries that are zero change nothing, as in a sum; in a maximum they count.
    """

    axes: Callable[[Seen], list[tuple[tuple[int, int], ...]]]
    join: Callable[[Any, Any, int], Any]
    skips_zeros: bool = True


class PrimitiveRule(NamedTuple):
    """How one primitive treats axes and zeros, and how it is applied to smaller arrays.

    The axes that pass through must be treated alike at every index, so that removed units whose entries are equal in
    the operands have equal entries in the results.

    Attributes:
        dims: `(params, axes of the operands, shapes of the results) -> axes of the results`.
        zeros: `(use, zeros of the operands) -> zeros of the results`; freezes what would leak.
        emit: `(use, operands, lengths of axes after cutting, params) -> results`, on the smaller arrays; `None`: bind
            the primitive with the parameters it had.
        fold: how removed entries that are not zero but all alike are counted; `None`: they freeze their units.
        look: `(params, axes of the operands, their values) -> params`, for a primitive whose operands have to be known:
            what it adds to the parameters is seen by `dims`, and as `use.params` by the others. An operand that is no
            constant has `None` for its value.
        signed: whether a result tells -0.0 from 0.0, so that removed entries that are zero need not have equal ones.
    """

    dims: Dims
    zeros: ZerosRule
    emit: Emit | None = None
    fold: Fold | None = None
    look: LookRule | None = None
    signed: bool = False


def leak(e: Expr, zero: frozenset[Dim], why: str) -> None:
    """Freezes the sets of units along an axis whose removed entries may be other than zero."""
    for d in roots(e):
        if d not in zero:
            freeze(d, why)


def nothing(seen: Seen) -> list[Zeros]:
    """No zeros are known."""
    return [tuple(frozenset() for _ in axes) for axes in seen.outs]


# --- Elementwise -----------------------------------------------------------------------------------------------------


def same(params: dict[str, Any], ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
    """All operands of the results' rank are cut alike; scalars and axes of length 1 are broadcast."""
    full = [axes for axes in ins if len(axes) == len(shapes[0])]
    out: Axes = []
    for a, n in enumerate(shapes[0]):
        here = [axes[a] for axes in full if resolve(axes[a]).size == n]
        for e in here[1:]:
            unify(here[0], e)
        out.append(here[0] if here else Dim(n))
    return [out for _ in shapes]


def per_axis(seen: Seen, zs: list[Zeros], operands: Sequence[int], join: str) -> list[Zeros]:
    """Zeros of a result that is zero where `any` or `all` of some operands are."""
    everywhere = [zs[i] is None for i in operands]
    if all(everywhere) if join == "all" else any(everywhere):
        return [None for _ in seen.outs]
    rank = len(seen.outs[0])
    result = []
    for a in range(rank):
        sets = [
            # A scalar, or an axis that is broadcast, says nothing about this axis.
            seen.zero(zs[i], i, a) if zs[i] is None or len(seen.ins[i]) == rank else frozenset()
            for i in operands
        ]
        result.append(frozenset.union(*sets) if join == "any" else frozenset.intersection(*sets))
    return [tuple(result) for _ in seen.outs]


def where_all(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where all operands are: sums, maxima, functions with f(0) = 0."""
    return per_axis(seen, zs, range(len(zs)), "all")


def where_first(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where the first operand is: bits that are shifted."""
    return per_axis(seen, zs, (0,), "all")


def where_any(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where any operand is: products."""
    return per_axis(seen, zs, range(len(zs)), "any")


def never(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Nothing is known to be zero."""
    return nothing(seen)


def no_zero_divisor(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where the numerator is; a denominator that is zero where units are removed gives nan there."""
    _must_not_vanish(seen, zs, 1)
    return per_axis(seen, zs, (0,), "all")


def _must_not_vanish(seen: Seen, zs: list[Zeros], operand: int) -> None:
    for a, e in enumerate(seen.ins[operand]):
        for d in roots(e):
            if d in seen.zero(zs[operand], operand, a):
                freeze(d, f"{seen.name} of a value that is zero where units are removed")


def singular(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Functions without a value at 0."""
    _must_not_vanish(seen, zs, 0)
    return nothing(seen)


def power(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where the base is, for positive exponents; negative ones have no value there."""
    y = seen.params["y"] if seen.name == "integer_pow" else seen.fills[1]
    if y is not None and y > 0:
        return per_axis(seen, zs, (0,), "all")
    return nothing(seen) if y == 0 else singular(seen, zs)


def _bounded(seen: Seen, zs: list[Zeros], idle: Callable[[float], bool]) -> list[Zeros]:
    """Zero where the value is, if the other operand is a constant that does not move zero."""
    for i, fill in enumerate(seen.fills):
        if fill is not None and fill != 0 and idle(fill):
            return per_axis(seen, zs, (1 - i,), "all")
    return where_all(seen, zs)


def maximum(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where both are, and where one is if the other is a negative constant: max(0, c) = 0."""
    return _bounded(seen, zs, lambda fill: fill < 0)


def minimum(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where both are, and where one is if the other is a positive constant: min(0, c) = 0."""
    return _bounded(seen, zs, lambda fill: fill > 0)


def select(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where every choice is, or the one that a known condition makes."""
    if seen.fills[0] is not None:
        return per_axis(seen, zs, (1 + int(seen.fills[0]),), "all")
    return per_axis(seen, zs, range(1, len(zs)), "all")


def clamp(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zero where the value is, if the bounds allow 0."""
    low, high = seen.fills[0], seen.fills[2]
    inside = low is not None and high is not None and low <= 0 <= high
    return per_axis(seen, zs, (1,), "all") if inside else nothing(seen)


def moved(seen: Seen, zs: list[Zeros]) -> list[Zeros]:
    """Zeros along axes that only change place: a set of units is zero if it was along every axis where it occurs."""
    if zs[0] is None:
        return [None for _ in seen.outs]
    known: dict[Dim, bool] = {}
    for e, z in zip(seen.ins[0], zs[0], strict=True):
        for d in roots(e):
            known[d] = known.get(d, True) and d in z
    return [tuple(frozenset(d for d in roots(e) if known.get(d)) for e in axes) for axes in seen.outs]


def shape_of(axes: Axes, size: Lengths) -> tuple[int, ...]:
    """The smaller shape of an array."""
    return tuple(size(e) for e in axes)
