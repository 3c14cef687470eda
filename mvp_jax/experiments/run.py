"""From a resolved config to files: data, pre-trained model, bank, targets, comparison, report, slim models.

Each stage writes what it made and finds it again, so that a run that was killed goes on where it stopped. The only
module besides `main` that knows about configs.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mvp_jax import models, train
from mvp_jax.core import patterns, prune
from mvp_jax.data import tasks
from mvp_jax.data.datasets import glue
from mvp_jax.experiments import few_shot_job, few_shot_variants, pools, pretrain_job, sparsity_job, stages, sweep
from mvp_jax.methods import few_shot, sparse, weak_members
from mvp_jax.methods.few_shot import ifp, metasoup, mvp, reptile
from mvp_jax.methods.sparse import isp
from mvp_jax.models import bert, clip, resnet
from mvp_jax.models.api import Model
from mvp_jax.parallel import mapping, processes
from mvp_jax.pretrained import preprocess
from mvp_jax.storage import event_files, files, records

_OF_TEXT = {*bert.PRESETS, *(n for n in clip.PRESETS if "text" in n)}


def run(config: ConfigDict, workdir: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The main job; returns the rows of the results table.

    Args:
        config: resolved, as from `configs/mvp.py`; with `multihost`, the same in all processes.
        workdir: a folder or the address of a bucket's (`storage.path`), where everything goes; a run that was killed
            there is continued. Several processes see the same one.

    Raises:
        ValueError: for anything wrong with config, data, checkpoint, bank or folder, before work starts.
    """
    join(config)
    with processes.guarded():
        work = files.path(workdir)
        if config.job == "sweep":
            return sweep.run(config, work, check=checked, job=_run)
        return _run(config, work, {})


def _run(config: ConfigDict, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    """One job; `made` says in which other folder a stage's work is, or is to be."""
    return _of(config, JOBS)(config, work, made)


def checked(config: ConfigDict) -> None:
    """Raises `ValueError` for what is wrong with a config, without any work."""
    _of(config, CHECKS)(config)


def _of(config: ConfigDict, table: Mapping[str, Any]) -> Any:
    if config.job not in table:
        raise ValueError(f"unknown job {config.job!r}; choose one of {sorted([*table, 'sweep'])}")
    return table[config.job]


def _trials(config: ConfigDict, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    plan = check_trials(config)
    processes.only_first("claim", lambda: claim(work, config))
    processes.together("claimed", lambda: claimed(work, config))
    if processes.first():
        tasks.save(plan.setting.targets, work / "targets.json")
    variables = stages.pretrain(plan, made.get("pretrain", work))
    rows = sparsity_job.run(plan, variables, work)
    processes.only_first("report", lambda: sparsity_job.report(plan, rows, work))
    return rows


def _meta_vote(config: ConfigDict, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    plan = check(config)
    processes.only_first("claim", lambda: claim(work, config))
    processes.together("claimed", lambda: claimed(work, config))
    if processes.first():
        tasks.save(plan.setting.bank_tasks, work / "bank_tasks.json")
        tasks.save(plan.setting.targets, work / "targets.json")
    variables = stages.pretrain(plan, made.get("pretrain", work))
    bank = stages.build_bank(plan, variables, made.get("bank", work))
    if processes.first():
        few_shot_job.study_overlap(plan, variables, bank, work)
    rows = few_shot_job.compare(plan, variables, bank, work)
    # The others wait, as JAX stops all processes soon after one has ended.
    processes.only_first("report", lambda: few_shot_job.report(plan, variables, rows, work))
    return rows


def _pretrain(config: ConfigDict, work: Path, made: Mapping[str, Path]) -> list[dict[str, Any]]:
    plan = check_pretraining(config)
    processes.only_first("claim", lambda: claim(work, config))
    processes.together("claimed", lambda: claimed(work, config))
    return pretrain_job.run(plan, work)


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


def _start(config: ConfigDict) -> dict[str, Any]:
    """The part of a plan that every job has, and the checks of what every config has."""
    chosen = pools.load(config)
    if not config.model.checkpoint and not isinstance(chosen.pools.source.x, np.ndarray):
        raise ValueError(
            f"the images of {config.data.name} do not fit into memory, where this job would pre-train; give "
            "model.checkpoint, as configs/pretrain.py makes it, or a smaller data.size"
        )
    train.optimizer(config.pretrain.optimizer)  # refuses an unknown name
    if config.get("tensorboard", False):
        event_files.check()
    if config.targets.seeds < 1:
        raise ValueError(f"targets.seeds must be >= 1, got {config.targets.seeds}")
    if config.mapping not in mapping.MAPPINGS or config.chunk < 1:
        raise ValueError(
            f"mapping must be one of {mapping.MAPPINGS} and chunk >= 1, got {config.mapping!r} and {config.chunk}"
        )
    return {
        "setting": chosen,
        "model": build_model(config, chosen.image_shape, config.model.classes or len(chosen.pretrain_classes)),
        "checkpoint": config.model.checkpoint,
        "pretraining": stages.Pretraining(
            **{
                **{k: v for k, v in config.pretrain.to_dict().items() if k != "classes"},
                "augment": pretrain_job.augmentation(config.pretrain.augment, config.data),
            }
        ),
        "seed": config.seed,
        "tensorboard": bool(config.get("tensorboard", False)),
    }


def check_trials(config: ConfigDict) -> sparsity_job.Plan:
    """Turns the config of a comparison at given sparsities into a plan, as `check` does."""
    start = _start(config)
    given, frozen = config.isp.to_dict(), ("head",) if config.templates else ()
    training = sparse.SparsityTraining(
        **{**config.train.to_dict(), "augment": pretrain_job.augmentation(config.train.augment, config.data)},
        undecayed=frozen,
    )
    base = isp.Settings(
        **{**given, "diversity": weak_members.Diversity(**given["diversity"])}, training=training,
        mapping=config.mapping, mesh=devices(config),
    )  # fmt: skip
    sizes, sparsities = config.tasks.to_dict(), tuple(config.sparsities)
    if sizes["shots"] is None:  # all that the scarcest class can give
        sizes["shots"] = int(np.unique(start["setting"].pools.target.y, return_counts=True)[1].min())
    if list(sparsities) != sorted(set(sparsities)) or not sparsities or not 0 < sparsities[0] <= sparsities[-1] < 1:
        raise ValueError(f"sparsities must rise within (0, 1), as (0.5, 0.9), got {sparsities}")
    plan = sparsity_job.Plan(
        **start,
        methods=tuple(config.methods),
        sparsities=sparsities,
        base=base,
        pattern=pattern(config, start["model"]),
        seeds=config.targets.seeds,
        sizes=stages.Sizes(**sizes, source_images=None),
        round_steps=config.round_steps,
        examples=config.examples,
        reference=config.reference,
        ours=config.ours,
        keep_rounds=config.keep_rounds,
        masks_alone=config.masks_alone,
        metrics=glue.task(config.data.name).metrics if config.data.name.startswith(pools.GLUE) else (),
        zero_shot=preprocess.zero_shot(config.model.checkpoint, start["setting"].class_names, config.templates)
        if config.templates
        else None,
    )
    known = sparsity_job.names(plan)
    methods = plan.methods or known
    for what, names in (("methods", methods), ("reference", (plan.reference,)), ("ours", (plan.ours,))):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise ValueError(f"{what} names {unknown}; there are {list(known)}")
    return dataclasses.replace(plan, methods=methods)


def pattern(config: ConfigDict, model: Model) -> patterns.Pattern:
    """What the config prunes together."""
    given = config.pattern
    if given.name == "weights":
        return patterns.Weights(given.allocation)
    if given.name == "channels":
        return patterns.Channels(allocation="global" if given.allocation == "global" else "uniform")
    if given.name == "units":
        return patterns.Units(tuple(g for g in model.groups if g.kind in given.kinds))
    raise ValueError(f"unknown pattern {given.name!r}; choose 'weights', 'channels' or 'units'")


def check(config: ConfigDict) -> stages.Plan:
    """Turns a config into a plan; everything that can be wrong with it is found here, before work starts."""
    start = _start(config)
    model, name = start["model"], config.model.name
    groups = tuple(g for g in model.groups if g.kind in config.prune.kinds)
    if not groups:
        raise ValueError(
            f"prune.kinds={tuple(config.prune.kinds)} names no group of {config.model.name!r}; "
            f"it has {sorted({g.kind for g in model.groups})}"
        )
    tuning = few_shot.Tuning(
        **{
            **config.tune.to_dict(),
            "augment": pretrain_job.augmentation(config.tune.augment, config.data),
            "steps": config.steps[-1],
        }
    )
    search = ifp.Settings(
        rounds=config.bank.rounds,
        steps_per_round=config.bank.steps_per_round,
        schedule=config.bank.schedule,
        score=config.bank.score,
        min_units=config.prune.min_units,
        tuning=dataclasses.replace(
            tuning,
            steps=config.bank.final_steps,
            learning_rate=config.bank.learning_rate,
            batch=config.bank.batch,
        ),
    )
    keep = prune.keep_counts({g.name: g.size for g in groups}, config.prune.ratio, min_units=config.prune.min_units)
    steps = tuple(config.steps)
    if list(steps) != sorted(set(steps)) or steps[0] != 0 or len(steps) < 2:
        raise ValueError(f"steps must rise from 0, as (0, 25, 50), got {steps}")
    if config.bank.tasks < 2:
        raise ValueError(f"a bank of {config.bank.tasks} tasks cannot vote; set bank.tasks to at least 2")
    if config.bank.similarity not in stages.SIMILARITIES:
        raise ValueError(f"unknown bank.similarity {config.bank.similarity!r}; choose one of {stages.SIMILARITIES}")
    universal = reptile.Settings(**config.reptile.to_dict(), tuning=search.tuning)
    table = few_shot_variants.variants(
        tuning,
        search=search,
        vote=mvp.Settings(**config.vote.to_dict()),
        weak=metasoup.Settings(**config.weak.to_dict()),
        batch_norm=name in resnet.PRESETS,
    )
    unknown = sorted(set(config.methods) - set(table))
    if unknown:
        raise ValueError(f"unknown methods {unknown}; choose among {sorted(table)}, or leave methods empty for all")
    if "reptile_iht" in (config.methods or table) and config.bank.tasks < universal.tasks:
        raise ValueError(
            f"reptile.tasks is {universal.tasks}, but the bank has {config.bank.tasks} tasks; lower reptile.tasks"
        )
    return stages.Plan(
        **start,
        groups=groups,
        keep=tuple(keep.items()),
        ratio=config.prune.ratio,
        steps=steps,
        variants={m: table[m] for m in config.methods or table},
        tuning=tuning,
        search=search,
        universal=universal,
        k=config.vote.k,
        seeds=config.targets.seeds,
        mapping=config.mapping,
        chunk=config.chunk,
        mesh=devices(config),
        similarity=config.bank.similarity,
        sizes=stages.Sizes(**config.tasks.to_dict()),
    )


def check_pretraining(config: ConfigDict) -> pretrain_job.Plan:
    """Turns the config of a pre-training into a plan, as `check` does."""
    chosen = pools.load(config)
    model = build_model(config, chosen.image_shape, config.model.classes or len(chosen.pretrain_classes))
    return pretrain_job.check(config, chosen, model, devices(config))


JOBS = {"mvp": _meta_vote, "trials": _trials, "pretrain": _pretrain}
CHECKS = {"mvp": check, "trials": check_trials, "pretrain": check_pretraining}


def claim(work: Path, config: ConfigDict) -> None:
    """Makes the folder this run's: writable, and of the same config if it is continued.

    Raises:
        ValueError: if it cannot be written, or holds a run of another config.
    """
    text = described(config)
    files.writable(work)
    path = work / "config.json"
    if files.exists(path) and path.read_text() != text:
        old, new = json.loads(path.read_text()), json.loads(text)
        differ = sorted(k for k in {**old, **new} if old.get(k) != new.get(k))
        raise ValueError(
            f"workdir {str(work)!r} holds a run of another config (they differ in {differ}); "
            "continue it with the same config, or choose an empty folder"
        )
    records.write_text(path, text)


def claimed(work: Path, config: ConfigDict) -> None:
    """Raises `ValueError` unless process 0's claim is seen here, and is of the same config."""
    path = work / "config.json"
    if not files.exists(path) or path.read_text() != described(config):
        raise ValueError(
            f"workdir {str(work)!r} does not hold what process 0 wrote there; "
            "give all processes the same config, and a folder that all of them see"
        )


def described(config: ConfigDict) -> str:
    """What is computed, as JSON; not where, so that a run may be continued by other processes."""
    found = config.copy_and_resolve_references()
    with found.unlocked():
        del found.multihost, found.distributed, found.devices
    return found.to_json_best_effort(indent=2, sort_keys=True)


def devices(config: ConfigDict) -> Mesh | None:
    """The devices of this process that share its members out; `None` for a single one.

    Raises:
        ValueError: for more devices than there are.
    """
    local = jax.local_devices()
    wanted = config.devices or (1 if local[0].platform == "cpu" else len(local))
    if not 1 <= wanted <= len(local):
        raise ValueError(f"devices is {config.devices}, but this process has {len(local)}; 0: all accelerators")
    return None if wanted == 1 else mapping.mesh(devices=local[:wanted])


def build_model(config: ConfigDict, image_shape: Sequence[int], classes: int) -> Model:
    """The dense model that the config names."""
    name, text_data = config.model.name, len(image_shape) == 1
    if name == pools.CHECKPOINT:
        options = config.model.options.to_dict()
        model = preprocess.model(config.model.checkpoint, classes, text=text_data, options=options)
        if len(model.input_shape) != len(image_shape) or (not text_data and model.input_shape != tuple(image_shape)):
            raise ValueError(f"{config.model.checkpoint} reads {model.input_shape}, the examples are {image_shape}")
        return model
    if name not in models.PRESETS:
        raise ValueError(f"unknown model {name!r}; choose {pools.CHECKPOINT!r} or one of {sorted(models.PRESETS)}")
    reads_text = name in _OF_TEXT
    if reads_text != text_data:
        fitting = sorted(n for n in models.PRESETS if (n in _OF_TEXT) != reads_text)
        raise ValueError(
            f"model {name!r} does not read examples of shape {tuple(image_shape)}; choose one of {fitting}"
        )
    sizes = {} if reads_text else {"image_size": image_shape[0], "channels": image_shape[2]}
    options = config.model.options.to_dict() | sizes | {"classes": classes}
    if name in resnet.PRESETS:
        # Under vmap over members XLA's CPU back end is slow with convolutions unless they are matrix products.
        slow = jax.default_backend() == "cpu" and config.mapping in ("vmap", "map")
        options["conv"] = config.model.conv if config.model.conv != "auto" else "im2col" if slow else "native"
    return models.create(name, **options)
