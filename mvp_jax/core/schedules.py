"""Sparsity as a function of the round or the step.

All have one signature: `schedule(step, steps, final_sparsity, initial_sparsity=0.0)`, and give the sparsity after
`step` of `steps`: from the initial one at 0 to exactly the final one at `steps`, and held before and after.
Python and numpy numbers stay on the host in float64, which `prune.keep_count` needs to round rightly at millions of
entries; JAX values are traced in float32. To prune inside a compiled loop, compute `counts` beforehand and index them.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax.core import counts as counts_lib
from mvp_jax.core import prune

Number: TypeAlias = Any
"""A float, or an array of floats."""

Schedule: TypeAlias = Callable[..., Number]
"""`(step, steps, final_sparsity, initial_sparsity=0.0) -> sparsity`."""


def _check(steps: Number, *sparsities: Number) -> None:
    if not isinstance(steps, jax.core.Tracer) and np.any(np.asarray(steps) < 1):
        raise ValueError(f"steps is {steps}; a schedule takes at least one")
    for s in sparsities:
        if not isinstance(s, jax.core.Tracer) and not np.all((np.asarray(s) >= 0) & (np.asarray(s) < 1)):
            raise ValueError(f"sparsity is {s}, but must lie in [0, 1): the share of entries that is removed")


def _run(shape: Callable[[Any, Number, Number, Number], Number], step, steps, final, initial) -> Number:  # type: ignore[no-untyped-def]
    _check(steps, final, initial)
    on_device = any(isinstance(v, jax.Array) for v in (step, steps, final, initial))
    xp: Any = jnp if on_device else np
    t = xp.clip(xp.asarray(step, jnp.float32 if on_device else np.float64) / steps, 0.0, 1.0)
    # The ends are exact whatever the formula rounds to: a last round lands on the count that was asked for.
    out = xp.where(t >= 1.0, final, xp.where(t <= 0.0, initial, shape(xp, t, final, initial)))
    return out if on_device or out.ndim else float(out)


def geometric(step: Number, steps: Number, final_sparsity: Number, initial_sparsity: Number = 0.0) -> Number:
    r"""Returns the sparsity after a step if every step removes the same fraction of what remains.

    $s_t = 1 - (1 - s_0) \left(\frac{1 - s_T}{1 - s_0}\right)^{t/T}$.

    Args:
        step: rounds or steps done, `t`.
        steps: how many there are, `T`.
        final_sparsity: the share of entries removed at the end, in [0, 1).
        initial_sparsity: the share of entries removed at the start, in [0, 1).

    Returns:
        The sparsity after `step`: a float, or a traced float32.

    Raises:
        ValueError: for sparsities outside [0, 1) or no steps.

    >>> [round(geometric(t, 2, 0.75), 3) for t in (0, 1, 2)]
    [0.0, 0.5, 0.75]

    Reference: Frankle & Carbin 2019, "The Lottery Ticket Hypothesis" (arXiv:1803.03635), iterative pruning.
    """
    return _run(
        lambda xp, t, end, start: 1.0 - (1.0 - start) * xp.power((1.0 - end) / (1.0 - start), t),
        step,
        steps,
        final_sparsity,
        initial_sparsity,
    )


def cubic(step: Number, steps: Number, final_sparsity: Number, initial_sparsity: Number = 0.0) -> Number:
    r"""Returns the sparsity after a step that rises fast at first and slowly at the end.

    $s_t = s_T + (s_0 - s_T)(1 - t/T)^3$.

    Arguments and result are those of `geometric`.

    >>> [round(cubic(t, 2, 0.8), 3) for t in (0, 1, 2)]
    [0.0, 0.7, 0.8]

    Reference: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878), equation 1.
    """
    return _run(
        lambda xp, t, end, start: end + (start - end) * (1.0 - t) ** 3,
        step,
        steps,
        final_sparsity,
        initial_sparsity,
    )


def linear(step: Number, steps: Number, final_sparsity: Number, initial_sparsity: Number = 0.0) -> Number:
    r"""Returns the sparsity after a step if every step removes the same fraction of the whole.

    $s_t = s_0 + (s_T - s_0)\,t/T$.

    Arguments and result are those of `geometric`.

    >>> [linear(t, 4, 0.5) for t in (0, 1, 4)]
    [0.0, 0.125, 0.5]
    """
    return _run(
        lambda xp, t, end, start: start + (end - start) * t,
        step,
        steps,
        final_sparsity,
        initial_sparsity,
    )


def constant(step: Number, steps: Number, final_sparsity: Number, initial_sparsity: Number = 0.0) -> Number:
    """Returns the final sparsity after any step, and the initial one at step 0: everything is removed at once.

    Arguments and result are those of `geometric`.

    >>> [constant(t, 4, 0.5) for t in (0, 1, 4)]
    [0.0, 0.5, 0.5]
    """
    return _run(lambda xp, t, end, start: end, step, steps, final_sparsity, initial_sparsity)


SCHEDULES: Mapping[str, Schedule] = {"geometric": geometric, "cubic": cubic, "linear": linear, "constant": constant}


def counts(
    schedule: str | Schedule, steps: int, n: int, final_sparsity: float, initial_sparsity: float = 0.0
) -> np.ndarray:
    """How many of `n` entries stay after each of `steps` rounds, on the host, to index in a loop.

    Args:
        schedule: a name in `SCHEDULES`, or a function like those.
        steps: the number of rounds.
        n: the number of entries.
        final_sparsity: the share of entries removed after the last round, in [0, 1).
        initial_sparsity: the share of entries removed before the first round, in [0, 1).

    Returns:
        int32[steps] (int64 if there are 2^31 or more), the counts after rounds 1 ... `steps`; the last is
        `prune.keep_count(n, final_sparsity)`.

    Raises:
        ValueError: for an unknown name.

    >>> counts("geometric", 3, 64, 0.875).tolist()
    [32, 16, 8]
    """
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise ValueError(f"unknown schedule {schedule!r}; choose one of {sorted(SCHEDULES)}")
        schedule = SCHEDULES[schedule]
    rounds = range(1, steps + 1)
    found = [prune.keep_count(n, schedule(t, steps, final_sparsity, initial_sparsity)) for t in rounds]
    return np.array(found, np.int32 if max(found, default=0) <= counts_lib.INT32_MAX else np.int64)
