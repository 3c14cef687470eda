"""One pruned model learned from all tasks of the bank, as a voter beside them."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import compact, pretrained
from mvp_jax.core.types import Array, Variables
from mvp_jax.data import tasks
from mvp_jax.experiments import stages
from mvp_jax.methods.few_shot import reptile
from mvp_jax.models.api import replace_head
from mvp_jax.parallel import processes
from mvp_jax.storage import files, records


class Learned(NamedTuple):
    """One pruned model learned from all tasks, in the form of a bank of one entry."""

    slim: Variables
    units: dict[str, Array]
    saliency: dict[str, Array]


def learn(plan: stages.Plan, variables: Variables, bank: stages.Stacked, work: Path) -> Learned:
    """Reptile with iterative hard thresholding on the bank's tasks; learned once, by process 0, and kept on file."""
    folder = work / "universal"

    def make() -> None:
        if files.complete(folder, "model.json"):
            return
        settings = plan.universal
        # No more tasks than can be drawn need to be on the device.
        names = [e.task for e in bank.entries][: settings.outer_steps * settings.tasks]
        stacked = tasks.stack([bank.images(name) for name in names])
        body = replace_head(variables, plan.task_model)
        with records.progress(settings.outer_steps, "learning one pruned model for all tasks") as advance:
            start = reptile.learn(
                plan.task_model, body, stages.batch_of(stacked.train), dict(plan.keep), settings,
                jax.random.key(plan.seed + 4), groups=plan.groups, mapping=plan.mapping,
                after=lambda: advance(1),
            )  # fmt: skip
        slim = compact.cut(start.variables, plan.groups, start.units, sizes=dict(plan.keep))
        pretrained.save(folder, plan.slim, slim, units=start.units)

    processes.only_first("universal", make)
    kept = {
        name: np.isin(np.arange(group["of"]), group["kept"])
        for name, group in pretrained.describe(folder)["kept"].items()
    }
    units = jax.tree.map(lambda m: jnp.asarray(m)[None], kept)
    slim = jax.tree.map(lambda leaf: leaf[None], pretrained.reload(folder)[1])
    return Learned(slim, units, jax.tree.map(lambda m: m.astype(jnp.float32), units))
