"""Meta-Vote Pruning: the units that the nearest tasks' pruned models kept, with the mean of their weights.

Source: Zhao et al., ECML-PKDD 2023, arXiv:2301.11560, Algorithm 2 and section 4.
Settings turn the same code into its controls: `k=1, outside="mean"` copies an entry; other neighbours passed in
give votes of far or of all tasks; `weights="pretrained"` keeps the vote alone; `mask="own"` the weights alone.
"""

import dataclasses
import functools
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from mvp_jax.core import prune, similarity, trees, units, vote
from mvp_jax.core.types import Array, Key, PyTree, Units, UnitScores, Variables
from mvp_jax.methods.few_shot import api, ifp, oneshot


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Meta-Vote Pruning.

    Attributes:
        k: neighbours that vote, the most similar of those given.
        temperature: `τ`; 0 is the deterministic vote, above it units are sampled with odds `softmax(h/τ)`.
        ballots: one vote each (`uniform`, the paper) or softmax of `similarity / similarity_temperature`.
        weights: kept units start from the `neighbours`' mean or from the `pretrained` weights.
        outside: parameters of no pruned group start from the `pretrained` value or the neighbours' `mean`.
        mask: `vote`; or, as controls, the target's `own` one-shot mask by `score`, or the units of largest norm in the
            neighbours' plain `mean` (mean weights without a vote).
        anchor: start from the nearest entry, mask and weights; the others vote only on the share `doubt` of its
            units that it holds least salient, and on the units it lacks.
        doubt: see `anchor`.
        score: for `mask="own"`.
        rounds: further pruning rounds after the vote; 0 (default) elects the final units at once.
        start_ratio: with `rounds`, the share of units that the vote removes; the rounds remove the rest.
    """

    k: int = 5
    temperature: float = 0.0
    ballots: Literal["uniform", "similarity"] = "uniform"
    similarity_temperature: float = 0.1
    weights: Literal["neighbours", "pretrained"] = "neighbours"
    outside: Literal["pretrained", "mean"] = "pretrained"
    mask: Literal["vote", "own", "mean"] = "vote"
    anchor: bool = False
    doubt: float = 0.25
    score: oneshot.Score = "fisher"
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
        for name, allowed in (
            ("ballots", ("uniform", "similarity")),
            ("weights", ("neighbours", "pretrained")),
            ("outside", ("pretrained", "mean")),
            ("mask", ("vote", "own", "mean")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}")


def _mean_saliency(neighbours: api.Neighbours) -> dict[str, Array]:
    """Ties are broken by saliency, each neighbour's scaled to mean 1 a group: tasks differ in the size of gradients."""
    return {name: jnp.mean(s / (jnp.mean(s, -1, keepdims=True) + 1e-30), 0) for name, s in neighbours.saliency.items()}


class Knobs(NamedTuple):
    """The settings that are numbers: traced, so that a new value does not compile anew."""

    temperature: Array
    similarity_temperature: Array
    doubt: Array


def _voted(
    problem: api.Problem, voters: api.Neighbours, settings: Settings, knobs: Knobs, share: Array, key: Key
) -> Units:
    tie_break = _mean_saliency(voters)
    if not settings.anchor:
        return vote.elect(
            voters.units,
            problem.sizes,
            scope="leaf",
            weights=share,
            tie_break=tie_break,
            key=key if settings.temperature else None,
            temperature=knobs.temperature if settings.temperature else 0.0,
        )
    support = vote.support(voters.units, share)
    scores = {}
    for name, ballots in voters.units.items():
        own, saliency = ballots[0], voters.saliency[name][0]
        rank = jnp.argsort(jnp.argsort(jnp.where(own, saliency, jnp.inf)))
        sure = own & (rank >= knobs.doubt * jnp.sum(own))
        # Support is a share, at most 1; what the anchor is sure of stands above any vote.
        scores[name] = jnp.where(sure, 2.0, support[name])
    return prune.by_leaf(scores, problem.sizes, tie_break=tie_break)


def _weights(problem: api.Problem, voters: api.Neighbours, settings: Settings, share: Array) -> PyTree:
    """Where parameters start: the mean over the voters that kept an entry (both sides of it), else pre-trained."""
    pretrained = _headless(problem.variables.params, problem.model.head)
    members = _headless(voters.variables.params, problem.model.head)
    masks = jax.vmap(lambda u: units.expand(u, problem.groups, problem.variables.params))(voters.units)
    masks = _headless(masks, problem.model.head)
    inside = {s.path for g in problem.groups for s in g.slots if s.collection == "params"}

    def soup(members: PyTree, masks: PyTree, share: Array) -> PyTree:
        mean = vote.soup(members, masks=masks, weights=share, fallback=pretrained)
        if settings.outside == "mean":
            return mean
        return jax.tree.map(lambda path, a, b: a if path in inside else b, trees.paths(pretrained), mean, pretrained)

    if not settings.anchor:
        params = soup(members, masks, share)
    else:
        first = jax.tree.map(lambda leaf: leaf[0], (members, masks))
        other_members, other_masks = jax.tree.map(lambda leaf: leaf[1:], (members, masks))
        others = soup(other_members, other_masks, share[1:])
        params = jax.tree.map(lambda path, w, m, o: jnp.where(m, w, o), trees.paths(pretrained), *first, others)
    return params | {problem.model.head: problem.variables.params[problem.model.head]}


def _headless(params: PyTree, head: str) -> PyTree:
    # Heads belong to their tasks' classes: they may differ in shape and are never averaged.
    return {name: child for name, child in params.items() if name != head}


@functools.partial(jax.jit, static_argnames=("settings",))
def _decide(problem: api.Problem, key: Key, knobs: Knobs, own: UnitScores | None, *, settings: Settings) -> api.Start:
    k = settings.k
    voters = problem.voters()
    voters = voters.take(similarity.nearest(voters.similarity, k))
    share = (
        jax.nn.softmax(voters.similarity / knobs.similarity_temperature)
        if settings.ballots == "similarity"
        else jnp.full(k, 1 / k)
    )
    if own is not None:
        kept = prune.by_leaf(own, problem.sizes)
    elif settings.mask == "mean":
        mean = jax.tree.map(lambda leaf: jnp.mean(leaf, 0), _headless(voters.variables.params, problem.model.head))
        kept = prune.by_leaf(units.reduce(mean, problem.groups, "l2"), problem.sizes)
    else:
        kept = _voted(problem, voters, settings, knobs, share, key)
    if settings.weights == "pretrained":
        return api.Start(problem.variables, kept)
    return api.Start(Variables(_weights(problem, voters, settings, share), problem.variables.rest), kept)


def start(problem: api.Problem, settings: Settings, key: Key) -> api.Start:
    """Meta-vote: elects units by the neighbours' ballots and starts them from the mean of the neighbours' weights.

    Votes `h[c] = Σ_j w_j·1[c ∈ Ω_j] / Σ_j w_j`; the `keep` units of highest `h` (or of highest `h + τ·Gumbel`), ties
    by the neighbours' mean saliency, then index. A kept unit starts from the mean over those neighbours that kept it;
    an entry between two units from those that kept both.

    Raises:
        ValueError: if the problem has no neighbours, or their ballots are for other groups.
    """
    neighbours = problem.voters()
    api.check_groups(neighbours.units, problem)
    if settings.anchor and min(settings.k, neighbours.similarity.shape[-1]) < 2:
        raise ValueError("an anchored vote needs at least two neighbours: one to start from and one to vote")
    knobs = Knobs(*map(jnp.float32, (settings.temperature, settings.similarity_temperature, settings.doubt)))
    # What is traced, or only used later, is taken out of the key under which the compiled vote is cached.
    static = dataclasses.replace(
        settings,
        k=min(settings.k, neighbours.similarity.shape[-1]),
        temperature=float(settings.temperature > 0),
        similarity_temperature=1.0,
        doubt=0.0,
        score="fisher",
        rounds=0,
        start_ratio=0.0,
        tuning=api.Tuning(),
    )
    own = (
        oneshot.scores(problem, key, score=settings.score, l2=settings.tuning.probe_l2)
        if settings.mask == "own"
        else None
    )
    return _decide(problem, key, knobs, own, settings=static)


_vote_once = api.method(start)


def mvp(problem: api.Problem, settings: Settings, key: Key) -> api.Pruned:
    """Meta-Vote Pruning; see `start`. With `settings.rounds` the vote is less sparse and IFP's rounds remove the rest.

    The rounds take half of the `tuning.steps`, so that the budget is the same.
    """
    if settings.rounds == 0:
        return _vote_once(problem, settings, key)
    first = prune.keep_counts({g.name: g.size for g in problem.groups}, settings.start_ratio)
    first = {name: max(n, problem.sizes[name]) for name, n in first.items()}
    wider = dataclasses.replace(problem, keep=tuple(first.items()))
    key_start, key_search = jax.random.split(key)
    search = ifp.with_budget(ifp.Settings(rounds=settings.rounds, tuning=settings.tuning), settings.tuning.steps)
    found = ifp.search(problem, search, key_search, start=start(wider, settings, key_start), first=first)
    return api.grow(problem, found.slim, found.units)
