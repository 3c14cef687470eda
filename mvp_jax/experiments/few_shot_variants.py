"""Every method on every target under one protocol: the rows of the results table.

A member is one (target, seed). All members of a chunk run at once, method after method; since every method ends in the
same slim shapes, the programs are compiled for the first and found again by the rest. Each (method, chunk) is written
when it is done, so that a killed comparison goes on where it stopped.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mvp_jax import train
from mvp_jax.core.types import Array, Batch, Key, Variables
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import ifp, metasoup, mvp, oneshot
from mvp_jax.train import evaluation, population


class Members(NamedTuple):
    """Targets × seeds, stacked; every leaf leads with `M`.

    Attributes:
        train, valid, test: `{"x": [M, n, ...], "y": int32[M, n]}`; methods see `train` only.
        similarity: `[M, T]` of the target to every bank entry, from `train`.
        key: one a member.
    """

    train: Batch
    valid: Batch
    test: Batch
    similarity: Array
    key: Key


Voters = Literal["none", "nearest", "farthest", "random", "all", "learned"]
"""Which entries of the bank; `"learned"` is the one model that was learned from all of its tasks."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of the table.

    Attributes:
        start: `(problem, settings, key) -> Start`, or `None` for IFP, whose budget includes its rounds.
        settings: of the method.
        voters: which bank entries it gets.
        budget: multiple of the fine-tuning steps (IFP only).
        dense: whether nothing is pruned.
    """

    start: Callable[..., few_shot.Start] | None
    settings: Any
    voters: Voters = "none"
    budget: int = 1
    dense: bool = False


def variants(
    tuning: few_shot.Tuning,
    *,
    search: ifp.Settings,
    vote: mvp.Settings,
    weak: metasoup.Settings | None = None,
    examples: int = 512,
    batch_norm: bool = True,
) -> dict[str, Variant]:
    """MVP, every baseline and every control, by the names that the tables carry.

    Args:
        tuning: of every line.
        search: of IFP; its fine-tuning is within its rounds.
        vote: of MVP.
        weak: weak members of the meta-soup.
        examples: by which one-shot scores are taken.
        batch_norm: whether the model has batch norms, whose scales are a score.

    Raises:
        ValueError: if the vote has further rounds.
    """
    if vote.rounds:
        raise ValueError("the table compares votes at the final ratio; run MVP with further rounds by methods.mvp.mvp")
    vote = dataclasses.replace(vote, tuning=tuning)
    plain = dataclasses.replace(vote, anchor=False)
    search = dataclasses.replace(search, tuning=dataclasses.replace(tuning, steps=0))
    table = {
        "dense": Variant(start=oneshot.keep_all, settings=oneshot.Settings(tuning=tuning), dense=True),
        "mvp": Variant(start=mvp.start, settings=plain, voters="nearest"),
        "mvp_anchored": Variant(
            start=mvp.start, settings=dataclasses.replace(vote, anchor=True, k=max(2, vote.k)), voters="nearest"
        ),
        "mvp_weighted": Variant(
            start=mvp.start, settings=dataclasses.replace(plain, ballots="similarity"), voters="nearest"
        ),
        "ifp": Variant(start=None, settings=search),
        "ifp_10x": Variant(start=None, settings=search, budget=10),
    }
    copy = dataclasses.replace(plain, k=1, outside="mean")
    for where in ("nearest", "random", "farthest"):
        table[f"copy_{where}"] = Variant(start=mvp.start, settings=copy, voters=where)
    table |= {
        "vote_farthest": Variant(start=mvp.start, settings=plain, voters="farthest"),
        "vote_universal": Variant(start=mvp.start, settings=dataclasses.replace(plain, k=10**9), voters="all"),
        "vote_pretrained_weights": Variant(
            start=mvp.start, settings=dataclasses.replace(plain, weights="pretrained"), voters="nearest"
        ),
        "own_mask_mean_weights": Variant(
            start=mvp.start, settings=dataclasses.replace(plain, mask="own"), voters="nearest"
        ),
        "mean_weights_no_vote": Variant(
            start=mvp.start, settings=dataclasses.replace(plain, mask="mean"), voters="nearest"
        ),
    }
    table["metasoup"] = Variant(
        start=metasoup.start,
        settings=dataclasses.replace(weak or metasoup.Settings(), vote=plain),
        voters="nearest",
    )
    # A copy of the one model learned from all tasks; learned once, so that no target pays for it.
    table["reptile_iht"] = Variant(start=mvp.start, settings=copy, voters="learned")
    for score in oneshot.SCORES:
        if score == "batch_norm_scale" and not batch_norm:
            continue
        name = "random_units" if score == "random" else f"oneshot_{score}"
        table[name] = Variant(
            start=oneshot.start, settings=oneshot.Settings(score=score, examples=examples, tuning=tuning)
        )
    return table


def voters(which: Voters, similarity: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Bank entries by index for each member: `[M, T] -> int[M, k]`, most similar first."""
    entries = similarity.shape[1]
    order = np.argsort(-similarity, axis=1, kind="stable")
    k = min(k, entries)
    if which == "all":
        return order
    if which == "learned":
        return np.zeros((len(order), 1), int)
    if which == "farthest":
        return order[:, ::-1][:, :k].copy()
    if which == "random":
        return np.stack([rng.choice(entries, k, replace=False) for _ in similarity])
    return order[:, :k]


@jax.jit
def pick(bank: few_shot.Neighbours, index: Array, similarity: Array) -> few_shot.Neighbours:
    """The entries at `index [k]` of a stacked bank, with one target's `similarity [k]` to them."""
    return jax.tree.map(lambda leaf: leaf[index], bank)._replace(similarity=similarity)


# What is done for each member, as values that compare equal, so that equal work finds its program again.


@dataclasses.dataclass(frozen=True)
class _Decision:
    start: Callable[..., few_shot.Start]
    settings: Any

    def __call__(
        self,
        data: Batch,
        index: Array,
        similarity: Array,
        key: Key,
        template: few_shot.Problem,
        bank: few_shot.Neighbours | None,
    ) -> few_shot.Start:
        neighbours = None if bank is None else pick(bank, index, similarity[index])
        problem = dataclasses.replace(template, train=data, neighbours=neighbours)
        return self.start(problem, self.settings, jax.random.fold_in(key, 0))


@dataclasses.dataclass(frozen=True)
class _Search:
    settings: ifp.Settings

    def __call__(self, data: Batch, key: Key, template: few_shot.Problem) -> ifp.Found:
        return ifp.search(dataclasses.replace(template, train=data), self.settings, key)


@dataclasses.dataclass(frozen=True)
class _First:
    tuning: few_shot.Tuning

    def __call__(self, data: Batch, start: few_shot.Start, key: Key, template: few_shot.Problem) -> train.TrainState:
        problem = dataclasses.replace(template, train=data)
        variables = few_shot.prepare(problem, start, self.tuning)
        return few_shot.begin(problem, variables, self.tuning, jax.random.fold_in(key, 1))


@dataclasses.dataclass(frozen=True)
class _Further:
    tuning: few_shot.Tuning
    steps: int

    def __call__(
        self, data: Batch, state: train.TrainState, template: few_shot.Problem
    ) -> tuple[train.TrainState, Variables]:
        problem = dataclasses.replace(template, train=data)
        state, _ = few_shot.advance(template.slim, data, state, self.tuning, self.steps)
        return state, few_shot.settle(problem, state, self.tuning)


def _judge(variables: Variables, data: Batch, template: few_shot.Problem) -> Array:
    accuracy: Array = evaluation.evaluate(template.slim, variables, data)["accuracy"]
    return accuracy


class Outcome(NamedTuple):
    """What a variant gave for a chunk of members: accuracies by step, the final slim variables and units, and for whom
    training stayed finite.
    """

    accuracy: dict[tuple[int, str], np.ndarray]
    variables: Variables
    units: Mapping[str, Array]
    alive: np.ndarray


def run_variant(
    variant: Variant,
    problem: few_shot.Problem,
    members: Members,
    *,
    steps: Sequence[int],
    bank: few_shot.Neighbours | None = None,
    index: np.ndarray | None = None,
    mapping: population.MemberMapping = "vmap",
    mesh: Mesh | None = None,
) -> Outcome:
    """Runs one line of the table for all members of a chunk.

    Args:
        variant: what to run.
        problem: the template; its `train` and `neighbours` are replaced member by member.
        members: the chunk.
        steps: fine-tuning steps after which to look, rising, from 0; validation accuracy at each, test accuracy at the
            first and the last.
        bank: all entries stacked, with `index [M, k]` the voters of each member.
        index: see `bank`.
        mapping: see `population.over`.
        mesh: see `population.over`.

    Returns:
        Accuracies `[M]` by `(steps, split)`, and the slim variables `[M, ...]` after the last step.
    """
    tuning: few_shot.Tuning = variant.settings.tuning
    template = few_shot.all_kept(problem) if variant.dense else problem
    over = functools.partial(population.over, shared=(template,), mapping=mapping, mesh=mesh)
    chosen = jnp.zeros((members.similarity.shape[0], 0), jnp.int32) if index is None else jnp.asarray(index)

    def judge(variables: Variables, split: str) -> np.ndarray:
        return over(_judge, variables, getattr(members, split))

    accuracy: dict[tuple[int, str], Any] = {}

    def look(variables: Variables, at: int) -> None:
        accuracy[at, "valid"] = judge(variables, "valid")
        if at in (steps[0], steps[-1]):
            accuracy[at, "test"] = judge(variables, "test")

    if variant.start is None:
        for at in steps if variant.budget == 1 else steps[-1:]:
            if at == 0:
                continue
            settings = ifp.with_budget(variant.settings, at * variant.budget)
            found = over(_Search(settings), members.train, members.key)
            look(found.slim, at)
        return Outcome(jax.tree.map(np.asarray, accuracy), found.slim, found.units, np.asarray(found.alive))

    start = over(
        _Decision(variant.start, variant.settings),
        members.train,
        chosen,
        members.similarity,
        members.key,
        shared=(template, bank if chosen.shape[1] else None),
    )
    state = over(_First(tuning), members.train, start, members.key)
    variables, done = state.variables, 0
    for at in steps:
        if at > done:
            state, variables = over(_Further(tuning, at - done), members.train, state)
            done = at
        look(variables, at)
    return Outcome(jax.tree.map(np.asarray, accuracy), variables, start.units, np.asarray(state.alive))


def examples_used(variant: Variant, at: int, examples: int, batch: int) -> int:
    """Training examples of a target that pass forward and backward for `at` fine-tuning steps of the table."""
    before = variant.settings.spent(examples) if isinstance(variant.settings, metasoup.Settings) else 0
    return before + at * variant.budget * min(batch, examples)
