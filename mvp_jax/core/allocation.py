"""How many entries to keep, decided on the host, and checks of the arguments of a selection.

The counts are what the selectors of `prune` take; `prune` re-exports the functions that compute them.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from mvp_jax.core import counts, trees
from mvp_jax.core.types import Array, Masks, PyTree, Scores


class _Sized(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...


def keep_count(n: int, sparsity: float) -> int:
    """How many of `n` entries stay: `n - round(sparsity · n)`, in float64, halves to even.

    The number removed is rounded, as `torch.nn.utils.prune` does.

    Args:
        n: the number of entries.
        sparsity: the share to remove, in [0, 1).

    Returns:
        The count to hand to a selector.

    Raises:
        ValueError: for a sparsity outside [0, 1) or a negative `n`.

    >>> keep_count(10, 0.25), keep_count(84_000_000, 0.9)
    (8, 8400000)
    """
    if not 0.0 <= sparsity < 1.0:
        raise ValueError(
            f"sparsity is {sparsity}, but must lie in [0, 1): the share that is removed; 0.9 keeps a tenth"
        )
    if n < 0:
        raise ValueError(f"n is {n}, but a number of entries is not negative")
    return int(n) - round(float(sparsity) * int(n))


def keep_counts(groups: Sequence[_Sized] | Mapping[str, int], ratio: float, min_units: int = 1) -> dict[str, int]:
    """How many units of each group stay, with a floor so that no layer dies.

    Args:
        groups: `units.Group`s, or `{name: size}`.
        ratio: the share of units to remove from every group, in [0, 1).
        min_units: the least number of units that stay in a group (all of them, where it has fewer).

    Returns:
        `{name: count}`.

    >>> keep_counts({"conv": 16, "head": 2}, 0.75)
    {'conv': 4, 'head': 1}
    """
    sizes = dict(groups) if isinstance(groups, Mapping) else {g.name: g.size for g in groups}
    return {name: max(min(min_units, n), keep_count(n, ratio)) for name, n in sizes.items()}


def _eligible_sizes(params: PyTree, within: PyTree | None) -> list[int]:
    leaves = jax.tree.leaves(params)
    if within is None:
        return [math.prod(np.shape(p)) for p in leaves]
    within = jax.tree.leaves(trees.align(within, params, "within", "params"))
    return [
        int(np.sum(np.asarray(w), dtype=np.int64)) * (math.prod(np.shape(p)) // max(np.size(w), 1))
        for p, w in zip(leaves, within, strict=True)
    ]


def uniform(params: PyTree, sparsity: float, *, within: PyTree | None = None) -> PyTree:
    """The same sparsity in every leaf: counts for `by_leaf`.

    Args:
        params: arrays or their shapes.
        sparsity: the share to remove, in [0, 1).
        within: what is eligible: booleans, or masks that broadcast; a leaf without any gets 0.

    Returns:
        A tree of Python integers.

    >>> uniform({"a": jnp.zeros((4, 5)), "b": jnp.zeros(10)}, 0.9)
    {'a': 2, 'b': 1}
    """
    counts = [keep_count(n, sparsity) for n in _eligible_sizes(params, within)]
    return jax.tree.unflatten(jax.tree.structure(params), counts)


def erdos_renyi_kernel(params: PyTree, sparsity: float, *, within: PyTree | None = None) -> PyTree:
    r"""Returns counts for `by_leaf` under which small kernels stay denser; they add up to `keep_count` of the whole.

    The density of a leaf with axes d_1 ... d_r is $\min(1, \epsilon \sum_i d_i / \prod_i d_i)$, with one ε for all.

    Args:
        params: arrays or their shapes.
        sparsity: the fraction to remove over all leaves together, in [0, 1).
        within: what is eligible: booleans, or masks that broadcast; a leaf without any gets 0.

    Returns:
        A tree of Python integers; rounding goes by largest remainder.

    >>> erdos_renyi_kernel({"small": jnp.zeros((2, 2)), "wide": jnp.zeros((20, 20))}, 0.5)
    {'small': 4, 'wide': 198}

    Reference: Evci et al. 2020, "Rigging the Lottery" (arXiv:1911.11134), section 3, ERK.
    """
    sizes = np.array(_eligible_sizes(params, within), np.float64)
    shapes = [np.shape(p) for p in jax.tree.leaves(params)]
    raw = np.array([sum(s) / math.prod(s) if math.prod(s) else 0.0 for s in shapes])
    total = keep_count(int(sizes.sum()), sparsity)
    dense = np.zeros(len(sizes), bool)
    wanted = np.zeros(len(sizes))
    for _ in range(len(sizes) + 1):
        scale = np.sum((raw * sizes)[~dense])
        wanted = np.where(dense, sizes, raw * sizes * ((total - sizes[dense].sum()) / scale if scale else 0.0))
        over = ~dense & (wanted > sizes)
        if not over.any():
            break
        dense |= over
    counts = np.floor(wanted)
    remainder = np.where(counts < sizes, wanted - counts, -1.0)
    counts[np.argsort(-remainder, kind="stable")[: round(total - counts.sum())]] += 1
    return jax.tree.unflatten(jax.tree.structure(params), [int(c) for c in counts])


def concrete(*values: Any) -> bool:
    """Whether all leaves of the values are known numbers, none of them traced by `jit`, `vmap` or `grad`."""
    return not any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves(values))


def as_count(keep: Any, scalar: bool = True) -> Any:
    """A count as an int32 array, or as two words where it is 2^31 or more; so numbers and arrays share a program.

    Args:
        keep: an integer, an array of integers, or `counts.Words`; may be traced.
        scalar: whether `keep` must be a single count.

    Raises:
        ValueError: if `keep` is no integer, or has axes although it must be a single count.
    """
    if isinstance(keep, counts.Words):
        shape = jnp.shape(keep.low)
    elif not jnp.issubdtype(jnp.result_type(keep) if hasattr(keep, "dtype") else np.asarray(keep).dtype, jnp.integer):
        raise ValueError(
            f"keep is {keep!r}, but it counts entries; prune.keep_count(n, sparsity) makes one of a sparsity"
        )
    else:
        shape = np.shape(keep)
    if scalar and shape:
        raise ValueError(f"keep has shape {shape}, but is one count; for one for each member use jax.vmap")
    if isinstance(keep, counts.Words):
        return keep
    if isinstance(keep, jax.Array):
        return keep.astype(jnp.int32) if keep.dtype.itemsize <= 4 else counts.words(jnp.maximum(keep, 0))
    if np.max(keep, initial=0) > counts.INT32_MAX:
        return counts.words(keep)
    return np.asarray(keep, np.int32)


def stacked(counted: Sequence[Any]) -> Any:
    """Single counts, as `as_count` gives them, in one array: int32, or words if any of them is in words."""
    if not any(isinstance(k, counts.Words) for k in counted):
        return jnp.stack(counted or [0])
    each = [k if isinstance(k, counts.Words) else counts.words(jnp.maximum(k, 0)) for k in counted]
    return counts.Words(*(jnp.stack([w[i] for w in each]) for i in (0, 1)))


def _known(count: Any) -> np.ndarray:
    """A count that is not traced, on the host in int64."""
    if isinstance(count, counts.Words):
        return (np.asarray(count.high, np.int64) << 16) + np.asarray(count.low, np.int64)
    return np.asarray(count)


def check_count(keep: Any, eligible: Any, where: str = "") -> None:
    """Raises `ValueError` if a count is negative or above the number of eligible entries; traced values pass.

    Args:
        keep: one count or an array of them, as `as_count` gives it.
        eligible: how many entries are eligible, of a shape that broadcasts to that of `keep`.
        where: stands behind the count in the error, such as " for 'fc/kernel'".
    """
    if concrete(keep, eligible):
        k, n = _known(keep), _known(eligible)
        if (k < 0).any() or (k > n).any():
            raise ValueError(
                f"keep is {k.tolist()}{where}, but {n.tolist()} entries are eligible; ask for 0 up to that many"
            )


class Entries:
    """The checked arguments of one selection, as lists of leaves; and the way back from leaves to a tree.

    Args:
        scores: any pytree of real numbers.
        within: booleans that broadcast to the scores, leaf by leaf; a Python `False` leaves a leaf out of `used`.
        tie_break: second scores of the same shapes.

    Attributes:
        names: the path of every leaf.
        structure: of the tree.
        shapes: of the leaves of `scores`.
        scores, within, ties: the leaves; `within` has `None` where all of a leaf is eligible, `ties` is `None`
            without `tie_break`.
        used: the indices of the leaves that take part.

    Raises:
        ValueError: if structures or shapes differ, scores are complex, or masks are not booleans.
    """

    def __init__(self, scores: Scores, within: Masks | None, tie_break: Scores | None):
        pairs = jax.tree_util.tree_leaves_with_path(scores)
        self.names = [trees.path_of(k) for k, _ in pairs]
        self.structure = jax.tree.structure(scores)
        self.shapes = [jnp.shape(x) for _, x in pairs]
        self.scores = [self._number(n, x) for n, (_, x) in zip(self.names, pairs, strict=True)]
        self.within: list[Any] = [None] * len(pairs)
        self.ties: list[Any] | None = None
        if within is not None:
            within = trees.align(within, scores, "within", "scores")
            self.within = [self._mask(i, w) for i, w in enumerate(jax.tree.leaves(within))]
        if tie_break is not None:
            tie_break = trees.align(tie_break, scores, "tie_break", "scores")
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
        # A selection has no gradient; stopped here, before jit, none is ever traced through the selection.
        return lax.stop_gradient(x) if isinstance(x, jax.core.Tracer) else x

    def _mask(self, i: int, w: Any) -> Any:
        if isinstance(w, (bool, np.bool_)):
            return None if w else False
        if w.dtype != bool:
            raise ValueError(f"within of {self.names[i]!r} is {w.dtype}; masks are booleans")
        if not trees.broadcasts(w.shape, self.shapes[i]):
            raise ValueError(f"within of {self.names[i]!r}, shape {w.shape}, does not broadcast to {self.shapes[i]}")
        return w

    def some(self) -> tuple[list[Any], list[Any], list[Any] | None]:
        """Scores, eligibility and second scores of the leaves that take part."""
        pick = lambda xs: [xs[i] for i in self.used]  # noqa: E731
        return pick(self.scores), pick(self.within), None if self.ties is None else pick(self.ties)

    def sizes(self) -> list[int | None]:
        """How many entries of each leaf that takes part are eligible; `None` where a mask would have to be counted."""
        return [math.prod(self.shapes[i]) if self.within[i] is None else None for i in self.used]

    def per_leaf(self, value: Any, what: str) -> list[Any]:
        """The setting of each leaf that takes part, from one setting for all or a tree with one for each leaf.

        Args:
            value: one setting, or a tree with the structure of the scores.
            what: its name, for the error.
        """
        whole = lambda x: isinstance(x, counts.Words)  # noqa: E731
        found, structure = jax.tree.flatten(value, is_leaf=whole)
        if jax.tree_util.treedef_is_leaf(structure):
            return found * len(self.used)
        # Numbers in the place of the counts, as a path must not lead into one.
        places = trees.align(jax.tree.unflatten(structure, range(len(found))), self.tree(self.names), what, "scores")
        return [found[jax.tree.leaves(places)[i]] for i in self.used]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """All leaves, those that take no part included, as a tree with the structure of the scores."""
        return jax.tree.unflatten(self.structure, leaves)

    def masks(self, selected: Sequence[Array]) -> Masks:
        """The masks of the leaves that take part as a tree; the other leaves are a scalar `False`."""
        out: list[Array] = [jnp.zeros((), bool)] * len(self.names)
        for i, m in zip(self.used, selected, strict=True):
            out[i] = m
        return self.tree(out)
