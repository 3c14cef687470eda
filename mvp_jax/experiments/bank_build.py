"""The bank of a job: pruned models of all source tasks, made a chunk at a time, and how near each is to a target."""

import dataclasses
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import bank as banks
from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.data import sources, tasks
from mvp_jax.data.loading import prefetch
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import ifp
from mvp_jax.parallel import processes
from mvp_jax.storage import records
from mvp_jax.train import evaluation, population

SIMILARITIES = ("leep", "prototype")
"""By which the bank's entries are ranked for a target."""


class Stacked(NamedTuple):
    """The bank in memory: slim variables `[T, ...]`, and all entries in the dense model's shapes.

    `images` reads the images of the task of a name.
    """

    slim: Variables
    entries: list[banks.BankEntry]
    units: dict[str, Array]
    saliency: dict[str, Array]
    prototypes: Array | None
    images: Callable[[str], tasks.TaskData]


def build_bank(plan: FewShotPlan, variables: Variables, work: Path) -> Stacked:
    """Prunes the pre-trained model for every source task, a chunk at a time; goes on with a bank that is there.

    Args:
        plan: of the job.
        variables: of the pre-trained model.
        work: the folder that holds, or is to hold, the folder `bank`.

    Returns:
        The bank in memory.

    Raises:
        ValueError: for a bank of another model or of other settings, or if fewer than two tasks did not diverge.
    """
    mark, lost = banks.fingerprint(variables), work / "diverged"
    make = functools.partial(banks.create, work / "bank", fingerprint=mark, settings=_settings_of(plan), exist_ok=True)
    processes.only_first("bank", make)
    bank = make()
    missing = [
        (i, t)
        for i, t in enumerate(plan.setting.bank_tasks)
        if not banks.has(bank, t.name) and not (lost / f"{t.name}.json").exists()
    ]
    processes.barrier("bank listed")  # or one would miss what another has added meanwhile, and share otherwise
    missing = processes.share(missing)
    template = plan.problem(variables, batch_of(_images(plan, plan.setting.bank_tasks[0]).train))
    cost = ifp.cost_of_search(template, plan.search)
    with (
        records.progress(len(plan.setting.bank_tasks), "bank of pruned models") as advance,
        plan.board(work / "board" / "bank") as board,
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
                banks.add(bank, entry, {"variables": own.slim, "units": own.units, "saliency": own.saliency})
                if board is not None:
                    board.write(step=i, accuracy=accuracy[j])
            advance(len(part), f"accuracy {float(np.mean(accuracy[: len(part)])):.1%}")
    processes.barrier("bank built")
    return _stacked(plan, variables, bank)


def _settings_of(plan: FewShotPlan) -> dict[str, Any]:
    """What a bank is made with: a folder that holds one of other settings is refused."""
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
    }


def _images(plan: FewShotPlan, task: tasks.Task) -> tasks.TaskData:
    """The images of a source task."""
    pools, shots = plan.setting.pools, plan.sizes.source_images
    return tasks.materialise(task, pools.source, shots=shots, valid_from=pools.valid, seed=plan.seed)


def _pruned(
    plan: FewShotPlan, template: few_shot.FewShotProblem, missing: list[tuple[int, tasks.Task]]
) -> Iterator[tuple[list[tuple[int, tasks.Task]], ifp.Found, np.ndarray]]:
    """Chunks of the missing tasks, each with its pruned models and their accuracies, which lead with a task."""
    size = min(plan.at_once, len(plan.setting.bank_tasks))
    parts = [missing[start : start + size] for start in range(0, len(missing), size)]

    def load(part: list[tuple[int, tasks.Task]]) -> tuple[Batch, Batch, Array]:
        # A smaller chunk would compile anew, and round otherwise, so that a continued bank were another one than an
        # uninterrupted; it is filled up and the surplus dropped.
        filled = part + part[:1] * (size - len(part))
        stacked = tasks.stack([_images(plan, t) for _, t in filled])
        keys = jnp.stack([jax.random.fold_in(jax.random.key(plan.seed + 1), i) for i, _ in filled])
        return batch_of(stacked.train), batch_of(stacked.valid), keys

    # Only the images of this chunk and the next are on the device.
    for part, members in zip(parts, prefetch.prefetch(parts, place=load, ahead=1), strict=True):
        found = population.over(_Entry(plan.search), *members, shared=(template,), mapping=plan.mapping, mesh=plan.mesh)
        yield part, *jax.tree.map(np.asarray, found)


def _stacked(plan: FewShotPlan, variables: Variables, bank: banks.Bank) -> Stacked:
    """The entries of the plan's tasks in memory."""
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
    """A task's pruned model and its accuracy; compares by value, so that all chunks share a program."""

    search: ifp.Settings

    def __call__(
        self, data: Batch, valid: Batch, key: Array, template: few_shot.FewShotProblem
    ) -> tuple[ifp.Found, Array]:
        found = ifp.search(dataclasses.replace(template, train=data), self.search, key)
        return found, evaluation.evaluate(template.slim, found.slim, valid)["accuracy"]


def _prototypes(plan: FewShotPlan, variables: Variables, data: list[sources.Arrays]) -> Array:
    """Class means of the pre-trained model's features for each task: `[T, Y, F]`."""
    return jnp.stack([banks.prototypes(plan.task_model, variables, batch_of(pair)) for pair in data])


def similarities(plan: FewShotPlan, variables: Variables, bank: Stacked, data: Batch) -> Array:
    """Returns how near each bank task is to one target, from the target's training images: `[T]`, higher = nearer."""
    if plan.similarity == "leep":
        return banks.leep_to_all(plan.slim, bank.slim, data, num_classes=plan.sizes.classes_per_task)
    assert bank.prototypes is not None
    return banks.prototypes_to_all(banks.prototypes(plan.task_model, variables, data), bank.prototypes)
