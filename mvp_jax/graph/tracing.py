"""A function read from its jaxpr: the first pass of the analysis, with the paths of its variables."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from mvp_jax.core import layouts
from mvp_jax.core.types import PyTree
from mvp_jax.graph import placement
from mvp_jax.graph import program as programs
from mvp_jax.graph.custom import derivatives
from mvp_jax.graph.dims import Dim, unify
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.program import Program, Value
from mvp_jax.graph.reading import Tracer
from mvp_jax.graph.rules import PrimitiveRule
from mvp_jax.graph.variables import collections, returned, settings


class Leaf(NamedTuple):
    """One array of the variables.

    Attributes:
        path: its path inside its collection, `fc1/kernel`.
        collection: `params`, which is masked and cut, or the name of another entry of the variables, which is only cut.
        value: what is known of the array, with an expression for each axis.
    """

    path: str
    collection: str
    value: Value


class Traced(NamedTuple):
    """A function that has been read.

    Attributes:
        program: its equations with their axes.
        leaves: the arrays of its variables, in the order of `jax.tree.leaves`.
        notes: which arrays make, touch or read units, in the order in which the function does it.
        structure: the tree structure of the variables.
        results: the tree structure of what the function returns.
        returned: which of its results are entries of a collection that come back, a cache for one.
        customs: the functions with derivatives of their own that it calls.
    """

    program: Program
    leaves: tuple[Leaf, ...]
    notes: tuple[programs.Note, ...]
    structure: Any
    results: Any
    returned: frozenset[int] = frozenset()
    customs: tuple[derivatives.CustomFunction, ...] = ()


def trace(
    apply: Callable[..., Any],
    variables: PyTree,
    *inputs: Any,
    rules: Mapping[str, PrimitiveRule] = RULES,
    keep: Sequence[str] = (),
) -> Traced:
    """Reads a function: the first pass of `analyse`, which leaves the axes of its results free.

    Args:
        apply: pure, `apply(variables, *inputs)`.
        variables: arrays or shapes.
        *inputs: arrays or shapes.
        rules: the whole table of rules, by primitive.
        keep: names of functions whose custom derivative is kept.

    Returns:
        The function with an expression for every axis of every array.

    Raises:
        ValueError: if a leaf of the variables is no array.
    """
    named = collections(variables)
    try:
        closed, results = _jaxpr(apply, variables, *inputs)
    except jax.errors.ConcretizationTypeError as error:
        plain = settings(variables)
        if not plain:
            raise
        raise ValueError(
            f"the function branches on a value, and {plain[:5]} are Python values among the variables; variables hold "
            "arrays only: of an Equinox module, give params, rest = eqx.partition(model, eqx.is_array)"
        ) from error
    count = len(named)
    leaves, args = [], []
    for (path, collection), var in zip(named, closed.jaxpr.invars[:count], strict=True):
        shape = tuple(var.aval.shape)
        value = Value([Dim(n) for n in shape], shape, sources=frozenset({f"{collection}:{path}"}))
        leaves.append(Leaf(path, collection, value))
        args.append(value)
    returning = {(tuple(x.shape), x.dtype) for x in jax.tree.leaves(results)}
    for var in closed.jaxpr.invars[count:]:
        shape = tuple(var.aval.shape)
        why = "an axis of the input"
        if len(shape) > 2 and (shape, var.aval.dtype) in returning:
            why += ", which is returned in the same shape: a cache is cut along if it is a collection of the variables"
        args.append(Value([Dim(n, why) for n in shape], shape, active=True, given=True))
    reader = derivatives.Reader(keep)
    tracer = Tracer(rules, reader)
    program = tracer.program(closed.jaxpr, closed.consts, args)
    structure, of_results = jax.tree.structure(variables), jax.tree.structure(results)
    back = returned(named, [leaf.value.shape for leaf in leaves], results)
    # A state that the inputs alone make is whole, whatever is cut.
    back = {i: k for i, k in back.items() if not program.outs[i].given}
    for i, k in back.items():
        for a, b in zip(program.outs[i].dims or [], leaves[k].value.dims or [], strict=False):
            unify(a, b)
    notes, customs = tuple(tracer.notes), tuple(reader.found)
    return Traced(program, tuple(leaves), notes, structure, of_results, frozenset(back), customs)


def _jaxpr(apply: Callable[..., Any], *args: Any) -> tuple[Any, Any]:
    """A function as JAX traces it, with the shardings of its arguments; without, if it cannot run on these."""
    try:
        return jax.make_jaxpr(apply, return_shape=True)(*args)
    except Exception:
        if not any(layouts.explicit(x) for x in jax.tree.leaves(args)):
            raise
        # Slim arrays are whole along the axes that were cut: the function may run on those, and has the same groups.
        return jax.make_jaxpr(apply, return_shape=True)(*jax.tree.map(placement.unlaid, args))
