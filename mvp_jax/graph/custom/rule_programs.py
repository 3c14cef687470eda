"""Programs of rules that people write for derivatives: how they are read, and what must hold where units are removed.

A rule runs on the same values as its function, so its axes are those of the function's arguments and results.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero

from mvp_jax.graph.dims import Axes, Dim, freeze, roots, unify
from mvp_jax.graph.program import Program, Value
from mvp_jax.graph.reading import Tracer
from mvp_jax.graph.rules import Zeros


class Opened(NamedTuple):
    """A jaxpr, with those values that it closes over and that are traced as its first arguments."""

    invars: list[Any]
    constvars: list[Any]
    eqns: list[Any]
    outvars: list[Any]


class Blame:
    """Says of units that get frozen meanwhile that a custom derivative is why."""

    def __init__(self, name: str, values: Sequence[Value]):
        self.name = name
        self.values = values

    def _dims(self) -> set[Dim]:
        return {d for v in self.values for e in v.dims or [] for d in roots(e)}

    def __enter__(self) -> None:
        self.before = {id(d) for d in self._dims() if d.why}

    def __exit__(self, *_: object) -> None:
        for d in self._dims():
            if d.why and id(d) not in self.before and not d.why.startswith("in the derivative of"):
                d.why = f"in the derivative of {self.name}: {d.why}"


def axes_of(v: Value) -> Axes:
    """The axes of a value; a constant gets some of its own."""
    return v.dims if v.dims is not None else [Dim(n) for n in v.shape]


def whole(program: Program) -> Program:
    """The program with axes for every result, also for constant ones: those leave it in the smaller shape."""
    return dataclasses.replace(program, outs=tuple(v._replace(dims=axes_of(v)) for v in program.outs))


def meet(some: Sequence[Value], others: Sequence[Value]) -> None:
    """Says that values of the same shapes are cut alike."""
    for v, w in zip(some, others, strict=True):
        for a, b in zip(v.dims or [], w.dims or [], strict=True):
            unify(a, b)


Aliases = dict[Any, Any]
"""Of a value that a rule closes over, the variable of the function around -> that of the program that is being read."""


def read_rule(
    tracer: Tracer,
    eqn: Any,
    given: list[Value],
    rule: tuple[Any, Sequence[Any]],
    args: list[Value],
    name: str,
    aliases: Aliases,
) -> tuple[Program, tuple[int, ...]]:
    """A rule's program, and which operands of the equation it takes first because it closes over them."""
    jaxpr, consts = rule
    variables, invars = list(jaxpr.constvars), list(jaxpr.invars)
    if len(variables) < len(consts):  # since JAX 0.12 a rule takes what it closes over as its first arguments
        variables, invars = invars[: len(consts)], invars[len(consts) :]
    inside = dict(aliases)
    closed: list[int] = []
    traced, constvars, known = [], [], []
    for var, value in zip(variables, consts, strict=True):
        if not isinstance(value, jax.core.Tracer):
            constvars.append(var)
            known.append(value)
            continue
        # Such a value was a variable of the function around; the equation has it as an operand, or JAX itself fails.
        outer = getattr(value, "val", None)
        at = [i for i, v in enumerate(eqn.invars) if v is outer or v is aliases.get(outer)]
        if not at:
            raise ValueError(
                f"the derivative of {name!r} cannot be kept: its rule uses a traced value that is no argument of the "
                "function; make it one"
            )
        traced.append(var)
        closed.append(at[0])
        inside[outer] = var
    opened = Opened([*traced, *invars], constvars, list(jaxpr.eqns), list(jaxpr.outvars))
    before = dict(aliases)
    aliases.update(inside)
    program = tracer.program(opened, known, [*(given[i] for i in closed), *args])
    aliases.clear()
    aliases.update(before)
    return program, tuple(closed)


def is_differentiable(aval: Any) -> bool:
    """Whether an array has tangents at all."""
    return bool(jnp.issubdtype(aval.dtype, np.inexact))


def both(a: Zeros, b: Zeros) -> Zeros:
    """Where two values of the same axes are zero."""
    if a is None or b is None:
        return b if a is None else a
    return tuple(x & y for x, y in zip(a, b, strict=True))


def complement(v: Value, z: Zeros) -> Zeros:
    """Everything but where a value is zero."""
    if z is None:
        return tuple(frozenset[Dim]() for _ in v.shape)
    return tuple(frozenset(roots(e)) - known for e, known in zip(v.dims or [], z, strict=True))


def must_vanish(v: Value, z: Zeros, cotangent: Zeros, name: str) -> None:
    """Freezes the units at whose removal neither an argument nor its cotangent is zero."""
    if z is None or cotangent is None:
        return
    for a, e in enumerate(v.dims or []):
        for d in roots(e):
            if d not in z[a] and d not in cotangent[a]:
                freeze(d, f"in the derivative of {name}: a cotangent that is not zero where units are removed")


def must_not_move(name: str, moves: Sequence[bool]) -> None:
    """Raises `ValueError`, as JAX does, if a value that a function closes over is differentiated."""
    if any(moves):
        raise ValueError(
            f"{name!r} closes over a value that is differentiated, which its derivative says nothing about; make the "
            "value an argument"
        )


def filled(t: Any) -> Any:
    """A tangent or cotangent as an array."""
    if not isinstance(t, SymbolicZero):
        return t
    return np.zeros(t.shape, t.dtype) if t.dtype == jax.dtypes.float0 else jnp.zeros(t.shape, t.dtype)


def no_tangent(x: Any) -> Any:
    """A tangent that is zero."""
    return jnp.zeros_like(x) if is_differentiable(x) else np.zeros(np.shape(x), jax.dtypes.float0)
