"""The checked plan of pruning a checkpoint for a person's data, and the folder that it is carried out in."""

import dataclasses
import json
import os
import pathlib
from typing import Any

import jax
import numpy as np

from mvp_jax import bank
from mvp_jax.data.datasets import labelled
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import goals, inputs, pruning
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.tuning import DeliveryTraining
from mvp_jax.pretrained import calls, source_files
from mvp_jax.storage import files, json_files, records


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeliverySettings:
    """How a checkpoint is pruned for a person's data.

    Attributes:
        goal: how much goes.
        method: the name of a method for a sparsity, as in `METHODS`; empty: the default one.
        kinds: the kinds of units that may go, such as `head`, `neuron` and `filter`; empty: these three.
        training: how the dense and the pruned model are trained.
        length: the length of texts in tokens; `None`: it follows from the texts.
        size: the side of pictures in pixels, for a checkpoint without a processor; `None`: the model's.
        metric: the metric that counts; empty: accuracy, or Pearson's correlation for a regression.
        programs: what is written besides of the slim model: `stablehlo`, `onnx`.
        seed: of batches and of everything else that is drawn.
    """

    goal: PruningGoal = dataclasses.field(default_factory=lambda: PruningGoal(name="sparsity", amount=0.8))
    method: str = ""
    kinds: tuple[str, ...] = ()
    training: DeliveryTraining = dataclasses.field(default_factory=DeliveryTraining)
    length: int | None = None
    size: int | None = None
    metric: str = ""
    programs: tuple[str, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = sorted(set(self.programs) - {"stablehlo", "onnx"})
        if unknown:
            raise ValueError(f"unknown programs {unknown}; choose stablehlo and onnx")


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DeliveryPlan:
    """A checkpoint, data and settings that were checked together, before anything is trained.

    Attributes:
        inputs: the model and the data.
        settings: how it is pruned.
        method: the name of the method.
        removal: what goes together, and which share of it.
        checkpoint: the checkpoint as the caller named it, for the report.
        data: the path of the data, if they are on this machine; empty: the caller read them.
    """

    inputs: inputs.TaskInputs
    settings: DeliverySettings
    method: str
    removal: goals.Removal
    checkpoint: str
    data: str = ""

    def outline(self) -> list[str]:
        """Returns what will be done with which data and model, a line each."""
        task, training = self.inputs, self.settings.training
        kind = type(task.model.config).__name__.removesuffix("Config")
        size = sum(int(np.size(leaf)) for leaf in jax.tree.leaves(task.variables.params))
        attempts = "" if self.settings.goal.keep_score is None else f"up to {pruning.TRIALS} attempts of "
        return [
            f"data: {task.data.outline()}",
            f"model: {self.checkpoint} ({kind}, {size:,} parameters)",
            f"work: {training.dense_for(task):,} steps of the dense model, then {attempts}"
            f"{training.steps_for(task.examples):,} of pruning by {self.method}: {self.settings.goal.in_words()}",
            *(f"note: {note}" for note in (*task.data.notes, *task.notes)),
        ]


def plan(
    checkpoint: str | os.PathLike[str], data: str | os.PathLike[str] | LabelledData, settings: DeliverySettings
) -> DeliveryPlan:
    """Reads a checkpoint and data and checks that they fit the settings; nothing is trained or written.

    Args:
        checkpoint: a folder as `transformers` writes it, or the id of one on the Hugging Face hub.
        data: the data, or where they are, as `labelled.read` takes it.
        settings: how to prune.

    Raises:
        ValueError: for anything wrong with the checkpoint, the data or the settings.
    """
    where = "" if isinstance(data, LabelledData) else str(data)
    found = data if isinstance(data, LabelledData) else labelled.read(data, seed=settings.seed)
    task = inputs.read(checkpoint, found, length=settings.length, size=settings.size, metric=settings.metric)
    for program in settings.programs:
        calls.check_packages(program)
    if task.source.is_dir():
        source_files.gather(task.source, task.model.config)  # refuses what could not be handed on in the end
    task = dataclasses.replace(task, notes=(*task.notes, *_seen_before(task)))
    method = pruning.check_method(settings.method, settings.goal.of_units, task)
    groups = pruning.groups_of(task, settings.kinds) if settings.goal.of_units else ()
    few = task.train["x"][: min(8, task.examples)]
    removal = goals.removal(settings.goal, task.model, task.variables, few, groups=groups)
    return DeliveryPlan(
        inputs=task, settings=settings, method=method, removal=removal, checkpoint=str(checkpoint), data=where
    )


def _seen_before(task: inputs.TaskInputs) -> list[str]:
    """Returns a warning if the checkpoint was fine-tuned here for the same data, whose test part was another one."""
    beside = task.source.parent / "settings.json"
    old = json_files.read_json(beside, missing={}) if beside.is_file() else {}
    before = old.get("digest of the test examples")
    if before is None or old.get("data") != task.data.name or before == bank.fingerprint(task.test)[:16]:
        return []
    return [
        "The checkpoint was fine-tuned on another division of these data, so that it may have been trained on some of "
        "the test examples, and scores may be too good. Give the same seed, shares and test part as then."
    ]


def check_apart(root: pathlib.Path, made: DeliveryPlan) -> None:
    """Checks that a folder is neither the checkpoint's nor within the data's, where results would be read as data.

    Args:
        root: the folder.
        made: the plan.

    Raises:
        ValueError: if it is.
    """
    if files.is_remote(root):
        return
    out = pathlib.Path(root).resolve()
    if out == made.inputs.source.resolve():
        raise ValueError(f"{root} is the folder of the checkpoint; choose another folder for what is written")
    data = pathlib.Path(made.data).resolve() if made.data and pathlib.Path(made.data).exists() else None
    if data is not None and (out == data or data in out.parents):
        raise ValueError(f"{root} lies in the folder of the data, {made.data}; choose a folder outside of it")


def claim(root: pathlib.Path, made: DeliveryPlan) -> DeliveryPlan:
    """Makes a folder this plan's: writes `settings.json`, or checks that the one there says the same.

    Args:
        root: the folder.
        made: the plan.

    Returns:
        The plan, with the share that was found when the folder was claimed: a latency may be measured otherwise now.

    Raises:
        ValueError: if the folder cannot be written, or holds results of other settings, data or of another checkpoint.
    """
    path, new = root / "settings.json", _described(made)
    if not files.exists(root / "report.html"):
        files.writable(root)
    if not files.exists(path):
        there = [name for name in ("model", "slim", "dense", "report.html") if files.exists(root / name)]
        if there:
            raise ValueError(f"{root} holds {there} that were not made by this function; choose an empty folder")
        records.write_json(path, {**new, "share": made.removal.share})
        return made
    old = records.read_json(path)
    if not isinstance(old, dict) or "share" not in old:
        raise ValueError(f"{path} was not written by this function; choose an empty folder")
    differ = [f"{name} is {old.get(name)} there and {new[name]} here" for name in new if old.get(name) != new[name]]
    if differ:
        dense = f"; checkpoint={root / 'dense'} need not be trained again" if files.exists(root / "dense") else ""
        raise ValueError(f"{root} holds a run of other settings: {'; '.join(differ)}; choose an empty folder{dense}")
    return dataclasses.replace(made, removal=made.removal._replace(share=old["share"]))


def _described(made: DeliveryPlan) -> dict[str, Any]:
    """Returns what decides the result, as JSON."""
    task, data = made.inputs, made.inputs.data
    settings = dataclasses.asdict(made.settings) | {"method": made.method}
    training = settings.pop("training")
    content = {part: getattr(task, part) for part in ("train", "valid", "test")}
    described = {
        **settings,
        **training,
        "goal": made.settings.goal.in_words(),
        "data": data.name,
        "examples": [len(part.y) for part in (data.train, data.valid, data.test)],
        "classes": list(data.class_names),
        "digest of the checkpoint's weights": bank.fingerprint(task.variables)[:16],
        "digest of the examples": bank.fingerprint(content)[:16],
        "digest of the test examples": bank.fingerprint(task.test)[:16],
    }
    as_json: dict[str, Any] = json.loads(json.dumps(described))
    return as_json
