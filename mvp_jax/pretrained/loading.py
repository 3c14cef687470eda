"""Trained weights in and out: other libraries' checkpoints, and folders that a pruned model is reloaded from.

What is written is safetensors and JSON; nothing in a file that is read is ever executed.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.core.types import Units, Variables
from mvp_jax.pretrained import formats, key_table, tensor_files
from mvp_jax.pretrained.key_table import Format
from mvp_jax.pretrained.keys import clip
from mvp_jax.pretrained.tensor_files import TensorSource
from mvp_jax.storage import dtypes
from mvp_jax.storage import files as storage

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
    """A model with the weights of another library's checkpoint, read one tensor at a time.

    Args:
        source: a file, a folder or the id of one on the Hugging Face hub, as `tensor_files.open`
            takes it; or what that returned.
        model: the dense model that the weights belong to; without one it is made from the folder's `config.json`.
        classes: leaves the stored head out, if there is one, and gives the model a head of zeros for so many classes.
            A pooler before it that the checkpoint of an encoder lacks is drawn, always the same: of zeros it would
            never learn.
        revision: on the hub, a branch, tag or commit.
        sharding: puts every array straight where it belongs, the new head too; on the default device otherwise.

    Returns:
        The model and its variables in float32.

    Raises:
        ValueError: for whatever `tensor_files.open` refuses; for a `config.json` that no family here can express; and
            with *all* names that are unknown, missing, given twice, of a wrong shape or no floats, before any tensor
            is read.
    """
    opened = source if isinstance(source, TensorSource) else tensor_files.open(source, revision=revision)
    if classes is not None and classes < 1:
        raise ValueError(f"classes={classes}; give at least 1, or None to keep the stored head")
    form = None
    if model is None:
        if opened.described is None:
            raise ValueError(f"{opened.name} has no config.json that says what model it is; pass `model`")
        form = formats.detect(opened.entries, opened.described)
        model = models.build(formats.configure(form, opened.described))
    if classes is None:
        return model, _assembled(opened, form, model, set(), sharding)
    target = model.with_classes(classes)
    one, other = _shapes(target), _shapes(model.with_classes(classes + 1))
    heads = {path for path in one if one[path] != other[path]} | (set(_shapes(model)) - set(one))
    return target, _assembled(opened, None, target, heads, sharding)


def from_config(
    folder: str | os.PathLike[str], classes: int, *, text: bool, options: Mapping[str, Any] | None = None
) -> models.Model:
    """The model that a checkpoint's `config.json` describes, under a head of its own; no weights are read.

    Args:
        folder: the checkpoint, as `tensor_files.open` takes it.
        classes: how many classes the head has.
        text: of a checkpoint with two towers (CLIP), whether the text tower is meant, or the image tower.
        options: fields of our configuration with other values than the checkpoint's, such as `dropout`.

    Returns:
        The dense model.

    Raises:
        ValueError: if there is no `config.json`, or one that no family here can express, or for unknown options.
    """
    source = tensor_files.open(folder)
    if source.described is None:
        raise ValueError(f"{source.name} has no config.json that says what model it is")
    form = formats.detect(source.entries, source.described)
    if form in clip.FORMATS:
        form = clip.TEXT if text else clip.VISION
    config = formats.configure(form, source.described)
    unknown = sorted(set(options or {}) - {f.name for f in dataclasses.fields(config)})
    if unknown:
        raise ValueError(f"{form.name} has no {unknown}; its fields are {[f.name for f in dataclasses.fields(config)]}")
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
    expected = _shapes(model)
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
    _refuse(problems + misplaced, f"the weights of {source.name}, read as {form.name}, do not fit the model{hint}")

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
    _refuse(problems, f"the weights of {source.name}, read as {form.name}, do not fit the model")
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


def save(
    directory: str | os.PathLike[str],
    model: models.Model,
    variables: Variables,
    *,
    units: Units | None = None,
    extra: Mapping[str, Any] | None = None,
) -> pathlib.Path:
    """Writes a model to a folder of two files, `model.json` and `weights.safetensors`.

    The folder appears complete or not at all: it is written under another name and then renamed. One that stands
    there already is replaced.

    Args:
        directory: where to.
        model: dense or slim; its configuration, with every width, goes into the JSON.
        variables: its variables.
        units: which of the dense model's units a slim one kept; stored as indices.
        extra: more JSON, returned by `describe`.

    Returns:
        The folder.

    Raises:
        ValueError: if the variables do not fit the model, or the folder cannot be written; before anything is.
    """
    target = storage.path(directory)
    _refuse(_misfits(model, trees.flatten(Variables(*variables))), "these variables are not the model's")
    tensors = {p: np.ascontiguousarray(np.asarray(a)) for p, a in trees.flatten(Variables(*variables)).items()}
    strange = [f"{p}: {a.dtype}" for p, a in tensors.items() if not dtypes.safetensors_name(a.dtype)]
    _refuse(strange, "safetensors has no such dtype; cast these variables")
    blob = safetensors.numpy.save(tensors)
    kept = {
        n: {"of": int(np.size(u)), "kept": np.flatnonzero(np.asarray(u)).tolist()} for n, u in (units or {}).items()
    }
    described = {
        "format": 1,
        "config": models.to_json(model.config),
        "kept": kept,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(described, indent=1)
    except TypeError as error:
        raise ValueError(f"extra must be JSON (strings, numbers, lists, dicts): {error}") from error
    return write_folder(target, {"weights.safetensors": blob, "model.json": text.encode()})


def write_folder(directory: str | os.PathLike[str], files: Mapping[str, bytes]) -> pathlib.Path:
    """Writes a folder that appears complete or not at all; a folder that stands there already is replaced.

    Args:
        directory: the folder.
        files: `{name: content}`; the last of them is renamed into place last.

    Returns:
        The folder.

    Raises:
        ValueError: if it cannot be written; nothing is written then.
    """
    target = storage.path(directory)
    return storage.write_folder(target, files, list(files)[-1])


def write_file(path: str | os.PathLike[str], content: bytes) -> pathlib.Path:
    """Writes a file that appears complete or not at all; a file that stands there already is replaced.

    Returns:
        The file.

    Raises:
        ValueError: if it cannot be written.
    """
    target = storage.path(path)
    with storage.writing(target):
        storage.write_bytes(target, content)
    return target


def describe(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` wrote beside the weights, read from `model.json`.

    Args:
        directory: the folder that `save` wrote.

    Returns:
        A dict with `config` (the model's configuration, for `models.from_json`), `kept` (for each group of a slim
        model `{"of": C, "kept": indices}`), `sha256` (of the weights' file), `extra` (what `save` was given) and
        `format` (1).

    Raises:
        ValueError: if the file is missing, is no JSON, or was not written by `save`.
    """
    path = storage.path(directory) / "model.json"
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable as a saved model: {error}") from error
    if not isinstance(described, dict) or described.get("format") != 1 or not {"config", "sha256"} <= set(described):
        raise ValueError(f"{path} is not a model saved by this package (format 1)")
    return described


def reload(directory: str | os.PathLike[str]) -> tuple[models.Model, Variables]:
    """The model and variables of a folder that `save` wrote.

    Args:
        directory: the folder.

    Returns:
        The model, slim if it was saved slim, and its variables.

    Raises:
        ValueError: if files are missing, truncated or altered, or weights and configuration disagree.
    """
    described = describe(directory)
    path = storage.path(directory) / "weights.safetensors"
    content, tensors = _read(path)
    if hashlib.sha256(content).hexdigest() != described["sha256"]:
        raise ValueError(f"{path} is not the file that model.json was written with (its checksum differs)")
    model = models.build(models.from_json(described["config"]))
    _refuse(_misfits(model, tensors), f"{path} does not fit its configuration")
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, trees.replace(like, {p: jnp.asarray(a) for p, a in tensors.items()})


def _shapes(model: models.Model) -> dict[str, tuple[int, ...]]:
    return {p: leaf.shape for p, leaf in trees.flatten(jax.eval_shape(model.init, jax.random.key(0))).items()}


def _misfits(model: models.Model, leaves: Mapping[str, Any]) -> list[str]:
    expected = _shapes(model)
    got = {p: jnp.shape(leaf) for p, leaf in leaves.items()}
    return [
        f"{p}: got {got.get(p, 'nothing')}, needs {expected.get(p, 'nothing')}"
        for p in sorted(set(got) | set(expected))
        if got.get(p) != expected.get(p)
    ]


def _refuse(problems: Sequence[str], what: str) -> None:
    if problems:
        shown = [*problems[:20], *([f"and {len(problems) - 20} more"] if len(problems) > 20 else [])]
        raise ValueError(f"{what}; {len(problems)} problems:\n  " + "\n  ".join(shown))


def _read(path: pathlib.Path) -> tuple[bytes, dict[str, np.ndarray]]:
    try:
        content = path.read_bytes()
        return content, dtypes.read(content)
    except FileNotFoundError:
        raise ValueError(f"no weights at {path}; give the path of a safetensors file") from None
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}; it may be truncated") from error
