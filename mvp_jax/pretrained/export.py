"""Models out of here: as other libraries' checkpoints, and as programs, StableHLO by `jax.export` and ONNX.

A pruned model is exported slim (`compact.rebuild`), or masked, as its variables are; a program can be made of any
function too, slim (`compact.slim`) or not. What is written is read again, run on examples and compared with the model
before it counts as written.
"""

import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mvp_jax import compact
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, Units, Variables
from mvp_jax.models import clip
from mvp_jax.models.api import Model
from mvp_jax.pretrained import formats, key_table, loading
from mvp_jax.pretrained.comparison import Written, difference, examples
from mvp_jax.pretrained.onnx_graphs import onnx
from mvp_jax.pretrained.programs import REPORT, load_program, program

__all__ = ["Written", "checkpoint", "clip_pair", "load_program", "onnx", "program"]


def checkpoint(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Variables,
    *,
    units: Units | None = None,
    origin: str = "Hugging Face",
    x: Array | None = None,
) -> Written:
    """Writes a model as another library keeps it, in its names and layouts, so that its own code loads it unchanged.

    Pruned weights are zeros there. With `units`, the MLPs of a transformer become smaller as well: all as wide as the
    widest that is left, which is what a `config.json` can say, and filled up with zeros; other units stay, masked.

    Args:
        directory: the folder to write; if it is there already, it is replaced as a whole. It gets `model.safetensors`,
            `config.json` where the library keeps one, and `report.json`.
        model: the dense model.
        variables: the model's variables, zero where they are pruned.
        units: `{name: bool[C]}`, the kept units of any of the model's groups; `None`: nothing becomes smaller.
        origin: the library: `Hugging Face`, `timm`, `torchvision` or `CIFAR`.
        x: examples to compare on; `None`: three that are made up.

    Returns:
        The folder, with the difference between what is read back from it and the masked model.

    Raises:
        ValueError: if the library has no such model, units are not the model's, or the folder cannot be written.
    """
    x = examples(model) if x is None else jnp.asarray(x)
    given = Variables(*variables)
    if units:
        groups = tuple(g for g in model.groups if g.name in units)
        units_lib.check(units, groups)
        given = compact.mask(given, groups, units)
    wanted = model.apply(given, x)[0]
    if units:
        model, given = _narrower(model, given, units)
    form = formats.for_config(model.config, origin)
    tensors = dict(key_table.stored(form, given, model.config))
    apart = difference(model.apply(loading.convert(tensors, model), x)[0], wanted)
    # transformers loads no file that does not say whose tensors these are.
    files = {"model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"})}
    described = form.describe(model.config)
    if described:
        files["config.json"] = json.dumps(described, indent=2).encode()
    files[REPORT] = json.dumps({"difference": apart, "format": form.name}, indent=1).encode()
    return Written(loading.write_folder(directory, files), apart, sum(map(len, files.values())))


def clip_pair(
    directory: str | os.PathLike[str],
    vision: tuple[Model, Variables],
    text: tuple[Model, Variables],
    logit_scale: float,
    *,
    images: Array | None = None,
    ids: Array | None = None,
) -> Written:
    """Writes both towers of CLIP into one folder, which `transformers.CLIPModel` loads unchanged; heads stay out.

    Args:
        directory: the folder to write; if it is there already, it is replaced as a whole.
        vision: the dense image tower and its variables, zero where they are pruned.
        text: the dense text tower and its variables, zero where they are pruned.
        logit_scale: the logarithm of the factor of similarities.
        images: images to compare on; `None`: three that are made up.
        ids: token ids to compare on; `None`: three texts that are made up.

    Returns:
        The folder, with the largest difference of the similarities between what is read back and the given towers.

    Raises:
        ValueError: if a tower is none of CLIP's, is slim, or the folder cannot be written.
    """
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
    files = {
        "model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"}),
        "config.json": json.dumps(described, indent=2).encode(),
        REPORT: json.dumps({"difference": apart, "format": "clip (Hugging Face)"}, indent=1).encode(),
    }
    return Written(loading.write_folder(directory, files), apart, sum(map(len, files.values())))


def _narrower(model: Model, variables: Variables, units: Units) -> tuple[Model, Variables]:
    """All MLPs cut to the widest that is left; what fills the others up is pruned, and zero."""
    kept = {g.name: np.asarray(units[g.name]) for g in model.groups if g.kind == "neuron" and g.name in units}
    whole = any(g.kind == "neuron" and g.name not in units for g in model.groups)
    if not kept or whole:  # a layer that is whole keeps all at its width
        return model, variables
    width = max(1, *(int(u.sum()) for u in kept.values()))
    # The kept ones first, then others until it is `width`.
    chosen = {name: np.argsort(np.argsort(~u, kind="stable"), kind="stable") < width for name, u in kept.items()}
    return compact.rebuild(model, variables, {name: jnp.asarray(u) for name, u in chosen.items()})
