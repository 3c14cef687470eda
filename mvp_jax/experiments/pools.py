"""Reads the data set that a config names, in the form that the model reads, and cuts it into pools and tasks."""

from collections.abc import Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mvp_jax.data import groups, sources, tasks
from mvp_jax.data.checkpoint_inputs import images, tokens
from mvp_jax.data.datasets import catalog, folders, glue, glyphs, joined, prepared, text
from mvp_jax.data.loading import lazy
from mvp_jax.experiments import checks, rates, setup
from mvp_jax.pretrained import preprocess, tensor_files

CHECKPOINT = "checkpoint"
"""The value of `model.name` for which the model is built as the folder `model.checkpoint` describes it."""

GLUE = "glue/"
"""The prefix of `data.name` for tasks of GLUE, as in `glue/rte`."""

TASK_KINDS = ("subsets", "superclasses", "whole")
"""The values of `data.tasks`: the classes of a task are drawn at random (within one data set, if several are joined),
drawn within a superclass, or are all that there are."""


def load(config: ConfigDict) -> setup.Setting:
    """Reads the data set that a config names, cuts it into pools, and draws the tasks.

    Args:
        config: a job's resolved config; its fields `data`, `tasks`, `bank`, `targets`, `rates`, `pretrain`, `model` and
            `seed` are read.

    Returns:
        The pools, the shape of an example, the names of the classes, and the tasks for the bank and the targets.

    Raises:
        ValueError: for an unknown data set or way of making tasks, files that cannot be read, fractions that do not fit
            the splits, numbers of classes that do not fit together, or more tasks than can be drawn.
    """
    data = config.data
    how = data.get("tasks") or TASK_KINDS[0]
    if how not in TASK_KINDS:
        raise ValueError(f"unknown data.tasks {how!r}; choose one of {list(TASK_KINDS)}")
    source, normalised = _source(config)
    shares = 4 if source.test is None else 2
    if len(data.fractions) != shares:
        need = "a test split, which gives the valid and test pools: give two, (source, target)"
        if source.test is None:
            need = "no test split: give four, (source, target, valid, test)"
        raise ValueError(f"data.fractions is {tuple(data.fractions)}, but {source.name} has {need}")
    held_out = () if source.test is None else tasks.split(source.test, seed=config.seed, fractions=(0.5, 0.5))
    cut = checks.named(
        f"data.fractions={tuple(data.fractions)}",
        lambda: tasks.split(source, seed=config.seed, fractions=data.fractions),
    )
    pools = setup.Pools(*cut, *held_out)
    checks.pools(pools)
    order = np.random.default_rng(config.seed).permutation(source.num_classes).tolist()
    home, away = _sides(source, data.get("targets"))
    order = [c for c in order if c in home]
    # All classes of a checkpoint's one target, or those of other data sets, need none set apart.
    hidden = 0 if home != away or (how == "whole" and config.model.checkpoint) else data.unseen_classes
    checks.classes(config, source.name, len(order), hidden, apart=home != away)
    seen, unseen = sorted(order[: len(order) - hidden]), sorted(order[len(order) - hidden :])
    pretrain_classes = tuple(sorted(order[: config.pretrain.classes]))
    bank_tasks, targets, tuning = _tasks(config, source, seen, away, unseen)
    found = setup.Setting(
        pools,
        source.image_shape,
        source.class_names,
        pretrain_classes,
        bank_tasks,
        targets,
        tuple(unseen) if home == away else tuple(away),
        normalised,
        source.coarse,
        tuning,
    )
    checks.unseen(found, pretrained_here=not config.model.checkpoint)
    return found


def _tasks(
    config: ConfigDict, source: sources.Source, seen: list[int], away: list[int], unseen: list[int]
) -> tuple[tuple[tasks.Task, ...], ...]:
    """Returns the tasks for the bank, of seen classes, the targets, and those on which rates are chosen."""
    how = config.data.get("tasks") or TASK_KINDS[0]
    search = rates.read(config)
    if how == "whole":
        whole = _whole(config, source)
        return (), whole, _again(whole) if search.factors else ()
    apart = groups.by_coarse(source) if how == "superclasses" or "+" in config.data.name else None
    bank_tasks: tuple[tasks.Task, ...] = ()
    targets: tuple[tasks.Task, ...] = ()
    tuning: tuple[tasks.Task, ...] = ()
    if "bank" in config:
        count = config.bank.tasks
        bank_tasks = checks.named(
            f"bank.tasks={count}", lambda: _draw(apart, seen, count, config, config.seed, prefix="source")
        )
    if "targets" in config:
        limits: dict[str, Any] = {"must_include": unseen, "exclude": bank_tasks, "prefix": "target"}
        limits["at_least"] = min(config.targets.unseen_at_least, len(unseen))
        number = config.targets.count
        targets = checks.named(
            f"targets.count={number}", lambda: _draw(apart, away, number, config, config.seed + 1, **limits)
        )
        if search.factors and not search.targets:
            tuning = _again(targets)
        elif search.factors:  # last, so that what is reported is the same with and without
            limits |= {"exclude": (*bank_tasks, *targets), "prefix": "rates"}
            more = search.targets
            tuning = checks.named(
                f"rates.targets={more} (0 takes the reported ones with other seeds)",
                lambda: _draw(apart, away, more, config, config.seed + 2, **limits),
            )
    return bank_tasks, targets, tuning


def _again(targets: tuple[tasks.Task, ...]) -> tuple[tasks.Task, ...]:
    """Returns targets under other names, for other examples of them by other seeds."""
    return tuple(tasks.Task(name=f"rates-{i:04d}", classes=t.classes) for i, t in enumerate(targets))


def _draw(
    apart: Iterable[Iterable[int]] | None,
    allowed: Iterable[int],
    count: int,
    config: ConfigDict,
    seed: int,
    **limits: Any,
) -> tuple[tasks.Task, ...]:
    size = config.tasks.classes_per_task
    if apart is None:
        return tasks.draw(allowed, count, size, seed, **limits)
    return groups.draw_within([set(group) & set(allowed) for group in apart], count, size, seed, **limits)


def _sides(source: sources.Source, named: str | None) -> tuple[list[int], list[int]]:
    """Returns the classes for pre-training and the bank, and those for the targets."""
    every = list(range(source.num_classes))
    if not named:
        return every, every
    chosen, known = set(named.split("+")), source.coarse_names
    if not chosen < set(known):
        what = f"here {list(known)}" if known else f"but {source.name} has neither"
        raise ValueError(
            f"data.targets is {named!r}; it names some of the superclasses, or of the data sets that data.name joins, "
            f"{what}; at least one is left for the bank"
        )
    away = [c for c in every if source.coarse_names[source.coarse[c]] in chosen]
    return sorted(set(every) - set(away)), away


def _whole(config: ConfigDict, source: sources.Source) -> tuple[tasks.Task, ...]:
    if "bank" in config:
        raise ValueError("data.tasks='whole' makes one target of all classes, and no bank; give this job subsets")
    if "tasks" in config and config.tasks.classes_per_task != source.num_classes:
        raise ValueError(
            f"tasks.classes_per_task is {config.tasks.classes_per_task}, but {source.name} as a whole has "
            f"{source.num_classes} classes; set it to {source.num_classes}"
        )
    return (groups.whole(source),)


def _source(config: ConfigDict) -> tuple[sources.Source, tuple[tuple[float, ...], tuple[float, ...]] | None]:
    """Returns the data set in the form that the model reads (token ids or normalised images), and mean and deviation.

    Mean and deviation are `None` if images are not normalised here.
    """
    data, given = config.data, tensor_files.local(config.model.checkpoint) if config.model.name == CHECKPOINT else None
    if data.name == "docstrings":
        if not given:
            return text.docstrings(seed=config.seed), None
        # The vocabulary is so large that no word is unknown before the checkpoint's own tokeniser sees it.
        words = text.docstrings(seed=config.seed, vocabulary=10**6)
        return preprocess.tokenize(words, tokens.tokenizer(given), data.length), None
    if data.name.startswith(GLUE):
        reader = tokens.tokenizer(given) if given else None
        size = config.model.options.get("vocab", 2048)  # for a tokeniser that is made of the training texts
        name = data.name.removeprefix(GLUE)
        return glue.source(name, data.path, reader, length=data.length, vocabulary=size), None
    names, size = data.name.split("+"), data.get("size")
    paths = data.path.split("+") if len(names) > 1 and "+" in data.path else [data.path] * len(names)
    if len(paths) != len(names):
        raise ValueError(f"data.path has {len(paths)} parts for the data sets {names}; give one for all, or one each")
    parts = [_pictures(name, path, config) for name, path in zip(names, paths, strict=True)]
    source = joined.join(parts, size=size) if len(parts) > 1 else parts[0]
    if given:
        return preprocess.process_images(source, images.processor(given)), None
    if data.name == "digits" and data.mean is None:
        return source, None  # the digits stay in [0, 1]
    known = catalog.CATALOG.get(data.name)
    mean, std = (known.mean, known.std) if known and data.mean is None else (data.mean, data.std)
    mean, std = (own if v is None else v for v, own in zip((mean, std), _statistics(source, mean, std), strict=True))
    channels = source.image_shape[-1]
    both = tuple(tuple(np.broadcast_to(np.asarray(v, np.float64), channels).tolist()) for v in (mean, std))
    return sources.normalise(source, mean, std), (both[0], both[1])


def _statistics(source: sources.Source, mean: Any, std: Any) -> tuple[Any, Any]:
    """Returns the mean and the deviation of each channel, as `sources.normalise` would take them; only if needed."""
    if mean is not None and std is not None:
        return mean, std
    x = source.train.x
    seen = sources.to_float(x[:: -(-len(x) // 10_000)] if isinstance(x, lazy.Lazy) else x)
    return seen.mean((0, 1, 2), dtype=np.float64), seen.std((0, 1, 2), dtype=np.float64)


def _pictures(name: str, path: str, config: ConfigDict) -> sources.Source:
    """Returns one data set of images, without duplicates and not yet normalised."""
    size, held_out = config.data.get("size"), config.data.get("held_out_faces") or ""
    if held_out and name != "glyphs":
        raise ValueError(f"data.held_out_faces is {held_out!r}, but {name} has no typefaces; leave it empty")
    if name == "digits":
        return sources.digits(upsample=config.data.upsample)
    if name == "glyphs":
        return glyphs.glyphs(held_out=tuple(filter(None, held_out.split("+"))))
    if name == "npz":
        source = sources.npz(path)
        if source.test is None:
            raise ValueError(f"{path} has no test split; the report needs one")
    elif name == "folder":
        source = folders.folder(path, size=size)
    elif name in catalog.CATALOG:
        source = prepared.open(name, data_dir=path or None, size=size)
    else:
        raise ValueError(
            f"unknown data {name!r}; choose 'glyphs', 'digits', 'docstrings' or 'npz', 'folder' (with data.path), "
            f"'glue/TASK', several data sets of images as 'a+b', or one of {sorted(catalog.CATALOG)}"
        )
    return sources.drop_duplicates(source)[0]
