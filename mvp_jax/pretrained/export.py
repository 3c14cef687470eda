"""Models out of here: as other libraries' checkpoints, and as programs, StableHLO by `jax.export` and ONNX.

A pruned model is exported slim (`compact.rebuild`), or masked, as its variables are; a program can be made of any
function too, slim (`compact.slim`) or not. What is written is read again, run on examples and compared with the model
before it counts as written.
"""

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mvp_jax import compact
from mvp_jax.core import trees
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, Units, Variables
from mvp_jax.models import clip
from mvp_jax.models.api import Model
from mvp_jax.pretrained import (
    descriptions,
    expressible,
    formats,
    key_table,
    loading,
    saving,
    sentence_files,
    source_files,
)
from mvp_jax.pretrained.comparison import Written, difference, examples
from mvp_jax.pretrained.expressible import why_not
from mvp_jax.pretrained.onnx_graphs import onnx
from mvp_jax.pretrained.programs import REPORT, load_program, program

__all__ = ["Written", "checkpoint", "clip_pair", "load_program", "onnx", "program", "why_not"]


def checkpoint(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Variables,
    *,
    units: Units | None = None,
    origin: str = "Hugging Face",
    x: Array | None = None,
    source: str | os.PathLike[str] | None = None,
    labels: Sequence[str] | None = None,
    problem: source_files.Problem | None = None,
    about: str = "",
) -> Written:
    """Writes a model as another library keeps it, in its names and layouts, so that its own code loads it unchanged.

    Pruned weights are zeros there. With `units`, the MLPs of a transformer become smaller as well: all as wide as the
    widest that is left, which is what a `config.json` can say, and filled up with zeros; the heads of a ViT too, in the
    same way (`transformers` from version 5 on); other units stay, masked. Without `units`, a slim transformer is
    written with its own widths if the library has such a model (`why_not` says why it has not), else filled up with
    zeros.

    Args:
        directory: the folder to write; if it is there already, it is replaced as a whole. It gets `model.safetensors`,
            `config.json` where the library keeps one, and `report.json`; with `source` also a `README.md`.
        model: the dense model, or without `units` a slim one. For a model of embeddings, the files by which
            `sentence-transformers` pools are written too.
        variables: the model's variables, zero where they are pruned.
        units: `{name: bool[C]}`, the kept units of any of the model's groups; `None`: nothing becomes smaller.
        origin: the library: `Hugging Face`, `timm`, `torchvision` or `CIFAR`.
        x: examples to compare on; `None`: three that are made up.
        source: the folder of the checkpoint that the model came from, or one that `pretrained.save` wrote. Its
            tokeniser or image processor and its licence are copied, and fields of its `config.json` are taken over that
            ours does not have; weights and code are not copied.
        labels: the names of the classes, in the order of the logits; `None`: those of the source, if they are as many.
        problem: what the logits are trained for, as `problem_type` in `config.json`; `None`: as the source says it, if
            it has as many classes.
        about: what the model is, in Markdown, for the beginning of `README.md`.

    Returns:
        The folder, with the difference between what is read back from it and the masked model, and with notes on what
        the folder lacks.

    Raises:
        ValueError: if the library has no such model, units are not the model's, labels are not as many as the classes,
            the source's tokeniser or type is another than the model's, or the folder cannot be written.
    """
    taken = None if source is None else source_files.gather(source, model.config)
    beside: dict[str, bytes] = {}
    classes = model.num_classes if getattr(model.config, "task", "classify") == "classify" else None
    labels = source_files.checked_labels(labels, classes)
    x = examples(model) if x is None else jnp.asarray(x)
    given = Variables(*variables)
    if units:
        groups = tuple(g for g in model.groups if g.name in units)
        units_lib.check(units, groups)
        given = compact.mask(given, groups, units)
    wanted = model.apply(given, x)[0]
    if units:
        model, given = expressible.narrower(model, given, units, origin)
    model, given, widened = expressible.filled(model, given, origin)
    form = formats.for_config(model.config, origin)
    described, notes = descriptions.described(form, model.config, taken, labels, problem)
    tensors = dict(key_table.stored(form, given, model.config))
    apart = difference(model.apply(loading.convert(tensors, model), x)[0], wanted)
    if getattr(model.config, "task", None) == "embed":
        beside = sentence_files.written(model.config, {} if taken is None else taken.files)
    report = {"difference": apart, "format": form.name, "notes": (*notes, *widened)}
    return _written(directory, tensors, described, taken, _sentences([given]) + about, report, beside)


def _written(
    directory: str | os.PathLike[str],
    tensors: dict[str, np.ndarray],
    described: dict[str, Any],
    taken: source_files.SourceFiles | None,
    said: str,
    report: dict[str, Any],
    beside: Mapping[str, bytes],
) -> Written:
    """Writes the folder: weights, configuration, what is taken over of the source, README and report."""
    # transformers loads no file that does not say whose tensors these are.
    files = {**beside, "model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"})}
    if described:
        files["config.json"] = json.dumps(described, indent=2, ensure_ascii=False).encode()
    if taken is not None:
        files = taken.files | files
        files["README.md"] = source_files.readme(taken, said, list(taken.files))
        report = report | {"source": taken.name}
    files[REPORT] = json.dumps(report, indent=1).encode()
    path = saving.write_folder(directory, files)
    return Written(path, report["difference"], sum(map(len, files.values())), report["notes"])


def _sentences(given: Sequence[Variables]) -> str:
    """What a README says first: who wrote the folder, and how many of the parameters are zero."""
    chosen = [np.asarray(leaf) for of in given for leaf in trees.flatten(of.params).values()]
    total, zero = sum(a.size for a in chosen), sum(int(np.sum(a == 0)) for a in chosen)
    return (
        f"This model was written by mvp_jax, which prunes models. Of its {total:,} parameters, {zero:,} "
        f"({100 * zero / total:.1f} %) are zero.\n\n"
    )


def clip_pair(
    directory: str | os.PathLike[str],
    vision: tuple[Model, Variables],
    text: tuple[Model, Variables],
    logit_scale: float,
    *,
    images: Array | None = None,
    ids: Array | None = None,
    source: str | os.PathLike[str] | None = None,
    about: str = "",
) -> Written:
    """Writes both towers of CLIP into one folder, which `transformers.CLIPModel` loads unchanged; heads stay out.

    Args:
        directory: the folder to write; if it is there already, it is replaced as a whole.
        vision: the dense image tower and its variables, zero where they are pruned.
        text: the dense text tower and its variables, zero where they are pruned.
        logit_scale: the logarithm of the factor of similarities.
        images: images to compare on; `None`: three that are made up.
        ids: token ids to compare on; `None`: three texts that are made up.
        source: the folder of the checkpoint that the towers came from; its tokeniser, image processor and licence are
            copied.
        about: what the model is, in Markdown, for the beginning of `README.md`.

    Returns:
        The folder, with the largest difference of the similarities between what is read back and the given towers.

    Raises:
        ValueError: if a tower is none of CLIP's, is slim, the source's tokeniser is another than the text tower's, or
            the folder cannot be written.
    """
    taken = None if source is None else source_files.gather(source, vision[0].config, text[0].config)
    towers = {"vision": vision, "text": text}
    inputs = {
        name: examples(model) if x is None else jnp.asarray(x)
        for (name, (model, _)), x in zip(towers.items(), (images, ids), strict=True)
    }
    forms = {"vision": formats.clip.VISION, "text": formats.clip.TEXT}
    parts: dict[str, Any] = {}
    tensors: dict[str, np.ndarray] = {}
    again = {}
    for name, (model, variables) in towers.items():
        parts[name] = forms[name].describe(model.config)
        own = dict(key_table.stored(forms[name], Variables(*variables), model.config))
        tensors |= {key: a for key, a in own.items() if not key.startswith(f"{name}_head.")}
        again[name] = (model, loading.convert(own, model))
    if parts["vision"]["projection_dim"] != parts["text"]["projection_dim"]:
        raise ValueError(
            f"features are {parts['vision']['projection_dim']} and {parts['text']['projection_dim']} wide; take both "
            "towers of a pair"
        )

    def similarity(of: Mapping[str, tuple[Model, Variables]]) -> Array:
        return clip.similarity(*of["vision"], *of["text"], inputs["vision"], inputs["text"], logit_scale)

    apart = difference(similarity(again), similarity(towers))
    described = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": parts["vision"]["projection_dim"],
        "logit_scale_init_value": logit_scale,
        "vision_config": parts["vision"],
        "text_config": parts["text"],
    }
    tensors["logit_scale"] = np.array(logit_scale, np.float32)
    said = _sentences([vision[1], text[1]]) + about
    report = {"difference": apart, "format": "clip (Hugging Face)", "notes": () if taken is None else taken.notes}
    return _written(directory, tensors, described, taken, said, report, {})
