"""Gradual magnitude pruning: a few weights are removed every few steps while training goes on.

Source: Zhu & Gupta 2017, "To prune, or not to prune" (arXiv:1710.01878).
"""

import dataclasses
import itertools
from typing import Literal

import jax

from mvp_jax.core import schedules
from mvp_jax.core.types import Key
from mvp_jax.methods import checks
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining
from mvp_jax.storage import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of gradual magnitude pruning.

    Attributes:
        steps: number of training steps during which entries are pruned.
        events: how many times entries are pruned during these steps, at equal distances.
        schedule: how the sparsity rises from one time to the next; a name in `schedules.SCHEDULES`.
        training: how steps are taken, and the fine-tuning under the final mask.
    """

    steps: int = 200
    events: int = 10
    schedule: Literal["cubic", "linear", "geometric"] = "cubic"
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)

    def __post_init__(self) -> None:
        if not 1 <= self.events <= self.steps:
            raise ValueError(f"events must be 1 to steps, got {self.events} events in {self.steps} steps")
        if self.schedule not in ("cubic", "linear", "geometric"):
            raise ValueError(f"unknown schedule {self.schedule!r}; choose 'cubic', 'linear' or 'geometric'")


def intervals(steps: int, parts: int) -> list[int]:
    """Returns `steps` divided into so many parts, as evenly as possible.

    >>> intervals(7, 3)
    [2, 2, 3]
    """
    ends = [steps * i // parts for i in range(parts + 1)]
    return [b - a for a, b in itertools.pairwise(ends)]


def gradual(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Trains and prunes the smallest entries in turns; then fine-tunes.

    Args:
        problem: the model, the task and the sparsity.
        settings: how to prune.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings.
    """
    checks.check("gradual", problem, SparsityProblem, settings, Settings)
    training = settings.training
    keys = jax.random.split(key)
    counts = problem.counts(schedules.SCHEDULES[settings.schedule], settings.events)
    steps = intervals(settings.steps, settings.events)

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.events:
            return api.finish(problem, training, run, keys[1])
        run = api.advance(problem, training, run, steps[r])
        return api.cut(problem, run, api.host(counts[r]))

    run = api.rounds(body, api.begin(problem, training, keys[0]), settings.events + 1, saved)
    return api.end(problem, training, run)
