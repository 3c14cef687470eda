"""Iterative magnitude pruning: train, prune, go back, and again. Lottery tickets.

Sources: Frankle & Carbin 2019 (arXiv:1803.03635); Frankle et al. 2020, rewinding to an early step (arXiv:1912.05671);
Renda et al. 2020, rewinding of the learning rate (arXiv:2003.02389).
"""

import dataclasses
import functools
from typing import Literal

import jax
import jax.numpy as jnp

from mvp_jax.core import masks, schedules
from mvp_jax.core.types import Key, Variables
from mvp_jax.methods.sparse import api
from mvp_jax.storage import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Iterative magnitude pruning.

    Attributes:
        rounds: how often the smallest entries go; the same share of what remains each time.
        steps: of training before each; after a return to `rewind_steps`, what is left of them.
        rewind: what goes back after each: nothing (`none`, fine-tuning goes on), the `weights` (to what they were
            after `rewind_steps`, with the learning rate's course), or the learning `rate` alone.
        rewind_steps: 0 rewinds to the pre-trained weights.
        training: how steps are taken, and the training under the final mask. With a rewound rate every round's
            training follows its `decay`.
    """

    rounds: int = 5
    steps: int = 100
    rewind: Literal["none", "weights", "rate"] = "weights"
    rewind_steps: int = 0
    training: api.Training = dataclasses.field(default_factory=api.Training)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"rounds and steps must be at least 1, got {self.rounds} and {self.steps}")
        if self.rewind not in ("none", "weights", "rate"):
            raise ValueError(f"unknown rewind {self.rewind!r}; choose 'none', 'weights' or 'rate'")
        if not 0 <= self.rewind_steps < self.steps:
            raise ValueError(f"rewind_steps is {self.rewind_steps}; give 0 or more, below the {self.steps} of a round")


def imp(
    problem: api.Problem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> api.Pruned:
    """Iterative magnitude pruning; then trains under the final mask."""
    training = settings.training
    keys = functools.partial(jax.random.fold_in, key)
    counts = problem.counts(schedules.geometric, settings.rounds)
    back = settings.rewind == "weights"
    early = settings.rewind_steps if back else 0

    def body(r: int, run: api.Run) -> api.Run:
        if r and settings.rewind != "none":
            run = api.anew(training, run, keys(r), moments=True)
        if r == settings.rounds:
            return api.finish(problem, training, run, keys(r))
        # One course of the rate over the round, wherever it is cut in two.
        go = functools.partial(
            api.advance, problem, training, last=settings.rewind != "none", total=settings.steps
        )  # fmt: skip
        if early and r == 0:
            run = go(run, early)
            run = run._replace(more=run.state.variables)
        elif early:  # the rate goes back with the weights
            run = run._replace(state=run.state._replace(step=jnp.int32(early)))
        run = go(run, settings.steps - early)
        run = api.cut(problem, run, api.host(counts[r]))
        if not back:
            return run
        point: Variables = run.more
        params = masks.apply(point.params, run.state.masks)
        return run._replace(state=run.state._replace(variables=Variables(params, point.rest)))

    run = api.begin(problem, training, keys(0))
    run = run._replace(more=run.state.variables if back else ())
    return api.end(problem, training, api.rounds(body, run, settings.rounds + 1, saved))
