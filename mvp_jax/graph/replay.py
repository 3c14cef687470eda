"""A traced function written again with fewer units: every equation applied to the smaller arrays.

No layer is rebuilt and no literal is touched, so what a norm divides by, or what scale attention has, stays what it was
in the dense function; that is why the result equals the masked function.
"""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.extend import core

from mvp_jax.core.types import Array
from mvp_jax.core.units import positions
from mvp_jax.graph import placement
from mvp_jax.graph.dims import Axes, Dim, Expr, places, resolve
from mvp_jax.graph.program import Node, Program, called, open_jaxpr, scan_split
from mvp_jax.graph.rules import PrimitiveRule


class Replay:
    """Runs a program with only the kept units.

    Args:
        kept: `bool[C]` on the host for every set of units that is cut; all others stay.
        rules: the table that the program was read with.
    """

    def __init__(self, kept: Mapping[Dim, np.ndarray], rules: Mapping[str, PrimitiveRule]):
        self.kept = kept
        self.rules = rules

    def vector(self, e: Expr) -> np.ndarray | None:
        """Which entries of an axis stay; `None`: all."""
        keep: np.ndarray | None = None
        for place in places(e):
            if place.root not in self.kept:
                continue
            at = positions(place.root.size, place.start, place.step, place.repeats)
            keep = np.ones(resolve(e).size, bool) if keep is None else keep
            keep[at[~self.kept[place.root]]] = False
        return keep

    def size(self, e: Expr) -> int:
        """The length of an axis after cutting."""
        keep = self.vector(e)
        return resolve(e).size if keep is None else int(np.count_nonzero(keep))

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

    def run(self, program: Program, args: list[Any]) -> list[Any]:
        """Results for smaller arguments; constants come and go in the shapes that they had."""
        env: dict[Any, Any] = dict(zip(program.jaxpr.invars, args, strict=True))
        env |= dict(zip(program.jaxpr.constvars, program.consts, strict=True))

        def value(v: Any) -> Any:
            return v.val if isinstance(v, core.Literal) else env[v]

        for node in program.nodes:
            values = [value(v) for v in node.eqn.invars]
            env.update(zip(node.eqn.outvars, self._node(node, values), strict=True))
        # A result that the reader had to give axes to (a branch, a loop body) leaves in the smaller shape.
        return [
            self.cut(value(v), of.dims) if constant and of.dims is not None else value(v)
            for v, of, constant in zip(program.jaxpr.outvars, program.outs, program.constants, strict=True)
        ]

    def _node(self, node: Node, values: list[Any]) -> list[Any]:
        if node.kind == "constant":
            return _bind(node.eqn, values, node.eqn.params)
        if node.kind == "call":
            return self._call(node, values)
        if node.kind == "custom":
            results: list[Any] = node.derivative.replay(values, self.run)
            return results
        values = [
            self.cut(v, axes) if constant else v
            for v, axes, constant in zip(values, node.seen.ins, node.constants, strict=True)
        ]
        if node.kind == "scan":
            return self._scan(node, values)
        if node.kind == "cond":
            branches = [lambda *ops, p=p: tuple(self.run(p, list(ops))) for p in node.inner]
            return list(lax.switch(values[0], branches, *values[1:]))
        rule = self.rules.get(node.seen.name)
        params = placement.fitted_params(node.eqn.params, lambda: [self.size(e) for e in node.seen.outs[0]])
        if rule is None or rule.emit is None:
            return _bind(node.eqn, values, params)
        out = rule.emit(node.seen, values, self.size, params)
        return list(out) if node.eqn.primitive.multiple_results else [out]

    def _call(self, node: Node, values: list[Any]) -> list[Any]:
        inner = node.inner[0]
        values = values[len(values) - len(inner.jaxpr.invars) :]
        if node.seen.name == "custom_jvp_call" and _is_relu(node):
            # Its derivative at 0 is 0; that of the maximum inside would be one half.
            return [jax.nn.relu(values[0])]
        if node.seen.name in ("remat", "remat2", "checkpoint"):
            again = jax.checkpoint(
                lambda *args: tuple(self.run(inner, list(args))),
                policy=node.eqn.params["policy"],
                prevent_cse=node.eqn.params["prevent_cse"],
            )
            return list(again(*values))
        return self.run(inner, values)

    def _scan(self, node: Node, values: list[Any]) -> list[Any]:
        params = node.eqn.params
        n_consts, n_carry = scan_split(params)
        consts, carry, xs = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]

        def body(carry: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            out = self.run(node.inner[0], [*consts, *carry, *x])
            return tuple(out[:n_carry]), tuple(out[n_carry:])

        last, ys = lax.scan(
            body, tuple(carry), tuple(xs), params["length"], reverse=params["reverse"], unroll=params["unroll"]
        )
        return [*last, *ys]


def _is_relu(node: Node) -> bool:
    """Whether a function with a custom derivative is `jax.nn.relu`: its name, and max(x, 0)."""
    eqns = open_jaxpr(called(node.eqn.params))[0].eqns
    if len(eqns) != 1 or eqns[0].params.get("name") != "relu":
        return False
    body = open_jaxpr(called(eqns[0].params))[0].eqns
    return [e.primitive.name for e in body] == ["max"] and isinstance(body[0].invars[1], core.Literal)


def _bind(eqn: Any, values: list[Any], params: Mapping[str, Any]) -> list[Any]:
    """Applies a primitive with the parameters that it had."""
    bound = eqn.primitive.get_bind_params(dict(params))
    functions, params = bound if isinstance(bound, tuple) else ((), bound)
    out = eqn.primitive.bind(*functions, *values, **params)
    return list(out) if eqn.primitive.multiple_results else [out]
