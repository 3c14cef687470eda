"""Gradual magnitude pruning: a little goes every few steps while training goes on.

Source: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878).
"""

import dataclasses
import itertools
from typing import Literal

import jax

from mvp_jax import checkpoint, schedules
from mvp_jax.methods import sparse
from mvp_jax.types import Key


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Gradual magnitude pruning.

    Attributes:
        steps: of training while pruning goes on.
        events: how often entries go in these.
        schedule: see `schedules.SCHEDULES`.
        training: how steps are taken, and the fine-tuning under the final mask.
    """

    steps: int = 200
    events: int = 10
    schedule: Literal["cubic", "linear", "geometric"] = "cubic"
    training: sparse.Training = dataclasses.field(default_factory=sparse.Training)

    def __post_init__(self) -> None:
        if not 1 <= self.events <= self.steps:
            raise ValueError(f"events must be 1 to steps, got {self.events} events in {self.steps} steps")
        if self.schedule not in ("cubic", "linear", "geometric"):
            raise ValueError(f"unknown schedule {self.schedule!r}; choose 'cubic', 'linear' or 'geometric'")


def intervals(steps: int, parts: int) -> list[int]:
    """Steps shared out over the parts as evenly as they go.

    >>> intervals(7, 3)
    [2, 2, 3]
    """
    ends = [steps * i // parts for i in range(parts + 1)]
    return [b - a for a, b in itertools.pairwise(ends)]


def gradual(
    problem: sparse.Problem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> sparse.Pruned:
    """Trains, prunes the smallest, and so on; then fine-tunes."""
    training = settings.training
    keys = jax.random.split(key)
    counts = problem.counts(schedules.SCHEDULES[settings.schedule], settings.events)
    steps = intervals(settings.steps, settings.events)

    def body(r: int, run: sparse.Run) -> sparse.Run:
        if r == settings.events:
            return sparse.finish(problem, training, run, keys[1])
        run = sparse.advance(problem, training, run, steps[r])
        return sparse.cut(problem, run, sparse.host(counts[r]))

    run = sparse.rounds(body, sparse.begin(problem, training, keys[0]), settings.events + 1, saved)
    return sparse.end(problem, training, run)
