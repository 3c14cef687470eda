"""The meta-soup: one vote over the nearest tasks' pruned models and weak members of the target itself.

Both cast the same kind of ballot, so that this is Meta-Vote Pruning with more voters: a weak member is the pre-trained
model after a few steps on a part of the target's examples, and keeps the units of its highest Fisher scores.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mvp_jax import train
from mvp_jax.core import prune
from mvp_jax.core.types import Key, Variables
from mvp_jax.methods import weak_members
from mvp_jax.methods.few_shot import api, mvp
from mvp_jax.train import probe


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The meta-soup.

    Attributes:
        vote: how neighbours are taken and what kept units start from. Neighbours' votes weigh by similarity; a weak
            member weighs as much as a neighbour on average.
        members: weak ones.
        steps: of each.
        subset: share of the target's examples that each sees.
        learning_rate: factors of the tuning's rate, drawn log-uniformly.
    """

    vote: mvp.Settings = dataclasses.field(default_factory=mvp.Settings)
    members: int = 3
    steps: int = 20
    subset: float = 0.5
    learning_rate: tuple[float, float] = (0.5, 2.0)

    def __post_init__(self) -> None:
        low, high = self.learning_rate
        if self.members < 1 or self.steps < 1 or not 0 < self.subset <= 1 or not 0 < low <= high:
            raise ValueError(
                "members and steps must be at least 1, subset in (0, 1] and 0 < low <= high for the rate, got "
                f"{self.members}, {self.steps}, {self.subset}, {self.learning_rate}"
            )
        if self.vote.anchor or self.vote.rounds or self.vote.mask != "vote":
            raise ValueError("the meta-soup is a plain vote; leave anchor, rounds and mask as they are by default")

    @property
    def k(self) -> int:
        return self.vote.k

    @property
    def tuning(self) -> api.Tuning:
        return self.vote.tuning

    def own(self, examples: int) -> int:
        """How many of the target's examples each weak member sees."""
        return weak_members.subset_size(self.diversity, examples)

    @property
    def diversity(self) -> weak_members.Diversity:
        """How weak members differ."""
        return weak_members.Diversity(subset=self.subset, learning_rate=self.learning_rate)

    def spent(self, examples: int) -> int:
        """Training examples that pass through the weak members of a target with this many."""
        return self.members * self.steps * min(self.tuning.batch, self.own(examples))


def weak_voters(problem: api.Problem, settings: Settings, key: Key) -> api.Neighbours:
    """Returns weak members as voters, in the dense model's shapes; their `similarity` is zero, still to be set."""
    tuning = settings.tuning
    head = probe.fit_head(
        problem.model, problem.variables, problem.train, l2=tuning.probe_l2, examples=tuning.probe_examples
    )
    recipe = train.Recipe(
        model=problem.model,
        tx=tuning.tx,
        batch=tuning.batch,
        augment=tuning.augment,
        score="fisher",
        groups=problem.groups,
    )
    forks = weak_members.ForkSettings(
        count=settings.members,
        steps=settings.steps,
        diversity=settings.diversity,
        mapping="loop" if train.loops_on_host(problem.model, head) else "vmap",
    )
    state = train.create(head, tuning.tx, key)  # every member gets a key of its own
    members = weak_members.fork(recipe, state, problem.train, key, forks, learning_rate=tuning.learning_rate)
    scores = members.metrics["scores"]
    ballots = jax.vmap(functools.partial(prune.by_leaf, keep=problem.sizes))(scores)
    return api.Neighbours(ballots, members.states.variables, scores, jnp.zeros(settings.members))


def start(problem: api.Problem, settings: Settings, key: Key) -> api.Start:
    """Elects units by the ballots of neighbours and weak members, and starts them from the mean of their weights.

    Raises:
        ValueError: if the problem has no neighbours, or their ballots are for other groups.
    """
    near = problem.voters()
    api.check_groups(near.units, problem)
    near = mvp.nearest(near, min(settings.k, near.similarity.shape[-1]))
    key_weak, key_vote = jax.random.split(key)
    weak = weak_voters(problem, settings, key_weak)
    heat = settings.vote.similarity_temperature
    # As voters weigh softmax(similarity / heat), this is the similarity whose weight is the neighbours' mean.
    level = heat * jax.nn.logsumexp(near.similarity / heat) - heat * jnp.log(near.similarity.shape[-1])
    weak = weak._replace(similarity=jnp.full(settings.members, level))
    headless = near._replace(variables=_under_no_head(near.variables, problem))
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]), headless, weak._replace(variables=_under_no_head(weak.variables, problem))
    )
    vote = dataclasses.replace(settings.vote, k=both.similarity.shape[-1], ballots="similarity")
    return mvp.start(dataclasses.replace(problem, neighbours=both), vote, key_vote)


def _under_no_head(stacked: Variables, problem: api.Problem) -> Variables:
    """Heads belong to their tasks: they may differ in shape, and have no vote."""
    head = problem.model.head
    return Variables({**stacked.params, head: {}}, stacked.rest)


metasoup = api.method(start)
