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
from mvp_jax.compact import cost, ranking, slimming
from mvp_jax.core import prune
from mvp_jax.core.types import Array, PyTree, UnitScores
from mvp_jax.core.units import Group
from mvp_jax.graph import work
from mvp_jax.graph.dims import Expr
from mvp_jax.graph.primitives import RULES
from mvp_jax.graph.replay import Replay

Measure = Literal["params", "flops", "latency"]
Normalisation = ranking.Normalisation
RankScope = ranking.RankScope
normalise = ranking.normalise
isomorphic = ranking.isomorphic
counts = ranking.counts


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
        scores: `{group: real[C]}`, higher = keep; normalised, if `scope` is wider than a group. Units whose score is
            not finite go before all others, and a warning counts them.
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
        ValueError: if `target` or `measure` is not as above, if scores do not fit the groups or a group has no finite
            score, or if even the fewest units cost more than `target`.
    """
    if not 0 < target <= 1:
        raise ValueError(f"target is a share of the dense cost, in (0, 1], got {target}")
    if measure not in ("params", "flops", "latency"):
        raise ValueError(f"unknown measure {measure!r}; choose params, flops or latency")
    scores = ranking.rankable(groups, scores, stacklevel=2)
    count = ranking.counter(groups, scores, scope=scope, min_units=min_units, multiple=multiple)
    if measure == "latency":
        share_of = _latency(apply, variables, groups, scores, inputs, repeats, rules)
    else:
        cost_of = meter(apply, variables, groups, *inputs, rules=rules)
        dense = getattr(cost_of({}), measure)

        def share_of(kept: Mapping[str, int]) -> float:
            return getattr(cost_of(kept), measure) / dense

    def attempt(ratio: float) -> tuple[float, dict[str, int]]:
        kept = count(ratio)
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
    """`{group: bool[C]}`: in each group, the given number of units with the highest scores, nan last."""
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
    found = graph.find_all(traced, groups)

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
