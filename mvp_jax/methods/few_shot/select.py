"""Meta-Vote Pruning with a selected start: the target's own examples choose among copies, votes and soups.

Where little is kept, a copy of the nearest bank entry is a better start than a vote; where tasks share much, the mean
of several is. Which of them holds is told by the target's few examples, without training: every candidate is cut slim,
its batch statistics are re-estimated, and a ridge regression on its features is judged by its leave-one-out error in
closed form (`similarity.press`). The best candidate then moves towards the mean of the nearest neighbours by the share
that the same error chooses.

Sources: Zhao et al. 2023 (arXiv:2301.11560) for votes and the bank; Allen, Technometrics 16, 1974, for the error;
Wortsman et al. 2022, "Model soups" (arXiv:2203.05482), for means of weights.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mvp_jax import compact, train
from mvp_jax.core import similarity
from mvp_jax.core.types import Array, Key, Variables
from mvp_jax.methods.contract import Spent
from mvp_jax.methods.few_shot import api, mvp
from mvp_jax.train import evaluation

VOTES = (mvp.VOTE, mvp.MetaVote(voters=mvp.everyone), mvp.MetaVote(weigh=mvp.by_similarity))
"""The meta-votes among the candidates: of the nearest, of the whole bank, and weighted by similarity."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of Meta-Vote Pruning with a selected start.

    Attributes:
        candidates: how many of the nearest entries are candidates as they are; all of those given if there are fewer.
        shares: the shares of the way, in (0, 1], by which the best candidate may move towards the neighbours' mean;
            that it stays where it is can always be chosen.
        ridge: the penalty of the regression whose leave-one-out error judges a candidate.
        vote: how many neighbours vote and are averaged, how votes weigh, and how the head is fitted and the model
            fine-tuned.

    Raises:
        ValueError: for a number that is out of range, or a vote that is followed by pruning rounds.
    """

    candidates: int = 16
    shares: tuple[float, ...] = (0.3, 0.6, 1.0)
    ridge: float = 0.1
    vote: mvp.Settings = dataclasses.field(default_factory=mvp.Settings)

    def __post_init__(self) -> None:
        if self.candidates < 1 or not self.ridge > 0:
            raise ValueError(
                f"candidates must be >= 1 and ridge positive, got {self.candidates} candidates and ridge {self.ridge}"
            )
        if not all(0 < share <= 1 for share in self.shares):
            raise ValueError(f"shares are {self.shares}; give shares of the way to the neighbours' mean, in (0, 1]")
        if self.vote.rounds:
            raise ValueError("the selected start has its final units at once; leave vote.rounds at 0")

    @property
    def tuning(self) -> api.Tuning:
        """How the head is fitted and the model fine-tuned."""
        return self.vote.tuning


def copied(problem: api.FewShotProblem, index: Array, settings: Settings, key: Key) -> api.Start:
    """Returns a candidate that is one bank entry as it is: its units and its weights, under the task's head.

    Args:
        problem: the task, with neighbours.
        index: the number of the entry among the problem's neighbours, an integer scalar; traced.
        settings: `vote` says how a copy is made where it matters, as for `copy_nearest`.
        key: random key, which a copy does not use.
    """
    alone = jax.tree.map(lambda leaf: leaf[jnp.asarray(index)[None]], problem.voters())
    return mvp.COPY(dataclasses.replace(problem, neighbours=alone), settings.vote, key)


def voted(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """Returns the candidates that are no copies: votes, and a model learned from all tasks if the problem has one.

    Args:
        problem: the task, with neighbours.
        settings: how votes are taken.
        key: random key for votes that sample.

    Returns:
        A `Start` whose arrays lead with the number of these candidates.
    """
    found = [vote(problem, settings.vote, key) for vote in VOTES]
    if problem.universal is not None:
        variables, kept = problem.universal
        head = api.head_of(problem.model, problem.variables.params)
        params = variables.params | {head: problem.variables.params[head]} if head else variables.params
        found.append(api.Start(Variables(params, problem.variables.rest), kept))
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *found)


def judged(problem: api.FewShotProblem, candidates: api.Start, settings: Settings) -> Array:
    """Returns how good each candidate's features are for the task: minus a leave-one-out error, `float32[M]`.

    Nothing is trained: each candidate is cut to the slim model, its batch statistics are re-estimated, and the error of
    a ridge regression from its features to the labels is computed in closed form. Labels that are no classes are
    predicted as numbers.

    Args:
        problem: the task.
        candidates: starts whose arrays lead with their number, `M`.
        settings: the regression's penalty; `tuning` says on how many examples statistics and heads are fitted.
    """
    # What a judgement does not look at would only make its program differ.
    bare = dataclasses.replace(problem, neighbours=None, universal=None, sources=None)
    count = jax.tree.leaves(candidates)[0].shape[0]
    ridge, sizes = jnp.float32(settings.ridge), _sizes(settings)
    if train.loops_on_host(problem.slim, candidates, problem.train):
        single = [jax.tree.map(lambda leaf, i=i: leaf[i], candidates) for i in range(count)]
        return jnp.stack([_judge(bare, one, ridge, sizes=sizes) for one in single])
    return _judge_all(bare, candidates, ridge, sizes=sizes)


def judged_copies(problem: api.FewShotProblem, order: Array, settings: Settings, key: Key) -> Array:
    """Returns what `judged` says of copies of some entries, of which only one at a time is made, `float32[k]`.

    Args:
        problem: the task, with neighbours.
        order: the numbers of the entries among the neighbours, `int[k]`.
        settings: how copies are made and judged.
        key: random key, which a copy does not use.
    """
    bare = dataclasses.replace(problem, universal=None, sources=None)
    ridge, sizes = jnp.float32(settings.ridge), _sizes(settings)
    # The penalty is traced, and nothing else of these settings matters to a copy.
    plain = dataclasses.replace(settings, ridge=1.0, candidates=1, shares=())
    if train.loops_on_host(problem.slim, problem.neighbours, problem.train):
        single = [copied(bare, index, plain, key) for index in order]
        without = dataclasses.replace(bare, neighbours=None)
        return jnp.stack([_judge(without, one, ridge, sizes=sizes) for one in single])
    return _judge_copies(bare, order, key, ridge, settings=plain, sizes=sizes)


def _sizes(settings: Settings) -> tuple[int, int]:
    return settings.tuning.norm_examples, settings.tuning.probe_examples


@functools.partial(jax.jit, static_argnames="sizes")
def _judge(problem: api.FewShotProblem, start: api.Start, ridge: Array, *, sizes: tuple[int, int]) -> Array:
    x, y = problem.train["x"], problem.train["y"]
    norm, probe = sizes
    slim = compact.cut(start.variables, problem.groups, start.units, sizes=problem.sizes)
    slim = evaluation.reestimate(problem.slim, slim, x[:norm])
    outputs, features = evaluation.infer(problem.slim, slim, x[:probe])
    classes = outputs.shape[-1] if jnp.issubdtype(y.dtype, jnp.integer) else None
    return similarity.press(features, y[:probe], classes, ridge=ridge)


@functools.partial(jax.jit, static_argnames="sizes")
def _judge_all(problem: api.FewShotProblem, candidates: api.Start, ridge: Array, *, sizes: tuple[int, int]) -> Array:
    return jax.lax.map(lambda start: _judge(problem, start, ridge, sizes=sizes), candidates)


@functools.partial(jax.jit, static_argnames=("settings", "sizes"))
def _judge_copies(
    problem: api.FewShotProblem, order: Array, key: Key, ridge: Array, *, settings: Settings, sizes: tuple[int, int]
) -> Array:
    bare = dataclasses.replace(problem, neighbours=None)
    return jax.lax.map(lambda i: _judge(bare, copied(problem, i, settings, key), ridge, sizes=sizes), order)


def softened(problem: api.FewShotProblem, best: api.Start, settings: Settings, key: Key) -> api.Start:
    """Returns a start moved towards the nearest neighbours' mean, once for each of `settings.shares`.

    Each entry moves by the share of the way to the mean of those of the `vote.k` nearest neighbours that kept it; an
    entry that none of them kept stays. The units stay.

    Args:
        problem: the task, with neighbours.
        best: the start that moves.
        settings: the shares, and how many neighbours are averaged.
        key: random key, which is not used by a mean of the nearest.

    Returns:
        A `Start` whose arrays lead with the number of shares.
    """
    near = problem.voters()
    near = mvp.nearest(near, min(settings.vote.k, near.similarity.shape[-1]), key)
    numbers = mvp.Numbers(*map(jnp.float32, (0.0, 1.0, 0.0)))
    around = dataclasses.replace(problem, variables=best.variables)
    mean = mvp.averaged(mvp.Ballot(around, near, mvp.equally(near, numbers), numbers, settings.vote, key))
    shares = jnp.asarray(settings.shares, jnp.float32)

    def moved(share: Array) -> api.Start:
        params = jax.tree.map(lambda a, b: (a + share * (b - a)).astype(a.dtype), best.variables.params, mean)
        return api.Start(Variables(params, best.variables.rest), best.units)

    return jax.vmap(moved)(shares)


def start(problem: api.FewShotProblem, settings: Settings, key: Key) -> api.Start:
    """Starts from the candidate whose features tell the task's labels best, by a leave-one-out error in closed form.

    Args:
        problem: the task, with neighbours, and with a universal model if it is to be a candidate.
        settings: what the candidates are, and how they are judged.
        key: random key for votes that sample.

    Raises:
        ValueError: if the problem has no neighbours, or their ballots are for other groups.
    """
    near = problem.voters().similarity
    order = similarity.nearest(near, min(settings.candidates, near.shape[-1]))
    scores = _finite(judged_copies(problem, order, settings, key))
    own, score = copied(problem, order[jnp.argmax(scores)], settings, key), jnp.max(scores)
    others = voted(problem, settings, key)
    best, score = _better(own, score, others, judged(problem, others, settings))
    if not settings.shares:
        return best
    more = softened(problem, best, settings, key)
    return _better(best, score, more, judged(problem, more, settings))[0]


def _finite(scores: Array) -> Array:
    """A score of nan is the lowest."""
    return jnp.where(jnp.isnan(scores), -jnp.inf, scores)


@jax.jit
def _better(best: api.Start, score: Array, others: api.Start, scores: Array) -> tuple[api.Start, Array]:
    """The best of one start and several others, and its score; of equal ones the first."""
    scores = _finite(scores)
    index = jnp.argmax(scores)
    other = jax.tree.map(lambda leaf: leaf[index], others)
    chosen = jax.tree.map(lambda a, b: jnp.where(scores[index] > score, b, a), best, other)
    return chosen, jnp.maximum(score, scores[index])


def cost_of_selection(problem: api.FewShotProblem, settings: Settings) -> Spent:
    """Returns the cost of the decision: ranking the neighbours, and two forward passes of every candidate.

    One pass re-estimates batch statistics, the other computes features.
    """
    near, tuning = problem.voters().similarity.shape[-1], settings.tuning
    count = min(settings.candidates, near) + len(VOTES) + (problem.universal is not None) + len(settings.shares)
    seen = min(problem.examples, tuning.norm_examples) + min(problem.examples, tuning.probe_examples)
    return mvp.ranking(problem, settings).plus(Spent(0, count * seen // 3, 0))


select = api.method(start, Settings, spends=cost_of_selection)
