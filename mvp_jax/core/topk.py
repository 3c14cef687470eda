r"""The `k` highest of many scores over several arrays, exactly and without sorting: the algorithm under `prune`.

Scores become unsigned integers of the same order (a float's bits), and the k-th highest is found by counting how many
are at least as high as a guess. On accelerators, and for arrays on a mesh of devices, guesses bisect the range bit by
bit: each device compares and counts its own part, nothing but counts is exchanged, and masks are sharded as the scores
are. On one CPU a sample says where to look, and the leaves are joined so that one program counts them all. Ties fall to
the lower flat index: entries equal to the threshold are counted leaf by leaf (or in rows), and only the leaf or row in
which the count is reached is looked into.

Everything here is traced by its callers, which validate and jit. A leaf has fewer than 2^32 entries, a tree
may have more.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax.core import counts
from mvp_jax.core.counts import Words
from mvp_jax.core.types import Array

TopkMethod: TypeAlias = Literal["auto", "sampling", "bisection"]
"""How the k-th highest score is found; the results are equal, the times are not."""

# For few entries, or few a segment, 32 plain passes cost no more than a sample and its sort, and compile in half the
# time (measured on two CPU cores).
_SMALL = 1 << 17
_NARROW = 1 << 12
_BLOCK = 1024
_SAMPLE = 1 << 14
_LARGEST_LEAF = (1 << 32) - 1

Count: TypeAlias = Array | Words
"""How many entries: int32 within a slice, words over segments."""


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


def _same_precision(values: Sequence[Any]) -> list[Array]:
    """Arrays that can be compared with each other: all in float64 if any is."""
    arrays = [jnp.asarray(x) for x in values]
    return [x.astype(jnp.float64) for x in arrays] if any(x.dtype == jnp.float64 for x in arrays) else arrays


def _at_least(a: Count, b: Count) -> Array:
    return counts.at_least(a, b) if isinstance(a, Words) and isinstance(b, Words) else a >= b  # type: ignore[operator]


def _minus(a: Count, b: Count) -> Count:
    return counts.minus(a, b) if isinstance(a, Words) and isinstance(b, Words) else a - b  # type: ignore[operator]


def _where(condition: Array, a: Count, b: Count) -> Count:
    return jax.tree.map(lambda x, y: jnp.where(condition, x, y), a, b)


def _small(like: Count, n: int) -> Count:
    """A small number in the form and shape of a count."""
    if isinstance(like, Words):
        return Words(jnp.zeros_like(like.high), jnp.full_like(like.low, n))
    return jnp.full_like(like, n)


class _Slices:
    """One array, selected from within every slice along `axes`: counts keep those axes with length 1."""

    def __init__(self, axes: tuple[int, ...]):
        self.axes = axes

    def count(self, leaves: Sequence[Array]) -> Count:
        return jnp.sum(leaves[0], axis=self.axes, keepdims=True, dtype=jnp.int32)

    def at(self, values: Array) -> Sequence[Array]:
        return [values]

    def shares(self, leaves: Sequence[Array], r: Count) -> tuple["_Slices", Count]:
        """The layout in which places are searched, and how many of the first `r` entries lie in each part of it."""
        return self, r


class _Segments:
    """Many arrays, each of them in one segment: counts are words of the shape `[segments]`."""

    def __init__(self, segments: Sequence[int]):
        self.segments = segments

    def count(self, leaves: Sequence[Array]) -> Count:
        found = [counts.words(jnp.sum(x, dtype=jnp.uint32)) for x in leaves]
        if len(set(self.segments)) == len(self.segments):
            return Words(*(jnp.stack([w[i] for w in found]) for i in (0, 1)))
        parts: list[list[Words]] = [[] for _ in range(max(self.segments) + 1)]
        for s, w in zip(self.segments, found, strict=True):
            parts[s].append(w)
        sums = [counts.total(p) for p in parts]
        return Words(*(jnp.stack([w[i] for w in sums]) for i in (0, 1)))

    def at(self, values: Array) -> Sequence[Array]:
        return [values[s] for s in self.segments]

    def shares(self, leaves: Sequence[Array], r: Count) -> tuple["_Segments", Count]:
        """Each leaf as a segment of its own, and how many of the first `r` entries of its segment lie in it."""
        assert isinstance(r, Words)
        alone = _Segments(range(len(leaves)))
        here = alone.count(leaves)
        heads = np.searchsorted(self.segments, self.segments)  # the first leaf of each leaf's segment
        sums = [jnp.concatenate([jnp.zeros(1, jnp.uint32), jnp.cumsum(x, dtype=jnp.uint32)[:-1]]) for x in here]
        high, low = (x - x[heads] for x in sums)
        before = Words(high + (low >> 16), low & np.uint32(0xFFFF))
        wanted = Words(*(x[np.array(self.segments)] for x in r))
        reached = counts.at_least(wanted, before)
        left = _where(reached, counts.minus(_where(reached, wanted, before), before), _small(before, 0))
        return alone, counts.least(left, here)


class _Bisection:
    """Finds thresholds bit by bit, comparing and counting only."""

    def __init__(self, layout: _Slices | _Segments):
        self.layout, self.at, self.count = layout, layout.at, layout.count

    def threshold(self, keys: Sequence[Array], k: Count) -> tuple[Array, Count]:
        """The k-th highest key (k at least 1), and how many keys are higher."""
        at, kind = self.at, keys[0].dtype

        def compare(how: Callable[[Array, Array], Array], c: Array) -> Count:
            return self.count([how(q, x) for q, x in zip(keys, at(c), strict=True)])

        bits = kind.itemsize * 8
        t = self._largest(lambda c: _at_least(compare(jnp.greater_equal, c), k), bits, bits, kind, k)
        return t, compare(jnp.greater, t)

    def first(self, tied: Sequence[Array], r: Count) -> Sequence[Array]:
        """For each leaf the flat index before which its share of the first `r` tied entries lies."""
        layout, share = self.layout.shares(tied, r)
        places = [_index(t) for t in tied]

        def before(c: Array) -> Count:
            return layout.count([t & (i < x) for t, i, x in zip(tied, places, layout.at(c), strict=True)])

        bits = max(t.size for t in tied).bit_length()
        # Where all that are tied are taken, as almost always, there is nothing to look for.
        all_of = _at_least(share, layout.count(tied))
        steps = jnp.where(jnp.all(all_of), 0, bits)
        cut = self._largest(lambda c: _at_least(share, before(c)), bits, steps, jnp.dtype(jnp.uint32), share)
        return layout.at(jnp.where(all_of, ~jnp.uint32(0), cut))

    @staticmethod
    def _largest(fits: Callable[[Array], Array], bits: int, steps: Any, kind: Any, like: Count) -> Array:
        """The largest number of so many bits that fits, where every smaller one fits too; its `steps` highest bits."""
        zero = jnp.zeros(jnp.shape(jax.tree.leaves(like)[0]), kind)
        # Both arms are equal; inside shard_map this gives the carry the device variance that the loop's result has.
        zero = jnp.where(fits(zero), zero, zero)

        def body(i: Array, found: Array) -> Array:
            larger = found | (jnp.ones((), kind) << (bits - 1 - i).astype(kind))
            return jnp.where(fits(larger), larger, found)

        return lax.fori_loop(0, steps, body, zero)


def _row_sums(rows: Array, term: Callable[[Array], Array]) -> Array:
    """Sums of an integer term over rows of 1,024, as 32 vectors: CPUs take ten times as long to add one by one.

    The term is taken of each part, not of the whole, which XLA would first write to memory.
    """
    parts = rows.reshape(-1, 32, _BLOCK // 32)
    return jnp.sum(functools.reduce(jnp.add, [term(parts[:, i]) for i in range(32)]), axis=1, dtype=jnp.int32)


class _Sampling:
    """Finds thresholds between counts at a few guesses a pass; the guesses come from a sample and by interpolation.

    About six passes over the data in place of 32, each of them compare and sum. Bad guesses cost passes, never
    exactness: one guess a pass always halves what is left.
    """

    def __init__(self, table: "_Table"):
        self.table = table

    def at(self, values: Array) -> Sequence[Array]:
        return [values[self.table.segments][:, None]]

    def threshold(self, keys: Sequence[Array], k: Count) -> tuple[Array, Count]:
        """The k-th highest key (k at least 1), or one that parts it from the next; and how many keys are higher."""
        (q,) = keys
        k = _int32(k)
        sample = jnp.sort(q.ravel()[self.table.sample], axis=1)
        m = sample.shape[1]
        entries = jnp.asarray(self.table.rows * _BLOCK, jnp.int32)
        share = k.astype(jnp.float32) / jnp.maximum(entries, 1).astype(jnp.float32)
        # Zero, with the device variance that the loop's results have inside shard_map.
        zero = (q[0, 0] & jnp.uint32(0)) + (k & 0).astype(jnp.uint32)
        # The threshold is in low .. high; there are n_low keys from `low` up, and n_high above `high`.
        start = (zero, jnp.where(entries > 0, ~zero, zero), entries + zero.astype(jnp.int32), zero.astype(jnp.int32))

        def place(i: Array) -> Array:
            i = jnp.clip(i, 0, m - 1).astype(jnp.int32)
            return jnp.take_along_axis(sample, i[:, None], axis=1)[:, 0]

        def guess(state: tuple[Array, ...]) -> list[Array]:
            low, high, n_low, n_high = state
            # Between neighbours of the sample, or in the middle once it has none here.
            first = jnp.sum(sample <= low[:, None], axis=1, dtype=jnp.int32)
            last = jnp.sum(sample <= high[:, None], axis=1, dtype=jnp.int32) - 1
            sampled = first <= last
            middle = jnp.where(sampled, place((first + last) // 2), low + (high - low) // 2)
            # Where a straight line between the counts crosses k, give or take its error and the scatter of counts.
            width, inside = (high - low).astype(jnp.float32), (n_low - n_high).astype(jnp.float32) + 1.0
            line = (n_low - k).astype(jnp.float32) / inside
            error = 0.005 + 2.0 / jnp.sqrt(inside)
            steps = [jnp.clip(line + e, 0.0, 1.0) * width for e in (-error, 0.0, error)]
            # The largest float32 below 2^32: a greater one has no uint32.
            on_line = [low + jnp.minimum(jnp.minimum(s, 4294967040.0).astype(jnp.uint32), high - low) for s in steps]
            return [on_line[0], jnp.where(sampled, _next(middle), on_line[1]), on_line[2], middle]

        def narrow(state: tuple[Array, ...], guesses: list[Array]) -> tuple[Array, ...]:
            low, high, n_low, n_high = state
            least = jnp.where(low < high, low + 1, low)
            guesses = [jnp.clip(g, least, high) for g in guesses]
            for g, n in zip(guesses, self._counts(q, guesses), strict=True):
                up, down = (n >= k) & (g > low), (n < k) & (g <= high)
                low, n_low = jnp.where(up, g, low), jnp.where(up, n, n_low)
                high, n_high = jnp.where(down, g - 1, high), jnp.where(down, n, n_high)
            return low, high, n_low, n_high

        rank = (1.0 - share) * m
        spread = 3.0 * jnp.sqrt(m * share * (1.0 - share)) + 2.0
        nearest = place(rank)
        state = narrow(start, [place(rank - spread), nearest, _next(nearest), _next(place(rank + spread))])

        def parted(state: tuple[Array, ...]) -> Array:
            # Exactly k keys are at least `low`: whatever the threshold is, these are the ones.
            return (state[2] == k) & (state[0] > 0)

        state = lax.while_loop(lambda s: jnp.any((s[0] < s[1]) & ~parted(s)), lambda s: narrow(s, guess(s)), state)
        above = jnp.where(parted(state), k, state[3])
        return jnp.where(parted(state), state[0] - 1, state[0]), counts.words(above)

    def _counts(self, q: Array, guesses: list[Array]) -> list[Array]:
        """How many keys of each segment are at least the guess, for four guesses in one pass."""
        # Two counts, each at most 1,024, share a word.
        at = [self.at(g)[0] for g in guesses]

        def pair(a: Array, b: Array) -> Array:
            return _row_sums(q, lambda x: (x >= a).astype(jnp.int32) | ((x >= b).astype(jnp.int32) << 16))

        rows = [pair(*at[:2]), pair(*at[2:])]
        return [self._total(part) for r in rows for part in (r & 0xFFFF, r >> 16)]

    def _total(self, rows: Array) -> Array:
        if len(self.table.rows) == 1:
            return jnp.sum(rows, dtype=jnp.int32)[None]
        return jax.ops.segment_sum(rows, self.table.segments, len(self.table.rows), indices_are_sorted=True)

    def first(self, tied: Sequence[Array], r: Count) -> Sequence[Array]:
        """For each row the index into the whole table before which the first `r` tied entries of its segment lie."""
        (rows,) = tied
        r = _int32(r)
        reached = jnp.cumsum(_row_sums(rows, lambda x: x.astype(jnp.int32)), dtype=jnp.int32)
        heads = np.searchsorted(self.table.segments, np.arange(r.size))
        r_all = r + jnp.concatenate([jnp.zeros(1, jnp.int32), reached])[heads]
        # The row in which the r-th tied entry lies, and within it the entries up to that one.
        j = jnp.searchsorted(reached, r_all, method="compare_all").astype(jnp.int32)
        j = jnp.minimum(j, reached.size - 1)
        row = rows[j]
        before = (reached[j] - jnp.sum(row, axis=1, dtype=jnp.int32))[:, None]
        passed = before + jnp.cumsum(row, axis=1, dtype=jnp.int32) < r_all[:, None]
        cut = j * rows.shape[1] + jnp.sum(passed, axis=1, dtype=jnp.int32) + 1
        return self.at(jnp.where(r > 0, cut, 0))


def _int32(count: Count) -> Array:
    return counts.single(count).astype(jnp.int32) if isinstance(count, Words) else count


def _next(key: Array) -> Array:
    return jnp.where(key == ~jnp.uint32(0), key, key + 1)


class _Table:
    """Leaves of several shapes as the rows of one array; every segment starts a row and is padded to whole rows.

    One program then serves all leaves. A program for each would run as fast, but takes half a second a leaf to compile.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], segments: Sequence[int], width: int):
        self.shapes, self.width = shapes, width
        of_leaf = np.array([math.prod(s) for s in shapes], np.int64)
        entries = np.bincount(segments, of_leaf).astype(np.int64)
        self.rows = rows = -(-entries // width)
        self.segments = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        self.padding = [0] * len(shapes)
        for i, s in enumerate(segments):
            if i + 1 == len(segments) or segments[i + 1] != s:
                self.padding[i] = int(rows[s] * width - entries[s])
        self.starts = np.cumsum([0, *(of_leaf + self.padding)])
        # Places of a sample of each segment: evenly spread, with a jitter so as not to follow an array's columns.
        m = max(_SAMPLE // max(len(rows), 1), 256)
        even = (np.arange(m) + np.arange(m) * 0.6180339887498949 % 1.0) / m
        heads = np.cumsum(rows) - rows
        self.sample = ((heads[:, None] + even * rows[:, None]) * width).astype(np.int32)

    def keys(self, scores: Sequence[Any], within: Sequence[Any]) -> Array:
        # Written leaf by leaf into one buffer: joining scores first would take twice the memory, and fresh pages are
        # most of the time at tens of millions of entries. Padding comes last in its segment, so the key of nan
        # suffices: whatever is eligible goes before it.
        flat = jnp.full(int(self.starts[-1]), 1, jnp.uint32)
        for x, w, shape, start in zip(scores, within, self.shapes, self.starts[:-1], strict=True):
            keys = order(jnp.asarray(x), None if w is None else jnp.broadcast_to(w, shape))
            flat = lax.dynamic_update_slice(flat, jnp.broadcast_to(keys, shape).ravel(), (int(start),))
        # XLA's simplifier would go round in circles about slices of what is written here, and say so.
        return lax.optimization_barrier(flat).reshape(-1, self.width)

    def split(self, table: Array) -> list[Array]:
        flat = table.ravel()
        starts = zip(self.shapes, self.starts[:-1], strict=True)
        return [lax.slice(flat, (s,), (s + math.prod(shape),)).reshape(shape) for shape, s in starts]


def _take(
    find: _Bisection | _Sampling, keys: Sequence[Array], ties: Sequence[Array] | None, keep: Count
) -> list[Array]:
    """The `keep` first in the order (key, tie key, lower index); `keep` is at most the number of keys."""
    t, above = _threshold(find, keys, keep)
    sure = [q > x for q, x in zip(keys, find.at(t), strict=True)]
    tied = [q == x for q, x in zip(keys, find.at(t), strict=True)]
    rest = _minus(keep, above)
    if ties is not None:
        second = [jnp.where(e, s, jnp.zeros((), s.dtype)) for e, s in zip(tied, ties, strict=True)]
        t, above = _threshold(find, second, rest)
        sure = [m | (s > x) for m, s, x in zip(sure, second, find.at(t), strict=True)]
        tied = [e & (s == x) for e, s, x in zip(tied, second, find.at(t), strict=True)]
        rest = _minus(rest, above)
    parts = zip(sure, tied, find.first(tied, rest), strict=True)
    return [m | (e & (_index(e) < c.astype(jnp.uint32))) for m, e, c in parts]


def _threshold(find: _Bisection | _Sampling, keys: Sequence[Array], k: Count) -> tuple[Array, Count]:
    """A key, and how many are higher: at most `k`, and with those equal to it at least `k`."""
    some = _at_least(k, _small(k, 1))
    t, above = find.threshold(keys, _where(some, k, _small(k, 1)))
    # No key is as high as this one: to keep none is to look above it.
    return jnp.where(some, t, ~jnp.zeros((), t.dtype)), _where(some, above, _small(k, 0))


def _index(leaf: Array) -> Array:
    """The flat index of every entry; made axis by axis, so that it is sharded like the leaf it is compared with."""
    strides = [math.prod(leaf.shape[a + 1 :]) for a in range(leaf.ndim)]
    axes = [lax.broadcasted_iota(jnp.uint32, leaf.shape, a) * np.uint32(n) for a, n in enumerate(strides)]
    return functools.reduce(jnp.add, axes, jnp.zeros(leaf.shape, jnp.uint32))


def _is_local(values: Sequence[Any]) -> bool:
    """Whether arrays lie on one device, as far as can be known when they are traced.

    Inside `shard_map` over all axes of a mesh each device sees its own part, which is local.
    """
    meshes = [jax.sharding.get_abstract_mesh()]
    meshes += [jax.typeof(x).sharding.mesh for x in values if hasattr(jax.typeof(x), "sharding")]
    manual = jax.sharding.AxisType.Manual
    return all(m.empty or m.size == 1 or all(t == manual for t in m.axis_types) for m in meshes)


def highest(
    scores: Sequence[Any],
    within: Sequence[Any],
    ties: Sequence[Any] | None,
    keep: Words,
    segments: Sequence[int],
    method: TopkMethod = "auto",
) -> list[Array]:
    """Masks of the highest scores in every segment, a segment being one leaf or several neighbours.

    Args:
        scores: real arrays.
        within: for each a mask that broadcasts to it, or `None` if all of it is eligible.
        ties: second scores of the same shapes, for entries equal in the first; the lower flat index decides last.
        keep: a count for each segment, at most the number of eligible entries; traced.
        segments: the segment of each array, counted from 0 without gaps, in order.
        method: `sampling` and `bisection` agree to the bit; `auto` takes the faster one for size and platform. Arrays
            on a mesh, float64 and 2^31 entries or more are bisected in any case.

    Returns:
        Boolean arrays of the scores' shapes, `keep` of them `True` in each segment.

    Raises:
        ValueError: for an array of 2^32 entries or more.

    Reference:
        Selection between sampled pivots: Floyd & Rivest 1975, "Expected time bounds for selection".
    """
    scores = _same_precision(scores)
    ties = None if ties is None else _same_precision(ties)
    shapes = [jnp.shape(x) for x in scores]
    lengths = [math.prod(s) for s in shapes]
    if max(lengths, default=0) > _LARGEST_LEAF:
        raise ValueError(
            f"an array of shape {shapes[int(np.argmax(lengths))]} has {max(lengths)} entries; fewer than 2^32 of one "
            "array can be told apart: split it into several leaves"
        )
    sizes = np.bincount(segments, lengths).astype(np.int64) if shapes else np.zeros(1, np.int64)
    if sizes.max() == 0:
        return [jnp.zeros(s, bool) for s in shapes]
    single = all(x.dtype != jnp.float64 for x in (*scores, *(ties or ())))
    joinable = _is_local([*scores, *(w for w in within if w is not None), *(ties or ())]) and single
    if not joinable or sizes.sum() >= (1 << 31) - _BLOCK * len(sizes):
        method = "bisection"
    if method == "auto" and (sizes.max() < _NARROW or sizes.max() * len(sizes) < _SMALL):
        table = _Table(shapes, segments, int(sizes.max()))
        if (sizes > 0).all():
            second = None if ties is None else table.keys(ties, within)
            return table.split(highest_along(table.keys(scores, within), second, _int32(keep)[:, None], (1,)))
        method = "bisection"
    if method == "auto":
        method = "sampling" if jax.default_backend() == "cpu" else "bisection"
    return (_by_sampling if method == "sampling" else _by_bisection)(segments, scores, within, ties, keep)


def _by_bisection(
    segments: Sequence[int], scores: Sequence[Any], within: Sequence[Any], ties: Sequence[Any] | None, keep: Words
) -> list[Array]:
    keys = [order(x, w) for x, w in zip(scores, within, strict=True)]
    second = None if ties is None else [order(x, w) for x, w in zip(ties, within, strict=True)]
    return _take(_Bisection(_Segments(segments)), keys, second, keep)


def _by_sampling(
    segments: Sequence[int], scores: Sequence[Any], within: Sequence[Any], ties: Sequence[Any] | None, keep: Words
) -> list[Array]:
    table = _Table([jnp.shape(x) for x in scores], segments, _BLOCK)
    second = None if ties is None else [table.keys(ties, within)]
    return table.split(_take(_Sampling(table), [table.keys(scores, within)], second, keep)[0])


def highest_along(keys: Array, ties: Array | None, keep: Array, axes: tuple[int, ...]) -> Array:
    """Masks of the `keep` highest keys within every slice that runs along `axes`.

    Args:
        keys: unsigned, see `order`.
        ties: a second key of the same shape.
        keep: int32, of the keys' shape with length 1 along `axes`.
        axes: the axes that one slice spans.

    Returns:
        A boolean array of the keys' shape.
    """
    if keys.size == 0 or not axes:
        return jnp.broadcast_to(keep > 0, keys.shape)
    return _take(_Bisection(_Slices(axes)), [keys], None if ties is None else [ties], keep)[0]


def eligible_count(x: Any, w: Any) -> Words:
    """How many entries of a leaf are eligible: all of `x` if the mask `w` is `None`; `w` broadcasts to `x`."""
    n = math.prod(jnp.shape(x))
    if w is None:
        return Words(*map(jnp.asarray, counts.words(n)))
    return counts.times(counts.true(w), counts.times_of(jnp.shape(w), jnp.shape(x)))
