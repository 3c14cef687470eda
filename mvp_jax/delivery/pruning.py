"""The pruning of a person's model by any method for a sparsity, and the search for the most that can go."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import train
from mvp_jax.core import patterns
from mvp_jax.core.types import Key, Masks, Units, Variables
from mvp_jax.core.units import Group
from mvp_jax.delivery import tuning
from mvp_jax.delivery.goals import Removal
from mvp_jax.delivery.inputs import TaskInputs
from mvp_jax.delivery.tuning import DeliveryTraining
from mvp_jax.methods import registry, sparse
from mvp_jax.methods.sparse import isp
from mvp_jax.reports.model_report import SearchTrial, TrainingCurve
from mvp_jax.storage import checkpoint, files, records

DEFAULT_METHODS = {"weights": "gradual", "units": "gradual"}
"""The methods that are taken if none is named: of those compared in docs/results/ the best for their cost."""

TRIALS = 6
"""How many attempts a search takes at most."""

_MOST = 0.98
_ROUND_SPARSITY = 0.2


class DivergedError(ValueError):
    """Raised if a loss or a weight was not finite while a model was pruned."""


class PrunedTask(NamedTuple):
    """A pruned model of a task, before it is judged and written.

    Attributes:
        variables: in the dense shapes, zero where pruned.
        masks: booleans in the parameters' structure; True = kept.
        units: `{group: bool[C]}`, the units that are kept; empty if single weights were pruned.
        curve: of the training in which it was pruned.
        share: the share of weights, or of each group's units, that was removed.
        steps: the number of training steps that the method took, of weak members too.
    """

    variables: Variables
    masks: Masks
    units: Units
    curve: TrainingCurve
    share: float
    steps: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PruningTask:
    """What is the same in every attempt of pruning one model.

    Attributes:
        inputs: the task.
        dense: the fine-tuned dense variables, from which pruning starts.
        removal: what goes together, and how much.
        method: the name of a method for a sparsity.
        training: how the model is trained.
        key: random key.
    """

    inputs: TaskInputs
    dense: Variables
    removal: Removal
    method: str
    training: DeliveryTraining
    key: Key

    def problem(self, share: float) -> sparse.SparsityProblem:
        """Returns the problem of removing a share."""
        return sparse.SparsityProblem(
            model=self.inputs.model,
            variables=self.dense,
            train=self.inputs.train,
            valid=self.inputs.valid,
            sparsity=share,
            pattern=self.removal.pattern,
            loss=self.inputs.loss,
        )


def groups_of(inputs: TaskInputs, kinds: Sequence[str]) -> tuple[Group, ...]:
    """Returns the model's groups of the given kinds.

    Args:
        inputs: the task.
        kinds: kinds of units; empty: heads and neurons of transformers, filters of networks of convolutions.

    Raises:
        ValueError: for a kind that the model does not have.
    """
    have = sorted({g.kind for g in inputs.model.groups})
    unknown = sorted(set(kinds) - set(have))
    if unknown:
        raise ValueError(f"the model has no units of the kinds {unknown}; it has {have}")
    wanted = set(kinds) or {"head", "neuron", "filter"}
    return tuple(g for g in inputs.model.groups if g.kind in wanted)


def check_method(method: str, of_units: bool, inputs: TaskInputs) -> str:
    """Returns the name of the method to use.

    Args:
        method: the name of a method for a sparsity; empty: the default one.
        of_units: whether whole units are pruned.
        inputs: the task.

    Raises:
        ValueError: for an unknown method, or one that cannot prune this model or these labels.
    """
    name = method or DEFAULT_METHODS["units" if of_units else "weights"]
    line = registry.chosen("sparse", [name], inputs.model)[name]
    if of_units and line.only_weights:
        fitting = [n for n in registry.suited("sparse", inputs.model) if not registry.line(n).only_weights]
        raise ValueError(f"{name} prunes single weights, and whole units are to go; choose one of {', '.join(fitting)}")
    return name


def prune(task: PruningTask, share: float, states: pathlib.Path | None = None) -> PrunedTask:
    """Prunes a share of the model by the task's method, or goes on where a killed run stopped.

    Args:
        task: what is pruned and how.
        share: the share of the weights, or of each group's units, to remove.
        states: a folder for the state after each round of the method; `None`: nothing is saved.

    Raises:
        ValueError: if the training diverges, or the method cannot solve this problem.
    """
    result = None if states is None else states / "result.safetensors"
    if result is not None and files.exists(result):
        return _read(result, share)
    problem, inputs = task.problem(share), task.inputs
    steps = task.training.steps_for(inputs.examples)
    last = max(1, steps // 2)
    what = "units" if isinstance(task.removal.pattern, patterns.WholeUnits) else "weights"
    every = task.training.every(inputs, steps)
    before, training = max(1, steps - last), task.training.training(inputs.model, last)
    given = defaults(problem, training, before)
    settings = _settings(task.method, given, before)
    total = last + (before if hasattr(settings, "events") else given.spend.total)
    name = f"pruning {share:.0%} of the {what} by {task.method}"
    records.say(f"{name}: {total} steps; programs are compiled before the first and before the last {last}")
    with (
        records.progress(total, name) as advance,
        tuning.saved_in(None if states is None else states / "rounds") as saved,
    ):
        watch = _SavedWatch(inputs, "pruned", every, advance, saved=saved, folder=states)
        watched = dataclasses.replace(settings.training, watch=watch, watch_every=watch.part)
        settings = dataclasses.replace(settings, training=watched)
        found = registry.METHODS[task.method](problem, settings, task.key, saved=saved)
        watch.look(found.variables)
    if not bool(found.alive):
        raise DivergedError(
            f"the training diverged while {share:.0%} of the {what} were pruned by {task.method}; lower the learning "
            f"rate, which is {training.learning_rate:.2g}"
        )
    made = PrunedTask(found.variables, found.masks, found.units, watch.curve(), share, int(found.spent.steps))
    if result is not None and states is not None:
        _write(result, made)
        files.remove(states / "rounds")
    return made


def _settings(method: str, given: sparse.SparsityDefaults, steps: int) -> Any:
    """Returns a method's settings; one that prunes while it trains takes exactly so many steps for that."""
    made = registry.line(method, "sparse").settings(given)
    if hasattr(made, "events"):
        made = dataclasses.replace(made, steps=steps, events=min(made.events, steps))
    return made


def _write(result: pathlib.Path, made: PrunedTask) -> None:
    """Keeps a finished attempt; what is read back is what was computed."""
    records.write_json(result.with_suffix(".json"), {**made.curve._asdict(), "taken": made.steps})
    arrays = {"variables": made.variables, "masks": made.masks, "units": made.units}
    checkpoint.save_arrays(result, jax.tree.map(np.asarray, {name: tree for name, tree in arrays.items() if tree}))


def _read(result: pathlib.Path, share: float) -> PrunedTask:
    found, curve = checkpoint.load_arrays(result), records.read_json(result.with_suffix(".json"))
    found = jax.tree.map(jnp.asarray, found)
    units = found.get("units", {})
    return PrunedTask(found["variables"], found["masks"], units, tuning.curve_of(curve), share, curve["taken"])


def defaults(problem: sparse.SparsityProblem, training: sparse.SparsityTraining, steps: int) -> sparse.SparsityDefaults:
    """Returns what a method makes its settings of, so that it takes about so many steps before the final training.

    Args:
        problem: the problem.
        training: the final training.
        steps: the number of steps of the weights and of all weak members in the rounds that prune.
    """
    members = 3
    base = isp.Settings(members=members, round_sparsity=_ROUND_SPARSITY, training=training)
    rounds = max(2, isp.least_rounds(problem, base))
    # Members train half as long as the main weights, so that a round is 1 + members / 2 times their steps.
    main = max(1, round(steps / rounds / (1 + members / 2)))
    an_epoch = min(training.batch, problem.examples) / problem.examples
    base = dataclasses.replace(base, epochs=main * an_epoch, weak_epochs=max(1, main / 2) * an_epoch)
    return sparse.SparsityDefaults(
        problem=problem, base=base, round_steps=max(1, steps // rounds), examples=min(512, problem.examples)
    )


def search(
    task: PruningTask, target: float, states: pathlib.Path | None = None
) -> tuple[PrunedTask | None, list[SearchTrial]]:
    """Looks by bisection for the largest share whose removal leaves a validation score that is good enough.

    Every attempt starts from the dense model and is trained in full; six attempts find the share to 0.02.

    Args:
        task: what is pruned and how.
        target: the validation score that is good enough.
        states: a folder where every attempt is kept; `None`: nothing is saved.

    Returns:
        The pruned model (`None`: none of the attempts was good enough), and the attempts in their order.
    """
    first = task.inputs.metrics[0]
    low, high, best, trials = 0.0, _MOST, None, []
    for _ in range(TRIALS):
        share = round((low + high) / 2, 4)
        try:
            found = prune(task, share, None if states is None else states / f"{share:g}")
        except DivergedError as error:
            records.say(str(error))
            high = share
            continue
        score = tuning.scores(task.inputs, task.inputs.model, found.variables)[first]
        enough = score >= target
        trials.append(SearchTrial(share, score, enough))
        records.say(f"{share:.1%} removed: validation {first} {score:.3f}, {'enough' if enough else 'too little'}")
        if enough:
            low, best = share, found
        else:
            high = share
    return best, trials


def unpruned(task: PruningTask) -> PrunedTask:
    """Returns the dense model as one of which nothing is removed."""
    whole = jax.tree.map(lambda p: jnp.ones((), bool), task.dense.params)
    return PrunedTask(task.dense, whole, {}, TrainingCurve("pruned", (), (), ()), 0.0)


class _SavedWatch(tuning.Watch):
    """A watch whose curve is on disk, so that a killed run goes on with what was noted of the rounds that are saved."""

    def __init__(
        self,
        inputs: TaskInputs,
        name: str,
        every: int,
        advance: Callable[..., None],
        *,
        saved: checkpoint.Checkpoints | None,
        folder: pathlib.Path | None,
    ) -> None:
        self._saved, self._path = saved, None if folder is None else folder / "curve.json"
        self._rounds: list[int] = []
        self._open: dict[str, tuple[int, float]] = {}
        before = None
        if saved is not None and self._path is not None and files.exists(self._path):
            found, done = records.read_json(self._path), saved.latest() or 0
            # What was noted while fewer rounds were saved belongs to rounds that are saved now.
            self._rounds = [r for r in found["rounds"] if r < done]
            before = tuning.curve_of(found | {"name": name}, len(self._rounds))
            self._open = {r: tuple(since) for r, since in found["open"].items() if int(r) < done}
        super().__init__(inputs, name, every, advance, before)
        self._since = self._open.get(str(max(map(int, self._open), default=0)), (0, 0.0))
        advance((self.steps[-1] if self.steps else 0) + self._since[0])

    def __call__(self, state: train.TrainState, seen: train.Metrics) -> None:
        super().__call__(state, seen)
        if self._saved is not None and self._path is not None:
            # The steps since the last look, as they are when the round ends that is now under way.
            self._open[str(self._saved.latest() or 0)] = self._since
            curve = self.curve()
            records.write_json(
                self._path,
                {
                    "steps": curve.steps,
                    "loss": curve.loss,
                    "valid": curve.valid,
                    "rounds": self._rounds,
                    "open": self._open,
                },
            )

    def look(self, variables: Variables) -> None:
        before = len(self.steps)
        super().look(variables)
        if self._saved is not None and len(self.steps) > before:
            self._rounds.append(self._saved.latest() or 0)


__all__ = [
    "DEFAULT_METHODS",
    "PrunedTask",
    "PruningTask",
    "check_method",
    "defaults",
    "groups_of",
    "prune",
    "search",
    "unpruned",
]
