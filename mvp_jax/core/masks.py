"""Masks: boolean pytrees with the structure of the parameters, `True` = keep.

Every leaf broadcasts to its parameter: a scalar `True` where nothing is ever pruned, `(1, 1, 1, C)` for whole filters.
Counting functions weigh a leaf by the entries it stands for if they are given the parameters. All of it serves unit
masks (`{group: bool[C]}`) as well.

Trees are matched by their paths (`trees.align`), so masks may be in other containers than the parameters: an
`nnx.State` of an optimiser's variables beside one of parameters, or a plain dict beside a Linen `FrozenDict`.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import mask_measures, trees
from mvp_jax.core.types import Array, Masks, Params, PyTree

count = mask_measures.count
sparsity = mask_measures.sparsity
summary = mask_measures.summary
iou = mask_measures.iou
overlap = mask_measures.overlap
cosine = mask_measures.cosine
leaf_cosines = mask_measures.leaf_cosines


def check(masks: Masks, params: Params) -> None:
    """Raises `ValueError` unless `masks` is made of booleans that broadcast to `params`, leaf by leaf.

    >>> check({"a": jnp.ones((1, 2), bool)}, {"a": jnp.zeros((3, 4))})
    Traceback (most recent call last):
    ...
    ValueError: mask 'a' has shape (1, 2), which does not broadcast to its parameter's (3, 4)
    """
    fitting(masks, params)


def fitting(masks: Masks, params: Params) -> Masks:
    """The masks in the containers of the parameters, after the checks of `check`.

    Args:
        masks: booleans that broadcast to the parameters, in containers of any kind.
        params: arrays or shapes.

    Returns:
        The masks with the tree structure of `params`.

    Raises:
        ValueError: as `check`.

    >>> fitting([jnp.array(True)], (jnp.zeros(2),))
    (Array(True, dtype=bool),)
    """
    masks = trees.align(masks, params, "masks", "params")
    for (path, m), p in zip(trees.flatten(masks).items(), jax.tree.leaves(params), strict=True):
        dtype = jnp.result_type(m)
        if not jnp.issubdtype(dtype, jnp.bool_):
            raise ValueError(
                f"mask {path!r} is {dtype}, but masks are booleans, True = keep; compare scores to get one"
            )
        if not trees.broadcasts(jnp.shape(m), jnp.shape(p)):
            raise ValueError(
                f"mask {path!r} has shape {jnp.shape(m)}, which does not broadcast to its parameter's {jnp.shape(p)}"
            )
    return masks


def ones(params: Params, prunable: PyTree | trees.PathRules | None = None) -> Masks:
    """Masks that keep everything.

    Args:
        params: arrays or their shapes.
        prunable: which leaves get a mask of their full shape, as rules over paths or as a tree of booleans; the others
            get a scalar `True`. By default all do.

    Returns:
        Masks of `params`, sharded as the parameters are where they have their shapes.

    >>> jax.tree.map(jnp.shape, ones({"bias": jnp.zeros(2), "kernel": jnp.zeros((3, 2))}, [".*kernel"]))
    {'bias': (), 'kernel': (3, 2)}
    """
    if prunable is None:
        return jax.tree.map(lambda p: jnp.ones_like(p, dtype=bool), params)
    chosen = trees.select(params, prunable) if _are_rules(prunable) else prunable
    chosen = trees.align(chosen, params, "prunable", "params")
    return jax.tree.map(lambda p, c: jnp.ones_like(p, dtype=bool) if c else jnp.ones((), bool), params, chosen)


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

    def one(m: Array, p: Any) -> Array:
        if isinstance(p, (bool, np.bool_)):
            return m if p else jnp.ones((), bool)
        return m | ~p

    return jax.tree.map(one, masks, trees.align(prunable, masks, "prunable", "masks"))


def eligible(masks: Masks, prunable: PyTree) -> Masks:
    """Gives what is never pruned a `False`: what a selector may choose from (`within`). The inverse of `exempt`.

    Args:
        masks: masks of all parameters, such as `exempt` returns, or as an optimiser's state holds them.
        prunable: `trees.select(params, rules)`, or masks.

    Returns:
        Masks for `within`; a Python `False`, which costs a selector nothing, for a leaf whose `prunable` is one.

    Raises:
        ValueError: if the structures differ.

    >>> eligible({"kernel": jnp.array([True, False]), "bias": jnp.array(True)}, {"kernel": True, "bias": False})
    {'bias': False, 'kernel': Array([ True, False], dtype=bool)}
    """

    def one(m: Array, p: Any) -> Any:
        if isinstance(p, (bool, np.bool_)):
            return m if p else False
        return m & p

    return jax.tree.map(one, masks, trees.align(prunable, masks, "prunable", "masks"))


def nonzero(params: Params, prunable: PyTree | trees.PathRules | None = None) -> Masks:
    """The masks of parameters that were pruned elsewhere: what is not zero is kept.

    Args:
        params: arrays, with zeros where weights were pruned.
        prunable: which leaves were pruned, as in `ones`; the others get a scalar `True`. By default all were.

    Returns:
        Masks of `params`.

    >>> nonzero({"w": jnp.array([0.0, 2.0]), "b": jnp.zeros(2)}, ["w"])
    {'b': Array(True, dtype=bool), 'w': Array([False,  True], dtype=bool)}
    """
    return jax.tree.map(lambda m, p: m & (p != 0) if m.ndim else m, ones(params, prunable), params)


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
    return _apply(params, fitting(masks, params))


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
    masks = tuple(trees.align(other, masks[0], f"masks {i}", "masks 0") for i, other in enumerate(masks))
    return jax.tree.map(lambda *leaves: functools.reduce(how, leaves), *masks)


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
    like = trees.align(like, packed, "like", "packed")

    def one(path: str, bits: Array, shape: tuple[int, ...]) -> Array:
        size = math.prod(shape)
        if bits.dtype != jnp.uint8 or bits.shape != (-(-size // 8),):
            raise ValueError(f"{path!r}: {bits.dtype}{list(bits.shape)} is not a packed mask of shape {shape}")
        return jnp.unpackbits(bits, count=size).astype(bool).reshape(shape)

    return jax.tree.map(lambda path, b, x: one(path, b, jnp.shape(x)), trees.paths(packed), packed, like)
