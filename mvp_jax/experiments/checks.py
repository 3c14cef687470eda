"""Checks of the data against a config, before anything is trained: classes, tasks, and the examples of each use.

Labels are enough for them, so no picture is decoded. What a task gets depends on the number of examples of each class
alone; a seed only decides which they are. So a check of the counts holds for every seed.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import numpy as np
from ml_collections import ConfigDict

from mvp_jax.data import sources, tasks
from mvp_jax.experiments.setup import Pools, Setting, Sizes

T = TypeVar("T")

_USES = {
    "source": "examples to pre-train on and for the bank",
    "target": "training examples for the targets",
    "valid": "examples to validate",
    "test": "examples to test",
}


def named(setting: str, draw: Callable[[], T]) -> T:
    """Returns what a function returns; the `ValueError` that it raises gets the name of a setting in front.

    Args:
        setting: the setting that the function depends on most, with its value.
        draw: the function.

    Raises:
        ValueError: if the function raises one.
    """
    try:
        return draw()
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from error


def classes(config: ConfigDict, name: str, home: int, hidden: int, *, apart: bool) -> None:
    """Checks how many classes are pre-trained on, unseen, and in a task.

    Args:
        config: the config of any job; its fields `data`, `model`, `pretrain`, `tasks` and `targets` are read.
        name: the name of the data set.
        home: the number of classes that are not set apart for targets by `data.targets`.
        hidden: the number of these classes that only targets are to have.
        apart: whether targets have classes of their own, by `data.targets`; all of these are unseen.

    Raises:
        ValueError: for fewer than two classes, unseen classes among those that are pre-trained on, or numbers that
            exceed the classes that there are.
    """
    wanted = config.pretrain.classes
    if home < 2:
        raise ValueError(f"{name} has {home} class; a model needs at least 2 classes to tell apart")
    if not 0 <= hidden < home:
        raise ValueError(
            f"data.unseen_classes is {hidden}, but {name} has {home} classes, of which pre-training and the bank need "
            f"some; set it to at most {home - 1}, and pretrain.classes to what is left (0 and {home} hide no class)"
        )
    # With a checkpoint nothing is pre-trained here, and the number says nothing.
    if not config.model.checkpoint and not 1 <= wanted <= home - hidden:
        kept = f" less the {hidden} that are to be unseen (data.unseen_classes)" if hidden else ""
        raise ValueError(
            f"pretrain.classes is {wanted}, but {name} has {home} classes{kept}; set it to 1 to {home - hidden}"
        )
    size = config.tasks.classes_per_task if "tasks" in config else 2
    most = home - hidden if "bank" in config else home
    if size < 2 or (size > most and not apart):
        where = f" that are not unseen (data.unseen_classes={hidden})" if "bank" in config and hidden else ""
        raise ValueError(
            f"tasks.classes_per_task is {size}, but a task tells at least 2 classes apart, and {name} has {most}{where}"
        )
    if "targets" in config and not apart:
        least = config.targets.unseen_at_least
        if not 0 <= least <= min(hidden, size):
            raise ValueError(
                f"targets.unseen_at_least is {least}, but there are {hidden} unseen classes (data.unseen_classes) and "
                f"a target has {size} classes (tasks.classes_per_task); set it to at most {min(hidden, size)}"
            )


def unseen(setting: Setting, *, pretrained_here: bool) -> None:
    """Checks that no unseen class is in the bank or in the pre-training.

    Args:
        setting: the data of a job.
        pretrained_here: whether the job pre-trains its model; what a checkpoint has seen is not known.

    Raises:
        ValueError: naming the classes, if there are some.
    """
    bank = {c for task in setting.bank_tasks for c in task.classes}
    for what, seen in (("the bank's tasks", bank), ("the pre-training", set(setting.pretrain_classes))):
        both = sorted(seen & set(setting.unseen)) if pretrained_here or what != "the pre-training" else []
        if both:
            names = [setting.class_names[c] for c in both]
            raise ValueError(f"classes that are to be unseen are in {what}: {names}; lower data.unseen_classes")


def pools(found: Pools) -> None:
    """Checks that no pool is empty, and that no picture is in two of them.

    Texts are not compared: of short ones, cut to a number of tokens, some are alike in every collection.

    Args:
        found: the examples by their use.

    Raises:
        ValueError: if a pool is empty, or two pools have equal pictures.
    """
    for name, pool in found._asdict().items():
        if not len(pool.y):
            raise ValueError(f"there are no {_USES[name]}; give them a share in data.fractions")
    if len(found.source.x.shape) < 4:
        return
    digests = {name: set(sources.hashes(pool.x)) for name, pool in found._asdict().items()}
    for i, one in enumerate(digests):
        for other in list(digests)[i + 1 :]:
            if both := len(digests[one] & digests[other]):
                raise ValueError(
                    f"{both} pictures are both among the {_USES[one]} and among the {_USES[other]}; remove one of each "
                    "two equal pictures from the data"
                )


def pretraining(setting: Setting, batch: int, names: Sequence[str] = ("source", "valid")) -> None:
    """Checks that every class that is pre-trained on has examples, and that there are enough for a batch.

    Args:
        setting: the data of a job.
        batch: the number of examples in a step.
        names: the pools that are used.

    Raises:
        ValueError: for a class without examples in one of the pools, or a batch of more examples than there are.
    """
    for name in names:
        _enough(setting, name, {"the pre-training": setting.pretrain_classes}, 1, "")
    there = int(np.isin(setting.pools.source.y, setting.pretrain_classes).sum())
    if there < batch:
        raise ValueError(f"pretrain.batch is {batch}, of {there} training images; lower it")


def examples(setting: Setting, sizes: Sizes) -> None:
    """Checks that every class of every task has as many examples as the task asks for.

    Args:
        setting: the data of a job, with its tasks.
        sizes: the numbers of examples of each class.

    Raises:
        ValueError: for a class of a task that has no examples for a use, or fewer than asked for; or a number below 1.
    """
    bank = {f"the task {t.name}": t.classes for t in setting.bank_tasks}
    targets = {f"the task {t.name}": t.classes for t in setting.targets}
    learned = targets | {f"the task {t.name}": t.classes for t in setting.tuning}  # these are not tested on
    uses = [("source", bank, "source_images"), ("valid", bank, "")] if bank else []
    uses += [("target", learned, "shots"), ("valid", learned, "valid"), ("test", targets, "test")] if targets else []
    for name, those, field in uses:
        _enough(setting, name, those, getattr(sizes, field) if field else None, f"tasks.{field}" if field else "")
    # What the job itself will do, with row numbers in the place of pictures.
    labels = Pools(*(sources.Arrays(np.arange(len(pool.y)), pool.y) for pool in setting.pools))
    if bank:
        shots = sizes.source_images
        tasks.materialise(_all(bank.values()), labels.source, shots=shots, valid_from=labels.valid, seed=0)
    if targets:
        tasks.materialise(
            _all(targets.values()),
            labels.target,
            shots=sizes.shots,
            valid=sizes.valid,
            test=sizes.test,
            valid_from=labels.valid,
            test_from=labels.test,
            seed=0,
        )


def _all(classes_of: Iterable[Sequence[int]]) -> tasks.Task:
    """Returns a task of the classes of all tasks: it has the examples of each class that each of them has."""
    return tasks.Task(name="all", classes=tuple(sorted({c for those in classes_of for c in those})))


def _enough(setting: Setting, name: str, those: dict[str, tuple[int, ...]], number: int | None, path: str) -> None:
    """Checks that every class in `those`, `{use: classes}`, has `number` examples in a pool; `None`: at least one."""
    if number is not None and number < 1:
        raise ValueError(f"{path} is {number}; expected a number of examples of each class, at least 1")
    counts = np.bincount(getattr(setting.pools, name).y, minlength=len(setting.class_names))
    scarcest = min((int(counts[c]), c, what) for what, classes_of in those.items() for c in classes_of)
    there, label, what = scarcest
    called = f"class {setting.class_names[label]!r} of {what}"
    if not there:
        raise ValueError(
            f"there are no {_USES[name]} of {called}; give it some, change data.fractions, or leave the class out"
        )
    if number is not None and there < number:
        raise ValueError(
            f"{path} is {number}, but of {called} there are only {there} {_USES[name]}; set {path} to at most {there}, "
            "or give this use a larger share in data.fractions"
        )


__all__ = ["classes", "examples", "named", "pools", "pretraining", "unseen"]
