"""Makes a checked plan of a resolved config: what can be known to be wrong without any work is found here."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mvp_jax import models
from mvp_jax.core import patterns, prune
from mvp_jax.data.datasets import glue
from mvp_jax.experiments import bank_build, bank_job, checks, from_bank_job, pools, pretrain_job, prune_job, rates
from mvp_jax.experiments.plans import FewShotPlan, SparsityPlan
from mvp_jax.experiments.pretrain_job import PretrainPlan
from mvp_jax.experiments.setup import Setting, Sizes
from mvp_jax.methods import few_shot, registry, sparse, weak_members
from mvp_jax.methods.few_shot import ifp, metasoup, mvp, reptile, select
from mvp_jax.methods.sparse import gradual_soup, isp
from mvp_jax.models import bert, clip, resnet
from mvp_jax.models.api import Model
from mvp_jax.parallel import mapping
from mvp_jax.pretrained import loading, zero_shot
from mvp_jax.storage import event_files
from mvp_jax.train import pretraining

_OF_TEXT = {*bert.PRESETS, *(n for n in clip.PRESETS if "text" in n)}


def _start(config: ConfigDict) -> dict[str, Any]:
    """Returns the fields of `JobPlan`, by name, after the checks of what the configs of all jobs have in common."""
    chosen = pools.load(config)
    if not config.model.checkpoint and not isinstance(chosen.pools.source.x, np.ndarray):
        raise ValueError(
            f"the images of {config.data.name} do not fit into memory, where this job would pre-train; give "
            "model.checkpoint, as configs/pretrain.py makes it, or a smaller data.size"
        )
    if config.get("tensorboard", False):
        event_files.check()
    if "targets" in config and config.targets.seeds < 1:
        raise ValueError(f"targets.seeds must be >= 1, got {config.targets.seeds}")
    if config.mapping not in mapping.MAPPINGS or config.chunk < 1:
        raise ValueError(
            f"mapping must be one of {mapping.MAPPINGS} and chunk >= 1, got {config.mapping!r} and {config.chunk}"
        )
    model = build_model(config, chosen.image_shape, config.model.classes or len(chosen.pretrain_classes))
    if not config.model.checkpoint:
        checks.pretraining(chosen, config.pretrain.batch)
    return {
        "setting": chosen,
        "model": model,
        "checkpoint": config.model.checkpoint,
        "pretraining": _pretraining(config, chosen, model),
        "seed": config.seed,
        "tensorboard": bool(config.get("tensorboard", False)),
        "rates": rates.read(config),
    }


def _pretraining(config: ConfigDict, chosen: Setting, model: Model) -> PretrainPlan:
    """Returns how a job without a checkpoint pre-trains: with labels, at a learning rate that falls as a cosine."""
    given = {name: value for name, value in config.pretrain.to_dict().items() if name != "classes"}
    given["augment"] = pretrain_job.augmentation(config.pretrain.augment, config.data)
    settings = pretraining.Settings(method="supervised", **given)
    return PretrainPlan(
        setting=chosen, model=model, settings=settings, seed=config.seed, tensorboard=bool(config.get("tensorboard"))
    )


def sparsity_plan(config: ConfigDict) -> SparsityPlan:
    """Returns the plan of the job `sparsity`: a comparison of methods at given sparsities.

    Args:
        config: a resolved config, such as `configs/compare.py` makes; its data set is read.

    Raises:
        ValueError: for anything that is wrong with the config.
    """
    start = _start(config)
    given, frozen = config.isp.to_dict(), ("head",) if config.templates else ()
    training = sparse.SparsityTraining(
        **{**config.train.to_dict(), "augment": pretrain_job.augmentation(config.train.augment, config.data)},
        undecayed=frozen,
    )
    base = isp.Settings(
        **{**given, "diversity": weak_members.Diversity(**given["diversity"])},
        training=training,
        mapping=config.mapping,
        mesh=devices(config),
    )
    sizes, sparsities = config.tasks.to_dict(), tuple(config.sparsities)
    if sizes["shots"] is None:  # all that the scarcest class can give
        sizes["shots"] = int(np.unique(start["setting"].pools.target.y, return_counts=True)[1].min())
    if list(sparsities) != sorted(set(sparsities)) or not sparsities or not 0 < sparsities[0] <= sparsities[-1] < 1:
        raise ValueError(f"sparsities must rise within (0, 1), as (0.5, 0.9), got {sparsities}")
    plan = SparsityPlan(
        **start,
        methods=tuple(config.methods),
        sparsities=sparsities,
        base=base,
        pattern=pattern(config, start["model"]),
        seeds=config.targets.seeds,
        sizes=Sizes(**sizes, source_images=None),
        round_steps=config.round_steps,
        examples=config.examples,
        serial_steps=config.gradual.steps,
        events=config.gradual.events,
        averaging=gradual_soup.Settings(
            rank=config.gradual.rank,
            outer_momentum=config.gradual.outer_momentum,
            souped_from=config.gradual.souped_from,
        ),
        reference=config.reference,
        ours=config.ours,
        keep_rounds=config.keep_rounds,
        masks_alone=config.masks_alone,
        metrics=glue.task(config.data.name).metrics if config.data.name.startswith(pools.GLUE) else (),
        zero_shot=zero_shot.head(config.model.checkpoint, start["setting"].class_names, config.templates)
        if config.templates
        else None,
    )
    checks.examples(plan.setting, plan.sizes)
    lines = registry.chosen("sparse", plan.methods, plan.task_model)
    for what, name in (("reference", plan.reference), ("ours", plan.ours)):
        try:
            registry.line(name, "sparse")
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from error
    return dataclasses.replace(plan, methods=tuple(lines))


def pattern(config: ConfigDict, model: Model) -> patterns.Pattern:
    """Returns the pattern of pruning: whether single weights, channels or whole units are removed.

    Args:
        config: a resolved config; its fields `pattern` are read.
        model: the model, whose groups have the units.

    Raises:
        ValueError: for an unknown `pattern.name`.
    """
    given = config.pattern
    if given.name == "weights":
        return patterns.Weights(given.allocation)
    if given.name == "channels":
        return patterns.Channels(allocation="global" if given.allocation == "global" else "uniform")
    if given.name == "units":
        return patterns.WholeUnits(tuple(g for g in model.groups if g.kind in given.kinds))
    raise ValueError(f"unknown pattern {given.name!r}; choose 'weights', 'channels' or 'units'")


def few_shot_plan(config: ConfigDict) -> FewShotPlan:
    """Returns the plan of the job `mvp`: pruning for few-shot tasks from a bank.

    Args:
        config: a resolved config, such as `configs/mvp.py` makes; its data set is read.

    Raises:
        ValueError: for anything that is wrong with the config.
    """
    start, steps = _start(config), tuple(config.steps)
    model = start["model"]
    groups = tuple(g for g in model.groups if g.kind in config.prune.kinds)
    if not groups:
        raise ValueError(
            f"prune.kinds={tuple(config.prune.kinds)} names no group of {config.model.name!r}; "
            f"it has {sorted({g.kind for g in model.groups})}"
        )
    if list(steps) != sorted(set(steps)) or not steps or steps[0] != 0 or len(steps) < 2:
        raise ValueError(f"steps must rise from 0, as (0, 25, 50), got {steps}")
    if config.bank.tasks < 2:
        raise ValueError(f"a bank of {config.bank.tasks} tasks cannot vote; set bank.tasks to at least 2")
    if config.bank.similarity not in bank_build.SIMILARITIES:
        raise ValueError(f"unknown bank.similarity {config.bank.similarity!r}; choose one of {bank_build.SIMILARITIES}")
    defaults = _few_shot_defaults(config, steps)
    lines = registry.chosen("few_shot", config.methods, model)
    deliver = config.deliver or next(iter([n for n in ("mvp", *lines) if n in lines and n != "dense"]), "dense")
    if deliver not in lines:
        raise ValueError(f"deliver is {deliver!r}, which is not among the methods of this run: {list(lines)}")
    learners = [name for name, one in lines.items() if "universal" in one.needs | one.uses]
    if learners and config.bank.tasks < defaults.universal.tasks:
        raise ValueError(
            f"reptile.tasks is {defaults.universal.tasks}, but the bank has {config.bank.tasks} tasks; lower "
            f"reptile.tasks, or leave out {learners}, which have a model that is learned from so many at once"
        )
    checks.examples(start["setting"], Sizes(**config.tasks.to_dict()))
    keep = prune.keep_counts({g.name: g.size for g in groups}, config.prune.ratio, min_units=config.prune.min_units)
    return FewShotPlan(
        **start,
        groups=groups,
        keep=tuple(keep.items()),
        ratio=config.prune.ratio,
        steps=steps,
        lines=lines,
        deliver=deliver,
        defaults=defaults,
        search=defaults.search,
        universal=defaults.universal,
        k=config.vote.k,
        seeds=config.targets.seeds if "targets" in config else 1,
        mapping=config.mapping,
        chunk=config.chunk,
        mesh=devices(config),
        similarity=config.bank.similarity,
        sizes=Sizes(**config.tasks.to_dict()),
    )


def _few_shot_defaults(config: ConfigDict, steps: tuple[int, ...]) -> few_shot.FewShotDefaults:
    """Returns what the few-shot methods make their settings of; the search is that by which the bank is made."""
    augment = pretrain_job.augmentation(config.tune.augment, config.data)
    tuning = few_shot.Tuning(**{**config.tune.to_dict(), "augment": augment, "steps": steps[-1], "looks": steps})
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
            looks=(),
        ),
    )
    return few_shot.FewShotDefaults(
        tuning=tuning,
        search=search,
        vote=mvp.Settings(**config.vote.to_dict()),
        selection=select.Settings(**config.select.to_dict()),
        weak=metasoup.Settings(**config.weak.to_dict()),
        universal=reptile.Settings(**config.reptile.to_dict(), tuning=search.tuning),
    )


def pretrain_plan(config: ConfigDict) -> PretrainPlan:
    """Returns the plan of the job `pretrain`: a pre-training.

    Args:
        config: a resolved config, such as `configs/pretrain.py` makes; its data set is read.

    Raises:
        ValueError: for anything that is wrong with the config.
    """
    chosen = pools.load(config)
    model = build_model(config, chosen.image_shape, config.model.classes or len(chosen.pretrain_classes))
    checks.pretraining(chosen, config.pretrain.batch, ("source", "valid", "test"))
    return pretrain_job.check(config, chosen, model, devices(config))


def bank_plan(config: ConfigDict) -> bank_job.BankPlan:
    """Returns the plan of the job `bank`: building a bank, or adding tasks to one.

    Args:
        config: a resolved config, such as `configs/bank.py` makes; its data or tasks are read.

    Raises:
        ValueError: for anything that is wrong with the config.
    """
    return bank_job.plan(config, few_shot_plan)


PLANS: dict[str, Callable[[ConfigDict], Any]] = {
    "mvp": few_shot_plan,
    "sparsity": sparsity_plan,
    "pretrain": pretrain_plan,
    "prune": prune_job.plan,
    "bank": bank_plan,
    "from_bank": from_bank_job.plan,
}
"""The function that makes the checked plan of a config, by the config's `job`."""


def plan(config: ConfigDict) -> Any:
    """Returns the plan of a config's job.

    Args:
        config: a resolved config of any job but a sweep.

    Raises:
        ValueError: for an unknown job, or anything that is wrong with the config.
    """
    if config.job not in PLANS:
        raise ValueError(f"unknown job {config.job!r}; choose one of {sorted([*PLANS, 'sweep'])}")
    return PLANS[config.job](config)


def devices(config: ConfigDict) -> Mesh | None:
    """Returns the mesh of this process's devices over which members are shared out; `None`: one device.

    Args:
        config: a resolved config; `config.devices` is the number of devices, 0: all accelerators, or one CPU.

    Raises:
        ValueError: for more devices than there are.
    """
    local = jax.local_devices()
    wanted = config.devices or (1 if local[0].platform == "cpu" else len(local))
    if not 1 <= wanted <= len(local):
        raise ValueError(f"devices is {config.devices}, but this process has {len(local)}; 0: all accelerators")
    return None if wanted == 1 else mapping.mesh(devices=local[:wanted])


def build_model(config: ConfigDict, image_shape: Sequence[int], classes: int) -> Model:
    """Returns the dense model that the config names.

    Args:
        config: a resolved config; its fields `model` and `mapping` are read.
        image_shape: the shape of one example: `(height, width, channels)` of images, `(length,)` of texts.
        classes: the number of classes of the model's head.

    Raises:
        ValueError: for an unknown model, or one that does not read examples of this shape.
    """
    name, text_data = config.model.name, len(image_shape) == 1
    if name == pools.CHECKPOINT:
        options = config.model.options.to_dict()
        model = loading.from_config(config.model.checkpoint, classes, text=text_data, options=options)
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
