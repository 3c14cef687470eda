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
        workers: among how many devices each batch is divided while entries are pruned: every one takes the examples of
            a batch, so that a step sees that many times as many, but never more than there are, and costs a collective.
            The fine-tuning is that of a single device.
        training: how steps are taken, and the fine-tuning under the final mask.
    """

    steps: int = 200
    events: int = 10
    schedule: Literal["cubic", "linear", "geometric"] = "cubic"
    workers: int = 1
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)

    def __post_init__(self) -> None:
        check_events(self.steps, self.events)
        if self.schedule not in ("cubic", "linear", "geometric"):
            raise ValueError(f"unknown schedule {self.schedule!r}; choose 'cubic', 'linear' or 'geometric'")
        if self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")

    @property
    def shared(self) -> SparsityTraining:
        """How steps are taken while entries are pruned: with the batch of all workers together."""
        return dataclasses.replace(self.training, batch=self.workers * self.training.batch)


def check_events(steps: int | None, events: int | None) -> None:
    """Raises `ValueError` unless there can be so many events in so many steps; what is `None` is not known yet."""
    if (steps is not None and steps < 1) or (events is not None and not 1 <= events <= (steps or events)):
        raise ValueError(f"events must be 1 to steps, and steps at least 1; got {events} events in {steps} steps")


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
        run = api.advance(problem, settings.shared, run, steps[r])
        if settings.workers > 1:
            run = api.spend(run, 0, 0, collectives=steps[r])
        return api.cut(problem, run, api.host(counts[r]))

    run = api.rounds(body, api.begin(problem, training, keys[0]), settings.events + 1, saved)
    return api.end(problem, training, run)
