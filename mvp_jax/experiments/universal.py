"""Learns one pruned model from all tasks of the bank, for the method `reptile_iht`, and keeps it on disk."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, pretrained
from mvp_jax.core.types import Variables
from mvp_jax.data import tasks
from mvp_jax.experiments.bank_build import Stacked
from mvp_jax.experiments.plans import FewShotPlan
from mvp_jax.experiments.setup import batch_of
from mvp_jax.methods import few_shot
from mvp_jax.methods.few_shot import reptile
from mvp_jax.models.api import replace_head
from mvp_jax.storage import records, resume


def learn(plan: FewShotPlan, variables: Variables, bank: Stacked, work: Path) -> few_shot.Start:
    """Returns the one pruned model that Reptile with iterative hard thresholding learns from the bank's tasks.

    Process 0 learns it once and writes it to `work/universal`; later calls read it from there.

    Args:
        plan: the job's plan; `plan.universal` says how the model is learned.
        variables: the variables of the pre-trained model.
        bank: the bank, whose tasks it is learned from.
        work: the folder of the run.

    Returns:
        Variables in the dense shapes, and the units to keep.
    """

    def make(folder: Path) -> None:
        settings = plan.universal
        # Only as many tasks as can be drawn need to be on the device.
        names = [e.task for e in bank.entries][: settings.outer_steps * settings.tasks]
        sources = batch_of(tasks.stack([bank.images(name) for name in names]).train)
        problem = dataclasses.replace(plan.problem(variables, jax.tree.map(lambda a: a[0], sources)), sources=sources)
        key = jax.random.key(plan.seed + 4)
        with records.progress(settings.outer_steps, "learning one pruned model for all tasks") as advance:
            start = reptile.learn(problem, settings, key, mapping=plan.mapping, after=lambda: advance(1))
        slim = compact.cut(start.variables, plan.groups, start.units, sizes=dict(plan.keep))
        pretrained.save(folder, plan.slim, slim, units=start.units)

    def read(folder: Path) -> few_shot.Start:
        kept = {
            name: jnp.asarray(np.isin(np.arange(group["of"]), group["kept"]))
            for name, group in pretrained.describe(folder)["kept"].items()
        }
        slim = jax.tree.map(jnp.asarray, pretrained.reload(folder)[1])
        like = replace_head(variables, plan.task_model)
        return few_shot.Start(compact.embed(slim, plan.groups, kept, like), kept)

    return resume.done_or_make(work / "universal", make, read, marker="model.json", first="universal")
