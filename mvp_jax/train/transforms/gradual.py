"""Gradual pruning as an optax wrapper: `prune_on_schedule` prunes as an optimiser trains."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from mvp_jax.core import patterns, schedules, trees
from mvp_jax.core.topk import TopkMethod
from mvp_jax.core.types import Array, Masks, Params, PyTree
from mvp_jax.train.transforms import counting, holding

Importance: TypeAlias = Callable[[Params, Params], PyTree]
"""`(params, grads) -> values` in the parameters' shapes, higher = keep. The parameters are those after the update, the
gradients those that the optimiser was given."""


class PruneOnScheduleState(NamedTuple):
    """The state of an optimiser made by `prune_on_schedule`.

    Attributes:
        count: number of updates done, int32[].
        times: the numbers of the updates that prune, int32[events].
        keep: how many entries stay after so many prunings, the first being all of them: int32[events + 1]
            (`counts.Words` of such arrays for 2^31 entries and more), or a tree of them (see `Pattern.counts`).
        kept: the entries that are left, booleans as the pattern has them; empty where the masks say the same
            (`Weights`, `Channels` and `NofM`).
        masks: booleans that broadcast to the parameters, True = keep.
        inner: the wrapped optimiser's state.
    """

    count: Array  # type: ignore[assignment]
    times: Array
    keep: PyTree
    kept: Masks
    masks: Masks
    inner: optax.OptState


@functools.partial(jax.jit, static_argnames=("pattern", "scores", "chosen", "method"))
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
    method: TopkMethod,
) -> tuple[Masks, Masks]:
    """Returns kept entries and masks after the event; the old ones where none is due."""
    prunable = jax.tree.unflatten(jax.tree.structure(params), chosen)
    bare = _says_all(pattern)
    kept, masks = old
    # A branch takes long to compile with every array that goes through it: only what it reads and changes does.
    changing = _prunable(masks, chosen) if bare else jax.tree.leaves((kept, masks))
    if bare and scores is None:
        params, updates = (jax.tree.map(lambda p, x: x if p else np.float32(0), prunable, t) for t in (params, updates))
    leaves, structure = jax.tree.flatten((event, keep, params, updates, grads))
    parts = jax.tree.structure(old)

    def change(old: list[Array], inputs: list[Array]) -> list[Array]:
        event, keep, params, updates, grads = jax.tree.unflatten(structure, inputs)
        if bare:
            masks = _with_others(old, prunable, True)
            within = _with_others(old, prunable, False)
        else:
            within, masks = jax.tree.unflatten(parts, old)
        # Zeroes first: a weight that one unit took along must not count for the other that it belongs to.
        new = holding.zero_pruned(optax.apply_updates(params, updates), masks)
        if scores is None:
            entries = pattern.entries(new, prunable)
        else:
            values = trees.align(scores(new, grads), params, "what `scores` returned", "params")
            entries = pattern.entries(values, prunable, "sum")
        # A pattern of one's own need not know of methods.
        how = {} if method == "auto" else {"method": method}
        kept = pattern.select(entries, jax.tree.map(lambda k: k[event], keep), within, **how)
        if bare:
            return _prunable(kept, chosen)
        # In the containers that the state has had from the start.
        return jax.tree.leaves((trees.align(kept, within), pattern.masks(kept, params, prunable)))

    # The choice has no derivative; stopped here, a loop may be differentiated through, as custom_vmap alone may not.
    leaves = [lax.stop_gradient(x) for x in leaves]
    new = holding.when(due, change, changing, leaves)
    if not bare:
        return jax.tree.unflatten(parts, new)
    mine = iter(new)
    return kept, jax.tree.map(lambda c, m: next(mine) if c else m, prunable, masks)


def _says_all(pattern: patterns.Pattern) -> bool:
    """Returns whether a pattern's masks are its kept entries, with `True` for the leaves that are not prunable."""
    return isinstance(pattern, (patterns.Weights, patterns.Channels, patterns.NofM))


def _prunable(masks: Masks, chosen: Sequence[bool]) -> list[Array]:
    return [m for m, c in zip(jax.tree.leaves(masks), chosen, strict=True) if c]


def _with_others(leaves: Sequence[Array], prunable: PyTree, value: bool) -> Masks:
    """Returns the masks of the prunable leaves as a tree of all, with one value for the others."""
    mine = iter(leaves)
    return jax.tree.map(lambda c: next(mine) if c else jnp.asarray(value), prunable)


def _every(steps: int, begin: int, every: int | None) -> int:
    """Returns the number of updates from one pruning to the next, after checking the settings of time."""
    for name, value in (("steps", steps), ("begin", begin), ("every", every)):
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name} is a jax.Array, but it is a Python integer; optax.inject_hyperparams leaves it one with "
                "static_args=('steps', 'begin', 'every')"
            )
    every = max(1, steps // 100) if every is None else every
    if steps < 1 or begin < 0 or not 1 <= every <= steps:
        raise ValueError(
            f"steps is {steps}, begin {begin}, every {every}; pruning takes at least one step, begins at 0 or later, "
            "and happens every 1 to `steps` updates"
        )
    return every


def named_schedule(schedule: str | schedules.Schedule) -> schedules.Schedule:
    """Returns the schedule of a name, or the function that was given in its place."""
    if not isinstance(schedule, str):
        return schedule
    if schedule not in schedules.SCHEDULES:
        raise ValueError(f"unknown schedule {schedule!r}; choose one of {sorted(schedules.SCHEDULES)}")
    return schedules.SCHEDULES[schedule]


def _pattern(pattern: patterns.Pattern | str | None, sparsity: Any) -> patterns.Pattern:
    """Returns the pattern that is meant by its name, or by none."""
    if pattern is None:
        pattern = "uniform" if counting.varies(sparsity) else "global"
    if isinstance(pattern, str):
        pattern = patterns.Weights(pattern)  # type: ignore[arg-type]
    if counting.varies(sparsity) and getattr(pattern, "allocation", None) == "erk":
        raise ValueError(
            "pattern 'erk' distributes one sparsity over the leaves, but sparsity has one for each; give one number or "
            "the pattern 'uniform'"
        )
    return pattern


def prune_on_schedule(
    tx: optax.GradientTransformation,
    *,
    sparsity: Any,
    steps: int,
    prunable: PyTree | trees.PathRules,
    begin: int = 0,
    every: int | None = None,
    schedule: str | schedules.Schedule = "cubic",
    pattern: patterns.Pattern | str | None = None,
    scores: Importance | None = None,
    method: TopkMethod = "auto",
) -> optax.GradientTransformationExtraArgs:
    r"""Returns an optimiser that prunes gradually as it trains: it removes the least entries every few updates.

    Update number `begin` + $t$, for $t$ up to $T$ = `steps` a multiple of `every`, and for the last in any case, prunes
    to $s_t = s_T (1 - (1 - t/T)^3)$ (`cubic`): of the entries left, exactly as many stay as `pattern.counts` says,
    those with the largest parameters after the update. From then on the mask is held as `keep_mask` holds it, and what
    is said there of infinite parameters holds too. The first update is number 1, so a loop of `begin` + `steps` updates
    ends at $s_T$.

    Updates that do not prune select nothing; under `jax.vmap` those in which no member prunes. When to prune, and how
    many entries stay, is in the state: a step that was compiled with one of these optimisers serves the states of
    others that differ in `sparsity`, `schedule` or `begin`, or in `steps` and `every` if they prune as many times, also
    stacked. So a restored state goes on to its own target; `check(params, state, tx)` warns if that is not the
    optimiser's, and `restart` sets another one.

    `optax.inject_hyperparams` may change `sparsity` between updates (with `static_args` for the other settings, and
    `hyperparam_dtype=jnp.float32` if parameters are in half precision). Counts are then computed on the device at every
    update, exactly but for the sparsity, which is rounded to float32: of $n$ entries that compete, the number that
    stays in the end differs by at most $n / 2^{25} + 1$ from that for the exact sparsity, and by a few times as many
    on the way. A lower sparsity than was reached brings nothing back.

    Args:
        tx: the whole optimiser, with clipping and schedules.
        sparsity: $s_T$, the fraction of entries that is removed in the end, in [0, 1). For leaves with sparsities of
            their own: rules over paths, `[(".*attention.*", 0.9), (".*", 0.5)]`, of which the first that matches holds,
            or a tree of numbers like the parameters; every prunable leaf needs one. Rules name groups where the
            pattern is one of units.
        steps: $T$, the number of updates that the schedule takes.
        prunable: rules over paths, as `Model.prunable`, or a tree of Python booleans; `[]` for a pattern of units,
            which names its weights itself.
        begin: number of updates before the schedule starts.
        every: number of updates from one pruning to the next; `None`: a hundredth of `steps`.
        schedule: a name in `schedules.SCHEDULES`, or a function like those; at 0 nothing is pruned.
        pattern: which weights are one entry, and how the sparsity is distributed over leaves. A name stands for single
            weights: `global` (one threshold for all leaves, the default), `uniform` (the same sparsity in each leaf,
            the default if leaves have sparsities of their own) or `erk` (small kernels stay denser).
        scores: see `Importance`; values of the weights of one entry are summed. It is called when pruning is due.
            `None`: magnitude.
        method: how entries are selected, as in `prune.across_tree`; the results do not differ.

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
    every = _every(steps, begin, every)
    share = named_schedule(schedule)
    done = [min(i * every, steps) for i in range(1, -(-steps // every) + 1)]
    pattern = _pattern(pattern, sparsity)
    targets = counting.numbers(sparsity)
    traced = any(isinstance(s, jax.Array) for s in targets)
    for s in targets:
        share(steps, steps, s)
        if not isinstance(s, jax.Array):
            pattern.check(s)
    tx = optax.with_extra_args_support(tx)

    def counted(params: Params, chosen: PyTree) -> PyTree:
        if traced:
            return counting.on_device(pattern, params, chosen, sparsity, counting.shares(schedule, done, steps))
        reached = [lambda s, t=t: float(share(t, steps, s)) for t in done]
        return counting.on_host(pattern, params, chosen, sparsity, reached)

    def init(params: Params) -> PruneOnScheduleState:
        holding.check_arrays(params)
        chosen = holding.chosen(params, prunable)

        def kept(params: Params) -> Masks:
            return pattern.whole(params, chosen)

        def masks(params: Params) -> Masks:
            return pattern.masks(kept(params), params, chosen)

        state = PruneOnScheduleState(
            count=jnp.zeros((), jnp.int32),
            times=jnp.asarray([begin + t for t in done], jnp.int32),
            keep=holding.copies(counted(params, chosen)),
            kept=() if _says_all(pattern) else holding.whole(kept, params, scalar=False),
            masks=holding.whole(masks, params, scalar=True),
            inner=tx.init(params),
        )
        return holding.placed(state, params)

    def update(
        grads: Params, state: PruneOnScheduleState, params: Params | None = None, **extra: Any
    ) -> tuple[Params, PruneOnScheduleState]:
        params, grads, masks = holding.aligned(params, grads, state.masks)
        masked = holding.zero_pruned(params, masks)
        updates, inner = tx.update(holding.zero_pruned(grads, masks), state.inner, masked, **extra)
        chosen = holding.chosen(params, prunable)
        count = optax.safe_increment(state.count)
        keep = counted(params, chosen) if traced else state.keep
        kept, masks = _prune(
            jnp.sum(state.times == count) > 0,
            jnp.sum(state.times <= count),
            (state.kept, masks),
            keep,
            params,
            updates,
            None if scores is None else grads,
            pattern=pattern,
            scores=scores,
            chosen=tuple(map(bool, jax.tree.leaves(chosen))),
            method=method,
        )
        new = state._replace(count=count, keep=keep, kept=kept, masks=trees.align(masks, state.masks), inner=inner)
        return holding.hold(updates, params, masks, scalars=False), new

    return optax.GradientTransformationExtraArgs(init, update)
