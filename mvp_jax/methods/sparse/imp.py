"""Iterative magnitude pruning, which finds lottery tickets: train, prune, rewind, and repeat.

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
from mvp_jax.methods import checks
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api
from mvp_jax.methods.sparse.problem import SparsityProblem, SparsityTraining
from mvp_jax.storage import checkpoint


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of iterative magnitude pruning.

    Attributes:
        rounds: how many times the smallest entries are pruned; each time the same fraction of those that are left.
        steps: number of training steps in each round. Rounds that start from the weights after `rewind_steps` take
            only the steps that remain.
        rewind: what is reset after each round: `none`: nothing, so that fine-tuning continues; `weights`: the weights
            that are kept return to their values after `rewind_steps` steps, and the learning rate with them; `rate`:
            the learning rate alone.
        rewind_steps: the step of the first round whose weights are restored; 0 restores the pre-trained weights.
        training: how steps are taken, and the training under the final mask. Unless `rewind` is `none`, the training
            of every round follows its `decay`.
    """

    rounds: int = 5
    steps: int = 100
    rewind: Literal["none", "weights", "rate"] = "weights"
    rewind_steps: int = 0
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.steps < 1:
            raise ValueError(f"rounds and steps must be at least 1, got {self.rounds} and {self.steps}")
        if self.rewind not in ("none", "weights", "rate"):
            raise ValueError(f"unknown rewind {self.rewind!r}; choose 'none', 'weights' or 'rate'")
        if not 0 <= self.rewind_steps < self.steps:
            raise ValueError(f"rewind_steps is {self.rewind_steps}; give 0 or more, below the {self.steps} of a round")


def imp(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Prunes by iterative magnitude pruning; then trains under the final mask.

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
    checks.check("imp", problem, SparsityProblem, settings, Settings)
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
        go = functools.partial(api.advance, problem, training, last=settings.rewind != "none", total=settings.steps)
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
