"""What is pruned together, and how a sparsity is shared out: single weights, N:M runs, blocks, channels, coupled units.

A pattern is a frozen value. It turns numbers in the parameters' shapes into one for each *entry* (a weight, a block, a
channel, a unit), counts how many entries a sparsity leaves, selects them, and turns the kept entries into masks. A
schedule, a vote or a round of training is therefore written once for all patterns.

A leaf that is not prunable is a Python `False` in `prunable` (as `trees.select` gives), a scalar `False` among the kept
entries, and a scalar `True` in the masks. The kept entries therefore show what is prunable, and may be passed as
`prunable`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal, Protocol, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import allocation, layouts, precision, prune, run_axes, trees, units
from mvp_jax.core import masks as masks_lib
from mvp_jax.core.topk import TopkMethod
from mvp_jax.core.types import Array, Masks, Params, PyTree, Scores
from mvp_jax.core.units import Group

How: TypeAlias = Literal["sum", "l1", "l2", "sum_square"]
"""How the numbers of an entry become one, as in `units.reduce`; of a single weight x they are x, |x|, |x| and x²."""


class Pattern(Protocol):
    """A pattern of sparsity: what is removed together, how many of those entries stay, and how entries become masks.

    Attributes:
        scope: whether entries compete within a `leaf` (group), or all with all (`tree`), as in `vote.elect`.
    """

    @property
    def scope(self) -> Literal["leaf", "tree"]: ...

    def entries(self, values: PyTree, prunable: PyTree, how: How = "l2") -> Scores:
        """One score for each entry of the pattern.

        Args:
            values: numbers in the parameters' shapes.
            prunable: which leaves are pruned, as `trees.select` gives it.
            how: how the numbers of an entry become one.

        Returns:
            A tree of float32 in the shapes of the entries; a scalar 0 for a leaf that is not prunable.
        """

    def whole(self, params: Params, prunable: PyTree) -> Masks:
        """Booleans in the shapes of the entries, all `True`; a scalar `False` for a leaf that is not prunable."""

    def check(self, sparsity: float) -> None:
        """Raises `ValueError` for a final sparsity that the pattern cannot have."""

    def counts(self, params: Params, prunable: PyTree, sparsity: float) -> PyTree:
        """How many entries stay at a sparsity: an integer (scope `tree`) or a tree of integers, on the host."""

    def select(
        self,
        scores: Scores,
        keep: PyTree,
        within: Masks,
        tie_break: Scores | None = None,
        *,
        method: TopkMethod = "auto",
    ) -> Masks:
        """Exactly `keep` (traced) of the entries in `within`, those with the highest scores.

        The method is that of the selectors in `prune`; results do not depend on it, and N:M needs none.
        """

    def masks(self, kept: Masks, params: Params, prunable: PyTree) -> Masks:
        """Masks of the parameters from kept entries; a scalar `True` for a leaf that is not prunable."""


def _where(prunable: PyTree, tree: PyTree, change: Any, other: Any = False) -> PyTree:
    """`change` applied to the prunable leaves; a scalar elsewhere."""
    flags = trees.align(_flags(prunable), tree, "prunable", "the tree")
    return jax.tree.map(lambda x, p: change(x) if p else np.asarray(other), tree, flags)


def _flags(prunable: PyTree) -> PyTree:
    """Python booleans; parameters that can be pruned are never scalars."""
    return jax.tree.map(lambda p: bool(p) if isinstance(p, bool | np.bool_) else jnp.ndim(p) > 0, prunable)


def _prunable(kept: Masks) -> Masks:
    """Kept entries with a Python `False`, which costs a selector nothing, where a leaf is not prunable (a scalar)."""
    return jax.tree.map(lambda m: m if jnp.ndim(m) else False, kept)


def _reduced(x: Array, axes: Sequence[int], how: How, keepdims: bool = False) -> Array:
    axes = tuple(axes)
    x = precision.widen(x)
    x = jnp.abs(x) if how == "l1" else jnp.square(x) if how == "l2" else x
    total = jnp.sum(x, axis=axes, keepdims=keepdims)
    return jnp.sqrt(total) if how == "l2" else jnp.square(total) if how == "sum_square" else total


class _Shared:
    """What patterns whose entries are arrays of their own have in common."""

    allocation: str

    def __post_init__(self) -> None:
        if self.allocation not in self._allocations:
            raise ValueError(f"unknown allocation {self.allocation!r}; choose one of {self._allocations}")

    @property
    def _allocations(self) -> tuple[str, ...]:
        return ("global", "uniform")

    @property
    def scope(self) -> Literal["leaf", "tree"]:
        return "tree" if self.allocation == "global" else "leaf"

    def _grid(self, shape: Sequence[int]) -> Sequence[int]:
        """The shape of the entries of a leaf."""
        raise NotImplementedError

    def whole(self, params: Params, prunable: PyTree) -> Masks:
        return _where(prunable, params, lambda p: layouts.full(p, tuple(self._grid(jnp.shape(p)))))

    def check(self, sparsity: float) -> None:
        """Raises nothing: this pattern can have any sparsity in [0, 1)."""

    def counts(self, params: Params, prunable: PyTree, sparsity: float) -> PyTree:
        flags = trees.align(_flags(prunable), params, "prunable", "params")
        sizes = jax.tree.map(lambda x, p: math.prod(self._grid(jnp.shape(x))) if p else 0, params, flags)
        if self.allocation == "global":
            return allocation.keep_count(sum(jax.tree.leaves(sizes)), sparsity)
        return jax.tree.map(lambda n: allocation.keep_count(n, sparsity), sizes)

    def select(
        self,
        scores: Scores,
        keep: PyTree,
        within: Masks,
        tie_break: Scores | None = None,
        *,
        method: TopkMethod = "auto",
    ) -> Masks:
        selector = prune.across_tree if self.scope == "tree" else prune.by_leaf
        return selector(scores, keep, within=_prunable(within), tie_break=tie_break, method=method)

    def masks(self, kept: Masks, params: Params, prunable: PyTree) -> Masks:
        return masks_lib.exempt(kept, _flags(prunable))


@dataclasses.dataclass(frozen=True)
class Weights(_Shared):
    """Single weights.

    Attributes:
        allocation: `global`: one threshold for all leaves; `uniform`: the same sparsity in each; `erk`: more density
            for small kernels (`prune.erdos_renyi_kernel`).

    >>> params, prunable = {"w": jnp.array([3.0, -1.0, 2.0, 0.5]), "b": jnp.ones(2)}, {"w": True, "b": False}
    >>> pattern = Weights()
    >>> kept = pattern.whole(params, prunable)
    >>> kept = pattern.select(pattern.entries(params, prunable), pattern.counts(params, prunable, 0.5), kept)
    >>> {k: m.tolist() for k, m in pattern.masks(kept, params, prunable).items()}
    {'b': True, 'w': [True, False, True, False]}
    """

    allocation: Literal["global", "uniform", "erk"] = "global"

    @property
    def _allocations(self) -> tuple[str, ...]:
        return ("global", "uniform", "erk")

    def entries(self, values: PyTree, prunable: PyTree, how: How = "l2") -> Scores:
        alone = {"sum": lambda x: x, "sum_square": jnp.square}.get(how, jnp.abs)
        return _where(prunable, values, lambda x: alone(precision.widen(x)), np.float32(0))

    def _grid(self, shape: Sequence[int]) -> Sequence[int]:
        return shape

    def counts(self, params: Params, prunable: PyTree, sparsity: float) -> PyTree:
        if self.allocation == "erk":
            return allocation.erdos_renyi_kernel(params, sparsity, within=_flags(prunable))
        return super().counts(params, prunable, sparsity)


@dataclasses.dataclass(frozen=True)
class Channels(_Shared):
    """All weights with one index along `axis`, in every prunable leaf by itself (coupled ones are `WholeUnits`).

    Attributes:
        axis: of the channels; the last holds the outputs of Flax kernels.
        allocation: `uniform` or `global`.

    >>> pattern, params, prunable = Channels(), {"w": jnp.array([[3.0, 1.0], [4.0, 1.0]])}, {"w": True}
    >>> kept = pattern.select(pattern.entries(params, prunable), {"w": 1}, pattern.whole(params, prunable))
    >>> pattern.masks(kept, params, prunable)["w"].tolist()
    [[True, False]]
    """

    axis: int = -1
    allocation: Literal["global", "uniform"] = "uniform"

    def _others(self, ndim: int) -> list[int]:
        if not -ndim <= self.axis < ndim:
            raise ValueError(f"channels lie along axis {self.axis}, but a prunable leaf has {ndim} axes")
        return [a for a in range(ndim) if a != self.axis % ndim]

    def entries(self, values: PyTree, prunable: PyTree, how: How = "l2") -> Scores:
        return _where(prunable, values, lambda x: _reduced(x, self._others(x.ndim), how, keepdims=True), np.float32(0))

    def _grid(self, shape: Sequence[int]) -> Sequence[int]:
        others = self._others(len(shape))
        return [1 if a in others else n for a, n in enumerate(shape)]


@dataclasses.dataclass(frozen=True)
class Blocks(_Shared):
    """Rectangles of weights that hardware reads at once.

    Attributes:
        block: their lengths along the last axes; each divides its axis.
        allocation: `uniform` or `global`.

    >>> pattern, params, prunable = Blocks((2, 2)), {"w": jnp.arange(8.0).reshape(2, 4)}, {"w": True}
    >>> kept = pattern.select(pattern.entries(params, prunable), {"w": 1}, pattern.whole(params, prunable))
    >>> pattern.masks(kept, params, prunable)["w"].astype(int).tolist()
    [[0, 0, 1, 1], [0, 0, 1, 1]]

    Reference: Narang et al. 2017, "Block-Sparse Recurrent Neural Networks" (arXiv:1711.02782).
    """

    block: tuple[int, ...] = (4, 4)
    allocation: Literal["global", "uniform"] = "uniform"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block or min(self.block) < 1:
            raise ValueError(f"block is {self.block}; give its lengths along the last axes, each at least 1")

    def _split(self, shape: Sequence[int]) -> list[int]:
        """Every blocked axis as two: which block, and where in it."""
        lead, tail = list(shape[: len(shape) - len(self.block)]), shape[len(shape) - len(self.block) :]
        if len(tail) != len(self.block) or any(n % b for n, b in zip(tail, self.block, strict=True)):
            raise ValueError(f"blocks {self.block} do not divide a prunable leaf of shape {tuple(shape)}")
        return [*lead, *(d for n, b in zip(tail, self.block, strict=True) for d in (n // b, b))]

    def _runs(self, ndim: int) -> dict[int, int]:
        """The blocks' lengths by axis."""
        return {ndim - len(self.block) + i: b for i, b in enumerate(self.block)}

    def _inner(self, ndim: int) -> list[int]:
        return [ndim - len(self.block) + 2 * i + 1 for i in range(len(self.block))]

    def entries(self, values: PyTree, prunable: PyTree, how: How = "l2") -> Scores:
        def one(x: Array) -> Array:
            self._split(x.shape)
            return _reduced(layouts.split(x, self._runs(x.ndim)), self._inner(x.ndim), how)

        return _where(prunable, values, one, np.float32(0))

    def _grid(self, shape: Sequence[int]) -> Sequence[int]:
        inner = self._inner(len(shape))
        return [n for a, n in enumerate(self._split(shape)) if a not in inner]

    def masks(self, kept: Masks, params: Params, prunable: PyTree) -> Masks:
        def one(x: Array, p: bool, m: Array) -> Array:
            return layouts.widen(m, self._runs(m.ndim), x) if p else jnp.ones((), bool)

        parts = (trees.align(t, params, name, "params") for t, name in ((_flags(prunable), "prunable"), (kept, "kept")))
        return jax.tree.map(one, params, *parts)


@dataclasses.dataclass(frozen=True)
class NofM:
    """`n` of every `m` neighbours along an axis stay, as sparse tensor cores want it (2:4).

    A sparsity on the way is rounded to whole entries of a run, so that a schedule goes through 3:4 to 2:4; the last
    one has to be `1 - n/m`.

    Attributes:
        m: the length of a run.
        axis: along which the runs lie; hardware wants the axes that a product sums over. An axis or a tuple of axes
            read as one, for all leaves; rules `[(path, axes), ...]`; or a tree of axes, as `graph.contracted` finds
            them, which is kept as rules. Where nothing is said it is axis 0 of kernels `[in, out]` and axis 2 of
            `[h, w, in, out]`; any other kernel is refused. A `SparsityProblem` finds the axes itself.

    >>> pattern, params, prunable = NofM(4, axis=0), {"w": jnp.array([[1.0], [4.0], [3.0], [2.0]])}, {"w": True}
    >>> keep = pattern.counts(params, prunable, 0.5)
    >>> pattern.select(pattern.entries(params, prunable), keep, pattern.whole(params, prunable))["w"][:, 0].tolist()
    [False, True, True, False]

    Reference: Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks" (arXiv:2104.08378).
    """

    m: int = 4
    axis: Any = None
    scope: Literal["leaf", "tree"] = dataclasses.field(default="leaf", init=False)

    def __post_init__(self) -> None:
        if self.m < 2:
            raise ValueError(f"m is {self.m}; a run has at least 2 entries")
        object.__setattr__(self, "axis", run_axes.as_rules(self.axis))

    def entries(self, values: PyTree, prunable: PyTree, how: How = "l2") -> Scores:
        return Weights().entries(values, prunable, how)

    def whole(self, params: Params, prunable: PyTree) -> Masks:
        return Weights().whole(params, prunable)

    def check(self, sparsity: float) -> None:
        kept = self.m * (1 - sparsity)
        if round(kept) < 1 or abs(kept - round(kept)) > 1e-6:
            fitting = ", ".join(f"{1 - n / self.m:g}" for n in range(self.m, 0, -1))
            raise ValueError(f"sparsity {sparsity} leaves {kept:g} of every {self.m}; choose one of {fitting}")

    def counts(self, params: Params, prunable: PyTree, sparsity: float) -> PyTree:
        """Returns how many entries of every run of `m` stay at a sparsity, an integer."""
        chosen = jax.tree.leaves(_flags(prunable))
        axes = run_axes.of_leaves(self.axis, params, chosen)
        for (path, p), used, along in zip(trees.flatten(params).items(), chosen, axes, strict=True):
            shape = jnp.shape(p)
            known = all(-len(shape) <= a < len(shape) for a in along)
            if used and (not known or math.prod(shape[a] for a in along) % self.m):
                shown = along[0] if len(along) == 1 else along
                raise ValueError(f"runs of {self.m} do not divide axis {shown} of {path!r}, shape {shape}")
        return allocation.keep_count(self.m, sparsity)

    def select(
        self,
        scores: Scores,
        keep: PyTree,
        within: Masks,
        tie_break: Scores | None = None,
        *,
        method: TopkMethod = "auto",
    ) -> Masks:
        chosen = [jnp.ndim(m) > 0 for m in jax.tree.leaves(within)]
        axes = jax.tree.unflatten(jax.tree.structure(scores), run_axes.of_leaves(self.axis, scores, chosen))
        return prune.n_of_m(scores, keep, self.m, axis=axes, within=_prunable(within), tie_break=tie_break)

    def masks(self, kept: Masks, params: Params, prunable: PyTree) -> Masks:
        return masks_lib.exempt(kept, _flags(prunable))


@dataclasses.dataclass(frozen=True)
class WholeUnits:
    """Coupled units of the given groups, the same ratio removed in each: filters, heads, dimensions, neurons.

    `prunable` does not matter here; kept entries are `{group: bool[C]}`.

    Attributes:
        groups: whose units are pruned.
        min_units: the least number of units that stay in a group.
    """

    groups: tuple[Group, ...]
    min_units: int = 1
    scope: Literal["leaf", "tree"] = dataclasses.field(default="leaf", init=False)

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("no groups to prune units of; give a model's groups")

    def entries(self, values: PyTree, prunable: PyTree, how: How = "l2") -> Scores:
        return units.reduce(values, self.groups, how)

    def whole(self, params: Params, prunable: PyTree) -> Masks:
        return units.full(self.groups)

    def check(self, sparsity: float) -> None:
        """Raises nothing: whatever the sparsity, at least `min_units` stay in each group."""

    def counts(self, params: Params, prunable: PyTree, sparsity: float) -> PyTree:
        return allocation.keep_counts(self.groups, sparsity, self.min_units)

    def select(
        self,
        scores: Scores,
        keep: PyTree,
        within: Masks,
        tie_break: Scores | None = None,
        *,
        method: TopkMethod = "auto",
    ) -> Masks:
        return prune.by_leaf(scores, keep, within=within, tie_break=tie_break, method=method)

    def masks(self, kept: Masks, params: Params, prunable: PyTree) -> Masks:
        return units.expand(kept, self.groups, params)


__all__ = ["Blocks", "Channels", "How", "NofM", "Pattern", "Weights", "WholeUnits"]
