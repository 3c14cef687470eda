"""Coupled groups of any JAX function, found by tracing it.

Which channels, heads and neurons must be removed together is read off the function's jaxpr: every axis of every array
carries an expression of dimensions, each primitive says by a small rule which axes are one and the same, and what is
not understood is frozen, never guessed. The idea is that of dependency graphs (Fang et al., 2023, arXiv:2301.12900),
by axes instead of layers, so that it does not matter in which framework a model is written.

A group is reported only if removing its units provably computes what zeroing their parameters does.
"""

from mvp_jax.graph.analysis import (
    Analysis,
    Frozen,
    PrimitiveRules,
    analyse,
    find,
    groups,
    leaks,
)
from mvp_jax.graph.explanation import Explanation, GroupExplanation, explain
from mvp_jax.graph.kernel_axes import contracted
from mvp_jax.graph.rules import PrimitiveRule
from mvp_jax.graph.tracing import Traced, trace
from mvp_jax.graph.variables import check_arrays, collections

__all__ = [
    "Analysis",
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
    "groups",
    "leaks",
    "trace",
]
