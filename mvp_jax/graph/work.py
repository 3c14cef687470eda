"""Arithmetic and memory of a traced function as functions of how many units stay, without compiling anything."""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mvp_jax.graph.dims import Axes, Dim, Expr, resolve, roots
from mvp_jax.graph.program import Node, Program

Size = Callable[[Expr], int]
"""The length of an axis after cutting."""


class Work(NamedTuple):
    """Of one equation.

    Attributes:
        flops: floating-point operations; a multiply-add counts as two, anything elementwise as one an entry.
        entries: numbers that it writes.
        dims: the sets of units whose removal makes it cheaper.
    """

    flops: int
    entries: int
    dims: frozenset[Dim]


def whole(e: Expr) -> int:
    """The dense length of an axis."""
    return resolve(e).size


def count(program: Program, size: Size = whole) -> Iterator[Work]:
    """The work of every equation; loop bodies as often as they run, of several branches the dearest."""
    for node in program.nodes:
        if node.kind == "constant":
            continue
        if node.kind == "call":
            yield from count(node.inner[0], size)
        elif node.kind == "scan":
            times = node.eqn.params["length"]
            for w in count(node.inner[0], size):
                yield w._replace(flops=w.flops * times)
        elif node.kind == "cond":
            branches = [list(count(p, size)) for p in node.inner]
            yield from max(branches, key=lambda works: sum(w.flops for w in works))
        else:
            yield _one(node, size)


def total(program: Program, size: Size = whole) -> tuple[int, int]:
    """All operations, and all numbers written."""
    works = list(count(program, size))
    return sum(w.flops for w in works), sum(w.entries for w in works)


def _entries(axes: Axes, size: Size) -> int:
    return math.prod(map(size, axes))


def _one(node: Node, size: Size) -> Work:
    seen = node.seen
    written = sum(_entries(axes, size) for axes in seen.outs)
    dims = frozenset(d for axes in (*seen.ins, *seen.outs) for e in axes for d in roots(e))
    if seen.name == "dot_general":
        (contracted, _), _ = seen.params["dimension_numbers"]
        flops = 2 * written * math.prod(size(seen.ins[0][a]) for a in contracted)
    elif seen.name == "conv_general_dilated":
        spec = seen.params["dimension_numbers"]
        flops = 2 * written * math.prod(size(seen.ins[1][a]) for a in spec.rhs_spec[1:])
    elif seen.name.startswith(("reduce_", "arg", "cum")) and seen.ins:
        flops = _entries(seen.ins[0], size)
    elif seen.name in _MOVES:
        flops = 0
    else:
        flops = written
    return Work(flops, written, dims)


_MOVES = frozenset(
    (
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "slice",
        "split",
        "concatenate",
        "pad",
        "gather",
        "dynamic_slice",
        "dynamic_update_slice",
        "rev",
        "copy",
        "convert_element_type",
        "stop_gradient",
    )
)
"""What only moves numbers."""
