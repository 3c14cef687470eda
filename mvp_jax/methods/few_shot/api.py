"""What every few-shot method gets and gives: a `FewShotProblem` in, a `Pruned` model out.

A method decides which units to keep and where their weights start (`Start`); what follows is the same for all, so that
methods differ in nothing else: cut to the slim model, re-estimate batch-norm statistics, fit a linear head on the
pruned features, fine-tune, re-estimate again (`finish`).

Training runs on the slim arrays. It computes what training the masked dense model computes (a pruned unit is zero and
gets no gradient), at the slim model's cost, and since each group keeps the same count whatever the task, members of a
population share shapes and programs.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from mvp_jax import compact, train
from mvp_jax.bank.voters import Neighbours
from mvp_jax.core import prune, units
from mvp_jax.core.types import Array, Batch, Key, Params, Units, Variables
from mvp_jax.core.units import Group
from mvp_jax.methods import checks
from mvp_jax.methods.contract import CROSS_ENTROPY, Look, Pruned, Spent, Training, check_labels
from mvp_jax.models.api import Model, replace_head
from mvp_jax.train import Loss, evaluation, probe

_NOTHING = Spent(0, 0)


class Start(NamedTuple):
    """A method's decision: weights in the dense shapes, and the units to keep."""

    variables: Variables
    units: Units


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotProblem:
    """A pre-trained model, a task of few examples, and how many units of each group may stay.

    Arrays may lead with a member axis under `jax.vmap`; the other fields are static.

    Attributes:
        variables: the pre-trained model's, under a head of the task's number of classes, whose values do not count.
        train: the task's training examples `{"x": [N, ...], "y": [N, ...]}`, all that a method may look at.
        neighbours: pruned models of other tasks, for the methods that vote; as `bank.neighbours` gives them.
        universal: one pruned model that was learned from all source tasks (`reptile.learn`), for `reptile_iht`.
        sources: training examples of source tasks with as many classes, `[T, n, ...]`, from which `reptile_iht` learns
            where `universal` is not given.
        model: the dense model with the task's number of classes.
        groups: the groups whose units are pruned; the model's other groups stay whole.
        keep: `(group, number of units kept)` for each of `groups`.
        loss: per-example loss `(outputs, labels) -> losses [N, ...]`; its mean is minimised.
    """

    variables: Variables
    train: Batch
    neighbours: Neighbours | None = None
    universal: Start | None = None
    sources: Batch | None = None
    model: Model = dataclasses.field(metadata={"static": True})
    groups: tuple[Group, ...] = dataclasses.field(metadata={"static": True})
    keep: tuple[tuple[str, int], ...] = dataclasses.field(metadata={"static": True})
    loss: Loss = dataclasses.field(default=CROSS_ENTROPY, metadata={"static": True})

    @property
    def sizes(self) -> dict[str, int]:
        """How many units each pruned group keeps."""
        return dict(self.keep)

    @property
    def slim(self) -> Model:
        """The model with so many units."""
        return self.model.resize(self.sizes)

    @property
    def examples(self) -> int:
        """How many training examples there are."""
        return int(self.train["y"].shape[0])

    def voters(self) -> Neighbours:
        """The neighbours.

        Raises:
            ValueError: if there are none, or their ballots are for other groups than the problem prunes.
        """
        if self.neighbours is None:
            raise ValueError(
                "this method votes over neighbours, but the problem has none; pass neighbours=bank.neighbours(...)"
            )
        check_groups(self.neighbours.units, self)
        return self.neighbours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Training):
    """Training of a few-shot task: a linear head fitted first, then fine-tuning.

    Attributes:
        probe_l2: weight of the squared norm in the fit of the head.
        probe_examples: the head is fitted to at most so many training examples.
        looks: numbers of fine-tuning steps, from 0 to `steps`, after which the model is kept in `Pruned.looks`.
    """

    probe_l2: float = 1e-2
    probe_examples: int = 1024
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= at <= self.steps for at in self.looks):
            raise ValueError(f"looks are numbers of steps from 0 to steps={self.steps}, got {self.looks}")


class FewShotMethod(Protocol):
    """The contract: `(problem, settings, key) -> Pruned`; works under `jax.vmap` over problems and keys."""

    def __call__(self, problem: FewShotProblem, settings: Any, key: Key, /) -> Pruned: ...


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
    loss: Loss = CROSS_ENTROPY,
) -> FewShotProblem:
    """Returns a `FewShotProblem` in which `ratio` of each group's units are to be removed.

    Args:
        model: the dense model, with the task's number of classes.
        variables: pre-trained; the head may have another number of classes, it is replaced.
        data: the task's training examples, `{"x": [N, ...], "y": int32[N]}`, or other labels if `loss` takes them.
        ratio: share of the units of each group to remove, in [0, 1).
        groups: the groups to prune. Default: all of the model's.
        neighbours: see `FewShotProblem`.
        sources: see `FewShotProblem`.
        min_units: no group keeps fewer units.
        loss: per-example loss.

    Returns:
        The problem.

    Raises:
        ValueError: for a ratio outside [0, 1), no examples, or, with the default loss, labels outside the classes.
    """
    if loss is CROSS_ENTROPY:
        check_labels(data["y"], model.num_classes)
    elif data["y"].size == 0:
        raise ValueError("the task has no examples; give it at least one")
    groups = model.groups if groups is None else groups
    keep = prune.keep_counts({g.name: g.size for g in groups}, ratio, min_units=min_units)
    return FewShotProblem(
        variables=replace_head(variables, model) if head_of(model, variables.params) else variables,
        train=data,
        neighbours=neighbours,
        sources=sources,
        model=model,
        groups=groups,
        keep=tuple(keep.items()),
        loss=loss,
    )


def head_of(model: Model, params: Params) -> str | None:
    """Returns the name of the model's head among its parameters; `None` if it has none that can be refitted."""
    there = isinstance(params, Mapping) and "kernel" in params.get(model.head, ())
    return model.head if there else None


def all_kept(problem: FewShotProblem) -> FewShotProblem:
    """Returns the same problem with nothing to prune: the dense reference."""
    return dataclasses.replace(problem, keep=tuple((g.name, g.size) for g in problem.groups))


def prepare(problem: FewShotProblem, start: Start, tuning: Tuning) -> Variables:
    """Returns a start as slim variables ready to be judged before any fine-tuning: own statistics, own head.

    Args:
        problem: the task.
        start: weights in the dense shapes and the units to keep.
        tuning: how the head is fitted.

    Returns:
        Variables of `problem.slim`.
    """
    variables = compact.cut(start.variables, problem.groups, start.units, sizes=problem.sizes)
    variables = evaluation.reestimate(problem.slim, variables, problem.train["x"][: tuning.norm_examples])
    return fit_head(problem, problem.slim, variables, tuning)


def fit_head(problem: FewShotProblem, model: Model, variables: Variables, tuning: Tuning) -> Variables:
    """Returns `variables` of `model` under a head fitted to the task's training examples."""
    return probe.fit_head(
        model, variables, problem.train, loss=problem.loss, l2=tuning.probe_l2, examples=tuning.probe_examples
    )


def advance(
    problem: FewShotProblem,
    state: train.TrainState,
    tuning: Tuning,
    steps: int | Array,
    *,
    model: Model | None = None,
    score: train.StepScore = None,
    groups: tuple[Group, ...] = (),
) -> tuple[train.TrainState, train.Metrics]:
    """Takes `steps` more training steps on the task's examples as the settings say.

    Args:
        problem: gives examples and loss.
        state: of a run of `model`.
        tuning: rate, optimiser, batch and augmentation.
        steps: how many; traced.
        model: which model is trained. Default: the slim one.
        score: unit scores to accumulate, as in `train.make_step`.
        groups: the groups that are scored.

    Returns:
        The state afterwards, and means of the metrics over the steps.
    """
    recipe = train.Recipe(
        model=model or problem.slim,
        tx=tuning.tx,
        loss=problem.loss,
        batch=tuning.batch,
        augment=tuning.augment,
        score=score,
        groups=groups,
    )
    return train.fit(recipe, state, problem.train, steps, learning_rate=tuning.learning_rate)


def settle(problem: FewShotProblem, state: train.TrainState, tuning: Tuning, model: Model | None = None) -> Variables:
    """Returns the variables of a run with batch statistics re-estimated for the weights as they now are."""
    return evaluation.reestimate(model or problem.slim, state.variables, problem.train["x"][: tuning.norm_examples])


def pruned(
    problem: FewShotProblem,
    slim: Variables,
    kept: Units,
    *,
    spent: Spent,
    alive: Array,
    looks: Mapping[int, Look] | None = None,
) -> Pruned:
    """Returns slim variables as a `Pruned` model in the dense shapes, zero where pruned."""
    dense = compact.embed(slim, problem.groups, kept, problem.variables)
    masks = units.expand(kept, problem.groups, problem.variables.params)
    return Pruned(dense, masks, kept, spent, alive, dict(looks or {}))


def finish(problem: FewShotProblem, start: Start, tuning: Tuning, key: Key, *, before: Spent = _NOTHING) -> Pruned:
    """From a decision to a pruned model: prepare, fine-tune `tuning.steps`, re-estimate batch statistics.

    Args:
        problem: the task.
        start: weights in the dense shapes and the units to keep.
        tuning: how the head is fitted and the model fine-tuned, and after how many steps it is looked at.
        key: feeds batch order, dropout and augmentation.
        before: what the decision took.

    Returns:
        The pruned model; its `looks` are slim variables.
    """
    batch = min(tuning.batch, problem.examples)
    state = train.create(prepare(problem, start, tuning), tuning.tx, key)
    variables, done, looks = state.variables, 0, {}
    for at in sorted({*tuning.looks, tuning.steps}):
        if at > done:
            state, _ = advance(problem, state, tuning, at - done)
            variables, done = settle(problem, state, tuning), at
        if at in tuning.looks:
            looks[at] = Look(variables, Spent(before.steps + at, before.examples + at * batch))
    spent = Spent(before.steps + done, before.examples + done * batch)
    return pruned(problem, variables, start.units, spent=spent, alive=state.alive, looks=looks)


def check_groups(wanted: Mapping[str, Any], problem: FewShotProblem) -> None:
    """Raises `ValueError` unless `wanted` names exactly the groups that the problem prunes."""
    names = {g.name for g in problem.groups}
    if set(wanted) != names:
        raise ValueError(
            f"ballots are for groups {sorted(set(wanted))[:5]}, the problem prunes {sorted(names)[:5]}; "
            "build the bank with the same groups"
        )


def nothing_spent(problem: FewShotProblem, settings: Any) -> Spent:
    """What a decision takes that neither trains nor looks at examples."""
    return _NOTHING


def method(
    start: Callable[[FewShotProblem, Any, Key], Start],
    settings_type: type,
    *,
    spends: Callable[[FewShotProblem, Any], Spent] = nothing_spent,
) -> FewShotMethod:
    """Returns a method made of its decision: `start`, then `finish` with `settings.tuning`.

    Args:
        start: `(problem, settings, key) -> Start`.
        settings_type: the class of the method's settings; another is refused.
        spends: `(problem, settings) -> Spent`, what the decision takes.
    """

    def run(problem: FewShotProblem, settings: Any, key: Key) -> Pruned:
        checks.check(run.__name__, problem, FewShotProblem, settings, settings_type)
        begun = start(problem, settings, jax.random.fold_in(key, 0))
        return finish(problem, begun, settings.tuning, jax.random.fold_in(key, 1), before=spends(problem, settings))

    run.__doc__, run.__module__ = start.__doc__, start.__module__
    run.__name__ = run.__qualname__ = start.__module__.rsplit(".", 1)[-1]
    return run
