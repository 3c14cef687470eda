"""A traced function whose every axis carries an expression: the first of two passes over a jaxpr.

This pass says which axes are cut alike (`dims`), and notes who makes and who reads units, from which groups get their
names. Calls are walked into; bodies of loops and of `shard_map` and the branches of `cond` once each. Values that
do not depend on variables (tables, masks, `iota`, and what inputs make of them) stay as they are and are cut where they
are used, each use by itself.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core

from mvp_jax.graph import binding
from mvp_jax.graph.dims import Axes, Dim, Expr, Permuted, freeze, resolve, unify
from mvp_jax.graph.primitives import ELEMENTWISE, INLINED
from mvp_jax.graph.primitives.contractions import dot_numbers
from mvp_jax.graph.program import Node, Note, Program, Value, called, open_jaxpr, scan_split, split_axes, while_parts
from mvp_jax.graph.rules import PrimitiveRule, Seen


def _uniform(x: Any) -> float | None:
    """The number that a scalar is; JAX's own key types have none."""
    if np.shape(x) != () or not isinstance(x, np.ndarray | np.generic | int | float | bool | jax.Array):
        return None
    if isinstance(x, jax.Array) and jax.dtypes.issubdtype(x.dtype, jax.dtypes.extended):
        return None
    return float(x) if np.isrealobj(x) else None


_SPREADS = {"broadcast_in_dim", "convert_element_type", "reshape", "copy", "copy_p", "squeeze", "expand_dims"}
_ARITHMETIC: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "max": np.maximum,
    "min": np.minimum,
    "gt": operator.gt,
    "ge": operator.ge,
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
}


def _constants(eqn: Any, given: Sequence[Value], shapes: Sequence[tuple[int, ...]]) -> list[Value]:
    """What is known of an equation's results where all operands are constants."""
    name, params = eqn.primitive.name, eqn.params
    fill = given[0].fill if given and name in _SPREADS else None
    with np.errstate(all="ignore"):
        if fill is not None and name == "convert_element_type":
            fill = _uniform(np.asarray(fill).astype(params["new_dtype"]))
        fills = [v.fill for v in given if v.fill is not None]
        if name in _ARITHMETIC and len(fills) == len(given):
            # In the dtype of the operands: 1e8 + 1 - 1e8 is 0 in float32.
            fill = _uniform(
                _ARITHMETIC[name](*(_typed(x, v.aval.dtype) for x, v in zip(fills, eqn.invars, strict=True)))
            )
    return [Value(None, s, fill, steady=_steady(name, params, given, s, fill)) for s in shapes]


def _typed(x: float, dtype: Any) -> np.ndarray:
    return np.asarray(x).astype(dtype)


def _steady(
    name: str, params: Mapping[str, Any], given: Sequence[Value], shape: tuple[int, ...], fill: float | None
) -> frozenset[int]:
    """The axes along which a constant does not vary, as far as it is worth knowing: tables of positions, masks."""
    every = frozenset(range(len(shape)))
    if fill is not None:
        return every
    if name == "iota":
        return every - {params["dimension"]}
    if name == "broadcast_in_dim":
        places = enumerate(params["broadcast_dimensions"])
        return every - {d for a, d in places if a not in given[0].steady and given[0].shape[a] != 1}
    full = [v for v in given if len(v.shape) == len(shape)]
    if name in ELEMENTWISE and full:
        return frozenset[int].intersection(*(v.steady for v in full))
    return frozenset()


_WITH_BODIES = ("scan", "while", "cond", "shard_map")


def for_one_use(v: Value) -> Value:
    """A value for one use: what is cut for each use has axes of its own there, but those that are kept are kept."""
    if v.dims is None:
        return v._replace(dims=[Dim(n) for n in v.shape])
    known: dict[Dim, Dim] = {}
    return v._replace(dims=[_renewed(e, known) for e in v.dims] if v.own else v.dims, given=False)


def _renewed(e: Expr, known: dict[Dim, Dim]) -> Expr:
    e = resolve(e)
    if isinstance(e, Dim):
        return e if e.why else known.setdefault(e, Dim(e.size))
    if isinstance(e, Permuted):
        return Permuted(_renewed(e.inner, known), e.order)
    return type(e)([_renewed(part, known) for part in e.parts])


class Tracer:
    """Reads jaxprs by a table of rules, and collects the notes.

    Args:
        rules: by primitive.
        custom: asked before a call is walked into: reads it some other way, or returns `None`.
    """

    def __init__(self, rules: Mapping[str, PrimitiveRule], custom: Callable[..., Any] = lambda *_: None):
        self.rules = rules
        self.custom = custom
        self.notes: list[Note] = []

    def program(self, jaxpr: Any, consts: Sequence[Any], args: Sequence[Value]) -> Program:
        """Reads a program whose arguments are as given."""
        env: dict[Any, Value] = dict(zip(jaxpr.invars, args, strict=True))
        env |= {v: _constant(c) for v, c in zip(jaxpr.constvars, consts, strict=True)}
        nodes = []
        for eqn in jaxpr.eqns:
            node, outs = self.equation(eqn, [read(env, v) for v in eqn.invars])
            nodes.append(node)
            env.update(zip(eqn.outvars, outs, strict=True))
        results = tuple(read(env, v) for v in jaxpr.outvars)
        return Program(
            jaxpr=jaxpr,
            consts=tuple(consts),
            nodes=tuple(nodes),
            ins=tuple(a.dims for a in args),
            outs=results,
            constants=tuple(v.dims is None for v in results),
        )

    def equation(self, eqn: Any, given: list[Value]) -> tuple[Node, list[Value]]:
        """Reads one equation."""
        name = eqn.primitive.name
        if name in INLINED:
            found: tuple[Node, list[Value]] | None = self.custom(self, eqn, given)
            return found or self._call(eqn, given)
        constants = tuple(v.dims is None for v in given)
        shapes = [tuple(v.aval.shape) for v in eqn.outvars]
        if all(constants):
            node = Node(eqn=eqn, kind="constant", seen=Seen(eqn.params, [], [], [], name), constants=constants)
            return node, _computable(eqn, given, _constants(eqn, given, shapes))
        among_given = all(v.given or v.dims is None for v in given) and name not in _WITH_BODIES
        if not among_given:
            constants = tuple(v.own for v in given)
        used = [v if among_given and v.dims is not None else for_one_use(v) for v in given]
        if name in _WITH_BODIES:
            read_inside = {"scan": self._scan, "while": self._while, "cond": self._cond, "shard_map": self._shard_map}
            return read_inside[name](eqn, used, constants)
        ins = [v.dims or [] for v in used]
        rule, params = self.rules.get(name), eqn.params
        if rule is not None and rule.look is not None:
            params = rule.look(params, ins, [v.compute and functools.partial(binding.known, v.compute) for v in given])
        outs = self._opaque(name, ins, shapes) if rule is None else rule.dims(params, ins, shapes)
        dtypes = tuple(getattr(v.aval, "dtype", None) for v in eqn.invars)
        seen = Seen(params, ins, outs, [v.fill for v in used], name, dtypes)
        at = len(self.notes)
        self._note(name, params, used, outs)
        active = any(v.active for v in used)
        sources = frozenset[str]() if active else frozenset[str]().union(*(v.sources for v in used))
        node = Node(
            eqn=eqn,
            kind="plain" if rule else "opaque",
            seen=seen,
            constants=constants,
            steady=tuple(v.steady for v in given),
            active=active,
            at=at,
        )
        values = [Value(o, s, None, sources, active, given=among_given) for o, s in zip(outs, shapes, strict=True)]
        return node, _computable(eqn, given, values)

    def _opaque(self, name: str, ins: list[Axes], shapes: list[tuple[int, ...]]) -> list[Axes]:
        why = f'{name} has no rule: rules=(("{name}", rule),) gives it one'
        for axes in ins:
            for e in axes:
                freeze(e, why)
        return [[Dim(n, why) for n in shape] for shape in shapes]

    def _call(self, eqn: Any, given: list[Value]) -> tuple[Node, list[Value]]:
        jaxpr, consts = open_jaxpr(called(eqn.params))
        # A custom derivative's own constants come first; the function does not take them.
        inner = self.program(jaxpr, consts, given[len(given) - len(jaxpr.invars) :])
        seen = Seen(eqn.params, [], [], [], eqn.primitive.name)
        node = Node(eqn=eqn, kind="call", seen=seen, constants=tuple(v.dims is None for v in given), inner=(inner,))
        return node, list(inner.outs)

    def _scan(self, eqn: Any, used: list[Value], constants: tuple[bool, ...]) -> tuple[Node, list[Value]]:
        n_consts, n_carry = scan_split(eqn.params)
        split = n_consts + n_carry
        for v in used[split:]:
            freeze((v.dims or [])[0], "a scan runs along it")
        carry = _carried(used[n_consts:split])
        xs = [v._replace(dims=(v.dims or [])[1:], shape=v.shape[1:], compute=None) for v in used[split:]]
        jaxpr, consts = open_jaxpr(eqn.params["jaxpr"])
        inner = self.program(jaxpr, consts, [*used[:n_consts], *carry, *xs])
        results = [_with_dims(v) for v in inner.outs]
        inner = dataclasses.replace(inner, outs=tuple(results))
        _unify_all(carry, results[:n_carry])
        length = eqn.params["length"]
        outs: list[Axes] = [v.dims or [] for v in carry]
        outs += [[Dim(length, "a scan runs along it"), *(v.dims or [])] for v in results[n_carry:]]
        seen = Seen(eqn.params, [v.dims or [] for v in used], outs, [v.fill for v in used], "scan")
        node = Node(eqn=eqn, kind="scan", seen=seen, constants=constants, inner=(inner,))
        return node, [Value(o, tuple(v.aval.shape), active=True) for o, v in zip(outs, eqn.outvars, strict=True)]

    def _while(self, eqn: Any, used: list[Value], constants: tuple[bool, ...]) -> tuple[Node, list[Value]]:
        for_condition, for_body, start = while_parts(eqn.params, used)
        carry = _carried(start)
        condition = self.program(*open_jaxpr(eqn.params["cond_jaxpr"]), [*for_condition, *carry])
        body = self.program(*open_jaxpr(eqn.params["body_jaxpr"]), [*for_body, *carry])
        body = dataclasses.replace(body, outs=tuple(map(_with_dims, body.outs)))
        _unify_all(carry, body.outs)
        # Under `vmap` every member of a batch, which comes first everywhere, runs until its own condition holds.
        condition = dataclasses.replace(condition, outs=tuple(map(_with_dims, condition.outs)))
        for v in carry:
            for a, b in zip(condition.outs[0].dims or [], v.dims or [], strict=False):
                unify(a, b)
        outs: list[Axes] = [v.dims or [] for v in carry]
        seen = Seen(eqn.params, [v.dims or [] for v in used], outs, [v.fill for v in used], "while")
        node = Node(eqn=eqn, kind="while", seen=seen, constants=constants, inner=(condition, body))
        return node, [Value(o, tuple(v.aval.shape), active=True) for o, v in zip(outs, eqn.outvars, strict=True)]

    def _shard_map(self, eqn: Any, used: list[Value], constants: tuple[bool, ...]) -> tuple[Node, list[Value]]:
        # What every device holds the whole of, it holds whole units of; axes of which it holds a part stay whole.
        params, why = eqn.params, "shard_map splits it over devices"
        jaxpr, consts = open_jaxpr(params["jaxpr"])
        args = []
        for v, spec, inner in zip(used, params["in_specs"], jaxpr.invars, strict=True):
            dims, shape = list(v.dims or []), tuple(inner.aval.shape)
            for a in split_axes(params["mesh"], spec):
                freeze(dims[a], why)
                dims[a] = Dim(shape[a], why)
            args.append(v._replace(dims=dims, shape=shape, compute=None))
        program = self.program(jaxpr, consts, args)
        program = dataclasses.replace(program, outs=tuple(map(_with_dims, program.outs)))
        outs: list[Axes] = []
        for v, spec, outer in zip(program.outs, params["out_specs"], eqn.outvars, strict=True):
            dims = list(v.dims or [])
            for a in split_axes(params["mesh"], spec):
                freeze(dims[a], why)
                dims[a] = Dim(outer.aval.shape[a], why)
            outs.append(dims)
        seen = Seen(params, [v.dims or [] for v in used], outs, [v.fill for v in used], "shard_map")
        node = Node(eqn=eqn, kind="shard_map", seen=seen, constants=constants, inner=(program,))
        values = zip(program.outs, outs, eqn.outvars, strict=True)
        return node, [Value(o, tuple(v.aval.shape), None, of.sources, of.active) for of, o, v in values]

    def _cond(self, eqn: Any, used: list[Value], constants: tuple[bool, ...]) -> tuple[Node, list[Value]]:
        inner = []
        for branch in eqn.params["branches"]:
            jaxpr, consts = open_jaxpr(branch)
            program = self.program(jaxpr, consts, used[1:])
            inner.append(dataclasses.replace(program, outs=tuple(_with_dims(v) for v in program.outs)))
        outs: list[Axes] = [v.dims or [] for v in inner[0].outs]
        for program in inner[1:]:
            for axes, v in zip(outs, program.outs, strict=True):
                for a, b in zip(axes, v.dims or [], strict=True):
                    unify(a, b)
        seen = Seen(eqn.params, [v.dims or [] for v in used], outs, [v.fill for v in used], "cond")
        node = Node(eqn=eqn, kind="cond", seen=seen, constants=constants, inner=tuple(inner))
        return node, [Value(o, tuple(v.aval.shape), active=True) for o, v in zip(outs, eqn.outvars, strict=True)]

    def _note(self, name: str, params: Mapping[str, Any], used: list[Value], outs: list[Axes]) -> None:
        """Who makes, touches or reads which units here."""
        add = self.notes.append
        if name in ("dot_general", "ragged_dot_general"):
            used = used[:2]
            contracted, batch = dot_numbers(params)
            # Learned queries are made of parameters alone, but of several: they are data, not a kernel.
            by_data = all(v.active or (batch[0] and len(v.sources) > 1) for v in used)
            for v, other, c, b in zip(used, reversed(used), contracted, batch, strict=True):
                for a, e in enumerate(v.dims or []):
                    if by_data:
                        add(Note("qk" if a in c else "head" if a in b else "value", e, v.sources))
                    elif v.sources and (other.active or a not in b):
                        add(Note("read" if a in c else "touch" if a in b else "make", e, v.sources, "neuron"))
        elif name == "conv_general_dilated" and used[1].sources:
            spec = params["dimension_numbers"]
            made, read = ((used[1].dims or [])[a] for a in spec.rhs_spec[:2])
            depthwise = params["feature_group_count"] > 1 and resolve(read).size == 1
            add(Note("read", read, used[1].sources))
            add(Note("touch" if depthwise else "make", made, used[1].sources, "filter"))
        elif name == "gather" and used[0].sources and "order" not in params:
            for e in used[0].dims or []:
                add(Note("make", e, used[0].sources, "neuron"))
        elif any(v.active for v in used):
            for v in used:
                for e in v.dims or [] if v.sources else []:
                    add(Note("touch", e, v.sources))
            if name in ("add", "sub", "add_any") and sum(v.active for v in used) > 1:
                for e in outs[0]:
                    add(Note("summed", e, frozenset()))


def read(env: Mapping[Any, Value], v: Any) -> Value:
    """The value of a variable or literal."""
    if isinstance(v, core.Literal):
        return _constant(v.val)
    return env[v]


def _constant(x: Any) -> Value:
    return Value(None, np.shape(x), _uniform(x), compute=lambda: x)


def _computable(eqn: Any, given: Sequence[Value], results: list[Value]) -> list[Value]:
    """Results that can be computed when they are asked for, if all operands can: also constants of a loop's body."""
    if any(v.compute is None for v in given):
        return results
    compute = binding.evaluated(eqn, [v.compute for v in given])
    return [v._replace(compute=functools.partial(compute, i)) for i, v in enumerate(results)]


def _carried(values: Sequence[Value]) -> list[Value]:
    """What goes from step to step of a loop changes on the way: it counts as depending on everything."""
    return [v._replace(active=True, sources=frozenset(), fill=None, compute=None) for v in values]


def _unify_all(left: Sequence[Value], right: Sequence[Value]) -> None:
    for before, after in zip(left, right, strict=True):
        for a, b in zip(before.dims or [], after.dims or [], strict=True):
            unify(a, b)


def _with_dims(v: Value) -> Value:
    return v if v.dims is not None else v._replace(dims=[Dim(n) for n in v.shape])
