"""Along which axes products sum over each parameter, in any function, read off its jaxpr.

Every array that is made of parameters alone carries, for each of its axes, the axes of the parameters that lie there;
transposing, reshaping, slicing and casting only moves these. A matrix product or a convolution that meets such an array
says which axes are summed over. Nothing is computed, so shapes suffice.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.extend import core

from mvp_jax.core.types import PyTree
from mvp_jax.graph import analysis, rules
from mvp_jax.graph.primitives import INLINED, RULES
from mvp_jax.graph.program import called, open_jaxpr, scan_split


def contracted(apply: Callable[..., Any], variables: PyTree, *inputs: Any) -> PyTree:
    """The axes of each parameter that products sum over: a dense kernel's inputs, a convolution's input channels.

    `y[.., o] = Σ_i x[.., i] w[i, o]` sums over axis 0 of `w`. An attention kernel `[D, H, d]` that makes queries is
    summed over axis 0, one `[H, d, D]` that makes outputs over axes 0 and 1. Of a convolution `[h, w, in, out]` only
    the input channels count, axis 2, because that is where sparse tensor cores want their runs: its exported matrix
    `[out, in, h, w]` is multiplied tap by tap, with `in` running fastest.

    Parameters are followed through transposes, reshapes, casts, slices and concatenation, through elementwise functions
    of parameters (masks, a normalised kernel), into calls, loops and branches. Products with what depends on the inputs
    count; only where a parameter meets none, as the factors of `x @ (a @ b)`, those with other parameters do.

    Args:
        apply: pure; called as `apply(variables, *inputs)`.
        variables: any pytree of arrays or shapes. If it has an entry `params` (`Variables`, Linen's variables), only
            those are parameters; otherwise all of it are.
        *inputs: arrays or shapes as `apply` takes them.

    Returns:
        A tree like the parameters, with a tuple of axes in rising order for each leaf. It is `()` where no product
        reads the parameter (biases, norms, tables that are looked up), and where the axes are not one answer: two
        products sum over different ones, or over a part of one. An embedding that is looked up and multiplies as the
        output layer has one product, and so its axes.

    >>> import jax.numpy as jnp
    >>> def attend(params, x):
    ...     values = jnp.einsum("nd,dhk->nhk", x, params["value"]) + params["bias"]
    ...     return jnp.einsum("nhk,hkd->nd", values, params["out"])
    >>> params = {"value": jnp.ones((8, 2, 4)), "bias": jnp.ones((2, 4)), "out": jnp.ones((2, 4, 8))}
    >>> contracted(attend, params, jnp.ones((3, 8)))
    {'bias': (), 'out': (0, 1), 'value': (0,)}

    Reference: the axis of the runs is that of Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks"
    (arXiv:2104.08378), section 3.
    """
    closed = jax.make_jaxpr(apply)(variables, *inputs)
    named = analysis.collections(variables)
    given = []
    for i, var in enumerate(closed.jaxpr.invars):
        shape = tuple(var.aval.shape)
        is_parameter = i < len(named) and named[i][1] == "params"
        whole = tuple((_Part(frozenset({a}), n),) for a, n in enumerate(shape))
        given.append(_Known(frozenset({_Origin(i, whole)}) if is_parameter else frozenset(), i >= len(named)))
    reader = _Reader()
    reader.run(closed.jaxpr, given)
    axes = [reader.axes(i) for i, (_, where) in enumerate(named) if where == "params"]
    return jax.tree.unflatten(jax.tree.structure(_parameters(variables)), axes)


def _parameters(variables: PyTree) -> PyTree:
    if isinstance(variables, Mapping):
        return variables.get("params", variables)
    return variables.params if "params" in getattr(variables, "_fields", ()) else variables


class _Part(NamedTuple):
    """A stretch of one axis of an array: which axes of the parameter it comes from (none: repeated), and its length."""

    axes: frozenset[int]
    size: int


_Axis: TypeAlias = tuple[_Part, ...]
"""What lies along one axis of an array, the last part running fastest; the lengths multiply to the axis's own."""


class _Origin(NamedTuple):
    """That an array is made of a parameter, the one at this position among all arguments, in this layout."""

    leaf: int
    layout: tuple[_Axis, ...]


class _Known(NamedTuple):
    """What is known of an array: the parameters that it is made of, and whether it depends on the inputs."""

    origins: frozenset[_Origin] = frozenset()
    active: bool = False


_Layouts: TypeAlias = Callable[[tuple[_Axis, ...]], tuple[_Axis, ...] | None]
_ELEMENTWISE = frozenset(name for name, rule in RULES.items() if rule.dims is rules.same) | {"reshard"}
_PRODUCTS = {"dot_general", "ragged_dot_general"}


def _stretched(layout: Sequence[_Axis], shape: Sequence[int]) -> tuple[_Axis, ...]:
    """A layout after a stretch of some axes was taken, or some became longer."""
    return tuple(
        axis if math.prod(p.size for p in axis) == n else (_Part(frozenset[int]().union(*(p.axes for p in axis)), n),)
        for axis, n in zip(layout, shape, strict=True)
    )


def _reshaped(layout: Sequence[_Axis], shape: Sequence[int]) -> tuple[_Axis, ...] | None:
    """A layout in another shape, row by row; `None` if the new axes do not begin and end where parts do."""
    left = [p for axis in layout for p in axis if p.size != 1]
    made = []
    for n in shape:
        axis: list[_Part] = []
        while n > 1:
            part = left.pop(0)
            if n % part.size and part.size % n:
                return None
            taken = min(n, part.size)
            axis.append(part._replace(size=taken))
            if taken < part.size:
                left.insert(0, part._replace(size=part.size // taken))
            n //= taken
        made.append(tuple(axis))
    return tuple(made)


def _layouts(eqn: Any, operand: int) -> _Layouts | None:
    """What a primitive with one result does to the layout of an operand; `None` if it mixes the entries."""
    name, params = eqn.primitive.name, eqn.params
    shape = tuple(eqn.outvars[0].aval.shape)
    if name in _ELEMENTWISE:
        # Scalars and rows that are repeated to the result's shape scale a kernel; they are none.
        same = tuple(eqn.invars[operand].aval.shape) == shape and eqn.outvars[0].aval.dtype != np.bool_
        return (lambda layout: None if _repeats(layout) and len(eqn.invars) > 1 else layout) if same else None
    if name == "transpose":
        return lambda layout: tuple(layout[a] for a in params["permutation"])
    if name in ("rev", "slice", "dynamic_slice", "pad", "concatenate") and (operand == 0 or name == "concatenate"):
        return lambda layout: _stretched(layout, shape)
    if name == "squeeze":
        gone = params["dimensions"]
        return lambda layout: tuple(axis for a, axis in enumerate(layout) if a not in gone)
    if name in ("reshape", "expand_dims") and operand == 0 and params.get("dimensions") is None:
        return lambda layout: _reshaped(layout, shape)
    if name == "broadcast_in_dim" and operand == 0:
        at = {d: a for a, d in enumerate(params["broadcast_dimensions"])}
        old = eqn.invars[0].aval.shape

        def spread(layout: tuple[_Axis, ...]) -> tuple[_Axis, ...]:
            return tuple(
                layout[at[d]] if d in at and old[at[d]] == n else (_Part(frozenset(), n),) for d, n in enumerate(shape)
            )

        return spread
    return None


def _repeats(layout: Sequence[_Axis]) -> bool:
    return any(p.size > 1 and not p.axes for axis in layout for p in axis)


class _Reader:
    """Reads jaxprs, and collects along which axes products sum over parameters."""

    def __init__(self) -> None:
        self.found: list[tuple[int, bool, tuple[int, ...] | None]] = []

    def axes(self, leaf: int) -> tuple[int, ...]:
        """The one answer of all products with data, or else of all others; `()` if there is none."""
        for with_data in (True, False):
            answers = {axes for i, active, axes in self.found if i == leaf and active == with_data}
            if answers:
                return (answers.pop() or ()) if len(answers) == 1 else ()
        return ()

    def run(self, jaxpr: Any, given: Sequence[_Known]) -> list[_Known]:
        """What is known of a program's results."""
        env: dict[Any, _Known] = dict(zip(jaxpr.invars, given, strict=True))

        def known(v: Any) -> _Known:
            return _Known() if isinstance(v, core.Literal) else env.get(v, _Known())

        for eqn in jaxpr.eqns:
            env.update(zip(eqn.outvars, self._equation(eqn, [known(v) for v in eqn.invars]), strict=True))
        return [known(v) for v in jaxpr.outvars]

    def _equation(self, eqn: Any, given: list[_Known]) -> list[_Known]:
        name, active = eqn.primitive.name, any(k.active for k in given)
        if name in INLINED:
            inner = open_jaxpr(called(eqn.params))[0]
            # A custom derivative's own constants come first; the function does not take them.
            return self.run(inner, given[len(given) - len(inner.invars) :])
        if name in ("scan", "while", "cond"):
            return {"scan": self._scan, "while": self._while, "cond": self._cond}[name](eqn.params, given)
        if name == "shard_map":
            inner = open_jaxpr(called(eqn.params))[0]
            parts = [self._stretch(k, v.aval.shape) for k, v in zip(given, inner.invars, strict=True)]
            return [_Known(active=k.active) for k in self.run(inner, parts)]
        if name in _PRODUCTS:
            numbers = eqn.params.get("dimension_numbers")
            if numbers is None:
                numbers = eqn.params["ragged_dot_dimension_numbers"].dot_dimension_numbers
            for k, other, summed in zip(given[:2], (given[1], given[0]), numbers[0], strict=True):
                self._note(k, other, summed)
        elif name == "conv_general_dilated":
            self._note(given[1], given[0], eqn.params["dimension_numbers"].rhs_spec[1:2])
        elif name == "split" and not active:
            return [self._stretch(given[0], v.aval.shape) for v in eqn.outvars]
        if active or len(eqn.outvars) != 1:
            return [_Known(active=active) for _ in eqn.outvars]
        return [_Known(frozenset(o for i, k in enumerate(given) for o in self._moved(eqn, i, k)))]

    def _note(self, kernel: _Known, other: _Known, summed: Sequence[int]) -> None:
        """Adds what a product says about the parameters that one of its operands is made of."""
        for leaf, layout in kernel.origins:
            read = {a for d in summed for p in layout[d] for a in p.axes}
            kept = {a for d, axis in enumerate(layout) if d not in summed for p in axis if p.size > 1 for a in p.axes}
            if read:
                self.found.append((leaf, other.active, None if read & kept else tuple(sorted(read))))

    def _moved(self, eqn: Any, operand: int, known: _Known) -> list[_Origin]:
        change = _layouts(eqn, operand) if known.origins else None
        if change is None:
            return []
        moved = [(o.leaf, change(o.layout)) for o in known.origins]
        return [_Origin(leaf, layout) for leaf, layout in moved if layout is not None]

    def _stretch(self, known: _Known, shape: Sequence[int]) -> _Known:
        """A part of an array, which has this shape."""
        return known._replace(origins=frozenset(o._replace(layout=_stretched(o.layout, shape)) for o in known.origins))

    def _scan(self, params: Any, given: list[_Known]) -> list[_Known]:
        consts, carries = scan_split(params)
        xs = [
            k._replace(origins=frozenset(o._replace(layout=o.layout[1:]) for o in k.origins))
            for k in given[consts + carries :]
        ]
        carry = given[consts : consts + carries]
        outs = self._loop(open_jaxpr(params["jaxpr"])[0], given[:consts], carry, xs)
        return [_Known(active=k.active) for k in outs]

    def _while(self, params: Any, given: list[_Known]) -> list[_Known]:
        first, second = params["cond_nconsts"], params["body_nconsts"]
        consts, carry = given[first : first + second], given[first + second :]
        # Whether it goes on may depend on the inputs, and then all that it makes does.
        if any(k.active for k in given[:first]):
            carry = [k._replace(active=True) for k in carry]
        outs = self._loop(open_jaxpr(params["body_jaxpr"])[0], consts, carry, [])
        return [_Known(active=k.active) for k in outs]

    def _loop(self, jaxpr: Any, consts: list[_Known], carry: list[_Known], xs: list[_Known]) -> list[_Known]:
        """A body, read again until no more of what it hands on depends on the inputs."""
        carry = [_Known(active=k.active) for k in carry]
        while True:
            before = len(self.found)
            outs = self.run(jaxpr, [*consts, *carry, *xs])
            after = [_Known(active=a.active or b.active) for a, b in zip(carry, outs, strict=False)]
            if after == carry:
                return outs
            del self.found[before:]
            carry = after

    def _cond(self, params: Any, given: list[_Known]) -> list[_Known]:
        results = [self.run(open_jaxpr(branch)[0], given[1:]) for branch in params["branches"]]
        joined = []
        for outs in zip(*results, strict=True):
            active = given[0].active or any(k.active for k in outs)
            origins = frozenset[_Origin]().union(*(k.origins for k in outs))
            joined.append(_Known(frozenset() if active else origins, active))
        return joined


__all__ = ["contracted"]
