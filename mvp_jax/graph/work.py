"""Arithmetic and memory of a traced function as functions of how many units stay, without compiling anything.

How many operations an equation takes is `core.flops`' business; this file says which axes it has with fewer units.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from mvp_jax.core import flops
from mvp_jax.graph.dims import Dim, Expr, resolve, roots
from mvp_jax.graph.program import Node, Program

Size = Callable[[Expr], int]
"""The length of an axis after cutting."""


class EquationCost(NamedTuple):
    """What one equation of a program costs.

    Attributes:
        flops: floating-point operations, by the convention of `core.flops`.
        entries: how many numbers it writes; 0 if they depend on neither variables nor inputs.
        dims: the sets of units whose removal makes it cheaper.
    """

    flops: int
    entries: int
    dims: frozenset[Dim]


def whole(e: Expr) -> int:
    """The dense length of an axis."""
    return resolve(e).size


def count(program: Program, size: Size = whole) -> Iterator[EquationCost]:
    """What every equation costs.

    Args:
        program: from `trace`.
        size: gives the length of an axis after cutting; without it axes have their dense lengths.

    Yields:
        An `EquationCost` for each equation. The operations of a scan's body are multiplied by how often it runs; those
        of a `while_loop`, of which nobody knows it, count once, as do those of one device of many; of several branches,
        the one with the most operations counts.
    """
    for node in program.nodes:
        if node.kind == "constant":
            yield EquationCost(flops.of_equation(node.eqn), 0, frozenset())
        elif node.kind in ("call", "custom"):
            yield from count(node.inner[0], size)
        elif node.kind == "scan":
            times = node.eqn.params["length"]
            for w in count(node.inner[0], size):
                yield w._replace(flops=w.flops * times)
        elif node.kind in ("while", "shard_map"):
            for inner in node.inner:
                yield from count(inner, size)
        elif node.kind == "cond":
            branches = [list(count(p, size)) for p in node.inner]
            yield from max(branches, key=lambda works: sum(w.flops for w in works))
        else:
            yield _one(node, size)


def total(program: Program, size: Size = whole) -> tuple[int, int]:
    """The floating-point operations of a call, and how many numbers all its equations write."""
    works = list(count(program, size))
    return sum(w.flops for w in works), sum(w.entries for w in works)


def _one(node: Node, size: Size) -> EquationCost:
    seen = node.seen
    ins, outs = ([tuple(map(size, axes)) for axes in side] for side in (seen.ins, seen.outs))
    dims = frozenset[Dim]().union(*(roots(e) for axes in (*seen.ins, *seen.outs) for e in axes))
    inside = node.kind == "opaque" and any(flops.subprograms(node.eqn))  # all its axes stay whole
    operations = flops.of_equation(node.eqn) if inside else flops.of_primitive(node.eqn, ins, outs)
    return EquationCost(operations, sum(map(math.prod, outs)), dims)
