"""Rules that people write for derivatives, read with axes and written again with fewer units.

The rule of a `jax.custom_vjp` function is a forward and a backward program, that of a `jax.custom_jvp` function one for
results and tangents. They run on the same values as the function, so their axes are those of its arguments and
results; what would carry something from removed units to others is frozen, and a new function of the same kind runs
them on smaller arrays.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from mvp_jax.graph.dims import Axes, Dim, freeze, roots, unify
from mvp_jax.graph.program import Program, Tracer, Value, open_jaxpr
from mvp_jax.graph.rules import Zeros

Follow = Callable[[Program, list[Zeros]], list[Zeros]]
Run = Callable[[Program, list[Any]], list[Any]]


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


def _axes(v: Value) -> Axes:
    return v.dims if v.dims is not None else [Dim(n) for n in v.shape]


def whole(program: Program) -> Program:
    """The program with axes for every result, also for constant ones: those leave it in the smaller shape."""
    return dataclasses.replace(program, outs=tuple(v._replace(dims=_axes(v)) for v in program.outs))


def _meet(some: Sequence[Value], others: Sequence[Value]) -> None:
    """Says that values of the same shapes are cut alike."""
    for v, w in zip(some, others, strict=True):
        for a, b in zip(v.dims or [], w.dims or [], strict=True):
            unify(a, b)


def _program(
    tracer: Tracer, eqn: Any, given: list[Value], jaxpr: Any, consts: Sequence[Any], args: list[Value], name: str
) -> tuple[Program, tuple[int, ...]]:
    """A rule's program, and which operands of the equation it takes first because it closes over them."""
    closed: list[int] = []
    traced, constvars, known = [], [], []
    for var, value in zip(jaxpr.constvars, consts, strict=True):
        if not isinstance(value, jax.core.Tracer):
            constvars.append(var)
            known.append(value)
            continue
        # Such a value was a variable of the function around; the equation has it as an operand, or JAX itself fails.
        at = [i for i, v in enumerate(eqn.invars) if v is getattr(value, "val", None)]
        if not at:
            raise ValueError(
                f"the derivative of {name!r} cannot be kept: its rule uses a traced value that is no argument of the "
                "function; make it one"
            )
        traced.append(var)
        closed.append(at[0])
    opened = Opened([*traced, *jaxpr.invars], constvars, list(jaxpr.eqns), list(jaxpr.outvars))
    return tracer.program(opened, known, [*(given[i] for i in closed), *args]), tuple(closed)


def _is_differentiable(aval: Any) -> bool:
    return bool(jnp.issubdtype(aval.dtype, np.inexact))


def _both(a: Zeros, b: Zeros) -> Zeros:
    """Where two values of the same axes are zero."""
    if a is None or b is None:
        return b if a is None else a
    return tuple(x & y for x, y in zip(a, b, strict=True))


def _complement(v: Value, z: Zeros) -> Zeros:
    """Everything but where a value is zero."""
    if z is None:
        return tuple(frozenset[Dim]() for _ in v.shape)
    return tuple(frozenset(roots(e)) - known for e, known in zip(v.dims or [], z, strict=True))


def _must_vanish(v: Value, z: Zeros, cotangent: Zeros, name: str) -> None:
    """Freezes the units at whose removal neither an argument nor its cotangent is zero."""
    if z is None or cotangent is None:
        return
    for a, e in enumerate(v.dims or []):
        for d in roots(e):
            if d not in z[a] and d not in cotangent[a]:
                freeze(d, f"in the derivative of {name}: a cotangent that is not zero where units are removed")


def _must_not_move(name: str, moves: Sequence[bool]) -> None:
    if any(moves):
        raise ValueError(
            f"{name!r} closes over a value that is differentiated, which its derivative says nothing about; make the "
            "value an argument"
        )


def _filled(t: Any) -> Any:
    """A tangent or cotangent as an array."""
    if not isinstance(t, SymbolicZero):
        return t
    return np.zeros(t.shape, t.dtype) if t.dtype == jax.dtypes.float0 else jnp.zeros(t.shape, t.dtype)


def _no_tangent(x: Any) -> Any:
    return jnp.zeros_like(x) if _is_differentiable(x) else np.zeros(np.shape(x), jax.dtypes.float0)


# --- custom_vjp ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class BackwardRule:
    """The forward and the backward rule of a `custom_vjp` function, with their axes.

    Attributes:
        name: the function's name.
        given: what is known of the equation's operands.
        count: how many of them, the first, the function closes over.
        primal: what the function computes.
        fwd: what its forward rule computes: the residuals that are no arguments, and the results.
        fwd_closed: which operands `fwd` takes first because it closes over them.
        residuals: which argument each residual is; `None`: the next of those that `fwd` computes.
        bwd: what its backward rule computes: cotangents of those arguments that have one.
        bwd_closed: as `fwd_closed`.
        into: for each result, whether `bwd` takes its cotangent.
        back: which operands the results of `bwd` belong to.
    """

    name: str
    given: tuple[Value, ...]
    count: int
    primal: Program
    fwd: Program
    fwd_closed: tuple[int, ...]
    residuals: tuple[int | None, ...]
    bwd: Program
    bwd_closed: tuple[int, ...]
    into: tuple[bool, ...]
    back: tuple[int, ...]

    def _residuals(self, computed: Sequence[Any], operands: Sequence[Any]) -> list[Any]:
        rest = iter(computed)
        return [next(rest) if i is None else operands[i] for i in self.residuals]

    def zeros(self, zs: list[Zeros], follow: Follow) -> list[Zeros]:
        """Zeros of the function's results; freezes what its own derivative would carry from removed units to others.

        What the rest of the program does with a result, it may do with removed entries only where they are zero:
        elsewhere nothing depends on them, and their cotangents are zero. Of removed entries that are zero, the
        cotangent may be anything. Backwards the same must hold again for the arguments.
        """
        n = len(zs) - len(self.primal.jaxpr.invars)
        plain = follow(self.primal, zs[n:])
        outs = follow(self.fwd, [*(zs[i] for i in self.fwd_closed), *zs[self.count :]])
        split = len(outs) - len(plain)
        results = [_both(a, b) for a, b in zip(plain, outs[split:], strict=True)]
        cotangents = [
            _complement(v, z) for v, z, taken in zip(self.primal.outs, results, self.into, strict=True) if taken
        ]
        with Blame(self.name, [*self.given, *self.primal.outs]):
            back = follow(
                self.bwd, [*(zs[i] for i in self.bwd_closed), *self._residuals(outs[:split], zs), *cotangents]
            )
        for i, cotangent in zip(self.back, back, strict=True):
            _must_vanish(self.given[i], zs[i], cotangent, self.name)
        return results

    def replay(self, values: list[Any], run: Run) -> list[Any]:
        """Calls the function on smaller arrays, with its derivative."""
        n = len(values) - len(self.primal.jaxpr.invars)

        def function(*values: Any) -> tuple[Any, ...]:
            return tuple(run(self.primal, list(values[n:])))

        def fwd(*values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            if self.count:
                _must_not_move(self.name, [v.perturbed for v in values[: self.count]])
                values = tuple(v.value for v in values)
            outs = run(self.fwd, [*(values[i] for i in self.fwd_closed), *values[self.count :]])
            split = len(outs) - len(self.primal.outs)
            residuals = [*(values[i] for i in self.bwd_closed), *self._residuals(outs[:split], values)]
            return tuple(outs[split:]), tuple(residuals)

        def bwd(residuals: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
            taken = [_filled(c) for c, used in zip(cotangents, self.into, strict=True) if used]
            found = dict(zip(self.back, run(self.bwd, [*residuals, *taken]), strict=True))
            return tuple(found.get(i) for i in range(len(self.given)))

        function.__name__ = function.__qualname__ = self.name
        custom = jax.custom_vjp(function)
        # Only so does JAX say whether a value that the function closes over is differentiated.
        custom.defvjp(fwd, bwd, symbolic_zeros=bool(self.count))
        return list(custom(*values))


def read_vjp(tracer: Tracer, eqn: Any, given: list[Value], name: str, primal: Program) -> BackwardRule:
    """Reads both rules of a `custom_vjp` function whose own program was read."""
    params, count = eqn.params, eqn.params["num_consts"]
    args = given[count:]
    jaxpr, consts = params["fwd_jaxpr_thunk"].call_wrapped(*[True] * len(args))
    fwd, fwd_closed = _program(tracer, eqn, given, jaxpr, consts, args, name)
    split = len(fwd.outs) - len(primal.outs)
    fwd = dataclasses.replace(fwd, outs=(*fwd.outs[:split], *whole(fwd).outs[split:]))
    _meet(primal.outs, fwd.outs[split:])
    residuals = tuple(params["out_trees"]()[2])
    computed = iter(zip(fwd.outs[:split], jaxpr.outvars[:split], strict=True))
    stored = [next(computed) if i is None else (given[i], eqn.invars[i]) for i in residuals]
    into = tuple(_is_differentiable(v.aval) for v in eqn.outvars)
    backward, back = _traced_bwd(params["bwd"], [v.aval for _, v in stored], [v.aval for v in eqn.outvars], into)
    cotangents = [v for v, taken in zip(primal.outs, into, strict=True) if taken]
    cotangents = [Value(v.dims, v.shape, active=True) for v in cotangents]
    body, known = open_jaxpr(backward)
    bwd, bwd_closed = _program(tracer, eqn, given, body, known, [*(v for v, _ in stored), *cotangents], name)
    # The rule leaves out the operands that the function closes over: they come first.
    at = [i + count for i in back]
    bwd = whole(bwd)
    for i, cotangent in zip(at, bwd.outs, strict=True):
        if given[i].dims is not None:
            _meet([given[i]], [cotangent])
    return BackwardRule(
        name=name,
        given=tuple(given),
        count=count,
        primal=primal,
        fwd=fwd,
        fwd_closed=fwd_closed,
        residuals=residuals,
        bwd=bwd,
        bwd_closed=bwd_closed,
        into=into,
        back=tuple(at),
    )


def _traced_bwd(
    bwd: Any, residuals: Sequence[Any], results: Sequence[Any], into: Sequence[bool]
) -> tuple[Any, list[int]]:
    """A backward rule as a jaxpr of residuals and cotangents, and which arguments it gives a cotangent for."""
    back: list[int] = []

    def run(residuals: list[Any], cotangents: list[Any]) -> list[Any]:
        rest = iter(cotangents)
        all_of_them = [
            next(rest) if taken else np.zeros(aval.shape, jax.dtypes.float0)
            for aval, taken in zip(results, into, strict=True)
        ]
        found = bwd.call_wrapped(*residuals, *all_of_them)
        if len(found) == 2 and isinstance(found[0], list | tuple):  # since JAX 0.12 with what the rule logs
            found = found[0]
        there = {i: c for i, c in enumerate(found) if not isinstance(c, ad.Zero) and c is not None}
        back[:] = there
        return list(there.values())

    taken = [aval for aval, used in zip(results, into, strict=True) if used]
    jaxpr = jax.make_jaxpr(run)(list(map(_abstract, residuals)), list(map(_abstract, taken)))
    return jaxpr, back


def _abstract(aval: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype)


# --- custom_jvp ------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, kw_only=True)
class TangentRule:
    """The rule of a `custom_jvp` function, with its axes.

    Attributes:
        name: the function's name.
        given: what is known of the equation's operands.
        count: how many of them, the first, the function closes over.
        primal: what the function computes.
        jvp: what its rule computes: the results, then those tangents that are not zero.
        closed: which operands the rule takes first because it closes over them.
        into: for each argument, whether the rule takes its tangent.
        out: for each result, whether the rule gives its tangent.
    """

    name: str
    given: tuple[Value, ...]
    count: int
    primal: Program
    jvp: Program
    closed: tuple[int, ...]
    into: tuple[bool, ...]
    out: tuple[bool, ...]

    def zeros(self, zs: list[Zeros], follow: Follow) -> list[Zeros]:
        """Zeros of the function's results; freezes what its own derivative would carry from removed units to others.

        Where a value is zero whatever the units that stay are, so is its tangent. Hence tangents come in with the zeros
        of the arguments, and a result is called zero only where its tangent is too.
        """
        n = len(zs) - len(self.primal.jaxpr.invars)
        plain = follow(self.primal, zs[n:])
        args = zs[self.count :]
        tangents = [z for z, taken in zip(args, self.into, strict=True) if taken]
        with Blame(self.name, [*self.given, *self.primal.outs]):
            outs = follow(self.jvp, [*(zs[i] for i in self.closed), *args, *tangents])
        split = len(plain)
        moved = iter(outs[split:])
        return [
            _both(_both(a, b), next(moved) if there else None)
            for a, b, there in zip(plain, outs[:split], self.out, strict=True)
        ]

    def replay(self, values: list[Any], run: Run) -> list[Any]:
        """Calls the function on smaller arrays, with its derivative."""
        n = len(values) - len(self.primal.jaxpr.invars)

        def function(*values: Any) -> tuple[Any, ...]:
            return tuple(run(self.primal, list(values[n:])))

        def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            _must_not_move(self.name, [not isinstance(t, SymbolicZero) for t in tangents[: self.count]])
            taken = [_filled(t) for t, used in zip(tangents[self.count :], self.into, strict=True) if used]
            outs = run(self.jvp, [*(primals[i] for i in self.closed), *primals[self.count :], *taken])
            split = len(self.primal.outs)
            results, moved = outs[:split], iter(outs[split:])
            return tuple(results), tuple(
                next(moved) if there else _no_tangent(r) for r, there in zip(results, self.out, strict=True)
            )

        function.__name__ = function.__qualname__ = self.name
        custom = jax.custom_jvp(function)
        # Only so does JAX say whether a value that the function closes over is differentiated.
        custom.defjvp(jvp, symbolic_zeros=bool(self.count))
        return list(custom(*values))


def read_jvp(tracer: Tracer, eqn: Any, given: list[Value], name: str, primal: Program) -> TangentRule:
    """Reads the rule of a `custom_jvp` function whose own program was read."""
    params, count = eqn.params, eqn.params["num_consts"]
    args, avals = given[count:], [v.aval for v in eqn.invars[count:]]
    # A rule that knows of symbolic zeros is told of those that there always are: integers have no tangent.
    without = [bool(params["symbolic_zeros"]) and not _is_differentiable(a) for a in avals]
    jaxpr, consts, zero = params["jvp_jaxpr_fun"].call_wrapped(*without)
    tangents = [_tangent(v, a) for v, a, z in zip(args, avals, without, strict=True) if not z]
    split = len(eqn.outvars)
    moved = iter(jaxpr.outvars[split:])
    given_back = {i: next(moved) for i, z in enumerate(zero) if not z}
    out = tuple(i in given_back and _is_differentiable(v.aval) for i, v in enumerate(eqn.outvars))
    results = [*jaxpr.outvars[:split], *(given_back[i] for i, there in enumerate(out) if there)]
    body = Opened(list(jaxpr.invars), list(jaxpr.constvars), list(jaxpr.eqns), results)
    jvp, closed = _program(tracer, eqn, given, body, consts, [*args, *tangents], name)
    jvp = whole(jvp)
    _meet(primal.outs, jvp.outs[:split])
    _meet([v for v, there in zip(primal.outs, out, strict=True) if there], jvp.outs[split:])
    return TangentRule(
        name=name,
        given=tuple(given),
        count=count,
        primal=primal,
        jvp=jvp,
        closed=closed,
        into=tuple(not z for z in without),
        out=out,
    )


def _tangent(v: Value, aval: Any) -> Value:
    if not _is_differentiable(aval):
        return Value(None, v.shape)
    # A constant's tangent is zero, and as long as the constant.
    return Value(v.dims, v.shape, 0.0 if v.dims is None else None, active=v.dims is not None)
