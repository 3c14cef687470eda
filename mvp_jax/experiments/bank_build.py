"""The bank of a job: pruned models of all source tasks, made a chunk at a time, and how near each is to a target."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

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
    """Prunes the pre-trained model for every source task, a chunk at a time; continues a bank that is there."""
    setting, sizes = plan.setting, plan.sizes
    settings = {
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
        "images": sizes.source_images,
        "classes_per_task": sizes.classes_per_task,
        "seed": plan.seed,
    }
    mark = banks.fingerprint(variables)
    make = functools.partial(banks.create, work / "bank", fingerprint=mark, settings=settings, exist_ok=True)
    processes.only_first("bank", make)
    bank = make()

    def images(task: tasks.Task) -> tasks.TaskData:
        return tasks.materialise(
            task, setting.pools.source, shots=sizes.source_images, valid_from=setting.pools.valid, seed=plan.seed
        )

    lost = work / "diverged"
    missing = [
        (i, t)
        for i, t in enumerate(setting.bank_tasks)
        if not banks.has(bank, t.name) and not (lost / f"{t.name}.json").exists()
    ]
    processes.barrier("bank listed")  # or one would miss what another has added meanwhile, and share otherwise
    missing = processes.share(missing)
    template = plan.problem(variables, batch_of(images(setting.bank_tasks[0]).train))
    spent = ifp.cost_of_search(template, plan.search)
    with (
        records.progress(len(setting.bank_tasks), "bank of pruned models") as advance,
        plan.board(work / "board" / "bank") as board,
    ):
        advance(len(setting.bank_tasks) - len(missing))
        size = min(plan.at_once, len(setting.bank_tasks))
        parts = [missing[start : start + size] for start in range(0, len(missing), size)]

        def load(part: list[tuple[int, tasks.Task]]) -> tuple[Batch, Batch, Array]:
            # A smaller chunk would compile anew, and round otherwise, so that a continued bank were another one than
            # an uninterrupted; it is filled up and the surplus dropped.
            filled = part + part[:1] * (size - len(part))
            stacked = tasks.stack([images(t) for _, t in filled])
            keys = jnp.stack([jax.random.fold_in(jax.random.key(plan.seed + 1), i) for i, _ in filled])
            return batch_of(stacked.train), batch_of(stacked.valid), keys

        # Only the images of this chunk and the next are on the device.
        loaded = prefetch.prefetch(parts, place=load, ahead=1)
        for part, members in zip(parts, loaded, strict=True):
            found, accuracy = population.over(
                _Entry(plan.search),
                *members,
                shared=(template,),
                mapping=plan.mapping,
                mesh=plan.mesh,
            )
            found, accuracy = jax.tree.map(np.asarray, (found, accuracy))
            for j, (i, task) in enumerate(part):
                own = jax.tree.map(lambda leaf, j=j: leaf[j], found)
                if not own.alive:
                    records.write_json(lost / f"{task.name}.json", {"task": task.name, "classes": list(task.classes)})
                    records.say(
                        f"{task.name} diverged and is left out of the bank; lower bank.learning_rate to have it"
                    )
                    continue
                banks.add(
                    bank,
                    banks.BankEntry(
                        task=task.name,
                        classes=task.classes,
                        fingerprint=mark,
                        ratio=plan.ratio,
                        accuracy=float(accuracy[j]),
                        cost=spent,
                    ),
                    {"variables": own.slim, "units": own.units, "saliency": own.saliency},
                )
                if board is not None:
                    board.write(step=i, accuracy=accuracy[j])
            advance(len(part), f"accuracy {float(np.mean(accuracy[: len(part)])):.1%}")
    processes.barrier("bank built")
    task_of = {t.name: t for t in setting.bank_tasks}
    entries = [e for e in banks.entries(bank) if e.task in task_of]
    if len(entries) < 2:
        raise ValueError(f"a bank of {len(entries)} tasks cannot vote; set bank.tasks to at least 2")
    return Stacked(
        slim=jax.tree.map(jnp.asarray, banks.weights(entries)),
        entries=entries,
        units=jax.tree.map(jnp.asarray, banks.ballots(entries)),
        saliency=jax.tree.map(jnp.asarray, banks.stacked(entries, "saliency")),
        prototypes=_prototypes(plan, variables, [images(task_of[e.task]).train for e in entries])
        if plan.similarity == "prototype"
        else None,
        images=lambda name: images(task_of[name]),
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
