"""The numbers that scores are computed with: at least float32, whatever the weights are stored in.

In float16 squares overflow from 256 and vanish below 1.7e-4, long sums of bfloat16 numbers tie, and -128 has no
magnitude in int8. Scores therefore convert every operand before they take a magnitude, a square, a product or a sum.
"""

from typing import Any

import jax
import jax.numpy as jnp

from mvp_jax.core.types import Array, PyTree

_WIDE = tuple(map(jnp.dtype, ("float32", "float64", "complex64", "complex128")))


def widen(x: Any) -> Array:
    """An array as numbers that scores can be computed with.

    Args:
        x: an array of any shape: floats, integers or booleans of any width; complex numbers stay as they are.

    Returns:
        float32 of the same shape; float64 if `x` is float64, which exists only under `jax_enable_x64`.

    >>> jnp.abs(widen(jnp.array([-128], jnp.int8))).tolist(), widen(jnp.ones(2, jnp.bfloat16)).dtype
    ([128.0], dtype('float32'))
    """
    x = jnp.asarray(x)
    # An array that is wide already keeps its weak type too: a Python number widens nothing that it is multiplied with.
    return x if x.dtype in _WIDE else x.astype(jnp.float32)


def widen_all(tree: PyTree) -> PyTree:
    """A tree of arrays as numbers that scores can be computed with: float32, float64 arrays as they are.

    >>> widen_all({"w": jnp.array([1, 2], jnp.int8)})["w"].tolist()
    [1.0, 2.0]
    """
    return jax.tree.map(widen, tree)


def widest(tree: PyTree) -> jnp.dtype:
    """The real dtype that holds the scores of a tree of arrays: float64 if one of them is float64, float32 otherwise.

    >>> widest({"w": jnp.ones(2, jnp.float16)})
    dtype('float32')
    """
    double = any(jnp.result_type(leaf) == jnp.float64 for leaf in jax.tree.leaves(tree))
    return jnp.dtype(jnp.float64 if double else jnp.float32)


__all__ = ["widen", "widen_all", "widest"]
