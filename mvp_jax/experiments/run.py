"""Runs the job of a config: data, pre-trained model, bank, targets, comparison of methods, report, slim models.

Each part writes what it made and reads it if it is there, so that a killed run goes on where it stopped.
"""

import contextlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from mvp_jax.data import tasks
from mvp_jax.experiments import (
    bank_build,
    bank_job,
    dense_model,
    few_shot_job,
    few_shot_report,
    from_bank_job,
    outline,
    planning,
    pretrain_job,
    prune_job,
    run_folder,
    sparsity_job,
    sparsity_report,
    sweep,
)
from mvp_jax.experiments.plans import FewShotPlan, SparsityPlan
from mvp_jax.experiments.pretrain_job import PretrainPlan
from mvp_jax.parallel import processes
from mvp_jax.storage import disk_errors, files, records


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Runs the job of a config, or goes on with it, and returns the rows of the results table.

    Args:
        config: a resolved config, such as `get_config` of `configs/mvp.py` returns; with `multihost`, the same in all
            processes.
        workdir: the folder where everything is written, or the address of one in a bucket, such as `gs://bucket/run`; a
            run that was killed there is continued. Several processes have to be given the same one.

    Raises:
        ValueError: if anything is wrong with the config, the data, the checkpoint, the bank or the folder, or another
            run is at work in the folder. What can be known without training is checked first. Also if pre-training
            diverges, or if there is no room, no memory or no folder any more; then what is finished stays, and the same
            call goes on later.
    """
    join(config)
    with processes.guarded(), disk_errors.told(workdir):
        work = files.path(workdir)
        if config.job == "sweep":
            run_folder.check_sweep(work)
            return sweep.run(config, work, check=_check, job=_job)
        return _job(config, work, {})


def _check(config: ConfigDict, work: Path) -> None:
    """Raises `ValueError` if a point of a sweep cannot run, or its folder holds a run of other settings."""
    planning.plan(config)
    run_folder.check(work, config, longer=False)  # a finished point is not looked at again


def _job(config: ConfigDict, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Runs one job that is not a sweep.

    Args:
        config: the job's config.
        work: the folder of the run.
        made: `{"pretrain": folder, "bank": folder}`: the folders of other runs whose pre-training and bank are used, or
            made there; what is not named is in `work`.
    """
    plan = planning.plan(config)
    again = files.exists(work / "config.json")
    with contextlib.ExitStack() as lock:
        # Process 0 has the lock for all, and sees that no other run writes here before it clears away.
        processes.only_first("claim", lambda: lock.enter_context(run_folder.locked(work, config)))
        processes.together("claimed", lambda: run_folder.claimed(work, config))
        if processes.first() and made.get("pretrain", work) == work:  # points of a sweep that share it say it once
            records.say("\n".join(outline.lines(plan, config, work, again=again)))
        return JOBS[config.job](plan, work, made)


def _sparsity(plan: SparsityPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    if processes.first():
        _save_targets(plan, work)
    variables = dense_model.dense_model(plan, made.get("pretrain", work))
    rows = sparsity_job.run(plan, variables, work)
    processes.only_first("report", lambda: sparsity_report.report(plan, rows, work))
    return rows


def _save_targets(plan: FewShotPlan | SparsityPlan, work: Path) -> None:
    tasks.save(plan.setting.targets, work / "targets.json")
    if plan.setting.tuning:
        tasks.save(plan.setting.tuning, work / "rates" / "targets.json")


def _meta_vote(plan: FewShotPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    if processes.first():
        tasks.save(plan.setting.bank_tasks, work / "bank_tasks.json")
        _save_targets(plan, work)
    variables = dense_model.dense_model(plan, made.get("pretrain", work))
    bank = bank_build.build_bank(plan, variables, made.get("bank", work))
    if processes.first():
        few_shot_report.study_overlap(plan, variables, bank, work)
    rows = few_shot_job.compare(plan, variables, bank, work)
    # The other processes wait, as JAX stops all processes soon after one has ended.
    processes.only_first("report", lambda: few_shot_report.report(plan, variables, rows, work))
    return rows


def _pretrain(plan: PretrainPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    return pretrain_job.run(plan, work)


def _prune(plan: prune_job.PrunePlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    return prune_job.run(plan, work)


def _bank(plan: bank_job.BankPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    return bank_job.run(plan, work)


def _from_bank(plan: from_bank_job.FromBankPlan, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    return from_bank_job.run(plan, work)


JOBS: dict[str, Callable[[Any, Path, Mapping[str, Path]], list[dict[str, Any]]]] = {
    "mvp": _meta_vote,
    "sparsity": _sparsity,
    "pretrain": _pretrain,
    "prune": _prune,
    "bank": _bank,
    "from_bank": _from_bank,
}
"""The function that runs a checked plan, by the config's `job`; `planning.PLANS` has the same names."""


def join(config: ConfigDict) -> None:
    """Makes this process one of several if `config.multihost` is set; call it before anything that uses a device.

    Args:
        config: a resolved config; `config.distributed` says how the processes find each other.

    Raises:
        ValueError: if `distributed` is set without `multihost` or only in part, if no cluster is detected, or if
            devices are in use already.
    """
    given = config.distributed
    if config.multihost:
        processes.initialize(given.coordinator, given.processes, given.process)
    elif given.coordinator or given.processes is not None or given.process is not None:
        raise ValueError("distributed.* is set, but multihost is False; add --config.multihost=True, or leave them out")
