"""What every method gets and gives: a `Problem` in, a `Pruned` model out.

A method decides which units to keep and where their weights start (`Start`); what follows is the same for all,
so that methods differ in nothing else: cut to the slim model, re-estimate batch-norm statistics, fit a logistic
head on the pruned features, fine-tune, re-estimate again.

Training runs on the slim arrays. It computes what training the masked dense model computes (a pruned unit is
zero and gets no gradient), at the slim model's cost, and since each group keeps the same count whatever the
task, members of a population share shapes and programs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from mvp_jax import compact, train
from mvp_jax.core import prune, units
from mvp_jax.core.types import Array, Batch, Key, Units, UnitScores, Variables
from mvp_jax.core.units import Group
from mvp_jax.methods.contract import Pruned, Training, check_labels
from mvp_jax.models.api import Model, replace_head
from mvp_jax.train import evaluation, probe


class Neighbours(NamedTuple):
    """Pruned models of other tasks, in the dense model's index space; every leaf leads with `K`."""

    units: Units
    variables: Variables
    saliency: UnitScores
    similarity: Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One pruning problem. Arrays may lead with a member axis under `vmap`; the other fields are static.

    Attributes:
        variables: the pre-trained model's, under a head of the model's number of classes (its values do not count).
        train: the target task's training examples, all that a method may look at.
        neighbours: what methods that vote vote over.
        sources: training examples of source tasks with as many classes, `[T, n, ...]`, for methods that learn there.
        model: the dense model with the target's number of classes.
        groups: whose units are pruned; the model's other groups stay whole.
        keep: `(group, kept units)` for each of them.
    """

    variables: Variables
    train: Batch
    neighbours: Neighbours | None = None
    sources: Batch | None = None
    model: Model = dataclasses.field(metadata={"static": True})
    groups: tuple[Group, ...] = dataclasses.field(metadata={"static": True})
    keep: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        return dict(self.keep)

    @property
    def slim(self) -> Model:
        return self.model.resize(self.sizes)

    def voters(self) -> Neighbours:
        if self.neighbours is None:
            raise ValueError("this method votes over neighbours, but the problem has none; pass neighbours=...")
        return self.neighbours


class Start(NamedTuple):
    """A method's decision: weights in the dense shapes, and the units to keep."""

    variables: Variables
    units: Units


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Training):
    """Training of a few-shot task under a logistic head.

    Attributes:
        probe_l2: penalty of the head.
        probe_examples: the head is fitted to at most so many.
    """

    probe_l2: float = 1e-2
    probe_examples: int = 1024


class Method(Protocol):
    """The contract: `(problem, settings, key) -> Pruned`, works under `jax.vmap` over problems and keys."""

    def __call__(self, problem: Problem, settings: Any, key: Key) -> Pruned: ...


def problem(
    model: Model,
    variables: Variables,
    data: Batch,
    *,
    ratio: float,
    groups: tuple[Group, ...] | None = None,
    neighbours: Neighbours | None = None,
    sources: Batch | None = None,
    min_units: int = 1,
) -> Problem:
    """A `Problem` from a ratio: the share of each group's units to remove.

    Raises:
        ValueError: for a ratio outside [0, 1), labels outside the classes, no examples.
    """
    check_labels(data["y"], model.num_classes)
    groups = model.groups if groups is None else groups
    keep = prune.keep_counts({g.name: g.size for g in groups}, ratio, min_units=min_units)
    return Problem(
        variables=replace_head(variables, model),
        train=data,
        neighbours=neighbours,
        sources=sources,
        model=model,
        groups=groups,
        keep=tuple(keep.items()),
    )


def all_kept(problem: Problem) -> Problem:
    """The same problem with nothing to prune: the dense reference."""
    return dataclasses.replace(problem, keep=tuple((g.name, g.size) for g in problem.groups))


def prepare(problem: Problem, start: Start, tuning: Tuning) -> Variables:
    """A start as a slim model ready to be judged at `J = 0`: own statistics, own head.

    Returns:
        Variables of `problem.slim`.
    """
    slim = problem.slim
    variables = compact.cut(start.variables, problem.groups, start.units, sizes=problem.sizes)
    variables = evaluation.reestimate(slim, variables, problem.train["x"][: tuning.norm_examples])
    return probe.fit_head(slim, variables, problem.train, l2=tuning.probe_l2, examples=tuning.probe_examples)


def begin(problem: Problem, variables: Variables, tuning: Tuning, key: Key) -> train.TrainState:
    """A fine-tuning run of slim variables, at step 0."""
    return train.create(variables, tuning.tx, key)


def advance(
    model: Model, data: Batch, state: train.TrainState, tuning: Tuning, steps: int | Array, **scoring: Any
) -> tuple[train.TrainState, train.Metrics]:
    """`steps` more steps of a run as the settings say."""
    recipe = train.Recipe(model=model, tx=tuning.tx, batch=tuning.batch, augment=tuning.augment, **scoring)
    return train.fit(recipe, state, data, steps, learning_rate=tuning.learning_rate)


def settle(problem: Problem, state: train.TrainState, tuning: Tuning, model: Model | None = None) -> Variables:
    """The variables of a run with statistics re-estimated for the weights as they now are."""
    return evaluation.reestimate(
        model or problem.slim, state.variables, problem.train["x"][: tuning.norm_examples]
    )  # fmt: skip


def grow(problem: Problem, variables: Variables, kept: Units) -> Pruned:
    """Slim variables back in the dense shapes, zero where pruned."""
    dense = compact.embed(variables, problem.groups, kept, problem.variables)
    return Pruned(dense, units.expand(kept, problem.groups, problem.variables.params), kept)


def finish(problem: Problem, start: Start, tuning: Tuning, key: Key) -> Pruned:
    """Prepare, fine-tune `tuning.steps`, settle: from a decision to a pruned model."""
    state = begin(problem, prepare(problem, start, tuning), tuning, key)
    if tuning.steps:
        state, _ = advance(problem.slim, problem.train, state, tuning, tuning.steps)
        return grow(problem, settle(problem, state, tuning), start.units)
    return grow(problem, state.variables, start.units)


def check_groups(wanted: Mapping[str, Any], problem: Problem) -> None:
    """Raises `ValueError` unless `wanted` names exactly the problem's groups."""
    names = {g.name for g in problem.groups}
    if set(wanted) != names:
        raise ValueError(
            f"ballots are for groups {sorted(set(wanted))[:5]}, the problem prunes {sorted(names)[:5]}; "
            "build the bank with the same groups"
        )


def method(start: Callable[[Problem, Any, Key], Start]) -> Method:
    """A method from its decision: `start`, then `finish` with `settings.tuning`."""

    def run(problem: Problem, settings: Any, key: Key) -> Pruned:
        key_start, key_finish = jax.random.split(key)
        return finish(problem, start(problem, settings, key_start), settings.tuning, key_finish)

    run.__doc__ = start.__doc__
    run.__name__ = start.__module__.rsplit(".", 1)[-1]
    return run
