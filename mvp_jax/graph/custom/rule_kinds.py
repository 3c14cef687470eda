"""Rules that people write for derivatives, read with axes and written again with fewer units.

The rule of a `jax.custom_vjp` function is a forward and a backward program, that of a `jax.custom_jvp` function one for
results and tangents. What would carry something from removed units to others is frozen, and a new function of the same
kind runs them on smaller arrays.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.custom_derivatives import SymbolicZero
from jax.interpreters import ad

from mvp_jax.graph.custom import rule_programs
from mvp_jax.graph.program import Program, Value, open_jaxpr
from mvp_jax.graph.reading import Tracer
from mvp_jax.graph.rules import Zeros

Follow = Callable[[Program, list[Zeros]], list[Zeros]]
RunProgram = Callable[[Program, list[Any]], list[Any]]

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
        results = [rule_programs.both(a, b) for a, b in zip(plain, outs[split:], strict=True)]
        cotangents = [
            rule_programs.complement(v, z)
            for v, z, taken in zip(self.primal.outs, results, self.into, strict=True)
            if taken
        ]
        with rule_programs.Blame(self.name, [*self.given, *self.primal.outs]):
            back = follow(
                self.bwd, [*(zs[i] for i in self.bwd_closed), *self._residuals(outs[:split], zs), *cotangents]
            )
        for i, cotangent in zip(self.back, back, strict=True):
            rule_programs.must_vanish(self.given[i], zs[i], cotangent, self.name)
        return results

    def replay(self, values: list[Any], run: RunProgram) -> list[Any]:
        """Calls the function on smaller arrays, with its derivative."""
        n = len(values) - len(self.primal.jaxpr.invars)

        def function(*values: Any) -> tuple[Any, ...]:
            return tuple(run(self.primal, list(values[n:])))

        def fwd(*values: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            if self.count:
                rule_programs.must_not_move(self.name, [v.perturbed for v in values[: self.count]])
                values = tuple(v.value for v in values)
            outs = run(self.fwd, [*(values[i] for i in self.fwd_closed), *values[self.count :]])
            split = len(outs) - len(self.primal.outs)
            residuals = [*(values[i] for i in self.bwd_closed), *self._residuals(outs[:split], values)]
            return tuple(outs[split:]), tuple(residuals)

        def bwd(residuals: tuple[Any, ...], cotangents: tuple[Any, ...]) -> tuple[Any, ...]:
            taken = [rule_programs.filled(c) for c, used in zip(cotangents, self.into, strict=True) if used]
            found = dict(zip(self.back, run(self.bwd, [*residuals, *taken]), strict=True))
            return tuple(found.get(i) for i in range(len(self.given)))

        function.__name__ = function.__qualname__ = self.name
        custom = jax.custom_vjp(function)
        # Only so does JAX say whether a value that the function closes over is differentiated.
        custom.defvjp(fwd, bwd, symbolic_zeros=bool(self.count))
        return list(custom(*values))


def read_vjp(
    tracer: Tracer, eqn: Any, given: list[Value], name: str, primal: Program, aliases: rule_programs.Aliases
) -> BackwardRule:
    """Reads both rules of a `custom_vjp` function whose own program was read."""
    params, count = eqn.params, eqn.params["num_consts"]
    args = given[count:]
    jaxpr, consts = params["fwd_jaxpr_thunk"].call_wrapped(*[True] * len(args))
    fwd, fwd_closed = rule_programs.read_rule(tracer, eqn, given, (jaxpr, consts), args, name, aliases)
    split = len(fwd.outs) - len(primal.outs)
    fwd = dataclasses.replace(fwd, outs=(*fwd.outs[:split], *rule_programs.whole(fwd).outs[split:]))
    rule_programs.meet(primal.outs, fwd.outs[split:])
    residuals = tuple(params["out_trees"]()[2])
    computed = iter(zip(fwd.outs[:split], jaxpr.outvars[:split], strict=True))
    stored = [next(computed) if i is None else (given[i], eqn.invars[i]) for i in residuals]
    into = tuple(rule_programs.is_differentiable(v.aval) for v in eqn.outvars)
    backward, back = _traced_bwd(params["bwd"], [v.aval for _, v in stored], [v.aval for v in eqn.outvars], into)
    cotangents = [v for v, taken in zip(primal.outs, into, strict=True) if taken]
    cotangents = [Value(v.dims, v.shape, active=True) for v in cotangents]
    bwd, bwd_closed = rule_programs.read_rule(
        tracer, eqn, given, open_jaxpr(backward), [*(v for v, _ in stored), *cotangents], name, aliases
    )
    # The rule leaves out the operands that the function closes over: they come first.
    at = [i + count for i in back]
    bwd = rule_programs.whole(bwd)
    for i, cotangent in zip(at, bwd.outs, strict=True):
        if given[i].dims is not None:
            rule_programs.meet([given[i]], [cotangent])
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
    return jax.ShapeDtypeStruct(aval.shape, aval.dtype, weak_type=getattr(aval, "weak_type", False))


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
        with rule_programs.Blame(self.name, [*self.given, *self.primal.outs]):
            outs = follow(self.jvp, [*(zs[i] for i in self.closed), *args, *tangents])
        split = len(plain)
        moved = iter(outs[split:])
        return [
            rule_programs.both(rule_programs.both(a, b), next(moved) if there else None)
            for a, b, there in zip(plain, outs[:split], self.out, strict=True)
        ]

    def replay(self, values: list[Any], run: RunProgram) -> list[Any]:
        """Calls the function on smaller arrays, with its derivative."""
        n = len(values) - len(self.primal.jaxpr.invars)

        def function(*values: Any) -> tuple[Any, ...]:
            return tuple(run(self.primal, list(values[n:])))

        def jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
            rule_programs.must_not_move(self.name, [not isinstance(t, SymbolicZero) for t in tangents[: self.count]])
            taken = [rule_programs.filled(t) for t, used in zip(tangents[self.count :], self.into, strict=True) if used]
            outs = run(self.jvp, [*(primals[i] for i in self.closed), *primals[self.count :], *taken])
            split = len(self.primal.outs)
            results, moved = outs[:split], iter(outs[split:])
            return tuple(results), tuple(
                next(moved) if there else rule_programs.no_tangent(r)
                for r, there in zip(results, self.out, strict=True)
            )

        function.__name__ = function.__qualname__ = self.name
        custom = jax.custom_jvp(function)
        # Only so does JAX say whether a value that the function closes over is differentiated.
        custom.defjvp(jvp, symbolic_zeros=bool(self.count))
        return list(custom(*values))


def read_jvp(
    tracer: Tracer, eqn: Any, given: list[Value], name: str, primal: Program, aliases: rule_programs.Aliases
) -> TangentRule:
    """Reads the rule of a `custom_jvp` function whose own program was read."""
    params, count = eqn.params, eqn.params["num_consts"]
    args, avals = given[count:], [v.aval for v in eqn.invars[count:]]
    # A rule that knows of symbolic zeros is told of those that there always are: integers have no tangent.
    without = [bool(params["symbolic_zeros"]) and not rule_programs.is_differentiable(a) for a in avals]
    jaxpr, consts, zero = params["jvp_jaxpr_fun"].call_wrapped(*without)
    tangents = [_tangent(v, a) for v, a, z in zip(args, avals, without, strict=True) if not z]
    split = len(eqn.outvars)
    moved = iter(jaxpr.outvars[split:])
    given_back = {i: next(moved) for i, z in enumerate(zero) if not z}
    out = tuple(i in given_back and rule_programs.is_differentiable(v.aval) for i, v in enumerate(eqn.outvars))
    results = [*jaxpr.outvars[:split], *(given_back[i] for i, there in enumerate(out) if there)]
    body = rule_programs.Opened(list(jaxpr.invars), list(jaxpr.constvars), list(jaxpr.eqns), results)
    jvp, closed = rule_programs.read_rule(tracer, eqn, given, (body, consts), [*args, *tangents], name, aliases)
    jvp = rule_programs.whole(jvp)
    rule_programs.meet(primal.outs, jvp.outs[:split])
    rule_programs.meet([v for v, there in zip(primal.outs, out, strict=True) if there], jvp.outs[split:])
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
    if not rule_programs.is_differentiable(aval):
        return Value(None, v.shape)
    # A constant's tangent is zero, and as long as the constant.
    return Value(v.dims, v.shape, 0.0 if v.dims is None else None, active=v.dims is not None)
