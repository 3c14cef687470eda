"""What the axes of a program's arrays have to do with one another: a small algebra of dimensions.

Every axis carries an expression. A `Dim` is a set of units of its own; a `Prod` is several axes flattened into one in
row-major order (heads × head dimensions, pixels × channels); a `Sum` is several axes laid end to end (a
concatenation). That two axes are cut together is said by `unify`; that one may not be cut at all by `freeze`, with the
reason. Splitting an axis further (a reshape, a slice) refines its expression in place, wherever it is used.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, cast

import jax
import jax.export

Repeats: TypeAlias = tuple[tuple[int, int], ...]
"""`((count, stride), ...)`."""


def at_most(a: int, b: int) -> bool:
    """Whether `a <= b`; a size that `jax.export` leaves open counts as more than any number.

    >>> at_most(3, 4), at_most(3, jax.export.symbolic_shape("n")[0]), at_most(jax.export.symbolic_shape("n")[0], 3)
    (True, True, False)
    """
    try:
        return bool(a <= b)
    except jax.errors.InconclusiveDimensionOperation:
        return not jax.export.is_symbolic_dim(a)


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
        self.laid: tuple[tuple[Dim, ...], tuple[Place, ...]] = (), ()  # what `places` found, and for which roots
        self.size: int = math.prod(p.size for p in self.parts)


class Sum:
    """Axes laid end to end."""

    __slots__ = ("known", "laid", "parts", "size")

    def __init__(self, parts: Sequence["Expr"]):
        self.parts: tuple[Expr, ...] = tuple(parts)
        self.known: tuple[Dim, ...] = ()  # what `roots` found
        self.laid: tuple[tuple[Dim, ...], tuple[Place, ...]] = (), ()  # what `places` found, and for which roots
        self.size: int = sum(p.size for p in self.parts)


Expr: TypeAlias = Dim | Prod | Sum
Axes: TypeAlias = list[Expr]
"""One expression an axis."""


def resolve(e: Expr) -> Expr:
    """What an expression stands for by now."""
    last = e
    while isinstance(last, Dim) and last.ref is not None:
        last = last.ref
    # Whoever came a long way goes there directly from now on: a residual stream is renamed in every block.
    while isinstance(e, Dim) and e.ref is not None:
        e.ref, e = last, e.ref
    return last


def roots(e: Expr) -> tuple[Dim, ...]:
    """The sets of units that an axis is made of, in order; one may come more than once."""
    e = resolve(e)
    if isinstance(e, Dim):
        return (e,)
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
        if isinstance(e, Dim) or not isinstance(e, kind):
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
            _give_up(a, b, "an axis would contain itself")
        else:
            if isinstance(a, Dim) and b.why:
                freeze(a, b.why)
            _become(b, a)
    elif isinstance(a, Prod) and isinstance(b, Prod):
        _refine(Prod, _flat(Prod, a), _flat(Prod, b))
    elif isinstance(a, Sum) and isinstance(b, Sum):
        _refine(Sum, _flat(Sum, a), _flat(Sum, b))
    else:
        whole, parts = (a, b) if isinstance(a, Prod) else (b, a)
        _unify_product_with_sum(_flat(Prod, whole), _flat(Sum, parts))


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
    inner = e.size // outer
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


class Place(NamedTuple):
    """Where the units of a `Dim` lie along an axis: unit `c` at `start + c·step + Σ k·stride`, `k < count`."""

    root: Dim
    start: int = 0
    step: int = 1
    repeats: Repeats = ()


def places(e: Expr) -> tuple[Place, ...]:
    """Every occurrence of every set of units along an axis."""
    e = resolve(e)
    if isinstance(e, Dim):
        return (Place(e),)
    now = roots(e)
    if e.laid[0] is not now:
        e.laid = now, tuple(_places(e))
    return e.laid[1]


def _places(e: Prod | Sum) -> list[Place]:
    if isinstance(e, Sum):
        found, at = [], 0
        for part in _flat(Sum, e):
            found += [Place(p.root, p.start + at, p.step, p.repeats) for p in places(part)]
            at += part.size
        return found
    found = []
    sizes = [resolve(p).size for p in e.parts]
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    for i, part in enumerate(e.parts):
        others = tuple(
            (n, s) for j, (n, s) in enumerate(zip(sizes, strides, strict=True)) if j != i and not at_most(n, 1)
        )
        for p in places(part):
            scaled = tuple((n, s * strides[i]) for n, s in p.repeats)
            found.append(Place(p.root, p.start * strides[i], p.step * strides[i], (*scaled, *others)))
    return found
