"""A traced function written again with fewer units: every equation applied to the smaller arrays.

No layer is rebuilt and no literal is touched, so what a norm divides by, or what scale attention has, stays what it was
in the dense function; that is why the result equals the masked function. Where removed entries are not zero but all
alike, a sum over them is made up for by the entry of one removed unit, its shadow, computed only where it is asked for.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from mvp_jax.core.types import Array
from mvp_jax.graph import placement
from mvp_jax.graph.binding import bind
from mvp_jax.graph.dims import Axes, Dim, resolve, roots
from mvp_jax.graph.kept_sizes import NOBODY, KeptSizes, Removed, involved, subsets
from mvp_jax.graph.program import Node, Program, called, open_jaxpr, scan_split, while_parts
from mvp_jax.graph.rules import PrimitiveRule, Zeros

Shadows: TypeAlias = Callable[[int, Removed], Any]
"""`(which argument of a program, sets of units) -> its entry at one removed unit of each`."""


class Replay:
    """Runs a program with only the kept units.

    Args:
        kept: `bool[C]` on the host for every set of units that is cut; all others stay.
        rules: the table that the program was read with.
    """

    def __init__(self, kept: Mapping[Dim, np.ndarray], rules: Mapping[str, PrimitiveRule]):
        self.size = KeptSizes(kept)
        self.rules = rules
        self._worlds: dict[Removed, KeptSizes] = {NOBODY: self.size}

    def sizes(self, removed: Removed) -> KeptSizes:
        """Lengths where one removed unit of some sets stands instead of the kept ones."""
        if removed not in self._worlds:
            one = {}
            for d in removed:
                one[d] = np.zeros(d.size, bool)
                one[d][np.flatnonzero(~self.size.kept[d])[0]] = True
            self._worlds[removed] = KeptSizes({**self.size.kept, **one})
        return self._worlds[removed]

    def cut(self, x: Any, axes: Axes) -> Any:
        """An array of the dense function without the removed entries."""
        return self.size.cut(x, axes)

    def run(self, program: Program, args: list[Any]) -> list[Any]:
        """Results for smaller arguments; constants come and go in the shapes that they had."""
        frame = _Frame(self, program, args)
        results = frame.results()
        frame.close()
        return results


class _Frame:
    """One run of a program: its values over the kept units, and shadows of them.

    Args:
        replay: what is kept.
        program: what is run.
        args: smaller arrays for its arguments.
        outside: gives the shadows of its arguments; `None`: those that are asked for are zero.
    """

    def __init__(self, replay: Replay, program: Program, args: Sequence[Any], outside: Shadows | None = None):
        self.replay, self.program, self.outside = replay, program, outside
        self.env: dict[Any, Any] = dict(zip(program.jaxpr.invars, args, strict=True))
        self.env |= dict(zip(program.jaxpr.constvars, program.consts, strict=True))
        self.frames: dict[int, _Frame] = {}
        self.found: dict[tuple[Any, Removed], Any] = {}
        self.order = {id(node): i for i, node in enumerate(program.nodes)}
        self.makers: dict[Any, tuple[Node, int]] = {}
        self.places = {v: i for i, v in enumerate(program.jaxpr.invars)}
        for node in program.nodes:
            self.makers |= {v: (node, i) for i, v in enumerate(node.eqn.outvars)}
            self.env.update(zip(node.eqn.outvars, self.node(node), strict=True))

    def value(self, v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else self.env[v]

    def results(self) -> list[Any]:
        # A result that the reader had to give axes to (a branch, a loop body) leaves in the smaller shape.
        return [
            self.replay.cut(self.value(v), of.dims) if constant and of.dims is not None else self.value(v)
            for v, of, constant in zip(
                self.program.jaxpr.outvars, self.program.outs, self.program.constants, strict=True
            )
        ]

    def close(self) -> None:
        """Lets go of all values: frames hold one another, so that nobody else would do so soon."""
        for inner in self.frames.values():
            inner.close()
        for held in (self.frames, self.found, self.env):
            held.clear()

    # --- Over the kept units ---

    def node(self, node: Node) -> list[Any]:
        values = [self.value(v) for v in node.eqn.invars]
        if node.kind == "constant":
            return bind(node.eqn, values, node.eqn.params)
        if node.kind == "call":
            return self.call(node, values)
        if node.kind in ("plain", "opaque"):
            return self.plain(node, NOBODY)
        values = [
            self.replay.cut(v, axes) if constant else v
            for v, axes, constant in zip(values, node.seen.ins, node.constants, strict=True)
        ]
        if node.kind == "custom":  # whose constants come in whole: they have no axes here
            results: list[Any] = node.derivative.replay(values, self.replay.run)
            return results
        if node.kind == "scan":
            return self.scan(node, values)
        if node.kind == "while":
            return self.loop(node, values)
        if node.kind == "shard_map":
            return self.shard_map(node, values)
        branches = [lambda *ops, p=p: tuple(self.replay.run(p, list(ops))) for p in node.inner]
        return list(lax.switch(values[0], branches, *values[1:]))

    def call(self, node: Node, values: list[Any]) -> list[Any]:
        inner = node.inner[0]
        first = len(values) - len(inner.jaxpr.invars)
        if _is_relu(node):
            # Its derivative at 0 is 0; that of the maximum inside would be one half.
            return [jax.nn.relu(values[-1])]
        if node.remat:
            again = jax.checkpoint(
                lambda *args: tuple(self.replay.run(inner, list(args))),
                policy=node.eqn.params["policy"],
                prevent_cse=node.eqn.params["prevent_cse"],
            )
            return list(again(*values[first:]))
        outside: Shadows = lambda i, removed: self.shadow(node.eqn.invars[first + i], removed)  # noqa: E731
        self.frames[id(node)] = _Frame(self.replay, inner, values[first:], outside)
        return self.frames[id(node)].results()

    def scan(self, node: Node, values: list[Any]) -> list[Any]:
        params = node.eqn.params
        n_consts, n_carry = scan_split(params)
        consts, carry, xs = values[:n_consts], values[n_consts : n_consts + n_carry], values[n_consts + n_carry :]

        def body(carry: tuple[Array, ...], x: tuple[Array, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
            out = self.replay.run(node.inner[0], [*consts, *carry, *x])
            return tuple(out[:n_carry]), tuple(out[n_carry:])

        last, ys = lax.scan(
            body, tuple(carry), tuple(xs), params["length"], reverse=params["reverse"], unroll=params["unroll"]
        )
        return [*last, *ys]

    def loop(self, node: Node, values: list[Any]) -> list[Any]:
        for_condition, for_body, start = while_parts(node.eqn.params, values)
        condition, body = node.inner

        def goes_on(carry: tuple[Any, ...]) -> Array:
            return jnp.asarray(self.replay.run(condition, [*for_condition, *carry])[0])

        def step(carry: tuple[Any, ...]) -> tuple[Any, ...]:
            new, still = self.replay.run(body, [*for_body, *carry]), goes_on(carry)
            if still.ndim == 0:
                return tuple(new)
            # Under `vmap`: members of the batch that are done stay as they are.
            wide = [still.reshape(still.shape + (1,) * (x.ndim - still.ndim)) for x in new]
            return tuple(jnp.where(w, x, old) for w, x, old in zip(wide, new, carry, strict=True))

        def any_goes_on(carry: tuple[Array, ...]) -> Array:
            return goes_on(carry).any()

        last: tuple[Array, ...] = lax.while_loop(any_goes_on, step, tuple(start))
        return list(last)

    def shard_map(self, node: Node, values: list[Any]) -> list[Any]:
        params = node.eqn.params
        mapped = jax.shard_map(
            lambda *args: tuple(self.replay.run(node.inner[0], list(args))),
            mesh=params["mesh"],
            in_specs=params["in_specs"],
            out_specs=params["out_specs"],
            axis_names=params["newly_manual_axes"],
            check_vma=params["check_vma"],
        )
        return list(mapped(*values))

    # --- Removed units ---

    def plain(self, node: Node, removed: Removed) -> list[Any]:
        """The results of an equation over the kept units, or at one removed unit of some sets."""
        out = self.apply(node, removed, None)
        sizes, facts = self.replay.sizes(removed), node.facts
        rule = self.replay.rules.get(node.seen.name)
        if rule is None or rule.fold is None:
            return out
        leaking = {d for d in facts.folded if sizes.removed(d) and d not in removed}
        for some in subsets(leaking, [node.seen.ins[i][a] for (i, a), *_ in rule.fold.axes(node.seen)]):
            taken = self.taken(node, removed, some)
            if taken is not None:
                times = math.prod(self.replay.size.removed(d) for d in some)
                more = self.apply(node, removed | some, taken)
                out = [rule.fold.join(a, b, times) for a, b in zip(out, more, strict=True)]
        gone = {d: self.replay.size.kept[d] for d in facts.skipped if sizes.removed(d)}
        if gone:
            # The mean over the kept entries: their sum, as if the removed ones had the same mean. Other sets of units
            # are not left out: removed entries of theirs are zero or counted, as in the masked function.
            axes = [node.seen.ins[i][a] for (i, a), *_ in rule.fold.axes(node.seen)]
            share = math.prod(resolve(e).size for e in axes) / math.prod(map(KeptSizes(gone), axes))
            out = [x * jnp.asarray(share, x.dtype) for x in out]
        return out

    def taken(self, node: Node, removed: Removed, some: Removed) -> dict[tuple[int, int], np.ndarray] | None:
        """Which entries of the combined axes belong to removed units of exactly these sets; `None`: none do."""
        rule, sizes = self.replay.rules[node.seen.name], self.replay.sizes(removed | some)
        assert rule.fold is not None
        found: dict[tuple[int, int], np.ndarray] = {}
        for places_ in rule.fold.axes(node.seen):
            operand, axis = places_[0]
            e = node.seen.ins[operand][axis]
            here = some & frozenset(roots(e))
            if not here:
                continue
            inside = np.ones(resolve(e).size, bool)
            for d in here:
                inside &= involved(e, d)
            keep = sizes.vector(e)
            assert keep is not None
            inside = inside[keep]
            if not inside.any():
                return None
            if not inside.all():
                found |= {place: np.flatnonzero(inside) for place in places_}
        return found

    def apply(self, node: Node, removed: Removed, taken: Mapping[tuple[int, int], np.ndarray] | None) -> list[Any]:
        """Applies a primitive to smaller operands, of which only some entries may be taken."""
        sizes = self.replay.sizes(removed)
        values = [
            sizes.cut(self.value(v), axes) if constant else self.shadow(v, removed) if removed else self.value(v)
            for v, axes, constant in zip(node.eqn.invars, node.seen.ins, node.constants, strict=True)
        ]
        for i, gone in node.facts.absent.items():
            values[i] = jnp.zeros_like(values[i]) if gone & removed else values[i]
        for (i, a), index in (taken or {}).items():
            values[i] = placement.take(values[i], index, a)
        rule = self.replay.rules.get(node.seen.name)
        params = placement.fitted_params(node.eqn.params, lambda: [sizes(e) for e in node.seen.outs[0]])
        if rule is None or rule.emit is None:
            return bind(node.eqn, values, params)
        out = rule.emit(node.seen, values, sizes, params)
        return list(out) if node.eqn.primitive.multiple_results else [out]

    def shadow(self, v: Any, removed: Removed) -> Any:
        """An array with one removed unit of some sets in place of the kept ones; as it is if it has none of them."""
        if isinstance(v, core.Literal):
            return v.val
        removed = self.of(v, removed)
        if not removed:
            return self.env[v]
        # In the order of the program, as a deep network would go beyond Python's recursion limit.
        for u, some in self.missing(v, removed):
            self.found[u, some] = self.computed(u, some)
        return self.found[v, removed]

    def of(self, v: Any, removed: Removed) -> Removed:
        """Those of some sets of units that an array has."""
        return removed.intersection(itertools.chain.from_iterable(map(roots, self.axes(v))))

    def missing(self, v: Any, removed: Removed) -> list[tuple[Any, Removed]]:
        """The shadows that have to be computed before one, and that one, each after those that it is made of."""
        order: dict[tuple[Any, Removed], int] = {}
        todo = [(v, removed)]
        while todo:
            u, some = todo.pop()
            if (u, some) in order or (u, some) in self.found:
                continue
            node, i = self.makers.get(u, (None, 0))
            order[u, some] = -1 if node is None else self.order[id(node)]
            if node is None or _is_zero(node.facts.zeros[i], self.axes(u), some):
                continue
            operands = zip(node.eqn.invars, node.constants, strict=True)
            read = [w for w, constant in operands if not constant and not isinstance(w, core.Literal)]
            todo += [(w, of) for w in read if (of := self.of(w, some))]
        return sorted(order, key=lambda key: order[key])

    def computed(self, v: Any, removed: Removed) -> Any:
        axes = self.axes(v)
        node, i = self.makers.get(v, (None, self.places.get(v, -1)))
        if node is None and self.outside is not None:
            return self.outside(i, removed)
        if node is None or _is_zero(node.facts.zeros[i], axes, removed):
            zero = jnp.zeros([self.replay.sizes(removed)(e) for e in axes], v.aval.dtype)
            return placement.varying_as(zero, v.aval)
        if node.kind == "call" and _is_relu(node):
            return jax.nn.relu(self.shadow(node.eqn.invars[-1], removed))
        if node.kind == "call":
            inner = self.frames[id(node)]
            return inner.shadow(inner.program.jaxpr.outvars[i], removed)
        return self.plain(node, removed)[i]

    def axes(self, v: Any) -> Axes:
        """The axes of a variable; a constant has none of its own."""
        if v not in self.makers:
            return self.program.ins[self.places[v]] or [] if v in self.places else []
        node, i = self.makers[v]
        if node.kind == "constant":
            return []
        return node.inner[0].outs[i].dims or [] if node.kind == "call" else node.seen.outs[i]


def _is_zero(zeros: Zeros, axes: Axes, removed: Removed) -> bool:
    """Whether an array is zero at removed units of some sets."""
    if zeros is None:
        return True
    return any(d in there for there, e in zip(zeros, axes, strict=True) for d in removed & frozenset(roots(e)))


def _is_relu(node: Node) -> bool:
    """Whether a function with a custom derivative is `jax.nn.relu`: its name, and max(x, 0)."""
    if node.seen.name != "custom_jvp_call":
        return False
    eqns = open_jaxpr(called(node.eqn.params))[0].eqns
    if len(eqns) != 1 or eqns[0].params.get("name") != "relu":
        return False
    # Inside `shard_map` the zero is cast to what differs between devices.
    *casts, last = open_jaxpr(called(eqns[0].params))[0].eqns
    numbers = [v.val for e in (*casts, last) for v in e.invars if isinstance(v, core.Literal)]
    plain = all(e.primitive.name in ("pvary", "convert_element_type") for e in casts)
    return plain and last.primitive.name == "max" and numbers == [0]
