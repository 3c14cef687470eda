"""How many units to keep: ratios, ranks across groups, and the search for what meets a budget.

A ratio says how many units go; people want to say how many parameters, operations or milliseconds. `fit` searches for
the ratio that gives them, with the counts rounded to what hardware likes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import graph
from mvp_jax.compact import cost, slimming
from mvp_jax.core import prune
from mvp_jax.core.types import Array, PyTree, UnitScores
from mvp_jax.core.units import Group
from mvp_jax.graph import work
from mvp_jax.graph.dims import Expr
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.replay import Replay

RankScope = Literal["group", "isomorphic", "all"]
Normalisation = Literal["none", "mean", "max", "sum", "standard"]
Measure = Literal["params", "flops", "latency"]


def normalise(scores: UnitScores, how: Normalisation = "mean") -> dict[str, Array]:
    """Scores made comparable across groups: the scores of each group are divided by one number of that group.

    Args:
        scores: `{group: float[C]}`, higher = keep.
        how: what to divide by: the group's `mean` (the default of DepGraph, Fang et al., 2023, arXiv:2301.12900), `max`
            or `sum`; `standard`: subtract the mean, then divide by the standard deviation; `none`: leave scores as they
            are.

    Returns:
        Scores of the same names and shapes. Where the divisor is 0, all scores of the group are 0.

    Raises:
        ValueError: for an unknown `how`.

    >>> {k: v.tolist() for k, v in normalise({"a": jnp.array([1.0, 3.0]), "b": jnp.array([10.0, 30.0])}).items()}
    {'a': [0.5, 1.5], 'b': [0.5, 1.5]}
    """

    def one(s: Array) -> Array:
        if how == "none":
            return s
        by = getattr(s, "std" if how == "standard" else how)()
        s = s - jnp.mean(s) if how == "standard" else s
        return jnp.where(by == 0, 0.0, s / jnp.where(by == 0, 1.0, by))

    if how not in ("none", "mean", "max", "sum", "standard"):
        raise ValueError(f"unknown normalisation {how!r}; choose none, mean, max, sum or standard")
    return {name: one(jnp.asarray(s)) for name, s in scores.items()}


def isomorphic(groups: Sequence[Group]) -> dict[str, tuple[Any, ...]]:
    """The class of each group. Two groups are of one class if the same kinds of arrays make and read their units.

    Ranking units within classes compares like with like.

    Args:
        groups: the groups of one model.

    Returns:
        `{group: class}`; classes are hashable and equal for groups that are alike.

    Reference: Fang et al., "Isomorphic Pruning for Vision Models", 2024, arXiv:2407.04616.

    >>> from mvp_jax.core.units import Slot
    >>> a, b = (Group(name=n, size=4, slots=(Slot(path=f"{n}/kernel", axis=1, scored=True),)) for n in "ab")
    >>> len(set(isomorphic([a, b]).values()))
    1
    """
    return {
        g.name: (g.kind, tuple(sorted({(s.path.rpartition("/")[2], s.axis, s.scored, s.collection) for s in g.slots})))
        for g in groups
    }


def counts(
    groups: Sequence[Group],
    scores: UnitScores,
    ratio: float,
    *,
    scope: RankScope = "group",
    min_units: int = 1,
    multiple: int | Mapping[str, int] = 1,
) -> dict[str, int]:
    """Returns how many units each group keeps if the units with the lowest scores are removed. Computed on the host.

    Args:
        groups: the groups whose units are ranked.
        scores: `{group: float[C]}`, higher = keep. For a scope wider than a group, make them comparable by `normalise`.
        ratio: the share of the units to remove, in `[0, 1)`.
        scope: among which units the lowest go: in each `group` by itself, so that all lose the same share; among all
            groups of one class (`isomorphic`); or among `all` units.
        min_units: at least so many stay in each group, or all if it has fewer.
        multiple: kept counts are rounded up to a multiple of this number, because matrix units of hardware like 8 or
            128. A count that would pass the group's size stays at that size. One number, or one for each kind of group
            (`{"filter": 8}`).

    Returns:
        `{group: number of units to keep}`.

    Raises:
        ValueError: for scores that do not fit, or settings out of range.

    >>> g = [Group(name="a", size=4, slots=()), Group(name="b", size=4, slots=())]
    >>> s = {"a": jnp.array([1.0, 2.0, 3.0, 4.0]), "b": jnp.array([5.0, 6.0, 7.0, 8.0])}
    >>> counts(g, s, 0.5), counts(g, s, 0.5, scope="all"), counts(g, s, 0.5, multiple=3)
    ({'a': 2, 'b': 2}, {'a': 1, 'b': 4}, {'a': 3, 'b': 3})
    """
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio must be in [0, 1), got {ratio}")
    if min_units < 1:
        raise ValueError(f"min_units must be at least 1, got {min_units}; a layer without units passes nothing on")
    wrong = [g.name for g in groups if np.shape(scores.get(g.name, ())) != (g.size,)]
    if wrong:
        raise ValueError(f"no scores of the right length for {wrong[:5]}; give one number a unit, as units.reduce does")
    if scope not in ("group", "isomorphic", "all"):
        raise ValueError(f"unknown scope {scope!r}; choose group, isomorphic or all")
    classes = isomorphic(groups)
    of = {g.name: {"group": g.name, "isomorphic": classes[g.name], "all": ""}[scope] for g in groups}
    kept = {g.name: 0 for g in groups}
    for name in dict.fromkeys(of.values()):
        inside = [g for g in groups if of[g.name] == name]
        ranked = np.concatenate([np.asarray(scores[g.name], np.float64) for g in inside])
        owner = np.repeat(np.arange(len(inside)), [g.size for g in inside])
        best = np.argsort(-ranked, kind="stable")[: prune.keep_count(len(ranked), ratio)]
        for i, g in enumerate(inside):
            kept[g.name] = int(np.sum(owner[best] == i))
    return {g.name: _rounded(max(kept[g.name], min(min_units, g.size)), g, multiple) for g in groups}


def _rounded(kept: int, group: Group, multiple: int | Mapping[str, int]) -> int:
    m = multiple if isinstance(multiple, int) else multiple.get(group.kind, 1)
    if m < 1:
        raise ValueError(f"multiple must be at least 1, got {m}")
    return min(-(-kept // m) * m, group.size)


class Fit(NamedTuple):
    """What `fit` found.

    Attributes:
        units: `{group: bool[C]}`, the units to keep.
        ratio: the ratio for `counts` that gives them.
        share: the share that is left of the dense function's parameters, operations or seconds.
    """

    units: dict[str, Array]
    ratio: float
    share: float


def fit(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    scores: UnitScores,
    *inputs: Any,
    target: float,
    measure: Measure = "flops",
    scope: RankScope = "group",
    min_units: int = 1,
    multiple: int | Mapping[str, int] = 1,
    repeats: int = 20,
    rules: graph.PrimitiveRules = (),
) -> Fit:
    """Returns the most units that can be kept with a cost within a fraction of the dense function's.

    The ratio of `counts` is searched for by bisection.

    Args:
        apply: pure, `apply(variables, *inputs)`, as `graph.groups` takes it.
        variables: the dense variables.
        groups: all or some of the groups that `graph.groups` found.
        scores: `{group: float[C]}`, higher = keep; normalised, if `scope` is wider than a group.
        *inputs: inputs as `apply` takes them; latency is measured at their batch size.
        target: the share of the dense cost that must not be exceeded, in `(0, 1]`.
        measure: `params` and `flops` are counted from the trace; `latency` is measured on compiled slim functions
            against the dense one, at every step of the search.
        scope: among which units the lowest scores go, as in `counts`.
        min_units: at least so many units stay in each group, as in `counts`.
        multiple: kept counts are rounded up to a multiple of this, as in `counts`.
        repeats: how many calls are timed for each measurement of latency.
        rules: rules for further primitives, the same that `graph.groups` was given.

    Returns:
        The units, their ratio and the share that is reached: at most `target`, and below it only by what whole units
        and multiples leave.

    Raises:
        ValueError: if `target` or `measure` is not as above, or if even the fewest units cost more than `target`.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target is a share of the dense cost, in (0, 1], got {target}")
    if measure not in ("params", "flops", "latency"):
        raise ValueError(f"unknown measure {measure!r}; choose params, flops or latency")
    if measure == "latency":
        share_of = _latency(apply, variables, groups, scores, inputs, repeats, rules)
    else:
        cost_of = meter(apply, variables, groups, *inputs, rules=rules)
        dense = getattr(cost_of({}), measure)

        def share_of(kept: Mapping[str, int]) -> float:
            return getattr(cost_of(kept), measure) / dense

    def attempt(ratio: float) -> tuple[float, dict[str, int]]:
        kept = counts(groups, scores, ratio, scope=scope, min_units=min_units, multiple=multiple)
        return share_of(kept), kept

    low, high = 0.0, np.nextafter(1.0, 0.0)
    share, kept = attempt(low)
    if share <= target:
        best = low, share, kept
    else:
        share, kept = attempt(high)
        if share > target:
            raise ValueError(
                f"with the fewest units ({dict(list(kept.items())[:3])}, ...) {share:.1%} of the dense {measure} are "
                f"left, more than the target {target:.1%}; ask for less, or let more groups be pruned"
            )
        best = high, share, kept
        for _ in range(8 if measure == "latency" else 24):
            middle = (low + high) / 2
            share, kept = attempt(middle)
            if share <= target:
                high, best = middle, (middle, share, kept)
            else:
                low = middle
    ratio, share, kept = best
    return Fit(_best(scores, kept), float(ratio), share)


def _best(scores: UnitScores, kept: Mapping[str, int]) -> dict[str, Array]:
    """`{group: bool[C]}`: in each group, the given number of units with the highest scores."""
    return dict(prune.by_leaf({n: scores[n] for n in kept}, {n: jnp.int32(k) for n, k in kept.items()}))


class Totals(NamedTuple):
    """The cost of a function with some units kept, counted from its trace.

    Attributes:
        params: how many trainable numbers it has.
        flops: the floating-point operations of one call on the inputs that it was traced with; see `core.flops`.
        activations: how many numbers its equations write, an upper bound of what training has to remember.
    """

    params: int
    flops: int
    activations: int


def meter(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    *inputs: Any,
    rules: graph.PrimitiveRules = (),
) -> Callable[[Mapping[str, int]], Totals]:
    """The cost of a function depending on how many units each group keeps. The function is traced once, never compiled.

    Args:
        apply: pure, `apply(variables, *inputs)`, as `graph.groups` takes it.
        variables: the dense variables, as arrays or shapes.
        groups: all or some of the groups that `graph.groups` found.
        *inputs: inputs as `apply` takes them, as arrays or shapes.
        rules: rules for further primitives, the same that `graph.groups` was given.

    Returns:
        `cost_of({group: number of units to keep}) -> Totals`; groups that are not named stay whole.

    Raises:
        ValueError: if a group is not a set of units of this function, or may not be cut in it.

    >>> def mlp(params, x):
    ...     return jnp.tanh(x @ params["a"]) @ params["b"]
    >>> params = {"a": jnp.ones((3, 8)), "b": jnp.ones((8, 2))}
    >>> cost_of = meter(mlp, params, graph.groups(mlp, params, jnp.ones((1, 3))), jnp.ones((1, 3)))
    >>> cost_of({}), cost_of({"a": 2})
    (Totals(params=40, flops=80, activations=18), Totals(params=10, flops=20, activations=6))
    """
    traced = graph.trace(apply, variables, *inputs, rules=RULES | dict(rules))
    found = {g.name: graph.find(traced, g) for g in groups}

    def cost_of(kept: Mapping[str, int]) -> Totals:
        # Which units stay changes no shape, only how many.
        first = {found[name]: np.arange(found[name].size) < n for name, n in kept.items()}
        replay = Replay(first, {})
        cache: dict[int, int] = {}

        def size(e: Expr) -> int:
            if id(e) not in cache:
                cache[id(e)] = replay.size(e)
            return cache[id(e)]

        params = [leaf.value.dims or [] for leaf in traced.leaves if leaf.collection == "params"]
        return Totals(sum(math.prod(map(size, dims)) for dims in params), *work.total(traced.program, size))

    return cost_of


class Saving(NamedTuple):
    """What removing units of one group alone saves, as shares (0 to 1) of the dense function's cost.

    Attributes:
        group: the group's name.
        params: the share of parameters saved.
        flops: the share of floating-point operations saved.
        activations: the share of numbers written saved.
        latency: the share of measured time saved; `None` if it was not measured.
    """

    group: str
    params: float
    flops: float
    activations: float
    latency: float | None


def savings(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    *inputs: Any,
    ratio: float = 0.5,
    latency: bool = False,
    repeats: int = 20,
    rules: graph.PrimitiveRules = (),
) -> list[Saving]:
    """What each group costs: the saving if a share of its units is removed and no other group is touched.

    Args:
        apply: pure, `apply(variables, *inputs)`, as `graph.groups` takes it.
        variables: the dense variables, as arrays or shapes; arrays if latency is measured.
        groups: all or some of the groups that `graph.groups` found.
        *inputs: inputs as `apply` takes them, as arrays or shapes; arrays if latency is measured.
        ratio: the share of the group's units that is removed, in [0, 1).
        latency: whether to also compile and time the function without these units, one program for each group.
        repeats: how many calls are timed for each program.
        rules: rules for further primitives, the same that `graph.groups` was given.

    Returns:
        A `Saving` for each group, in the order of `groups`.
    """
    cost_of = meter(apply, variables, groups, *inputs, rules=rules)
    dense = cost_of({})
    whole = {g.name: g.size for g in groups}
    kept = prune.keep_counts(whole, ratio)
    scores = {g.name: jnp.zeros(g.size) for g in groups}  # which units go changes no time
    timed = _latency(apply, variables, groups, scores, inputs, repeats, rules) if latency else None
    rows = []
    for g in groups:
        left = cost_of({g.name: kept[g.name]})
        share = 1 - timed(whole | {g.name: kept[g.name]}) if timed else None
        params, flops, activations = (1 - a / max(b, 1) for a, b in zip(left, dense, strict=True))
        rows.append(Saving(g.name, params, flops, activations, share))
    return rows


def _latency(
    apply: Callable[..., Any],
    variables: PyTree,
    groups: Sequence[Group],
    scores: UnitScores,
    inputs: tuple[Any, ...],
    repeats: int,
    rules: graph.PrimitiveRules,
) -> Callable[[Mapping[str, int]], float]:
    """Share of the dense function's time, measured."""
    before = cost.latency(jax.jit(apply), variables, *inputs, repeats=repeats)
    known: dict[tuple[int, ...], float] = {}

    def share(kept: Mapping[str, int]) -> float:
        key = tuple(kept.values())
        if key not in known:
            units = _best(scores, kept)
            small, small_variables = slimming.slim(apply, variables, groups, units, *inputs, rules=rules)
            known[key] = cost.latency(jax.jit(small), small_variables, *inputs, repeats=repeats) / before
        return known[key]

    return share
