"""Instant Soup Pruning: many cheap weak masks, trained all at once, superposed into one.

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
from mvp_jax.methods.sparse import api, soup, weak_members
from mvp_jax.models.api import Model
from mvp_jax.storage import checkpoint
from mvp_jax.train import population

Rule: TypeAlias = Literal["mean", "union", "intersection", "majority", "score"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Instant Soup Pruning.

    Attributes:
        members: `K`.
        share: `p`, what goes of the remaining entries each round.
        vote: how the weak masks become one. `mean` keeps the entries with most votes, ties by mean magnitude, so that
            each round prunes exactly `p`; `union` (the published one), `majority` and `intersection` prune less or
            more; `score` takes no vote: the highest mean scores stay, a control.
        epochs: of the main weights before each fork.
        growth: `constant`, or `growing`: round r trains r times as long.
        weak_epochs: of each member.
        diversity: in what members differ.
        inherit: whether members go on with the main optimiser's moments.
        rank: what members rank entries by: `magnitude`; `taylor` (see `saliency.taylor`) of each on its own examples;
            or `stability`: mean over deviation of the members' magnitudes, so that disagreement itself prunes.
        examples: of each member, that `taylor` looks at.
        soup: what the main weights become after a fork: nothing else (`none`), the members' `mean` (instant model
            soup), or at every entry the mean of those who `kept` it.
        landing: when what is missing is at most this share of all entries, one magnitude step lands on the target;
            `None`: when the next round would go past it.
        training: how steps are taken, and the fine-tuning under the final mask.
        mapping: how members share a device, see `population.over`.
        mesh: how devices share the members.
    """

    members: int = 5
    share: float = 0.2
    vote: Rule = "mean"
    epochs: float = 0.2
    growth: Literal["constant", "growing"] = "constant"
    weak_epochs: float = 0.1
    diversity: weak_members.Diversity = dataclasses.field(default_factory=weak_members.Diversity)
    inherit: bool = True
    rank: Literal["magnitude", "taylor", "stability"] = "magnitude"
    examples: int = 256
    soup: Literal["none", "mean", "kept"] = "none"
    landing: float | None = None
    training: api.Training = dataclasses.field(default_factory=api.Training)
    mapping: population.MemberMapping = "auto"
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        if self.members < 1 or not 0 < self.share < 1:
            raise ValueError(f"members must be at least 1 and share in (0, 1), got {self.members} and {self.share}")
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
    def published(cls, training: api.Training | None = None, **changes: Any) -> "Settings":
        """As the published code has it: 10 % a round, union, growing intervals, fresh AdamW under a warm-up, landing
        from 5 points away. Its rate fits checkpoints the size of CLIP and BERT.
        """
        training = training or api.Training(
            optimizer="adamw", learning_rate=1e-5, weight_decay=0.1, batch=128, clip=1.0, warmup=500
        )
        given: dict[str, Any] = {
            "members": 5, "share": 0.1, "vote": "union", "epochs": 0.075, "growth": "growing", "weak_epochs": 0.1,
            "diversity": weak_members.Diversity(subset=1.0, learning_rate=(0.0, 1.0), law="uniform"), "inherit": False,
            "landing": 0.05, "training": training,
        }  # fmt: skip
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
    rule: Rule = "mean",
) -> tuple[Masks, Masks]:
    """One mask from the scores of many members.

    Each member keeps the `keep` best of what is left; the ballots elect a mask inside it. A rule that would leave fewer
    than `floor` gives way to an exact choice by votes, then mean score.

    Args:
        scores: of every entry, leaves lead with `K`; higher = keep.
        kept: what is left before.
        keep: counts as `pattern.counts` gives them; traced.
        floor: likewise, the final target.
        weights: `[K]`, who counts.
        pattern: static.
        rule: see `Settings.vote`.

    Returns:
        What is left afterwards, and the ballots `[K, ...]`.
    """
    cast = weak_members.ballots(scores, kept, keep, pattern=pattern)
    mean = vote.soup(scores, weights=weights)
    if rule == "score":
        return pattern.select(mean, keep, kept), cast
    goal = keep if rule == "mean" else floor
    chosen = vote.elect(cast, goal, scope=pattern.scope, rule=rule, weights=weights, within=kept, tie_break=mean)
    return chosen, cast


def least_rounds(problem: api.Problem, settings: Settings) -> int:
    """The rounds that the exact vote (`mean`) needs; 0 where nothing is to be pruned."""
    # The tolerance is for sparsities that some rounds reach exactly.
    return max(0, math.ceil(math.log(1 - problem.sparsity) / math.log(1 - settings.share) - 1e-9))


def most_rounds(problem: api.Problem, settings: Settings) -> int:
    """Three times the rounds that the exact vote needs: rules that prune too little end there."""
    return 3 * least_rounds(problem, settings)


def isp(
    problem: api.Problem, settings: Settings, key: Key, *, saved: checkpoint.Checkpoints | None = None
) -> api.Pruned:
    """Rounds of main training, fork, weak masks and vote; then an exact landing, and fine-tuning.

    Raises:
        ValueError: for the pattern N:M, whose runs no vote keeps.
    """
    training, pattern = settings.training, problem.pattern
    api.check_exchangeable(problem)
    key_main, key_rounds, key_end = jax.random.split(key, 3)
    target, all_entries = problem.keep(), sum(jax.tree.leaves(problem.keep(0.0)))
    weak_steps = training.steps_in(problem, settings.weak_epochs)
    last = most_rounds(problem, settings)

    def landing(have: PyTree, after: PyTree) -> bool:
        """Whether one magnitude step is to do the rest."""
        if settings.landing is None:
            past = jax.tree.leaves(jax.tree.map(lambda a, t: a < t, after, target))
            there = jax.tree.leaves(jax.tree.map(lambda h, t: h <= t, have, target))
            return any(past) or all(there)
        missing = sum(jax.tree.leaves(have)) - sum(jax.tree.leaves(target))
        return missing <= settings.landing * all_entries

    def body(r: int, run: api.Run) -> api.Run:
        if int(run.more) == 1:
            run = api.finish(problem, training, run, key_end)
            return run._replace(more=jnp.int32(2))
        have = api.remaining(run.kept, pattern.scope)
        after = api.fewer(have, settings.share)
        if r >= last or landing(have, after):
            run = api.cut(problem, run, api.host(target))
            return run._replace(more=jnp.int32(1))
        after = jax.tree.map(max, after, target)
        epochs = settings.epochs * (r + 1 if settings.growth == "growing" else 1)
        run = api.advance(problem, training, run, training.steps_in(problem, epochs))
        states, index, spent = weak_members.fork(
            problem, training, run, jax.random.fold_in(key_rounds, r), count=settings.members, steps=weak_steps,
            diversity=settings.diversity, inherit=settings.inherit, mapping=settings.mapping, mesh=settings.mesh,
        )  # fmt: skip
        run = api.spend(run, *spent)
        who = weak_members.weights(states)
        if settings.rank == "taylor":
            run = api.spend(run, 0, settings.members * min(settings.examples, index.shape[1]))
        chosen, cast = superpose(
            _scores(problem, settings, run, states, index, who), run.kept, api.host(after), api.host(target), who,
            pattern=pattern, rule=settings.vote,
        )  # fmt: skip
        run = _souped(settings, run, states, cast, who, pattern)
        return api.with_masks(run, chosen, pattern.masks(chosen, run.state.variables.params, run.kept))

    run = api.begin(problem, training, key_main, more=jnp.int32(0))
    run = api.rounds(body, run, lambda r, run: int(run.more) == 2, saved)
    return api.end(problem, training, run)


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
    examples: int

    def __call__(self, variables: Variables, index: Array, data: Batch) -> PyTree:
        own = {name: leaf[index[: self.examples]] for name, leaf in data.items()}
        return saliency.taylor_terms(variables.params, api.gradients(self.model, variables, own))


def _scores(
    problem: api.Problem, settings: Settings, run: api.Run, states: train.TrainState, index: Array, who: Array
) -> Scores:
    """Of every entry for each member, `[K, ...]`."""
    values: PyTree = ()
    if settings.rank == "taylor":
        data = {"x": problem.train["x"], "y": problem.train["y"]}
        values = population.over(
            _Terms(problem.model, settings.examples), states.variables, index, shared=(data,),
            mapping=settings.mapping, mesh=settings.mesh,
        )  # fmt: skip
    return _ranked(states.variables.params, values, run.kept, who, pattern=problem.pattern, rank=settings.rank)


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
