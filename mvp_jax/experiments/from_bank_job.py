"""The job `from_bank`: a bank and a person's new task in; a pruned model and a report out, with no study around it."""

import dataclasses
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict, config_dict

from mvp_jax.data.datasets.labelled import LabelledData
from mvp_jax.delivery import bank_pruning
from mvp_jax.delivery.bank_pruning import HELD_OUT, BankPruned, BankPruningSettings
from mvp_jax.experiments import own_data
from mvp_jax.parallel import processes
from mvp_jax.storage import files, records


def config(bank: str, target: str) -> ConfigDict:
    """Returns the config of the job.

    Args:
        bank: the bank's folder or address.
        target: the new task's data, as `labelled.read` takes it.
    """
    usual, made = BankPruningSettings(), ConfigDict()
    made.job = "from_bank"
    made.seed = 0
    made.checkpoint = ""
    made.method = usual.method
    made.metric = usual.metric

    made.bank = ConfigDict()
    made.bank.folder = bank
    made.bank.similarity = usual.similarity

    own_data.settings(made, target, HELD_OUT)

    made.vote = ConfigDict()
    made.vote.k = usual.k

    made.finetune = ConfigDict()
    made.finetune.steps = usual.steps
    made.finetune.batch = usual.batch
    made.finetune.learning_rate = config_dict.placeholder(float)
    return made


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FromBankPlan:
    """The plan of the job `from_bank`.

    Attributes:
        bank: the bank's folder or address.
        data: the new task's examples.
        settings: how the bank's model is pruned.
        checkpoint: the folder of the pre-trained model, for a bank that does not hold it.
        entries: the number of the bank's entries.
    """

    bank: str
    data: LabelledData
    settings: BankPruningSettings
    checkpoint: str
    entries: int

    def outline(self) -> list[str]:
        """Returns what will be done with which data and bank, a line each."""
        return [
            f"data: {self.data.outline()}",
            f"bank: {self.bank}, {self.entries:,} entries, of which the nearest {min(self.settings.k, self.entries)} "
            "vote",
            f"work: {self.settings.method}, {self.settings.steps} steps of the pruned model and of the dense one",
            *(f"note: {note}" for note in self.data.notes),
        ]


def plan(config: ConfigDict) -> FromBankPlan:
    """Returns the plan of the job; the bank and the data are read and checked.

    Args:
        config: a resolved config, such as `configs/mvp.py:bank=DIR,target=FOLDER` makes.

    Raises:
        ValueError: for anything that is wrong with the config, the bank or the data.
    """
    given, tune = config.data, config.finetune
    settings = BankPruningSettings(
        method=config.method,
        k=config.vote.k,
        similarity=config.bank.similarity,
        steps=tune.steps,
        batch=tune.batch,
        learning_rate=tune.learning_rate,
        length=given.length,
        size=given.size,
        metric=config.metric,
        seed=config.seed,
    )
    data = own_data.read(config)
    with bank_pruning.plan(config.bank.folder, data, settings, checkpoint=config.checkpoint) as made:
        entries = len(made.entries)
    return FromBankPlan(
        bank=config.bank.folder, data=data, settings=settings, checkpoint=config.checkpoint, entries=entries
    )


def run(plan: FromBankPlan, work: Path) -> list[dict[str, Any]]:
    """Prunes for the new task, writes the folder, and returns a row for the dense and the pruned model on each part.

    Args:
        plan: the job's plan.
        work: the folder of the run.
    """
    found = processes.only_first("from bank", lambda: _report(plan, work))
    return found if found is not None else records.read_csv(work / "results.csv")


def _report(plan: FromBankPlan, work: Path) -> list[dict[str, Any]]:
    if files.exists(work / "results.csv"):  # it is written last
        return records.read_csv(work / "results.csv")
    found = bank_pruning.prune_from_bank(
        plan.bank, plan.data, out=work, settings=plan.settings, checkpoint=plan.checkpoint
    )
    records.write_csv(rows := _rows(plan, found), work / "results.csv")
    records.say(
        f"{plan.settings.method} took {found.seconds:.1f} s; nearest task {found.neighbours[0][0]}; wrote "
        f"{work / 'report.html'}, {work / 'model'} and {work / 'slim'} (smaller)"
    )
    return rows


def _rows(plan: FromBankPlan, found: BankPruned) -> list[dict[str, Any]]:
    both = {"target": plan.data.name, "seed": plan.settings.seed, "steps": plan.settings.steps}
    dense, pruned = {**both, "method": "dense", "ratio": 0.0}, {**both, "method": plan.settings.method}
    return own_data.rows(found.written.report, found.valid, dense, {**pruned, "ratio": found.ratio})
