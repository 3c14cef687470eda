"""How many entries masks keep, and how alike two masks are; `masks` has these functions under their names.

Counts are exact for trees of any size.
"""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import counts, trees
from mvp_jax.core.types import Array, Masks, Params, PyTree


def _times(shape: Sequence[int], full: Sequence[int]) -> int:
    """How many entries of the full shape every entry of a mask stands for."""
    if not trees.broadcasts(shape, full):
        raise ValueError(f"a mask of shape {tuple(shape)} does not broadcast to its parameter's shape {tuple(full)}")
    return counts.times_of(shape, full)


def _leaves(masks: Masks, params: Params | None) -> tuple[list[Array], tuple[tuple[int, ...], ...]]:
    """The masks to count, and the shapes in which their entries are counted.

    A scalar stands for a leaf that is never pruned. Only the parameters tell its size; without them it is left out.
    """
    if params is None:
        leaves = [m for m in jax.tree.leaves(masks) if jnp.ndim(m)]
        return leaves, tuple(jnp.shape(m) for m in leaves)
    masks = trees.align(masks, params, "masks", "params")
    return jax.tree.leaves(masks), tuple(tuple(jnp.shape(p)) for p in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnames="shapes")
def _kept(leaves: list[Array], *, shapes: Sequence[tuple[int, ...]]) -> counts.Words:
    found = [
        counts.times(counts.true(jnp.asarray(m)), _times(jnp.shape(m), s)) for m, s in zip(leaves, shapes, strict=True)
    ]
    return counts.total(found)


def count(masks: Masks, params: Params | None = None) -> Array:
    """How many entries are kept: int32[].

    Args:
        masks: any masks.
        params: arrays or shapes. If given, entries of the parameters are counted, else entries of the masks, without
            scalars, which stand for leaves that are never pruned.

    Returns:
        The exact number. Of trees with 2^31 entries or more a NumPy int64 on the host, or a traced int64 under
        `jax_enable_x64`.

    Raises:
        ValueError: if masks and parameters do not fit; for 2^31 entries or more under `jit` without 64-bit integers.

    >>> masks = {"a": jnp.array([[True], [False]])}
    >>> int(count(masks)), int(count(masks, {"a": jnp.zeros((2, 5))}))
    (1, 5)
    """
    leaves, shapes = _leaves(masks, params)
    found, entries = _kept(leaves, shapes=shapes), sum(map(math.prod, shapes))
    if entries <= counts.INT32_MAX:
        return counts.single(found).astype(jnp.int32)
    if not isinstance(found.high, jax.core.Tracer):
        return np.int64(counts.host(found))  # type: ignore[return-value]
    if jax.config.read("jax_enable_x64"):
        return (found.high.astype(jnp.int64) << 16) | found.low.astype(jnp.int64)
    raise ValueError(
        f"{entries} entries cannot be counted in int32 under jit; count them outside of jit, take masks.sparsity, or "
        "switch 64-bit integers on (jax.config.update('jax_enable_x64', True))"
    )


def sparsity(masks: Masks, params: Params | None = None) -> Array:
    """The share of entries that are removed: float32[] in [0, 1].

    Args:
        masks: any masks.
        params: arrays or shapes. If given, entries of the parameters are counted, else entries of the masks, without
            scalars, which stand for leaves that are never pruned.

    >>> masks = {"a": jnp.array([True, False]), "b": jnp.array(True)}
    >>> float(sparsity(masks, {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}))
    0.375
    """
    leaves, shapes = _leaves(masks, params)
    entries = sum(map(math.prod, shapes))
    pruned = counts.minus(counts.words(entries), _kept(leaves, shapes=shapes))
    return counts.number(pruned) / np.float32(max(entries, 1))


def summary(masks: Masks, params: Params | None = None) -> str:
    """A table of what is kept, one line a leaf: its path, shape, kept entries, all entries and sparsity.

    Args:
        masks: any masks that are not traced; for parameters with zeros, `nonzero(params)`.
        params: arrays or shapes. If given, entries of the parameters are counted, else entries of the masks.

    Returns:
        The table as text. Its last line sums up all leaves.

    >>> params = {"b": jnp.ones(2), "w": jnp.ones((2, 4))}
    >>> print(summary({"b": jnp.array(True), "w": jnp.array([[True], [False]])}, params))
    leaf   shape   kept  of  sparsity
    b      2          2   2      0.0%
    w      2x4        4   8     50.0%
    total             6  10     40.0%
    """
    like = masks if params is None else params
    aligned = trees.align(masks, like, "masks", "params")
    rows, sums = [("leaf", "shape", "kept", "of", "sparsity")], [0, 0]
    for (path, m), p in zip(trees.flatten(aligned).items(), jax.tree.leaves(like), strict=True):
        shape = jnp.shape(p)
        kept, of = int(counts.host(_kept([m], shapes=(tuple(shape),)))), math.prod(shape)
        rows.append((path, "x".join(map(str, shape)), f"{kept:,}", f"{of:,}", f"{1 - kept / max(of, 1):.1%}"))
        sums = [sums[0] + kept, sums[1] + of]
    rows.append(("total", "", f"{sums[0]:,}", f"{sums[1]:,}", f"{1 - sums[0] / max(sums[1], 1):.1%}"))
    width = [max(len(r[i]) for r in rows) for i in range(5)]
    lines = [[c.ljust(w) if i < 2 else c.rjust(w) for i, (c, w) in enumerate(zip(r, width, strict=True))] for r in rows]
    return "\n".join("  ".join(line).rstrip() for line in lines)


@functools.partial(jax.jit, static_argnames="shapes")
def _pairs(a: list[Array], b: list[Array], *, shapes: Sequence[tuple[int, ...]]) -> list[tuple[counts.Words, ...]]:
    """Of each leaf: entries in both, in any, in a, in b."""

    def one(x: Array, y: Array, shape: tuple[int, ...]) -> tuple[counts.Words, ...]:
        x, y = jnp.broadcast_arrays(x, y)
        times = _times(x.shape, jnp.broadcast_shapes(shape, x.shape))
        return tuple(counts.times(counts.true(part), times) for part in (x & y, x | y, x, y))

    return [one(x, y, s) for x, y, s in zip(a, b, shapes, strict=True)]


def _compare(a: Masks, b: Masks, params: Params | None) -> list[tuple[counts.Words, ...]]:
    """As `_pairs`, of the leaves that are counted (see `_leaves`)."""
    b = trees.align(b, a, "the second masks", "the first masks")
    if params is None:
        scalar = [jnp.ndim(x) == jnp.ndim(y) == 0 for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]
        kept = [[x for x, s in zip(jax.tree.leaves(m), scalar, strict=True) if not s] for m in (a, b)]
        return _pairs(*kept, shapes=tuple(tuple(jnp.shape(x)) for x in kept[0]))
    shapes = _leaves(a, params)[1]
    return _pairs(*(jax.tree.leaves(trees.align(m, params)) for m in (a, b)), shapes=shapes)


def _each(a: Masks, b: Masks) -> list[tuple[counts.Words, ...]]:
    """As `_pairs`, of every leaf."""
    b = trees.align(b, a, "the second masks", "the first masks")
    leaves = [jax.tree.leaves(m) for m in (a, b)]
    return _pairs(*leaves, shapes=tuple(tuple(jnp.shape(x)) for x in leaves[0]))


def _ratio(part: counts.Words, whole: counts.Words) -> Array:
    n = counts.number(whole)
    return jnp.where(n > 0, counts.number(part) / jnp.maximum(n, 1), 1).astype(jnp.float32)


def iou(a: Masks, b: Masks) -> PyTree:
    """Intersection over union of the kept sets, leaf by leaf (group by group): `|A ∩ B| / |A ∪ B|`.

    Args:
        a: masks.
        b: masks of the same structure; shapes broadcast.

    Returns:
        A tree of float32[] in [0, 1]; two empty sets are equal, 1.

    >>> round(float(iou({"fc": jnp.array([True, True, False])}, {"fc": jnp.array([True, False, True])})["fc"]), 3)
    0.333

    Reference: Zhao et al. 2023, "Meta-Vote Pruning" (arXiv:2301.11560), section 3, overlap ratio.
    """
    pairs = _each(a, b)
    return jax.tree.unflatten(jax.tree.structure(a), [_ratio(both, either) for both, either, _, _ in pairs])


def overlap(a: Masks, b: Masks, params: Params | None = None) -> Array:
    """Intersection over union of the kept sets over all leaves together: float32[].

    Args:
        a: masks.
        b: masks of the same structure; shapes broadcast.
        params: if given, every leaf weighs as many entries as its parameter has; without them, scalars in both are
            left out: they stand for leaves that are never pruned.

    >>> a = {"k": jnp.array([True, True]), "n": jnp.array(True)}
    >>> b = {"k": jnp.array([True, False]), "n": jnp.array(True)}
    >>> float(overlap(a, b, {"k": jnp.ones((5, 2)), "n": jnp.ones(10)}))
    0.75
    """
    pairs = _compare(a, b, params)
    return _ratio(*(counts.total([p[i] for p in pairs]) for i in (0, 1)))


def cosine(a: Masks, b: Masks, params: Params | None = None) -> Array:
    """The cosine of the angle between two masks read as vectors of 0 and 1: `|A ∩ B| / sqrt(|A| |B|)`.

    Args:
        a: masks.
        b: masks of the same structure; shapes broadcast.
        params: if given, every leaf weighs as many entries as its parameter has; without them, scalars in both are
            left out: they stand for leaves that are never pruned.

    Returns:
        float32[] in [0, 1]: 0 if just one keeps nothing, 1 if neither keeps anything.

    >>> float(cosine({"a": jnp.array([True, True, True, True])}, {"a": jnp.array([True, False, False, False])}))
    0.5

    Reference: Jaiswal et al. 2023, "Instant Soup" (arXiv:2306.10460), similarity of masks.
    """
    pairs = _compare(a, b, params)
    both, left, right = (counts.total([p[i] for p in pairs]) for i in (0, 2, 3))
    return _cosine(both, left, right)


def leaf_cosines(a: Masks, b: Masks) -> PyTree:
    """The cosine of the angle between two masks read as vectors of 0 and 1, leaf by leaf (group by group).

    Args:
        a: masks.
        b: masks of the same structure; shapes broadcast.

    Returns:
        A tree of float32[] in [0, 1], each as `cosine` gives it for the leaf alone.

    >>> float(leaf_cosines({"a": jnp.array([True] * 4)}, {"a": jnp.array([True, False, False, False])})["a"])
    0.5

    Reference: Jaiswal et al. 2023, "Instant Soup" (arXiv:2306.10460), similarity of masks.
    """
    return jax.tree.unflatten(jax.tree.structure(a), [_cosine(both, x, y) for both, _, x, y in _each(a, b)])


def _cosine(*parts: counts.Words) -> Array:
    """From the counts of entries in both, in the first and in the second masks."""
    both, left, right = map(counts.number, parts)
    none = (left == 0) & (right == 0)
    return jnp.where(none, 1, both / jnp.maximum(jnp.sqrt(left * right), 1)).astype(jnp.float32)
