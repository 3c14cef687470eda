"""Meta-Vote Pruning: the units that the nearest tasks' pruned models kept, with the mean of their weights.

Source: Zhao et al., ECML-PKDD 2023, arXiv:2301.11560, Algorithm 2 and section 4.

A meta-vote has four slots, each a function: which neighbours vote, what each vote weighs, which units they elect, and
from which weights the kept units start (`MetaVote`). The paper's method and all of its controls are this one function
with other slots:

    near = voters(neighbours, k, key)
    ballot = Ballot(problem, near, weigh(near, numbers), numbers, settings, key)
    start = weights(ballot), elect(ballot)
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mvp_jax.core import prune, similarity, trees, units, vote
from mvp_jax.core.types import Array, Key, Params, PyTree, Units, Variables
from mvp_jax.methods import checks
from mvp_jax.methods.contract import Pruned, Spent
from mvp_jax.methods.few_shot import api, ifp, oneshot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of Meta-Vote Pruning and of its controls.

    Attributes:
        k: the number of neighbours that vote; all of those given if there are fewer.
        temperature: `τ`; 0: the vote is deterministic; above 0, units are sampled with probability `softmax(h/τ)` of
            their support `h`.
        similarity_temperature: where votes weigh by similarity, their weights are `softmax(similarity / this)`.
        outside: where parameters of no pruned group start from: `mean`, the neighbours' mean, or `pretrained`, their
            pre-trained values.
        doubt: only for the anchored vote: the fraction of the nearest neighbour's units, those it holds least salient,
            on which all neighbours vote.
        score: only for the control that keeps the task's own units: the one-shot score that chooses them.
        rounds: the number of pruning rounds after the vote; 0: the vote elects the final units at once.
        start_ratio: only with `rounds`: the ratio of the units that the vote removes; the rounds remove the rest.
        tuning: how the head is fitted and the model fine-tuned.

    Raises:
        ValueError: for a number that is out of range, or an unknown value of `outside`.
    """

    k: int = 5
    temperature: float = 0.0
    similarity_temperature: float = 0.1
    outside: str = "mean"
    doubt: float = 0.25
    score: oneshot.UnitCriterion = "fisher"
    rounds: int = 0
    start_ratio: float = 0.5
    tuning: api.Tuning = dataclasses.field(default_factory=api.Tuning)

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ValueError(f"k must be >= 1, got {self.k}")
        if self.temperature < 0 or self.similarity_temperature <= 0:
            raise ValueError("temperature must be >= 0 and similarity_temperature > 0")
        if self.rounds < 0 or not 0 <= self.start_ratio < 1:
            raise ValueError(f"rounds must be >= 0 and start_ratio in [0, 1), got {self.rounds} and {self.start_ratio}")
        if not 0 <= self.doubt <= 1:
            raise ValueError(f"doubt is a share in [0, 1], got {self.doubt}")
        if self.outside not in ("pretrained", "mean"):
            raise ValueError(f"outside must be one of ('pretrained', 'mean'), got {self.outside!r}")


class Numbers(NamedTuple):
    """The settings that are traced scalars, so that a new value does not compile anew; as in `Settings`."""

    temperature: Array
    similarity_temperature: Array
    doubt: Array


class Ballot(NamedTuple):
    """What a meta-vote's functions for units and weights are given.

    Attributes:
        problem: the task.
        near: the neighbours that vote, nearest first.
        weights: `float[k]`, the weight of each vote; the weights add up to 1.
        numbers: the settings that are traced.
        settings: the other settings, static.
        key: random key for what is sampled.
    """

    problem: api.FewShotProblem
    near: api.Neighbours
    weights: Array
    numbers: Numbers
    settings: Settings
    key: Key


# -- who votes


def nearest(neighbours: api.Neighbours, k: int, key: Key) -> api.Neighbours:
    """Returns the `k` most similar neighbours, nearest first."""
    return neighbours.take(similarity.nearest(neighbours.similarity, k))


def farthest(neighbours: api.Neighbours, k: int, key: Key) -> api.Neighbours:
    """Returns the `k` least similar neighbours, the most similar of them first."""
    count = neighbours.similarity.shape[-1]
    return neighbours.take(similarity.nearest(neighbours.similarity, count)[count - k :])


def random(neighbours: api.Neighbours, k: int, key: Key) -> api.Neighbours:
    """Returns `k` neighbours drawn without replacement, nearest first."""
    drawn = jax.random.permutation(jax.random.fold_in(key, 1), neighbours.similarity.shape[-1])[:k]
    return nearest(neighbours.take(drawn), k, key)


def everyone(neighbours: api.Neighbours, k: int, key: Key) -> api.Neighbours:
    """Returns all neighbours, nearest first, whatever `k` is."""
    return nearest(neighbours, neighbours.similarity.shape[-1], key)


# -- what a vote weighs


def equally(near: api.Neighbours, numbers: Numbers) -> Array:
    """Returns equal weights, `float[k]` of `1/k`: one vote for each neighbour, as in the paper."""
    k = near.similarity.shape[-1]
    return jnp.full(k, 1 / k)


def by_similarity(near: api.Neighbours, numbers: Numbers) -> Array:
    """Returns weights that grow with similarity, `softmax(similarity / similarity_temperature)`, `float[k]`."""
    return jax.nn.softmax(near.similarity / numbers.similarity_temperature)


# -- which units are kept


def elected(ballot: Ballot) -> Units:
    """Returns the units with the most votes in each group, `{group: bool[C]}`.

    The support of unit `c` is `h[c] = Σ_j w_j·1[c ∈ Ω_j] / Σ_j w_j`, where `w_j` weighs the vote of neighbour `j` and
    `Ω_j` are the units it kept. A group keeps as many units as the problem says, those of highest `h` (with a
    temperature `τ`, those of highest `h + τ·Gumbel noise`). Ties go to the unit of higher mean saliency among the
    neighbours, then to the lower index.
    """
    sampled = bool(ballot.settings.temperature)
    elected: Units = vote.elect(
        ballot.near.units,
        ballot.problem.sizes,
        scope="leaf",
        weights=ballot.weights,
        tie_break=_mean_saliency(ballot.near),
        key=ballot.key if sampled else None,
        temperature=ballot.numbers.temperature if sampled else 0.0,
    )
    return elected


def anchored(ballot: Ballot) -> Units:
    """Returns the units that the nearest neighbour is sure of, and by votes the rest, `{group: bool[C]}`.

    The nearest neighbour is in doubt about the fraction `doubt` of its units that it holds least salient. On these
    units, and on those that it lacks, all neighbours vote.

    Raises:
        ValueError: for fewer than two neighbours.
    """
    near = ballot.near
    if near.similarity.shape[-1] < 2:
        raise ValueError("an anchored vote needs at least two neighbours: one to start from and one to vote")
    support = vote.support(near.units, ballot.weights)
    scores = {}
    for name, ballots in near.units.items():
        own, saliency = ballots[0], near.saliency[name][0]
        rank = jnp.argsort(jnp.argsort(jnp.where(own, saliency, jnp.inf)))
        sure = own & (rank >= ballot.numbers.doubt * jnp.sum(own))
        # Support is at most 1; what the nearest neighbour is sure of stands above any vote.
        scores[name] = jnp.where(sure, 2.0, support[name])
    kept: Units = prune.by_leaf(scores, ballot.problem.sizes, tie_break=_mean_saliency(near))
    return kept


def own(ballot: Ballot) -> Units:
    """Returns the units of highest one-shot score on the task itself, `{group: bool[C]}`; a control without a vote."""
    settings = ballot.settings
    scores = oneshot.scores(ballot.problem, ballot.key, score=settings.score, l2=settings.tuning.probe_l2)
    kept: Units = prune.by_leaf(scores, ballot.problem.sizes)
    return kept


def of_the_mean(ballot: Ballot) -> Units:
    """Returns the units of largest l2 norm in the neighbours' mean weights, `{group: bool[C]}`.

    The mean is over all `k` neighbours, with zeros where a neighbour removed a unit. A control without a vote.
    """
    params = _headless(ballot.near.variables.params, _head(ballot.problem))
    mean = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), params)
    kept: Units = prune.by_leaf(units.reduce(mean, ballot.problem.groups, "l2"), ballot.problem.sizes)
    return kept


def _mean_saliency(neighbours: api.Neighbours) -> dict[str, Array]:
    """Returns the neighbours' mean saliency, which breaks ties, `{group: float[C]}`.

    Each neighbour's is first scaled to a mean of 1 in each group, as tasks differ in the size of gradients.
    """
    return {name: jnp.mean(s / (jnp.mean(s, -1, keepdims=True) + 1e-30), 0) for name, s in neighbours.saliency.items()}


# -- where weights start


def soup(ballot: Ballot) -> Params:
    """Returns parameters that are, entry by entry, the weighted mean over the neighbours that kept the entry.

    A neighbour kept an entry if it kept all units that the entry belongs to. An entry that no neighbour kept has its
    pre-trained value. Parameters of no pruned group are as `settings.outside` says. The head is the problem's own, as
    neighbours' heads are for other classes.
    """
    members, masks = _votes(ballot)
    return _soup(ballot, members, masks, ballot.weights)


def averaged(ballot: Ballot) -> Params:
    """Returns the parameters of `soup`, with the neighbours' mean for those of no pruned group.

    What `settings.outside` says is not used.
    """
    return soup(ballot._replace(settings=dataclasses.replace(ballot.settings, outside="mean")))


def pretrained(ballot: Ballot) -> Params:
    """Returns the pre-trained parameters: a control in which the neighbours only vote."""
    params: Params = ballot.problem.variables.params
    return params


def anchor(ballot: Ballot) -> Params:
    """Returns the nearest neighbour's parameters where it kept an entry, and elsewhere the other neighbours' mean.

    The mean is that of `soup`: over the neighbours that kept the entry, and pre-trained where none did.
    """
    members, masks = _votes(ballot)
    first = jax.tree.map(lambda leaf: leaf[0], (members, masks))
    other_members, other_masks = jax.tree.map(lambda leaf: leaf[1:], (members, masks))
    others = _soup(ballot, other_members, other_masks, ballot.weights[1:])
    head = _head(ballot.problem)
    params = jax.tree.map(lambda w, m, o: jnp.where(m, w, o), *first, _headless(others, head))
    return _headed(params, ballot)


def _votes(ballot: Ballot) -> tuple[PyTree, PyTree]:
    """Returns the neighbours' parameters without heads, and masks of the entries each kept; leaves lead with `k`."""
    problem = ballot.problem
    masks = jax.vmap(lambda u: units.expand(u, problem.groups, problem.variables.params))(ballot.near.units)
    return _headless(ballot.near.variables.params, _head(problem)), _headless(masks, _head(problem))


def _soup(ballot: Ballot, members: PyTree, masks: PyTree, weights: Array) -> Params:
    problem = ballot.problem
    dense = _headless(problem.variables.params, _head(problem))
    mean = vote.soup(members, masks=masks, weights=weights, fallback=dense)
    if ballot.settings.outside != "mean":
        inside = {s.path for g in problem.groups for s in g.slots if s.collection == "params"}
        mean = jax.tree.map(lambda path, a, b: a if path in inside else b, trees.paths(dense), mean, dense)
    return _headed(mean, ballot)


def _head(problem: api.FewShotProblem) -> str | None:
    return api.head_of(problem.model, problem.variables.params)


def _headless(params: PyTree, head: str | None) -> PyTree:
    # Heads belong to their tasks' classes: they may differ in shape and are never averaged.
    return {name: child for name, child in params.items() if name != head} if head else params


def _headed(params: PyTree, ballot: Ballot) -> Params:
    head = _head(ballot.problem)
    return params | {head: ballot.problem.variables.params[head]} if head else params


# -- the method


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaVote:
    """A meta-vote, made of the functions that decide it; the defaults are the paper's.

    Called with `(problem, settings, key)`, it returns the `Start`: the units kept, and the weights they start from.

    Attributes:
        voters: which neighbours vote, `(neighbours, k, key) -> neighbours`, nearest first.
        weigh: the weight of each vote, `(neighbours, numbers) -> float[k]`.
        elect: which units are kept, `(ballot) -> {group: bool[C]}`.
        weights: the parameters that the kept units start from, `(ballot) -> parameters` in the dense shapes.
        k: the number of neighbours that vote; `None`: `settings.k`.
    """

    voters: Callable[[api.Neighbours, int, Key], api.Neighbours] = nearest
    weigh: Callable[[api.Neighbours, Numbers], Array] = equally
    elect: Callable[[Ballot], Units] = elected
    weights: Callable[[Ballot], Params] = soup
    k: int | None = None

    def __call__(self, problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
        k = min(self.k or settings.k, problem.voters().similarity.shape[-1])
        numbers = Numbers(*map(jnp.float32, (settings.temperature, settings.similarity_temperature, settings.doubt)))
        # What is traced, or only used later, is taken out of the key under which the compiled vote is cached.
        static = Settings(
            k=k,
            temperature=float(settings.temperature > 0),
            outside=settings.outside,
            score=settings.score,
            tuning=api.Tuning(probe_l2=settings.tuning.probe_l2),
        )
        return _decide(problem, key, numbers, slots=self, settings=static)


@functools.partial(jax.jit, static_argnames=("slots", "settings"))
def _decide(
    problem: api.FewShotProblem, key: Key, numbers: Numbers, *, slots: MetaVote, settings: Settings
) -> api.Start:
    near = slots.voters(problem.voters(), settings.k, key)
    ballot = Ballot(problem, near, slots.weigh(near, numbers), numbers, settings, key)
    kept = slots.elect(ballot)
    return api.Start(Variables(slots.weights(ballot), problem.variables.rest), kept)


def ranking(problem: api.FewShotProblem, settings: object) -> Spent:
    """Returns the cost of ranking the neighbours: a forward pass of each over the task's training examples.

    A forward pass costs a third of a training step on the example, and counts as a third of an example.
    """
    return Spent(0, problem.voters().similarity.shape[-1] * problem.examples // 3, 0)


def by(slots: MetaVote, name: str = "mvp") -> api.FewShotMethod:
    """Returns the method of a meta-vote: the vote, then a fitted head, fine-tuning, and re-estimated batch statistics.

    With `settings.rounds` the vote removes only the ratio `settings.start_ratio` of the units, and rounds of iterative
    filter pruning, which take half of `tuning.steps`, remove the rest.

    Args:
        slots: the functions that decide who votes, what is kept and where weights start.
        name: the method's name.
    """

    def cost_before(problem: api.FewShotProblem, settings: Settings) -> Spent:
        ranked = ranking(problem, settings)
        if slots.elect is not own:
            return ranked
        return ranked.plus(oneshot.cost_of_score(problem, settings.score, 512))

    at_once = api.method(slots, Settings, spends=cost_before)

    def run(problem: api.FewShotProblem, settings: Settings, key: Key) -> Pruned:
        """Prunes a few-shot problem by a meta-vote and returns a `Pruned`; `Settings` says how."""
        checks.check(name, problem, api.FewShotProblem, settings, Settings)
        if settings.rounds == 0:
            return at_once(problem, settings, key)
        first = prune.keep_counts({g.name: g.size for g in problem.groups}, settings.start_ratio)
        first = {name: max(n, problem.sizes[name]) for name, n in first.items()}
        wider = dataclasses.replace(problem, keep=tuple(first.items()))
        key_start, key_search = jax.random.split(key)
        search = ifp.with_budget(ifp.Settings(rounds=settings.rounds, tuning=settings.tuning), settings.tuning.steps)
        found = ifp.search(problem, search, key_search, start=slots(wider, settings, key_start), first=first)
        spent = cost_before(problem, settings).plus(ifp.steps_and_examples(problem, search))
        return api.pruned(problem, found.slim, found.units, spent=spent, alive=found.alive)

    run.__name__ = run.__qualname__ = name
    return run


VOTE = MetaVote()
"""The meta-vote of the paper."""

COPY = MetaVote(weights=averaged, k=1)
"""The meta-vote of one neighbour, the nearest: it copies that entry's units and weights."""

mvp = by(VOTE)
