"""Folders that a model, dense or slim, is saved in and read from again, and files that appear complete or not at all.

What is written is safetensors and JSON; nothing in a file that is read is ever executed.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mvp_jax import models
from mvp_jax.core import trees
from mvp_jax.core.types import Units, Variables
from mvp_jax.pretrained import source_files, sparse_arrays
from mvp_jax.storage import dtypes, foreign_files, json_files
from mvp_jax.storage import files as storage


def save(
    directory: str | os.PathLike[str],
    model: models.Model,
    variables: Variables,
    *,
    units: Units | None = None,
    extra: Mapping[str, Any] | None = None,
    source: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    about: str = "",
    sparse: bool = False,
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
        source: the folder of the checkpoint that the model came from, or one that `save` wrote. Its tokeniser or image
            processor and its licence are copied, and a `README.md` is written.
        labels: the names of the classes, in the order of the logits, stored as `labels` in `extra`; `None`: those of
            the source, if they are as many.
        about: what the model is, in Markdown, for the beginning of `README.md`.
        sparse: whether zeros are left out of the file, which makes it smaller; the arrays come back as they were.

    Returns:
        The folder.

    Raises:
        ValueError: if the variables do not fit the model, labels are not as many as the classes, the source's tokeniser
            is another than the model's, or the folder cannot be written; before anything is.
    """
    target = storage.path(directory)
    refuse(misfits(model, trees.flatten(Variables(*variables))), "these variables are not the model's")
    tensors = {p: np.ascontiguousarray(np.asarray(a)) for p, a in trees.flatten(Variables(*variables)).items()}
    strange = [f"{p}: {a.dtype}" for p, a in tensors.items() if not dtypes.safetensors_name(a.dtype)]
    refuse(strange, "safetensors has no such dtype; cast these variables")
    more, beside = _companions(model, dict(extra or {}), source, labels, about)
    tensors, apart = sparse_arrays.encode(tensors) if sparse else (tensors, {})
    blob = safetensors.numpy.save(tensors)
    kept = {
        n: {"of": int(np.size(u)), "kept": np.flatnonzero(np.asarray(u)).tolist()} for n, u in (units or {}).items()
    }
    described = {
        "format": 2 if apart else 1,  # earlier versions of this package cannot read the second
        **({"sparse": apart} if apart else {}),
        "config": models.to_json(model.config),
        "kept": kept,
        "sha256": hashlib.sha256(blob).hexdigest(),
        "extra": more,
    }
    try:
        text = json.dumps(described, indent=1)
    except TypeError as error:
        raise ValueError(f"extra must be JSON (strings, numbers, lists, dicts): {error}") from error
    return write_folder(target, {**beside, "weights.safetensors": blob, "model.json": text.encode()})


def _companions(
    model: models.Model,
    extra: dict[str, Any],
    source: str | os.PathLike[str] | None,
    labels: Sequence[str] | None,
    about: str,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """`extra` with the names of classes and of the source, and the files that lie beside the weights."""
    classes = model.num_classes if getattr(model.config, "task", "classify") == "classify" else None
    names = source_files.checked_labels(labels, classes)
    if names is not None and "labels" in extra:
        raise ValueError("extra has 'labels' already; give the names of classes as `labels` alone")
    taken = None if source is None else source_files.gather(source, model.config)
    if names is None and taken is not None and taken.class_names and len(taken.class_names) == classes:
        names = taken.class_names
    if names is not None:
        extra.setdefault("labels", list(names))
    if taken is None:
        return extra, {}
    extra.setdefault("source", taken.name)
    written = "This model was written by mvp_jax; `mvp_jax.pretrained.load` reads it.\n\n"
    files = source_files.self_contained(taken)
    return extra, {**files, "README.md": source_files.readme(taken, written + about, list(taken.files))}


def is_saved(directory: str | os.PathLike[str]) -> bool:
    """Whether a folder is one that `save` wrote, and no checkpoint of another library."""
    folder = storage.path(directory)
    return storage.exists(folder / "model.json") and not storage.exists(folder / "config.json")


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
        model `{"of": C, "kept": indices}`), `sha256` (of the weights' file), `extra` (what `save` was given), `format`
        (1, or 2 with `sparse`), and `sparse` (the shapes of the arrays whose zeros are left out).

    Raises:
        ValueError: if the file is missing, is no JSON, or was not written by `save`.
    """
    path = storage.path(directory) / "model.json"
    try:
        described = json_files.read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not readable as a saved model: {foreign_files.told(error)}") from error
    if described.get("format") not in (1, 2) or not {"config", "sha256"} <= set(described):
        raise ValueError(f"{path} is not a model saved by this package (format 1 or 2)")
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
    with foreign_files.named(path.parent / "model.json"):
        config = models.from_json(described["config"])
        if models.depth(config) > len(tensors):
            raise ValueError(
                f"it tells of {models.depth(config)} layers, and there are {len(tensors)} arrays of weights"
            )
        model = models.build(config)
    expected = {p: list(shape) for p, shape in shapes(model).items()}
    apart = described.get("sparse", {})
    if not isinstance(apart, dict) or any(expected.get(p) != shape for p, shape in apart.items()):
        raise ValueError(f"{path.parent / 'model.json'} names sparse arrays that the model does not have")
    with foreign_files.named(path):
        tensors = sparse_arrays.decode(tensors, apart)
    refuse(misfits(model, tensors), f"{path} does not fit its configuration")
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, trees.replace(like, {p: jnp.asarray(a) for p, a in tensors.items()})


def shapes(model: models.Model) -> dict[str, tuple[int, ...]]:
    """The shape of each variable of a model, by its path."""
    return {p: leaf.shape for p, leaf in trees.flatten(jax.eval_shape(model.init, jax.random.key(0))).items()}


def misfits(model: models.Model, leaves: Mapping[str, Any]) -> list[str]:
    """What is wrong with arrays, given by their paths, that should be the variables of a model; a phrase each."""
    expected = shapes(model)
    got = {p: jnp.shape(leaf) for p, leaf in leaves.items()}
    return [
        f"{p}: got {got.get(p, 'nothing')}, needs {expected.get(p, 'nothing')}"
        for p in sorted(set(got) | set(expected))
        if got.get(p) != expected.get(p)
    ]


def refuse(problems: Sequence[str], what: str) -> None:
    """Raises `ValueError` with the first of some problems, if there are any."""
    if problems:
        shown = [
            *(foreign_files.told(p, 300) for p in problems[:20]),
            *([f"and {len(problems) - 20} more"] if len(problems) > 20 else []),
        ]
        raise ValueError(f"{what}; {len(problems)} problems:\n  " + "\n  ".join(shown))


def _read(path: pathlib.Path) -> tuple[bytes, dict[str, np.ndarray]]:
    try:
        content = foreign_files.plain_file(path).read_bytes()
        return content, dtypes.read(content)
    except FileNotFoundError:
        raise ValueError(f"no weights at {path}; give the path of a safetensors file") from None
    except (safetensors.SafetensorError, OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is not a complete safetensors file: {foreign_files.told(error)}; it may be truncated"
        ) from error
