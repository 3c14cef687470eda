"""A new target for a schedule that has run: `restart` gives a state that goes on pruning from the masks it has."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mvp_jax.core import allocation, counts, patterns, schedules, trees
from mvp_jax.core.types import PyTree
from mvp_jax.train.transforms import counting, gradual


def restart(
    opt_state: optax.OptState,
    *,
    sparsity: Any,
    steps: int,
    begin: int = 0,
    schedule: str | schedules.Schedule = "cubic",
    pattern: patterns.Pattern | str | None = None,
) -> optax.OptState:
    r"""Returns an optimiser state whose schedule of pruning starts anew, from the present masks to another sparsity.

    From the sparsity $s_0$ that is reached now to the new one, $s_t = s_T + (s_0 - s_T)(1 - t/T)^3$ for `cubic`, where
    $t$ counts updates from now on, less `begin`. There are as many prunings as before, evenly spread over `steps`. The
    result has the shapes of the old state, so a compiled step takes it without compiling again, with the optimiser it
    was compiled with. Everything but the schedule stays: masks, moments, the number of updates.

    Args:
        opt_state: a state of `prune_on_schedule`, or one that has such states inside: all of them are restarted. It may
            be stacked. Where `optax.inject_hyperparams` holds the sparsity, change it there too: it sets the counts
            again at every update.
        sparsity: $s_T$, the fraction of entries that is removed in the end: a number, rules over paths, or a tree of
            numbers, as in `prune_on_schedule`. It may not be below the present one.
        steps: $T$, the number of updates that the new schedule takes.
        begin: number of updates from now before it starts.
        schedule: a name in `schedules.SCHEDULES`, or a function like those, which gets all four arguments.
        pattern: what was given to `prune_on_schedule`; needed for `erk`, and for units of which more than one stays.

    Returns:
        The new state.

    Raises:
        ValueError: for settings out of range, a state without a schedule, a sparsity below the present one, or leaves
            of different sparsities where neither `sparsity` nor `pattern` tells them apart.

    >>> params = {"w": jnp.array([1.0, -4.0, 2.0, 3.0])}
    >>> tx = gradual.prune_on_schedule(optax.sgd(0.1), sparsity=0.5, steps=1, prunable=["w"])
    >>> _, state = tx.update(params, tx.init(params), params)
    >>> state = restart(state, sparsity=0.75, steps=1)
    >>> _, state = tx.update(params, state, params)
    >>> state.masks["w"].tolist()
    [False, True, False, False]

    Reference: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878), equation 1.
    """
    if steps < 1 or begin < 0:
        raise ValueError(f"steps is {steps}, begin {begin}; pruning takes at least one step, and begins at 0 or later")
    if any(isinstance(s, jax.Array) for s in counting.numbers(sparsity)):
        raise ValueError("sparsity is a jax.Array, but restart computes counts on the host; give Python numbers")
    if isinstance(pattern, str):
        pattern = patterns.Weights(pattern)  # type: ignore[arg-type]
    if pattern is not None:
        for s in counting.numbers(sparsity):
            pattern.check(s)
    is_state = lambda x: isinstance(x, gradual.PruneOnScheduleState)  # noqa: E731
    found = [x for x in jax.tree.leaves(opt_state, is_leaf=is_state) if is_state(x)]
    if not found:
        raise ValueError(
            "no schedule in this optimiser state; make the optimiser with transforms.prune_on_schedule, and restore a "
            "checkpoint into the state that tx.init gives"
        )
    one = functools.partial(
        _restarted,
        sparsity=sparsity,
        steps=steps,
        begin=begin,
        share=gradual.named_schedule(schedule),
        pattern=pattern,
    )
    return jax.tree.map(lambda x: one(x) if is_state(x) else x, opt_state, is_leaf=is_state)


def _restarted(state: gradual.PruneOnScheduleState, **settings: Any) -> gradual.PruneOnScheduleState:
    """Returns one state, or a stack of them, with new times and counts."""
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((state.count, state.times, state.keep))):
        raise ValueError(
            "the state is traced, but restart computes counts on the host; call it outside of jit and vmap"
        )
    (count,), (times,) = jax.tree.leaves(state.count), jax.tree.leaves(state.times)
    keep, structure = jax.tree.flatten(state.keep, is_leaf=_is_words)
    names = list(trees.flatten(jax.tree.unflatten(structure, range(len(keep)))))
    here, old_times, old = np.asarray(count), np.asarray(times), [_host(k) for k in keep]
    new_times, new = np.array(old_times), [np.array(k) for k in old]
    shapes = [np.shape(m) for m in jax.tree.leaves(state.masks)]
    for member in np.ndindex(here.shape):
        rows = [k[member] for k in old]
        now = int(np.sum(old_times[member] <= here[member]))
        done, later = _counted(dict(zip(names, rows, strict=True)), now, shapes, structure, here.ndim, **settings)
        new_times[member] = here[member] + settings["begin"] + np.array(done)
        for k, row in zip(new, later, strict=True):
            k[member] = row
    return state._replace(
        times=_like(new_times, state.times),
        keep=jax.tree.unflatten(structure, [_as(k, n) for k, n in zip(keep, new, strict=True)]),
    )


def _counted(
    rows: dict[str, np.ndarray],
    now: int,
    masks: Sequence[Sequence[int]],
    structure: Any,
    stacked: int,
    *,
    sparsity: Any,
    steps: int,
    begin: int,
    share: schedules.Schedule,
    pattern: patterns.Pattern | None,
) -> tuple[list[int], list[list[int]]]:
    """Returns after how many updates is pruned, and how many entries stay: a row for each count of the state.

    Args:
        rows: the present row of each count, by path: all entries first.
        now: the place in the rows that has been reached.
        masks: the shapes of the masks, with the axes of a stack in front.
        structure: that of the tree of counts.
        stacked: how many axes of a stack there are.
        sparsity, steps, begin, share, pattern: see `restart`.
    """
    events = len(next(iter(rows.values()))) - 1
    done = [-(-i * steps // events) for i in range(1, events + 1)]
    sizes = {name: int(row[0]) for name, row in rows.items()}
    reached = {name: int(row[now]) for name, row in rows.items()}
    if getattr(pattern, "allocation", None) == "erk":
        shapes = [np.broadcast_to(np.int8(0), s[stacked:]) for s in masks]
        start = 1 - sum(reached.values()) / max(sum(sizes.values()), 1)
        _check_rises(sparsity, start, "")
        target = [
            allocation.erdos_renyi_kernel(shapes, share(t, steps, sparsity, start), within=[s.ndim > 0 for s in shapes])
            for t in done
        ]
        columns = {name: [int(row[i]) for row in target] for i, name in enumerate(rows)}
    else:
        if not counting.varies(sparsity) and pattern is None:
            _check_alike(rows)
        tree = jax.tree.unflatten(structure, list(sizes.values()))
        least = pattern.min_units if isinstance(pattern, patterns.WholeUnits) else min(1, len(rows) - 1)
        columns = {}
        for (name, n), final in zip(sizes.items(), counting.each(sparsity, tree), strict=True):
            start = 1 - reached[name] / n if n else 0.0
            if n:
                _check_rises(final, start, name, slack=0.5 / n)
            final = max(final, start)
            columns[name] = [
                max(min(least, n), allocation.keep_count(n, float(share(t, steps, final, start)))) for t in done
            ]
    return done, [_from(sizes[name], reached[name], columns[name]) for name in rows]


def _from(size: int, reached: int, later: Sequence[int]) -> list[int]:
    held = np.minimum.accumulate([reached, *later])[1:]
    # Of equal times the last counts; nothing rises above what is left.
    return [size, *(int(k) for k in held)]


def _check_rises(final: float, start: float, name: str, slack: float = 1e-6) -> None:
    if final < start - slack:
        raise ValueError(
            f"sparsity {final} is below the present {start:.4g}{f' of {name!r}' if name else ''}; what was pruned does "
            "not come back here (transforms.rigl regrows weights)"
        )


def _check_alike(rows: dict[str, np.ndarray]) -> None:
    """Raises an error if the state's leaves were to have different sparsities, beyond rounding."""
    ends = [(int(row[0]), int(row[-1])) for row in rows.values() if row[0]]
    if len(ends) > 1 and max((k - 1) / n for n, k in ends) > min((k + 1) / n for n, k in ends):
        raise ValueError(
            "the leaves of this state have different sparsities, but one number was given; give rules over paths, or "
            "the pattern that prune_on_schedule had (pattern='erk')"
        )


def _is_words(x: Any) -> bool:
    return isinstance(x, counts.Words)


def _host(keep: PyTree) -> np.ndarray:
    leaves = [np.asarray(x, np.int64) for x in jax.tree.leaves(keep)]
    return (leaves[0] << 16) + leaves[1] if _is_words(keep) else leaves[0]


def _as(old: PyTree, new: np.ndarray) -> PyTree:
    """Returns numbers as the counts that they replace: in int32 or in words, and where those lie."""
    if not _is_words(old):
        return _like(new, old)
    return jax.tree.map(_like, counts.words(new), old)


def _like(new: Any, old: Any) -> Any:
    """Returns an array of the type of the old one and on its devices, in the variable of NNX that holds it, if any."""
    ((x,), structure) = jax.tree.flatten(old)
    placed: Any = np.asarray(new).astype(x.dtype)
    if isinstance(x, jax.Array):
        # An array bound to a device, where none was before, would make a compiled step compile again.
        placed = jax.device_put(placed, x.sharding) if x.committed else jnp.asarray(placed)
    return jax.tree.unflatten(structure, [placed])
