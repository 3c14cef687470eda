"""The job `bank`: builds a bank of pruned models, or adds tasks to one; tasks that are there already are skipped.

Tasks are drawn from the classes of a data set, or are a person's own folders, one a task. A killed run goes on with the
tasks that are missing.
"""

import dataclasses
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict, config_dict

from mvp_jax import bank as banks
from mvp_jax import models, pretrained
from mvp_jax.bank import Bank, BankDescription
from mvp_jax.delivery import bank_model, bank_tasks, tuning
from mvp_jax.delivery.tuning import DeliveryTraining
from mvp_jax.experiments import bank_build, dense_model, presets
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.models.api import Model
from mvp_jax.parallel import processes
from mvp_jax.pretrained import tensor_files
from mvp_jax.storage import files, records

_HOW = ("rounds", "steps_per_round", "final_steps", "schedule", "score", "learning_rate", "batch")
"""The settings of the group `bank` by which entries are pruned; a bank that is there has its own in the manifest."""


def config(
    data: str = "digits", model: str = "resnet", *, bank: str = "", tasks: str = "", checkpoint: str = ""
) -> ConfigDict:
    """Returns the config of the job.

    Args:
        data: the name of the data set from whose classes tasks are drawn.
        model: the name of the model that is pre-trained here.
        bank: the folder or address of the bank; empty: the folder `bank` in the folder of the run.
        tasks: a folder whose folders (or tables of texts) are tasks; empty: tasks are drawn from `data`.
        checkpoint: the folder of the pre-trained model; empty: it is the bank's, or pre-trained here.
    """
    full = presets.meta_vote(data, "checkpoint" if checkpoint else model)
    made = presets.job("bank", data, model)
    made.tasks = ConfigDict(
        {"classes_per_task": full.tasks.classes_per_task, "source_images": full.tasks.source_images}, type_safe=False
    )
    made.prune, made.tune, made.bank = full.prune, full.tune, full.bank
    del made.bank.similarity
    made.bank.folder = bank
    made.bank.sources = tasks
    made.bank.store_model = True
    made.bank.title = ""
    made.bank.weights = ""
    made.bank.licence = ""
    if checkpoint:
        made.model.checkpoint = checkpoint
        made.model.name = "checkpoint"
        made.model.options = ConfigDict()
    if checkpoint and tasks:
        made.prune.kinds = ("head", "neuron", "filter")
        made.tune.optimizer = "auto"
        del made.bank.learning_rate
        made.bank.learning_rate = config_dict.placeholder(float)
    return made


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class BankPlan:
    """The plan of the job `bank`.

    Attributes:
        folder: the bank's folder or address; empty: `bank` in the folder of the run.
        about: what a person has to know of the bank.
        store_model: whether the pre-trained model is stored in the bank.
        drawn: the tasks that are drawn from the classes of a data set, and how; `None`: tasks are a person's own.
        own: a person's own tasks: their folders or tables, by name.
        checkpoint: the folder of the pre-trained model of a person's own tasks; empty: the bank's own model.
        settings: how the entries of a new bank of a person's own tasks are pruned, but for the groups.
        kinds: the kinds of units that are pruned in such a bank.
        length: the length of texts in tokens.
        seed: the seed of everything that is drawn.
    """

    folder: str
    about: BankDescription
    store_model: bool
    drawn: FewShotPlan | None = None
    own: dict[str, Path] = dataclasses.field(default_factory=dict)
    checkpoint: str = ""
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    kinds: tuple[str, ...] = ()
    length: int = 32
    seed: int = 0

    def outline(self) -> list[str]:
        """Returns what will be done, a line each."""
        where = self.folder or "bank/ in the folder of the run"
        if self.drawn is not None:
            count = len(self.drawn.setting.bank_tasks)
            return [f"work: a bank of {count} tasks drawn from the classes of the data, in {where}"]
        return [
            f"work: {len(self.own)} tasks of your own, added to the bank in {where}, by the settings of its other "
            f"entries: {', '.join(self.own)[:200]}"
        ]


def plan(config: ConfigDict, few_shot_plan: Callable[[ConfigDict], FewShotPlan]) -> BankPlan:
    """Returns the plan of the job; data, tasks, checkpoint and an existing bank are read and checked.

    Args:
        config: a resolved config, such as `configs/bank.py` makes.
        few_shot_plan: `planning.few_shot_plan`, which checks what is drawn from a data set.

    Raises:
        ValueError: for anything that is wrong with the config, the data, the checkpoint or the bank.
    """
    given = config.bank
    about = BankDescription(title=given.title, weights=given.weights, licence=given.licence)
    if not given.sources:
        made = few_shot_plan(_full(config))
        if given.folder and not bank_tasks.is_new(given.folder):
            banks.open(given.folder, settings=bank_build.settings_of(made))
        return BankPlan(folder=given.folder, about=about, store_model=given.store_model, drawn=made, seed=config.seed)
    own = bank_tasks.tasks_in(given.sources)
    settings = {"ratio": config.prune.ratio, "min_units": config.prune.min_units, "optimizer": config.tune.optimizer}
    settings |= {name: given[name] for name in _HOW}
    made_of_own = BankPlan(
        folder=given.folder,
        about=about,
        store_model=given.store_model,
        own=own,
        checkpoint=config.model.checkpoint,
        settings=settings,
        kinds=tuple(config.prune.kinds),
        length=config.data.length,
        seed=config.seed,
    )
    if not given.folder or bank_tasks.is_new(given.folder):
        if not config.model.checkpoint:
            raise ValueError(
                f"there is no bank in {given.folder or 'the folder of the run'} yet, and no checkpoint to prune; give "
                "checkpoint=FOLDER, or the folder of a bank to add to"
            )
        model = pretrained.load(config.model.checkpoint)[0]
        if given.learning_rate is None:
            settings["learning_rate"] = DeliveryTraining().rate_for(model)
        if config.tune.optimizer == "auto":
            settings["optimizer"] = "adamw" if tuning.is_transformer(model) else "sgd"
        _groups(model, made_of_own.kinds)
    else:
        bank = banks.open(given.folder)
        bank_tasks.search_of(bank.settings)
        with bank_model.located(bank, config.model.checkpoint):
            pass
    for path in own.values():
        bank_tasks.check_task(path, config.seed)
    return made_of_own


def _full(config: ConfigDict) -> ConfigDict:
    """Returns the config of the job `mvp` with the settings of this job's, and without targets."""
    full = presets.meta_vote(config.data.name, "resnet")
    full = full.copy_and_resolve_references()
    with full.unlocked():
        for name in config:
            if isinstance(config[name], ConfigDict) and name in full and name not in ("data", "model", "pretrain"):
                full[name].update({k: config[name][k] for k in config[name] if k in full[name]})
            else:
                full[name] = config[name]
        del full.targets
        full.methods = ("dense",)
        full.reptile.tasks = 2
    return full


def run(plan: BankPlan, work: Path) -> list[dict[str, Any]]:
    """Builds the bank or adds to it, and returns a row for each task of the run that is in it.

    Args:
        plan: the job's plan.
        work: the folder of the run, or its address in a bucket.
    """
    folder = files.path(plan.folder) if plan.folder else work / "bank"
    if plan.drawn is not None:
        bank, names = _draw(plan, plan.drawn, folder, work), {t.name for t in plan.drawn.setting.bank_tasks}
    else:
        bank, names = processes.only_first("own tasks", lambda: _add(plan, folder)) or banks.open(folder), set(plan.own)
    rows = [
        {"task": e.task, "classes": ", ".join(banks.class_names(bank, e)), "ratio": e.ratio, "accuracy": e.accuracy}
        for e in banks.entries(bank)
        if e.task in names
    ]
    if processes.first():
        records.write_json(work / "tasks.json", rows)
        records.say(f"{len(rows)} of {len(names)} tasks are in {bank.path}; {banks.needs(bank)}")
    return rows


def _draw(plan: BankPlan, drawn: FewShotPlan, folder: Path, work: Path) -> Bank:
    there = None if bank_tasks.is_new(folder) else banks.open(folder)
    if there is not None and banks.has_model(there):
        variables = jax.tree.map(jnp.asarray, banks.load_model(there)[1])
    else:
        variables = dense_model.dense_model(drawn, work)
    return bank_build.fill(drawn, variables, folder, work / "diverged", about=plan.about, store_model=plan.store_model)


def _add(plan: BankPlan, folder: Path) -> Bank:
    bank = _opened(plan, folder)
    with (
        bank_model.located(bank, plan.checkpoint) as (source, variables),
        records.progress(len(plan.own), "tasks of your own") as advance,
    ):
        for name, path in plan.own.items():
            if banks.has(bank, name):
                advance(1, f"{name} is there")
                continue
            data = bank_tasks.check_task(path, plan.seed)
            entry = bank_tasks.add_task(
                bank,
                variables,
                source,
                data,
                name=name,
                # By its name, so that an entry does not depend on what else is in the folder.
                key=jax.random.fold_in(jax.random.key(plan.seed + 1), zlib.crc32(name.encode())),
                length=plan.length if data.kind == "texts" else None,
            )
            if entry is None:
                records.say(f"{name} diverged and is not in the bank; lower bank.learning_rate to have it")
            advance(1, name if entry is None else f"{name}: accuracy {entry.accuracy:.1%}")
    banks.write_readme(bank)
    return bank


def _opened(plan: BankPlan, folder: Path) -> Bank:
    """Returns the bank, open for writing; makes it of the plan's checkpoint if it is not there."""
    if not bank_tasks.is_new(folder):
        return banks.open(folder, write=True)
    model, variables = pretrained.load(plan.checkpoint)
    groups = _groups(model, plan.kinds)
    about = dataclasses.replace(
        plan.about,
        model=models.to_json(model.config),
        weights=plan.about.weights or f"checkpoint {Path(plan.checkpoint).name}",
    )
    settings = plan.settings | {"groups": groups}
    bank = banks.create(folder, fingerprint=banks.fingerprint(variables), settings=settings, about=about, exist_ok=True)
    if plan.store_model and not banks.has_model(bank):
        source = tensor_files.local(plan.checkpoint)
        banks.store_model(bank, model, variables, source=source if source.is_dir() else source.parent)
    return bank


def _groups(model: Model, kinds: tuple[str, ...]) -> list[str]:
    """Returns the names of the model's groups of some kinds."""
    found = [g.name for g in model.groups if g.kind in kinds]
    if not found:
        raise ValueError(
            f"prune.kinds={kinds} names no group of the model; it has {sorted({g.kind for g in model.groups})}"
        )
    return found
