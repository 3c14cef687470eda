"""Instant Soup Pruning: many weak members, trained briefly and all at once, vote for one mask.

Source: Jaiswal et al. 2023, "Instant Soup: Cheap Pruning Ensembles in A Single Pass Can Draw Lottery Tickets from Large
Models" (arXiv:2306.10460), algorithm 1; `Settings.published` follows the authors' code where it differs.
"""

import dataclasses
import functools
import math
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mvp_jax import saliency, train
from mvp_jax.core import vote
from mvp_jax.core.patterns import Pattern
from mvp_jax.core.types import Array, Batch, Key, Masks, PyTree, Scores, Variables
from mvp_jax.methods import checks, weak_members
from mvp_jax.methods.contract import Pruned
from mvp_jax.methods.sparse import api, soup
from mvp_jax.methods.sparse.problem import (
    SparsityProblem,
    SparsityTraining,
    check_exchangeable,
    check_smoothing,
)
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import population

SuperposeRule: TypeAlias = Literal["mean", "union", "intersection", "majority", "score"]
"""How members' masks become one: by a vote, as in `vote.elect`, or without one, by the highest mean `score`."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of Instant Soup Pruning.

    Attributes:
        members: number of weak members, `K`.
        round_sparsity: the fraction of the remaining entries that each round prunes, `p` in the paper.
        vote: how the members' masks become one. `mean` keeps the entries with the most votes, ties broken by mean
            score, so that each round prunes exactly `round_sparsity`. `union` (the published rule) prunes less, and
            `intersection` and `majority` may prune more. `score` takes no vote: the entries with the highest mean score
            stay, as a control.
        epochs: number of epochs for which the main weights train before each fork.
        growth: `constant`: every round trains the main weights equally long; `growing`: round r, from 1, trains them
            r times as long.
        weak_epochs: number of epochs for which each member trains.
        diversity: how members differ.
        inherit: whether members continue with the main optimiser's moments; otherwise they start with empty ones.
        rank: the score by which members rank entries. `magnitude`: the size of the weights; `taylor`: the first-order
            change of the loss, which each member computes on its own examples (see `saliency.taylor`); `stability`: the
            mean of the members' magnitudes divided by their standard deviation, the same for all members.
        examples: for `taylor`: on how many of its examples each member computes its scores.
        soup: what becomes of the main weights after a fork. `none`: they stay; `mean`: they become the mean of the
            members, as in an instant model soup; `kept`: each becomes the mean of the members that kept it.
        landing: when at most this fraction of all entries is still to be pruned, one magnitude step prunes it.
            `None`: when another round would prune more than that.
        training: how steps are taken, and the fine-tuning under the final mask.
        mapping: how the members of one device are run, as `population.over` takes it.
        mesh: the devices over which members are spread; `None`: one device.
    """

    members: int = 5
    round_sparsity: float = 0.2
    vote: SuperposeRule = "mean"
    epochs: float = 0.2
    growth: Literal["constant", "growing"] = "constant"
    weak_epochs: float = 0.1
    diversity: weak_members.Diversity = dataclasses.field(default_factory=weak_members.Diversity)
    inherit: bool = True
    rank: Literal["magnitude", "taylor", "stability"] = "magnitude"
    examples: int = 256
    soup: Literal["none", "mean", "kept"] = "none"
    landing: float | None = None
    training: SparsityTraining = dataclasses.field(default_factory=SparsityTraining)
    mapping: population.Mapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.members < 1 or not 0 < self.round_sparsity < 1:
            raise ValueError(
                f"members must be at least 1 and round_sparsity in (0, 1), got {self.members} and {self.round_sparsity}"
            )
        allowed = {
            "vote": ("mean", "union", "intersection", "majority", "score"),
            "growth": ("constant", "growing"),
            "rank": ("magnitude", "taylor", "stability"),
            "soup": ("none", "mean", "kept"),
        }
        for name, values in allowed.items():
            if getattr(self, name) not in values:
                raise ValueError(f"unknown {name} {getattr(self, name)!r}; choose one of {values}")
        if self.rank == "stability" and self.members < 2:
            raise ValueError("members=1 has no deviation to rank by stability; take at least 2")
        if not (self.epochs > 0 and self.weak_epochs > 0) or not (self.landing is None or 0 <= self.landing < 1):
            raise ValueError(
                "epochs and weak_epochs must be positive and landing in [0, 1), got "
                f"{self.epochs}, {self.weak_epochs}, {self.landing}"
            )

    @classmethod
    def published(cls, training: SparsityTraining | None = None, **changes: Any) -> "Settings":
        """Returns the settings of the authors' code.

        Each round prunes 10 % by union, intervals grow, members start with an empty AdamW and a warm-up, and one
        magnitude step prunes the last 5 % of all entries.

        Args:
            training: how steps are taken; `None`: as the authors do, at a learning rate for checkpoints of the size of
                CLIP and BERT.
            **changes: fields of `Settings` that differ.
        """
        training = training or SparsityTraining(
            optimizer="adamw", learning_rate=1e-5, weight_decay=0.1, batch=128, clip=1.0, warmup=500
        )
        given: dict[str, Any] = {
            "members": 5,
            "round_sparsity": 0.1,
            "vote": "union",
            "epochs": 0.075,
            "growth": "growing",
            "weak_epochs": 0.1,
            "diversity": weak_members.Diversity(subset=1.0, learning_rate=(0.0, 1.0), law="uniform"),
            "inherit": False,
            "landing": 0.05,
            "training": training,
        }
        return cls(**(given | changes))


@functools.partial(jax.jit, static_argnames=("pattern", "rule"))
def superpose(
    scores: Scores,
    kept: Masks,
    keep: PyTree,
    floor: PyTree,
    weights: Array,
    *,
    pattern: Pattern,
    rule: SuperposeRule = "mean",
) -> tuple[Masks, Masks]:
    """Makes one mask from the scores of many members.

    Each member votes for its `keep` best entries among those that are left, and the votes elect a mask. If a rule
    would leave fewer than `floor` entries, the `floor` entries with the most votes stay, ties broken by mean score.

    Args:
        scores: the members' scores of every entry; every leaf leads with `K`, and higher scores are kept.
        kept: the entries that are left.
        keep: how many entries each member keeps, as `pattern.counts` counts them; traced.
        floor: how many entries must stay at least, counted in the same way: those of the final sparsity.
        weights: `[K]`, how much each member counts.
        pattern: what an entry is; static.
        rule: how votes become a mask, as in `Settings.vote`; static.

    Returns:
        The entries that stay, and the members' masks, whose leaves lead with `K`.
    """
    cast = weak_members.ballots(scores, kept, keep, pattern=pattern)
    mean = vote.soup(scores, weights=weights)
    if rule == "score":
        return pattern.select(mean, keep, kept), cast
    goal = keep if rule == "mean" else floor
    chosen = vote.elect(cast, goal, scope=pattern.scope, rule=rule, weights=weights, within=kept, tie_break=mean)
    return chosen, cast


def least_rounds(problem: SparsityProblem, settings: Settings) -> int:
    """Returns how many rounds the exact vote (`mean`) needs: 0 where nothing is to be pruned."""
    # The tolerance is for sparsities that some rounds reach exactly.
    return max(0, math.ceil(math.log(1 - problem.sparsity) / math.log(1 - settings.round_sparsity) - 1e-9))


def most_rounds(problem: SparsityProblem, settings: Settings) -> int:
    """Returns the round after which rules that prune too little are stopped: three times what the exact vote needs."""
    return 3 * least_rounds(problem, settings)


def isp(
    problem: SparsityProblem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> Pruned:
    """Prunes in rounds of training, fork and vote; then prunes to the exact sparsity and fine-tunes.

    Args:
        problem: the model, the task and the sparsity.
        settings: how members are trained, and how they vote.
        key: the source of all randomness.
        saved: where every round is saved, and from where a killed call continues; `None`: nothing is saved.

    Returns:
        The pruned model.

    Raises:
        ValueError: for another kind of problem or settings, the pattern N:M, whose runs no vote keeps, or label
            smoothing with a loss that takes none.
    """
    checks.check("isp", problem, SparsityProblem, settings, Settings)
    check_exchangeable(problem)
    check_smoothing(problem, settings.diversity)
    training, pattern = settings.training, problem.pattern
    key_main, key_rounds, key_end = jax.random.split(key, 3)
    target = problem.keep()
    last = most_rounds(problem, settings)

    def body(r: int, run: api.Run) -> api.Run:
        if int(run.more) == 1:
            run = api.finish(problem, training, run, key_end)
            return run._replace(more=jnp.int32(2))
        have = api.remaining(run.kept, pattern.scope)
        after = api.fewer(have, settings.round_sparsity)
        if r >= last or _lands(problem, settings, have, after):
            run = api.cut(problem, run, api.host(target))
            return run._replace(more=jnp.int32(1))
        epochs = settings.epochs * (r + 1 if settings.growth == "growing" else 1)
        run = api.advance(problem, training, run, training.steps_in(problem, epochs))
        return _voted(problem, settings, run, jax.tree.map(max, after, target), jax.random.fold_in(key_rounds, r))

    run = api.begin(problem, training, key_main, more=jnp.int32(0))
    run = api.rounds(body, run, lambda r, run: int(run.more) == 2, saved)
    return api.end(problem, training, run)


def _lands(problem: SparsityProblem, settings: Settings, have: PyTree, after: PyTree) -> bool:
    """Whether one magnitude step prunes what is still to be pruned: `have` are left now, `after` after a round."""
    target = problem.keep()
    if settings.landing is None:
        past = jax.tree.leaves(jax.tree.map(lambda a, t: a < t, after, target))
        there = jax.tree.leaves(jax.tree.map(lambda h, t: h <= t, have, target))
        return any(past) or all(there)
    missing = sum(jax.tree.leaves(have)) - sum(jax.tree.leaves(target))
    return missing <= settings.landing * sum(jax.tree.leaves(problem.keep(0.0)))


def _voted(problem: SparsityProblem, settings: Settings, run: api.Run, keep: PyTree, key: Key) -> api.Run:
    """The run after its weak members have voted for a mask; each of them keeps `keep` entries."""
    training, pattern = settings.training, problem.pattern
    forks = weak_members.ForkSettings(
        count=settings.members,
        steps=training.steps_in(problem, settings.weak_epochs),
        diversity=settings.diversity,
        mapping=settings.mapping,
        mesh=settings.mesh,
    )
    members = api.fork(problem, training, run, key, forks, inherit=settings.inherit)
    run = api.spend(run, *members.spent)
    who = weak_members.weights(members.states)
    if settings.rank == "taylor":
        run = api.spend(run, 0, settings.members * min(settings.examples, members.examples.shape[1]))
    chosen, cast = superpose(
        _scores(problem, settings, run, members, who),
        run.kept,
        api.host(keep),
        api.host(problem.keep()),
        who,
        pattern=pattern,
        rule=settings.vote,
    )
    run = _souped(settings, run, members.states, cast, who, pattern)
    return api.with_masks(run, chosen, pattern.masks(chosen, run.state.variables.params, run.kept))


@functools.partial(jax.jit, static_argnames=("pattern", "rank"))
def _ranked(params: PyTree, values: PyTree, kept: Masks, weights: Array, *, pattern: Pattern, rank: str) -> Scores:
    if rank == "taylor":
        return jax.vmap(lambda v: pattern.entries(v, kept, "sum_square"))(values)
    scores = jax.vmap(lambda p: pattern.entries(p, kept, "l2"))(params)
    if rank == "magnitude":
        return scores

    def stable(s: Array) -> Array:
        # The same for all members, from those that count. A deviation of 0 in float32 is no deviation of 0.
        w = jnp.reshape(weights / jnp.sum(weights), (-1,) + (1,) * (s.ndim - 1))
        mean = jnp.sum(w * s, 0)
        ratio = mean / (jnp.sqrt(jnp.sum(w * jnp.square(s - mean), 0)) + 1e-7 * mean + 1e-30)
        return jnp.broadcast_to(ratio, s.shape)

    return jax.tree.map(stable, scores)


@dataclasses.dataclass(frozen=True)
class _Terms:
    """First-order terms of one member on the first of its examples."""

    model: Model
    loss: train.Loss
    examples: int

    def __call__(self, variables: Variables, index: Array, data: Batch) -> PyTree:
        own = {name: leaf[index[: self.examples]] for name, leaf in data.items()}
        return saliency.taylor_terms(variables.params, api.gradients(self.model, variables, own, loss=self.loss))


def _scores(
    problem: SparsityProblem, settings: Settings, run: api.Run, members: weak_members.WeakMembers, who: Array
) -> Scores:
    """Every member's scores of every entry, `[K, ...]`."""
    values: PyTree = ()
    variables = members.states.variables
    if settings.rank == "taylor":
        values = population.over(
            _Terms(problem.model, problem.loss, settings.examples),
            variables,
            members.examples,
            shared=({"x": problem.train["x"], "y": problem.train["y"]},),
            mapping=settings.mapping,
            mesh=settings.mesh,
        )
    return _ranked(variables.params, values, run.kept, who, pattern=problem.pattern, rank=settings.rank)


def _souped(
    settings: Settings, run: api.Run, states: train.TrainState, cast: Masks, who: Array, pattern: Pattern
) -> api.Run:
    """The run with the weights that the members' soup gives it."""
    if settings.soup == "none":
        return run
    souped = soup.mean(states.variables, who)
    if settings.soup == "kept":
        masks = jax.vmap(lambda kept, p: pattern.masks(kept, p, run.kept))(cast, states.variables.params)
        masks = jax.tree.map(
            lambda m, p: jnp.broadcast_to(m, (p.shape[0], *m.shape[1:])), masks, states.variables.params
        )
        # A rule may let in what no member kept: the mean of all is better there than nothing.
        souped = soup.mean(states.variables, who, masks=masks, fallback=souped.params)
    return run._replace(state=run.state._replace(variables=souped))
