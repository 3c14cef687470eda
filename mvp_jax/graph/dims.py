"""What the axes of a program's arrays have to do with one another: a small algebra of dimensions.

Every axis carries an expression. A `Dim` is a set of units of its own; a `Prod` is several axes flattened into one in
row-major order (heads × head dimensions, pixels × channels); a `Sum` is several axes laid end to end (a
concatenation); a `Permuted` is an axis whose entries have changed places. That two axes are cut together is said by
`unify`; that one may not be cut at all by `freeze`, with the reason. Splitting an axis further (a reshape, a slice)
refines its expression in place, wherever it is used.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias, cast

import jax
import jax.export
import numpy as np

from mvp_jax.graph.lengths import at_most


class Dim:
    """A set of `size` units that are cut together; frozen once `why` says so; stands for `ref` once that is set."""

    __slots__ = ("ref", "size", "why")

    def __init__(self, size: int, why: str = ""):
        self.size: int = cast(int, size) if jax.export.is_symbolic_dim(size) else int(size)
        self.why: str = why
        self.ref: Expr | None = None


class Prod:
    """Axes flattened into one, the last running fastest."""

    __slots__ = ("known", "laid", "parts", "size")

    def __init__(self, parts: Sequence["Expr"]):
        self.parts: tuple[Expr, ...] = tuple(parts)
        self.known: tuple[Dim, ...] = ()  # what `roots` found
        self.laid: tuple[tuple[Dim, ...], tuple[Any, ...]] = (), ()  # what `places` found, and with which roots
        self.size: int = math.prod(p.size for p in self.parts)


class Sum:
    """Axes laid end to end."""

    __slots__ = ("known", "laid", "parts", "size")

    def __init__(self, parts: Sequence["Expr"]):
        self.parts: tuple[Expr, ...] = tuple(parts)
        self.known: tuple[Dim, ...] = ()  # what `roots` found
        self.laid: tuple[tuple[Dim, ...], tuple[Any, ...]] = (), ()  # what `places` found, and with which roots
        self.size: int = sum(p.size for p in self.parts)


class Permuted:
    """An axis in another order: its entry `i` is entry `order[i]` of `inner`, for each of the entries once.

    Which units an entry belongs to goes with it, so that whatever is said of the units of `inner` stays true: they are
    removed at other places, and in the same arrays. Stands for `ref` once its parts are known to change places alone.
    """

    __slots__ = ("inner", "order", "ref", "size", "tried")

    def __init__(self, inner: "Expr", order: np.ndarray):
        self.inner: Expr = inner
        self.order: np.ndarray = order
        self.size: int = inner.size
        self.ref: Expr | None = None
        self.tried: Expr | None = None


Expr: TypeAlias = Dim | Prod | Sum | Permuted
Axes: TypeAlias = list[Expr]
"""One expression an axis."""


def resolve(e: Expr) -> Expr:
    """What an expression stands for by now."""
    last: Expr | None = e
    while last is not None:
        found, last = last, last.ref if isinstance(last, Dim) else _settle(last) if isinstance(last, Permuted) else None
    # Whoever came a long way goes there directly from now on: a residual stream is renamed in every block.
    while isinstance(e, Dim) and e.ref is not None:
        e.ref, e = found, e.ref
    return found


def roots(e: Expr) -> tuple[Dim, ...]:
    """The sets of units that an axis is made of, in order; one may come more than once."""
    e = resolve(e)
    if isinstance(e, Dim | Permuted):
        return (e,) if isinstance(e, Dim) else roots(e.inner)
    # An expression changes only where one of its sets of units comes to stand for something else.
    if not e.known or any(d.ref is not None for d in e.known):
        if isinstance(e, Sum):  # each slice of a long axis would nest the rest of it one level deeper
            e.parts = tuple(_flat(Sum, e))
        e.known = tuple(d for part in e.parts for d in roots(part))
    return e.known


def _flat(kind: type[Prod] | type[Sum], e: Expr) -> list[Expr]:
    """The parts of a product (a sum), and of the products (sums) among them; anything else is its own part."""
    found: list[Expr] = []
    left = [e]
    while left:
        e = resolve(left.pop())
        if isinstance(e, Dim | Permuted) or not isinstance(e, kind):
            found.append(e)
        else:
            left += reversed(e.parts)
    return found


def product(parts: Sequence[Expr]) -> Expr:
    """The flattening of several axes; axes of length 1 drop out."""
    found = [q for p in parts for q in _flat(Prod, p) if q.size != 1]
    return Prod(found) if len(found) > 1 else found[0] if found else Dim(1)


def total(parts: Sequence[Expr]) -> Expr:
    """Several axes laid end to end; empty ones drop out."""
    found = [q for p in parts for q in _flat(Sum, p) if q.size]
    return Sum(found) if len(found) > 1 else found[0] if found else Dim(0)


def permuted(e: Expr, order: Sequence[int] | np.ndarray) -> Expr:
    """The axis whose entry `i` is entry `order[i]` of `e`; `order` has every index of the axis once.

    >>> flipped = permuted(Dim(3), [2, 1, 0])
    >>> resolve(permuted(flipped, [2, 1, 0])) is resolve(roots(flipped)[0])
    True
    """
    return resolve(Permuted(resolve(e), np.asarray(order, np.intp)))


def _settle(e: Permuted) -> Expr | None:
    """Puts a permuted axis the simplest way that is known by now; what it stands for, if that is no order any more."""
    inner = resolve(e.inner)
    if e.ref is not None or e.tried is inner:
        return e.ref
    if isinstance(inner, Permuted):
        e.order, inner = inner.order[e.order], inner.inner
    e.inner = e.tried = inner
    if (e.order == np.arange(e.size)).all():
        e.ref = inner
    elif isinstance(inner, Prod):
        e.ref = _product_of_orders(inner, e.order)
    elif isinstance(inner, Sum):
        e.ref = _sum_of_orders(inner, e.order)
    return e.ref


def _product_of_orders(e: Prod, order: np.ndarray) -> Expr | None:
    """A permuted product as a product: its factors change places, or two of them are permuted each by itself."""
    factors = _flat(Prod, e)
    sizes = [f.size for f in factors]
    entries = np.arange(e.size).reshape(sizes)
    for places in itertools.permutations(range(len(factors))) if len(factors) < 5 else ():
        if (entries.transpose(places).ravel() == order).all():
            return product([factors[i] for i in places])
    for k in range(1, len(factors)):
        n = math.prod(sizes[k:])
        rows = order.reshape(-1, n)
        outer, inner = rows[:, 0] // n, rows[0] % n
        if (rows == outer[:, None] * n + inner).all():
            return product([permuted(product(factors[:k]), outer), permuted(product(factors[k:]), inner)])
    return None


def _sum_of_orders(e: Sum, order: np.ndarray) -> Expr | None:
    """A permuted concatenation as one of permuted parts, if the entries of each part stay together."""
    parts = _flat(Sum, e)
    ends = np.cumsum([p.size for p in parts])
    found: Axes = []
    at = 0
    while at < e.size:
        i = int(np.searchsorted(ends, order[at], side="right"))
        n = parts[i].size
        here = order[at : at + n] - (ends[i] - n)
        if len(here) < n or here.min() < 0 or here.max() >= n:
            return None
        found.append(permuted(parts[i], here))
        at += n
    return total(found)


def _in_order(e: Expr) -> Expr:
    """A permuted set of units as a plain one: from now on its units are counted as they lie here."""
    if isinstance(e, Permuted) and isinstance(e.inner, Dim):
        new = Dim(e.size)
        _become(e.inner, permuted(new, np.argsort(e.order)))
        return new
    return e


def freeze(e: Expr, why: str) -> None:
    """Nothing of this axis may be cut. The first reason given stays."""
    for d in roots(e):
        d.why = d.why or why


def _become(d: Dim, e: Expr) -> None:
    """From now on `d` stands for `e`."""
    if d.why:
        freeze(e, d.why)
    d.ref = e


def unify(a: Expr, b: Expr) -> None:
    """Says that two axes of one length are cut alike, whatever that takes; if it cannot be said, both are frozen."""
    a, b = resolve(a), resolve(b)
    if a is b or at_most(a.size, 1) or at_most(b.size, 1):
        return
    if a.size != b.size:
        _give_up(a, b, "axes of different lengths meet")
    elif isinstance(a, Dim) or isinstance(b, Dim):
        if not isinstance(b, Dim):
            a, b = b, a
        assert isinstance(b, Dim)
        if b in roots(a):
            reordered = isinstance(a, Permuted)
            _give_up(a, b, "units meet themselves in another order" if reordered else "an axis would contain itself")
        else:
            if isinstance(a, Dim) and b.why:
                freeze(a, b.why)
            _become(b, a)
    elif isinstance(a, Permuted) or isinstance(b, Permuted):
        _unify_orders(a, b)
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _refine(Prod, _flat(Prod, a), _flat(Prod, b))
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _refine(Sum, _flat(Sum, a), _flat(Sum, b))
    else:
        whole, parts = (a, b) if isinstance(a, Prod) else (b, a)
        _unify_product_with_sum(_flat(Prod, whole), _flat(Sum, parts))


def _unify_orders(a: Expr, b: Expr) -> None:
    """Two axes, neither a `Dim`, at least one of them permuted: entry by entry, they are alike in one order only."""
    if isinstance(a, Permuted) and isinstance(b, Permuted) and (a.order == b.order).all():
        unify(a.inner, b.inner)
    elif any(isinstance(e, Permuted) and isinstance(e.inner, Dim) for e in (a, b)):
        a = _in_order(a)
        unify(a, b if isinstance(a, Dim) else _in_order(b))
    elif _entries(a) != _entries(b):
        _give_up(a, b, "two orders of an axis do not fit together")


def _entries(e: Expr) -> list[frozenset[tuple[Dim, int]]]:
    """The units that decide about each entry of an axis: two axes with equal ones are one, however they are written."""
    e = resolve(e)
    if isinstance(e, Dim):
        return [frozenset([(e, i)]) for i in range(e.size)]
    if isinstance(e, Permuted):
        inner = _entries(e.inner)
        return [inner[i] for i in e.order]
    parts = [_entries(p) for p in e.parts]
    if isinstance(e, Sum):
        return [entry for part in parts for entry in part]
    return [frozenset().union(*entry) for entry in itertools.product(*parts)]


def _give_up(a: Expr, b: Expr, why: str) -> None:
    freeze(a, why)
    freeze(b, why)


def _refine(kind: type[Prod] | type[Sum], left: list[Expr], right: list[Expr]) -> None:
    """Common refinement of two factorisations (two partitions), from the outermost factor (the first part) on."""
    while left and right:
        a, b = resolve(left[0]), resolve(right[0])
        if isinstance(a, kind) or isinstance(b, kind):  # refined meanwhile
            left[:1], right[:1] = _flat(kind, a), _flat(kind, b)
            continue
        if a.size == b.size:
            unify(a, b)
            del left[0], right[0]
            continue
        if not at_most(b.size, a.size):
            left, right, a, b = right, left, b, a
        a = left[0] = _in_order(a)
        uneven = kind is Prod and a.size % b.size
        if not isinstance(a, Dim) or uneven or a in roots(b):
            verb = "split" if kind is Prod else "partition"
            _give_up(kind(left), kind(right), f"two ways to {verb} an axis do not fit together")
            return
        rest = Dim(a.size // b.size if kind is Prod else a.size - b.size)
        _become(a, kind([b, rest]))
        left[0] = rest
        del right[0]


def _unify_product_with_sum(factors: list[Expr], terms: list[Expr]) -> None:
    """`m × n` against `m` parts of length `n` each: the parts are alike, and `m` stays whole."""
    for k in range(1, len(factors)):
        inner = product(factors[k:])
        if math.prod(f.size for f in factors[:k]) == len(terms) and all(t.size == inner.size for t in terms):
            for outer in factors[:k]:
                freeze(outer, "it counts the parts of a concatenation")
            for t in terms:
                unify(t, inner)
            return
    _give_up(product(factors), total(terms), "a product of axes meets a concatenation")


def reshape(axes: Sequence[Expr], shape: Sequence[int]) -> Axes:
    """The axes of a row-major reshape; those that do not line up are frozen, the others not."""
    if 0 in shape:
        return [Dim(n) for n in shape]
    # Where the products of the leading lengths agree, what comes before has nothing to do with what comes after.
    out: Axes = []
    a = b = 0
    while a < len(axes) or b < len(shape):
        start, first, before, after = a, b, 1, 1
        while (a == start and b == first) or before != after:
            if a < len(axes) and at_most(before, after):
                before *= resolve(axes[a]).size
                a += 1
            else:
                after *= shape[b]
                b += 1
        out += _regroup(axes[start:a], shape[first:b])
    return out


def _regroup(axes: Sequence[Expr], shape: Sequence[int]) -> Axes:
    left = [f for e in axes for f in _flat(Prod, e) if f.size != 1]
    out: Axes = []
    for n in shape:
        parts: Axes = []
        need = n
        while not at_most(need, 1):
            f = resolve(left[0])
            if isinstance(f, Prod):
                left[:1] = _flat(Prod, f)
            elif need % f.size == 0:
                parts.append(f)
                need //= f.size
                del left[0]
            elif f.size % need == 0 and (pair := _split(f, need)):
                left[:1] = pair
            else:
                for e in (*axes, *out):
                    freeze(e, "a reshape cuts across it")
                return [Dim(m, "a reshape cuts across it") for m in shape]
        out.append(product(parts))
    return out


def _split(e: Expr, outer: int) -> list[Expr]:
    """`e` as `outer × rest`; empty if that cannot be."""
    e, inner = _in_order(e), e.size // outer
    if isinstance(e, Dim):
        pair: list[Expr] = [Dim(outer), Dim(inner)]
        _become(e, Prod(pair))
        return pair
    terms = _flat(Sum, e)
    if len(terms) != outer or any(t.size != inner for t in terms):
        return []
    for t in terms[1:]:
        unify(terms[0], t)
    return [Dim(outer, "it counts the parts of a concatenation"), terms[0]]


def take(e: Expr, start: int, stop: int) -> Expr:
    """The part of an axis from `start` to `stop`."""
    e = resolve(e)
    if (start, stop) == (0, e.size):
        return e
    if start == stop:
        return Dim(0)
    e = _in_order(e)
    if isinstance(e, Permuted):
        here = e.order[start:stop]
        low, high = int(here.min()), int(here.max()) + 1
        if high - low == stop - start:
            return permuted(take(e.inner, low, high), here - low)
        freeze(e, "a slice cuts across it")
        return Dim(stop - start, "a slice cuts across it")
    if isinstance(e, Dim):
        parts = [Dim(n) for n in (start, stop - start, e.size - stop) if n]
        _become(e, Sum(parts))
        return parts[1 if start else 0]
    if isinstance(e, Sum):
        found, at = [], 0
        for part in _flat(Sum, e):
            low, high = max(start, at), min(stop, at + part.size)
            if low < high:
                found.append(take(part, low - at, high - at))
            at += part.size
        return total(found)
    factors = _flat(Prod, e)
    inner = product(factors[1:])
    if start % inner.size == 0 and stop % inner.size == 0:
        return product([take(factors[0], start // inner.size, stop // inner.size), inner])
    freeze(e, "a slice cuts across it")
    return Dim(stop - start, "a slice cuts across it")
