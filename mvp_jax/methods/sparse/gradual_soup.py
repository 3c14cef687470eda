"""Gradual soup: magnitude pruning of the mean of many members, which train on from it between two cuts.

Gradual pruning trains one model between its cuts. Here all members train at once from the common weights, each with
batches and settings of its own; the mean of their weights, optimiser moments and batch statistics is what they start
from next, and its smallest weights go. On as many devices as members that takes as long as gradual pruning, and the
devices speak to each other once a round, where a batch divided among them takes a word in every step.

Sources: Zhu and Gupta 2017 (arXiv:1710.01878) for the schedule; Stich 2018, "Local SGD" (arXiv:1805.09767), Wang et
al. 2019, "SlowMo" (arXiv:1910.00643), and Douillard et al. 2023, "DiLoCo" (arXiv:2311.08105), for means of members that
train apart; Jaiswal et al. 2023, "Instant Soup" (arXiv:2306.10460), for members that differ in their settings.
"""

import dataclasses
import functools
import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvp_jax import train
from mvp_jax.core import masks as masks_lib
from mvp_jax.core import schedules, vote
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Array, Key, Masks, Params, PyTree, Variables
from mvp_jax.methods import checks, weak_members
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api, gradual
from mvp_jax.methods.sparse.problem import (
    SparsityProblem,
    SparsityTraining,
    check_exchangeable,
    check_smoothing,
)
from mvp_jax.storage import checkpoint
from mvp_jax.train import population


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the gradual soup.

    Attributes:
        members: number of members, `K`.
        steps: number of serial training steps, of every member, during which entries are pruned.
        events: how many times members are averaged and entries are pruned during these steps, at equal distances.
        schedule: how the sparsity rises from one time to the next; a name in `schedules.SCHEDULES`.
        rank: what decides which entries stay. `magnitude`: the size of the mean weights; `votes`: how many members
            have the entry among their largest, ties broken by the size of the mean weights.
        diversity: how members differ; they are drawn anew for each round.
        inherit: whether members continue with the mean of the members' optimiser moments; otherwise every round starts
            with empty ones.
        outer_momentum: momentum of the step from one common state to the next, in [0, 1). With 0 the common weights
            become the members' mean.
        outer_rate: how far that step goes: 1 ends at the members' mean, more goes past it.
        souped_from: the fraction of the rounds in which a single model trains, before members are made, in [0, 1).
        training: how steps are taken, and the fine-tuning under the final mask.
        mapping: how the members of one device are run, as `population.over` takes it.
        mesh: the devices over which members are spread; `None`: one device.
    """

    members: int = 5
    steps: int = 200
    events: int = 10
    schedule: Literal["cubic", "linear", "geometric"] = "cubic"
    rank: Literal["magnitude", "votes"] = "magnitude"
    diversity: weak_members.Diversity = dataclasses.field(
        default_factory=lambda: weak_members.Diversity(subset=1.0, learning_rate=(0.5, 2.0))
    )
    inherit: bool = True
    outer_momentum: float = 0.0
    outer_rate: float = 1.0
    souped_from: float = 0.0
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)
    mapping: population.MemberMapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        gradual.Settings(steps=self.steps, events=self.events, schedule=self.schedule)  # refuses what that refuses
        if self.members < 1:
            raise ValueError(f"members must be at least 1, got {self.members}")
        if self.rank not in ("magnitude", "votes"):
            raise ValueError(f"unknown rank {self.rank!r}; choose 'magnitude' or 'votes'")
        if not (0 <= self.outer_momentum < 1 and 0 < self.outer_rate < math.inf and 0 <= self.souped_from < 1):
            raise ValueError(
                "outer_momentum and souped_from lie in [0, 1) and outer_rate is positive, got "
                f"{self.outer_momentum}, {self.souped_from} and {self.outer_rate}"
            )

    @property
    def singles(self) -> int:
        """The number of rounds in which a single model trains, before the first in which members do."""
        return int(self.souped_from * self.events + 1e-9)


def gradual_soup(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Trains members from their mean and prunes the mean in turns; then fine-tunes it.

    Args:
        problem: the model, the task and the sparsity.
        settings: how members are trained and averaged, and how their mean is pruned.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings, votes with the pattern N:M, whose runs no vote keeps, or
            label smoothing with a loss that takes none.
    """
    checks.check("gradual_soup", problem, SparsityProblem, settings, Settings)
    check_smoothing(problem, settings.diversity)
    if settings.rank == "votes":
        check_exchangeable(problem)
    training = settings.training
    # As those of gradual pruning, so that both begin with the same batches and end with the same fine-tuning.
    keys, key_members = jax.random.split(key), jax.random.fold_in(key, 2)
    counts = problem.counts(schedules.SCHEDULES[settings.schedule], settings.events)
    steps = gradual.intervals(settings.steps, settings.events)

    def body(r: int, run: api.Run) -> api.Run:
        if r == settings.events:
            return api.finish(problem, training, run, keys[1])
        if r < settings.singles:
            return api.cut(problem, api.advance(problem, training, run, steps[r]), api.host(counts[r]))
        own = jax.random.fold_in(key_members, r)
        return _souped(problem, settings, run, steps[r], api.host(counts[r]), own)

    run = api.begin(problem, training, keys[0])
    # The velocity of the common weights; it stays 0 without an outer momentum.
    run = run._replace(more=jax.tree.map(jnp.zeros_like, run.state.variables.params))
    run = api.rounds(body, run, settings.events + 1, saved)
    return api.end(problem, training, run)


def _souped(problem: SparsityProblem, settings: Settings, run: api.Run, steps: int, keep: PyTree, key: Key) -> api.Run:
    """The run after a round: members train from its state, their mean takes its place and keeps `keep` entries."""
    training = settings.training
    state = run.state
    if not settings.inherit:
        state = state._replace(opt_state=training.tx.init(state.variables.params))
    forks = weak_members.ForkSettings(
        count=settings.members,
        steps=steps,
        diversity=settings.diversity,
        mapping=settings.mapping,
        mesh=settings.mesh,
    )
    # The step goes on counting, so that a warm-up covers the first rounds and not the beginning of each.
    members = weak_members.fork(
        api.recipe(problem, training), state, problem.train, key, forks, learning_rate=training.learning_rate
    )
    who = weak_members.weights(members.states)
    after, velocity = common_state(
        run.state,
        members.states,
        who,
        run.more,
        jnp.float32(settings.outer_momentum),
        jnp.float32(settings.outer_rate),
    )
    run = api.spend(run._replace(state=after, more=velocity), *members.spent)
    if training.watch is not None:
        training.watch(after, _mean_metrics(members.metrics, who))
    if settings.rank == "magnitude":
        return api.cut(problem, run, keep)
    kept, new = _voted(
        members.states.variables.params, after.variables.params, run.kept, who, keep, pattern=problem.pattern
    )
    return api.with_masks(run, kept, new)


@jax.jit
def common_state(
    before: train.TrainState,
    members: train.TrainState,
    weights: Array,
    velocity: Params,
    outer_momentum: Array,
    outer_rate: Array,
) -> tuple[train.TrainState, Params]:
    r"""Returns the common state that follows from many members, and the velocity of its weights.

    With the common weights θ, the members' mean θ̄ and the velocity v, `v' = outer_momentum · v + (θ - θ̄)` and
    `θ' = θ - outer_rate · v'`. The members' optimiser moments and batch statistics are averaged.

    Args:
        before: the state that the members started from.
        members: the members' states; every leaf leads with `K`.
        weights: `[K]`, how much each member counts; members of weight 0 have no part, whatever they hold.
        velocity: of the common weights, in the parameters' shapes; zeros at first.
        outer_momentum: μ, in [0, 1).
        outer_rate: positive; 1 ends at the mean where the velocity was 0.

    Returns:
        A state like `before`, alive if any member is, and the new velocity. Weights that are masked stay 0, and so
        does their velocity. Values that are not floats, such as counters, are those of the first member that counts.

    Reference: Wang et al. 2019 (arXiv:1910.00643), algorithm 1, lines 8 and 9, at a constant inner rate.
    """
    first = jnp.argmax(weights > 0)

    def mean(leaf: Array) -> Array:
        floats = jnp.issubdtype(leaf.dtype, jnp.floating)
        return vote.soup(leaf, weights=weights) if floats else leaf[first]

    old = before.variables.params
    variables, opt_state, step = jax.tree.map(mean, (members.variables, members.opt_state, members.step))
    back = jax.tree.map(jnp.subtract, old, variables.params)
    kept = masks_lib.apply(velocity, before.masks)
    # Written so that the rate 1 and the momentum 0 give the mean to the last bit.
    params = jax.tree.map(
        lambda m, d, v: (m + ((1.0 - outer_rate) * d - outer_rate * outer_momentum * v)).astype(m.dtype),
        variables.params,
        back,
        kept,
    )
    velocity = jax.tree.map(lambda v, d: (outer_momentum * v + d).astype(v.dtype), kept, back)
    params = masks_lib.apply(params, before.masks)
    alive = before.alive & jnp.any(members.alive)
    after = before._replace(step=step, variables=Variables(params, variables.rest), opt_state=opt_state, alive=alive)
    return after, velocity


@functools.partial(jax.jit, static_argnames=("pattern",))
def _voted(
    members: Params, mean: Params, kept: Masks, weights: Array, keep: PyTree, *, pattern: Pattern
) -> tuple[Masks, Masks]:
    """The `keep` entries with the most votes, ties broken by the mean weights' magnitude, and their masks."""
    scores = jax.vmap(lambda p: pattern.entries(p, kept, "l2"))(members)
    cast = weak_members.ballots(scores, kept, keep, pattern=pattern)
    chosen = vote.elect(
        cast,
        keep,
        scope=pattern.scope,
        weights=weights,
        within=kept,
        tie_break=pattern.entries(mean, kept, "l2"),
    )
    return chosen, pattern.masks(chosen, mean, kept)


@jax.jit
def _mean_metrics(metrics: train.Metrics, weights: Array) -> train.Metrics:
    """The mean of the metrics over the members that count."""
    return jax.tree.map(functools.partial(vote.soup, weights=weights), metrics)
