"""Coupled groups of any JAX function, found by tracing it: what can be removed together, and what cannot and why.

    found = graph.groups(apply, variables, x)              # the groups, for units, prune, vote and compact
    print(graph.explain(apply, variables, x))              # the same as tables, with what has to stay and why
    graph.groups(apply, variables, x, allow=("norm",))     # also what is removed only approximately
    graph.groups(apply, variables, x, rules=((name, rule),))  # with a rule for a primitive that has none
    graph.contracted(apply, variables, x)                  # the axes that products sum over, for N:M sparsity
    small, slim = compact.slim(apply, variables, found, units, x)  # the function with fewer units
    print(compact.verify(apply, variables, found, x, key=key))     # that it computes what masking does

`apply(variables, *inputs)` is any pure function in any framework. `variables` is any pytree of arrays or shapes; with
an entry `params`, the other entries are collections, such as batch statistics or a cache, which are cut along.

How it works: every axis of every array in the function's jaxpr carries an expression of dimensions, each primitive says
by a small rule which axes are one and the same, and what is not understood is frozen, never guessed. A group is
reported only if removing its units provably computes what zeroing their parameters does, or is marked as approximate.
The idea is that of dependency graphs (Fang et al., 2023, arXiv:2301.12900), by axes instead of layers.

For programs that go deeper: `analyse` gives groups, frozen axes and the function as it was read; `trace` and `leaks`
are its two passes; `find` looks a group up in another trace; `PrimitiveRule` is what a rule consists of.
"""

from mvp_jax.graph.analysis import (
    Analysis,
    Frozen,
    PrimitiveRules,
    analyse,
    find,
    find_all,
    groups,
    leaks,
)
from mvp_jax.graph.custom.derivatives import CustomDerivativeWarning, CustomFunction
from mvp_jax.graph.explanation import Explanation, GroupExplanation, explain
from mvp_jax.graph.kernel_axes import contracted
from mvp_jax.graph.rules import PrimitiveRule
from mvp_jax.graph.tracing import Traced, trace
from mvp_jax.graph.variables import check_arrays, collections

__all__ = [
    "Analysis",
    "CustomDerivativeWarning",
    "CustomFunction",
    "Explanation",
    "Frozen",
    "GroupExplanation",
    "PrimitiveRule",
    "PrimitiveRules",
    "Traced",
    "analyse",
    "check_arrays",
    "collections",
    "contracted",
    "explain",
    "find",
    "find_all",
    "groups",
    "leaks",
    "trace",
]
