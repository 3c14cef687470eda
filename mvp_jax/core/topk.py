r"""The `k` highest of many scores over several arrays, exactly and without sorting: the algorithm under `prune`.

Scores become unsigned integers of the same order (a float's bits), and the k-th highest is found by counting how many
are at least as high as a guess. On accelerators, and for arrays on a mesh of devices, guesses bisect the range bit by
bit: each device compares and counts its own part, nothing but counts is exchanged, and masks are sharded as the scores
are. On one CPU the leaves are joined so that one program counts them all, and where there are many entries a sample
says where to look. Ties fall to the lower flat index: entries equal to the threshold are counted leaf by leaf (or in
rows), and only the leaf or row in which the count is reached is looked into.

Everything here is traced by its callers, which validate and jit. A leaf has fewer than 2^32 entries, a tree may
have more.
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
from mvp_jax.core.topk_bisection import (
    Bisection,
    Segments,
    Slices,
    flat_index,
    order,
)
from mvp_jax.core.topk_sampling import ROW, Halving, JoinedLeaves, Sampling
from mvp_jax.core.types import Array

TopkMethod: TypeAlias = Literal["auto", "sampling", "bisection"]
"""How the k-th highest score is found; the results are equal, the times are not."""

# For few entries, or few a segment, 32 plain passes cost no more than a sample and its sort, and compile in half the
# time (measured on two CPU cores).
_SMALL = 1 << 17
_NARROW = 1 << 12
# Below this, 32 passes over joined leaves cost less than the second and a half that sampling takes longer to compile,
# unless a program selects more often than some ten times.
_MIDDLE = 1 << 23
_LARGEST_LEAF = (1 << 32) - 1


def _same_precision(values: Sequence[Any]) -> list[Array]:
    """Arrays that can be compared with each other: all in float64 if any is."""
    arrays = [jnp.asarray(x) for x in values]
    return [x.astype(jnp.float64) for x in arrays] if any(x.dtype == jnp.float64 for x in arrays) else arrays


def _take(
    find: Bisection | Sampling, keys: Sequence[Array], ties: Sequence[Array] | None, keep: counts.Count
) -> list[Array]:
    """The `keep` first in the order (key, tie key, lower index); `keep` is at most the number of keys."""
    t, above = _threshold(find, keys, keep)
    sure = [q > x for q, x in zip(keys, find.at(t), strict=True)]
    tied = [q == x for q, x in zip(keys, find.at(t), strict=True)]
    rest = counts.minus(keep, above)
    if ties is not None:
        second = [jnp.where(e, s, jnp.zeros((), s.dtype)) for e, s in zip(tied, ties, strict=True)]
        t, above = _threshold(find, second, rest)
        sure = [m | (s > x) for m, s, x in zip(sure, second, find.at(t), strict=True)]
        tied = [e & (s == x) for e, s, x in zip(tied, second, find.at(t), strict=True)]
        rest = counts.minus(rest, above)
    parts = zip(sure, tied, find.first(tied, rest), strict=True)
    return [m | (e & (flat_index(e) < c.astype(jnp.uint32))) for m, e, c in parts]


def _threshold(find: Bisection | Sampling, keys: Sequence[Array], k: counts.Count) -> tuple[Array, counts.Count]:
    """A key, and how many are higher: at most `k`, and with those equal to it at least `k`."""
    some = counts.at_least(k, counts.small(k, 1))
    t, above = find.threshold(keys, counts.where(some, k, counts.small(k, 1)))
    # No key is as high as this one: to keep none is to look above it.
    return jnp.where(some, t, ~jnp.zeros((), t.dtype)), counts.where(some, above, counts.small(k, 0))


def _if_any(select: Callable[..., Array], keys: Array, ties: Any, keep: counts.Count) -> Array:
    """The mask that `select(keys, ties, keep)` gives, without a computation where nothing is to be kept.

    Such a branch is also a program of its own. Without it XLA fuses the selection into every leaf that is cut out of
    the joined mask, and each of them takes a tenth of a second to compile.
    """
    some = counts.at_least(keep, counts.small(keep, 1))
    some = jnp.reshape(some, ()) if some.size == 1 else jnp.any(some)
    return lax.cond(some, select, lambda k, t, n: jnp.zeros(k.shape, bool) & (k > 0), keys, ties, keep)


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
    method: str = "auto",
) -> tuple[list[Array], Words]:
    """Masks of the highest scores in every segment, a segment being one leaf or several neighbours.

    Args:
        scores: real arrays.
        within: for each a mask that broadcasts to it, or `None` if all of it is eligible.
        ties: second scores of the same shapes, for entries equal in the first; the lower flat index decides last.
        keep: a count for each segment; where it passes the number of eligible entries, all of them are kept; traced.
        segments: the segment of each array, counted from 0 without gaps, in order.
        method: `sampling` and `bisection` agree to the bit; `auto` takes the faster one for size and platform. Arrays
            on a mesh, float64 and 2^31 entries or more are bisected in any case.

    Returns:
        Boolean arrays of the scores' shapes, `keep` of them `True` in each segment; and how many entries of each
        segment are eligible.

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
        return [jnp.zeros(s, bool) for s in shapes], jax.tree.map(jnp.asarray, counts.words(sizes))
    single = all(x.dtype != jnp.float64 for x in (*scores, *(ties or ())))
    joinable = _is_local([*scores, *(w for w in within if w is not None), *(ties or ())]) and single
    if not joinable or sizes.sum() >= (1 << 31) - ROW * len(sizes):
        method = "bisection"
    if method == "auto" and (sizes.max() < _NARROW or sizes.max() * len(sizes) < _SMALL):
        method = "rows" if (sizes > 0).all() else "bisection"
    if method == "auto":
        fewer = "halving" if sizes.sum() < _MIDDLE else "sampling"
        method = fewer if jax.default_backend() == "cpu" else "bisection"
    if method == "bisection":
        eligible = counts.by_segment(eligible_counts(scores, within), segments)
        keys = [order(x, w) for x, w in zip(scores, within, strict=True)]
        others = None if ties is None else [order(x, w) for x, w in zip(ties, within, strict=True)]
        return _take(Bisection(Segments(segments)), keys, others, counts.least(keep, eligible)), eligible
    table = JoinedLeaves(shapes, segments, int(sizes.max()) if method == "rows" else ROW)
    find = {"rows": None, "halving": Halving(table), "sampling": Sampling(table)}[method]
    select = _take_rows if find is None else functools.partial(_take_joined, find)
    joined, second = table.keys(scores, within), None if ties is None else table.keys(ties, within)
    eligible = table.eligible(joined, all(w is None for w in within))
    return table.split(_if_any(select, joined, second, counts.least(keep, eligible))), eligible


def _take_rows(keys: Array, ties: Array | None, keep: Words) -> Array:
    return highest_along(keys, ties, counts.int32(keep)[:, None], (1,))


def _take_joined(find: Sampling, keys: Array, ties: Array | None, keep: Words) -> Array:
    return _take(find, [keys], None if ties is None else [ties], keep)[0]


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
    return _take(Bisection(Slices(axes)), [keys], None if ties is None else [ties], keep)[0]


def eligible_counts(scores: Sequence[Any], within: Sequence[Any]) -> Words:
    """How many entries of each leaf are eligible: all of it if its mask is `None`. Masks broadcast to their leaves.

    Args:
        scores: the leaves.
        within: for each of them a mask or `None`.

    Returns:
        Counts of the shape `[leaves]`.
    """
    large = [w is not None and w.size > counts.LARGEST_SUM for w in within]
    if any(large):
        each = [counts.true(w) if big else counts.words(_sum(w)) for w, big in zip(within, large, strict=True)]
        found = Words(*(jnp.stack([n[i] for n in each]) for i in (0, 1)))
    else:
        # One array of sums, so that what follows is a few operations on it and not some for each leaf.
        found = counts.words(jnp.stack([_sum(w) for w in within]))
    whole = [math.prod(jnp.shape(x)) for x in scores]
    stands = [n if w is None else n // max(w.size, 1) for n, w in zip(whole, within, strict=True)]
    return counts.times(found, stands)


def _sum(mask: Array | None) -> Array:
    return jnp.uint32(1) if mask is None else jnp.sum(mask, dtype=jnp.uint32)


__all__ = ["TopkMethod", "eligible_counts", "highest", "highest_along", "order"]
