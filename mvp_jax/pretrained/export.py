"""Models out of here: as other libraries' checkpoints, and as programs, StableHLO by `jax.export` and ONNX.

A pruned model is exported slim (`compact.rebuild`), or masked, as its variables are. What is written is read again, run
on examples and compared with the model before it counts as written.
"""

import importlib.util
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mvp_jax import compact
from mvp_jax.core import trees
from mvp_jax.core import units as units_lib
from mvp_jax.core.types import Array, Units, Variables
from mvp_jax.models import clip
from mvp_jax.models.api import Model
from mvp_jax.pretrained import formats, key_table, loading

PROGRAM, WEIGHTS, REPORT = "program.stablehlo", "weights.safetensors", "report.json"


class Written(NamedTuple):
    """What an export wrote.

    Attributes:
        path: the folder or file that was written.
        difference: `max |written - model|` over the logits of the examples, on this machine.
        bytes: the size on disk.
    """

    path: pathlib.Path
    difference: float
    bytes: int


def program(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Variables,
    *,
    x: Array | None = None,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Written:
    """Writes a model as a StableHLO program for any batch size, and its weights beside it.

    JAX alone runs it, on any of the platforms:

        program = jax.export.deserialize(open("DIR/program.stablehlo", "rb").read())
        weights = safetensors.numpy.load_file("DIR/weights.safetensors")
        logits = program.call(weights, x)

    Args:
        directory: the folder to write; if it is there already, it is replaced as a whole.
        model: the model, dense or slim.
        variables: the model's variables.
        x: examples to compare on, `[n, ...]`; `None`: three that are made up.
        platforms: the platforms to compile for, as `jax.export` names them.

    Returns:
        The folder, with the difference to the model, which stands in its `report.json` too.

    Raises:
        ValueError: if the variables are not the model's, `flatbuffers` is missing, the folder cannot be written, or
            the program's logits are not the model's to 1e-3 of the largest.
    """
    _need("flatbuffers", "'mvp-jax[export]'")
    x = _examples(model) if x is None else jnp.asarray(x)
    weights = trees.flatten(Variables(*variables))
    like = Variables(*variables)

    def logits(weights: Mapping[str, Array], x: Array) -> Array:
        out: Array = model.apply(trees.replace(like, dict(weights)), x)[0]
        return out

    batch = jax.export.symbolic_shape(", ".join(["n", *map(str, x.shape[1:])]))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(jnp.shape(a), jnp.asarray(a).dtype), weights)
    made = jax.export.export(jax.jit(logits), platforms=tuple(platforms))(
        shapes, jax.ShapeDtypeStruct(batch, model.input_dtype)
    )
    files = {
        PROGRAM: bytes(made.serialize()),
        WEIGHTS: safetensors.numpy.save({p: np.ascontiguousarray(np.asarray(a)) for p, a in weights.items()}),
    }
    read = jax.export.deserialize(bytearray(files[PROGRAM]))
    if jax.default_backend() in {p.replace("cuda", "gpu") for p in platforms}:
        got = read.call(safetensors.numpy.load(files[WEIGHTS]), x.astype(model.input_dtype))
        difference = _compare(np.asarray(got), model.apply(variables, x)[0])
    else:
        difference = math.nan
    report = {"difference": difference, "input": ["n", *x.shape[1:]], "platforms": list(platforms)}
    files[REPORT] = json.dumps(report, indent=1).encode()
    return Written(loading.write_folder(directory, files), difference, sum(len(content) for content in files.values()))


def load_program(directory: str | os.PathLike[str]) -> Callable[[Array], Array]:
    """The function from a batch to logits that `program` wrote to a folder.

    Args:
        directory: the folder.

    Returns:
        `f(x) -> logits`, for batches of any size.

    Raises:
        ValueError: if the folder does not hold one.
    """
    folder = pathlib.Path(directory)
    try:
        read = jax.export.deserialize(bytearray((folder / PROGRAM).read_bytes()))
        weights = safetensors.numpy.load_file(folder / WEIGHTS)
    except Exception as error:  # flatbuffers and safetensors raise what they like
        raise ValueError(f"{folder} holds no program written by export.program: {error}") from error

    def call(x: Array) -> Array:
        out: Array = read.call(weights, x)
        return out

    return call


def onnx(path: str | os.PathLike[str], model: Model, variables: Variables, *, x: Array | None = None) -> Written:
    """Writes a model as an ONNX graph for any batch size, weights included; converted by jax2onnx.

    Args:
        path: the file to write; a report with the difference goes beside it, `PATH.json`.
        model: the model, dense or slim.
        variables: the model's variables.
        x: examples to compare on, run by onnxruntime; `None`: three that are made up.

    Returns:
        The file, with the difference to the model.

    Raises:
        ValueError: if jax2onnx, onnx or onnxruntime is missing, or the graph's logits are not the model's to 1e-3 of
            the largest; nothing is written then.
    """
    for name in ("jax2onnx", "onnxruntime"):
        # No extra of this package: jax2onnx asks for an older orbax-checkpoint than this, and does without any.
        _need(name, "onnx onnxruntime onnx-ir; pip install --no-deps jax2onnx")
    import jax2onnx
    import onnxruntime

    x = _examples(model) if x is None else jnp.asarray(x)
    made = jax2onnx.to_onnx(
        lambda x: model.apply(variables, x)[0],
        inputs=[jax.ShapeDtypeStruct(("B", *x.shape[1:]), model.input_dtype)]
        if jnp.issubdtype(model.input_dtype, jnp.integer)
        else [("B", *x.shape[1:])],
        model_name="model",
    )
    content = made.SerializeToString()
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (name,) = (i.name for i in session.get_inputs())
    got = session.run(None, {name: np.asarray(x, model.input_dtype)})[0]
    difference = _compare(got, model.apply(variables, x)[0])
    target = pathlib.Path(path)
    report = {"difference": difference, "input": ["n", *x.shape[1:]], "name": name}
    loading.write_file(target, content)
    loading.write_file(target.with_name(target.name + ".json"), json.dumps(report, indent=1).encode())
    return Written(target, difference, len(content))


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
    x = _examples(model) if x is None else jnp.asarray(x)
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
    difference = _compare(np.asarray(model.apply(loading.convert(tensors, model), x)[0]), wanted)
    # transformers loads no file that does not say whose tensors these are.
    files = {"model.safetensors": safetensors.numpy.save(tensors, metadata={"format": "pt"})}
    described = form.describe(model.config)
    if described:
        files["config.json"] = json.dumps(described, indent=2).encode()
    files[REPORT] = json.dumps({"difference": difference, "format": form.name}, indent=1).encode()
    return Written(loading.write_folder(directory, files), difference, sum(map(len, files.values())))


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
        name: _examples(model) if x is None else jnp.asarray(x)
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

    difference = _compare(np.asarray(similarity(again)), similarity(towers))
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
        REPORT: json.dumps({"difference": difference, "format": "clip (Hugging Face)"}, indent=1).encode(),
    }
    return Written(loading.write_folder(directory, files), difference, sum(map(len, files.values())))


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


def _examples(model: Model, count: int = 3) -> Array:
    """Inputs of the model's kind that differ."""
    key, shape = jax.random.key(0), (count, *model.input_shape)
    if jnp.issubdtype(model.input_dtype, jnp.integer):
        return jax.random.randint(key, shape, 0, getattr(model.config, "vocab", 2))
    return jax.random.normal(key, shape, jnp.float32)


def _compare(got: np.ndarray, wanted: Array) -> float:
    difference = float(np.max(np.abs(got - np.asarray(wanted))))
    if not difference <= 1e-3 * max(1.0, float(np.max(np.abs(wanted)))):
        raise ValueError(f"what would be written differs from the model by {difference:.2g} in its logits")
    return difference


def _need(module: str, packages: str) -> None:
    if importlib.util.find_spec(module) is None:
        raise ValueError(f"this needs {module}, which is not installed: pip install {packages}")
