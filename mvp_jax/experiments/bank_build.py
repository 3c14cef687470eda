"""The bank of a job: pruned models of all source tasks, made a chunk at a time, and how near each is to a target.

Each pruned model is written when its chunk is done, so that a killed job goes on with the tasks that are missing.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import bank as banks
from mvp_jax import models
from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.data import sources, tasks
from mvp_jax.data.loading import prefetch
from mvp_jax.experiments import bank_description
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import ifp
from mvp_jax.parallel import processes
from mvp_jax.storage import records
from mvp_jax.train import evaluation, population

SIMILARITIES = get_args(banks.EntrySimilarity)
"""The names of the similarities by which the bank's entries can be ranked for a target."""


class Stacked(NamedTuple):
    """The bank in memory; arrays lead with its number of entries `T`.

    Attributes:
        slim: the variables of the slim models.
        entries: what the bank stores of each entry: task, classes, accuracy, cost.
        units: the units that each model kept, `{group: bool[T, C]}` in the dense model's index.
        saliency: the last score of each unit, `{group: float[T, C]}` in the dense model's index.
        prototypes: mean features of each task's classes, `[T, Y, F]`; `None`: entries are ranked by their models.
        images: returns the images of the source task with a given name.
    """

    slim: Variables
    entries: list[banks.BankEntry]
    units: dict[str, Array]
    saliency: dict[str, Array]
    prototypes: Array | None
    images: Callable[[str], tasks.TaskData]


def build_bank(plan: FewShotPlan, variables: Variables, work: Path) -> Stacked:
    """Returns the bank of a job in memory; prunes the pre-trained model for source tasks that it does not have yet.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        work: the folder that holds, or will hold, the folders `bank` and `diverged`; see `fill`.

    Raises:
        ValueError: as `fill` does, or if fewer than two tasks did not diverge.
    """
    return _stacked(plan, variables, fill(plan, variables, work / "bank", work / "diverged"))


def fill(
    plan: FewShotPlan,
    variables: Variables,
    folder: Path,
    lost: Path,
    *,
    about: banks.BankDescription | None = None,
    store_model: bool = True,
) -> banks.Bank:
    """Prunes the pre-trained model for those source tasks that a bank does not have yet, and returns the bank.

    The tasks are shared out over processes and pruned a chunk at a time.

    Args:
        plan: the job's plan.
        variables: the variables of the pre-trained model.
        folder: the bank's folder or its address in a bucket; made if absent.
        lost: the folder where the tasks whose training diverged are written, which are left out.
        about: what a person has to know of the bank beyond what the plan says.
        store_model: whether the pre-trained model is stored in the bank, so that it can be used alone.

    Raises:
        ValueError: for a bank of another model or of other settings.
    """
    mark = banks.fingerprint(variables)
    about = dataclasses.replace(bank_description.described(plan, about), model=models.to_json(plan.model.config))
    make = functools.partial(
        banks.create, folder, fingerprint=mark, settings=settings_of(plan), about=about, exist_ok=True
    )

    def begin() -> None:
        bank = make()
        if store_model:
            bank_description.store(plan, bank, variables)

    processes.only_first("bank", begin)
    bank = make()
    missing = [
        (i, t)
        for i, t in enumerate(plan.setting.bank_tasks)
        if not banks.has(bank, t.name) and not (lost / f"{t.name}.json").exists()
    ]
    # Without it a process could miss what another has added meanwhile, and share the tasks out otherwise.
    processes.barrier("bank listed")
    missing = processes.share(missing)
    template = plan.problem(variables, batch_of(_images(plan, plan.setting.bank_tasks[0]).train))
    cost = ifp.cost_of_search(template, plan.search)
    with (
        records.progress(len(plan.setting.bank_tasks), "bank of pruned models") as advance,
        plan.board(lost.parent / "board" / "bank") as board,
    ):
        advance(len(plan.setting.bank_tasks) - len(missing))
        for part, found, accuracy in _pruned(plan, template, missing):
            for j, (i, task) in enumerate(part):
                own = jax.tree.map(lambda leaf, j=j: leaf[j], found)
                if not own.alive:
                    records.write_json(lost / f"{task.name}.json", {"task": task.name, "classes": list(task.classes)})
                    records.say(
                        f"{task.name} diverged and is left out of the bank; lower bank.learning_rate to have it"
                    )
                    continue
                entry = banks.BankEntry(
                    task=task.name,
                    classes=task.classes,
                    fingerprint=mark,
                    ratio=plan.ratio,
                    accuracy=float(accuracy[j]),
                    cost=cost,
                )
                if banks.has(bank, task.name):
                    continue  # another run has added it to a bank that both fill
                banks.add(bank, entry, {"variables": own.slim, "units": own.units, "saliency": own.saliency})
                if board is not None:
                    board.write(step=i, accuracy=accuracy[j])
            advance(len(part), f"accuracy {float(np.mean(accuracy[: len(part)])):.1%}")
    processes.barrier("bank built")
    processes.only_first("bank described", lambda: banks.write_readme(bank))
    return bank


def settings_of(plan: FewShotPlan) -> dict[str, Any]:
    """Returns the settings that a bank is stored with; a bank of other settings is refused."""
    return {
        "ratio": plan.ratio,
        "groups": [g.name for g in plan.groups],
        "rounds": plan.search.rounds,
        "steps_per_round": plan.search.steps_per_round,
        "schedule": plan.search.schedule,
        "score": plan.search.score,
        "final_steps": plan.search.tuning.steps,
        "learning_rate": plan.search.tuning.learning_rate,
        "optimizer": plan.search.tuning.optimizer,
        "batch": plan.search.tuning.batch,
        "images": plan.sizes.source_images,
        "classes_per_task": plan.sizes.classes_per_task,
        "seed": plan.seed,
        # Left out where it is 1, as in banks of earlier releases.
        **({"min_units": plan.search.min_units} if plan.search.min_units != 1 else {}),
    }


def _images(plan: FewShotPlan, task: tasks.Task) -> tasks.TaskData:
    """Returns the images of a source task."""
    pools, shots = plan.setting.pools, plan.sizes.source_images
    return tasks.materialise(task, pools.source, shots=shots, valid_from=pools.valid, seed=plan.seed)


def _pruned(
    plan: FewShotPlan, template: few_shot.FewShotProblem, missing: list[tuple[int, tasks.Task]]
) -> Iterator[tuple[list[tuple[int, tasks.Task]], ifp.Found, np.ndarray]]:
    """Yields chunks of the missing tasks, with their pruned models and accuracies; arrays lead with the task."""
    size = min(plan.at_once, len(plan.setting.bank_tasks))
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]

    def load(part: list[tuple[int, tasks.Task]]) -> tuple[Batch, Batch, Array]:
        # A smaller chunk would compile anew and round differently, and a continued bank would differ from an
        # uninterrupted one; so the chunk is filled up, and the surplus is dropped.
        filled = part + part[:1] * (size - len(part))
        stacked = tasks.stack([_images(plan, t) for _, t in filled])
        keys = jnp.stack([jax.random.fold_in(jax.random.key(plan.seed + 1), i) for i, _ in filled])
        return batch_of(stacked.train), batch_of(stacked.valid), keys

    # Only the images of this chunk and the next are on the device.
    for part, members in zip(parts, prefetch.prefetch(parts, place=load, ahead=1), strict=True):
        found = population.over(_Entry(plan.search), *members, shared=(template,), mapping=plan.mapping, mesh=plan.mesh)
        yield part, *jax.tree.map(np.asarray, found)


def _stacked(plan: FewShotPlan, variables: Variables, bank: banks.Bank) -> Stacked:
    """Returns the entries of the plan's tasks in memory."""
    task_of = {t.name: t for t in plan.setting.bank_tasks}
    entries = [e for e in banks.entries(bank) if e.task in task_of]
    if len(entries) < 2:
        raise ValueError(f"a bank of {len(entries)} tasks cannot vote; set bank.tasks to at least 2")
    prototypes = None
    if plan.similarity == "prototype":
        prototypes = _prototypes(plan, variables, [_images(plan, task_of[e.task]).train for e in entries])
    return Stacked(
        slim=jax.tree.map(jnp.asarray, banks.weights(entries)),
        entries=entries,
        units=jax.tree.map(jnp.asarray, banks.ballots(entries)),
        saliency=jax.tree.map(jnp.asarray, banks.stacked(entries, "saliency")),
        prototypes=prototypes,
        images=lambda name: _images(plan, task_of[name]),
    )


@dataclasses.dataclass(frozen=True)
class _Entry:
    """Prunes for one task and judges the result; instances compare by value, so that all chunks share a program."""

    search: ifp.Settings

    def __call__(
        self, data: Batch, valid: Batch, key: Array, template: few_shot.FewShotProblem
    ) -> tuple[ifp.Found, Array]:
        found = ifp.search(dataclasses.replace(template, train=data), self.search, key)
        return found, evaluation.evaluate(template.slim, found.slim, valid)["accuracy"]


def _prototypes(plan: FewShotPlan, variables: Variables, data: list[sources.Arrays]) -> Array:
    """Returns the class means of the pre-trained model's features for each task, `[T, Y, F]`."""
    return jnp.stack([banks.prototypes(plan.task_model, variables, batch_of(pair)) for pair in data])


def similarities(plan: FewShotPlan, variables: Variables, bank: Stacked, data: Batch) -> Array:
    """Returns how near each bank task is to a target, `float[T]`, higher = nearer.

    Args:
        plan: the job's plan; `plan.similarity` says what measures it.
        variables: the variables of the pre-trained model.
        bank: the bank's `T` entries.
        data: the target's training images, `{"x": [N, ...], "y": int32[N]}`.
    """
    if plan.similarity == "prototype":
        assert bank.prototypes is not None
        return banks.prototypes_to_all(banks.prototypes(plan.task_model, variables, data), bank.prototypes)
    return banks.similarity_to_all(
        plan.slim, bank.slim, data, num_classes=plan.sizes.classes_per_task, by=plan.similarity
    )
