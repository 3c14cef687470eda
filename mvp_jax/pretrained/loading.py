"""Trained weights in and out: other libraries' checkpoints, and folders that a pruned model is reloaded from.

What is written is safetensors and JSON; nothing in a file that is read is ever executed.
"""

import dataclasses
import math
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.core.types import Variables
from mvp_jax.pretrained import formats, key_table, saving, sentence_files, tensor_files
from mvp_jax.pretrained.key_table import Format
from mvp_jax.pretrained.keys import bert, clip
from mvp_jax.pretrained.tensor_files import TensorSource
from mvp_jax.storage import foreign_files

Sharding: TypeAlias = jax.sharding.Sharding | Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
"""Where arrays go: one sharding for all, or `(path, shape) -> sharding`."""


def load(
    source: str | os.PathLike[str] | TensorSource,
    model: models.Model | None = None,
    *,
    classes: int | None = None,
    revision: str | None = None,
    sharding: Sharding | None = None,
) -> tuple[models.Model, Variables]:
    """A model with the weights of another library's checkpoint, read one tensor at a time, or of a folder of `save`.

    Args:
        source: a file, a folder or the id of one on the Hugging Face hub, as `tensor_files.open`
            takes it; or what that returned; or a folder that `save` wrote, whose model may be dense or slim.
        model: the dense model that the weights belong to; without one it is made from the folder's `config.json`.
            An encoder of texts without a head becomes, without `classes`, a model of embeddings: `task="embed"`, which
            pools as the files of `sentence-transformers` in the folder say, else takes the first token.
        classes: leaves the stored head out, if there is one, and gives the model a head of zeros for so many classes.
            A pooler before it that the checkpoint of an encoder lacks is drawn, always the same: of zeros it would
            never learn.
        revision: on the hub, a branch, tag or commit.
        sharding: puts every array straight where it belongs, the new head too; on the default device otherwise.

    Returns:
        The model and its variables in float32; of a folder that `save` wrote, in the dtypes that they were saved in.

    Raises:
        ValueError: for whatever `tensor_files.open` or `reload` refuses; for a `config.json` that no family here can
            express; and with *all* names that are unknown, missing, given twice, of a wrong shape or no floats, before
            any tensor is read.
    """
    if classes is not None and classes < 1:
        raise ValueError(f"classes={classes}; give at least 1, or None to keep the stored head")
    if not isinstance(source, TensorSource) and saving.is_saved(source):
        return _saved(source, model, classes, sharding)
    opened = source if isinstance(source, TensorSource) else tensor_files.open(source, revision=revision)
    form = None
    if model is None:
        if opened.described is None:
            raise ValueError(f"{opened.name} has no config.json that says what model it is; pass `model`")
        with foreign_files.named(opened.name):
            form, config = _described(opened, classes)
            if models.depth(config) > len(opened.entries):
                raise ValueError(
                    f"config.json tells of {models.depth(config)} layers, and there are {len(opened.entries)} tensors"
                )
            model = models.build(config)
    if classes is None:
        return model, _assembled(opened, form, model, set(), sharding)
    target = model.with_classes(classes)
    one, other = saving.shapes(target), saving.shapes(model.with_classes(classes + 1))
    heads = {path for path in one if one[path] != other[path]} | (set(saving.shapes(model)) - set(one))
    return target, _assembled(opened, None, target, heads, sharding)


def _described(source: TensorSource, classes: int | None) -> tuple[Format, Any]:
    """The format of a checkpoint and our configuration of the model that its `config.json` describes."""
    assert source.described is not None
    form = formats.detect(source.entries, source.described)
    alone = bert.alone(map(formats.bare, source.entries), source.described) if classes is None else None
    if alone is None:
        return form, formats.configure(form, source.described)
    pooling = sentence_files.Pooling() if source.folder is None else sentence_files.read(source.folder)
    return alone, dataclasses.replace(formats.configure(alone, source.described), **pooling._asdict())


def _saved(
    folder: str | os.PathLike[str], model: models.Model | None, classes: int | None, sharding: Sharding | None
) -> tuple[models.Model, Variables]:
    """What `load` returns for a folder that `save` wrote."""
    saved, variables = saving.reload(folder)
    if model is not None and classes is None and model.config != saved.config:
        apart = [
            f"{name}: {value!r:.80} there, {getattr(model.config, name, 'nothing')!r:.80} in `model`"
            for name, value in dataclasses.asdict(saved.config).items()
            if getattr(model.config, name, "nothing") != value
        ]
        saving.refuse(apart or [f"a {type(saved.config).__name__} there"], f"{folder} holds another model than `model`")
    if classes is not None:
        saved = (saved if model is None else model).with_classes(classes)
        variables = models.replace_head(variables, saved)
        saving.refuse(saving.misfits(saved, trees.flatten(variables)), f"{folder} holds another model than `model`")
    if sharding is None:
        return saved, variables
    places, misplaced = _places(saving.shapes(saved), sharding)
    saving.refuse(misplaced, f"the weights of {folder} cannot be put there")
    leaves = trees.flatten(variables)
    return saved, trees.replace(variables, {p: jax.device_put(a, places[p]) for p, a in leaves.items()})


def from_config(
    folder: str | os.PathLike[str], classes: int, *, text: bool, options: Mapping[str, Any] | None = None
) -> models.Model:
    """The model that a checkpoint's `config.json` describes, under a head of its own; no weights are read.

    Args:
        folder: the checkpoint, as `tensor_files.open` takes it, or a folder that `save` wrote.
        classes: how many classes the head has.
        text: of a checkpoint with two towers (CLIP), whether the text tower is meant, or the image tower.
        options: fields of our configuration with other values than the checkpoint's, such as `dropout`.

    Returns:
        The model: dense, or as it was saved.

    Raises:
        ValueError: if there is no `config.json`, or one that no family here can express, or for unknown options.
    """
    if saving.is_saved(folder):
        described = saving.describe(folder)
        with foreign_files.named(folder):
            kind, config = str(folder), models.from_json(described["config"])
    else:
        source = tensor_files.open(folder)
        if source.described is None:
            raise ValueError(f"{source.name} has no config.json that says what model it is")
        with foreign_files.named(source.name):
            form = formats.detect(source.entries, source.described)
            if form in clip.FORMATS:
                form = clip.TEXT if text else clip.VISION
            kind, config = form.name, formats.configure(form, source.described)
    unknown = sorted(set(options or {}) - {f.name for f in dataclasses.fields(config)})
    if unknown:
        raise ValueError(f"{kind} has no {unknown}; its fields are {[f.name for f in dataclasses.fields(config)]}")
    return models.build(dataclasses.replace(config, **(options or {}))).with_classes(classes)


def convert(tensors: Mapping[str, np.ndarray], model: models.Model) -> Variables:
    """Another library's tensors, in memory, as variables of a model.

    Args:
        tensors: by their names and in their layouts.
        model: the dense model they belong to, with the checkpoint's classes.

    Returns:
        Variables in float32.

    Raises:
        ValueError: with *all* names that are unknown, missing, given twice, of a wrong shape or no floats.
    """
    return _assembled(tensor_files.in_memory(tensors), None, model, set(), None)


def _assembled(
    source: TensorSource, form: Format | None, model: models.Model, heads: set[str], sharding: Sharding | None
) -> Variables:
    """The variables of a model; `heads` are paths whose tensors are left out and which become zero."""
    expected = saving.shapes(model)
    if getattr(model.config, "task", None) == "embed":  # whose names are a part of those of every other task
        form = formats.for_config(model.config)
    form = form or formats.detect(source.entries, source.described, set(expected) - heads)
    readers, problems = _planned(source, form, model.config, expected, heads)
    there = key_table.keys(form, model.config, expected)
    names = {path: key for key, (_, paths) in reversed(there.items()) for path in paths}  # first names last
    missing = set(expected) - heads - {path for paths in readers for path in paths}
    pooler = {path for path in missing if heads and path.startswith("params/pooler/")}
    missing -= pooler
    problems += [f"missing: {names.get(p, 'some name')}, for {p} {expected[p]}" for p in sorted(missing)]
    places, misplaced = _places(expected, sharding)
    hint = ""
    if missing and all(path.startswith(("params/head", "params/pooler/")) for path in missing):
        hint = " (`classes` gives a model a new head)"
    unfit = f"the weights of {source.name}, read as {form.name}, do not fit the model"
    saving.refuse(problems + misplaced, unfit + hint)

    leaves = {p: _placed(np.zeros(expected[p], np.float32), places[p]) for p in heads & set(expected)}
    leaves |= {p: _placed(_drawn(p, expected[p]), places[p]) for p in pooler}
    # The largest first: what is freed behind them is room for the others, and memory rises by a third less.
    by_size = sorted(readers.items(), key=lambda reader: -math.prod(source.entries[reader[1][0]].shape))
    for paths, keys in by_size:
        arrays, *others = (key_table.to_ours(form, formats.bare(key), source.get(key), model.config) for key in keys)
        for path in paths:
            if arrays[path].shape != expected[path]:
                problems.append(f"{keys[0]}: gives {path} the shape {arrays[path].shape}, not {expected[path]}")
            elif not all(np.array_equal(arrays[path], other[path]) for other in others):
                problems.append(f"{keys[1]}: differs from {keys[0]}, which holds the same {path}")
            else:
                leaves[path] = _placed(arrays[path], places[path])
    saving.refuse(problems, unfit)
    return trees.replace(jax.eval_shape(model.init, jax.random.key(0)), leaves)


def _planned(
    source: TensorSource, form: Format, config: Any, expected: Mapping[str, tuple[int, ...]], heads: set[str]
) -> tuple[dict[tuple[str, ...], list[str]], list[str]]:
    """Which names are read for which of our paths, first names first, and all that is wrong with names and shapes."""
    found: dict[tuple[str, ...], list[tuple[bool, str]]] = {}
    problems: list[str] = []
    for key, entry in sorted(source.entries.items()):
        matched = key_table.match(form, formats.bare(key))
        if matched is None:
            problems.append(f"{key}: not in the key table of {form.name}")
            continue
        rule, paths = matched
        if heads.issuperset(paths):  # of what is read past, too
            continue
        absent = [path for path in paths if path not in expected]
        if absent:
            problems.append(f"{key}: the model has no {', '.join(absent)}")
            continue
        needed = key_table.stored_shape(rule, [expected[path] for path in paths], config)
        if entry.shape != needed:
            problems.append(f"{key}: shape {entry.shape}, the model needs {needed} for {', '.join(paths)}")
        elif not tensor_files.is_float(entry):
            problems.append(f"{key}: stored as {entry.dtype}, weights are floats")
        found.setdefault(paths, []).append((rule.tied, key))
    readers = {paths: [key for _, key in sorted(names)] for paths, names in found.items()}
    for paths, names in found.items():
        firsts = [key for tied, key in names if not tied]
        problems += [f"{key}: a second value for {', '.join(paths)}, after {firsts[0]}" for key in firsts[1:]]
    return readers, problems


def _places(
    expected: Mapping[str, tuple[int, ...]], sharding: Sharding | None
) -> tuple[dict[str, jax.sharding.Sharding | None], list[str]]:
    """The sharding of each array, and all that is wrong with them."""
    places: dict[str, jax.sharding.Sharding | None] = dict.fromkeys(expected)
    problems: list[str] = []
    for path, shape in expected.items() if sharding is not None else ():
        given: Any = sharding if isinstance(sharding, jax.sharding.Sharding) else sharding(path, shape)  # type: ignore[misc]
        if not isinstance(given, jax.sharding.Sharding):
            problems.append(f"{path}: {given!r:.80} is no jax.sharding.Sharding")
            continue
        places[path] = given
        try:
            given.shard_shape(shape)
        except ValueError as error:
            problems.append(f"{path}: {error}")
    return places, problems


def _drawn(path: str, shape: tuple[int, ...]) -> np.ndarray:
    """As projections begin: normal kernels of deviation 0.02, biases of zero."""
    kernel = np.random.default_rng(0).normal(0.0, 0.02, shape) if path.endswith("kernel") else np.zeros(shape)
    return kernel.astype(np.float32)


def _placed(array: np.ndarray, sharding: jax.sharding.Sharding | None) -> jax.Array:
    array = np.ascontiguousarray(array)
    if sharding is None:
        return jnp.asarray(array)
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
