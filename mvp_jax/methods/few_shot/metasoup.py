"""The meta-soup: one vote of the nearest tasks' pruned models and of weak members of the target itself.

A weak member is the pre-trained model after a few training steps on a part of the target's examples; it votes for the
units of its highest Fisher scores. Its ballot is of the same kind as a neighbour's, so that the meta-soup is Meta-Vote
Pruning with more voters.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mvp_jax import train
from mvp_jax.core import prune
from mvp_jax.core.types import Key, Variables
from mvp_jax.methods import weak_members
from mvp_jax.methods.contract import Spent
from mvp_jax.methods.few_shot import api, mvp


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of the meta-soup.

    Attributes:
        vote: how many neighbours vote, what kept units start from, and how members and the elected model are trained.
            Neighbours' votes weigh by similarity; a weak member's weighs as much as a neighbour's does on average.
        members: the number of weak members that vote.
        steps: the number of training steps of each weak member.
        subset: the fraction of the target's examples that each weak member sees, in (0, 1].
        learning_rate: lowest and highest factor of the tuning's learning rate; each member's is drawn log-uniformly
            between them.

    Raises:
        ValueError: for a number that is out of range, or a vote that is followed by pruning rounds.
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
        if self.vote.rounds:
            raise ValueError("the meta-soup elects the final units at once; leave vote.rounds at 0")

    @property
    def k(self) -> int:
        """The number of neighbours that vote."""
        return self.vote.k

    @property
    def tuning(self) -> api.Tuning:
        """How the head is fitted, and how members and the elected model are trained."""
        return self.vote.tuning

    @property
    def diversity(self) -> weak_members.Diversity:
        """What weak members differ in: the examples they see and their learning rates."""
        return weak_members.Diversity(subset=self.subset, learning_rate=self.learning_rate)

    def own(self, examples: int) -> int:
        """Returns the number of examples that each weak member sees of a target with this many `examples`."""
        return weak_members.subset_size(self.diversity, examples)

    def spent(self, examples: int) -> int:
        """Returns the number of examples that pass forward and backward in the training of all weak members.

        Args:
            examples: the number of the target's training examples.
        """
        return self.members * self.steps * min(self.tuning.batch, self.own(examples))


def weak_voters(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Neighbours:
    """Returns weak members as voters, in the dense model's shapes; every array leads with the number of members.

    Args:
        problem: the task; members start from its pre-trained variables under a fitted head.
        settings: how many members there are, and how they are trained.
        key: random key for the members' examples, learning rates and batches.

    Returns:
        The members' ballots, variables and Fisher scores; their `similarity` is 0, for the caller to set.
    """
    tuning = settings.tuning
    head = api.fit_head(problem, problem.model, problem.variables, tuning)
    recipe = train.Recipe(
        model=problem.model,
        tx=tuning.tx,
        loss=problem.loss,
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


def start(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """Elects units by the votes of neighbours and weak members; weights start from the voters' mean (meta-soup).

    Args:
        problem: the task, with neighbours.
        settings: who votes, and how members are trained.
        key: random key for the weak members and the vote.

    Raises:
        ValueError: if the problem has no neighbours, or their ballots are for other groups.
    """
    near = problem.voters()
    key_weak, key_vote = jax.random.split(key)
    near = mvp.nearest(near, min(settings.k, near.similarity.shape[-1]), key)
    weak = weak_voters(problem, settings, key_weak)
    heat = settings.vote.similarity_temperature
    # As voters weigh softmax(similarity / heat), this is the similarity whose weight is the neighbours' mean.
    level = heat * jax.nn.logsumexp(near.similarity / heat) - heat * jnp.log(near.similarity.shape[-1])
    weak = weak._replace(similarity=jnp.full(settings.members, level))
    headless = near._replace(variables=_under_no_head(near.variables, problem))
    both = jax.tree.map(
        lambda a, b: jnp.concatenate([a, b]), headless, weak._replace(variables=_under_no_head(weak.variables, problem))
    )
    together = dataclasses.replace(problem, neighbours=both)
    return mvp.MetaVote(voters=mvp.everyone, weigh=mvp.by_similarity)(together, settings.vote, key_vote)


def _under_no_head(stacked: Variables, problem: api.FewShotProblem) -> Variables:
    """Returns variables without the head: heads belong to their tasks, may differ in shape, and have no vote."""
    head = api.head_of(problem.model, problem.variables.params)
    return Variables({**stacked.params, head: {}} if head else stacked.params, stacked.rest)


def cost_of_members(problem: api.FewShotProblem, settings: Settings) -> Spent:
    """Returns the cost of the decision: ranking the neighbours and training the weak members."""
    steps, examples = settings.members * settings.steps, settings.spent(problem.examples)
    # The members vote once, with the neighbours, whose ballots lie in the bank.
    return mvp.ranking(problem, settings).plus(Spent(steps, examples, settings.steps, int(settings.members > 1)))


metasoup = api.method(start, Settings, spends=cost_of_members)
