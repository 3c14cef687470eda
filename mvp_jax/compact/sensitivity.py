"""Sensitivity: how a metric moves as one group alone loses more and more of its units."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import graph
from mvp_jax.compact import slimming
from mvp_jax.core import prune
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, PyTree, UnitScores
from mvp_jax.core.units import Group

Metric: TypeAlias = Callable[[PyTree], Array]
"""`metric(variables)` is one number, such as the accuracy or the loss on examples that the function holds."""


def curves(
    metric: Metric,
    variables: PyTree,
    groups: Sequence[Group],
    scores: UnitScores,
    ratios: Sequence[float],
    *,
    min_units: int = 1,
    chunk: int | None = None,
) -> dict[str, Array]:
    """How a metric falls as each group alone loses its lowest-scored units, at several ratios, without fine-tuning.

    `curve_g(ρ)` is the metric of the model in which the share ρ of the units of group g with the lowest scores is
    masked, while all other groups stay whole.
    One program is compiled for each group, and a later call with the same metric, groups and ratios compiles nothing.
    What the function computes before the group's layer is computed once for all ratios of a chunk. Ratios that leave
    equally many units are evaluated once.

    Args:
        metric: `metric(variables)` is one number; traceable, and hashable as functions are.
        variables: the variables of the dense model, any pytree that `graph.groups` takes.
        groups: the groups to try, from `graph.groups` or a model.
        scores: `{name: real[C]}` for at least these groups, higher = keep; `units.reduce` makes them of scores of
            weights. Units whose score is not finite go before all others.
        ratios: `R` shares of a group's units to remove, each in [0, 1), in any order.
        min_units: the least number of units that stay in a group.
        chunk: how many ratios are evaluated at a time, to bound the memory; `None`: all. For convolutions on a CPU take
            1, because several kernels at once are slow there.

    Returns:
        `{name: [R]}`, values in the order of `ratios`. Where no unit goes, the value is exactly `metric(variables)`.

    Raises:
        ValueError: before anything is compiled, for ratios, scores or groups that do not fit, for a group without any
            finite score, and for a metric that cannot be traced or is not one number.

    Warns:
        RuntimeWarning: which groups have units whose score is not finite, and how many.

    >>> from mvp_jax.core.units import Slot
    >>> group = Group(name="fc", size=4, slots=(Slot(path="w", axis=0, scored=True),))
    >>> variables = {"w": jnp.array([4.0, 1.0, 3.0, 2.0])}
    >>> curves(lambda v: v["w"].sum(), variables, [group], {"fc": variables["w"]}, (0, 0.25, 0.5))["fc"].tolist()
    [10.0, 9.0, 7.0]

    Reference: Li et al., "Pruning Filters for Efficient ConvNets", 2017, arXiv:1608.08710, section 3.2.
    """
    kept = _counts(groups, ratios, min_units)
    if chunk is not None and chunk < 1:
        raise ValueError(f"chunk is {chunk}; give at least 1 ratio at a time, or None for all at once")
    _check_groups(variables, groups, scores)
    _check_metric(metric, variables)
    scores = units_lib.only_finite(units_lib.restrict(scores, groups), stacklevel=2)
    dense = metric(variables)
    run = _program(metric)
    found = {}
    for g in groups:
        fewer = np.unique(kept[g.name][kept[g.name] < g.size])  # each count once, the dense model not again
        width = min(chunk or len(fewer), len(fewer))
        values = [jnp.reshape(dense, 1)]
        for i in range(0, len(fewer), max(width, 1)):
            part = fewer[i : i + width]
            padded = np.resize(part, width)  # the last chunk is as wide as the others: the same program
            values.append(run(variables, scores[g.name], padded, group=g)[: len(part)])
        at = np.where(kept[g.name] < g.size, 1 + np.searchsorted(fewer, kept[g.name]), 0)
        found[g.name] = jnp.concatenate(values)[at]
    return found


def table(
    values: Mapping[str, Any], ratios: Sequence[float], groups: Sequence[Group], *, min_units: int = 1
) -> list[dict[str, Any]]:
    """Sensitivity curves as rows of a table, one for each group and ratio.

    Args:
        values: `{name: [R]}`, as `curves` returns them.
        ratios: the ratios that `curves` was given.
        groups: the groups that `curves` was given.
        min_units: the `min_units` that `curves` was given.

    Returns:
        Dicts with `group` (its name), `depth` (its place in `groups`, from 0), `kind`, `units` (how many it has),
        `kept` (how many stay), `ratio`, `value` and `change` (the difference from the value at ratio 0; `None` if 0 is
        not among the ratios).

    Raises:
        ValueError: if groups or ratios are not those of the curves.

    >>> group = Group(name="fc", size=4, slots=())
    >>> [(r["kept"], r["value"], r["change"]) for r in table({"fc": [0.75, 0.5]}, (0, 0.5), [group])]
    [(4, 0.75, 0.0), (2, 0.5, -0.25)]
    """
    kept = _counts(groups, ratios, min_units)
    if set(values) != set(kept) or any(np.shape(v) != (len(ratios),) for v in values.values()):
        raise ValueError(
            f"curves of shapes { {n: np.shape(v) for n, v in values.items()} } for groups {list(kept)} and "
            f"{len(ratios)} ratios; give what went into `curves`"
        )
    rows = []
    for depth, g in enumerate(groups):
        line = [float(v) for v in np.asarray(values[g.name])]
        dense = next((v for v, r in zip(line, ratios, strict=True) if r == 0), None)
        for ratio, count, value in zip(ratios, kept[g.name], line, strict=True):
            rows.append(
                {
                    "group": g.name,
                    "depth": depth,
                    "kind": g.kind,
                    "units": g.size,
                    "kept": int(count),
                    "ratio": float(ratio),
                    "value": value,
                    "change": None if dense is None else value - dense,
                }
            )
    return rows


@functools.lru_cache(maxsize=8)
def _program(metric: Metric) -> Any:
    # A metric usually holds its examples; only a few are kept alive.
    return jax.jit(functools.partial(_values, metric), static_argnames="group")


def _values(metric: Metric, variables: PyTree, scores: Array, counts: Array, *, group: Group) -> Array:
    def one(count: Array) -> Array:
        kept = prune.by_leaf({group.name: scores}, {group.name: count})
        return metric(slimming.mask(variables, [group], kept))

    return jax.vmap(one)(counts)


def _counts(groups: Sequence[Group], ratios: Sequence[float], min_units: int) -> dict[str, np.ndarray]:
    """How many units stay, `{name: int32[R]}`."""
    if np.ndim(ratios) != 1 or len(ratios) == 0:
        raise ValueError(f"ratios are {ratios!r}; give a sequence of at least one share to remove, such as (0, 0.5)")
    if min_units < 0:
        raise ValueError(f"min_units is {min_units}; a number of units is not negative")
    names = [g.name for g in groups]
    if len(set(names)) < len(names):
        raise ValueError(f"several groups have one name: {sorted({n for n in names if names.count(n) > 1})[:5]}")
    counts = [prune.keep_counts(groups, float(r), min_units) for r in ratios]
    return {name: np.array([c[name] for c in counts], np.int32) for name in names}


def _check_groups(variables: PyTree, groups: Sequence[Group], scores: UnitScores) -> None:
    shapes = {
        path: jnp.shape(leaf)
        for (path, where), leaf in zip(graph.collections(variables), jax.tree.leaves(variables), strict=True)
        if where == "params"
    }
    for g in groups:
        if g.name not in scores:
            raise ValueError(f"no scores for group {g.name!r}; there are scores for {sorted(scores)[:8]}")
        if jnp.shape(scores[g.name]) != (g.size,):
            raise ValueError(f"scores of {g.name!r} have shape {jnp.shape(scores[g.name])}, its units {(g.size,)}")
        for s in g.slots:
            shape = shapes.get(s.path, ())
            if s.collection == "params" and (s.axis >= len(shape) or shape[s.axis] != (s.length or g.size)):
                raise ValueError(
                    f"group {g.name!r} of {g.size} units does not lie along axis {s.axis} of {s.path!r}: "
                    + (f"its shape is {shape}" if s.path in shapes else f"there are {sorted(shapes)[:8]}")
                )


def _check_metric(metric: Metric, variables: PyTree) -> None:
    try:
        result = jax.eval_shape(metric, variables)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
        raise ValueError(
            "the metric cannot be traced; it must be made of JAX functions and return an array, not float(...)"
        ) from error
    shapes = [leaf.shape for leaf in jax.tree.leaves(result)]
    if shapes != [()] or not isinstance(result, jax.ShapeDtypeStruct):
        raise ValueError(f"the metric returns arrays of shapes {shapes}; it must return one number")


__all__ = ["Metric", "curves", "table"]
