"""The plan of a main job, and the stages that make its models: pre-training and the bank.

Each stage takes the plan and what came before, shows its progress, writes what it made into the run's folder and finds
it there again.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from mvp_jax import bank as banks
from mvp_jax import pretrained, train
from mvp_jax.core.types import Array, Batch, Variables
from mvp_jax.core.units import Group
from mvp_jax.data import sources, tasks
from mvp_jax.data.loading import prefetch
from mvp_jax.experiments import few_shot_variants
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import ifp, reptile
from mvp_jax.models.api import Model, replace_head
from mvp_jax.parallel import processes
from mvp_jax.storage import checkpoint, event_files, records
from mvp_jax.train import evaluation, population

SIMILARITIES = ("leep", "prototype")


class Pools(NamedTuple):
    """Images by use; no picture is in two of them."""

    source: sources.Arrays
    target: sources.Arrays
    valid: sources.Arrays
    test: sources.Arrays


class Setting(NamedTuple):
    """What the data gives: the pools, who sees which classes, the tasks."""

    pools: Pools
    image_shape: tuple[int, ...]
    class_names: tuple[str, ...]
    pretrain_classes: tuple[int, ...]
    bank_tasks: tuple[tasks.Task, ...]
    targets: tuple[tasks.Task, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pretraining:
    """How the dense model is trained here, where no checkpoint is given."""

    steps: int
    learning_rate: float
    optimizer: Literal["sgd", "adamw", "either"]
    weight_decay: float
    batch: int
    augment: train.Augment | None
    save_every: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """Images of each class: of a bank task, of a target's splits (`None`: all there are)."""

    classes_per_task: int
    source_images: int | None
    shots: int
    valid: int | None
    test: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Start:
    """Where every job begins: data, and the pre-trained model or how to make it."""

    setting: Setting
    model: Model
    checkpoint: str
    pretraining: Pretraining
    seed: int
    tensorboard: bool = False

    def board(self, folder: Path, *, after: int | None = None) -> contextlib.AbstractContextManager[Any]:
        """Where curves go for TensorBoard: `None` if none are asked for."""
        return event_files.Board(folder, after=after) if self.tensorboard else contextlib.nullcontext()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan(Start):
    """A checked config of Meta-Vote Pruning: everything its stages need, as the library's own types."""

    groups: tuple[Group, ...]
    keep: tuple[tuple[str, int], ...]
    ratio: float
    steps: tuple[int, ...]
    variants: Mapping[str, few_shot_variants.Variant]
    tuning: few_shot.Tuning
    search: ifp.Settings
    universal: reptile.Settings
    k: int
    seeds: int
    mapping: population.MemberMapping
    chunk: int
    mesh: Mesh | None
    similarity: str
    sizes: Sizes

    @property
    def task_model(self) -> Model:
        return self.model.with_classes(self.sizes.classes_per_task)

    @property
    def slim(self) -> Model:
        return self.task_model.resize(dict(self.keep))

    @property
    def at_once(self) -> int:
        """Members handed to the devices in one call: what is finished after it is kept."""
        return (1 if self.mapping == "loop" else self.chunk) * (1 if self.mesh is None else self.mesh.size)

    def problem(self, variables: Variables, data: Batch) -> few_shot.Problem:
        few_shot.check_labels(data["y"], self.sizes.classes_per_task)
        # The pre-trained head knows other classes; every method fits its own.
        body = replace_head(variables, self.task_model)
        return few_shot.Problem(variables=body, train=data, model=self.task_model, groups=self.groups, keep=self.keep)


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


def batch_of(pair: sources.Arrays) -> Batch:
    """Arrays on the device."""
    return {"x": jnp.asarray(sources.to_float(pair.x)), "y": jnp.asarray(pair.y, jnp.int32)}


def pretrain(plan: Start, work: Path) -> Variables:
    """The pre-trained model: read from the checkpoint, or trained by process 0 on the pre-training classes."""
    if plan.checkpoint:
        if (Path(plan.checkpoint) / "model.json").is_file():
            return _adopted(plan.checkpoint, plan.model)
        # A folder's own head is for other classes than the tasks'; they get theirs later.
        classes = None if Path(plan.checkpoint).is_file() else plan.model.num_classes
        return pretrained.load(plan.checkpoint, plan.model, classes=classes)[1]
    model, settings, setting = plan.model, plan.pretraining, plan.setting
    data = batch_of(tasks.subset(setting.pools.source, setting.pretrain_classes))
    held_out = batch_of(tasks.subset(setting.pools.valid, setting.pretrain_classes))
    tx = train.optimizer(settings.optimizer, weight_decay=settings.weight_decay)
    key_init, key_fit = jax.random.split(jax.random.key(plan.seed))
    state = train.create(model.init(key_init), tx, key_fit)
    learned = processes.only_first("pre-training", lambda: _learn(plan, state, data, tx, work))
    if learned is None:
        with checkpoint.Checkpoints(work / "pretrain", alone=True) as saved:
            learned = state if saved.latest() is None else saved.restore(state)
    # What is restored is bound to a device, for which every program would compile anew.
    free = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), learned.variables)
    variables = evaluation.reestimate(model, free, data["x"][:512])
    accuracy = float(evaluation.evaluate(model, variables, held_out)["accuracy"])
    if processes.first():
        records.say(f"pre-trained on {len(setting.pretrain_classes)} classes: {accuracy:.1%} on held-out images")
    return variables


def _adopted(folder: str, model: Model) -> Variables:
    """What the job `pretrain` wrote, under a head of as many classes as the model's."""
    saved, variables = pretrained.reload(folder)
    one, other = (jax.eval_shape(m.with_classes(2).init, jax.random.key(0)) for m in (saved, model))
    if jax.tree.map(jnp.shape, one) != jax.tree.map(jnp.shape, other):
        raise ValueError(
            f"{folder} holds {saved.config}, the config asks for {model.config}; set model.name, model.options and the "
            "data's size as they were in pre-training"
        )
    return variables if saved.num_classes == model.num_classes else replace_head(variables, model)


def _learn(
    plan: Start, state: train.TrainState, data: Batch, tx: optax.GradientTransformation, work: Path
) -> train.TrainState:
    """The state after pre-training; continues what is there."""
    model, settings = plan.model, plan.pretraining
    with checkpoint.Checkpoints(work / "pretrain", alone=True) as saved:
        if saved.latest() is not None:
            state = saved.restore(state)
        done = int(state.step)
        with (
            records.progress(settings.steps, "pre-training") as advance,
            plan.board(work / "board" / "pretrain", after=done) as board,
            records.MetricsWriter(work / "pretrain.jsonl", after=done, board=board) as written,
        ):
            advance(done)
            while done < settings.steps:
                count = min(settings.save_every, settings.steps - done)
                state, metrics = train.fit(
                    model,
                    state,
                    data,
                    count,
                    tx=tx,
                    learning_rate=settings.learning_rate,
                    batch=settings.batch,
                    augment=settings.augment,
                    decay="cosine",
                    total=settings.steps,
                )
                done += count
                # Before the state: on resuming, lines after its step are dropped, but none that is missing is made up.
                written.write(step=done, loss=metrics["loss"], accuracy=metrics["accuracy"])
                written.flush()
                saved.save(done, state)
                advance(count, f"loss {float(metrics['loss']):.3f}")
    return state


def build_bank(plan: Plan, variables: Variables, work: Path) -> Stacked:
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
    spent = ifp.spent(template, plan.search)
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

    def __call__(self, data: Batch, valid: Batch, key: Array, template: few_shot.Problem) -> tuple[ifp.Found, Array]:
        found = ifp.search(dataclasses.replace(template, train=data), self.search, key)
        return found, evaluation.evaluate(template.slim, found.slim, valid)["accuracy"]


def _prototypes(plan: Plan, variables: Variables, data: list[sources.Arrays]) -> Array:
    """Class means of the pre-trained model's features for each task: `[T, Y, F]`."""
    return jnp.stack([banks.prototypes(plan.task_model, variables, batch_of(pair)) for pair in data])


def similarities(plan: Plan, variables: Variables, bank: Stacked, data: Batch) -> Array:
    """How near each bank task is to one target, from the target's training images: `[T]`, higher = nearer."""
    if plan.similarity == "leep":
        return banks.leep_to_all(plan.slim, bank.slim, data, num_classes=plan.sizes.classes_per_task)
    assert bank.prototypes is not None
    return banks.prototypes_to_all(banks.prototypes(plan.task_model, variables, data), bank.prototypes)
