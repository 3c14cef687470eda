"""Tasks of a person's own in a bank: folders of pictures or tables of texts, each with the model pruned for it."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from mvp_jax import bank as banks
from mvp_jax.bank import Bank, BankEntry
from mvp_jax.core import prune
from mvp_jax.core.types import Key, Variables
from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import inputs
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import ifp
from mvp_jax.storage import files
from mvp_jax.train import evaluation

_TABLES = (".csv", ".tsv", ".jsonl", ".json")
_NEEDED = ("ratio", "groups", "rounds", "steps_per_round", "schedule", "score", "final_steps", "learning_rate", "batch")


def tasks_in(folder: str | os.PathLike[str]) -> dict[str, pathlib.Path]:
    """Returns the tasks in a folder by name: each folder in it and each table of texts is one.

    Args:
        folder: a folder on this machine.

    Raises:
        ValueError: if there is no such folder, nothing in it, or two tasks of one name.

    >>> import tempfile
    >>> room = pathlib.Path(tempfile.mkdtemp())
    >>> (room / "cats").mkdir()
    >>> _ = (room / "reviews.csv").write_text("text,label")
    >>> list(tasks_in(room))
    ['cats', 'reviews']
    """
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise ValueError(f"no folder {folder}; give one whose folders (or tables of texts) are tasks")
    found: dict[str, pathlib.Path] = {}
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or not (path.is_dir() or path.suffix.lower() in _TABLES):
            continue
        name = path.name if path.is_dir() else path.stem
        if name in found:
            raise ValueError(f"{found[name]} and {path} are both a task {name!r}; rename one")
        found[name] = path
    if not found:
        raise ValueError(f"{folder} holds no tasks; each needs a folder of pictures by class, or a table {_TABLES}")
    return found


def search_of(settings: Mapping[str, Any]) -> ifp.Settings:
    """Returns how the entries of a bank are pruned.

    Args:
        settings: the bank's settings, as `configs/bank.py` and `configs/mvp.py` write them.

    Raises:
        ValueError: if they do not say it.
    """
    missing = [name for name in _NEEDED if name not in settings]
    if missing:
        raise ValueError(
            f"the bank's settings do not say how entries are pruned: {missing} are missing; it was made by "
            "other means, so add entries by `bank.add`"
        )
    return ifp.Settings(
        rounds=settings["rounds"],
        steps_per_round=settings["steps_per_round"],
        schedule=settings["schedule"],
        score=settings["score"],
        min_units=settings.get("min_units", 1),
        tuning=few_shot.Tuning(
            steps=settings["final_steps"],
            learning_rate=settings["learning_rate"],
            optimizer=settings.get("optimizer", "sgd"),
            batch=settings["batch"],
        ),
    )


def check_task(path: pathlib.Path, seed: int) -> LabelledData:
    """Reads a task's data and checks that a bank can hold it.

    Args:
        path: a folder of pictures by class, or a table.
        seed: by which parts are cut.

    Raises:
        ValueError: for data that cannot be read, or numbers to be estimated in the place of classes.
    """
    data = labelled.read(path, seed=seed)
    if data.regression:
        raise ValueError(f"{path} has numbers to estimate, but the entries of a bank tell classes apart")
    return data


def add_task(
    bank: Bank,
    variables: Variables,
    source: str | os.PathLike[str],
    data: LabelledData,
    *,
    name: str,
    key: Key,
    length: int | None = None,
) -> BankEntry | None:
    """Prunes a bank's pre-trained model for one task and adds the result, by the settings of the bank's other entries.

    Args:
        bank: open for writing.
        variables: the pre-trained variables, under the head that the bank's fingerprint was taken with.
        source: the folder of the pre-trained model with its processor or tokeniser, as `inputs.read` takes it.
        data: the task's data; the model is pruned on the training part and its accuracy is that on the validation part.
        name: the task's name in the bank.
        key: random key for batches and dropout.
        length: the length of texts in tokens; `None`: it follows from the texts.

    Returns:
        The entry; `None` if the training diverged, and nothing was added.

    Raises:
        ValueError: if the bank is read-only or has the task already, its settings do not say how it is pruned, or the
            data do not fit the model.
    """
    if banks.has(bank, name):
        raise ValueError(f"task {name!r} is already in the bank {bank.path}; `bank.has` tells before the work")
    search = search_of(bank.settings)
    task = inputs.read(source, data, length=length)
    groups = tuple(g for g in task.model.groups if g.name in bank.settings["groups"])
    ratio = bank.settings["ratio"]
    keep = prune.keep_counts({g.name: g.size for g in groups}, ratio, min_units=search.min_units)
    problem = few_shot.problem(task.model, variables, task.train, ratio=ratio, groups=groups)
    problem = dataclasses.replace(problem, keep=tuple(keep.items()))
    found = ifp.search(problem, search, key)
    if not bool(found.alive):
        return None
    accuracy = float(evaluation.evaluate(problem.slim, found.slim, task.valid)["accuracy"])
    entry = BankEntry(
        task=name,
        classes=tuple(range(len(task.class_names))),
        class_names=tuple(map(str, task.class_names)),
        fingerprint=bank.fingerprint,
        ratio=ratio,
        accuracy=accuracy,
        cost=ifp.cost_of_search(problem, search),
        extra={"data": data.name, "examples": task.examples},
    )
    arrays = {"variables": found.slim, "units": found.units, "saliency": found.saliency}
    return banks.add(bank, entry, jax.tree.map(np.asarray, arrays))


def is_new(folder: str | os.PathLike[str]) -> bool:
    """Whether there is no bank in a folder or at an address yet."""
    return not files.exists(files.path(folder) / "manifest.json")
