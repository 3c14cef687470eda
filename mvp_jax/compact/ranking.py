"""Units ranked by their scores within and across groups, and how many of each group are among the best.

A unit whose score is not finite goes before all others, and the others are ranked as if it were not there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np

from mvp_jax.core import prune
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, UnitScores
from mvp_jax.core.units import Group

RankScope = Literal["group", "isomorphic", "all"]
Normalisation = Literal["none", "mean", "max", "sum", "standard"]


def normalise(scores: UnitScores, how: Normalisation = "mean") -> dict[str, Array]:
    """Scores made comparable across groups: the scores of each group are divided by one number of that group.

    A score that is not finite enters no such number and becomes `nan`, so that its unit is the first that `counts`,
    `fit` and the selectors of `prune` remove.

    Args:
        scores: `{group: real[C]}`, higher = keep.
        how: what to divide by: the magnitude of the group's `mean` (the default of DepGraph, Fang et al., 2023,
            arXiv:2301.12900), of its `max` or of its `sum`; `standard`: subtract the mean, then divide by the standard
            deviation; `none`: leave finite scores as they are.

    Returns:
        Scores of the same names and shapes: float32, or float64 if they were. Where the divisor is 0, all finite scores
        of the group are 0.

    Raises:
        ValueError: for an unknown `how`; and, where scores are not traced, if no score of a group is finite.

    Warns:
        RuntimeWarning: where scores are not traced, which groups have units whose score is not finite, and how many.

    >>> {k: v.tolist() for k, v in normalise({"a": jnp.array([1.0, 3.0]), "b": jnp.array([10.0, 30.0])}).items()}
    {'a': [0.5, 1.5], 'b': [0.5, 1.5]}
    """
    if how not in ("none", "mean", "max", "sum", "standard"):
        raise ValueError(f"unknown normalisation {how!r}; choose none, mean, max, sum or standard")
    found = units_lib.only_finite(scores, stacklevel=2)
    return found if how == "none" else {name: _comparable(s, how) for name, s in found.items()}


def _comparable(s: Array, how: Normalisation) -> Array:
    """Scores of one group divided by a number of those that are not nan."""
    finite = jnp.isfinite(s)
    # Times a power of 2, which rounds nothing, no sum overflows and no square vanishes.
    s = jnp.ldexp(s, -jnp.frexp(jnp.max(jnp.abs(s), where=finite, initial=0.0))[1])
    if how == "standard":
        s, by = s - jnp.mean(s, where=finite), jnp.std(s, where=finite)
    elif how == "max":
        by = jnp.max(s, where=finite, initial=-jnp.inf)
    else:
        by = jnp.mean(s, where=finite) if how == "mean" else jnp.sum(s, where=finite)
    # Its magnitude: divided by a negative number, the lowest scores would rank highest.
    by = jnp.abs(by)
    return jnp.where(finite, jnp.where(by == 0, 0.0, s / jnp.where(by == 0, 1.0, by)), jnp.nan)


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

    Units whose score is not finite (`nan`, `inf` or `-inf`) are removed before all others. One of them stays only where
    more units are to stay than have a finite score: by a small ratio, by `min_units` or by `multiple`.

    Args:
        groups: the groups whose units are ranked.
        scores: `{group: real[C]}`, higher = keep. For a scope wider than a group, make them comparable by `normalise`.
        ratio: the share of the units to remove, in `[0, 1)`.
        scope: among which units the lowest go: in each `group` by itself, so that all lose the same share; among all
            groups of one class (`isomorphic`); or among `all` units.
        min_units: at least so many stay in each group, or all if it has fewer.
        multiple: kept counts are rounded up to a multiple of this number, because matrix units of hardware like 8 or
            128. A count that would pass the group's size stays at that size. One number, or one for each kind of group
            (`{"filter": 8}`).

    Returns:
        `{group: number of units to keep}`. Those that many highest of each group are the units that stay: of equal
        scores the ones with the lower index, and of groups those that come first.

    Raises:
        ValueError: for scores that do not fit, a group without any finite score, or settings out of range.

    Warns:
        RuntimeWarning: which groups have units whose score is not finite, and how many.

    >>> g = [Group(name="a", size=4, slots=()), Group(name="b", size=4, slots=())]
    >>> s = {"a": jnp.array([1.0, 2.0, 3.0, 4.0]), "b": jnp.array([5.0, 6.0, 7.0, 8.0])}
    >>> counts(g, s, 0.5), counts(g, s, 0.5, scope="all"), counts(g, s, 0.5, multiple=3)
    ({'a': 2, 'b': 2}, {'a': 1, 'b': 4}, {'a': 3, 'b': 3})
    """
    found = rankable(groups, scores, stacklevel=2)
    return counter(groups, found, scope=scope, min_units=min_units, multiple=multiple)(ratio)


def rankable(groups: Sequence[Group], scores: UnitScores, *, stacklevel: int = 1) -> dict[str, Array]:
    """The scores of these groups, checked: one number for each unit, and nan where it is not finite.

    Args:
        groups: the groups whose units are ranked, `C` units each.
        scores: `{group: real[C]}` for at least these groups.
        stacklevel: whose line of code a warning names: 1 the caller of this function, 2 the caller's caller.

    Returns:
        `{group: float32[C]}`, in the order of the groups; float64 where the scores are float64.

    Raises:
        ValueError: for scores that are missing or not one number a unit, or a group without any finite score.

    Warns:
        RuntimeWarning: which groups have units whose score is not finite, and how many.

    >>> group = Group(name="a", size=2, slots=())
    >>> rankable([group], {"a": jnp.array([1, 2]), "b": jnp.zeros(5)})["a"].tolist()
    [1.0, 2.0]
    """
    wrong = [g.name for g in groups if np.shape(scores.get(g.name, ())) != (g.size,)]
    if wrong:
        raise ValueError(f"no scores of the right length for {wrong[:5]}; give one number a unit, as units.reduce does")
    return units_lib.only_finite(units_lib.restrict(scores, groups), stacklevel=stacklevel + 1)


def counter(
    groups: Sequence[Group],
    scores: UnitScores,
    *,
    scope: RankScope = "group",
    min_units: int = 1,
    multiple: int | Mapping[str, int] = 1,
) -> Callable[[float], dict[str, int]]:
    """How many units each group keeps depending on the ratio that is removed; the units are sorted once.

    Args:
        groups: the groups whose units are ranked.
        scores: as `rankable` returns them.
        scope: among which units the lowest go, as in `counts`.
        min_units: at least so many stay in each group, as in `counts`.
        multiple: kept counts are rounded up to a multiple of this, as in `counts`.

    Returns:
        `count(ratio) -> {group: number of units to keep}`, which raises `ValueError` for a ratio outside `[0, 1)`.

    Raises:
        ValueError: for settings out of range.

    >>> group = Group(name="a", size=4, slots=())
    >>> count = counter([group], {"a": jnp.array([1.0, 4.0, 2.0, 3.0])})
    >>> count(0.25), count(0.9)
    ({'a': 3}, {'a': 1})
    """
    if min_units < 1:
        raise ValueError(f"min_units must be at least 1, got {min_units}; a layer without units passes nothing on")
    if scope not in ("group", "isomorphic", "all"):
        raise ValueError(f"unknown scope {scope!r}; choose group, isomorphic or all")
    steps = {g.name: multiple if isinstance(multiple, int) else multiple.get(g.kind, 1) for g in groups}
    if min(steps.values(), default=1) < 1:
        raise ValueError(f"multiple must be at least 1, got {multiple}")
    classes = isomorphic(groups)
    of = {g.name: {"group": g.name, "isomorphic": classes[g.name], "all": ""}[scope] for g in groups}
    # For each set of groups that are ranked together: whose the best unit is, the second best, and so on.
    owners = []
    for name in dict.fromkeys(of.values()):
        inside = [i for i, g in enumerate(groups) if of[g.name] == name]
        ranked = np.concatenate([np.asarray(scores[groups[i].name], np.float64) for i in inside])
        # Of equals the first comes first, as in `prune`; nan comes last.
        order = np.argsort(-ranked, kind="stable")
        owners.append(np.repeat(inside, [groups[i].size for i in inside])[order])

    def count(ratio: float) -> dict[str, int]:
        if not 0 <= ratio < 1:
            raise ValueError(f"ratio must be in [0, 1), got {ratio}")
        kept = np.zeros(len(groups), int)
        for owner in owners:
            kept += np.bincount(owner[: prune.keep_count(len(owner), ratio)], minlength=len(groups))
        least = [max(int(k), min(min_units, g.size)) for k, g in zip(kept, groups, strict=True)]
        return {g.name: min(-(-k // steps[g.name]) * steps[g.name], g.size) for k, g in zip(least, groups, strict=True)}

    return count


__all__ = ["Normalisation", "RankScope", "counter", "counts", "isomorphic", "normalise", "rankable"]
