"""Selection by bisection: thresholds found bit by bit, comparing and counting only.

Each device of a mesh compares and counts its own part of sharded arrays, and nothing but counts is exchanged.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax.core import counts
from mvp_jax.core.counts import Words
from mvp_jax.core.types import Array


def order(x: Array, within: Array | None) -> Array:
    """Unsigned keys that sort as the scores `x` do: 0 where `within` is `False`, 1 for nan, more for numbers.

    Args:
        x: real numbers; float64 is compared as such, everything else in float32.
        within: booleans that broadcast to `x`; `None`: all of it is eligible.

    Returns:
        uint32, or uint64 for float64, in the shape of `x`.
    """
    double = x.dtype == jnp.float64
    kind, whole = (jnp.uint64, np.uint64) if double else (jnp.uint32, np.uint32)
    top = whole(1 << (63 if double else 31))
    infinite = whole(0x7FF0000000000000 if double else 0x7F800000)
    bits = lax.bitcast_convert_type(x if double else x.astype(jnp.float32), kind)
    bits = jnp.where(bits == top, whole(0), bits)
    # Integers, never floats, are compared: XLA flushes denormals to zero in float arithmetic.
    keys = jnp.where(bits >= top, ~bits, bits | top)
    keys = jnp.where((bits & ~top) > infinite, whole(1), keys)
    return keys if within is None else jnp.where(within, keys, whole(0))


def flat_index(leaf: Array) -> Array:
    """The flat index of every entry; made axis by axis, so that it is sharded like the leaf it is compared with."""
    strides = [math.prod(leaf.shape[a + 1 :]) for a in range(leaf.ndim)]
    axes = [lax.broadcasted_iota(jnp.uint32, leaf.shape, a) * np.uint32(n) for a, n in enumerate(strides)]
    return functools.reduce(jnp.add, axes, jnp.zeros(leaf.shape, jnp.uint32))


class Slices:
    """One array, selected from within every slice along `axes`: counts keep those axes with length 1."""

    def __init__(self, axes: tuple[int, ...]):
        self.axes = axes

    def count(self, leaves: Sequence[Array]) -> counts.Count:
        return jnp.sum(leaves[0], axis=self.axes, keepdims=True, dtype=jnp.int32)

    def at(self, values: Array) -> Sequence[Array]:
        return [values]

    def shares(self, leaves: Sequence[Array], r: counts.Count) -> tuple["Slices", counts.Count]:
        """The layout in which places are searched, and how many of the first `r` entries lie in each part of it."""
        return self, r


class Segments:
    """Many arrays, each of them in one segment: counts are words of the shape `[segments]`."""

    def __init__(self, segments: Sequence[int]):
        self.segments = segments

    def count(self, leaves: Sequence[Array]) -> counts.Count:
        each = counts.words(jnp.stack([jnp.sum(x, dtype=jnp.uint32) for x in leaves]))
        return counts.by_segment(each, self.segments)

    def at(self, values: Array) -> Sequence[Array]:
        return [values[s] for s in self.segments]

    def shares(self, leaves: Sequence[Array], r: counts.Count) -> tuple["Segments", counts.Count]:
        """Each leaf as a segment of its own, and how many of the first `r` entries of its segment lie in it."""
        alone = Segments(range(len(leaves)))
        here = alone.count(leaves)
        assert isinstance(r, Words)
        assert isinstance(here, Words)
        heads = np.searchsorted(self.segments, self.segments)  # the first leaf of each leaf's segment
        sums = [jnp.concatenate([jnp.zeros(1, jnp.uint32), jnp.cumsum(x, dtype=jnp.uint32)[:-1]]) for x in here]
        high, low = (x - x[heads] for x in sums)
        before = Words(high + (low >> 16), low & np.uint32(0xFFFF))
        wanted = Words(*(x[np.array(self.segments)] for x in r))
        left = counts.minus(counts.where(counts.at_least(wanted, before), wanted, before), before)
        return alone, counts.least(left, here)


class Bisection:
    """Finds thresholds bit by bit, comparing and counting only."""

    def __init__(self, layout: Slices | Segments):
        self.layout, self.at, self.count = layout, layout.at, layout.count

    def threshold(self, keys: Sequence[Array], k: counts.Count) -> tuple[Array, counts.Count]:
        """The k-th highest key (k at least 1), and how many keys are higher."""
        at, kind = self.at, keys[0].dtype

        def compare(how: Callable[[Array, Array], Array], c: Array) -> counts.Count:
            return self.count([how(q, x) for q, x in zip(keys, at(c), strict=True)])

        bits = kind.itemsize * 8
        t = self._largest(lambda c: counts.at_least(compare(jnp.greater_equal, c), k), bits, bits, kind, k)
        return t, compare(jnp.greater, t)

    def first(self, tied: Sequence[Array], r: counts.Count) -> Sequence[Array]:
        """For each leaf the flat index before which its share of the first `r` tied entries lies."""
        layout, share = self.layout.shares(tied, r)

        def before(c: Array) -> counts.Count:
            # The indices are made here, inside the loop, so that they are never written to memory.
            return layout.count([t & (flat_index(t) < x) for t, x in zip(tied, layout.at(c), strict=True)])

        bits = max(t.size for t in tied).bit_length()
        # Where all that are tied are taken, as almost always, there is nothing to look for.
        all_of = counts.at_least(share, layout.count(tied))
        steps = jnp.where(jnp.all(all_of), 0, bits)
        cut = self._largest(lambda c: counts.at_least(share, before(c)), bits, steps, jnp.dtype(jnp.uint32), share)
        return layout.at(jnp.where(all_of, ~jnp.uint32(0), cut))

    @staticmethod
    def _largest(fits: Callable[[Array], Array], bits: int, steps: Any, kind: Any, like: counts.Count) -> Array:
        """The largest number of so many bits that fits, where every smaller one fits too; its `steps` highest bits."""
        zero = jnp.zeros(jnp.shape(jax.tree.leaves(like)[0]), kind)
        # Both arms are equal; inside shard_map this gives the carry the device variance that the loop's result has.
        zero = jnp.where(fits(zero), zero, zero)

        def body(i: Array, found: Array) -> Array:
            larger = found | (jnp.ones((), kind) << (bits - 1 - i).astype(kind))
            return jnp.where(fits(larger), larger, found)

        return lax.fori_loop(0, steps, body, zero)
