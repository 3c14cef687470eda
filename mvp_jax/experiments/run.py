"""From a resolved config to files: data, pre-trained model, bank, targets, comparison, report, slim models.

Each stage writes what it made and finds it again, so that a run that was killed goes on where it stopped.
"""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mvp_jax.data import tasks
from mvp_jax.experiments import (
    bank_build,
    dense_model,
    few_shot_job,
    few_shot_report,
    planning,
    pretrain_job,
    run_folder,
    sparsity_job,
    sparsity_report,
    sweep,
)
from mvp_jax.experiments.plans import FewShotPlan, SparsityPlan
from mvp_jax.experiments.pretrain_job import PretrainPlan
from mvp_jax.parallel import processes
from mvp_jax.storage import files


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The main job; returns the rows of the results table.

    Args:
        config: resolved, as from `configs/mvp.py`; with `multihost`, the same in all processes.
        workdir: a folder or the address of a bucket's , where everything goes; a run that was killed
            there is continued. Several processes see the same one.

    Raises:
        ValueError: for anything wrong with config, data, checkpoint, bank or folder, before work starts.
    """
    join(config)
    with processes.guarded():
        work = files.path(workdir)
        if config.job == "sweep":
            return sweep.run(config, work, check=planning.plan, job=_job)
        return _job(config, work, {})


def _job(config: ConfigDict, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One job; `made` says in which other folder a stage's work is, or is to be."""
    plan = planning.plan(config)
    processes.only_first("claim", lambda: run_folder.claim(work, config))
    processes.together("claimed", lambda: run_folder.claimed(work, config))
    return JOBS[config.job](plan, work, made)


def _trials(plan: SparsityPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    if processes.first():
        tasks.save(plan.setting.targets, work / "targets.json")
    variables = dense_model.dense_model(plan, made.get("pretrain", work))
    rows = sparsity_job.run(plan, variables, work)
    processes.only_first("report", lambda: sparsity_report.report(plan, rows, work))
    return rows


def _meta_vote(plan: FewShotPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    if processes.first():
        tasks.save(plan.setting.bank_tasks, work / "bank_tasks.json")
        tasks.save(plan.setting.targets, work / "targets.json")
    variables = dense_model.dense_model(plan, made.get("pretrain", work))
    bank = bank_build.build_bank(plan, variables, made.get("bank", work))
    if processes.first():
        few_shot_report.study_overlap(plan, variables, bank, work)
    rows = few_shot_job.compare(plan, variables, bank, work)
    # The others wait, as JAX stops all processes soon after one has ended.
    processes.only_first("report", lambda: few_shot_report.report(plan, variables, rows, work))
    return rows


def _pretrain(plan: PretrainPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    return pretrain_job.run(plan, work)


JOBS: dict[str, Callable[[Any, Path, Mapping[str, Path]], list[dict[str, Any]]]] = {
    "mvp": _meta_vote,
    "trials": _trials,
    "pretrain": _pretrain,
}
"""What runs a checked plan, by the config's `job`; `planning.PLANS` has the same names."""


def join(config: ConfigDict) -> None:
    """Makes this process one of several if the config says so; comes before anything that uses a device.

    Raises:
        ValueError: as `processes.initialize` does, or if the config names processes without `multihost`.
    """
    given = config.distributed
    if config.multihost:
        processes.initialize(given.coordinator, given.processes, given.process)
    elif given.coordinator or given.processes is not None or given.process is not None:
        raise ValueError("distributed.* is set, but multihost is False; add --config.multihost=True, or leave them out")
