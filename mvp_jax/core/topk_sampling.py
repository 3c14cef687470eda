"""Selection from leaves that are joined to one array, on a CPU.

`Sampling` needs the fewest passes over the scores: a sample says where to look for the threshold. `Halving` needs 32,
but compiles faster, and is taken where a pass costs less than that.
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
from mvp_jax.core.topk_bisection import order
from mvp_jax.core.types import Array

ROW = 1024
"""How many entries a row of joined leaves has."""

_SAMPLE = 1 << 14


def _row_sums(rows: Array, term: Callable[[Array], Array]) -> Array:
    """Sums of an integer term over rows of 1,024, as 8 vectors: CPUs take four times as long to add one by one.

    The term is taken of each part, not of the whole, which XLA would first write to memory.
    """
    parts = rows.reshape(-1, 8, ROW // 8)
    return jnp.sum(functools.reduce(jnp.add, [term(parts[:, i]) for i in range(8)]), axis=1, dtype=jnp.int32)


class Sampling:
    """Finds thresholds between counts at a few guesses a pass; the guesses come from a sample and by interpolation.

    About six passes over the data in place of 32, each of them compare and sum. Bad guesses cost passes, never
    exactness: one guess a pass always halves what is left.
    """

    def __init__(self, table: "JoinedLeaves"):
        self.table = table

    def at(self, values: Array) -> Sequence[Array]:
        return [values[self.table.segments][:, None]]

    def threshold(self, keys: Sequence[Array], k: counts.Count) -> tuple[Array, counts.Count]:
        """The k-th highest key (k at least 1), or one that parts it from the next; and how many keys are higher."""
        (q,) = keys
        k = counts.int32(k)
        sample = jnp.sort(q.ravel()[self.table.sample], axis=1)
        m = sample.shape[1]
        entries = jnp.asarray(self.table.rows * ROW, jnp.int32)
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
        first = [place(rank - spread), nearest, _next(nearest), _next(place(rank + spread))]

        def parted(state: tuple[Array, ...]) -> Array:
            # Exactly k keys are at least `low`: whatever the threshold is, these are the ones.
            return (state[2] == k) & (state[0] > 0)

        def body(carry: Any) -> Any:
            # Counts take long to compile, so the first guesses are counted in the loop as well.
            state = narrow(*carry)
            return state, guess(state)

        state, _ = lax.while_loop(lambda c: jnp.any((c[0][0] < c[0][1]) & ~parted(c[0])), body, (start, first))
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

    def first(self, tied: Sequence[Array], r: counts.Count) -> Sequence[Array]:
        """For each row the index into the whole table before which the first `r` tied entries of its segment lie."""
        (rows,) = tied
        r = counts.int32(r)
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


class Halving(Sampling):
    """Finds thresholds bit by bit: 32 passes, in a program that compiles in a fourth of the time."""

    def threshold(self, keys: Sequence[Array], k: counts.Count) -> tuple[Array, counts.Count]:
        """The k-th highest key (k at least 1), and how many keys are higher."""
        (q,) = keys
        k = counts.int32(k)

        def count(how: Callable[[Array, Array], Array], value: Array) -> Array:
            (at,) = self.at(value)
            return self._total(_row_sums(q, lambda x: how(x, at).astype(jnp.int32)))

        def body(i: Array, found: Array) -> Array:
            larger = found | (jnp.uint32(1) << (31 - i).astype(jnp.uint32))
            return jnp.where(count(jnp.greater_equal, larger) >= k, larger, found)

        # Zero, with the device variance that the loop's results have inside shard_map.
        zero = (q[0, 0] & jnp.uint32(0)) + (k & 0).astype(jnp.uint32)
        found = lax.fori_loop(0, 32, body, zero)
        return found, counts.words(count(jnp.greater, found))


def _next(key: Array) -> Array:
    return jnp.where(key == ~jnp.uint32(0), key, key + 1)


class JoinedLeaves:
    """Leaves of several shapes as the rows of one array; every segment starts a row and is padded to whole rows.

    One program then serves all leaves. A program for each would run as fast, but takes half a second a leaf to compile.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], segments: Sequence[int], width: int):
        self.shapes, self.width = shapes, width
        of_leaf = np.array([math.prod(s) for s in shapes], np.int64)
        self.entries = entries = np.bincount(segments, of_leaf).astype(np.int64)
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
        # Padding comes last in its segment, so the key of nan suffices: whatever is eligible goes before it.
        parts = []
        for x, w, shape, padding in zip(scores, within, self.shapes, self.padding, strict=True):
            keys = order(jnp.asarray(x), None if w is None else jnp.broadcast_to(w, shape))
            parts.append(jnp.broadcast_to(keys, shape).ravel())
            if padding:
                parts.append(jnp.full(padding, 1, parts[-1].dtype))
        return jnp.concatenate(parts).reshape(-1, self.width)

    def eligible(self, table: Array, whole: bool) -> counts.Words:
        """How many entries of each segment are eligible: those with a key that is not 0.

        Args:
            table: what `keys` returned.
            whole: whether all entries are known to be eligible.
        """
        entries = self.rows * self.width
        if not whole:
            # Padding has the key of nan, and is not counted.
            found = jnp.sum(table > 0, axis=1, dtype=jnp.int32)
            if len(self.rows) == 1:
                found = jnp.sum(found, dtype=jnp.int32)[None]
            elif len(self.rows) < len(self.segments):
                found = jax.ops.segment_sum(found, self.segments, len(self.rows), indices_are_sorted=True)
            return counts.words(found - (entries - self.entries).astype(np.int32))
        return jax.tree.map(jnp.asarray, counts.words(self.entries))

    def split(self, table: Array) -> list[Array]:
        flat = table.ravel()
        starts = zip(self.shapes, self.starts[:-1], strict=True)
        return [lax.slice(flat, (s,), (s + math.prod(shape),)).reshape(shape) for shape, s in starts]
