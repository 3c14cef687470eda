"""Where values are zero once units are masked, and who would see the difference: the second pass.

Removing a unit computes what masking it does only if its masked entries reach no entry that stays. This pass follows
the zeros of masked parameters through the program and freezes every set of units whose entries would leak: into a sum
where they are not zero, into a division where they are.
"""

from typing import Any

from jax.extend import core

from mvp_jax.graph.dims import Dim, roots
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.program import Node, Program, Value, scan_split
from mvp_jax.graph.rules import PrimitiveRule, Seen, Zeros, nothing


def follow(program: Program, given: list[Zeros], rules: dict[str, PrimitiveRule] = RULES) -> list[Zeros]:
    """Zeros of a program's results, given those of its arguments; freezes what leaks."""
    env: dict[Any, Zeros] = dict(zip(program.jaxpr.invars, given, strict=True))
    for node in program.nodes:
        zs = [_read(env, v, i, node) for i, v in enumerate(node.eqn.invars)]
        env.update(zip(node.eqn.outvars, _equation(node, zs, rules), strict=True))
    return [_of(env, v, value) for v, value in zip(program.jaxpr.outvars, program.outs, strict=True)]


def _unknown(value: Value) -> Zeros:
    return None if value.fill == 0 else tuple(frozenset[Dim]() for _ in value.shape)


def _of(env: dict[Any, Zeros], v: Any, value: Value) -> Zeros:
    """A result's zeros; constants have those that their fill says."""
    return env[v] if not isinstance(v, core.Literal) and v in env and env[v] != () else _unknown(value)


def _read(env: dict[Any, Zeros], v: Any, i: int, node: Node) -> Zeros:
    if node.kind in ("plain", "opaque", "scan", "cond") and node.constants[i]:
        return None if node.seen.fills[i] == 0 else tuple(frozenset[Dim]() for _ in node.seen.ins[i])
    if isinstance(v, core.Literal):
        return ()
    return env.get(v, ())


def _equation(node: Node, zs: list[Zeros], rules: dict[str, PrimitiveRule]) -> list[Zeros]:
    match node.kind:
        case "constant":
            return [() for _ in node.eqn.outvars]
        case "opaque":
            return nothing(node.seen)
        case "plain":
            return rules[node.seen.name].zeros(node.seen, zs)
        case "call":
            inner = node.inner[0]
            return follow(inner, zs[len(zs) - len(inner.jaxpr.invars) :], rules)
        case "custom":
            followed: list[Zeros] = node.derivative.zeros(zs, lambda program, given: follow(program, given, rules))
            return followed
        case "cond":
            each = [follow(p, zs[1:], rules) for p in node.inner]
            return [_both(node.seen, i, [z[i] for z in each]) for i in range(len(each[0]))]
        case _:
            return _scan(node, zs, rules)


def _both(seen: Seen, out: int, zs: list[Zeros]) -> Zeros:
    """Zero in every one of several values of the same axes."""
    if all(z is None for z in zs):
        return None
    known = [z for z in zs if z is not None]
    return tuple(frozenset.intersection(*(z[a] for z in known)) for a in range(len(seen.outs[out])))


def _scan(node: Node, zs: list[Zeros], rules: dict[str, PrimitiveRule]) -> list[Zeros]:
    n_consts, n_carry = scan_split(node.eqn.params)
    split = n_consts + n_carry
    xs = [None if z is None else z[1:] for z in zs[split:]]
    carry = zs[n_consts:split]
    # A carry is zero after any number of steps only if it is before the first and every step keeps it so.
    while True:
        outs = follow(node.inner[0], [*zs[:n_consts], *carry, *xs], rules)
        after = [_both(node.seen, i, [a, b]) for i, (a, b) in enumerate(zip(carry, outs[:n_carry], strict=True))]
        if after == carry:
            break
        carry = after
    ys = [None if z is None else (frozenset[Dim](), *z) for z in outs[n_carry:]]
    return [*carry, *ys]


def masked(value: Value) -> Zeros:
    """A parameter: zero wherever a unit of any of its axes is removed."""
    return tuple(frozenset(roots(e)) for e in value.dims or [])
