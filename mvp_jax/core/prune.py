r"""Exact selection: which `k` of `n` entries to keep, over leaves, trees, outputs, runs and blocks.

Asked to keep `k` of `n`, every selector keeps exactly `k`: the highest scores, ties to the lower flat index (that of
`jax.tree.leaves`, row-major within a leaf). `nan` ranks lowest, `-0.0` equals `0.0`, denormals differ from zero. `k`
is a traced count, so one compilation serves a whole schedule, and under `jax.vmap` every member may have its own.
Scores are compared in float32, or in float64 if any of them are.

Scores that are sharded over a mesh of devices stay where they are: devices exchange counts, and masks are sharded as
the scores. A tree may have any number of entries, a leaf fewer than 2^32; a count of 2^31 or more is a Python integer,
or where it is traced `counts.Words`.

The result is a subset of `within`: what is not eligible is `False`. Parameters that are never pruned get their `True`
back from `masks.exempt`. Any pytree of arrays will do, so the same functions select weights and units.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax.core import allocation, counts, layouts, precision, topk, trees
from mvp_jax.core.topk import TopkMethod
from mvp_jax.core.types import Array, Masks, PyTree, Scores

keep_count = allocation.keep_count
keep_counts = allocation.keep_counts
uniform = allocation.uniform
erdos_renyi_kernel = allocation.erdos_renyi_kernel


@jax.jit
def count_nonfinite(scores: Scores) -> Array:
    """How many scores are `nan` or infinite, for a caller who wants to refuse them.

    >>> int(count_nonfinite({"a": jnp.array([1.0, jnp.nan, -jnp.inf])}))
    2
    """
    found = counts.total([counts.true(~jnp.isfinite(x)) for x in jax.tree.leaves(scores)])
    return counts.single(found).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("segments", "method"))
def _highest(
    scores: list, within: list, ties: list | None, keep: Any, *, segments: tuple[int, ...], method: TopkMethod
) -> tuple[list, counts.Words]:
    """Masks, and how many entries of each segment are eligible."""
    asked = keep if isinstance(keep, counts.Words) else counts.words(jnp.maximum(keep, 0))
    return topk.highest(scores, within, ties, asked, segments, method)


def by_leaf(
    scores: Scores,
    keep: PyTree,
    *,
    within: Masks | None = None,
    tie_break: Scores | None = None,
    method: TopkMethod = "auto",
) -> Masks:
    """Keeps exactly `keep` entries of every leaf.

    Args:
        scores: real numbers, higher = keep; any pytree (weights, or units by group).
        keep: int32[] for every leaf, or a tree of them with the structure of `scores`; traced. An impossible count
            raises where values are known, and is clamped to what is eligible where they are traced.
        within: booleans that broadcast to the scores; `False` = not eligible. A Python `False` (`trees.select` gives
            these) leaves the whole leaf out at no cost.
        tie_break: second scores, for entries that are equal in the first; the lower flat index decides last.
        method: how the threshold is found, `sampling`, `bisection` or `auto` (by size and platform; see
            `topk.highest`); the results do not differ.

    Returns:
        Masks of the scores' shapes (a scalar `False` for leaves left out), a subset of `within`.

    Raises:
        ValueError: if structures or shapes differ, or for a count that is impossible or not an integer.

    >>> scores = {"conv": jnp.array([3.0, 1.0, 2.0]), "fc": jnp.array([5.0, 5.0])}
    >>> {k: m.tolist() for k, m in by_leaf(scores, {"conv": 2, "fc": 1}).items()}
    {'conv': [True, False, True], 'fc': [True, False]}
    """
    entries = allocation.Entries(scores, within, tie_break)
    asked = [allocation.as_count(k) for k in entries.per_leaf(keep, "keep")]
    for i, k, n in zip(entries.used, asked, entries.sizes(), strict=True):
        if n is not None:
            allocation.check_count(k, n, f" for {entries.names[i]!r}")
    some, within_leaves, ties = entries.some()
    each = tuple(range(len(asked)))
    selected, eligible = _highest(some, within_leaves, ties, allocation.stacked(asked), segments=each, method=method)
    if allocation.concrete(asked, eligible) and any(w is not None for w in within_leaves):
        host = jax.tree.map(np.asarray, eligible)
        for leaf, (i, k) in enumerate(zip(entries.used, asked, strict=True)):
            allocation.check_count(k, jax.tree.map(lambda n, j=leaf: n[j], host), f" for {entries.names[i]!r}")
    return entries.masks(selected)


def across_tree(
    scores: Scores,
    keep: Any,
    *,
    within: Masks | None = None,
    tie_break: Scores | None = None,
    method: TopkMethod = "auto",
) -> Masks:
    """Keeps exactly `keep` entries of the whole tree: one global threshold.

    Args:
        scores: real numbers, higher = keep; any pytree.
        keep: int32[], traced; `counts.Words` for 2^31 and more.
        within: as in `by_leaf`.
        tie_break: as in `by_leaf`.
        method: as in `by_leaf`.

    Returns:
        Masks of the scores' shapes (a scalar `False` for leaves left out), a subset of `within`.

    Raises:
        ValueError: as `by_leaf`.

    >>> m = across_tree({"a": jnp.array([1.0, 9.0]), "b": jnp.array([9.0, 9.0])}, 2)
    >>> {k: v.tolist() for k, v in m.items()}
    {'a': [False, True], 'b': [True, False]}
    """
    entries = allocation.Entries(scores, within, tie_break)
    count = allocation.as_count(keep)
    known = entries.sizes()
    sizes = [n for n in known if n is not None]
    if len(sizes) == len(known):
        allocation.check_count(count, sum(sizes))
    some, within_leaves, ties = entries.some()
    whole = (0,) * len(some)
    selected, eligible = _highest(some, within_leaves, ties, allocation.stacked([count]), segments=whole, method=method)
    if len(sizes) != len(known):
        allocation.check_count(count, jax.tree.map(lambda n: n[0], eligible) if some else 0)
    return entries.masks(selected)


@functools.partial(jax.jit, static_argnames="axes")
def _slices(x: Array, w: Any, tie: Any, keep: Array, *, axes: tuple[int, ...]) -> tuple[Array, Array]:
    key = topk.order(jnp.asarray(x), w)
    tie_key = None if tie is None else topk.order(jnp.asarray(tie), w)
    shape = [1 if a in axes else n for a, n in enumerate(key.shape)]
    # A key of 0 is what is not eligible, and nothing else.
    eligible = jnp.sum(key > 0, axis=axes, keepdims=True, dtype=jnp.int32)
    k = jnp.broadcast_to(jnp.reshape(keep, shape) if jnp.ndim(keep) else keep, shape)
    k = jnp.clip(k, 0, eligible)
    return topk.highest_along(key, tie_key, k, axes), jnp.min(eligible)


def by_output(
    scores: Scores,
    keep: PyTree,
    *,
    axis: Any = -1,
    within: Masks | None = None,
    tie_break: Scores | None = None,
) -> Masks:
    """Keeps exactly `keep` entries of every output: the scores of different outputs are never compared.

    Args:
        scores: real numbers, higher = keep; any pytree of arrays with an output axis.
        keep: int32[], or one count for every output (of the output axes' shape), or a tree of either; traced.
        axis: the output axis, or a tuple of them (heads and head dimensions), or a tree of either.
        within: as in `by_leaf`.
        tie_break: as in `by_leaf`.

    Returns:
        Masks of the scores' shapes (a scalar `False` for leaves left out), a subset of `within`.

    Raises:
        ValueError: as `by_leaf`, and for an axis that a leaf lacks.

    >>> by_output(jnp.array([[1.0, 8.0], [2.0, 7.0], [3.0, 9.0]]), 2, axis=1).tolist()
    [[False, True], [True, False], [True, True]]

    Reference: Sun et al. 2023, "A Simple and Effective Pruning Approach for Large Language Models" (arXiv:2306.11695),
    section 3, comparison groups.
    """
    entries = allocation.Entries(scores, within, tie_break)
    asked = [allocation.as_count(k, scalar=False) for k in entries.per_leaf(keep, "keep")]
    out = []
    for i, k, a in zip(entries.used, asked, _axes(axis, entries), strict=True):
        shape, where = entries.shapes[i], f" in every output of {entries.names[i]!r}"
        if not all(-len(shape) <= d < len(shape) for d in a):
            raise ValueError(f"{entries.names[i]!r}, shape {shape}, lacks the output axis {a}; name one that it has")
        outputs = {d % len(shape) for d in a}
        others = tuple(d for d in range(len(shape)) if d not in outputs)
        if jnp.ndim(k) and jnp.shape(k) != tuple(shape[d] for d in sorted(outputs)):
            raise ValueError(
                f"keep for {entries.names[i]!r} has shape {jnp.shape(k)}; give one count, or one per output"
            )
        tie = None if entries.ties is None else entries.ties[i]
        if entries.within[i] is None:
            allocation.check_count(k, math.prod(shape[d] for d in others), where)
        selected, least = _slices(entries.scores[i], entries.within[i], tie, k, axes=others)
        if entries.within[i] is not None:
            allocation.check_count(k, least, where)
        out.append(selected)
    return entries.masks(out)


def _axes(axis: Any, entries: allocation.Entries) -> list[tuple[int, ...]]:
    def one(a: Any) -> bool:
        return isinstance(a, int) or (type(a) is tuple and all(isinstance(d, int) for d in a))

    if one(axis):
        found = [axis] * len(entries.names)
    else:
        found, structure = jax.tree.flatten(axis, is_leaf=one)
        if not all(map(one, found)):
            raise ValueError(f"axis is {axis!r}; give an integer, a tuple of them, or a tree of either like the scores")
        places = trees.align(
            jax.tree.unflatten(structure, range(len(found))), entries.tree(entries.names), "axis", "scores"
        )
        found = [found[i] for i in jax.tree.leaves(places)]
    return [(found[i],) if isinstance(found[i], int) else found[i] for i in entries.used]


@functools.partial(jax.jit, static_argnames=("m", "axes"))
def _runs(x: Array, w: Any, tie: Any, n: Array, *, m: int, axes: tuple[int, ...]) -> Array:
    keys = [topk.order(jnp.asarray(v), w) for v in (x, tie) if v is not None]
    first, order = axes[0], list(range(keys[0].ndim))
    if len(axes) > 1:
        # The axes beside each other and in their order, at the place of the first one.
        order = [a for a in order if a not in axes]
        first = min(first, len(order))
        order[first:first] = axes
    moved = [jnp.transpose(k, order) for k in keys]
    shape = moved[0].shape
    merged = (*shape[:first], math.prod(shape[first : first + len(axes)]), *shape[first + len(axes) :])
    runs = [layouts.split(jnp.reshape(k, merged), {first: m}) for k in moved]
    place = lax.broadcasted_iota(jnp.int32, runs[0].shape, first + 1)

    def before(j: int) -> Array:
        """Whether entry `j` of a run comes before each entry of it."""
        earlier = j < place
        for k in reversed(runs):
            other = lax.slice_in_dim(k, j, j + 1, axis=first + 1)
            earlier = (other > k) | ((other == k) & earlier)
        return earlier.astype(jnp.int32)

    rank = functools.reduce(jnp.add, [before(j) for j in range(m)])
    kept = layouts.join((rank < n) & (runs[0] > 0), {first: m}, moved[0] if len(axes) == 1 else None)
    return jnp.transpose(jnp.reshape(kept, shape), [order.index(a) for a in range(len(order))])


def n_of_m(
    scores: Scores, n: int | Array, m: int, *, axis: Any, within: Masks | None = None, tie_break: Scores | None = None
) -> Masks:
    """Keeps `n` of every `m` neighbours along an axis (2:4, 4:8 ...).

    Args:
        scores: real numbers, higher = keep; any pytree of arrays whose `axis` is a multiple of `m` long.
        n: how many stay, from 0 to `m`; traced.
        m: the length of a run; static.
        axis: along which the runs lie; or a tuple of axes that are read as one, the last running fastest (heads and
            head dimensions of a kernel that sums over both); or a tree of either. Hardware wants the axes that a
            product sums over, which `graph.contracted` finds.
        within: as in `by_leaf`; a run with fewer than `n` eligible entries keeps those it has.
        tie_break: as in `by_leaf`.

    Returns:
        Masks of the scores' shapes (a scalar `False` for leaves left out), a subset of `within`.

    Raises:
        ValueError: if a leaf's axis does not divide into runs.

    >>> n_of_m(jnp.array([4.0, 1.0, 3.0, 2.0, 5.0, 5.0, 5.0, 5.0]), 2, 4, axis=0).astype(int).tolist()
    [1, 0, 1, 0, 1, 1, 0, 0]

    Reference: Zhou et al. 2021, "Learning N:M Fine-grained Structured Sparse Neural Networks" (arXiv:2102.04010).
    """
    if m < 1 or (allocation.concrete(n) and not 0 <= n <= m):
        raise ValueError(f"{n} of {m} is impossible; n goes from 0 to m, and m is at least 1")
    entries = allocation.Entries(scores, within, tie_break)
    along = dict(zip(entries.used, _axes(axis, entries), strict=True))
    for i, axes in along.items():
        shape = entries.shapes[i]
        known = all(-len(shape) <= a < len(shape) for a in axes) and axes
        if not known or math.prod(shape[a] for a in axes) % m:
            raise ValueError(
                f"axis {axes[0] if len(axes) == 1 else axes} of {entries.names[i]!r}, shape {shape}, does not divide "
                f"into runs of {m}; leave the leaf out by `within`, or choose another axis or m"
            )
        axes = tuple(a % len(shape) for a in axes)
        # Runs that fit into the last axis do not pass its end, so the others need not be joined to it.
        along[i] = axes[-1:] if shape[axes[-1]] % m == 0 else axes
    ties = entries.ties or [None] * len(entries.names)
    count = allocation.as_count(n)
    return entries.masks(
        [_runs(entries.scores[i], entries.within[i], ties[i], count, m=m, axes=along[i]) for i in entries.used]
    )


def _block_axes(ndim: int, block: tuple[int, ...]) -> tuple[dict[int, int], tuple[int, ...]]:
    """The lengths of blocks by axis, and once these axes are split the axes inside of blocks."""
    lead = ndim - len(block)
    return {lead + i: b for i, b in enumerate(block)}, tuple(lead + 2 * i + 1 for i in range(len(block)))


@functools.partial(jax.jit, static_argnames="block")
def _block_sums(x: Any, *, block: tuple[int, ...]) -> Array:
    x = jnp.asarray(x)
    runs, inner = _block_axes(x.ndim, block)
    return jnp.sum(layouts.split(precision.widen(x), runs), axis=inner)


@functools.partial(jax.jit, static_argnames="block")
def _block_all(w: Array, *, block: tuple[int, ...]) -> Array:
    runs, inner = _block_axes(w.ndim, block)
    return jnp.all(layouts.split(w, runs), axis=inner)


@functools.partial(jax.jit, static_argnames="block")
def _block_widen(m: Array, like: Any, *, block: tuple[int, ...]) -> Array:
    return layouts.widen(m, _block_axes(m.ndim, block)[0], like)


def by_block(
    scores: Scores,
    keep: PyTree,
    *,
    block: tuple[int, ...],
    within: Masks | None = None,
    tie_break: Scores | None = None,
    method: TopkMethod = "auto",
) -> Masks:
    """Keeps exactly `keep` whole blocks of every leaf, those with the highest sum of scores.

    Args:
        scores: real numbers, higher = keep; any pytree of arrays.
        keep: how many blocks stay: int32[] for every leaf, or a tree of them; traced.
        block: the block's lengths along the last axes; 1 along the others. Each divides its axis.
        within: as in `by_leaf`; a block is eligible if all its entries are.
        tie_break: as in `by_leaf`, summed over each block.
        method: as in `by_leaf`.

    Returns:
        Masks of the scores' shapes (a scalar `False` for leaves left out), a subset of `within`.

    Raises:
        ValueError: as `by_leaf`, and if blocks do not divide a leaf.

    >>> by_block(jnp.arange(8.0).reshape(2, 4), 1, block=(2, 2)).astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]

    Reference: Narang et al. 2017, "Block-Sparse Recurrent Neural Networks" (arXiv:1711.02782).
    """
    entries = allocation.Entries(scores, within, tie_break)
    for i in entries.used:
        tail = entries.shapes[i][len(entries.shapes[i]) - len(block) :]
        if min(block, default=0) < 1 or len(tail) != len(block) or any(d % b for d, b in zip(tail, block, strict=True)):
            raise ValueError(f"blocks {block} do not divide {entries.names[i]!r}, shape {entries.shapes[i]}")

    def some(i: int) -> Any:
        w = entries.within[i]
        if w is None or w is False:
            return w is None
        return _block_all(jnp.broadcast_to(w, entries.shapes[i]), block=block)

    def total(x: Any) -> Array:
        return _block_sums(x, block=block)

    used = set(entries.used)
    small = entries.tree([total(x) if i in used else x for i, x in enumerate(entries.scores)])
    ties = entries.ties and entries.tree([total(x) if i in used else x for i, x in enumerate(entries.ties)])
    eligible = entries.tree([some(i) for i in range(len(entries.names))])
    chosen = by_leaf(small, keep, within=eligible, tie_break=ties, method=method)

    picked = jax.tree.leaves(chosen)
    return entries.masks([_block_widen(picked[i], entries.scores[i], block=block) for i in entries.used])
