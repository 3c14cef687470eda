"""The job `prune`: a person's checkpoint and data in, a model folder and a report out."""

import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import checkpoint_pruning, sample
from mvp_jax.delivery.checkpoint_pruning import DeliveryPlan, DeliverySettings, PrunedCheckpoint
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.tuning import DeliveryTraining
from mvp_jax.experiments import own_data
from mvp_jax.parallel import processes
from mvp_jax.storage import files, records

_GOALS = ("sparsity", "ratio", "parameters", "flops", "latency")
_DEFAULT = ("sparsity", 0.8)


def config(checkpoint: str = "", data: str = "digits") -> ConfigDict:
    """Returns the config of the job `prune`.

    Args:
        checkpoint: a folder as `transformers` writes it, or an id on the Hugging Face hub; empty: a small one is made.
        data: the data, as `labelled.read` takes it.
    """
    made = ConfigDict()
    made.job = "prune"
    made.seed = 0
    made.checkpoint = checkpoint
    for name in (*_GOALS, "keep_accuracy"):
        made[name] = config_dict.placeholder(float)
    made.remove = ""
    made.method = ""
    made.kinds = ()
    made.metric = ""

    own_data.settings(made, data, 0.1)
    made.data.regression = config_dict.placeholder(bool)

    made.finetune = ConfigDict()
    usual = DeliveryTraining()
    made.finetune.epochs = usual.epochs
    made.finetune.steps = config_dict.placeholder(int)
    made.finetune.dense_steps = config_dict.placeholder(int)
    made.finetune.batch = usual.batch
    made.finetune.learning_rate = config_dict.placeholder(float)
    made.finetune.weight_decay = usual.weight_decay
    made.finetune.warmup = usual.warmup
    made.finetune.clip = usual.clip
    made.finetune.looks = usual.looks

    made.export = ConfigDict()
    made.export.stablehlo = False
    made.export.onnx = False
    return made


def goal(config: ConfigDict) -> PruningGoal:
    """Returns the goal that a config names; 80 % of the weights if it names none.

    Args:
        config: a resolved config of the job.

    Raises:
        ValueError: for more than one goal, or a goal out of range.
    """
    given = {name: config[name] for name in _GOALS if config[name] is not None}
    keep = config.keep_accuracy
    if len(given) + (keep is not None) > 1:
        named = [*given, *(["keep_accuracy"] if keep is not None else [])]
        raise ValueError(f"{' and '.join(named)} are given; give one of {', '.join(_GOALS)} and keep_accuracy")
    if config.remove not in ("", "weights", "units"):
        raise ValueError(f"unknown remove={config.remove!r}; choose 'weights' or 'units'")
    if keep is not None:
        return PruningGoal(name="ratio" if config.remove == "units" else "sparsity", keep_score=keep)
    name, amount = next(iter(given.items()), _DEFAULT)
    found = PruningGoal(name=name, amount=amount)  # type: ignore[arg-type]
    if config.remove and found.of_units != (config.remove == "units"):
        what = "units" if found.of_units else "weights"
        raise ValueError(f"{name} removes {what}, and remove is {config.remove!r}; leave remove out")
    return found


def settings(config: ConfigDict) -> DeliverySettings:
    """Returns the library's settings of a config.

    Args:
        config: a resolved config of the job.

    Raises:
        ValueError: for settings out of range.
    """
    return DeliverySettings(
        goal=goal(config),
        method=config.method,
        kinds=tuple(config.kinds),
        training=DeliveryTraining(**config.finetune.to_dict()),
        length=config.data.length,
        size=config.data.size,
        metric=config.metric,
        programs=tuple(name for name in ("stablehlo", "onnx") if config.export[name]),
        seed=config.seed,
    )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PrunePlan:
    """The plan of the job `prune`.

    Attributes:
        data: the examples.
        settings: how to prune.
        made: the checked plan; `None`: the checkpoint is yet to be made on the spot.
        seed: of the checkpoint that is made on the spot.
    """

    data: LabelledData
    settings: DeliverySettings
    made: DeliveryPlan | None
    seed: int

    def outline(self) -> list[str]:
        """Returns what will be done with which data and model, a line each."""
        if self.made is None:
            training, examples = self.settings.training, len(self.data.train.y)
            steps = training.steps_for(examples)
            first = steps if training.dense_steps is None else training.dense_steps
            return [
                f"data: {self.data.outline()}",
                "model: a small transformer that is made here",
                f"work: {sample.STEPS} steps of this checkpoint on half of the classes, {first:,} of the dense model, "
                f"then {steps:,} of pruning: {self.settings.goal.in_words()}",
            ]
        return self.made.outline()


def plan(config: ConfigDict) -> PrunePlan:
    """Returns the plan of the job; checkpoint and data are read and checked.

    Args:
        config: a resolved config, such as `configs/prune.py` makes.

    Raises:
        ValueError: for anything that is wrong with the config, the checkpoint or the data.
    """
    wanted, given = settings(config), config.data
    data = own_data.read(config)
    if config.checkpoint:
        return PrunePlan(
            data=data,
            settings=wanted,
            made=dataclasses.replace(checkpoint_pruning.plan(config.checkpoint, data, wanted), data=given.name),
            seed=config.seed,
        )
    if data.name not in ("digits", "docstrings"):
        raise ValueError(
            f"no checkpoint is given for {data.name}; give one, as configs/prune.py:checkpoint=FOLDER,data="
            f"{given.name} (only for the embedded data, digits and docstrings, is a small one made on the spot)"
        )
    with tempfile.TemporaryDirectory() as place:  # all that can be wrong is seen on an untrained one
        untrained = sample.sample_checkpoint(Path(place) / "sample", data, steps=0, seed=config.seed)
        checkpoint_pruning.plan(untrained, data, wanted)
    return PrunePlan(data=data, settings=wanted, made=None, seed=config.seed)


def run(plan: PrunePlan, work: Path) -> list[dict[str, Any]]:
    """Prunes, writes the folder, and returns a row for each version of the model and metric.

    Args:
        plan: the job's plan.
        work: the folder of the run.
    """
    found = processes.only_first("prune", lambda: _report(plan, work))
    return found if found is not None else records.read_csv(work / "results.csv")


def _report(plan: PrunePlan, work: Path) -> list[dict[str, Any]]:
    made = plan.made
    if made is None:
        given = sample.sample_checkpoint(work / "sample", plan.data, seed=plan.seed)
        made = checkpoint_pruning.plan(given, plan.data, plan.settings)
    again = files.exists(work / "report.html")
    found = checkpoint_pruning.run(made, work)
    records.write_csv(rows := _rows(made, found), work / "results.csv")
    done = "this run is finished; it wrote" if again else "wrote"
    records.say(f"{done} {work / 'report.html'}, {work / 'model'} (for transformers) and {work / 'slim'} (smaller)")
    return rows


def _rows(made: DeliveryPlan, found: PrunedCheckpoint) -> list[dict[str, Any]]:
    training, task = made.settings.training, made.inputs
    removed = "ratio" if found.units else "sparsity"
    both = {"target": task.data.name, "seed": made.settings.seed}
    dense = {**both, "method": "unpruned", removed: 0.0, "steps": training.dense_for(task)}
    pruned = {**both, "method": made.method, removed: found.share, "steps": training.steps_for(task.examples)}
    return own_data.rows(found.report, found.valid, dense, pruned)
