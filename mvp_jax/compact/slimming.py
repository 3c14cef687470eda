"""From dense to physically smaller: arrays (`cut`, `embed`), models of this package (`rebuild`), any function (`slim`).

Unit masks stay in the index space of the dense model, also after cutting.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import graph
from mvp_jax.compact.cutting import anywhere, cut, sizes
from mvp_jax.core import layouts, masks
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, Key, PyTree, Units, Variables
from mvp_jax.core.units import Group
from mvp_jax.graph import placement
from mvp_jax.graph.custom import derivatives
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.replay import Replay


def _named(model: Any, units: Units) -> tuple[Group, ...]:
    """The model's groups that `units` speak of."""
    groups = tuple(g for g in model.groups if g.name in units)
    _check_kept(units, groups)
    return groups


def _check_kept(units: Units, groups: Sequence[Group]) -> None:
    units_lib.check(units, groups)
    empty = [name for name, n in sizes(units).items() if n == 0]
    if empty:
        raise ValueError(f"no unit is kept in {empty[:5]}; keep at least one in every group, or nothing passes through")


def rebuild(model: Any, variables: Variables, units: Units) -> tuple[Any, Variables]:
    """The same class of model with the kept units only. For functions that are no `Model`, there is `slim`.

    Args:
        model: the dense model.
        variables: its variables, whether or not they were trained under the masks of these units.
        units: `{name: bool[C]}` for any of the model's groups; the other groups stay whole.

    Returns:
        The slim model and its variables, in smaller shapes.

    Raises:
        ValueError: if a group is unknown or keeps no unit.
    """
    groups = _named(model, units)
    return model.resize(sizes(units)), cut(Variables(*variables), groups, units)


def check(model: Any, variables: Variables, groups: Sequence[Group], units: Units, x: Array) -> float:
    """The distance of the slim model from the masked one: `max |masked - slim|` over the logits, in evaluation mode.

    Args:
        model: the dense model.
        variables: its variables.
        groups: those of the model's groups that are cut.
        units: `{name: bool[C]}` for exactly these groups.
        x: a batch of inputs, `[N, ...]`.

    Returns:
        The largest absolute difference; rounding alone gives about 1e-6 of the logits' size.

    Raises:
        ValueError: if units and groups do not fit, or a group keeps no unit.
    """
    units_lib.check(units, groups)
    kept = units_lib.expand(units, groups, variables[0])
    masked = Variables(masks.apply(variables[0], kept), variables[1])
    slim_model, slim_variables = rebuild(model, variables, units)
    a, _ = model.apply(masked, x)
    b, _ = slim_model.apply(slim_variables, x)
    return float(jnp.max(jnp.abs(a - b)))


def slim(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    units: Units,
    *inputs: Any,
    rules: graph.PrimitiveRules = (),
    keep: Sequence[str] = (),
) -> tuple[Callable[..., Any], PyTree]:
    """A physically smaller version of any traced function, and its variables.

    The function's jaxpr is run again on the smaller arrays, equation by equation; literals stay what they were, so the
    result equals the masked function to rounding. A derivative written by hand (`jax.custom_vjp`, `jax.custom_jvp`) is
    replaced by the derivative of what the function computes, with a warning, unless `keep` names the function: the
    gradient of a straight-through estimator would be 0.

    Args:
        apply: pure, `apply(variables, *inputs)`; not necessarily the function in which the groups were found, if it has
            the same groups. It may return more, such as new batch statistics or a cache, which come back in the
            smaller shapes. It may not draw random numbers along cut units, as dropout does.
        variables: the dense variables, whether or not they were trained under the masks of these units.
        groups: all or some of the groups that `graph.groups` found.
        units: `{name: bool[C]}` for exactly these groups, not traced.
        *inputs: examples of the inputs, as arrays or shapes.
        rules: rules for further primitives, the same that `graph.groups` was given.
        keep: names of functions whose own derivative stays, as they were defined: `("round_ste",)`. Gradients are then
            those of the masked function, cut; a group that this forbids raises, and `graph.groups` with the same `keep`
            finds the others. JAX's own functions need no naming: they compute what they are differentiated as.

    Returns:
        `slim_apply(slim_variables, *inputs)` and `slim_variables`. `slim_apply` works under `jit`, `grad` and `vmap`
        and takes other shapes of inputs too: `apply` is traced once for each. The variables keep their shapes: for a
        cache of another batch or length, call `slim` with such a cache, and the same groups and units, again.

    Raises:
        ValueError: if units and groups do not fit, a group keeps no unit or cannot be cut in this function, or `keep`
            names a function that is not there or has no custom derivative. `slim_apply` raises it for variables of
            other shapes than those of `slim_variables`.

    Warns:
        CustomDerivativeWarning: once for each function outside JAX whose own derivative is lost.

    >>> def mlp(params, x):
    ...     return jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.eye(3, 4), "b": jnp.arange(8.0).reshape(4, 2)}
    >>> found = graph.groups(mlp, params, jnp.ones((1, 3)))
    >>> small, cut_params = slim(mlp, params, found, {"a": jnp.array([True, False, True, False])}, jnp.ones((1, 3)))
    >>> small(cut_params, jnp.ones((2, 3))).tolist(), cut_params["b"].shape
    ([[4.0, 6.0], [4.0, 6.0]], (2, 2))
    """
    small, smaller, traced, _ = _slim(apply, variables, groups, units, *inputs, rules=rules, keep=keep)
    derivatives.warn_lost(traced.customs)
    return small, smaller


def _slim(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    units: Units,
    *inputs: Any,
    rules: graph.PrimitiveRules,
    keep: Sequence[str],
) -> tuple[Callable[..., Any], PyTree, graph.Traced, Replay]:
    """As `slim`, with the function as it was read and what is kept of it."""
    _check_kept(units, groups)
    table = RULES | dict(rules)
    graph.check_arrays(variables)
    dense, structure = jax.tree.flatten(jax.tree.map(placement.typed, variables))
    known: dict[Any, tuple[graph.Traced, Replay]] = {}

    def read(leaves: list[Any], inputs: tuple[Any, ...]) -> tuple[graph.Traced, Replay]:
        shapes, of_inputs = jax.tree.flatten(jax.tree.map(placement.typed, inputs))
        key = (of_inputs, *((i.shape, i.dtype, i.weak_type, i.sharding) for i in (*leaves, *shapes)))
        if key not in known:
            args = (jax.tree.unflatten(structure, leaves), *jax.tree.unflatten(of_inputs, shapes))
            known[key] = _read(apply, args, groups, units, table, keep)
        return known[key]

    def slim_apply(variables: PyTree, *inputs: Any) -> Any:
        got = jax.tree.leaves(variables)
        # jax2onnx traces `jnp.shape`, not NumPy's.
        if len(got) != len(dense) or [np.shape(x) for x in got] != smaller:
            raise ValueError(
                "these are not the variables that compact.slim returned: their shapes differ; for variables of other "
                "shapes, such as a cache for another batch, call compact.slim with the same groups and units again"
            )
        # The dense function is traced as if its variables lay where the slim ones do.
        lying = [placement.typed(x, d.shape) for x, d in zip(got, dense, strict=True)]
        traced, replay = read(lying, inputs)
        return jax.tree.unflatten(traced.results, replay.run(traced.program, [*got, *jax.tree.leaves(inputs)]))

    traced, replay = read(dense, inputs)
    derivatives.check_kept(keep, traced.customs)
    smaller = [tuple(map(replay.size, leaf.value.dims or [])) for leaf in traced.leaves]
    leaves = [
        replay.cut(x, leaf.value.dims or []) for x, leaf in zip(jax.tree.leaves(variables), traced.leaves, strict=True)
    ]
    return slim_apply, jax.tree.unflatten(traced.structure, leaves), traced, replay


def _read(
    apply: Callable[..., Any],
    args: tuple[Any, ...],
    groups: Sequence[Group],
    units: Units,
    table: Mapping[str, graph.PrimitiveRule],
    keep: Sequence[str],
) -> tuple[graph.Traced, Replay]:
    """A function as it is with some units removed."""
    traced = graph.trace(apply, *args, rules=table, keep=keep)
    roots = graph.find_all(traced, groups)
    graph.leaks(traced, table, {roots[g.name]: frozenset(g.approximate) for g in groups if g.approximate})
    # Also of units that are 0 and 1: the complement of these is no mask.
    kept = {d: np.asarray(units[name]).astype(bool) for name, d in graph.find_all(traced, groups).items()}
    return traced, Replay(kept, table)


def mask(variables: PyTree, groups: Sequence[Group], units: Units) -> PyTree:
    """Variables whose removed units are zero. Parameters are masked; other collections stay as they are.

    Args:
        variables: any pytree, as `graph.groups` takes it.
        groups: all or some of the groups that `graph.groups` found.
        units: `{name: bool[C]}` for exactly these groups; may be traced.

    Returns:
        The same structure and shapes.
    """
    leaves, structure = jax.tree.flatten(variables)
    touched = {s.path for g in groups for s in g.slots if s.collection == "params"}
    at = {path: i for i, (path, where) in enumerate(graph.collections(variables)) if where == "params"}
    params = {path: leaves[i] for path, i in at.items() if path in touched}
    for path, leaf in masks.apply(params, units_lib.expand(anywhere(units), groups, params)).items():
        leaves[at[path]] = leaf
    return jax.tree.unflatten(structure, leaves)


ROUNDING = 1e-4
"""Differences of slim and masked functions up to this may be rounding, in float32 and through many layers."""


class Verification(NamedTuple):
    """How far slim functions were from masked ones, one number for each cut. `str()` says it in words.

    Attributes:
        differences: the largest difference of slim and masked output, relative to the masked output's largest entry,
            where the exact groups are cut; empty if there are none.
        changes: the largest difference of masked and dense output, relative to the masked output's largest entry. Where
            it is 0, the cut changed nothing, and a difference of 0 shows nothing.
        approximate: the same as `differences` where the approximate groups are cut too; empty if there are none. These
            are expected not to be 0.
    """

    differences: tuple[float, ...]
    changes: tuple[float, ...]
    approximate: tuple[float, ...] = ()

    def __str__(self) -> str:
        lines = []
        if self.differences:
            worst = max(self.differences)
            judged = (
                "as it should be"
                if worst <= ROUNDING
                else "which is more than rounding: do not use these groups, and report the function"
            )
            lines.append(f"slim and masked outputs differ by at most {worst:.1e} of the largest entry, {judged}")
        if self.approximate:
            apart = (
                f"by at most {max(self.approximate):.1e}" if np.isfinite(self.approximate).all() else "without bound"
            )
            lines.append(
                f"with the approximate groups cut too they differ {apart}, as expected: training is meant to repair it"
            )
        return "\n".join(lines)


def verify(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    *inputs: Any,
    key: Key,
    cuts: int = 5,
    ratio: float = 0.5,
    rules: graph.PrimitiveRules = (),
    keep: Sequence[str] = (),
) -> Verification:
    """Compares slim functions with masked ones on random cuts: the check to run on your own model.

    Args:
        apply: pure, `apply(variables, *inputs)`, as `graph.groups` takes it.
        variables: the dense variables.
        groups: the groups that are cut, as `graph.groups` found them.
        *inputs: real or random inputs, on which outputs are compared.
        key: draws the units.
        cuts: how many random cuts are tried.
        ratio: the largest share of a group's units that is removed. Each cut draws for each group how many units go, at
            least one and at most this share; one always stays.
        rules: rules for further primitives, the same that `graph.groups` was given.
        keep: names of functions whose own derivative stays, as `slim` takes them.

    Returns:
        Relative differences, one for each cut, which print as a sentence; rounding in float32 gives about 1e-6. Groups
        that are cut approximately are reported apart. Of a collection that comes back, the kept entries are compared.

    Raises:
        ValueError: if a group cannot be cut in this function, or `keep` names a function that is not there.

    >>> def mlp(params, x):
    ...     return jax.nn.relu(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.eye(3, 4), "b": jnp.arange(8.0).reshape(4, 2)}
    >>> found = graph.groups(mlp, params, jnp.ones((1, 3)))
    >>> print(verify(mlp, params, found, jnp.ones((1, 3)), key=jax.random.key(0)))
    slim and masked outputs differ by at most 0.0e+00 of the largest entry, as it should be
    """
    exact = [g for g in groups if not g.approximate]
    apply = jax.jit(apply)
    try:
        dense = apply(variables, *inputs)
    except Exception:
        if not any(layouts.explicit(x) for x in jax.tree.leaves(variables)):
            raise
        # Only the slim arrays need to lie in a way in which the function runs: masked ones are compared whole.
        variables = jax.tree.map(layouts.whole, variables)
        dense = apply(variables, *inputs)
    differences, changes, approximate = [], [], []
    for one in jax.random.split(key, cuts):
        units = _drawn(one, groups, ratio)
        compare = functools.partial(_compare, apply, variables, inputs, dense, rules, keep)
        if exact:
            difference, change = compare(exact, units)
            differences.append(difference)
            changes.append(change)
        if len(exact) < len(groups):
            approximate.append(compare(groups, units)[0])
    return Verification(tuple(differences), tuple(changes), tuple(approximate))


def _drawn(key: Key, groups: Sequence[Group], ratio: float) -> Units:
    """Random units: of each group at least one goes, at most the given share, and one stays."""
    rng = np.random.default_rng(np.asarray(jax.random.key_data(key)))
    units = {}
    for g in groups:
        order = rng.permutation(g.size)
        removed = int(rng.integers(1, max(2, round(ratio * g.size) + 1)))
        units[g.name] = jnp.asarray(order >= min(removed, g.size - 1))
    return units


def _compare(
    apply: Callable[..., Any],
    variables: PyTree,
    inputs: tuple[Any, ...],
    dense: PyTree,
    rules: graph.PrimitiveRules,
    keep: Sequence[str],
    groups: Sequence[Group],
    units: Units,
) -> tuple[float, float]:
    """How far slim is from masked, and masked from dense, where some groups are cut."""
    units = {g.name: units[g.name] for g in groups}
    masked = apply(mask(variables, groups, units), *inputs)
    change = _distance(masked, dense)
    # Outputs are compared, not derivatives: nothing to warn of.
    small, small_variables, traced, replay = _slim(apply, variables, groups, units, *inputs, rules=rules, keep=keep)
    kept = [
        replay.cut(x, value.dims or []) for x, value in zip(jax.tree.leaves(masked), traced.program.outs, strict=True)
    ]
    return _distance(kept, jax.jit(small)(small_variables, *inputs)), change


def _distance(a: PyTree, b: PyTree) -> float:
    """Largest difference of two trees, relative to the largest entry of the first; nan if either is."""
    pairs = [
        (np.asarray(x, np.float64), np.asarray(y, np.float64))
        for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    ]
    size = max((float(np.max(np.abs(x), initial=0.0)) for x, _ in pairs), default=0.0)
    apart = max((float(np.max(np.abs(x - y), initial=0.0)) for x, y in pairs), default=0.0)
    return apart / size if size else apart
