"""The data set that a config names, as the model reads it, cut into pools and tasks."""

import numpy as np
from ml_collections import ConfigDict

from mvp_jax import adapted, stages
from mvp_jax.data import images, sources, tasks, text, tokens
from mvp_jax.formats import files

CHECKPOINT = "checkpoint"
"""The model's name where `model.checkpoint` is a folder that says itself what it holds."""


def load(config: ConfigDict) -> stages.Setting:
    """Reads the data, cuts it into pools and draws the tasks."""
    data, source = config.data, _source(config)
    held_out = () if source.test is None else tasks.split(source.test, seed=config.seed, fractions=(0.5, 0.5))
    pools = stages.Pools(*tasks.split(source, seed=config.seed, fractions=data.fractions), *held_out)
    order = np.random.default_rng(config.seed).permutation(source.num_classes)
    seen = sorted(int(c) for c in order[: source.num_classes - data.unseen_classes])
    unseen = sorted(int(c) for c in order[source.num_classes - data.unseen_classes :])
    pretrain_classes = tuple(sorted(int(c) for c in order[: config.pretrain.classes]))
    bank_tasks: tuple[tasks.Task, ...] = ()
    if "bank" in config:
        bank_tasks = tasks.draw(seen, config.bank.tasks, config.tasks.classes_per_task, config.seed, prefix="source")
    targets = tasks.draw(
        source.num_classes,
        config.targets.count,
        config.tasks.classes_per_task,
        config.seed + 1,
        must_include=unseen,
        at_least=min(config.targets.unseen_at_least, len(unseen)),
        exclude=bank_tasks,
        prefix="target",
    )
    return stages.Setting(pools, source.image_shape, source.class_names, pretrain_classes, bank_tasks, targets)


def _source(config: ConfigDict) -> sources.Source:
    """The data set as the model reads it."""
    data, given = config.data, files.local(config.model.checkpoint) if config.model.name == CHECKPOINT else None
    source: sources.Source
    if data.name == "docstrings":
        if not given:
            return text.docstrings(seed=config.seed)
        # So many words that none is unknown before the checkpoint's own tokeniser sees them.
        return adapted.words(text.docstrings(seed=config.seed, vocabulary=10**6), tokens.tokenizer(given), data.length)
    if data.name == "digits":
        source = sources.digits(upsample=data.upsample)
    elif data.name == "npz":
        source, _ = sources.drop_duplicates(sources.npz(data.path))
        if source.test is None:
            raise ValueError(f"{data.path} has no test split; the report needs one")
    else:
        raise ValueError(f"unknown data {data.name!r}; choose 'digits', 'docstrings' or 'npz' (with data.path)")
    if given:
        return adapted.pictures(source, images.processor(given))
    if data.name == "npz" or data.mean is not None:
        source = sources.normalise(source, data.mean, data.std)
    return source
