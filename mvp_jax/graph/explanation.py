"""What tracing found out about a function, for a person: groups, what hangs on them, and what may not be cut."""

import functools
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mvp_jax.core.types import PyTree
from mvp_jax.core.units import Group, Slot
from mvp_jax.graph import analysis, work
from mvp_jax.graph.dims import Dim
from mvp_jax.graph.zeros import Approximation


class GroupExplanation(NamedTuple):
    """One coupled group, and how much of the function hangs on it.

    Attributes:
        name: the group's name.
        kind: what its units are: `neuron`, `filter`, `head`, ...
        size: how many units it has.
        params: the share of all parameters, 0 to 1, that lies in one of its slots.
        flops: the share of the function's operations, 0 to 1, in which its units take part.
        makes: the arrays that make its units, as `path[axis]`.
        reads: the arrays that read its units, as `path[axis]`.
        approximate: in which of the allowed ways removing its units differs from masking them; see `graph.groups`.
    """

    name: str
    kind: str
    size: int
    params: float
    flops: float
    makes: tuple[str, ...]
    reads: tuple[str, ...]
    approximate: tuple[str, ...] = ()


class Explanation(NamedTuple):
    """What tracing found out about a function.

    `str()` makes a table for a terminal of it, `reports.plot_coupling` a picture.

    Attributes:
        rows: one for each group, in the order in which the function makes them.
        frozen: parameter axes that may not be cut, and why.
        params: how many parameters the function has.
        flops: the floating-point operations of one call on the inputs that it was traced with; see `core.flops`.
        arrays: paths of all parameters, in the order in which the function uses them.
        left: the share of all parameters, 0 to 1, that stays when half of the units of every group go.
        halving: the share of the units of every group whose removal leaves half of the parameters; 1 if none does.
    """

    rows: tuple[GroupExplanation, ...]
    frozen: tuple[analysis.Frozen, ...]
    params: int
    flops: int
    arrays: tuple[str, ...]
    left: float = 1.0
    halving: float = 1.0

    def __str__(self) -> str:
        head = ("group", "kind", "units", "params", "FLOPs", "made by", "read by")
        shares = [(f"{r.params:.1%}", f"{r.flops:.1%}") for r in self.rows]
        body = [
            (_end_of(r.name, 30), r.kind, str(r.size), *share, _short(r.makes), _short(r.reads))
            for r, share in zip(self.rows, shares, strict=True)
        ]
        counted = f"{len(self.rows)} group{'' if len(self.rows) == 1 else 's'}"
        lines = [f"{self.params:,} parameters, {self.flops:,} FLOPs, {counted}", "", *_table(head, body)]
        loose = [(r.name, ", ".join(r.approximate)) for r in self.rows if r.approximate]
        if loose:
            lines += ["", "approximate: slim is near to masked, not equal", *_table(("group", "allowed by"), loose)]
        if self.left < 0.2:
            lines += [
                "",
                f"Groups share arrays, so their cuts multiply: half of every group leaves {self.left:.1%} of the "
                f"parameters; removing {self.halving:.0%} of every group leaves half of them.",
            ]
        if self.frozen:
            sets: dict[int, list[analysis.Frozen]] = {}
            for f in self.frozen:
                sets.setdefault(f.number, []).append(f)
            axes = [tuple(dict.fromkeys(f"{f.path}[{f.axis}]" for f in s)) for s in sets.values()]
            kept = [(_short(a), str(s[0].size), s[0].reason) for a, s in zip(axes, sets.values(), strict=True)]
            lines += ["", "not to be cut", *_table(("axes", "length", "because"), kept)]
        return "\n".join(lines)


def explain(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    rules: analysis.PrimitiveRules = (),
    allow: Sequence[Approximation] = (),
    keep: Sequence[str] = (),
) -> Explanation:
    """The groups of a function with what hangs on each, and what may not be cut and why.

    Args:
        apply: pure, `apply(variables, *inputs)`, as `graph.groups` takes it.
        variables: any pytree of arrays or shapes.
        *inputs: arrays or shapes as `apply` takes them.
        rules: rules for primitives that are not known, or that are to be read otherwise.
        allow: ways in which the slim function may differ from the masked one, as `graph.groups` takes them.
        keep: names of functions whose custom derivative is to hold after cutting too.

    Returns:
        An explanation, which prints as tables: the groups with their shares of parameters and operations, those that
        are approximate, then the axes that have to stay, with the reasons and, where there is one, the remedy. `a[0]`
        is axis 0 of the parameter `a`. Shares of groups overlap: an array can belong to several. Heads and their
        dimensions that have to stay because of "an axis of the input" often lie in a cache that is given as an input;
        see `variables` of `graph.groups`.

    Raises:
        ValueError: as `graph.groups` does.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> def mlp(params, x):
    ...     return jax.nn.softmax(jax.nn.relu(x @ params["a"]) @ params["b"])
    >>> print(explain(mlp, {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}, jnp.ones((1, 3))))
    40 parameters, 95 FLOPs, 1 group
    <BLANKLINE>
    group  kind    units  params  FLOPs  made by  read by
    a      neuron      8  100.0%  92.6%  a[1]     b[0]
    <BLANKLINE>
    not to be cut
    axes  length  because
    a[0]       3  an axis of the input
    b[1]       2  an axis of the output
    """
    found = analysis.analyse(apply, variables, *inputs, rules=rules, allow=allow, keep=keep)
    leaves = [leaf for leaf in found.traced.leaves if leaf.collection == "params"]
    shapes = {leaf.path: leaf.value.shape for leaf in leaves}
    total = sum(math.prod(shape) for shape in shapes.values())
    works = list(work.count(found.traced.program))
    flops = sum(w.flops for w in works)
    spent: dict[Dim, int] = {}
    for w in works:
        for d in w.dims:
            spent[d] = spent.get(d, 0) + w.flops
    rows = []
    for g in found.groups:
        touched = [s for s in g.slots if s.collection == "params"]
        own = sum(_touched(shapes[path], slots, g.size) for path, slots in _by_path(touched).items())
        rows.append(
            GroupExplanation(
                name=g.name,
                kind=g.kind,
                size=g.size,
                params=own / max(total, 1),
                flops=spent.get(found.roots[g.name], 0) / max(flops, 1),
                makes=tuple(dict.fromkeys(f"{s.path}[{s.axis}]" for s in touched if s.scored)),
                reads=tuple(dict.fromkeys(f"{s.path}[{s.axis}]" for s in touched if not s.scored)),
                approximate=g.approximate,
            )
        )
    first: dict[str, int] = {}
    for i, note in enumerate(found.traced.notes):
        for source in note.sources:
            first.setdefault(source.removeprefix("params:"), i)
    arrays = sorted(shapes, key=lambda path: first.get(path, len(found.traced.notes)))
    left = functools.partial(_left, shapes, [(g.size, _positions(g)) for g in found.groups])
    return Explanation(tuple(rows), found.frozen, total, flops, tuple(arrays), left(0.5), _halving(left))


_At: TypeAlias = tuple[str, int, np.ndarray]
"""A path, an axis, and where each unit of a group lies along it."""


def _positions(group: Group) -> list[_At]:
    # Most slots of a group lie alike.
    known: dict[tuple[Any, ...], np.ndarray] = {}
    found = []
    for s in group.slots:
        if s.collection == "params":
            how = (s.start, s.step, s.repeats)
            if how not in known:
                known[how] = s.index(group.size)
            found.append((s.path, s.axis, known[how]))
    return found


def _left(shapes: Mapping[str, tuple[int, ...]], groups: Sequence[tuple[int, Sequence[_At]]], ratio: float) -> float:
    """The share of parameters that stays when a share of every group's units goes; at least one unit stays."""
    gone: dict[tuple[str, int], np.ndarray] = {}
    for size, slots in groups:
        removed = min(round(ratio * size), size - 1)
        for path, axis, index in slots:
            if (path, axis) not in gone:
                gone[path, axis] = np.zeros(shapes[path][axis], bool)
            gone[path, axis][index[:removed]] = True
    kept = {path: list(shape) for path, shape in shapes.items()}
    for (path, axis), there in gone.items():
        kept[path][axis] = int(np.count_nonzero(~there))
    return sum(map(math.prod, kept.values())) / max(sum(map(math.prod, shapes.values())), 1)


def _halving(left: Callable[[float], float]) -> float:
    """The smallest share of every group, in hundredths, that leaves at most half of the parameters."""
    low, high = 0, 100
    if left(1.0) > 0.5:
        return 1.0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if left(middle / 100) <= 0.5 else (middle, high)
    return high / 100


def _by_path(slots: list[Slot]) -> dict[str, list[Slot]]:
    found: dict[str, list[Slot]] = {}
    for s in slots:
        found.setdefault(s.path, []).append(s)
    return found


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


def _short(names: tuple[str, ...], room: int = 26) -> str:
    """As many names as there is room for, at least one, and how many more there are."""
    shown = [_end_of(name, room) for name in names[:1]]
    for name in names[1:3]:
        if len(", ".join((*shown, name))) > room:
            break
        shown.append(name)
    left = len(names) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "")


def _end_of(name: str, room: int) -> str:
    """A name, or as much of its end as there is room for."""
    return name if len(name) <= room else f"…{name[1 - room :]}"


def _table(head: tuple[str, ...], body: Sequence[tuple[str, ...]], width: int = 120) -> list[str]:
    """Columns as wide as they need, numbers to the right; the last one is broken into lines of a terminal's width."""
    rows = [head, *body]
    widths = [max(len(r[i]) for r in rows) for i in range(len(head))]
    right = [bool(body) and all(r[i][:1].isdigit() for r in body) for i in range(len(head))]
    before = sum(widths[:-1]) + 2 * (len(head) - 1)
    lines = []
    for row in rows:
        first, *further = textwrap.wrap(row[-1], max(width - before, 26)) or [""]
        cells = zip((*row[:-1], first), widths, right, strict=True)
        lines.append("  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in cells).rstrip())
        lines += [" " * before + line for line in further]
    return lines
