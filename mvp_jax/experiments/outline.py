"""The first lines of a run: the device, the data, the model, what will be done, and where it is written."""

import math
import os
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from mvp_jax.experiments.bank_job import BankPlan
from mvp_jax.experiments.from_bank_job import FromBankPlan
from mvp_jax.experiments.plans import FewShotPlan, SparsityPlan
from mvp_jax.experiments.pretrain_job import PretrainPlan
from mvp_jax.experiments.prune_job import PrunePlan
from mvp_jax.experiments.setup import Setting
from mvp_jax.models.api import Model


def lines(plan: Any, config: ConfigDict, work: Path, *, again: bool = False) -> list[str]:
    """Returns the lines that a run says before it works.

    How long it will take is not among them: it is not known before steps are timed, and then shown with the progress.

    Args:
        plan: the checked plan of any job; of one that has no `setting` and `model`, only device and folder are told.
        config: the config of which it was made.
        work: the folder of the run.
        again: whether a run in this folder is continued.
    """
    found = [f"device: {_device()}"]
    if isinstance(getattr(plan, "setting", None), Setting) and hasattr(plan, "model"):
        found += [f"data: {_data(config.data.name, plan.setting)}", f"model: {_model(config.model.name, plan)}"]
    if isinstance(plan, PrunePlan | BankPlan | FromBankPlan):
        found += plan.outline()
    work_of = _work(plan)
    if work_of:
        found.append(f"work: {work_of}")
    what = _written(plan)
    kept = "what is there is not done again, and " if again else ""
    found.append(
        f"results go to {work}{': ' + what if what else ''}; {kept}the time left is shown while each part runs"
    )
    return found


def parameters(model: Model) -> int:
    """Returns the number of parameters of a model; nothing is computed.

    Args:
        model: any model.
    """
    shapes = jax.eval_shape(model.init, jax.random.key(0)).params
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))


def _device() -> str:
    devices = jax.local_devices()
    kind = devices[0].device_kind
    text = f"CPU, {os.cpu_count()} cores" if devices[0].platform == "cpu" else f"{len(devices)} x {kind}"
    return text + (f"; process {jax.process_index()} of {jax.process_count()}" if jax.process_count() > 1 else "")


def _data(name: str, setting: Setting) -> str:
    source, target, valid, test = (f"{len(pool.y):,}" for pool in setting.pools)
    uses = [f"{source} for pre-training" + (" and the bank" if setting.bank_tasks else "")]
    uses += [f"{target} for the targets"] if setting.targets else []
    uses += [f"{valid} to validate", f"{test} to test"]
    shape = " x ".join(map(str, setting.image_shape)) + (" tokens" if len(setting.image_shape) == 1 else "")
    return f"{name}, {_count(len(setting.class_names), 'class', 'classes')}, examples of {shape}: {', '.join(uses)}"


def _model(name: str, plan: Any) -> str:
    text, hidden = f"{name}, {_count(parameters(plan.model), 'parameter')}", len(plan.setting.unseen)
    if getattr(plan, "checkpoint", ""):
        kept = f"; the bank has no task with {_count(hidden, 'class', 'classes')}" if plan.setting.bank_tasks else ""
        return f"{text}, with the weights of {plan.checkpoint}{kept if hidden else ''}"
    kept = f"; {hidden} are unseen" + (" until the targets" if plan.setting.targets else "")
    seen = _count(len(plan.setting.pretrain_classes), "class", "classes")
    return f"{text}, pre-trained here on {seen}{kept if hidden else ''}"


def _work(plan: Any) -> str:
    if isinstance(plan, PretrainPlan):
        return f"{plan.settings.steps:,} steps of pre-training ({plan.settings.method})"
    if not isinstance(plan, FewShotPlan | SparsityPlan):
        return ""
    start = "" if plan.checkpoint else f"{plan.pretraining.settings.steps:,} steps of pre-training; "
    targets = f"{_count(len(plan.setting.targets), 'target')} with {_count(plan.seeds, 'seed')} each"
    if plan.rates.factors:
        where = _count(len(plan.setting.tuning), "other target")
        if plan.setting.tunes_on_targets:
            where = "the same with other seeds"
        targets += f" (each method at the best of {len(plan.rates.factors)} learning rates, chosen on {where})"
    if isinstance(plan, FewShotPlan):
        return (
            f"{start}a bank of {_count(len(plan.setting.bank_tasks), 'task')}; {_count(len(plan.lines), 'method')} on "
            f"{targets}, {plan.ratio:.1%} of the units removed, up to {_count(plan.steps[-1], 'step')} of fine-tuning"
        )
    shares = ", ".join(f"{s:.0%}" for s in plan.sparsities)
    return f"{start}{_count(len(plan.methods), 'method')} on {targets}, {shares} of the weights removed"


def _written(plan: Any) -> str:
    if isinstance(plan, PretrainPlan):
        return "the network (model/), results.csv, a picture"
    if isinstance(plan, FewShotPlan):
        return "tables (results.md, results.csv), pictures, slim models (slim/), the bank (bank/)"
    if isinstance(plan, SparsityPlan):
        return "tables (results.md, results.csv), pictures, masks (masks/)"
    if isinstance(plan, BankPlan):
        return "the tasks and their accuracy (tasks.json), and the bank if it has no folder of its own (bank/)"
    if isinstance(plan, FromBankPlan):
        return "the pruned model (model/), a smaller one (slim/), report.html, results.csv"
    if isinstance(plan, PrunePlan):
        return "the pruned model (model/, for transformers), a smaller one (slim/), the dense one (dense/), report.html"
    return ""


def _count(number: int, what: str, many: str = "") -> str:
    return f"{number:,} {what if number == 1 else many or f'{what}s'}"


__all__ = ["lines", "parameters"]
