"""Gradual pruning as an optax wrapper: `prune_on_schedule` prunes as an optimiser trains."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mvp_jax.core import masks as masks_lib
from mvp_jax.core import patterns, schedules, trees
from mvp_jax.core.types import Array, Masks, Params, PyTree
from mvp_jax.train.transforms import holding

Importance: TypeAlias = Callable[[Params, Params], PyTree]
"""`(params, grads) -> values` in the parameters' shapes, higher = keep. The parameters are those after the update, the
gradients those that the optimiser was given."""


class PruneOnScheduleState(NamedTuple):
    """The state of an optimiser made by `prune_on_schedule`.

    Attributes:
        count: number of updates done, int32[].
        keep: how many entries stay after each pruning: int32[events], or a tree of such arrays (see `Pattern.counts`).
        kept: the entries that are left, booleans as the pattern has them.
        masks: booleans that broadcast to the parameters, True = keep.
        inner: the wrapped optimiser's state.
    """

    count: Array  # type: ignore[assignment]
    keep: PyTree
    kept: Masks
    masks: Masks
    inner: optax.OptState


@functools.partial(jax.jit, static_argnames=("pattern", "scores", "chosen"))
def _prune(
    due: Array,
    event: Array,
    old: tuple[Masks, Masks],
    keep: PyTree,
    params: Params,
    updates: Params,
    grads: Params | None,
    *,
    pattern: patterns.Pattern,
    scores: Importance | None,
    chosen: tuple[bool, ...],
) -> tuple[Masks, Masks]:
    """Returns kept entries and masks after the event; the old ones where none is due."""
    prunable = jax.tree.unflatten(jax.tree.structure(params), chosen)
    leaves, structure = jax.tree.flatten((event, keep, params, updates, grads))
    parts = jax.tree.structure(old)

    def change(old: list[Array], inputs: list[Array]) -> list[Array]:
        event, keep, params, updates, grads = jax.tree.unflatten(structure, inputs)
        within, masks = jax.tree.unflatten(parts, old)
        # Zeroes first: a weight that one unit took along must not count for the other that it belongs to.
        new = masks_lib.apply(optax.apply_updates(params, updates), masks)
        if scores is None:
            entries = pattern.entries(new, prunable)
        else:
            values = scores(new, grads)
            trees.check_same_structure(params, values, "params", "what `scores` returned")
            entries = pattern.entries(values, prunable, "sum")
        kept = pattern.select(entries, jax.tree.map(lambda k: k[event], keep), within)
        return jax.tree.leaves((kept, pattern.masks(kept, params, prunable)))

    # The choice has no derivative; stopped here, a loop may be differentiated through, as custom_vmap alone may not.
    leaves = [lax.stop_gradient(x) for x in leaves]
    return jax.tree.unflatten(parts, holding.when(due, change, jax.tree.leaves(old), leaves))


def _counts(pattern: patterns.Pattern, params: Params, prunable: PyTree, sparsities: Sequence[float]) -> PyTree:
    """Returns how many entries stay after each event: int32[events], or a tree of such arrays.

    Nowhere do they rise, since entries that are gone cannot come back: where rounding gives a leaf one entry more at a
    higher sparsity (largest remainders do), it is not removed before.
    """
    counts = [pattern.counts(params, prunable, s) for s in sparsities]
    if not any(jax.tree.leaves(counts[-1])):
        raise ValueError(
            f"nothing would stay of what is prunable at sparsity {sparsities[-1]} with {pattern}; name leaves to prune "
            "(`prunable`), or a sparsity that leaves some entries"
        )

    def falling(*k: int) -> np.ndarray:
        return np.maximum.accumulate(np.array(k[::-1], np.int32))[::-1]

    return jax.tree.map(falling, *counts)


def prune_on_schedule(
    tx: optax.GradientTransformation,
    *,
    sparsity: float,
    steps: int,
    prunable: PyTree | trees.PathRules,
    begin: int = 0,
    every: int | None = None,
    schedule: str | schedules.Schedule = "cubic",
    pattern: patterns.Pattern | None = None,
    scores: Importance | None = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimiser that prunes gradually as it trains: it removes the least entries every few updates.

    Update number `begin` + $t$, for $t$ up to $T$ = `steps` a multiple of `every`, and for the last in any case, prunes
    to $s_t = s_T (1 - (1 - t/T)^3)$ (`cubic`): of the entries left, exactly as many stay as `pattern.counts` says,
    those with the largest parameters after the update. From then on the mask is held as `keep_mask` holds it. The
    first update is number 1, so a loop of `begin` + `steps` updates ends at $s_T$.

    Updates that do not prune select nothing; under `jax.vmap` those in which no member prunes. How many entries stay
    is in the state: a step that was compiled with one of these optimisers serves the states of others that differ in
    `sparsity` or `schedule`, also stacked.

    Args:
        tx: the whole optimiser, with clipping and schedules.
        sparsity: $s_T$, the fraction of entries that is removed in the end, in [0, 1).
        steps: $T$, the number of updates that the schedule takes.
        prunable: rules over paths, as `Model.prunable`, or a tree of Python booleans; `[]` for a pattern of units,
            which names its weights itself.
        begin: number of updates before the schedule starts.
        every: number of updates from one pruning to the next; `None`: a hundredth of `steps`.
        schedule: a name in `schedules.SCHEDULES`, or a function like those; at 0 nothing is pruned.
        pattern: which weights are one entry, and how the sparsity is distributed over leaves; `None`:
            `patterns.Weights()`, single weights with one threshold for all leaves.
        scores: see `Importance`; values of the weights of one entry are summed. It is called when pruning is due.
            `None`: magnitude.

    Returns:
        An optimiser; its `update` needs the parameters, and passes further arguments on. `masks_of(state)` has the
        masks. An optimiser that averages parameters inside (schedule-free) does not mask its averages: apply the masks
        to what is read from there.

    Raises:
        ValueError: for settings out of range, by `init` for rules or shapes that do not fit, by `update` without
            parameters.

    >>> params = {"kernel": jnp.array([1.0, -4.0, 2.0, 3.0]), "bias": jnp.array([0.1])}
    >>> tx = prune_on_schedule(optax.sgd(0.1), sparsity=0.75, steps=2, prunable=["kernel"], schedule="linear")
    >>> state = tx.init(params)
    >>> for _ in range(2):
    ...     updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
    ...     params = optax.apply_updates(params, updates)
    ...     print(params["kernel"].tolist())
    [0.0, -4.0, 0.0, 3.0]
    [0.0, -4.0, 0.0, 0.0]

    Reference: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878), equation 1.
    """
    every = max(1, steps // 100) if every is None else every
    if steps < 1 or begin < 0 or not 1 <= every <= steps:
        raise ValueError(
            f"steps is {steps}, begin {begin}, every {every}; pruning takes at least one step, begins at 0 or later, "
            "and happens every 1 to `steps` updates"
        )
    if isinstance(schedule, str) and schedule not in schedules.SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; choose one of {sorted(schedules.SCHEDULES)}")
    share = schedules.SCHEDULES[schedule] if isinstance(schedule, str) else schedule
    events = -(-steps // every)
    sparsities = [float(share(min(i * every, steps), steps, sparsity)) for i in range(1, events + 1)]
    pattern = patterns.Weights() if pattern is None else pattern
    pattern.check(sparsity)
    tx = optax.with_extra_args_support(tx)

    def init(params: Params) -> PruneOnScheduleState:
        chosen = holding.chosen(params, prunable)
        kept = pattern.whole(params, chosen)
        return PruneOnScheduleState(
            count=jnp.zeros((), jnp.int32),
            keep=holding.copies(_counts(pattern, params, chosen, sparsities)),
            kept=holding.copies(kept),
            masks=holding.copies(pattern.masks(kept, params, chosen)),
            inner=tx.init(params),
        )

    def update(
        grads: Params, state: PruneOnScheduleState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, PruneOnScheduleState]:
        params = holding.checked(params, grads, state.masks)
        masked = masks_lib.apply(params, state.masks)
        updates, inner = tx.update(masks_lib.apply(grads, state.masks), state.inner, masked, **extra)
        count = optax.safe_increment(state.count)
        done = count - begin
        due = (done > 0) & (done <= steps) & ((done % every == 0) | (done == steps))
        event = jnp.clip((done + every - 1) // every - 1, 0, events - 1)
        kept, masks = _prune(
            due,
            event,
            (state.kept, state.masks),
            state.keep,
            params,
            updates,
            None if scores is None else grads,
            pattern=pattern,
            scores=scores,
            chosen=tuple(map(bool, jax.tree.leaves(holding.chosen(params, prunable)))),
        )
        return holding.hold(updates, params, masks), PruneOnScheduleState(count, state.keep, kept, masks, inner)

    return optax.GradientTransformationExtraArgs(init, update)
