"""What tracing found out about a function, for a person: groups, what hangs on them, and what may not be cut."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mvp_jax.core.types import PyTree
from mvp_jax.core.units import Slot
from mvp_jax.graph import analysis, work


class GroupExplanation(NamedTuple):
    """A group.

    Attributes:
        name, kind, size: of the group.
        params: share of all parameters that is in some slot of it, 0 to 1.
        flops: share of the arithmetic in which its units take part.
        makes: arrays that make its units, as `path[axis]`.
        reads: arrays that read them.
    """

    name: str
    kind: str
    size: int
    params: float
    flops: float
    makes: tuple[str, ...]
    reads: tuple[str, ...]


class Explanation(NamedTuple):
    """Of a function; `str()` is a table for a terminal, `pictures.plot_coupling` a picture.

    Attributes:
        rows: a row for each group, in the order in which the function makes them.
        frozen: parameter axes that may not be cut, and why.
        params: of the whole function.
        flops: of one call on the inputs that it was traced with.
        arrays: paths of all parameters, in the order in which the function uses them.
    """

    rows: tuple[GroupExplanation, ...]
    frozen: tuple[analysis.Frozen, ...]
    params: int
    flops: int
    arrays: tuple[str, ...]

    def __str__(self) -> str:
        head = ("group", "kind", "units", "params", "FLOPs", "made by", "read by")
        body = [
            (r.name, r.kind, str(r.size), f"{r.params:.1%}", f"{r.flops:.1%}", _short(r.makes), _short(r.reads))
            for r in self.rows
        ]
        lines = [f"{self.params:,} parameters, {self.flops:,} FLOPs, {len(self.rows)} groups", "", *_table(head, body)]
        if self.frozen:
            sets: dict[int, list[analysis.Frozen]] = {}
            for f in self.frozen:
                sets.setdefault(f.number, []).append(f)
            kept = [
                (_short(tuple(f"{f.path}[{f.axis}]" for f in s), 2), str(s[0].size), s[0].reason) for s in sets.values()
            ]
            lines += ["", "not to be cut", *_table(("axes", "units", "because"), kept)]
        return "\n".join(lines)


def explain(
    apply: Callable[..., Any], variables: PyTree, *inputs: Any, rules: analysis.PrimitiveRules = ()
) -> Explanation:
    """Groups of a function with what hangs on each, and what may not be cut and why.

    Args:
        apply: see `graph.groups`.
        variables: see `graph.groups`.
        *inputs: see `graph.groups`.
        rules: see `graph.groups`.

    Returns:
        An explanation; print it.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> def mlp(params, x):
    ...     return jax.nn.softmax(jax.nn.relu(x @ params["a"]) @ params["b"])
    >>> print(explain(mlp, {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}, jnp.ones((1, 3))))
    40 parameters, 95 FLOPs, 1 groups
    <BLANKLINE>
    group  kind    units  params  FLOPs  made by  read by
    a      neuron      8  100.0%  92.6%  a[1]     b[0]
    <BLANKLINE>
    not to be cut
    axes  units  because
    a[0]      3  an axis of the input
    b[1]      2  reduce_max over it
    """
    found = analysis.analyse(apply, variables, *inputs, rules=rules)
    leaves = [leaf for leaf in found.traced.leaves if leaf.collection == "params"]
    shapes = {leaf.path: leaf.value.shape for leaf in leaves}
    total = sum(math.prod(shape) for shape in shapes.values())
    works = list(work.count(found.traced.program))
    flops = sum(w.flops for w in works)
    rows = []
    for g in found.groups:
        touched = [s for s in g.slots if s.collection == "params"]
        own = sum(_touched(shapes[path], [s for s in touched if s.path == path], g.size) for path in _paths(touched))
        spent = sum(w.flops for w in works if found.roots[g.name] in w.dims)
        rows.append(
            GroupExplanation(
                name=g.name,
                kind=g.kind,
                size=g.size,
                params=own / max(total, 1),
                flops=spent / max(flops, 1),
                makes=tuple(f"{s.path}[{s.axis}]" for s in touched if s.scored),
                reads=tuple(f"{s.path}[{s.axis}]" for s in touched if not s.scored),
            )
        )
    first: dict[str, int] = {}
    for i, note in enumerate(found.traced.notes):
        for source in note.sources:
            first.setdefault(source.removeprefix("params:"), i)
    arrays = sorted(shapes, key=lambda path: first.get(path, len(found.traced.notes)))
    return Explanation(tuple(rows), found.frozen, total, flops, tuple(arrays))


def _paths(slots: list[Slot]) -> list[str]:
    return list(dict.fromkeys(s.path for s in slots))


def _touched(shape: tuple[int, ...], slots: list[Slot], size: int) -> int:
    """Entries of an array that lie in some of its slots."""
    outside = math.prod(shape)
    for axis in {s.axis for s in slots}:
        there = np.zeros(shape[axis], bool)
        for s in slots:
            if s.axis == axis:
                there[s.index(size).ravel()] = True
        outside = outside * int(np.count_nonzero(~there)) // max(shape[axis], 1)
    return math.prod(shape) - outside


def _short(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _table(head: tuple[str, ...], body: Sequence[tuple[str, ...]]) -> list[str]:
    """Columns as wide as they need; numbers to the right."""
    rows = [head, *body]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    right = [bool(body) and all(r[i][:1].isdigit() for r in body) for i in range(len(head))]
    return [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in rows
    ]
