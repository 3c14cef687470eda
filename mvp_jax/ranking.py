r"""The `k` highest of many scores over several arrays, exactly and without sorting: the algorithm under `prune`.

Scores become unsigned integers of the same order (a float's bits), and the k-th highest is found from those bits. On
CPUs by two histograms of 16 bits each; elsewhere, and for few entries, by bisection, which only compares and sums and
so also suits accelerators and sharded leaves. Ties fall to the lower flat index: entries equal to the threshold are
counted in blocks, and only the block where the count is reached is looked into.

Everything here is traced by its callers, which validate and jit. Counts are int32: at most 2^31 - 1 entries.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax import trees
from mvp_jax.types import Array, Masks, Scores

Method: TypeAlias = Literal["auto", "histogram", "bisection"]

# For few entries, or few a segment, 32 passes cost less than histograms of 65,536 bins (measured on two CPU cores).
_SMALL = 1 << 15
_NARROW = 1 << 12
_BLOCK = 1024
_MOST_SEGMENTS = 128
_TOP = np.uint32(1 << 31)


def order(x: Array, within: Array | None) -> Array:
    """Keys in the order of the scores: 0 for what is not eligible, 1 for nan, more for numbers."""
    bits = lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    bits = jnp.where(bits == _TOP, jnp.uint32(0), bits)
    # Integers, never floats, are compared: XLA flushes denormals to zero in float arithmetic.
    keys = jnp.where(bits >= _TOP, ~bits, bits | _TOP)
    keys = jnp.where((bits & ~_TOP) > np.uint32(0x7F800000), jnp.uint32(1), keys)
    return keys if within is None else jnp.where(within, keys, jnp.uint32(0))


class _Slices:
    """One array, selected from within every slice along `axes`: counts keep those axes with length 1."""

    def __init__(self, axes: tuple[int, ...]):
        self.axes = axes

    def count(self, leaves: Sequence[Array]) -> Array:
        return jnp.sum(leaves[0], axis=self.axes, keepdims=True, dtype=jnp.int32)

    def at(self, values: Array) -> Sequence[Array]:
        return [values]


class _Segments:
    """Many arrays, each of them in one segment: counts are `[segments]`."""

    def __init__(self, segments: Sequence[int]):
        self.segments = segments

    def count(self, leaves: Sequence[Array]) -> Array:
        sums: list[list[Array]] = [[] for _ in range(max(self.segments) + 1)]
        for s, x in zip(self.segments, leaves, strict=True):
            sums[s].append(jnp.sum(x, dtype=jnp.int32))
        return jnp.stack([functools.reduce(jnp.add, x) for x in sums])

    def at(self, values: Array) -> Sequence[Array]:
        return [values[s] for s in self.segments]


class _Bisection:
    """Finds thresholds bit by bit, comparing and counting only."""

    def __init__(self, layout: _Slices | _Segments):
        self.at, self.count = layout.at, layout.count

    def threshold(self, keys: Sequence[Array], k: Array) -> tuple[Array, Array]:
        """The k-th highest key (k at least 1), and how many keys are higher."""

        def compare(how: Callable[[Array, Array], Array], c: Array) -> Array:
            return self.count([how(q, x) for q, x in zip(keys, self.at(c), strict=True)])

        t = self._largest(lambda c: compare(jnp.greater_equal, c) >= k, 32, k)
        return t, compare(jnp.greater, t)

    def first(self, tied: Sequence[Array], r: Array) -> Sequence[Array]:
        """For each leaf the flat index before which its share of the first `r` tied entries lies."""
        starts = np.cumsum([0, *(t.size for t in tied)])
        places = [_index(t) + np.uint32(s) for t, s in zip(tied, starts[:-1], strict=True)]

        def before(c: Array) -> Array:
            return self.count([t & (i < x) for t, i, x in zip(tied, places, self.at(c), strict=True)])

        cut = self._largest(lambda c: before(c) <= r, int(starts[-1]).bit_length(), r)
        return [c.astype(jnp.int32) - np.int32(s) for c, s in zip(self.at(cut), starts[:-1], strict=True)]

    @staticmethod
    def _largest(fits: Callable[[Array], Array], bits: int, like: Array) -> Array:
        """The largest number of so many bits that fits, where every smaller one fits too."""
        zero = jnp.zeros(like.shape, jnp.uint32)
        # Both arms are equal; inside shard_map this gives the carry the device variance that the loop's result has.
        zero = jnp.where(fits(zero), zero, zero)

        def body(i: Array, found: Array) -> Array:
            larger = found | (jnp.uint32(1) << (bits - 1 - i).astype(jnp.uint32))
            return jnp.where(fits(larger), larger, found)

        return lax.fori_loop(0, bits, body, zero)


class _Histogram:
    """Finds thresholds from counts of the upper, then of the lower 16 bits, in a table of a few rows a segment."""

    def __init__(self, table: "_Table"):
        self.table = table

    def at(self, values: Array) -> Sequence[Array]:
        return [values[self.table.segments][:, None]]

    def threshold(self, keys: Sequence[Array], k: Array) -> tuple[Array, Array]:
        """The k-th highest key (k at least 1), and how many keys are higher."""
        (q,) = keys
        digit = (q >> 16).astype(jnp.int32)
        high, above = self._pick(digit, jnp.bool_(True), k)
        low, further = self._pick((q & np.uint32(0xFFFF)).astype(jnp.int32), digit == self.at(high)[0], k - above)
        return (high.astype(jnp.uint32) << 16) | low.astype(jnp.uint32), above + further

    def _pick(self, digit: Array, among: Array, k: Array) -> tuple[Array, Array]:
        """The digit of each segment's k-th highest entry, and how many entries have higher digits."""
        bins = jnp.where(among, digit + (self.table.segments << 16)[:, None], k.size << 16)
        counts = jnp.zeros(k.size << 16, jnp.int32).at[bins.ravel()].add(1, mode="drop")

        def pick(counts: Array, k: Array) -> tuple[Array, Array]:
            i, above = self._reach(jnp.sum(counts, axis=1, dtype=jnp.int32), k)
            j, further = self._reach(counts[i], k - above)
            return i * 256 + j, above + further

        return jax.vmap(pick)(counts.reshape(-1, 256, 256), k)

    @staticmethod
    def _reach(counts: Array, k: Array) -> tuple[Array, Array]:
        reached = jnp.cumsum(counts[::-1], dtype=jnp.int32)[::-1]
        i = jnp.sum(reached >= k, dtype=jnp.int32) - 1
        return i, reached[i] - counts[i]

    def first(self, tied: Sequence[Array], r: Array) -> Sequence[Array]:
        """For each row the index into the whole table before which the first `r` tied entries of its segment lie."""
        (rows,) = tied
        reached = jnp.cumsum(jnp.sum(rows, axis=1, dtype=jnp.int32), dtype=jnp.int32)
        heads = np.searchsorted(self.table.segments, np.arange(r.size))
        r_all = r + jnp.concatenate([jnp.zeros(1, jnp.int32), reached])[heads]
        # The row in which the r-th tied entry lies, and within it the entries up to that one.
        j = jnp.minimum(jnp.searchsorted(reached, r_all, method="compare_all").astype(jnp.int32), reached.size - 1)
        row = rows[j]
        before = (reached[j] - jnp.sum(row, axis=1, dtype=jnp.int32))[:, None]
        passed = before + jnp.cumsum(row, axis=1, dtype=jnp.int32) < r_all[:, None]
        cut = j * rows.shape[1] + jnp.sum(passed, axis=1, dtype=jnp.int32) + 1
        return self.at(jnp.where(r > 0, cut, 0))


class _Table:
    """Leaves of several shapes as the rows of one array; every segment starts a row and is padded to whole rows.

    One program then serves all leaves. A program for each would run as fast, but takes half a second a leaf to compile.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], segments: Sequence[int], width: int):
        self.shapes, self.width = shapes, width
        of_leaf = np.array([math.prod(s) for s in shapes], np.int64)
        entries = np.bincount(segments, of_leaf).astype(np.int64)
        rows = -(-entries // width)
        self.segments = np.repeat(np.arange(len(rows), dtype=np.int32), rows)
        row_in_segment = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        self.valid = np.minimum(entries[self.segments] - row_in_segment * width, width).astype(np.int32)
        self.padding = [0] * len(shapes)
        for i, s in enumerate(segments):
            if i + 1 == len(segments) or segments[i + 1] != s:
                self.padding[i] = int(rows[s] * width - entries[s])
        self.starts = np.cumsum([0, *(of_leaf + self.padding)])

    def join(self, leaves: Sequence[Any], dtype: Any) -> Array:
        """[rows, width], of leaves that broadcast to their shapes."""
        pieces = []
        for x, shape, pad in zip(leaves, self.shapes, self.padding, strict=True):
            pieces.append(jnp.broadcast_to(jnp.asarray(x, dtype), shape).ravel())
            if pad:
                pieces.append(jnp.zeros(pad, dtype))
        return jnp.concatenate(pieces).reshape(-1, self.width)

    def keys(self, scores: Sequence[Any], within: Sequence[Any]) -> Array:
        joined = None
        if any(w is not None for w in within):
            joined = self.join([True if w is None else w for w in within], bool)
        keys = order(self.join(scores, jnp.float32), joined)
        return jnp.where(np.arange(self.width) < self.valid[:, None], keys, jnp.uint32(0))

    def split(self, table: Array) -> list[Array]:
        flat = table.ravel()
        starts = zip(self.shapes, self.starts[:-1], strict=True)
        return [lax.slice(flat, (s,), (s + math.prod(shape),)).reshape(shape) for shape, s in starts]


def _take(
    find: _Bisection | _Histogram, keys: Sequence[Array], ties: Sequence[Array] | None, keep: Array
) -> list[Array]:
    """The `keep` first in the order (key, tie key, lower index); `keep` is at most the number of keys."""
    t, above = find.threshold(keys, jnp.maximum(keep, 1))
    sure = [q > x for q, x in zip(keys, find.at(t), strict=True)]
    tied = [q == x for q, x in zip(keys, find.at(t), strict=True)]
    rest = keep - above
    if ties is not None:
        second = [jnp.where(e, s, jnp.uint32(0)) for e, s in zip(tied, ties, strict=True)]
        t, above = find.threshold(second, jnp.maximum(rest, 1))
        sure = [m | (s > x) for m, s, x in zip(sure, second, find.at(t), strict=True)]
        tied = [e & (s == x) for e, s, x in zip(tied, second, find.at(t), strict=True)]
        rest = rest - above
    parts = zip(sure, tied, find.first(tied, rest), strict=True)
    return [m | (e & (_index(e).astype(jnp.int32) < c)) for m, e, c in parts]


def _index(leaf: Array) -> Array:
    return lax.iota(jnp.uint32, leaf.size).reshape(leaf.shape)


def highest(
    scores: Sequence[Any],
    within: Sequence[Any],
    ties: Sequence[Any] | None,
    keep: Array,
    segments: Sequence[int],
    method: Method = "auto",
) -> list[Array]:
    """Masks of the highest scores in every segment, a segment being one leaf or several neighbours.

    Args:
        scores: real arrays.
        within: for each a mask that broadcasts to it, or `None` if all of it is eligible.
        ties: second scores of the same shapes, for entries equal in the first; the lower flat index decides last.
        keep: int32[segments], each at most the number of eligible entries; traced.
        segments: the segment of each array, counted from 0 without gaps, in order.
        method: `histogram` and `bisection` agree to the bit; `auto` takes the faster one for size and platform.

    Returns:
        Boolean arrays of the scores' shapes, `keep` of them `True` in each segment.

    Reference:
        The histogram is radix selection, Alabi et al. 2012, "Fast k-selection algorithms for graphics processing
        units", with bits of floats as digits.
    """
    shapes = [jnp.shape(x) for x in scores]
    sizes = np.bincount(segments, [math.prod(s) for s in shapes]).astype(np.int64) if shapes else np.zeros(1, np.int64)
    if sizes.max() >= (1 << 31) - _BLOCK:
        raise ValueError(f"{sizes.max()} entries in one selection; fewer than 2^31 can be counted: select by leaf")
    if sizes.max() == 0:
        return [jnp.zeros(s, bool) for s in shapes]
    if method == "auto" and (sizes.max() < _NARROW or sizes.max() * len(sizes) < _SMALL):
        table = _Table(shapes, segments, int(sizes.max()))
        if (sizes > 0).all():
            second = None if ties is None else table.keys(ties, within)
            return table.split(highest_along(table.keys(scores, within), second, keep[:, None], (1,)))
        method = "bisection"
    if method == "bisection":
        return _by_bisection(segments, scores, within, ties, keep)
    if method == "histogram":
        return _by_histogram(segments, scores, within, ties, keep)
    cpu, other = (functools.partial(f, tuple(segments)) for f in (_by_histogram, _by_bisection))
    return lax.platform_dependent(scores, within, ties, keep, cpu=cpu, default=other)


def _by_bisection(
    segments: Sequence[int], scores: Sequence[Any], within: Sequence[Any], ties: Sequence[Any] | None, keep: Array
) -> list[Array]:
    keys = [order(jnp.asarray(x), w) for x, w in zip(scores, within, strict=True)]
    second = None if ties is None else [order(jnp.asarray(x), w) for x, w in zip(ties, within, strict=True)]
    return _take(_Bisection(_Segments(segments)), keys, second, keep)


def _by_histogram(
    segments: Sequence[int], scores: Sequence[Any], within: Sequence[Any], ties: Sequence[Any] | None, keep: Array
) -> list[Array]:
    def some(which: Sequence[int], scores: list, within: list, ties: list | None, keep: Array) -> list[Array]:
        table = _Table([jnp.shape(x) for x in scores], which, _BLOCK)
        second = None if ties is None else [table.keys(ties, within)]
        return table.split(_take(_Histogram(table), [table.keys(scores, within)], second, keep)[0])

    out: list[Array] = []
    # A histogram has 256 KiB for each segment.
    for low in range(0, keep.shape[0], _MOST_SEGMENTS):
        here = [i for i, s in enumerate(segments) if low <= s < low + _MOST_SEGMENTS]
        # Batched scatters are slow on CPUs (eight times, measured); members are taken one after the other.
        take = jax.custom_batching.sequential_vmap(functools.partial(some, [segments[i] - low for i in here]))
        parts = [None if x is None else [x[i] for i in here] for x in (scores, within, ties)]
        out += take(*parts, keep[low : low + _MOST_SEGMENTS])
    return out


def highest_along(keys: Array, ties: Array | None, keep: Array, axes: tuple[int, ...]) -> Array:
    """Masks of the `keep` highest keys within every slice that runs along `axes`.

    Args:
        keys: uint32, see `order`.
        ties: a second key of the same shape.
        keep: int32, of the keys' shape with length 1 along `axes`.
        axes: the axes that one slice spans.

    Returns:
        A boolean array of the keys' shape.
    """
    if keys.size == 0 or not axes:
        return jnp.broadcast_to(keep > 0, keys.shape)
    return _take(_Bisection(_Slices(axes)), [keys], None if ties is None else [ties], keep)[0]


# --------------------------------------------------------------------------------------- what goes in and out


class Entries:
    """The checked arrays of one selection: those that take part, and how their masks go back into the tree."""

    def __init__(self, scores: Scores, within: Masks | None, tie_break: Scores | None):
        pairs = jax.tree_util.tree_leaves_with_path(scores)
        self.names = [trees.path_of(k) for k, _ in pairs]
        self.structure = jax.tree.structure(scores)
        self.shapes = [jnp.shape(x) for _, x in pairs]
        self.scores = [self._number(n, x) for n, (_, x) in zip(self.names, pairs, strict=True)]
        self.within: list[Any] = [None] * len(pairs)
        self.ties: list[Any] | None = None
        if within is not None:
            trees.check_same_structure(scores, within, "scores", "within")
            self.within = [self._mask(i, w) for i, w in enumerate(jax.tree.leaves(within))]
        if tie_break is not None:
            trees.check_same_structure(scores, tie_break, "scores", "tie_break")
            self.ties = [self._number(n, x) for n, x in zip(self.names, jax.tree.leaves(tie_break), strict=True)]
            for name, shape, tie in zip(self.names, self.shapes, self.ties, strict=True):
                if jnp.shape(tie) != shape:
                    raise ValueError(f"tie_break of {name!r} has shape {jnp.shape(tie)}, its scores {shape}")
        # A leaf that is excluded by a Python `False` costs nothing; its mask is a scalar.
        self.used = [i for i, w in enumerate(self.within) if w is not False]

    def _number(self, name: str, x: Any) -> Any:
        dtype = jnp.result_type(x)
        if not any(jnp.issubdtype(dtype, kind) for kind in (jnp.floating, jnp.integer, jnp.bool_)):
            raise ValueError(f"scores of {name!r} are {dtype}; they must be real numbers")
        if dtype == jnp.float64:
            raise ValueError(f"scores of {name!r} are float64, but float32 is compared; cast them first")
        # A selection has no gradient; stopped here, before jit, none is ever traced through the selection.
        return lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x

    def _mask(self, i: int, w: Any) -> Any:
        if isinstance(w, (bool, np.bool_)):
            return None if w else False
        if w.dtype != bool:
            raise ValueError(f"within of {self.names[i]!r} is {w.dtype}; masks are booleans")
        try:
            fits = jnp.broadcast_shapes(w.shape, self.shapes[i]) == self.shapes[i]
        except ValueError:
            fits = False
        if not fits:
            raise ValueError(f"within of {self.names[i]!r}, shape {w.shape}, does not broadcast to {self.shapes[i]}")
        return w

    def some(self) -> tuple[list[Any], list[Any], list[Any] | None]:
        pick = lambda xs: [xs[i] for i in self.used]  # noqa: E731
        return pick(self.scores), pick(self.within), None if self.ties is None else pick(self.ties)

    def sizes(self) -> list[int | None]:
        """Eligible entries of the leaves that take part, where that is known without looking."""
        return [math.prod(self.shapes[i]) if self.within[i] is None else None for i in self.used]

    def per_leaf(self, value: Any, what: str) -> list[Any]:
        """One setting for all leaves, or a tree of them."""
        if jax.tree_util.all_leaves([value]):
            return [value] * len(self.used)
        trees.check_same_structure(self.tree(self.names), value, "scores", what)
        return [jax.tree.leaves(value)[i] for i in self.used]

    def tree(self, leaves: Sequence[Any]) -> Any:
        return jax.tree.unflatten(self.structure, leaves)

    def masks(self, selected: Sequence[Array]) -> Masks:
        out: list[Array] = [jnp.zeros((), bool)] * len(self.names)
        for i, m in zip(self.used, selected, strict=True):
            out[i] = m
        return self.tree(out)


def eligible_count(x: Any, w: Any) -> Array:
    """How many entries of one leaf are eligible."""
    n = math.prod(jnp.shape(x))
    return jnp.int32(n) if w is None else jnp.sum(w, dtype=jnp.int32) * np.int32(n // max(w.size, 1))
