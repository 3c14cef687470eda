"""What every few-shot method takes and returns: a `FewShotProblem` in, a `Pruned` model out.

A method decides which units to keep and from which weights they start (`Start`). What follows is the same for all
methods (`finish`): the model is cut to the slim one, batch-norm statistics are re-estimated, a linear head is fitted to
the pruned features, the model is fine-tuned, and the statistics are re-estimated again.

Training runs on the slim arrays. It computes what training the masked dense model computes (a pruned unit is zero and
gets no gradient), at the slim model's cost. As a group keeps the same number of units for every task, the members of a
population have the same shapes and run the same compiled programs.
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
from mvp_jax.methods.contract import CROSS_ENTROPY, Look, Pruned, Spent, Training, check_examples
from mvp_jax.models.api import Model, replace_head
from mvp_jax.train import Loss, evaluation, probe

_NOTHING = Spent(0, 0, 0)


class Start(NamedTuple):
    """A method's decision, before any fine-tuning.

    Attributes:
        variables: the variables to start from, in the dense model's shapes.
        units: which units to keep, `{group: bool[C]}`.
    """

    variables: Variables
    units: Units


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class FewShotProblem:
    """A pre-trained model, a task of few examples, and how many units of each group may stay.

    Fields that hold arrays may be mapped over a leading member axis by `jax.vmap`; the other fields are static.

    Attributes:
        variables: the pre-trained model's variables, under a head of the task's number of classes; the head's values
            do not matter, as every method fits its own.
        train: the task's training examples `{"x": [N, ...], "y": [N, ...]}`; a method looks at no others of the task.
        neighbours: pruned models of other tasks, for the methods that vote; `bank.neighbours` returns them.
        universal: one pruned model that was learned from all source tasks by `reptile.learn`, for `reptile_iht`.
        sources: training examples of `T` source tasks with as many classes as the task, `{"x": [T, n, ...], "y":
            [T, n, ...]}`; `reptile_iht` learns from them if `universal` is not given.
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
        """The number of units that each pruned group keeps, `{group: number}`."""
        return dict(self.keep)

    @property
    def slim(self) -> Model:
        """The slim model: the dense one with only `sizes` units in the pruned groups."""
        return self.model.resize(self.sizes)

    @property
    def examples(self) -> int:
        """The number of training examples, `N`."""
        return int(self.train["y"].shape[0])

    def voters(self) -> Neighbours:
        """Returns the problem's neighbours, checked.

        Raises:
            ValueError: if the problem has no neighbours, or their ballots are for other groups than those it prunes.
        """
        if self.neighbours is None:
            raise ValueError(
                "this method votes over neighbours, but the problem has none; pass neighbours=bank.neighbours(...)"
            )
        check_groups(self.neighbours.units, self)
        return self.neighbours


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning(Training):
    """How a model is trained for a few-shot task: a linear head is fitted first, then the model is fine-tuned.

    It has the fields of `contract.Training` (steps, rate, optimiser, batch, augmentation) and these.

    Attributes:
        probe_l2: weight of the squared norm of the head's kernel in the fit of the head.
        probe_examples: the head is fitted to at most this many training examples.
        looks: numbers of fine-tuning steps, from 0 to `steps`, after which the model is kept in `Pruned.looks`.

    Raises:
        ValueError: if a look is not in [0, steps], or another field is out of range.
    """

    probe_l2: float = 1e-2
    probe_examples: int = 1024
    looks: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if any(not 0 <= at <= self.steps for at in self.looks):
            raise ValueError(f"looks are numbers of steps from 0 to steps={self.steps}, got {self.looks}")


class FewShotMethod(Protocol):
    """The type of every few-shot method, `(problem, settings, key) -> Pruned`.

    A method is a pure function that can be mapped by `jax.vmap` over problems and keys.
    """

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
        variables: the pre-trained variables; the head is replaced by one of zeros for the task's classes.
        data: the task's training examples, `{"x": [N, ...], "y": int32[N]}`, or other labels if `loss` takes them.
        ratio: the fraction of the units of each group to remove, in [0, 1).
        groups: the groups to prune; `None`: all groups of the model.
        neighbours: pruned models of other tasks, as `bank.neighbours` returns them; only the methods that vote need
            them.
        sources: training examples of `T` source tasks with as many classes, `{"x": [T, n, ...], "y": [T, n, ...]}`;
            only the method `reptile_iht` needs them.
        min_units: the least number of units that a group keeps, whatever the ratio.
        loss: per-example loss `(outputs, labels) -> losses [N, ...]`; its mean is minimised.

    Raises:
        ValueError: for a ratio outside [0, 1), no examples, or, with the default loss, labels outside the classes.
    """
    check_examples(data, loss, model.num_classes)
    if not 0 <= ratio < 1:
        raise ValueError(f"ratio is {ratio}; give the fraction of each group's units to remove, in [0, 1)")
    groups = model.groups if groups is None else groups
    if not groups:
        raise ValueError(
            "there are no groups of units to prune; give groups=graph.groups(...) and a model that can be resized, or "
            "prune weights by a method for a sparsity"
        )
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
    """Returns the problem with every unit kept: with it a method fine-tunes the dense model."""
    return dataclasses.replace(problem, keep=tuple((g.name, g.size) for g in problem.groups))


def prepare(problem: FewShotProblem, start: Start, tuning: Tuning) -> Variables:
    """Returns a start as variables of the slim model, with re-estimated batch statistics and a fitted head.

    The model can then be judged without fine-tuning, or be fine-tuned.

    Args:
        problem: the task.
        start: variables in the dense shapes, and the units to keep.
        tuning: how the head is fitted, and on how many examples the statistics are re-estimated.

    Returns:
        Variables of `problem.slim`.
    """
    variables = compact.cut(start.variables, problem.groups, start.units, sizes=problem.sizes)
    variables = evaluation.reestimate(problem.slim, variables, problem.train["x"][: tuning.norm_examples])
    return fit_head(problem, problem.slim, variables, tuning)


def fit_head(problem: FewShotProblem, model: Model, variables: Variables, tuning: Tuning) -> Variables:
    """Returns variables with a head that is fitted to the task's training examples; the rest is unchanged.

    Args:
        problem: gives examples and loss.
        model: the model whose head is fitted: the dense one, or a slim one.
        variables: variables of `model`.
        tuning: `probe_l2` and `probe_examples` say how the head is fitted.
    """
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
    """Takes more training steps on the task's examples.

    Args:
        problem: gives examples and loss.
        state: the training state of `model` to go on from.
        tuning: learning rate, optimiser, batch and augmentation.
        steps: the number of steps; it is traced, so a new number does not compile anew.
        model: the model that is trained; `None`: the slim one, `problem.slim`.
        score: the unit score that is accumulated over the steps, such as `fisher` or `activation`; `None`: none.
        groups: the groups of `model` whose units are scored.

    Returns:
        The state after the steps, and the metrics' means over the steps; with `score`, `metrics["scores"]` holds the
        scores `{group: float[C]}`.
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
    """Returns the variables of a training state, with batch-norm statistics re-estimated for its present weights.

    Args:
        problem: gives the examples.
        state: the training state of `model`.
        tuning: `norm_examples` says on how many examples the statistics are re-estimated.
        model: the model that was trained; `None`: the slim one, `problem.slim`.
    """
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
    """Returns the variables of a slim model as a `Pruned` model in the dense shapes, zero where units are removed.

    Args:
        problem: the task.
        slim: variables of `problem.slim`.
        kept: which units the slim model has, `{group: bool[C]}` in the dense model's index.
        spent: what the method cost.
        alive: boolean scalar, whether training stayed finite.
        looks: the slim model after some numbers of fine-tuning steps, by that number; `None`: none were kept.
    """
    dense = compact.embed(slim, problem.groups, kept, problem.variables)
    masks = units.expand(kept, problem.groups, problem.variables.params)
    return Pruned(dense, masks, kept, spent, alive, dict(looks or {}))


def finish(problem: FewShotProblem, start: Start, tuning: Tuning, key: Key, *, before: Spent = _NOTHING) -> Pruned:
    """Returns the pruned model that a decision leads to: cut to the slim model, given a head, and fine-tuned.

    The fine-tuning takes `tuning.steps` steps; batch-norm statistics are re-estimated before and after it.

    Args:
        problem: the task.
        start: variables in the dense shapes, and the units to keep.
        tuning: how the head is fitted and the model fine-tuned, and after how many steps it is kept in `looks`.
        key: random key for batch order, dropout and augmentation.
        before: what the decision itself cost; it is added to the cost of fine-tuning.

    Returns:
        The pruned model; its `looks` hold variables of the slim model.
    """
    batch = min(tuning.batch, problem.examples)
    state = train.create(prepare(problem, start, tuning), tuning.tx, key)
    variables, done, looks = state.variables, 0, {}
    for at in sorted({*tuning.looks, tuning.steps}):
        if at > done:
            state, _ = advance(problem, state, tuning, at - done)
            variables, done = settle(problem, state, tuning), at
        if at in tuning.looks:
            looks[at] = Look(variables, before.plus(Spent(at, at * batch, at)))
    spent = before.plus(Spent(done, done * batch, done))
    return pruned(problem, variables, start.units, spent=spent, alive=state.alive, looks=looks)


def check_groups(wanted: Mapping[str, Any], problem: FewShotProblem) -> None:
    """Checks that a mapping has exactly the groups that the problem prunes.

    Args:
        wanted: a mapping by group, such as the neighbours' ballots.
        problem: the task.

    Raises:
        ValueError: if groups are missing or there are others; the message names some of both sides.
    """
    names = {g.name for g in problem.groups}
    if set(wanted) != names:
        raise ValueError(
            f"ballots are for groups {sorted(set(wanted))[:5]}, the problem prunes {sorted(names)[:5]}; "
            "build the bank with the same groups"
        )


def nothing_spent(problem: FewShotProblem, settings: Any) -> Spent:
    """Returns a cost of zero: for decisions that neither train nor look at examples."""
    return _NOTHING


def method(
    start: Callable[[FewShotProblem, Any, Key], Start],
    settings_type: type,
    *,
    spends: Callable[[FewShotProblem, Any], Spent] = nothing_spent,
) -> FewShotMethod:
    """Returns a few-shot method made of a decision: it calls `start`, then `finish` with `settings.tuning`.

    Args:
        start: the decision, `(problem, settings, key) -> Start`; its docstring becomes the method's.
        settings_type: the class of the method's settings; settings of another class raise `ValueError`.
        spends: `(problem, settings) -> Spent`, what the decision costs.
    """

    def run(problem: FewShotProblem, settings: Any, key: Key) -> Pruned:
        checks.check(run.__name__, problem, FewShotProblem, settings, settings_type)
        begun = start(problem, settings, jax.random.fold_in(key, 0))
        return finish(problem, begun, settings.tuning, jax.random.fold_in(key, 1), before=spends(problem, settings))

    run.__doc__, run.__module__ = start.__doc__, start.__module__
    run.__name__ = run.__qualname__ = start.__module__.rsplit(".", 1)[-1]
    return run
