"""Masks: boolean pytrees with the structure of the parameters, `True` = keep.

Every leaf broadcasts to its parameter: a scalar `True` where nothing is ever pruned, `(1, 1, 1, C)` for whole filters.
Counting functions weigh a leaf by the entries it stands for if they are given the parameters. All of it serves unit
masks (`{group: bool[C]}`) as well.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import trees
from mvp_jax.core.types import Array, Masks, Params, PyTree


def check(masks: Masks, params: Params) -> None:
    """Raises `ValueError` unless `masks` is made of booleans that broadcast to `params`, leaf by leaf.

    >>> check({"a": jnp.ones((1, 2), bool)}, {"a": jnp.zeros((3, 4))})
    Traceback (most recent call last):
    ...
    ValueError: mask 'a' has shape (1, 2), which does not broadcast to its parameter's (3, 4)
    """
    trees.check_same_structure(params, masks, "params", "masks")
    for (path, m), p in zip(trees.flatten(masks).items(), jax.tree.leaves(params), strict=True):
        dtype = jnp.result_type(m)
        if not jnp.issubdtype(dtype, jnp.bool_):
            raise ValueError(
                f"mask {path!r} is {dtype}, but masks are booleans, True = keep; compare scores to get one"
            )
        if not _broadcasts(jnp.shape(m), jnp.shape(p)):
            raise ValueError(
                f"mask {path!r} has shape {jnp.shape(m)}, which does not broadcast to its parameter's {jnp.shape(p)}"
            )


def _broadcasts(small: Sequence[int], large: Sequence[int]) -> bool:
    try:
        return jnp.broadcast_shapes(tuple(small), tuple(large)) == tuple(large)
    except ValueError:
        return False


def ones(params: Params, prunable: PyTree | trees.PathRules | None = None) -> Masks:
    """Masks that keep everything.

    Args:
        params: arrays or their shapes.
        prunable: which leaves get a mask of their full shape, as rules over paths or as a tree of booleans; the others
            get a scalar `True`. By default all do.

    Returns:
        Masks of `params`.

    >>> jax.tree.map(jnp.shape, ones({"bias": jnp.zeros(2), "kernel": jnp.zeros((3, 2))}, [".*kernel"]))
    {'bias': (), 'kernel': (3, 2)}
    """
    if prunable is None:
        return jax.tree.map(lambda p: jnp.ones(jnp.shape(p), bool), params)
    chosen = trees.select(params, prunable) if _are_rules(prunable) else prunable
    return jax.tree.map(lambda p, c: jnp.ones(jnp.shape(p) if c else (), bool), params, chosen)


def _are_rules(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and all(isinstance(r[0] if isinstance(r, tuple) else r, str) for r in x)


def exempt(masks: Masks, prunable: PyTree) -> Masks:
    """Gives what is never pruned its `True` back: `m ∨ ¬prunable`.

    Selectors return subsets of `within`; the same tree turns their result into masks of all parameters.

    Args:
        masks: the result of a selector.
        prunable: `trees.select(params, rules)`, or masks.

    Returns:
        Masks; a scalar `True` for a leaf whose `prunable` is a Python `False`.

    >>> exempt({"kernel": jnp.array([True, False]), "bias": jnp.array(False)}, {"kernel": True, "bias": False})
    {'bias': Array(True, dtype=bool), 'kernel': Array([ True, False], dtype=bool)}
    """
    trees.check_same_structure(masks, prunable, "masks", "prunable")

    def one(m: Array, p: Any) -> Array:
        if isinstance(p, (bool, np.bool_)):
            return m if p else jnp.ones((), bool)
        return m | ~p

    return jax.tree.map(one, masks, prunable)


@jax.jit
def _apply(params: Params, masks: Masks) -> Params:
    return jax.tree.map(lambda p, m: jnp.where(m, p, jnp.zeros((), jnp.result_type(p))), params, masks)


def apply(params: Params, masks: Masks) -> Params:
    """Zeroes what is pruned, by `where`: a pruned `inf` or `nan` is gone too.

    The gradient with respect to the result is dense; with respect to `params` it is masked.

    Args:
        params: any pytree of arrays.
        masks: of the same structure.

    Returns:
        Parameters of the same shapes and dtypes.

    Raises:
        ValueError: if structures or shapes differ.

    >>> apply({"a": jnp.array([jnp.inf, 2.0])}, {"a": jnp.array([False, True])})["a"].tolist()
    [0.0, 2.0]
    """
    check(masks, params)
    return _apply(params, masks)


@jax.jit
def invert(masks: Masks) -> Masks:
    """Masks that keep exactly what `masks` remove."""
    return jax.tree.map(jnp.logical_not, masks)


def intersect(*masks: Masks) -> Masks:
    """Keeps what all keep; shapes broadcast.

    >>> intersect({"a": jnp.array([True, True])}, {"a": jnp.array([True, False])})["a"].tolist()
    [True, False]
    """
    return _combine(jnp.logical_and, *masks)


def union(*masks: Masks) -> Masks:
    """Keeps what any keeps; shapes broadcast.

    >>> union({"a": jnp.array([False, True])}, {"a": jnp.array([False, False])})["a"].tolist()
    [False, True]
    """
    return _combine(jnp.logical_or, *masks)


@functools.partial(jax.jit, static_argnums=0)
def _combine(how: Any, *masks: Masks) -> Masks:
    if not masks:
        raise ValueError("no masks given; give at least one")
    for i, other in enumerate(masks):
        trees.check_same_structure(masks[0], other, "masks 0", f"masks {i}")
    return jax.tree.map(lambda *leaves: functools.reduce(how, leaves), *masks)


def _times(shape: Sequence[int], full: Sequence[int]) -> int:
    """How many entries of the full shape every entry of a mask stands for."""
    if not _broadcasts(shape, full):
        raise ValueError(f"a mask of shape {tuple(shape)} does not broadcast to its parameter's shape {tuple(full)}")
    return math.prod(full) // max(math.prod(shape), 1)


def _shapes(masks: Masks, params: Params | None) -> PyTree:
    """The shapes entries are counted in, static."""
    if params is None:
        params = masks
    trees.check_same_structure(params, masks, "params", "masks")
    return tuple(tuple(jnp.shape(p)) for p in jax.tree.leaves(params))


@functools.partial(jax.jit, static_argnames="shapes")
def _kept(masks: Masks, *, shapes: Sequence[tuple[int, ...]]) -> list[Array]:
    leaves = zip(jax.tree.leaves(masks), shapes, strict=True)
    return [jnp.sum(m, dtype=jnp.int32) * np.int32(_times(jnp.shape(m), s)) for m, s in leaves]


def _total(counts: Sequence[Array]) -> Array:
    return functools.reduce(jnp.add, counts, jnp.int32(0))


def count(masks: Masks, params: Params | None = None) -> Array:
    """How many entries are kept: int32[].

    Args:
        masks: any masks.
        params: if given, entries of the parameters are counted, else entries of the masks.

    >>> masks = {"a": jnp.array([[True], [False]])}
    >>> int(count(masks)), int(count(masks, {"a": jnp.zeros((2, 5))}))
    (1, 5)
    """
    return _total(_kept(masks, shapes=_shapes(masks, params)))


def sparsity(masks: Masks, params: Params | None = None) -> Array:
    """The share of entries that are removed: float32[] in [0, 1].

    Args:
        masks: any masks.
        params: if given, entries of the parameters are counted, else entries of the masks.


    >>> masks = {"a": jnp.array([True, False]), "b": jnp.array(True)}
    >>> float(sparsity(masks, {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}))
    0.375
    """
    shapes = _shapes(masks, params)
    entries = sum(math.prod(s) for s in shapes)
    pruned = np.int32(entries) - _total(_kept(masks, shapes=shapes))
    return pruned.astype(jnp.float32) / np.float32(max(entries, 1))


@functools.partial(jax.jit, static_argnames="shapes")
def _pairs(a: Masks, b: Masks, *, shapes: Sequence[tuple[int, ...]]) -> list[tuple[Array, Array, Array, Array]]:
    """Of each leaf: entries in both, in any, in a, in b."""

    def one(x: Array, y: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
        x, y = jnp.broadcast_arrays(x, y)
        times = np.int32(_times(x.shape, jnp.broadcast_shapes(shape, x.shape)))
        parts = (x & y, x | y, x, y)
        both, any_, in_x, in_y = (jnp.sum(p, dtype=jnp.int32) * times for p in parts)
        return both, any_, in_x, in_y

    return [one(x, y, s) for x, y, s in zip(jax.tree.leaves(a), jax.tree.leaves(b), shapes, strict=True)]


def _compare(a: Masks, b: Masks, params: Params | None) -> list[tuple[Array, Array, Array, Array]]:
    trees.check_same_structure(a, b, "the first masks", "the second masks")
    return _pairs(a, b, shapes=_shapes(a, params))


def _ratio(part: Array, whole: Array) -> Array:
    return jnp.where(whole > 0, part / jnp.maximum(whole, 1), 1).astype(jnp.float32)


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
    pairs = _compare(a, b, None)
    return jax.tree.unflatten(jax.tree.structure(a), [_ratio(both, either) for both, either, _, _ in pairs])


def overlap(a: Masks, b: Masks, params: Params | None = None) -> Array:
    """Intersection over union of the kept sets over all leaves together: float32[].

    Args:
        a: masks.
        b: masks of the same structure; shapes broadcast.
        params: if given, every leaf weighs as many entries as its parameter has.

    >>> a = {"k": jnp.array([True, True]), "n": jnp.array(True)}
    >>> b = {"k": jnp.array([True, False]), "n": jnp.array(True)}
    >>> float(overlap(a, b, {"k": jnp.ones((5, 2)), "n": jnp.ones(10)}))
    0.75
    """
    pairs = _compare(a, b, params)
    return _ratio(_total([p[0] for p in pairs]), _total([p[1] for p in pairs]))


def cosine(a: Masks, b: Masks, params: Params | None = None) -> Array:
    """The cosine of the angle between two masks read as vectors of 0 and 1: `|A ∩ B| / sqrt(|A| |B|)`.

    Args:
        a: masks.
        b: masks of the same structure; shapes broadcast.
        params: if given, every leaf weighs as many entries as its parameter has.

    Returns:
        float32[] in [0, 1]: 0 if just one keeps nothing, 1 if neither keeps anything.

    >>> float(cosine({"a": jnp.array([True, True, True, True])}, {"a": jnp.array([True, False, False, False])}))
    0.5

    Reference: Jaiswal et al. 2023, "Instant Soup" (arXiv:2306.10460), similarity of masks.
    """
    pairs = _compare(a, b, params)
    both, left, right = (_total([p[i] for p in pairs]) for i in (0, 2, 3))
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
    pairs = _compare(a, b, None)
    return jax.tree.unflatten(jax.tree.structure(a), [_cosine(both, x, y) for both, _, x, y in pairs])


def _cosine(both: Array, left: Array, right: Array) -> Array:
    both, left, right = (n.astype(jnp.float32) for n in (both, left, right))
    none = (left == 0) & (right == 0)
    return jnp.where(none, 1, both / jnp.maximum(jnp.sqrt(left * right), 1)).astype(jnp.float32)


@jax.jit
def pack(masks: Masks) -> PyTree:
    """Masks as bits, eight entries to a byte: uint8[ceil(size / 8)] for every leaf, the last byte filled with zeros.

    >>> pack({"a": jnp.array([True, False, True])})["a"].tolist()
    [160]
    """
    return jax.tree.map(lambda m: jnp.packbits(jnp.ravel(m)), masks)


def unpack(packed: PyTree, like: PyTree) -> Masks:
    """Masks from their packed bits: the inverse of `pack`.

    Args:
        packed: uint8 arrays.
        like: arrays (or their shapes) of the masks' own shapes, such as the masks of another entry.

    Returns:
        Masks with the shapes of `like`.

    Raises:
        ValueError: if structures differ or a leaf has not the bytes its shape needs.

    >>> unpack({"a": jnp.array([160], jnp.uint8)}, {"a": jax.ShapeDtypeStruct((3,), bool)})["a"].tolist()
    [True, False, True]
    """
    trees.check_same_structure(packed, like, "packed", "like")

    def one(path: str, bits: Array, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape)
        if bits.dtype != jnp.uint8 or bits.shape != (-(-size // 8),):
            raise ValueError(f"{path!r}: {bits.dtype}{list(bits.shape)} is not a packed mask of shape {shape}")
        return jnp.unpackbits(bits, count=size).astype(bool).reshape(shape)

    return jax.tree.map(lambda path, b, x: one(path, b, jnp.shape(x)), trees.paths(packed), packed, like)
