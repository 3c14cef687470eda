"""Optax wrappers for sparse training from scratch: weights are exchanged while an optimiser trains those that are kept.

The number of kept entries in a leaf never changes. Every few updates the smallest of them are dropped and as many
grow, those with the largest gradients (RigL) or random ones (SET).

Sources: Mocanu et al. 2018, SET (arXiv:1707.04780); Evci et al. 2020, RigL (arXiv:1911.11134), algorithm 1.
"""

import functools
import math
from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.sharding import NamedSharding

from mvp_jax.core import allocation, layouts, patterns, prune, trees
from mvp_jax.core import masks as masks_lib
from mvp_jax.core.types import Array, Key, Masks, Params, PyTree, Scores
from mvp_jax.train.transforms import holding


class RegrowthState(NamedTuple):
    """The state of an optimiser made by `rigl` or `sparse_evolution`.

    Attributes:
        count: number of updates done, int32[].
        kept: the entries that are kept, booleans as the pattern has them.
        masks: booleans that broadcast to the parameters, True = keep.
        inner: the wrapped optimiser's state.
        key: what random growth draws from, the data of a key as `jax.random.key_data` gives it; `None` for `rigl`.
    """

    count: Array  # type: ignore[assignment]
    kept: Masks
    masks: Masks
    inner: optax.OptState
    key: Array | None


def _noise(key: Key, entries: Scores) -> Scores:
    """Returns random numbers in the shapes of the entries, uniform in [0, 1), that are sharded as the entries are."""

    def draw(key: Key, like: Array) -> Array:
        if allocation.concrete(like) and isinstance(like, jax.Array) and isinstance(like.sharding, NamedSharding):
            return jax.jit(jax.random.uniform, static_argnums=1, out_shardings=like.sharding)(key, like.shape)
        return layouts.placed(jax.random.uniform(key, jnp.shape(like)), like)

    leaves, structure = jax.tree.flatten(entries)
    keys = jax.random.split(key, len(leaves))
    return jax.tree.unflatten(structure, [draw(k, x) for k, x in zip(keys, leaves, strict=True)])


def _first(
    params: Params, chosen: PyTree, pattern: patterns.Pattern, sparsity: float, key: Key | None
) -> tuple[Masks, Masks]:
    """Returns the first kept entries and masks: random ones, or without a key those of the largest parameters."""
    whole, counts = pattern.whole(params, chosen), pattern.counts(params, chosen, sparsity)
    if not any(jax.tree.leaves(counts)):
        raise ValueError(
            f"nothing would stay of what is prunable at sparsity {sparsity} with {pattern}; name leaves to prune "
            "(`prunable`), or a sparsity that leaves some entries"
        )
    values = pattern.entries(params, chosen)
    kept = pattern.select(values if key is None else _noise(key, values), counts, whole)
    return kept, pattern.masks(kept, params, chosen)


@functools.partial(jax.jit, static_argnames=("pattern", "chosen", "random"))
def _exchange(
    due: Array,
    event: Array,
    fraction: Array,
    old: tuple[Masks, Masks],
    params: Params,
    grads: Params | None,
    key: Array | None,
    *,
    pattern: patterns.Pattern,
    chosen: tuple[bool, ...],
    random: Hashable,
) -> tuple[Masks, Masks]:
    """Returns kept entries and masks after an exchange; the old ones where none is due.

    Entries that were just dropped may grow again at once (algorithm 1 of RigL: all that do not stay compete), so a leaf
    that is dense stays as it is. `random` is the implementation of the key, `None` for growth by gradients.
    """
    prunable = jax.tree.unflatten(jax.tree.structure(params), chosen)
    leaves, structure = jax.tree.flatten((event, fraction, params, grads, key))
    parts = jax.tree.structure(old)

    def change(old: list[Array], inputs: list[Array]) -> list[Array]:
        event, fraction, params, grads, key = jax.tree.unflatten(structure, inputs)
        kept, _ = jax.tree.unflatten(parts, old)
        have = jax.tree.map(lambda m: jnp.sum(m, dtype=jnp.int32) if jnp.ndim(m) else jnp.int32(0), kept)
        come = jax.tree.map(
            lambda n: jnp.clip(jnp.rint(fraction * n.astype(jnp.float32)).astype(jnp.int32), 0, n), have
        )
        stay = jax.tree.map(jnp.subtract, have, come)
        size = pattern.entries(params, prunable)
        if random is None:
            growth = pattern.entries(grads, prunable)
        else:
            growth = _noise(jax.random.fold_in(jax.random.wrap_key_data(key, impl=random), event), size)
        inside = jax.tree.map(lambda m: m if jnp.ndim(m) else False, kept)
        staying = prune.by_leaf(size, stay, within=inside)
        outside = jax.tree.map(lambda s, m: ~s if jnp.ndim(m) else False, staying, kept)
        kept = masks_lib.union(staying, prune.by_leaf(growth, come, within=outside))
        return jax.tree.leaves((kept, pattern.masks(kept, params, prunable)))

    # The choice has no derivative; stopped here, a loop may be differentiated through, as custom_vmap alone may not.
    leaves = [lax.stop_gradient(x) for x in leaves]
    return jax.tree.unflatten(parts, holding.when(due, change, jax.tree.leaves(old), leaves))


@jax.jit
def _instead(
    due: Array, updates: Params, stepped: optax.OptState, before: optax.OptState, params: Params, both: Masks
) -> tuple[Params, optax.OptState]:
    """Returns updates and inner state: those of the step, or, where an exchange is due, zeroes and the state before it.

    The moments of dropped entries become zero then, so that they are zero when an entry grows. What belongs to a
    parameter in the inner state is found by its path, which ends in that of the parameter, and by its shape.
    """
    flags, shapes = trees.flatten(both), {k: jnp.shape(p) for k, p in trees.flatten(params).items()}

    def mask_of(path: str, leaf: Any) -> Array | None:
        parts = path.split("/") if path else []
        ends = ("/".join(parts[i:]) for i in range(len(parts) + 1))
        found = next((end for end in ends if end in flags), None)
        if found is None or jnp.shape(leaf) != shapes[found] or not jnp.ndim(flags[found]):
            return None
        return flags[found]

    def one(path: str, new: Any, old: Any) -> Any:
        mask = mask_of(path, old)
        return jnp.where(due, old if mask is None else jnp.where(mask, old, jnp.zeros((), old.dtype)), new)

    updates = jax.tree.map(lambda u: jnp.where(due, jnp.zeros((), u.dtype), u), updates)
    return updates, jax.tree.map(one, trees.paths(before), stepped, before)


def _check(
    sparsity: Any, steps: Any, every: Any, begin: Any, drop_fraction: Any, pattern: Any, initial: str, key: Any
) -> None:
    if not allocation.concrete(sparsity, steps, every, begin):
        raise ValueError(
            "sparsity, steps, every or begin is traced, but they are numbers on the host; with "
            "optax.inject_hyperparams name them in static_args=('sparsity', 'steps', 'every', 'begin', 'key')"
        )
    if begin < 0 or not 1 <= every < steps:
        raise ValueError(
            f"steps is {steps}, begin {begin}, every {every}; entries are exchanged every 1 to `steps` - 1 updates, "
            "and begin is 0 or later"
        )
    if allocation.concrete(drop_fraction) and not 0 <= float(drop_fraction) < 1:
        raise ValueError(f"drop_fraction is {drop_fraction}, but is the share of kept entries to exchange, in [0, 1)")
    if initial not in ("random", "magnitude"):
        raise ValueError(f"initial is {initial!r}; choose 'random' or 'magnitude'")
    if initial == "random" and key is None:
        raise ValueError("a random first mask needs a key; give key=jax.random.key(0), or initial='magnitude'")
    if isinstance(pattern, (patterns.NofM, patterns.WholeUnits)):
        raise ValueError(
            f"entries of {pattern} cannot be exchanged one by one within a leaf; choose Weights, Blocks or Channels, "
            "or transforms.straight_through for N:M"
        )
    pattern.check(sparsity)


def _regrowth(
    tx: optax.GradientTransformation,
    *,
    sparsity: float,
    steps: int,
    prunable: PyTree | trees.PathRules,
    every: int,
    begin: int,
    drop_fraction: float | Array,
    pattern: patterns.Pattern | None,
    initial: str,
    key: Key | None,
    random: bool,
) -> optax.GradientTransformationExtraArgs:
    pattern = patterns.Weights("erk") if pattern is None else pattern
    _check(sparsity, steps, every, begin, drop_fraction, pattern, initial, key)
    events = (int(steps) - 1) // int(every)
    shares = np.array([(1 + math.cos(math.pi * i * every / steps)) / 2 for i in range(events + 1)], np.float32)
    implementation = jax.random.key_impl(key) if random and key is not None else None
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> RegrowthState:
        chosen = holding.chosen(params, prunable)
        start = jax.random.fold_in(key, 0) if initial == "random" else None  # type: ignore[arg-type]
        kept, masks = _first(params, chosen, pattern, float(sparsity), start)
        state = RegrowthState(
            count=jnp.zeros((), jnp.int32),
            kept=holding.copies(kept),
            masks=holding.copies(masks),
            inner=tx.init(masks_lib.apply(params, masks)),
            key=holding.copies(jax.random.key_data(key)) if random else None,  # type: ignore[arg-type]
        )
        return holding.placed(state, params)

    def update(
        grads: Params, state: RegrowthState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, RegrowthState]:
        params, grads, held = holding.aligned(params, grads, state.masks)
        masked = masks_lib.apply(params, held)
        count = optax.safe_increment(state.count)
        done = count - begin
        due = (done > 0) & (done < steps) & (done % every == 0)
        event = jnp.clip(done // every, 0, events)
        kept, masks = _exchange(
            due,
            event,
            jnp.asarray(drop_fraction, jnp.float32) * jnp.asarray(shares)[event],
            (state.kept, held),
            masked,
            None if random else grads,
            state.key,
            pattern=pattern,
            chosen=tuple(map(bool, jax.tree.leaves(holding.chosen(params, prunable)))),
            random=implementation,
        )
        updates, inner = tx.update(masks_lib.apply(grads, held), state.inner, masked, **extra)
        both = masks_lib.intersect(held, masks)
        updates, inner = _instead(due, updates, inner, state.inner, params, both)
        return holding.hold(updates, params, both), RegrowthState(count, kept, masks, inner, state.key)

    return optax.GradientTransformationExtraArgs(init, update)


def rigl(
    tx: optax.GradientTransformation,
    *,
    sparsity: float,
    steps: int,
    prunable: PyTree | trees.PathRules,
    every: int = 100,
    begin: int = 0,
    drop_fraction: float | Array = 0.3,
    pattern: patterns.Pattern | None = None,
    initial: Literal["random", "magnitude"] = "random",
    key: Key | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimiser that trains sparse weights, and moves some of them to where gradients are large: RigL.

    Update number `begin` + $t$, for every multiple $t < T$ of `every` ($T$ = `steps`), exchanges entries instead of
    taking a step. In each leaf the $k = \frac{\alpha}{2} (1 + \cos \frac{\pi t}{T}) \cdot n$ (rounded) smallest of its
    $n$ kept entries are dropped; of all entries that do not stay, those just dropped included, the $k$ with the largest
    gradients grow. An entry that was dropped and grows in one exchange keeps its weight, others start at 0 with zero
    moments. On such an update the other weights and the state of `tx` (its moments, the count of its schedules) stay as
    they are. On all others the mask is held as `keep_mask` holds it.

    The gradients that `update` is given decide what grows, so they must be dense: those of the loss at the masked
    parameters, in which pruned weights are 0. `jax.grad` at the parameters of the loop gives just these. The first
    update masks the parameters; `masks.apply(params, masks_of(state))` after `init` does so before.

    A step that was compiled with one of these optimisers serves the states of others that differ in `sparsity`,
    `initial` and `key`, also stacked; updates in which nothing is exchanged select nothing.

    Args:
        tx: the whole optimiser, with clipping and schedules.
        sparsity: the fraction of entries that is pruned at any time, in [0, 1).
        steps: $T$, the number of updates during which entries are exchanged; three quarters of the training in the
            paper.
        prunable: rules over paths, as `Model.prunable`, or a tree of Python booleans.
        every: number of updates from one exchange to the next, less than `steps`.
        begin: number of updates before $t = 0$.
        drop_fraction: $\alpha$, the fraction of each leaf's kept entries that is exchanged at first, in [0, 1). It may
            be traced (`optax.inject_hyperparams` with the other numbers and `key` in `static_args`). At 0 the first
            mask stays, but the updates of exchanges still take no step.
        pattern: which weights are one entry, and how the sparsity is distributed over leaves: `Weights`, `Blocks` or
            `Channels`; `None`: `patterns.Weights("erk")`. Numbers of an entry of several weights are combined by their
            Euclidean norm.
        initial: whether the first mask keeps `random` entries, or by `magnitude` those of the largest parameters.
        key: what the random first mask is drawn from; not needed for `magnitude`.

    Returns:
        An optimiser; its `update` needs the parameters, and passes further arguments on. `masks_of(state)` has the
        masks.

    Raises:
        ValueError: for settings out of range, by `init` for rules or shapes that do not fit, by `update` without
            parameters.

    >>> params, target = {"w": jnp.array([0.1, 2.0, 3.0, 4.0])}, {"w": jnp.array([0.0, 2.0, 9.0, 5.0])}
    >>> settings = {"sparsity": 0.5, "steps": 8, "every": 2, "drop_fraction": 0.5, "initial": "magnitude"}
    >>> tx = rigl(optax.sgd(0.5), prunable=["w"], **settings)
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(jax.tree.map(jnp.subtract, params, target), state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params["w"].tolist())
    [0.0, 0.0, 6.0, 4.5]
    [0.0, 0.0, 6.0, 0.0]
    [0.0, 1.0, 7.5, 0.0]

    Reference: Evci et al. 2020, "Rigging the Lottery: Making All Tickets Winners" (arXiv:1911.11134), algorithm 1.
    """
    return _regrowth(
        tx,
        sparsity=sparsity,
        steps=steps,
        prunable=prunable,
        every=every,
        begin=begin,
        drop_fraction=drop_fraction,
        pattern=pattern,
        initial=initial,
        key=key,
        random=False,
    )


def sparse_evolution(
    tx: optax.GradientTransformation,
    *,
    sparsity: float,
    steps: int,
    prunable: PyTree | trees.PathRules,
    key: Key,
    every: int = 100,
    begin: int = 0,
    drop_fraction: float | Array = 0.3,
    pattern: patterns.Pattern | None = None,
    initial: Literal["random", "magnitude"] = "random",
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimiser that trains sparse weights, and exchanges the smallest of them for random ones: SET.

    It works as `rigl` does, apart from what grows: of all entries of a leaf that do not stay, those just dropped
    included, $k$ are drawn at random, each set of them with the same probability. Gradients do not matter for the
    choice. As in the comparison of Evci et al., those with the smallest magnitudes are dropped whatever their sign
    (Mocanu et al. drop a fraction of the positive and the same fraction of the negative weights), their number falls
    on a half cosine (there: is constant), and new weights start at 0 (there: at random values).

    Args:
        tx: the whole optimiser, with clipping and schedules.
        sparsity: the fraction of entries that is pruned at any time, in [0, 1).
        steps: the number of updates during which entries are exchanged.
        prunable: rules over paths, as `Model.prunable`, or a tree of Python booleans.
        key: the source of all randomness. Its data is copied into the state, and `update` reads it there: members of a
            stack may have keys of their own.
        every: number of updates from one exchange to the next, less than `steps`.
        begin: number of updates before the first interval begins.
        drop_fraction: the fraction of each leaf's kept entries that is exchanged at first, in [0, 1). It may be traced.
        pattern: which weights are one entry, and how the sparsity is distributed over leaves: `Weights`, `Blocks` or
            `Channels`; `None`: `patterns.Weights("erk")`.
        initial: whether the first mask keeps `random` entries, or by `magnitude` those of the largest parameters.

    Returns:
        An optimiser; its `update` needs the parameters, and passes further arguments on. `masks_of(state)` has the
        masks.

    Raises:
        ValueError: for settings out of range, by `init` for rules or shapes that do not fit, by `update` without
            parameters.

    >>> params = {"w": jnp.arange(1.0, 9.0)}
    >>> tx = sparse_evolution(optax.sgd(0.1), sparsity=0.5, steps=9, every=1, prunable=["w"], key=jax.random.key(0))
    >>> state = tx.init(params)
    >>> for _ in range(3):
    ...     updates, state = tx.update(params, state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(int(masks_lib.count(state.masks)))
    4
    4
    4

    Reference: Mocanu et al. 2018, "Scalable training of artificial neural networks with adaptive sparse connectivity
    inspired by network science" (arXiv:1707.04780), algorithm 1.
    """
    return _regrowth(
        tx,
        sparsity=sparsity,
        steps=steps,
        prunable=prunable,
        every=every,
        begin=begin,
        drop_fraction=drop_fraction,
        pattern=pattern,
        initial=initial,
        key=key,
        random=True,
    )
