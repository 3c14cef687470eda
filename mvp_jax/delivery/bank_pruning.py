"""Prunes a bank's pre-trained model for one new task by a vote of the bank's entries, and writes what is handed on."""

import contextlib
import dataclasses
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import bank as banks
from mvp_jax.bank import Bank, BankEntry
from mvp_jax.core.types import Variables
from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import bank_model, inputs, tuning, writing
from mvp_jax.delivery.inputs import TaskInputs
from mvp_jax.delivery.tuning import DeliveryTraining
from mvp_jax.delivery.writing import FinishedModel, WrittenModel
from mvp_jax.methods import Line, Pruned, few_shot, registry
from mvp_jax.methods.few_shot import mvp, select
from mvp_jax.storage import files, records

HELD_OUT = 0.2
"""The share of a new task's examples that validates, and the share that tests: few examples need large shares."""

_WHOLE_BANK = ("copy_random", "copy_farthest", "vote_farthest", "vote_universal")
"""Methods that look at entries that are not near; here only the nearest are read."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class BankPruningSettings:
    """How a bank's model is pruned for a new task.

    Attributes:
        method: the name of a few-shot method, such as `mvp`, `mvp_select`, `copy_nearest` or `ifp`.
        k: how many entries vote, the nearest.
        similarity: by what entries are near, as in `bank.neighbours`; `prototype` needs a bank whose entries have
            prototypes.
        steps: the number of fine-tuning steps, of the pruned model and of the dense one beside it.
        batch: the number of examples a step.
        learning_rate: of the fine-tuning; `None`: it follows from the model's kind and width.
        length: the length of texts in tokens; `None`: it follows from the texts.
        size: the side of pictures in pixels, for a bank without a processor; `None`: the model's.
        metric: the metric that counts; empty: accuracy.
        chunk: how many entries are in memory at a time while they are ranked.
        seed: of batches and of everything else that is drawn.

    Raises:
        ValueError: for numbers out of range.
    """

    method: str = "mvp"
    k: int = 5
    similarity: banks.EntrySimilarity = "leep"
    steps: int = 100
    batch: int = 32
    learning_rate: float | None = None
    length: int | None = None
    size: int | None = None
    metric: str = ""
    chunk: int = 64
    seed: int = 0

    @property
    def read(self) -> int:
        """How many of the nearest entries are read: those that vote, and those that are candidates of `mvp_select`."""
        return max(self.k, select.Settings().candidates) if self.method == "mvp_select" else self.k

    def __post_init__(self) -> None:
        if min(self.k, self.steps, self.batch, self.chunk) < 1:
            raise ValueError(f"k={self.k}, steps={self.steps}, batch={self.batch}, chunk={self.chunk}; give at least 1")
        if self.similarity not in get_args(banks.EntrySimilarity):
            raise ValueError(f"unknown similarity {self.similarity!r}; choose one of {get_args(banks.EntrySimilarity)}")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BankPruningPlan:
    """A bank, a new task and settings that were checked together, before anything is trained.

    Attributes:
        bank: the open bank.
        entries: its entries.
        variables: the pre-trained variables, under the head that the bank's fingerprint was taken with.
        inputs: the model under a head for the task, and the task's examples.
        line: the method.
        settings: how the model is pruned.
    """

    bank: Bank
    entries: tuple[BankEntry, ...]
    variables: Variables
    inputs: TaskInputs
    line: Line
    settings: BankPruningSettings


class BankPruned(NamedTuple):
    """A bank's model, pruned for a new task.

    Attributes:
        pruned: what the method returned, in the dense shapes.
        written: the report and the slim model.
        neighbours: the nearest tasks of the bank and how similar they are, nearest first.
        valid: the first metric on the validation examples, of the `dense` and of the `pruned` model.
        ratio: the share of each group's units that was removed.
        seconds: how long it took to rank the entries and to prune, without reading, the dense model and the report.
    """

    pruned: Pruned
    written: WrittenModel
    neighbours: tuple[tuple[str, float], ...]
    valid: dict[str, float]
    ratio: float
    seconds: float


@contextlib.contextmanager
def plan(
    bank: str | os.PathLike[str],
    data: str | os.PathLike[str] | LabelledData,
    settings: BankPruningSettings,
    *,
    checkpoint: str | os.PathLike[str] = "",
) -> Iterator[BankPruningPlan]:
    """A context with a checked plan; nothing is trained or written.

    Args:
        bank: the bank's folder or its address in a bucket; it is only read.
        data: the new task's data, or where they are, as `labelled.read` takes it.
        settings: how to prune.
        checkpoint: the folder of the pre-trained model, for a bank that does not hold it.

    Raises:
        ValueError: for anything wrong with the bank, the data or the settings.
    """
    opened = banks.open(bank)
    entries = tuple(banks.entries(opened))
    if not entries:
        raise ValueError(f"the bank {opened.path} has no entries, so nobody can vote; add tasks by configs/bank.py")
    if isinstance(data, LabelledData):
        found = data
    else:
        found = labelled.read(data, valid_share=HELD_OUT, test_share=HELD_OUT, seed=settings.seed)
    if found.regression:
        raise ValueError(f"{found.name} has numbers to estimate, but the entries of a bank tell classes apart")
    with bank_model.located(opened, checkpoint) as (folder, variables):
        task = inputs.read(folder, found, length=settings.length, size=settings.size, metric=settings.metric)
        line = registry.chosen("few_shot", [settings.method], task.model)[settings.method]
        if line.needs - {"neighbours"} or settings.method in (*_WHOLE_BANK, "dense"):
            fitting = [
                name
                for name, one in registry.chosen("few_shot", (), task.model).items()
                if not (one.needs - {"neighbours"} or name in (*_WHOLE_BANK, "dense"))
            ]
            raise ValueError(f"the method {settings.method!r} cannot prune for one task alone; choose one of {fitting}")
        yield BankPruningPlan(
            bank=opened, entries=entries, variables=variables, inputs=task, line=line, settings=settings
        )


def prune_from_bank(
    bank: str | os.PathLike[str],
    data: str | os.PathLike[str] | LabelledData,
    *,
    out: str | os.PathLike[str],
    settings: BankPruningSettings | None = None,
    checkpoint: str | os.PathLike[str] = "",
) -> BankPruned:
    """Prunes a bank's pre-trained model for one new task by a vote of the entries nearest to it, and writes the folder.

    The dense model is fine-tuned for as many steps beside it, as the reference of the report. The test examples are
    read once.

    Args:
        bank: the bank's folder or its address in a bucket, such as one that `configs/bank.py` made; it is only read.
        data: a few examples of the new task: a folder of pictures by class, a table of texts, and whatever else
            `labelled.read` takes; or what that returned. Where no such parts are given, a fifth of each class validates
            and another fifth tests.
        out: the folder for `model/` (as `transformers` loads it, if the family is one of its), `slim/` (smaller, as
            `pretrained.load` loads it), and `report.html`, `.md` and `.json`.
        settings: how to prune; `None`: Meta-Vote Pruning of 5 entries and 100 steps.
        checkpoint: the folder of the pre-trained model, for a bank that does not hold it.

    Returns:
        The pruned model and what was written.

    Raises:
        ValueError: for anything wrong with the bank, the data, the settings or the folder, before anything is trained;
            or if a training diverges.

    Reference: Zhao et al., "Meta-Vote Pruning", 2023, arXiv:2301.11560, algorithm 2.
    """
    with plan(bank, data, settings or BankPruningSettings(), checkpoint=checkpoint) as made:
        return run(made, out)


def run(made: BankPruningPlan, out: str | os.PathLike[str]) -> BankPruned:
    """Carries a plan out and writes the folder.

    Args:
        made: the plan, within the context of `plan`.
        out: the folder.

    Raises:
        ValueError: if the folder holds something else, or a training diverges.
    """
    root, task = files.path(out), made.inputs
    _claim(root, made)
    start = time.perf_counter()
    scores = banks.similarities_to(
        made.entries,
        task.model,
        made.variables,
        task.train,
        similarity=made.settings.similarity,
        chunk=made.settings.chunk,
    )
    near = banks.neighbours(
        made.entries, task.model, made.variables, task.train, k=made.settings.read, similarity=lambda *_: scores
    )
    problem, given = _problem(made, near)
    key = jax.random.key(made.settings.seed)
    pruned: Pruned = made.line.run(problem, made.line.settings(given), key)
    if not bool(jax.block_until_ready(pruned.alive)):
        raise ValueError(
            f"the fine-tuning diverged; lower the learning rate, which is {given.tuning.learning_rate:.2g}"
        )
    seconds = time.perf_counter() - start
    reference = registry.line("dense", "few_shot")
    dense: Pruned = reference.run(problem, reference.settings(given), key)
    if not bool(dense.alive):
        raise ValueError("the fine-tuning of the dense model diverged; lower the learning rate")
    order = np.argsort(-np.asarray(scores), kind="stable")[: len(near.similarity)]
    names = tuple((made.entries[i].task, float(scores[i])) for i in order)
    finished = FinishedModel(
        inputs=task,
        dense=dense.variables,
        variables=pruned.variables,
        masks=pruned.masks,
        units=pruned.units,
        facts=_facts(made, given, names, seconds),
        title=f"{made.bank.about.title or made.bank.path.name}, pruned for {task.data.name}",
        notes=_notes(made),
    )
    first = task.metrics[0]
    valid = {
        name: tuning.scores(task, task.model, variables)[first]
        for name, variables in (("dense", dense.variables), ("pruned", pruned.variables))
    }
    written = writing.write(root, finished)
    return BankPruned(pruned, written, names, valid, made.entries[0].ratio, seconds)


def _problem(made: BankPruningPlan, near: banks.Neighbours) -> tuple[few_shot.FewShotProblem, few_shot.FewShotDefaults]:
    task, settings = made.inputs, made.settings
    groups = tuple(g for g in task.model.groups if g.name in near.units)
    keep = {name: int(jnp.sum(kept[0])) for name, kept in near.units.items()}
    problem = few_shot.problem(
        task.model,
        made.variables,
        task.train,
        ratio=made.entries[0].ratio,
        groups=groups,
        neighbours=near if "neighbours" in made.line.needs else None,
    )
    # As many units as the entries keep, whatever their ratio rounds to.
    problem = dataclasses.replace(problem, keep=tuple((g.name, keep[g.name]) for g in groups))
    attention = tuning.is_transformer(task.model)
    rate = DeliveryTraining(learning_rate=settings.learning_rate).rate_for(task.model)
    how = few_shot.Tuning(
        steps=settings.steps,
        learning_rate=rate,
        optimizer="adamw" if attention else "sgd",
        batch=settings.batch,
        clip=1.0,
    )
    return problem, few_shot.FewShotDefaults(tuning=how, vote=mvp.Settings(k=settings.k))


def _facts(
    made: BankPruningPlan,
    given: few_shot.FewShotDefaults,
    near: Sequence[tuple[str, float]],
    seconds: float,
) -> tuple[tuple[str, str], ...]:
    named = {entry.task: ", ".join(banks.class_names(made.bank, entry)) for entry in made.entries}
    voters = "; ".join(f"{task} ({named[task]}): {similarity:.3f}" for task, similarity in near)
    counts = np.unique(np.asarray(made.inputs.train["y"]), return_counts=True)[1]
    shots = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
    return (
        ("bank", f"{made.bank.path}: {len(made.entries)} entries, {made.entries[0].ratio:.1%} of the units removed"),
        ("pre-trained model", banks.needs(made.bank)),
        ("method", f"{made.line.title} ({made.settings.method})"),
        ("training examples of a class", shots),
        (f"nearest tasks, by {made.settings.similarity}", voters),
        (
            "training",
            f"{given.tuning.steps} steps of {min(given.tuning.batch, made.inputs.examples)} examples, learning rate "
            f"{given.tuning.learning_rate:.2g}, of the pruned model and of the dense one",
        ),
        ("time", f"{seconds:.1f} s to rank the entries, to vote and to fine-tune, compiling included"),
        ("seed", str(made.settings.seed)),
    )


def _notes(made: BankPruningPlan) -> tuple[str, ...]:
    count = len(made.inputs.data.test.y)
    notes = [f"accuracy is that of {count} held-out test examples"]
    if count < 100:
        notes.append("so few test examples leave a wide interval; give a test part of its own for a closer figure")
    if made.bank.about.licence:
        notes.append(f"licence note of the bank: {made.bank.about.licence}")
    return tuple(notes)


def _claim(root: pathlib.Path, made: BankPruningPlan) -> None:
    """Makes a folder this plan's; `ValueError` if it holds results of another one."""
    parts = (made.inputs.data.train, made.inputs.data.valid, made.inputs.data.test)
    described: dict[str, Any] = {
        "bank": str(made.bank.path),
        "fingerprint": made.bank.fingerprint,
        "data": made.inputs.data.name,
        "examples": [len(part.y) for part in parts],
        "classes": list(made.inputs.class_names),
        **dataclasses.asdict(made.settings),
    }
    described = json.loads(json.dumps(described))
    files.writable(root)
    path = root / "settings.json"
    if files.exists(path):
        old = records.read_json(path)
        differ = [f"{n} is {old.get(n)} there and {described[n]} here" for n in described if old.get(n) != described[n]]
        if differ:
            raise ValueError(f"{root} holds a run of other settings: {'; '.join(differ)}; choose an empty folder")
    elif any(files.exists(root / name) for name in ("model", "slim", "report.html")):
        raise ValueError(f"{root} holds results that were not made by this function; choose an empty folder")
    records.write_json(path, described)
