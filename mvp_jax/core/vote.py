"""Votes: many ballots to one mask, many members to one soup.

Ballots are masks whose leaves lead with the member axis `K` (`trees.stack` makes them), in weight or in unit space,
whoever cast them: nearest tasks' pruned models or weakly trained members.
"""

import functools
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import allocation, counts, prune, trees
from mvp_jax.core import masks as masks_lib
from mvp_jax.core.types import Array, Key, Masks, Params, PyTree, Scores

VoteRule: TypeAlias = Literal["mean", "union", "intersection", "majority"]
"""How ballots become a mask; see `elect`."""

VoteScope: TypeAlias = Literal["leaf", "tree"]
"""Whether entries compete within a leaf (a group), or all with all."""

_RULES = ("mean", "union", "intersection", "majority")


def _members(tree: PyTree, what: str, boolean: bool = False) -> int:
    """The length `K` of the member axis."""
    leaves = trees.flatten(tree)
    sizes = {path: jnp.shape(x)[:1] for path, x in leaves.items()}
    if len(set(sizes.values())) != 1 or () in sizes.values() or (0,) in sizes.values():
        raise ValueError(f"{what} must all lead with one member axis; the leaves lead with {sizes}; see trees.stack")
    if boolean and any(x.dtype != bool for x in leaves.values()):
        raise ValueError(f"{what} are masks of booleans, but hold {sorted({str(x.dtype) for x in leaves.values()})}")
    return next(iter(sizes.values()))[0]


def _weights(weights: Any, k: int) -> Array:
    if weights is None:
        return jnp.ones(k, jnp.float32)
    if jnp.shape(weights) != (k,):
        raise ValueError(
            f"weights have shape {jnp.shape(weights)}, but there are {k} members; give one weight for each"
        )
    if allocation.concrete(weights):
        w = np.asarray(weights)
        if not np.isfinite(w).all() or (w < 0).any() or not w.any():
            raise ValueError(f"weights are {w.tolist()}; they must be finite, not negative, and not all zero")
    return jnp.asarray(weights, jnp.float32)


def _along(w: Array, leaf: Array) -> Array:
    return w.reshape((-1,) + (1,) * (leaf.ndim - 1))


@jax.jit
def _support(ballots: Masks, weights: Array) -> Scores:
    def one(b: Array) -> Array:
        w = _along(weights, b)
        return jnp.sum(jnp.where(b, w, 0.0), axis=0) / jnp.sum(w)

    return jax.tree.map(one, ballots)


def support(ballots: Masks, weights: Array | None = None) -> Scores:
    r"""The share of votes that each entry has: $h = \sum_j w_j\,1[\text{kept by } j] / \sum_j w_j$.

    Args:
        ballots: masks whose leaves lead with `K`.
        weights: `[K]`, not negative; equal by default.

    Returns:
        float32 of the ballots' shapes without `K`, in [0, 1].

    Raises:
        ValueError: if the leaves do not share a member axis, or for weights that are not one for each member.

    >>> support({"fc": jnp.array([[True, False], [True, True]])})["fc"].tolist()
    [1.0, 0.5]

    Reference: Zhao et al. 2023, "Meta-Vote Pruning" (arXiv:2301.11560), section 4, voting.
    """
    return _support(ballots, _weights(weights, _members(ballots, "ballots", boolean=True)))


@jax.jit
def _perturb(scores: Scores, key: Key, temperature: Any) -> Scores:
    leaves, structure = jax.tree.flatten(scores)
    # One stream per leaf, so that a leaf's noise does not depend on how large the others are.
    noise = [jax.random.gumbel(jax.random.fold_in(key, i), x.shape, jnp.float32) for i, x in enumerate(leaves)]
    return jax.tree.unflatten(structure, [x + jnp.float32(temperature) * g for x, g in zip(leaves, noise, strict=True)])


@functools.partial(jax.jit, static_argnames="rule")
def _decide(ballots: Masks, weights: Array, *, rule: VoteRule) -> Masks:
    def one(b: Array) -> Array:
        w = _along(weights, b)
        counts = w > 0
        if rule == "union":
            return jnp.any(b & counts, axis=0)
        if rule == "intersection":
            return jnp.all(b | ~counts, axis=0)
        return 2.0 * jnp.sum(jnp.where(b, w, 0.0), axis=0) >= jnp.sum(w)

    return jax.tree.map(one, ballots)


def _select(scores: Scores, keep: PyTree, scope: VoteScope, within: Masks | None, tie_break: Scores | None) -> Masks:
    selector = prune.by_leaf if scope == "leaf" else prune.across_tree
    return selector(scores, keep, within=within, tie_break=tie_break)


def elect(
    ballots: Masks,
    keep: PyTree | None = None,
    *,
    scope: VoteScope,
    rule: VoteRule = "mean",
    weights: Array | None = None,
    within: Masks | None = None,
    tie_break: Scores | None = None,
    key: Key | None = None,
    temperature: Any = 0.0,
) -> Masks:
    r"""The mask that the ballots elect.

    `mean` keeps exactly `keep` entries of highest support; with a temperature τ those of highest $h + \tau G$, G
    Gumbel noise, which samples them without replacement with probability softmax(h / τ). `union`, `intersection` and
    `majority` (support of at least a half) keep what their name says. Where that is less than `keep`, they would
    prune past the target, and `keep` entries are selected as by `mean` instead.

    Args:
        ballots: masks whose leaves lead with `K`.
        keep: int32[], or with scope `leaf` also a tree of them; traced. `None` (not for `mean`) sets no floor.
        scope: `leaf`: a selection in every leaf (group); `tree`: one over all.
        rule: how ballots become a mask.
        weights: `[K]`, not negative; equal by default. Union and intersection disregard members of weight 0.
        within: what may be kept at all, such as the mask before the vote; as in `prune.by_leaf`.
        tie_break: scores (mean saliency, mean magnitude) among equal support; the lower index decides last.
        key: for the noise; needed if there is a temperature.
        temperature: τ, traced; 0 is the deterministic vote.

    Returns:
        Masks of the ballots' shapes without `K`, a subset of `within`.

    Raises:
        ValueError: for an unknown rule or scope, a missing count or key, or as `support` and `prune.by_leaf` do.

    >>> ballots = {"fc": jnp.array([[True, True, False, False], [True, False, True, False]])}
    >>> elect(ballots, 2, scope="leaf", tie_break={"fc": jnp.array([0.0, 1.0, 2.0, 3.0])})["fc"].tolist()
    [True, False, True, False]
    >>> elect(ballots, scope="leaf", rule="union")["fc"].tolist()
    [True, True, True, False]

    Reference: Zhao et al. 2023, "Meta-Vote Pruning" (arXiv:2301.11560), section 4; Jaiswal et al. 2023, "Instant Soup"
    (arXiv:2306.10460), section 3; Kool et al. 2019, "Stochastic Beams and Where to Find Them" (arXiv:1903.06059),
    equation 2, for the noise.
    """
    if rule not in _RULES:
        raise ValueError(f"unknown rule {rule!r}; choose one of {_RULES}")
    if scope not in ("leaf", "tree"):
        raise ValueError(f"unknown scope {scope!r}; choose 'leaf' or 'tree'")
    if keep is None and rule == "mean":
        raise ValueError("the rule 'mean' needs keep, the number of entries to elect; see prune.keep_counts")
    known = allocation.concrete(temperature)
    if known and temperature < 0:
        raise ValueError(f"temperature is {temperature}; it must not be negative")
    if key is None and not (known and temperature == 0):
        raise ValueError(f"a temperature of {temperature} needs a key for its noise; give key=jax.random.key(...)")
    w = _weights(weights, _members(ballots, "ballots", boolean=True))
    scores = _support(ballots, w)
    if key is not None:
        scores = _perturb(scores, key, temperature)
    if rule == "mean":
        return _select(scores, keep, scope, within, tie_break)
    decided = _decide(ballots, w, rule=rule)
    if within is not None:
        within = trees.align(within, scores, "within", "ballots")
        decided = masks_lib.intersect(decided, within)
    if keep is None:
        return decided
    floor = _select(scores, keep, scope, within, tie_break)
    return _with_floor(decided, floor, scope=scope)


@functools.partial(jax.jit, static_argnames="scope")
def _with_floor(decided: Masks, floor: Masks, *, scope: VoteScope) -> Masks:
    """What was decided; the floor where that keeps fewer entries, in a leaf or in the whole tree."""
    pairs = list(zip(jax.tree.leaves(decided), jax.tree.leaves(floor), strict=True))
    kept = [(counts.true(d), counts.true(f)) for d, f in pairs]
    if scope == "tree":
        kept = [tuple(counts.total([k[i] for k in kept]) for i in (0, 1))] * len(pairs)  # type: ignore[list-item]
    chosen = [jnp.where(counts.at_least(n, m), d, f) for (d, f), (n, m) in zip(pairs, kept, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(decided), chosen)


def _lead(mask: Array, leaf: Array) -> Array:
    """A stacked mask, aligned to a stacked leaf: the member axis first, the others broadcast from the right."""
    return mask.reshape(mask.shape[:1] + (1,) * (leaf.ndim - mask.ndim) + mask.shape[1:])


@jax.jit
def _soup(members: Params, masks: Masks | None, weights: Array, fallback: Params | None) -> Params:
    def one(x: Array, m: Array | None, default: Array | None) -> Array:
        w = _along(weights, x)
        y = x.astype(jnp.float32)
        if m is None:
            # A member of weight 0 counts for nothing, even where it holds nan, and not in a gradient either.
            return (jnp.sum(w * jnp.where(w > 0, y, 0.0), axis=0) / jnp.sum(weights)).astype(x.dtype)
        w = jnp.where(_lead(m, x), w, 0.0)
        total = jnp.sum(w, axis=0)
        mean = jnp.sum(w * jnp.where(w > 0, y, 0.0), axis=0) / jnp.where(total > 0, total, 1.0)
        other = jnp.zeros((), jnp.float32) if default is None else default.astype(jnp.float32)
        return jnp.where(total > 0, mean, other).astype(x.dtype)

    leaves, structure = jax.tree.flatten(members)
    none = [None] * len(leaves)
    kept = none if masks is None else jax.tree.leaves(masks)
    defaults = none if fallback is None else jax.tree.leaves(fallback)
    return jax.tree.unflatten(structure, [one(*parts) for parts in zip(leaves, kept, defaults, strict=True)])


def soup(
    members: Params, *, masks: Masks | None = None, weights: Array | None = None, fallback: Params | None = None
) -> Params:
    r"""The mean of the members' weights, each entry over those who kept it.

    $\bar\theta = \sum_j w_j m_j \theta_j / \sum_j w_j m_j$.

    Args:
        members: parameters whose leaves lead with `K`.
        masks: what each member kept; leaves lead with `K`, the rest broadcasts. By default all of it.
        weights: `[K]`, not negative; equal by default.
        fallback: parameters (without `K`) for the entries that no member kept; 0 by default.

    Returns:
        Parameters without `K`, in the members' dtypes; means are taken in float32.

    Raises:
        ValueError: if structures or shapes differ, for leaves that are not floats, or as `support` does.

    >>> members = {"a": jnp.array([[1.0, 2.0, 3.0], [3.0, 4.0, 5.0]])}
    >>> masks = {"a": jnp.array([[True, True, False], [True, False, False]])}
    >>> soup(members, masks=masks, fallback={"a": jnp.array([9.0, 9.0, 9.0])})["a"].tolist()
    [2.0, 2.0, 9.0]

    Reference: Wortsman et al. 2022, "Model soups" (arXiv:2203.05482); Zimmer et al. 2023, "Sparse Model Soups"
    (arXiv:2306.16788).
    """
    k = _members(members, "members")
    w = _weights(weights, k)
    leaves = trees.flatten(members)
    for path, x in leaves.items():
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(f"members hold {x.dtype} at {path!r}, which has no mean; leave it out of the soup")
    if masks is not None:
        masks = trees.align(masks, members, "masks", "members")
        if _members(masks, "masks", boolean=True) != k:
            raise ValueError(f"masks lead with {_members(masks, 'masks')}, members with {k}")
        for path, m, x in zip(leaves, jax.tree.leaves(masks), leaves.values(), strict=True):
            if m.ndim > x.ndim or any(a not in (1, b) for a, b in zip(m.shape[:0:-1], x.shape[:0:-1], strict=False)):
                raise ValueError(f"the mask of {path!r}, shape {m.shape}, does not broadcast to {x.shape}")
    if fallback is not None:
        fallback = trees.align(fallback, members, "fallback", "members")
        for path, f, x in zip(leaves, jax.tree.leaves(fallback), leaves.values(), strict=True):
            if jnp.shape(f) != x.shape[1:]:
                raise ValueError(f"fallback has shape {jnp.shape(f)} at {path!r}, but members have {x.shape[1:]}")
    return _soup(members, masks, w, fallback)
