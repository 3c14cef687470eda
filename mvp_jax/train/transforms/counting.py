"""How many entries stay after each pruning of a schedule: on the host, or on the device from a traced sparsity."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import counts, patterns, schedules, trees
from mvp_jax.core.types import Array, Params, PyTree
from mvp_jax.train.transforms import holding


def varies(sparsity: Any) -> bool:
    """Returns whether a sparsity is given by rules over paths or as a tree, and not as one number."""
    return not jax.tree_util.all_leaves([sparsity])


def numbers(sparsity: Any) -> list[Any]:
    """Returns the numbers in a sparsity: itself, those of the rules, or the leaves of a tree.

    Raises:
        ValueError: if something in it is no number.
    """
    found = [rule[1] for rule in sparsity] if _are_rules(sparsity) else jax.tree.leaves(sparsity)
    for s in found:
        if isinstance(s, (str, bool)) or not isinstance(s, (float, int, np.number, np.ndarray, jax.Array)):
            raise ValueError(
                f"sparsity is {sparsity!r}; give a number, rules over paths [('.*attention.*', 0.9), ('.*', 0.5)], or "
                "a tree of numbers like the parameters"
            )
    return [s if isinstance(s, jax.Array) else float(s) for s in found]


def _are_rules(x: Any) -> bool:
    return isinstance(x, (list, tuple)) and all(
        isinstance(r, tuple) and len(r) == 2 and isinstance(r[0], str) for r in x
    )


def each(sparsity: Any, sizes: PyTree) -> list[Any]:
    """Returns the sparsity of every count.

    Args:
        sparsity: one number, rules over the paths of `sizes`, or a tree of numbers.
        sizes: how many entries there are, one count or a tree of them, as `Pattern.counts` gives it for sparsity 0.

    Returns:
        One number for each leaf of `sizes`.

    Raises:
        ValueError: for several sparsities where there is one count for all leaves, or a leaf without a sparsity.
    """
    if not varies(sparsity):
        return [numbers(sparsity)[0]] * len(jax.tree.leaves(sizes))
    if jax.tree_util.all_leaves([sizes]):
        raise ValueError(
            f"sparsity is {sparsity!r}, but this pattern has one count for all leaves; for sparsities of their own "
            "take a pattern that selects within each leaf, such as patterns.Weights('uniform')"
        )
    if _are_rules(sparsity):
        values = jax.tree.leaves(trees.match(sizes, holding.rules_for(sizes, sparsity), default=False))
    else:
        values = jax.tree.leaves(holding.fit(sparsity, sizes, "sparsity"))
    bare = [p for (p, n), v in zip(trees.flatten(sizes).items(), values, strict=True) if n and v is False]
    if bare:
        raise ValueError(
            f"no sparsity for {bare[:5]}, which are prunable; add a last rule ('.*', 0.5), or leave them out of "
            "prunable"
        )
    return [0.0 if v is False else v for v in values]


def on_host(
    pattern: patterns.Pattern,
    params: Params,
    prunable: PyTree,
    sparsity: Any,
    steps: Sequence[Callable[[float], float]],
) -> PyTree:
    """Returns how many entries stay after so many prunings: int32[events + 1], or a tree of such arrays.

    The first is all of them. Nowhere do counts rise, since entries that are gone cannot come back: where rounding gives
    a leaf one entry more at a higher sparsity (largest remainders do), it is not removed before.

    Args:
        pattern: what is counted.
        params: arrays or shapes.
        prunable: which leaves are pruned, a tree of booleans.
        sparsity: the final one, as in `each`; Python numbers.
        steps: for each pruning a function from the final sparsity to the one reached there.
    """
    sizes = pattern.counts(params, prunable, 0.0)
    values = each(sparsity, sizes)
    # Patterns count all leaves at one sparsity; of each leaf the count at its own is taken.
    found = {
        v: [jax.tree.leaves(pattern.counts(params, prunable, step(v))) for step in steps] for v in dict.fromkeys(values)
    }
    rows = [
        [n, *(row[i] for row in found[v])] for i, (n, v) in enumerate(zip(jax.tree.leaves(sizes), values, strict=True))
    ]
    if not any(row[-1] for row in rows):
        raise ValueError(
            f"nothing would stay of what is prunable at sparsity {sparsity} with {pattern}; name leaves to prune "
            "(`prunable`), or a sparsity that leaves some entries"
        )
    return jax.tree.unflatten(jax.tree.structure(sizes), [falling(row) for row in rows])


def falling(row: Sequence[int]) -> Any:
    """Returns counts as an array in which none is below a later one: int32, or words where one is 2^31 or more."""
    held = np.maximum.accumulate(np.array(row[::-1], np.int64))[::-1]
    return counts.words(held) if held.max(initial=0) > counts.INT32_MAX else held.astype(np.int32)


def on_device(
    pattern: patterns.Pattern, params: Params, prunable: PyTree, sparsity: Any, shares: Callable[[Any], Array]
) -> PyTree:
    """Returns what `on_host` returns, from sparsities that are traced.

    Args:
        pattern: what is counted.
        params: arrays or shapes.
        prunable: which leaves are pruned, a tree of booleans.
        sparsity: the final one, as in `each`; numbers and float32[] arrays.
        shares: the sparsities after each pruning, float32[events + 1], as a function of the final one.

    Raises:
        ValueError: for a pattern whose counts are not those of each leaf by itself.
    """
    own = isinstance(
        pattern, (patterns.Weights, patterns.Channels, patterns.Blocks, patterns.NofM, patterns.WholeUnits)
    )
    if not own or getattr(pattern, "allocation", "global") == "erk":
        raise ValueError(
            f"the counts of {pattern} are computed on the host, but sparsity is a jax.Array; give a Python number, and "
            "change it by transforms.restart"
        )
    sizes = pattern.counts(params, prunable, 0.0)
    least = pattern.min_units if isinstance(pattern, patterns.WholeUnits) else 0
    values = each(sparsity, sizes)
    reached = {id(v): shares(jnp.asarray(v, jnp.float32)) for v in values}
    rows = [_held(n, reached[id(v)], min(least, n)) for n, v in zip(jax.tree.leaves(sizes), values, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(sizes), rows)


def _held(n: int, reached: Array, least: int) -> Any:
    kept = keep_count(n, reached)
    return kept if isinstance(kept, counts.Words) else jnp.maximum(kept, least)


def keep_count(n: int, sparsity: Array) -> Any:
    """How many of `n` entries stay, as `prune.keep_count` with a traced sparsity: `n - round(sparsity · n)`.

    The product is formed in integers, exactly, and rounded half to even. The only error is that of the sparsity, which
    is rounded to a multiple of 2^-31: a float32 of 2^-7 or more is one.

    Args:
        n: the number of entries.
        sparsity: float32 of any shape, clipped to [0, 1].

    Returns:
        int32 of that shape; `counts.Words` if `n` is 2^31 or more.

    >>> int(keep_count(10, jnp.float32(0.25))), int(keep_count(84_000_000, jnp.float32(0.9)))
    (8, 8400002)
    """
    share = jnp.round(jnp.clip(sparsity.astype(jnp.float32), 0, 1) * np.float32(1 << 31)).astype(jnp.uint32)
    factors = [share & 0xFFFF, share >> 16]
    digits = [np.uint32((n >> (16 * i)) & 0xFFFF) for i in range(3)]
    columns = [jnp.zeros_like(share) for _ in range(7)]
    for i, a in enumerate(factors):
        for j, b in enumerate(digits):
            product = a * b
            columns[i + j] += product & 0xFFFF
            columns[i + j + 1] += product >> 16
    for i in range(6):
        columns[i + 1] += columns[i] >> 16
        columns[i] &= 0xFFFF
    # Divided by 2^31: bit 15 of the digit 1 is the lowest that stays.
    low, middle, high = (((columns[i] >> 15) | (columns[i + 1] << 1)) & 0xFFFF for i in (1, 2, 3))
    rest, half = columns[0] | ((columns[1] & 0x7FFF) << 16), np.uint32(1 << 30)
    low += ((rest > half) | ((rest == half) & (low & 1 == 1))).astype(jnp.uint32)
    removed = counts.Words(((high << 16) | middle) + (low >> 16), low & 0xFFFF)
    kept = counts.minus(counts.words(jnp.uint32(n)) if n <= counts.INT32_MAX else _words(n, share), removed)
    return counts.single(kept).astype(jnp.int32) if n <= counts.INT32_MAX else kept


def _words(n: int, like: Array) -> counts.Words:
    return counts.Words(*(jnp.full_like(like, part) for part in counts.words(n)))


def shares(schedule: str | schedules.Schedule, done: Sequence[int], steps: int) -> Callable[[Array], Array]:
    """Returns a function from a traced final sparsity to those at 0 and after so many updates of a schedule."""

    def at(final: Array) -> Array:
        if isinstance(schedule, str):
            return schedules.SCHEDULES[schedule](jnp.asarray([0, *done], jnp.float32), steps, final)
        # A function of one's own may branch on the update, so it gets Python numbers.
        return jnp.stack([jnp.float32(0), *(jnp.asarray(schedule(t, steps, final), jnp.float32) for t in done)])

    return at
