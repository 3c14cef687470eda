"""Where values are zero once units are masked, and who would see the difference: the second pass.

Removing a unit computes what masking it does only if its masked entries reach no entry that stays, or in a way that can
be made up for. This pass follows two things through the program: where masked entries are zero, and along which sets of
units they may be uneven, that is, differ from one removed unit to the next (minus the mean, after a norm has centred
its input, is even). A sum over removed entries that are even is counted; whatever else would leak freezes its units.
"""

import collections
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from jax.extend import core

from mvp_jax.graph.dims import Axes, Dim, Expr, Permuted, Prod, freeze, resolve, roots
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.program import Node, Note, Program, Value, layer_of, scan_split, split_axes, while_parts
from mvp_jax.graph.rules import Fold, PrimitiveRule, Zeros

Approximation: TypeAlias = Literal["norm", "positions", "kernel_standardisation"]
"""A way in which a slim function may differ from the masked one, if the user allows it."""

Means: TypeAlias = Callable[[], frozenset[int]]
"""Gives the sums of a program, by the identity of their nodes, that are means; found only if it is asked for."""


class Known(NamedTuple):
    """What is known of one array once units are masked.

    Attributes:
        zeros: for each axis the sets of units at whose removed indices it is zero; `None`: zero everywhere.
        uneven: the sets of units whose removed entries may differ from one another. Where it is zero, it is even.
    """

    zeros: Zeros = ()
    uneven: frozenset[Dim] = frozenset()


@dataclasses.dataclass(kw_only=True)
class Pass:
    """What the second pass goes by, and what it notes.

    Attributes:
        rules: the table that the function was traced with.
        notes: the notes of the first pass, for naming layers.
        allowed: for sets of units that may be cut approximately, in which ways.
        used: which of these ways were needed.
    """

    rules: Mapping[str, PrimitiveRule] = dataclasses.field(default_factory=lambda: RULES)
    notes: Sequence[Note] = ()
    allowed: Mapping[Dim, frozenset[str]] = dataclasses.field(default_factory=dict)
    used: dict[Dim, set[str]] = dataclasses.field(default_factory=dict)

    def may(self, d: Dim, how: Approximation) -> bool:
        """Whether a set of units may be cut in this way; if so, notes that it was needed."""
        if how not in self.allowed.get(d, ()):
            return False
        self.used.setdefault(d, set()).add(how)
        return True


def follow(program: Program, given: Sequence[Known], within: Pass) -> list[Known]:
    """What is known of a program's results, given what is known of its arguments; freezes what leaks."""
    env: dict[Any, Known] = dict(zip(program.jaxpr.invars, given, strict=True))
    means = functools.cache(lambda: _means(program))
    for node in program.nodes:
        known = [_read(env, v, i, node) for i, v in enumerate(node.eqn.invars)]
        found = _equation(node, known, within, means)
        env.update(zip(node.eqn.outvars, found, strict=True))
    return [_of(env, v, value) for v, value in zip(program.jaxpr.outvars, program.outs, strict=True)]


def masked(value: Value) -> Known:
    """A parameter: zero wherever a unit of any of its axes is removed."""
    return Known(tuple(frozenset(roots(e)) for e in value.dims or []))


def unknown(axes: Axes) -> Known:
    """An array that is not masked: its entries at removed units may be anything."""
    return Known(tuple(frozenset() for _ in axes), _all(axes))


def _constant(value: Value) -> Known:
    return Known(None) if value.fill == 0 else unknown(value.dims or [])


def _of(env: Mapping[Any, Known], v: Any, value: Value) -> Known:
    """A result; constants have the zeros that their fill says."""
    if isinstance(v, core.Literal) or v not in env or env[v].zeros == ():
        return _constant(value)
    return env[v]


def _read(env: Mapping[Any, Known], v: Any, i: int, node: Node) -> Known:
    if node.kind not in ("constant", "call") and node.constants[i]:
        if node.seen.fills[i] == 0:
            return Known(None)
        axes = node.seen.ins[i]
        steady = node.steady[i] if node.steady else frozenset[int]()
        return Known(
            tuple(frozenset() for _ in axes),
            _all([e for a, e in enumerate(axes) if a not in steady]),
        )
    return Known() if isinstance(v, core.Literal) else env.get(v, Known())


def _equation(node: Node, known: list[Known], within: Pass, means: Means) -> list[Known]:
    match node.kind:
        case "constant":
            return [Known() for _ in node.eqn.outvars]
        case "opaque":
            return [unknown(axes) for axes in node.seen.outs]
        case "plain":
            return _plain(node, known, within, means)
        case "call":
            inner = node.inner[0]
            known = known[len(known) - len(inner.jaxpr.invars) :]
            if not node.remat:
                found = follow(inner, known, within)
                node.facts.zeros = tuple(k.zeros for k in found)
                return found
            found = follow(inner, closed([e or [] for e in inner.ins], [k.zeros for k in known]), within)
            outs = [v.dims or [] for v in inner.outs]
        case "cond":
            each = [follow(p, closed(node.seen.ins[1:], [k.zeros for k in known[1:]]), within) for p in node.inner]
            found = [Known(both(node.seen.outs[i], [k[i].zeros for k in each])) for i in range(len(each[0]))]
            outs = node.seen.outs
        case "while":
            found, outs = _while(node, [k.zeros for k in known], within), node.seen.outs
        case "shard_map":
            found, outs = _shard_map(node, [k.zeros for k in known], within), node.seen.outs
        case "custom":
            given = [k.zeros for k in known]
            found = [Known(z) for z in node.derivative.zeros(given, lambda p, zs: _alone(p, zs, within))]
            outs = node.seen.outs
        case _:
            found, outs = _scan(node, [k.zeros for k in known], within), node.seen.outs
    node.facts.zeros = tuple(k.zeros for k in found)
    return closed(outs, node.facts.zeros)


def _alone(program: Program, zs: Sequence[Zeros], within: Pass) -> list[Zeros]:
    """Zeros of the results of a program that is replayed by itself."""
    return [k.zeros for k in follow(program, closed([axes or [] for axes in program.ins], zs), within)]


def closed(axes: Sequence[Axes], zeros: Sequence[Zeros]) -> list[Known]:
    """Values that enter or leave a loop, a branch or a checkpoint: even only where they are zero.

    The entry of one removed unit would have to be carried through it, which the replay does not do.
    """
    return [Known(z, _all(e) - _zero_along(e, z)) for e, z in zip(axes, zeros, strict=True)]


def _all(axes: Axes) -> frozenset[Dim]:
    return frozenset[Dim]().union(*map(roots, axes))


def _zero_along(axes: Axes, z: Zeros) -> frozenset[Dim]:
    """The sets of units whose removed entries are zero along every axis where they lie."""
    if z is None:
        return _all(axes)
    return _all(axes).difference(*(frozenset(roots(e)) - there for e, there in zip(axes, z, strict=False)))


def both(axes: Axes, zs: Sequence[Zeros]) -> Zeros:
    """Zero in every one of several values of the same axes."""
    known = [z for z in zs if z is not None]
    return tuple(frozenset.intersection(*(z[a] for z in known)) for a in range(len(axes))) if known else None


def _scan(node: Node, zs: list[Zeros], within: Pass) -> list[Known]:
    n_consts, n_carry = scan_split(node.eqn.params)
    split = n_consts + n_carry
    xs = [None if z is None else z[1:] for z in zs[split:]]
    carry, outs = _steps(node.inner[0], zs[:n_consts], zs[n_consts:split], xs, within)
    ys: list[Zeros] = [None if z is None else (frozenset[Dim](), *z) for z in outs[n_carry:]]
    return [Known(z) for z in (*carry, *ys)]


def _steps(
    body: Program, consts: list[Zeros], carry: list[Zeros], xs: list[Zeros], within: Pass
) -> tuple[list[Zeros], list[Zeros]]:
    """Where the carries of a loop are zero after any number of steps, and the results of a step.

    A carry is zero only if it is before the first step and every step keeps it so.
    """
    axes = [e or [] for e in body.ins]
    carried = axes[len(consts) : len(consts) + len(carry)]
    while True:
        outs = [k.zeros for k in follow(body, closed(axes, [*consts, *carry, *xs]), within)]
        after = [both(e, [a, b]) for e, a, b in zip(carried, carry, outs, strict=False)]
        if after == carry:
            return carry, outs
        carry = after


def _while(node: Node, zs: list[Zeros], within: Pass) -> list[Known]:
    for_condition, for_body, start = while_parts(node.eqn.params, zs)
    condition, body = node.inner
    carry, _ = _steps(body, for_body, start, [], within)
    # How often it runs must not depend on removed units either: what the condition reads may not leak.
    follow(condition, closed([e or [] for e in condition.ins], [*for_condition, *carry]), within)
    return [Known(z) for z in carry]


def _shard_map(node: Node, zs: list[Zeros], within: Pass) -> list[Known]:
    params, body = node.eqn.params, node.inner[0]

    def across(z: Zeros, spec: Any) -> Zeros:
        split = split_axes(params["mesh"], spec)
        return None if z is None else tuple(frozenset() if a in split else there for a, there in enumerate(z))

    given = [across(z, spec) for z, spec in zip(zs, params["in_specs"], strict=True)]
    found = follow(body, closed([e or [] for e in body.ins], given), within)
    return [Known(across(k.zeros, spec)) for k, spec in zip(found, params["out_specs"], strict=True)]


# --- One equation ----------------------------------------------------------------------------------------------------


def _plain(node: Node, known: list[Known], within: Pass, means: Means) -> list[Known]:
    seen, rule = node.seen, within.rules[node.seen.name]
    zs = [k.zeros for k in known]
    unevens = [k.uneven for k in known]
    if within.allowed:
        _treat_as_parameters(node, zs, unevens, within)
    if seen.name in _DIVISORS and not node.active:
        _let_vanish(node, zs, within)
    if rule.fold is not None:
        _count_removed(node, rule.fold, zs, unevens, within, means)
    found = rule.zeros(seen, zs)
    node.facts.zeros = tuple(found)
    uneven = frozenset[Dim]().union(*unevens)
    if rule.signed:
        uneven = frozenset[Dim]().union(*map(_all, seen.outs))
    return [
        Known(z, ((uneven & _all(axes)) | _twice(axes)) - _zero_along(axes, z))
        for axes, z in zip(seen.outs, found, strict=True)
    ]


def _times(e: Expr, d: Dim) -> int:
    """How often a set of units decides about one entry of an axis."""
    e = resolve(e)
    if isinstance(e, Dim):
        return int(e is d)
    if isinstance(e, Permuted):
        return _times(e.inner, d)
    return (sum if isinstance(e, Prod) else max)(_times(part, d) for part in e.parts)


def _twice(axes: Axes) -> frozenset[Dim]:
    """Sets of units that lie on two axes, or twice in one: one removed entry does not stand for all there."""
    there = list(itertools.chain.from_iterable(map(roots, axes)))
    if len(set(there)) == len(there):
        return frozenset()
    often = collections.Counter(there)
    return frozenset(d for d, n in often.items() if n > 1 and sum(_times(e, d) for e in axes) > 1)


def _count_removed(
    node: Node, fold: Fold, zs: list[Zeros], unevens: Sequence[frozenset[Dim]], within: Pass, means: Means
) -> None:
    """Finds out whose removed entries can be counted where entries are combined; to the rule these are as if zero."""
    folded, skipped = set[Dim](), set[Dim]()
    for places in fold.axes(node.seen):
        operand, axis = places[0]
        for d in dict.fromkeys(roots(node.seen.ins[operand][axis])):
            if d.why or (fold.skips_zeros and any(d in node.seen.zero(zs[i], i, a) for i, a in places)):
                continue
            if all(_is_one(node, i, d, unevens[i]) for i, _ in places):
                folded.add(d)
            elif id(node) in means() and within.may(d, _way(node)):
                skipped.add(d)
            else:
                freeze(d, _why(node, d, within, id(node) in means()))
                continue
            for i, a in places:
                z = zs[i]
                if z is not None:
                    zs[i] = (*z[:a], z[a] | {d}, *z[a + 1 :])
    node.facts.folded, node.facts.skipped = frozenset(folded), frozenset(skipped)


def _is_one(node: Node, operand: int, d: Dim, uneven: frozenset[Dim]) -> bool:
    """Whether one entry stands for all removed ones of a set of units."""
    return d not in uneven and sum(_times(e, d) for e in node.seen.ins[operand]) == 1


def _way(node: Node) -> Approximation:
    """What a mean belongs to: a norm, or where it is of parameters alone, a standardised kernel."""
    return "norm" if node.active else "kernel_standardisation"


def _why(node: Node, d: Dim, within: Pass, mean: bool) -> str:
    """In words: what combines removed entries that differ, in which layer, and what can be done."""
    layer = _layer_after(node, d, within)
    what = f"{node.seen.name}{f' before {layer!r}' if layer else ''} runs over removed entries that differ"
    if not mean:
        return f"{what} from one another"
    where = f"a mean in {layer!r}" if layer else "a mean"
    more = ', allow=("positions",) masks fixed tables that are added, too' if node.active else ""
    return (
        f"{where} runs over removed entries that differ from one another (reduce_sum): "
        f'allow=("{_way(node)}",) takes the mean over the kept ones{more}'
    )


def _layer_after(node: Node, d: Dim, within: Pass) -> str:
    """The layer that is the next to touch some units after an equation: that of a norm's scale, for one."""
    for note in itertools.islice(within.notes, node.at, None):
        if note.sources and d in roots(note.axis):
            return layer_of(min(note.sources))
    return ""


# --- What may be approximate -----------------------------------------------------------------------------------------


def _treat_as_parameters(node: Node, zs: list[Zeros], unevens: list[frozenset[Dim]], within: Pass) -> None:
    """Fixed positions: a constant that is added counts as masked with the units, as a learned one would be."""
    if node.seen.name not in ("add", "sub", "add_any"):
        return
    for i, constant in enumerate(node.constants):
        z = zs[i]
        if not constant or z is None:
            continue
        gone = frozenset(d for d in unevens[i] if within.may(d, "positions"))
        zs[i] = tuple(there | (gone & frozenset(roots(e))) for there, e in zip(z, node.seen.ins[i], strict=True))
        unevens[i] = unevens[i] - gone
        node.facts.absent = {**node.facts.absent, i: gone}


_DIVISORS = {"div": 1, "rem": 1, "rsqrt": 0, "log": 0}
"""Primitives that have no value where this operand is zero."""


def _let_vanish(node: Node, zs: list[Zeros], within: Pass) -> None:
    """A standardised kernel without an epsilon divides zero by zero where a filter is removed; nobody reads it then."""
    i = _DIVISORS[node.seen.name]
    z = zs[i]
    if z is None:
        return
    for a, there in enumerate(z):
        gone = frozenset(d for d in there if within.may(d, "kernel_standardisation"))
        z = (*z[:a], there - gone, *z[a + 1 :])
        for d in frozenset(roots(node.seen.ins[i][a])) & there - gone:
            freeze(
                d,
                f"{node.seen.name} of a value made of parameters that is zero where units are removed (a deviation, a "
                'scale): an epsilon added to it, or allow=("kernel_standardisation",), lets them go',
            )
    zs[i] = z


_PASSING = ("broadcast_in_dim", "reshape", "convert_element_type", "squeeze", "expand_dims")


def _means(program: Program) -> frozenset[int]:
    """The sums of a program that are divided by how many entries they run over."""
    readers: dict[Any, list[Node]] = {}
    for node in program.nodes:
        for v in node.eqn.invars:
            if not isinstance(v, core.Literal):
                readers.setdefault(v, []).append(node)

    def divided(v: Any, count: int) -> bool:
        for node in readers.get(v, []):
            name, fills = node.seen.name, node.seen.fills
            if name in _PASSING and node.kind == "plain" and divided(node.eqn.outvars[0], count):
                return True
            by = fills[1] if len(fills) == 2 and fills[1] else 0.0
            if (name == "div" and by in (count, count - 1)) or (name == "mul" and abs(by * count - 1) < 1e-3):
                return True
        return False

    found = []
    for node in program.nodes:
        if node.kind == "plain" and node.seen.name == "reduce_sum":
            shape = node.eqn.invars[0].aval.shape
            count = 1
            for a in node.eqn.params["axes"]:
                count *= shape[a]
            if divided(node.eqn.outvars[0], count):
                found.append(id(node))
    return frozenset(found)
