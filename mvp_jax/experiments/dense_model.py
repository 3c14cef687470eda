"""The pre-trained model of a job: read from a checkpoint, or pre-trained here as the job `pretrain` does it."""

from pathlib import Path

import jax
import jax.numpy as jnp

from mvp_jax import pretrained
from mvp_jax.core.types import Variables
from mvp_jax.data import tasks
from mvp_jax.experiments import pretrain_job
from mvp_jax.experiments.plans import JobPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.models.api import Model, replace_head
from mvp_jax.parallel import processes
from mvp_jax.storage import records, resume
from mvp_jax.train import evaluation

_STATISTICS = 512
"""The number of training images on which batch-norm statistics are re-estimated."""


def dense_model(plan: JobPlan, work: Path) -> Variables:
    """Returns the pre-trained variables: those of the plan's checkpoint, or of a model that is pre-trained here.

    Pre-training is done by process 0, writes the folder `work/pretrain`, and is not repeated if it is there. Its batch
    statistics are then re-estimated, once: sums are rounded otherwise on another machine or number of threads, and a
    bank belongs to variables of one fingerprint.

    Args:
        plan: the job's plan.
        work: the folder that holds, or will hold, the folder `pretrain`.

    Raises:
        ValueError: if the checkpoint does not fit the model of the config, or pre-training diverges.
    """
    if plan.checkpoint:
        if (Path(plan.checkpoint) / "model.json").is_file():
            return _adopted(plan.checkpoint, plan.model)
        # A folder's own head is for other classes than the tasks'; each task gets its head later.
        classes = None if Path(plan.checkpoint).is_file() else plan.model.num_classes
        return pretrained.load(plan.checkpoint, plan.model, classes=classes)[1]
    model, setting, folder = plan.model, plan.setting, work / "pretrain"
    processes.only_first("pre-training", lambda: pretrain_job.learn(plan.pretraining, folder))

    def make(where: Path) -> None:
        trained = jax.tree.map(jnp.asarray, pretrained.reload(folder / "model")[1])
        data = batch_of(tasks.subset(setting.pools.source, setting.pretrain_classes))
        pretrained.save(where, model, evaluation.reestimate(model, trained, data["x"][:_STATISTICS]))

    def read(where: Path) -> Variables:
        found: Variables = jax.tree.map(jnp.asarray, pretrained.reload(where)[1])
        return found

    variables = resume.done_or_make(folder / "reestimated", make, read, marker="model.json", first="statistics")
    if processes.first():
        held_out = batch_of(tasks.subset(setting.pools.valid, setting.pretrain_classes))
        accuracy = float(evaluation.evaluate(model, variables, held_out)["accuracy"])
        records.say(f"pre-trained on {len(setting.pretrain_classes)} classes: {accuracy:.1%} on held-out images")
    return variables


def _adopted(folder: str, model: Model) -> Variables:
    """Returns the variables that the job `pretrain` wrote, under a head for as many classes as the model has."""
    saved, variables = pretrained.reload(folder)
    one, other = (jax.eval_shape(m.with_classes(2).init, jax.random.key(0)) for m in (saved, model))
    if jax.tree.map(jnp.shape, one) != jax.tree.map(jnp.shape, other):
        raise ValueError(
            f"{folder} holds {saved.config}, the config asks for {model.config}; set model.name, model.options and the "
            "data's size as they were in pre-training"
        )
    return variables if saved.num_classes == model.num_classes else replace_head(variables, model)
