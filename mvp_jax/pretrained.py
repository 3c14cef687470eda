"""Trained weights in and out: PyTorch's names read by key tables, and folders that a pruned model is reloaded from.

Everything is safetensors and JSON; nothing is ever unpickled.
"""

import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from mvp_jax import models, trees
from mvp_jax.types import PyTree, Units, Variables

Transform: TypeAlias = Callable[[np.ndarray, Any], np.ndarray]
"""`(array as stored, model's configuration) -> array as the model has it`."""

Table: TypeAlias = Sequence[tuple[str, Sequence[tuple[str, Transform]]]]
"""`(regular expression over a whole key, [(target path template, transform), ...])`; no targets: read past it. The
templates take the expression's groups; the paths start with `params/` or `rest/`."""


def _same(a: np.ndarray, config: Any) -> np.ndarray:
    return a


def _conv(a: np.ndarray, config: Any) -> np.ndarray:
    """OIHW to HWIO."""
    return a.transpose(2, 3, 1, 0)


def _cells(a: np.ndarray, config: Any) -> np.ndarray:
    """A head over channel-first cells, `[classes, C·p·p]`, to `[p, p, C, classes]`; over one cell to `[C, classes]`."""
    if config.pool == 1:
        return a.T
    return a.reshape(a.shape[0], -1, config.pool, config.pool).transpose(2, 3, 1, 0)


def _linear(a: np.ndarray, config: Any) -> np.ndarray:
    return a.T


def _split(third: int) -> Transform:
    """One of query, key and value of a fused projection: `[3D, D]` to `[D, H, d]`, `[3D]` to `[H, d]`."""

    def transform(a: np.ndarray, config: Any) -> np.ndarray:
        part = np.split(a, 3)[third]
        return _heads(part, config)

    return transform


def _heads(a: np.ndarray, config: Any) -> np.ndarray:
    """`[D, D]` (out, in) to `[D, H, d]`, `[D]` to `[H, d]`."""
    h = config.heads[0]
    return a.T.reshape(a.shape[1], h, -1) if a.ndim == 2 else a.reshape(h, -1)


def _out(a: np.ndarray, config: Any) -> np.ndarray:
    """`[D, D]` (out, in) to `[H, d, D]`."""
    return a.T.reshape(config.heads[0], -1, a.shape[0])


def _norm(source: str, target: str) -> Table:
    return [
        (rf"{source}\.weight", [(f"params/{target}/scale", _same)]),
        (rf"{source}\.bias", [(f"params/{target}/bias", _same)]),
        (rf"{source}\.running_mean", [(f"rest/{target}/mean", _same)]),
        (rf"{source}\.running_var", [(f"rest/{target}/var", _same)]),
    ]


def _affine(source: str, target: str, kernel: Transform = _linear, bias: Transform = _same) -> Table:
    return [
        (rf"{source}\.weight", [(f"params/{target}/kernel", kernel)]),
        (rf"{source}\.bias", [(f"params/{target}/bias", bias)]),
    ]


_BLOCK = "stages/{stage}/blocks/{block}"
_IN_BLOCK = r"layer(?P<stage>\d+)\.(?P<block>\d+)"
_QKV = ("query", "key", "value")

TABLES: dict[str, Table] = {
    # CIFAR networks of akamaster/pytorch_resnet_cifar10 and karanchahal/distiller, and torchvision's.
    "resnet": [
        (r".*\.num_batches_tracked", []),
        (r"conv1\.weight", [("params/stem/conv/kernel", _conv)]),
        *_norm(r"bn1", "stem/norm"),
        (_IN_BLOCK + r"\.conv(?P<j>\d)\.weight", [(f"params/{_BLOCK}/conv{{j}}/kernel", _conv)]),
        *_norm(_IN_BLOCK + r"\.bn(?P<j>\d)", f"{_BLOCK}/norm{{j}}"),
        (_IN_BLOCK + r"\.(?:shortcut|downsample)\.0\.weight", [(f"params/{_BLOCK}/shortcut/conv/kernel", _conv)]),
        *_norm(_IN_BLOCK + r"\.(?:shortcut|downsample)\.1", f"{_BLOCK}/shortcut/norm"),
        *_affine(r"(?:linear|fc)", "head", _cells),
    ],
    # timm and DeiT, whose query, key and value are fused, and Hugging Face's ViTForImageClassification.
    "vit": [
        (r"(?:vit\.embeddings\.)?cls_token", [("params/cls", _same)]),
        (r"(?:pos_embed|vit\.embeddings\.position_embeddings)", [("params/position", _same)]),
        *_affine(r"(?:patch_embed\.proj|vit\.embeddings\.patch_embeddings\.projection)", "patch", _conv),
        *_norm(r"blocks\.(?P<i>\d+)\.norm(?P<j>\d)", "layers/{i}/norm{j}"),
        *[
            (rf"blocks\.(?P<i>\d+)\.attn\.qkv\.{kind}", [
                (f"params/layers/{{i}}/attention/{name}/{leaf}", _split(third)) for third, name in enumerate(_QKV)
            ])
            for kind, leaf in (("weight", "kernel"), ("bias", "bias"))
        ],
        *_affine(r"blocks\.(?P<i>\d+)\.attn\.proj", "layers/{i}/attention/out", _out),
        *_affine(r"blocks\.(?P<i>\d+)\.mlp\.fc(?P<j>\d)", "layers/{i}/fc{j}"),
        *_norm(r"vit\.encoder\.layer\.(?P<i>\d+)\.layernorm_before", "layers/{i}/norm1"),
        *_norm(r"vit\.encoder\.layer\.(?P<i>\d+)\.layernorm_after", "layers/{i}/norm2"),
        *_affine(
            r"vit\.encoder\.layer\.(?P<i>\d+)\.attention\.attention\.(?P<name>query|key|value)",
            "layers/{i}/attention/{name}",
            _heads,
            _heads,
        ),
        *_affine(
            r"vit\.encoder\.layer\.(?P<i>\d+)\.attention\.output\.dense", "layers/{i}/attention/out", _out
        ),
        *_affine(r"vit\.encoder\.layer\.(?P<i>\d+)\.intermediate\.dense", "layers/{i}/fc1"),
        *_affine(r"vit\.encoder\.layer\.(?P<i>\d+)\.output\.dense", "layers/{i}/fc2"),
        *_norm(r"(?:norm|vit\.layernorm)", "norm"),
        *_affine(r"(?:head|classifier)", "head"),
    ],
}  # fmt: skip
"""By family. A leading `module.` (of `torch.nn.DataParallel`) is dropped before matching; stages count from 1 there
and from 0 here."""


def convert(tensors: Mapping[str, np.ndarray], model: models.Model) -> Variables:
    """PyTorch's tensors as variables of a model.

    Args:
        tensors: by PyTorch name, in PyTorch's layouts.
        model: the dense model they belong to, with the checkpoint's classes.

    Returns:
        Variables in float32.

    Raises:
        ValueError: with *all* keys that are unknown, missing, given twice or of a wrong shape.
    """
    family = models.to_json(model.config)["family"]
    if family not in TABLES:
        raise ValueError(f"no key table for the family {family!r}; there are {sorted(TABLES)}")
    like = jax.eval_shape(model.init, jax.random.key(0))
    expected = {path: leaf.shape for path, leaf in trees.flatten(like).items()}
    found: dict[str, np.ndarray] = {}
    problems: list[str] = []
    for key in sorted(tensors):
        name = key.removeprefix("module.")
        rule = next(((m, to) for p, to in TABLES[family] if (m := re.fullmatch(p, name))), None)
        if rule is None:
            problems.append(f"{key}: not in the key table of {family!r}")
            continue
        fields = rule[0].groupdict()
        if "stage" in fields:
            fields["stage"] = str(int(fields["stage"]) - 1)
        for template, transform in rule[1]:
            path = template.format(**fields)
            if path not in expected:
                problems.append(f"{key}: the model has no {path}")
                continue
            if path in found:
                problems.append(f"{key}: a second value for {path}")
                continue
            try:
                found[path] = np.ascontiguousarray(transform(np.asarray(tensors[key]), model.config))
            except ValueError as error:
                problems.append(f"{key}: shape {np.shape(tensors[key])} cannot become {expected[path]} ({error})")
                found[path] = np.zeros(expected[path], np.float32)
                continue
            if found[path].shape != expected[path]:
                problems.append(f"{key}: gives {path} the shape {found[path].shape}, the model has {expected[path]}")
    problems += [f"missing: {path} {shape}" for path, shape in sorted(expected.items()) if path not in found]
    _refuse(problems, "the weights do not fit the model")
    return trees.replace(like, {path: jnp.asarray(a, jnp.float32) for path, a in found.items()})


def load(path: str | os.PathLike[str], model: models.Model) -> Variables:
    """Reads a safetensors file with PyTorch's names; see `convert`."""
    return convert(_read(pathlib.Path(path)), model)


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
    target = pathlib.Path(directory)
    _refuse(_misfits(model, trees.flatten(Variables(*variables))), "these variables are not the model's")
    tensors = {p: np.ascontiguousarray(np.asarray(a)) for p, a in trees.flatten(Variables(*variables)).items()}
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
    """Writes files into a folder that appears complete or not at all; one that stands there already is replaced.

    Raises:
        ValueError: if it cannot be written; nothing is then.
    """
    target = pathlib.Path(directory)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise ValueError(f"cannot write to {target.parent}: {error}; choose a writable folder") from error
    try:
        for name, content in files.items():
            with open(fresh / name, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        fresh.chmod(0o755)  # mkdtemp makes it private
        if target.is_dir() and any(target.iterdir()):
            # A folder cannot be renamed over a full one; the old one steps aside first.
            old = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
            os.replace(target, old)
            os.replace(fresh, target)
            shutil.rmtree(old)
        else:
            os.replace(fresh, target)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise ValueError(f"cannot write {target}: {error}; choose a new folder") from error
    return target


def write_file(path: str | os.PathLike[str], content: bytes) -> pathlib.Path:
    """Writes a file that appears complete or not at all.

    Raises:
        ValueError: if it cannot be written.
    """
    target = pathlib.Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(prefix=f".{target.name}-", dir=target.parent, delete=False) as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(file.name, 0o644)
        os.replace(file.name, target)
    except OSError as error:
        raise ValueError(f"cannot write {target}: {error}; choose a writable place") from error
    return target


def describe(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """What `save` wrote beside the weights: `config`, `kept` (`{group: {"of": C, "kept": indices}}`), `extra`."""
    path = pathlib.Path(directory) / "model.json"
    try:
        described = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is not readable as a saved model: {error}") from error
    if not isinstance(described, dict) or described.get("format") != 1 or not {"config", "sha256"} <= set(described):
        raise ValueError(f"{path} is not a model saved by this package (format 1)")
    return described


def reload(directory: str | os.PathLike[str]) -> tuple[models.Model, Variables]:
    """The model and variables of a folder that `save` wrote.

    Raises:
        ValueError: if files are missing, truncated or altered, or weights and configuration disagree.
    """
    described = describe(directory)
    path = pathlib.Path(directory) / "weights.safetensors"
    tensors = _read(path)
    if hashlib.sha256(path.read_bytes()).hexdigest() != described["sha256"]:
        raise ValueError(f"{path} is not the file that model.json was written with (its checksum differs)")
    model = models.build(models.from_json(described["config"]))
    _refuse(_misfits(model, tensors), f"{path} does not fit its configuration")
    like = jax.eval_shape(model.init, jax.random.key(0))
    return model, trees.replace(like, {p: jnp.asarray(a) for p, a in tensors.items()})


def _misfits(model: models.Model, leaves: Mapping[str, Any]) -> list[str]:
    like: PyTree = jax.eval_shape(model.init, jax.random.key(0))
    expected = {p: leaf.shape for p, leaf in trees.flatten(like).items()}
    got = {p: jnp.shape(leaf) for p, leaf in leaves.items()}
    return [
        f"{p}: got {got.get(p, 'nothing')}, needs {expected.get(p, 'nothing')}"
        for p in sorted(set(got) | set(expected))
        if got.get(p) != expected.get(p)
    ]


def _refuse(problems: Sequence[str], what: str) -> None:
    if problems:
        raise ValueError(f"{what}; {len(problems)} problems:\n  " + "\n  ".join(problems))


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise ValueError(f"no weights at {path}; give the path of a safetensors file")
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path} is not a complete safetensors file: {error}; it may be truncated") from error
