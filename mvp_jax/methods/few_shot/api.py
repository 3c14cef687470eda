"""What every method gets and gives: a `Problem` in, a `Pruned` model out.

A method decides which units to keep and where their weights start (`Start`); what follows is the same for all,
so that methods differ in nothing else: cut to the slim model, re-estimate batch-norm statistics, fit a logistic
head on the pruned features, fine-tune, re-estimate again.

Training runs on the slim arrays. It computes what training the masked dense model computes (a pruned unit is
zero and gets no gradient), at the slim model's cost, and since each group keeps the same count whatever the
task, members of a population share shapes and programs.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mvp_jax import compact, train
from mvp_jax.bank.voters import Neighbours
from mvp_jax.core import prune, trees, units
from mvp_jax.core.types import Array, Batch, Key, Masks, PyTree, Units, Variables
from mvp_jax.core.units import Group
from mvp_jax.models.api import Model, replace_head
from mvp_jax.train import evaluation, probe


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


class Spent(NamedTuple):
    """What a method took: optimiser steps of all members, and examples that passed forward and backward."""

    steps: int
    examples: int


class Pruned(NamedTuple):
    """A pruned model in the dense shapes: `variables` are zero where `masks` are False.

    `units` are those kept, where units were pruned. `spent` and `alive` (whether training stayed finite) are known of
    methods for a sparsity (`methods.sparse`).
    """

    variables: Variables
    masks: Masks
    units: Units
    spent: Spent | None = None
    alive: Array | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """How a method trains, and how every method's model is finished.

    Attributes:
        steps: of the final fine-tuning, `J`.
        learning_rate: traced.
        optimizer: `sgd` (momentum 0.9), `adamw` or `either`.
        weight_decay: see `train.optimizer`.
        batch: examples a step, at most what there is.
        clip: global norm that gradients are scaled down to.
        norm_examples: batch-norm statistics are re-estimated on at most so many.
        augment: applied to each batch.
        undecayed: parts of the parameters that weight decay leaves alone, such as a frozen head, by path.
    """

    steps: int = 100
    learning_rate: float = 0.02
    optimizer: Literal["sgd", "adamw", "either"] = "sgd"
    weight_decay: float = 0.0
    batch: int = 64
    clip: float | None = None
    norm_examples: int = 512
    augment: train.Augment | None = None
    undecayed: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.steps < 0 or self.batch < 1:
            raise ValueError(f"steps must be >= 0 and batch >= 1, got {self.steps} and {self.batch}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate}")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"clip must be positive, got {self.clip}")
        train.optimizer(self.optimizer)  # refuses an unknown name

    @property
    def tx(self) -> Any:
        decayed = all_but(self.undecayed) if self.undecayed else None
        return train.optimizer(self.optimizer, weight_decay=self.weight_decay, clip=self.clip, decayed=decayed)


@functools.cache
def all_but(names: tuple[str, ...]) -> Callable[[PyTree], PyTree]:
    """From parameters to what decays: all but the parts of these paths; one function for equal paths, so that
    optimisers are equal too.

    >>> all_but(("a/b",))({"a": {"b": {"c": 0}, "d": 0}})
    {'a': {'b': {'c': False}, 'd': True}}
    """

    def decays(path: str) -> bool:
        return not any(path == name or path.startswith(f"{name}/") for name in names)

    return lambda params: jax.tree.map(decays, trees.paths(params))


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


def check_labels(labels: Array, num_classes: int) -> None:
    """Raises `ValueError` unless there are labels, all in `[0, num_classes)`."""
    if labels.size == 0:
        raise ValueError("the task has no examples; draw it with at least one image a class")
    low, high = int(jnp.min(labels)), int(jnp.max(labels))
    if low < 0 or high >= num_classes:
        raise ValueError(f"labels must be 0 to {num_classes - 1} for {num_classes} classes, got {low} to {high}")


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
    return train.fit(
        model,
        state,
        data,
        steps,
        tx=tuning.tx,
        learning_rate=tuning.learning_rate,
        batch=tuning.batch,
        augment=tuning.augment,
        **scoring,
    )


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
