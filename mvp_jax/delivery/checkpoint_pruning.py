"""Prunes a person's checkpoint for a person's data, from the first reading to the folder that is handed on."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvp_jax import compact, pretrained
from mvp_jax.core import trees
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Masks, Units, Variables
from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import pruning, tuning, writing
from mvp_jax.delivery.goals import PruningGoal
from mvp_jax.delivery.planning import DeliveryPlan, DeliverySettings, check_apart, claim, plan
from mvp_jax.models.api import Model
from mvp_jax.reports import model_report_text
from mvp_jax.reports.model_report import ModelReport, SearchTrial, TrainingCurve
from mvp_jax.storage import files, leftovers, locks, records

_LOCK = ".lock-prune"
"""The file of the lock; of another name than that of a job, which may have the folder itself."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PrunedCheckpoint:
    """A person's pruned model.

    Attributes:
        model: the dense model.
        variables: its pruned variables, zero where weights or units were removed.
        masks: booleans in the parameters' structure; True = kept.
        units: `{group: bool[C]}`, the units that are kept; empty if single weights were pruned.
        slim_model: the smaller model; the dense one if single weights were pruned.
        slim: the variables of the smaller model.
        share: the share of the weights, or of each group's units, that was removed.
        valid: the first metric on the validation examples, of the `dense` and of the `pruned` model.
        report: what the report says, with the scores on the test examples.
    """

    model: Model
    variables: Variables
    masks: Masks
    units: Units
    slim_model: Model
    slim: Variables
    share: float
    valid: Mapping[str, float]
    report: ModelReport


def prune_checkpoint(
    checkpoint: str | os.PathLike[str],
    data: str | os.PathLike[str] | LabelledData,
    *,
    out: str | os.PathLike[str],
    sparsity: float | None = None,
    ratio: float | None = None,
    parameters: float | None = None,
    flops: float | None = None,
    latency: float | None = None,
    keep_accuracy: float | None = None,
    settings: DeliverySettings | None = None,
) -> PrunedCheckpoint:
    """Fine-tunes a checkpoint for a task, prunes it, judges it once on the test examples and writes it.

    At most one of `sparsity`, `ratio`, `parameters`, `flops`, `latency` and `keep_accuracy` is given, in the place of
    `settings.goal`.

    Args:
        checkpoint: a folder as `transformers` writes it, or the id of one on the Hugging Face hub.
        data: a table of texts (CSV, TSV, JSON lines), a folder of pictures by class, an archive of arrays, the name of
            a data set, as `data.datasets.labelled.read` takes it. Or what that returned: it has arguments for the
            columns, the shares of the parts and a limit.
        out: the folder for `model/` (as `transformers` loads it), `slim/` (smaller, as `pretrained.load` loads it),
            `dense/` (the fine-tuned dense model, for other goals), and `report.html`, `.md` and `.json`. A run that was
            killed goes on there.
        sparsity: the share of the weights to remove, in (0, 1).
        ratio: the share of the units of each group to remove, in (0, 1).
        parameters: how many parameters may be left: a share of the dense model's, or a number above 1.
        flops: how many operations a forward pass may take: a share of the dense model's, or a number above 1.
        latency: the share of the dense model's time that a forward pass may take on this machine, in (0, 1).
        keep_accuracy: the share of the dense model's validation score to keep, in (0, 1]; the most weights then go
            that leave it (for units, give a `PruningGoal` with `keep_score` in the settings).
        settings: everything else; `None`: the defaults, 80 % of the weights.

    Returns:
        The pruned model, with what the report says.

    Raises:
        ValueError: for more than one goal; a checkpoint, data or settings that are wrong or do not fit together, before
            anything is trained; or if a training diverges.
    """
    asked = {"sparsity": sparsity, "ratio": ratio, "parameters": parameters, "flops": flops, "latency": latency}
    given = {name: amount for name, amount in (asked | {"keep_accuracy": keep_accuracy}).items() if amount is not None}
    if len(given) > 1:
        raise ValueError(f"got {', '.join(f'{n}={a}' for n, a in given.items())}; give one of them")
    settings = settings or DeliverySettings()
    for name, amount in given.items():
        searched = name == "keep_accuracy"
        wanted: dict[str, Any] = {"keep_score": amount} if searched else {"name": name, "amount": amount}
        settings = dataclasses.replace(settings, goal=PruningGoal(**wanted))
    made = plan(checkpoint, data, settings)
    records.say("\n".join(made.outline()))
    return run(made, out)


def run(made: DeliveryPlan, out: str | os.PathLike[str]) -> PrunedCheckpoint:
    """Carries a plan out, or goes on with it, and writes the folder.

    Args:
        made: the plan.
        out: the folder.

    Raises:
        ValueError: if the folder holds the results of another plan or another run is at work in it, or a training
            diverges.
    """
    root = files.path(out)
    check_apart(root, made)
    if files.exists(root / "report.html"):  # it is written last
        made = claim(root, made)
        for left in ("running", _LOCK):  # of a run that was killed at its very end
            files.remove(root / left)
        return _read(root, made)
    with locks.held(root, name=_LOCK) as alone:
        made = claim(root, made)
        if alone:
            leftovers.sweep_all(root)  # what a killed run was writing
        return _carried_out(root, made)


def _carried_out(root: pathlib.Path, made: DeliveryPlan) -> PrunedCheckpoint:
    """Trains, prunes, judges and writes what is not there yet."""
    keys = jax.random.split(jax.random.key(made.settings.seed))
    dense, curve = _dense(root, made, keys[0])
    task = _task(made, dense, keys[1])
    keep, first, trials = made.settings.goal.keep_score, made.inputs.metrics[0], list[SearchTrial]()
    valid, target = {"dense": tuning.scores(made.inputs, made.inputs.model, dense)[first]}, None
    if keep is None:
        found: pruning.PrunedTask | None = pruning.prune(task, task.removal.share, root / "running" / "pruned")
    else:
        target = keep * valid["dense"]
        found, trials = pruning.search(task, target, root / "running")
    notes = []
    if found is None:
        found = pruning.unpruned(task)
        notes.append("no attempt kept enough of the validation score, so this is the dense model, with nothing removed")
    valid["pruned"] = tuning.scores(made.inputs, made.inputs.model, found.variables)[first]
    finished = writing.FinishedModel(
        inputs=made.inputs,
        dense=dense,
        variables=found.variables,
        masks=found.masks,
        units=found.units,
        facts=(*_facts(made, found), (f"validation {first}", ", ".join(f"{n} {v:.4g}" for n, v in valid.items()))),
        title=f"{_name(made.checkpoint)}, pruned for {made.inputs.data.name}",
        curves=(curve, found.curve),
        trials=tuple(trials),
        target=target,
        notes=tuple(notes),
    )
    records.write_json(root / "result.json", {"share": found.share, "valid": valid})
    written = writing.write(root, finished, programs=made.settings.programs)
    files.remove(root / "running")
    return PrunedCheckpoint(
        model=made.inputs.model,
        variables=found.variables,
        masks=found.masks,
        units=found.units,
        slim_model=written.slim_model,
        slim=written.slim,
        share=found.share,
        valid=valid,
        report=written.report,
    )


def _read(root: pathlib.Path, made: DeliveryPlan) -> PrunedCheckpoint:
    """Returns what an earlier run wrote, in the dense shapes again."""
    model, result = made.inputs.model, records.read_json(root / "result.json")
    slim_model, slim = pretrained.load(root / "slim")
    kept = pretrained.describe(root / "slim")["kept"]
    groups = [g for g in model.groups if g.name in kept]
    units: Units = {g.name: jnp.isin(jnp.arange(g.size), jnp.array(kept[g.name]["kept"])) for g in groups}
    if units:
        variables = compact.embed(slim, groups, units, made.inputs.variables)
        masks = units_lib.expand(units, groups, variables.params)
    else:
        variables = slim
        flags = trees.select(slim.params, model.prunable)
        masks = jax.tree.map(lambda p, yes: (p != 0) if yes else jnp.ones((), bool), slim.params, flags)
    return PrunedCheckpoint(
        model=model,
        variables=variables,
        masks=masks,
        units=units,
        slim_model=slim_model,
        slim=slim,
        share=result["share"],
        valid=result["valid"],
        report=model_report_text.from_json(records.read_json(root / "report.json")),
    )


def _dense(root: pathlib.Path, made: DeliveryPlan, key: Any) -> tuple[Variables, TrainingCurve]:
    """Returns the fine-tuned dense variables and the curve; reads them if an earlier run wrote them."""
    folder, noted = root / "dense", root / "dense_curve.json"
    if not files.exists(noted):
        variables, curve = tuning.train_dense(made.inputs, made.settings.training, key, root / "running" / "dense")
        writing.hand_over(folder, made.inputs.model, variables, made.inputs)
        records.write_json(noted, curve._asdict())
    else:
        ours = pretrained.is_saved(folder)
        variables = pretrained.load(folder, None if ours else made.inputs.model)[1]
        curve = tuning.curve_of(records.read_json(noted))
    return variables, curve


def _task(made: DeliveryPlan, dense: Variables, key: Any) -> pruning.PruningTask:
    return pruning.PruningTask(
        inputs=made.inputs,
        dense=dense,
        removal=made.removal,
        method=made.method,
        training=made.settings.training,
        key=key,
    )


def _name(checkpoint: str) -> str:
    """Returns the name of a checkpoint; of a folder such as `out/dense`, which this function wrote, with its parent."""
    path = pathlib.Path(checkpoint)
    return f"{path.parent.name}/{path.name}" if path.name in ("dense", "model", "slim") else path.name or checkpoint


def _facts(made: DeliveryPlan, found: pruning.PrunedTask) -> tuple[tuple[str, str], ...]:
    goal, training = made.settings.goal, made.settings.training
    facts = [("checkpoint", made.checkpoint), ("goal", goal.in_words())]
    if goal.keep_score is not None or goal.name in ("parameters", "flops", "latency"):
        what = "units of each group" if goal.of_units else "weights"
        facts.append(("found", f"{found.share:.1%} of the {what} removed"))
    return (
        *facts,
        ("method", made.method),
        (
            "training",
            f"{training.dense_for(made.inputs)} steps of the dense model, then {found.steps} more of the pruned one, "
            f"which starts from it; {training.batch} examples each, learning rate "
            f"{training.rate_for(made.inputs.model):.2g}",
        ),
        ("seed", str(made.settings.seed)),
    )


__all__ = [
    "DeliveryPlan",
    "DeliverySettings",
    "PrunedCheckpoint",
    "check_apart",
    "claim",
    "plan",
    "prune_checkpoint",
    "run",
]
