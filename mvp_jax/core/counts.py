"""Exact counts of entries, also where there are more than 2^31 of them, which int32 cannot hold.

JAX has no 64-bit integers unless they are switched on, so a large count is two words of 32 bits. Counts up to 2^47 can
be held. Everything works under `jit`, `vmap` and sharding.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core.types import Array

INT32_MAX = (1 << 31) - 1
"""The largest count that int32 holds."""

_BITS = 16
_LOW = np.uint32((1 << _BITS) - 1)
LARGEST_SUM = (1 << 32) - 1
"""How many entries a sum in uint32 can count."""


class Words(NamedTuple):
    """A count of entries, `high · 2^16 + low`. Arrays of counts have arrays of words.

    Attributes:
        high: uint32.
        low: uint32, below 2^16.
    """

    high: Array
    low: Array


Count: TypeAlias = Array | Words
"""How many entries: an array of integers where int32 suffices, else words."""

_C = TypeVar("_C", Array, Words, Count)


def words(n: Any) -> Words:
    """A count as two words.

    Args:
        n: a Python integer, an array of integers that are not negative, or words.

    Returns:
        The words, of NumPy for a number or NumPy array, else of JAX.

    Raises:
        ValueError: for a count that is known and is negative, or 2^47 or more.

    >>> words(70_000)
    Words(high=np.uint32(1), low=np.uint32(4464))
    """
    if isinstance(n, Words):
        return n
    if isinstance(n, jax.Array):
        n = n.astype(jnp.uint32) if n.dtype.itemsize <= 4 else n
        return Words((n >> _BITS).astype(jnp.uint32), (n & int(_LOW)).astype(jnp.uint32))
    n = np.asarray(n, np.int64)
    if (n < 0).any() or (n >> 47).any():
        raise ValueError(f"a count is {n.tolist()}; counts go from 0 to 2^47 - 1")
    return Words((n >> _BITS).astype(np.uint32), (n & int(_LOW)).astype(np.uint32))


def total(parts: Sequence[Words]) -> Words:
    """The sum of some counts, fewer than 2^16 of them.

    >>> host(total([words(3_000_000_000)] * 2))
    6000000000
    """
    high, low = (functools.reduce(jnp.add, [p[i] for p in parts], jnp.uint32(0)) for i in (0, 1))
    return Words(high + (low >> _BITS), low & _LOW)


def minus(a: _C, b: _C) -> _C:
    """The difference of two counts of one form, of which the second is not larger."""
    if isinstance(a, Words) and isinstance(b, Words):
        borrow = (a.low < b.low).astype(jnp.uint32)
        return Words(a.high - b.high - borrow, (a.low + (borrow << _BITS)) - b.low)
    return a - b  # type: ignore[operator]


def at_least(a: _C, b: _C) -> Array:
    """Whether `a ≥ b`, for two counts of one form."""
    if isinstance(a, Words) and isinstance(b, Words):
        return (a.high > b.high) | ((a.high == b.high) & (a.low >= b.low))
    return jnp.asarray(a >= b)  # type: ignore[operator]


def where(condition: Array, a: _C, b: _C) -> _C:
    """One of two counts of one form."""
    chosen: _C = jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)
    return chosen


def least(a: _C, b: _C) -> _C:
    """The smaller of two counts of one form."""
    return where(at_least(b, a), a, b)


def small(like: _C, n: int) -> _C:
    """A number below 2^16 in the form and shape of a count."""
    if isinstance(like, Words):
        return Words(jnp.zeros_like(like.high), jnp.full_like(like.low, n))
    return jnp.full_like(like, n)


def int32(a: Count) -> Array:
    """A count below 2^31 as int32."""
    return single(a).astype(jnp.int32) if isinstance(a, Words) else a


def times(a: Words, n: Any) -> Words:
    """A count multiplied by a Python integer, or counts by as many of them (a list or a NumPy array)."""
    # Four products of 16 bits each; whatever passes 2^47 cannot be held anyway.
    high, low = words(n)
    carry = a.low * low
    middle = a.high * low + a.low * high + ((a.high * high) << _BITS)
    return Words(middle + (carry >> _BITS), carry & _LOW)


def number(a: Words) -> Array:
    """A count as float32, the nearest one: for shares and ratios."""
    return a.high.astype(jnp.float32) * np.float32(1 << _BITS) + a.low.astype(jnp.float32)


def single(a: Words) -> Array:
    """A count below 2^32 as uint32."""
    return (a.high << _BITS) | a.low


def host(a: Words) -> int:
    """A count as a Python integer, on the host."""
    return (int(a.high) << _BITS) + int(a.low)


def true(mask: Array) -> Words:
    """How many entries of a mask are `True`; the mask may be of any size and sharding.

    >>> host(true(jnp.array([True, False, True])))
    2
    """
    if mask.size <= LARGEST_SUM:
        return words(jnp.sum(mask, dtype=jnp.uint32))
    axis = max(range(mask.ndim), key=lambda a: mask.shape[a])
    halves = jnp.split(mask, [mask.shape[axis] // 2], axis=axis)
    return total([true(h) for h in halves])


def by_segment(found: Words, segments: Sequence[int]) -> Words:
    """The sums of counts that belong together.

    Args:
        found: counts of the shape `[parts]`.
        segments: the segment of each part, counted from 0 without gaps, in order.

    Returns:
        Counts of the shape `[segments]`.

    >>> sums = by_segment(words(jnp.array([1, 2, 3])), (0, 0, 1))
    >>> single(sums).tolist()
    [3, 3]
    """
    ends = np.searchsorted(segments, np.arange(max(segments) + 1), side="right")
    if len(ends) == len(segments):
        return found
    starts = [0, *ends[:-1]]
    high, low = (
        jnp.stack([jnp.sum(x[a:b], dtype=jnp.uint32) for a, b in zip(starts, ends, strict=True)]) for x in found
    )
    return Words(high + (low >> _BITS), low & _LOW)


def times_of(shape: Sequence[int], full: Sequence[int]) -> int:
    """How many entries of the shape `full` each entry of a mask of shape `shape` stands for.

    >>> times_of((1, 3), (5, 3))
    5
    """
    return math.prod(full) // max(math.prod(shape), 1)
